//! The VXLAN backend (RFC 7348): one link `via.vx4`; for each peer a forwarding
//! entry (its VTEP's MAC to its underlay address), a neighbour (its overlay address
//! to that MAC) and a route for each of its blocks by that overlay address.
//!
//! A packet from pod to pod leaves through the peer's route, finds the VTEP's MAC in
//! the neighbour and the underlay address in the forwarding entry; the peer receives
//! it addressed to its own MAC and routes it to the pod. Nothing is learnt and no
//! ARP is ever sent.

use std::collections::BTreeMap;

use viaduct_model::record::Backend as Carrier;
use viaduct_model::{MacAddr, NodeName};

use super::peers::Peer;
use super::{Backend, Scene, TUNNEL};
use crate::dataplane::objects::{
    Desired, DesiredLink, LinkKind, LinkName, Route, VXLAN_LINK, Vxlan,
};
use crate::kernel::LinkType;

/// This backend. It adds, over IPv4, the outer IPv4 header 20, UDP 8, VXLAN 8 and the
/// inner Ethernet header 14.
pub const BACKEND: Backend = Backend {
    name: "vxlan",
    overhead: 50,
    link_type: Some(LinkType::Vxlan),
    carrier: |name, tuning| Carrier::Vxlan {
        vni: tuning.vni,
        port: tuning.port,
        vtep_mac: MacAddr::for_vtep(name),
    },
    desire,
};

fn desire(scene: &Scene<'_>, desired: &mut Desired) {
    let local = scene.local;
    // The agent decides its carrier by this backend.
    let Carrier::Vxlan {
        vni,
        port,
        vtep_mac,
    } = local.carrier
    else {
        return;
    };
    let link: LinkName = VXLAN_LINK.into();
    desired.links.insert(
        link.clone(),
        DesiredLink {
            kind: LinkKind::Vxlan(Vxlan {
                vni,
                port,
                local: Some(local.underlay.address),
                underlay: local.underlay.index,
                learning: false,
            }),
            mac: Some(vtep_mac),
            mtu: local.mtu,
            settings: TUNNEL,
        },
    );
    scene.address(&link, desired);
    let mut macs = BTreeMap::from([(vtep_mac, &local.name)]);
    // A peer's MAC counts, whichever way it is reached.
    let refused: BTreeMap<&NodeName, String> = scene
        .peers
        .iter()
        .filter_map(|peer| Some((peer.name, vtep(peer, (vni, port), &mut macs).err()?)))
        .collect();
    desired.refusals.extend(refused.values().cloned());
    for peer in &scene.peers {
        if refused.contains_key(peer.name) {
            continue;
        }
        let Carrier::Vxlan { vtep_mac: mac, .. } = peer.node.backend else {
            continue;
        };
        if scene.reaches_directly(peer) {
            peer.route_directly(local, desired);
            continue;
        }
        desired.fdb.insert((link.clone(), mac), peer.underlay);
        desired.neighbours.insert((link.clone(), peer.overlay), mac);
        let route = |block| {
            Route::through(block, link.clone())
                .onlink_via(peer.overlay, scene.overlay)
                .with_mtu(peer.mtu)
        };
        desired
            .routes
            .extend(peer.blocks.iter().copied().map(route));
    }
}

/// Checks what a peer says of its VTEP.
fn vtep<'a>(
    peer: &Peer<'a>,
    ours: (u32, u16),
    macs: &mut BTreeMap<MacAddr, &'a NodeName>,
) -> Result<(), String> {
    let Carrier::Vxlan {
        vni,
        port,
        vtep_mac: mac,
    } = peer.node.backend
    else {
        // The backends have been compared.
        return Err(peer.refusal("it has no VTEP"));
    };
    if (vni, port) != ours {
        return Err(peer.refusal(&format!(
            "it uses VNI {vni} and port {port}, this node VNI {} and port {}; all nodes must use the same",
            ours.0, ours.1
        )));
    }
    if !mac.is_unicast() {
        return Err(peer.refusal(&format!("its VTEP MAC {mac} is no unicast address")));
    }
    if let Some(other) = macs.get(&mac) {
        return Err(peer.refusal(&format!(
            "its VTEP MAC {mac} is that of node {:?} too; each node must have its own",
            other.as_str()
        )));
    }
    macs.insert(mac, peer.name);
    Ok(())
}

