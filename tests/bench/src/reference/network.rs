//! Two nodes with a routed pod each, joined by hand: the least that carries the same
//! traffic as Viaduct does, over the same kinds of links and namespaces.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use viaduct_lab::command::{self, ip_batch};
use viaduct_lab::{Node, netns, underlay};
use viaduct_model::MacAddr;

use super::vxlan;

/// How the two nodes' pods reach each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Through a VXLAN.
    Vxlan,
    /// By plain routes over the underlay.
    Routes,
}

impl Way {
    /// The MTU of pods, on an underlay of 1500 bytes.
    pub(crate) fn mtu(self) -> u32 {
        match self {
            Way::Vxlan => vxlan::MTU,
            Way::Routes => 1500,
        }
    }
}

/// What one hand-made network differs from another in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ByHand {
    /// How pods reach each other.
    pub way: Way,
    /// Whether what pods send to the outside is masqueraded, by the one rule that
    /// this needs.
    pub masquerade: bool,
    /// Its pods are `10.<number>.<node>.10`.
    pub number: u8,
}

/// A pod of the hand-made network.
#[derive(Debug, Clone)]
pub(crate) struct HandMadePod {
    /// Its namespace.
    pub netns: PathBuf,
    /// Its address.
    pub ip: Ipv4Addr,
}

impl ByHand {
    /// Lays it between two nodes and gives each a pod.
    ///
    /// # Errors
    /// What `ip`, `bridge` or `nft` said.
    pub(crate) fn lay(self, nodes: [&Node; 2]) -> Result<[HandMadePod; 2]> {
        for (here, there) in [(0, 1), (1, 0)] {
            self.join(nodes[here], self.overlay(here), nodes[there], there)
                .with_context(|| format!("{self:?} on {}", nodes[here].name()))?;
        }
        Ok([self.pod(nodes[0], 0)?, self.pod(nodes[1], 1)?])
    }

    fn block(self, node: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, self.number, if node == 0 { 1 } else { 2 }, 0)
    }

    fn overlay(self, node: usize) -> Ipv4Addr {
        vxlan::plus(self.block(node), 1)
    }

    fn join(self, node: &Node, own: Ipv4Addr, peer: &Node, there: usize) -> Result<()> {
        let block = self.block(there);
        match self.way {
            Way::Vxlan => {
                let mac = |node: &Node| MacAddr::derived("bench", node.name());
                vxlan::device(node, own, mac(node))?;
                vxlan::peer(node, self.overlay(there), mac(peer), peer.address(), block)?;
            }
            Way::Routes => netns::within(node.netns(), || {
                ip_batch(&format!(
                    "route add {block}/24 via {} dev {}\n",
                    peer.address(),
                    underlay::NODE_LINK
                ))
            })?,
        }
        netns::within(node.netns(), || {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("forwarding")?;
            if self.masquerade {
                let pods = format!("10.{}.0.0/16", self.number);
                let rules = format!(
                    "table ip byhand {{ chain postrouting {{ \
                     type nat hook postrouting priority srcnat; \
                     ip saddr {pods} ip daddr != {pods} masquerade; }}; }}"
                );
                command::run("nft", [rules.as_str()])?;
            }
            Ok(())
        })
    }

    /// A pod with a /32, an on-link gateway and permanent neighbours: no bridge, no ARP.
    fn pod(self, node: &Node, place: usize) -> Result<HandMadePod> {
        let ip = vxlan::plus(self.block(place), 10);
        let mtu = self.way.mtu();
        let name = format!("{}-byhand", node.name());
        let path = netns::add(&name)?;
        let host_mac = MacAddr::derived("bench-host", &name);
        let pod_mac = MacAddr::derived("bench-pod", &name);
        netns::within(node.netns(), || {
            ip_batch(&format!(
                "link add pod0 address {host_mac} mtu {mtu} type veth \
                 peer name eth0 address {pod_mac} mtu {mtu} netns {name}\n\
                 link set pod0 up\n"
            ))
        })?;
        netns::within(&path, || {
            ip_batch(&format!(
                "addr add {ip}/32 dev eth0\n\
                 link set eth0 up\n\
                 neigh add 169.254.1.1 lladdr {host_mac} dev eth0 nud permanent\n\
                 route add default via 169.254.1.1 dev eth0 onlink\n"
            ))
        })?;
        netns::within(node.netns(), || {
            ip_batch(&format!(
                "neigh add {ip} lladdr {pod_mac} dev pod0 nud permanent\n\
                 route add {ip}/32 dev pod0 scope link\n"
            ))
        })?;
        Ok(HandMadePod { netns: path, ip })
    }
}
