//! The IPIP backend (RFC 2003): one link `via.ipip` without a far end of its own; for
//! each block of a peer a route by the peer's underlay address, which is where the
//! kernel then sends the packet that it wraps.
//!
//! A packet from pod to pod is wrapped in one more IPv4 header and sent to the next hop
//! of its route; the peer unwraps what comes to its own address and routes it to the
//! pod. There are no neighbours and no forwarding entries.

use viaduct_model::record::Backend as Carrier;

use super::{Backend, Scene, TUNNEL};
use crate::dataplane::objects::{Desired, DesiredLink, IPIP_LINK, Ipip, LinkKind, LinkName, Route};
use crate::kernel::LinkType;

/// How far the outer packet may travel; that of the packet inside could be too short
/// for the way between two nodes.
const TTL: u8 = 64;

/// This backend. It adds the outer IPv4 header.
pub const BACKEND: Backend = Backend {
    name: "ipip",
    overhead: 20,
    link_type: Some(LinkType::Ipip),
    carrier: |_, _| Carrier::Ipip,
    desire,
};

fn desire(scene: &Scene<'_>, desired: &mut Desired) {
    let local = scene.local;
    let link: LinkName = IPIP_LINK.into();
    desired.links.insert(
        link.clone(),
        DesiredLink {
            kind: LinkKind::Ipip(Ipip {
                local: Some(local.underlay.address),
                remote: None,
                underlay: 0,
                ttl: TTL,
            }),
            mac: None,
            mtu: local.mtu,
            settings: TUNNEL,
        },
    );
    scene.address(&link, desired);
    for peer in &scene.peers {
        if scene.reaches_directly(peer) {
            peer.route_directly(local, desired);
            continue;
        }
        let route = |block| {
            Route::through(block, link.clone())
                .onlink_via(peer.underlay, scene.overlay)
                .with_mtu(peer.mtu)
        };
        desired
            .routes
            .extend(peer.blocks.iter().copied().map(route));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::testing::Cluster;

    #[test]
    fn a_peer_is_a_route_for_each_block_by_its_underlay_address() {
        let mut cluster = Cluster::of(&BACKEND);
        cluster.block("10.64.2.0/26", "b");
        let desired = BACKEND.desired(&cluster.state(), &Default::default());
        let routes: Vec<String> = desired.routes.iter().map(ToString::to_string).collect();
        assert_eq!(
            routes,
            [
                "blackhole route 10.64.0.0/26",
                "route 10.64.1.0/26 via 192.168.65.1 dev via.ipip src 10.64.0.0",
                "route 10.64.2.0/26 via 192.168.65.1 dev via.ipip src 10.64.0.0",
            ]
        );
        assert!(desired.routes.iter().all(|r| r.link.is_none() || r.onlink));
        assert!(desired.fdb.is_empty() && desired.neighbours.is_empty());
        assert_eq!(desired.refusals, [""; 0]);
        assert!(desired.forwarding.is_empty() && desired.not_adjacent.is_empty());
        let link = &desired.links[IPIP_LINK];
        assert_eq!((link.mtu, link.mac), (1480, None));
    }

    #[test]
    fn with_direct_routing_an_adjacent_peer_needs_no_tunnel() {
        let mut cluster = Cluster::of(&BACKEND);
        cluster.local.direct_routing = true;
        cluster.peer("c", 3);
        cluster.adjoin("b", 9);
        let desired = BACKEND.desired(&cluster.state(), &Default::default());
        let routes: Vec<String> = desired.routes.iter().map(ToString::to_string).collect();
        assert_eq!(
            routes,
            [
                "blackhole route 10.64.0.0/26",
                "route 10.64.1.0/26 via 192.168.64.9 dev eth0",
                "route 10.64.3.0/26 via 192.168.65.3 dev via.ipip src 10.64.0.0",
            ]
        );
        assert!(desired.forwarding.contains("eth0"));
    }
}