#[cfg(test)]
mod tests {
    use viaduct_model::BlockState;

    use super::*;
    use crate::dataplane::testing::Cluster;

    fn desired(cluster: &Cluster) -> Desired {
        BACKEND.desired(&cluster.state(), &Default::default())
    }

    fn routed(desired: &Desired) -> Vec<String> {
        desired
            .routes
            .iter()
            .map(|route| route.to_string())
            .collect()
    }

    #[test]
    fn a_peer_is_an_fdb_entry_a_neighbour_and_a_route_for_each_block() {
        let mut cluster = Cluster::new();
        cluster.block("10.64.2.0/26", "b");
        let desired = desired(&cluster);
        assert_eq!(
            routed(&desired),
            [
                "blackhole route 10.64.0.0/26",
                "route 10.64.1.0/26 via 10.64.1.0 dev via.vx4 src 10.64.0.0",
                "route 10.64.2.0/26 via 10.64.1.0 dev via.vx4 src 10.64.0.0",
            ]
        );
        assert_eq!(desired.fdb.len(), 1);
        assert_eq!(desired.neighbours.len(), 1);
        assert_eq!(desired.refusals, [""; 0]);
    }

    #[test]
    fn quarantined_and_ipv6_blocks_are_not_routed_but_releasing_ones_are() {
        let mut cluster = Cluster::new();
        cluster.block("10.64.2.0/26", "b").state = BlockState::Quarantined;
        cluster.block("10.64.3.0/26", "b").state = BlockState::Releasing;
        cluster.block("fd00:64::/122", "b");
        let routes = routed(&desired(&cluster)).join("\n");
        assert!(routes.contains("10.64.3.0/26"), "{routes}");
        assert!(!routes.contains("10.64.2.0/26"), "{routes}");
        assert!(!routes.contains("fd00"), "{routes}");
    }

    /// One refusal by name, and nothing of the peer in the kernel.
    fn assert_refused(cluster: &Cluster, part: &str) {
        let desired = desired(cluster);
        assert_eq!(desired.refusals.len(), 1, "{:?}", desired.refusals);
        assert!(desired.refusals[0].contains(part), "{:?}", desired.refusals);
        assert_eq!(routed(&desired), ["blackhole route 10.64.0.0/26"]);
        assert!(desired.fdb.is_empty() && desired.neighbours.is_empty());
    }

    #[test]
    fn a_peer_that_would_break_others_is_refused_as_a_whole() {
        let mut cluster = Cluster::new();
        cluster.node("b").underlay.v4 = Some(cluster.local.underlay.address);
        assert_refused(&cluster, "\"b\" is not routed: its underlay address");

        for bad in ["0.0.0.0", "224.0.0.1", "127.0.0.1", "255.255.255.255"] {
            let mut cluster = Cluster::new();
            cluster.node("b").underlay.v4 = Some(bad.parse().unwrap());
            assert_refused(&cluster, bad);
        }

        let mut cluster = Cluster::new();
        cluster.carrier("b", 1, 8472, MacAddr::for_vtep(&"a".parse().unwrap()));
        assert_refused(&cluster, "is that of node \"a\" too");

        for mac in [[0; 6], [0x33, 0x33, 0, 0, 0, 1]] {
            let mut cluster = Cluster::new();
            cluster.carrier("b", 1, 8472, MacAddr(mac));
            assert_refused(&cluster, "no unicast address");
        }

        let mut cluster = Cluster::new();
        cluster.carrier("b", 2, 8472, MacAddr::for_vtep(&"b".parse().unwrap()));
        assert_refused(&cluster, "VNI 2 and port 8472");

        let mut cluster = Cluster::new();
        cluster.node("b").backend = Carrier::HostGw;
        assert_refused(&cluster, "its backend is host-gw, this node's vxlan");

        let mut cluster = Cluster::new();
        cluster.node("b").overlay.v4 = Some("10.99.0.0".parse().unwrap());
        assert_refused(&cluster, "lies in no block of its own");
    }

    #[test]
    fn a_peer_whose_block_is_not_told_of_yet_is_awaited_and_not_refused() {
        let mut cluster = Cluster::new();
        cluster.pool("default", "10.64.0.0/16");
        cluster.node("b").overlay.v4 = Some("10.64.77.0".parse().unwrap());
        let desired = desired(&cluster);
        assert_eq!(desired.refusals, [""; 0]);
        assert!(
            desired.awaited[0].contains("10.64.77.0"),
            "{:?}",
            desired.awaited
        );
    }

