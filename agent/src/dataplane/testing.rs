//! Builders for tests: a small cluster and its endpoints.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use viaduct_model::record::{Backend, Underlay};
use viaduct_model::{
    AttachmentId, Block, Cidr, ClusterView, Endpoint, MacAddr, Node, NodeName, Pool,
};

use crate::state::{LocalNode, NodeState, UnderlayLink};

/// Node `a` (this one), with block 10.64.0.0/26, and its peer `b`.
#[derive(Debug, Clone)]
pub(crate) struct Cluster {
    /// This node.
    pub(crate) local: LocalNode,
    /// What the records say.
    pub(crate) view: ClusterView,
    /// Whom the kernel finds on the underlay's link.
    pub(crate) on_link: BTreeSet<Ipv4Addr>,
}

fn name(text: &str) -> NodeName {
    text.parse().expect("a node's name")
}

fn cidr(text: &str) -> Cidr {
    text.parse().expect("a CIDR")
}

impl Default for Cluster {
    fn default() -> Self {
        Self::new()
    }
}

impl Cluster {
    /// Two nodes with a block each.
    pub(crate) fn new() -> Self {
        let local = LocalNode {
            name: name("a"),
            underlay: UnderlayLink {
                name: "eth0".into(),
                index: 2,
                address: Ipv4Addr::new(192, 168, 64, 1),
                public_address: Ipv4Addr::new(192, 168, 64, 1),
                networks: vec![cidr("192.168.64.0/24")],
                mac: None,
                mtu: 1500,
            },
            carrier: Backend::Vxlan {
                vni: 1,
                port: 8472,
                vtep_mac: MacAddr::for_vtep(&name("a")),
            },
            direct_routing: false,
            masquerade: false,
            mtu: 1450,
            overlay: Some(Ipv4Addr::new(10, 64, 0, 0)),
        };
        let mut cluster = Self {
            local,
            view: ClusterView::default(),
            on_link: BTreeSet::new(),
        };
        cluster.block("10.64.0.0/26", "a");
        cluster.peer("b", 1);
        cluster
    }

    /// The same nodes with another backend.
    pub(crate) fn of(backend: &crate::backend::Backend) -> Self {
        let mut cluster = Self::new();
        let tuning = crate::backend::Tuning { vni: 1, port: 8472 };
        cluster.local.carrier = (backend.carrier)(&name("a"), &tuning);
        cluster.local.mtu = cluster.local.underlay.mtu - backend.overhead;
        cluster.view.nodes.clear();
        cluster.peer("b", 1);
        cluster
    }

    /// Puts a peer on this node's own network, as host number `n`.
    pub(crate) fn adjoin(&mut self, peer: &str, n: u8) {
        let address = Ipv4Addr::new(192, 168, 64, n);
        let networks = self.local.underlay.networks.clone();
        let node = self.node(peer);
        node.underlay.v4 = Some(address);
        node.underlay_networks = networks;
        self.on_link.insert(address);
    }

    /// A peer with number `n`, its block and its overlay address.
    pub(crate) fn peer(&mut self, peer: &str, n: u16) {
        let [hi, lo] = n.to_be_bytes();
        let first = Ipv4Addr::new(10, 64 + hi, lo, 0);
        let node = Node {
            incarnation: peer.into(),
            underlay: Underlay {
                v4: Some(Ipv4Addr::new(192, 168, 65 + hi, lo)),
                v6: None,
            },
            underlay_networks: Vec::new(),
            backend: match self.local.carrier {
                Backend::Vxlan { vni, port, .. } => Backend::Vxlan {
                    vni,
                    port,
                    vtep_mac: MacAddr::for_vtep(&name(peer)),
                },
                ref other => other.clone(),
            },
            overlay: Default::default(),
            mtu: self.local.mtu,
            labels: Default::default(),
            extra: Default::default(),
        };
        self.view.nodes.insert(name(peer), node.into());
        self.node(peer).overlay.v4 = Some(first);
        self.block(&format!("{first}/26"), peer);
    }

    /// The record of a node.
    pub(crate) fn node(&mut self, node: &str) -> &mut Node {
        Arc::make_mut(self.view.nodes.get_mut(&name(node)).expect("the node"))
    }

    /// Sets how a node carries traffic.
    pub(crate) fn carrier(&mut self, node: &str, vni: u32, port: u16, vtep_mac: MacAddr) {
        self.node(node).backend = Backend::Vxlan {
            vni,
            port,
            vtep_mac,
        };
    }

    /// Adds a block.
    pub(crate) fn block(&mut self, block: &str, node: &str) -> &mut Block {
        let block = Block::new(
            cidr(block),
            "default".parse().expect("a pool's name"),
            name(node),
            1,
        );
        Arc::make_mut(
            self.view
                .blocks
                .entry(block.cidr)
                .or_insert_with(|| block.into()),
        )
    }

    /// Adds a pool.
    pub(crate) fn pool(&mut self, pool: &str, range: &str) {
        let pool = pool.parse().expect("a pool's name");
        self.view.pools.insert(pool, Pool::new(cidr(range), None));
    }

    /// As the agent publishes it.
    pub(crate) fn state(&self) -> NodeState {
        NodeState {
            local: self.local.clone(),
            view: Arc::new(self.view.clone()),
            on_link: Arc::new(self.on_link.clone()),
            disputed: Default::default(),
            lost: Default::default(),
        }
    }
}

/// An endpoint with one address.
pub(crate) fn endpoint(container: &str, address: &str, wired: bool) -> Endpoint {
    let id = AttachmentId::new(container, "eth0").expect("an attachment");
    Endpoint {
        network: "viaduct".into(),
        netns: format!("/run/netns/{container}"),
        addresses: vec![address.parse().expect("an address")],
        mtu: 1450,
        wired,
        ..Endpoint::bare(id)
    }
}
