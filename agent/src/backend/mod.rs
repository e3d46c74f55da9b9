//! Backends: how pod traffic crosses the underlay. Each is a pure function from the
//! cluster to what the kernel should hold. A new backend is a file here and a line
//! in [`ALL`].

pub mod host_gw;
pub mod ipip;
pub mod peers;
pub mod vxlan;

use std::net::{IpAddr, Ipv4Addr};

use viaduct_model::record::Backend as Carrier;
use viaduct_model::{Cidr, NodeName};

use crate::dataplane::endpoints;
use crate::dataplane::objects::{Address, Desired, LinkName, Route, Settings};
use crate::isolation;
use crate::kernel::LinkType;
use crate::state::{Endpoints, LocalNode, NodeState};
use peers::Peer;

/// A way to carry pod traffic.
#[derive(Debug)]
pub struct Backend {
    /// The name as `--backend` takes it.
    pub name: &'static str,
    /// What it adds to each packet, in bytes.
    pub overhead: u32,
    /// The kind of link that the kernel must be able to make; none for plain routes.
    pub link_type: Option<LinkType>,
    /// How this node's record tells peers of it.
    pub carrier: fn(&NodeName, &Tuning) -> Carrier,
    /// Adds what it needs in the kernel for these peers, whose records are sound.
    pub desire: fn(&Scene<'_>, &mut Desired),
}

/// What the flags say about backends.
#[derive(Debug, Clone, Copy)]
pub struct Tuning {
    /// `--vni`.
    pub vni: u32,
    /// `--port`.
    pub port: u16,
}

/// What a backend decides from.
#[derive(Debug)]
pub struct Scene<'a> {
    /// This node.
    pub local: &'a LocalNode,
    /// Its overlay address, if it has one that does no harm.
    pub overlay: Option<Ipv4Addr>,
    /// The peers that can be reached.
    pub peers: Vec<Peer<'a>>,
}

/// Every backend.
pub const ALL: &[&Backend] = &[&vxlan::BACKEND, &ipip::BACKEND, &host_gw::BACKEND];

/// The backend of this name.
pub fn by_name(name: &str) -> Option<&'static Backend> {
    ALL.iter().copied().find(|backend| backend.name == name)
}

/// The settings of a tunnel's link on a host of which nothing is known. What another node
/// itself sends to a pod may carry that node's underlay address, whose way back
/// does not lead through the tunnel; a strict source check would drop it. Where the host
/// has none for all links, the tunnel needs none either: see `dataplane::host`.
pub const TUNNEL: Settings = Settings {
    forwarding: true,
    rp_filter: 2,
    proxy_arp: false,
};

impl Backend {
    /// All that the kernel should hold: the backend's and the endpoints' part.
    pub fn desired(&self, state: &NodeState, endpoints: &Endpoints) -> Desired {
        let mut desired = Desired {
            incomplete: !state.view.unreadable.is_empty(),
            ..Desired::default()
        };
        let local = &state.local;
        let mut blocks = peers::usable_blocks(state, &mut desired);
        for block in blocks.remove(&local.name).unwrap_or_default() {
            desired.routes.insert(Route::blackhole(block));
        }
        // An address that lies in the underlay would hide a host there.
        let overlay = local
            .overlay
            .filter(|overlay| peers::clash(Cidr::host(IpAddr::V4(*overlay)), local).is_none());
        desired.wires = overlay.is_some();
        let scene = Scene {
            local,
            overlay,
            peers: peers::sound(state, blocks, &mut desired),
        };
        // Pods' packets, or the answers to what was masqueraded, come in on the
        // underlay's own device.
        if local.direct_routing || local.masquerade || self.link_type.is_none() {
            desired
                .forwarding
                .insert(local.underlay.name.as_str().into());
        }
        (self.desire)(&scene, &mut desired);
        let foreign = isolation::foreign(state, endpoints.values());
        endpoints::desire_without(endpoints, &foreign, &mut desired);
        desired
    }
}

impl Scene<'_> {
    /// Puts the overlay address on the tunnel.
    fn address(&self, link: &LinkName, desired: &mut Desired) {
        if let Some(address) = self.overlay {
            desired.addresses.insert(Address {
                link: link.clone(),
                address,
                prefix_len: 32,
            });
        }
    }

    /// Whether a peer is to get plain routes beside the tunnel for the others.
    fn reaches_directly(&self, peer: &Peer<'_>) -> bool {
        self.local.direct_routing && peer.adjacent.is_ok()
    }
}