    #[test]
    fn of_two_peers_with_one_mac_the_first_is_kept_and_the_second_refused() {
        let mut cluster = Cluster::new();
        cluster.peer("c", 3);
        cluster.carrier("c", 1, 8472, MacAddr::for_vtep(&"b".parse().unwrap()));
        let desired = desired(&cluster);
        assert_eq!(desired.fdb.len(), 1);
        assert!(desired.refusals[0].starts_with("node \"c\" is not routed"));
    }

    #[test]
    fn what_overlaps_the_underlay_never_reaches_the_kernel() {
        let mut cluster = Cluster::new();
        cluster.pool("wide", "192.168.0.0/16");
        cluster.block("192.168.64.0/26", "b");
        cluster.block("192.168.64.0/24", "a");
        cluster.block("192.168.99.0/26", "b");
        let desired = desired(&cluster);
        let routes = routed(&desired).join("\n");
        assert!(!routes.contains("192.168.64"), "{routes}");
        assert!(routes.contains("192.168.99.0/26"), "{routes}");
        let refusals = desired.refusals.join("\n");
        assert!(refusals.contains("pool \"wide\""), "{refusals}");
        assert!(refusals.contains("block 192.168.64.0/26"), "{refusals}");
        assert!(refusals.contains("block 192.168.64.0/24"), "{refusals}");
    }

    #[test]
    fn a_block_around_a_peers_underlay_address_is_refused() {
        let mut cluster = Cluster::new();
        cluster.node("b").underlay.v4 = Some("172.16.0.9".parse().unwrap());
        cluster.block("172.16.0.0/26", "b");
        let desired = desired(&cluster);
        assert!(!routed(&desired).join("\n").contains("172.16.0.0/26"));
        assert!(
            desired.refusals[0].contains("172.16.0.9"),
            "{:?}",
            desired.refusals
        );
    }

    #[test]
    fn without_an_own_overlay_address_routes_have_no_source() {
        let mut cluster = Cluster::new();
        cluster.local.overlay = None;
        let desired = desired(&cluster);
        assert!(desired.addresses.is_empty());
        assert!(desired.routes.iter().all(|route| route.source.is_none()));
    }

    #[test]
    fn with_direct_routing_adjacent_peers_get_plain_routes_and_the_others_the_tunnel() {
        let mut cluster = Cluster::new();
        cluster.local.direct_routing = true;
        cluster.peer("c", 3);
        cluster.adjoin("b", 9);
        let direct = desired(&cluster);
        assert_eq!(
            routed(&direct),
            [
                "blackhole route 10.64.0.0/26",
                "route 10.64.1.0/26 via 192.168.64.9 dev eth0",
                "route 10.64.3.0/26 via 10.64.3.0 dev via.vx4 src 10.64.0.0",
            ]
        );
        assert_eq!((direct.fdb.len(), direct.neighbours.len()), (1, 1));
        // A tunnel that some peers need has its MTU for all.
        assert_eq!(direct.links[VXLAN_LINK].mtu, 1450);
        assert!(direct.forwarding.contains("eth0") && direct.not_adjacent.is_empty());

        // No longer adjacent: the tunnel, and back again.
        cluster.on_link.clear();
        let tunnelled = desired(&cluster);
        assert!(routed(&tunnelled)[1].contains("dev via.vx4"));
        assert_eq!(tunnelled.fdb.len(), 2);
    }

    #[test]
    fn a_peer_with_a_smaller_mtu_is_sent_nothing_longer() {
        let mut cluster = Cluster::new();
        cluster.peer("c", 3);
        cluster.node("b").mtu = 1350;
        cluster.node("c").mtu = 8950;
        let routes = routed(&desired(&cluster));
        assert!(routes[1].ends_with("mtu 1350"), "{routes:?}");
        assert!(!routes[2].contains("mtu"), "{routes:?}");
        cluster.local.direct_routing = true;
        cluster.adjoin("b", 9);
        let routes = routed(&desired(&cluster));
        assert_eq!(
            routes[1],
            "route 10.64.1.0/26 via 192.168.64.9 dev eth0 mtu 1350"
        );
    }
}
