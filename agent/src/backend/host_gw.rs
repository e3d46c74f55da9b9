//! The host-gw backend: no tunnel at all; for each block of a peer a plain route by the
//! peer's underlay address.
//!
//! A packet from pod to pod crosses the underlay as it is, so that both nodes must be on
//! one network: a peer that is not adjacent gets no route, which would lead to a router
//! that knows nothing of pods, and is named.

use viaduct_model::record::Backend as Carrier;

use super::{Backend, Scene};
use crate::dataplane::objects::Desired;

/// This backend. It adds nothing to a packet.
pub const BACKEND: Backend = Backend {
    name: "host-gw",
    overhead: 0,
    link_type: None,
    carrier: |_, _| Carrier::HostGw,
    desire,
};

fn desire(scene: &Scene<'_>, desired: &mut Desired) {
    for peer in &scene.peers {
        match &peer.adjacent {
            Ok(()) => peer.route_directly(scene.local, desired),
            Err(why) => desired.not_adjacent.push(format!(
                "node {:?} is not adjacent, and host-gw reaches adjacent nodes only: {why}",
                peer.name.as_str()
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use viaduct_model::MacAddr;

    use super::*;
    use crate::dataplane::testing::Cluster;

    fn desired(cluster: &Cluster) -> Desired {
        BACKEND.desired(&cluster.state(), &Default::default())
    }

    fn routes(desired: &Desired) -> Vec<String> {
        desired.routes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_adjacent_peer_is_a_plain_route_for_each_block_and_nothing_else() {
        let mut cluster = Cluster::of(&BACKEND);
        cluster.adjoin("b", 9);
        cluster.block("10.64.2.0/26", "b");
        let desired = desired(&cluster);
        assert_eq!(
            routes(&desired),
            [
                "blackhole route 10.64.0.0/26",
                "route 10.64.1.0/26 via 192.168.64.9 dev eth0",
                "route 10.64.2.0/26 via 192.168.64.9 dev eth0",
            ]
        );
        // The kernel itself is to refuse what it cannot reach.
        assert!(desired.routes.iter().all(|route| !route.onlink));
        assert!(desired.links.is_empty() && desired.addresses.is_empty());
        assert!(desired.forwarding.contains("eth0") && desired.wires);
        assert!(desired.refusals.is_empty() && desired.not_adjacent.is_empty());
    }

    #[test]
    fn a_peer_that_is_not_adjacent_gets_no_route_and_is_named_with_the_reason() {
        let adjacent = || {
            let mut cluster = Cluster::of(&BACKEND);
            cluster.adjoin("b", 9);
            cluster
        };
        let mut elsewhere = adjacent();
        elsewhere.node("b").underlay.v4 = Some([192, 0, 2, 9].into());
        let mut one_sided = adjacent();
        one_sided.node("b").underlay_networks = vec!["192.168.64.8/30".parse().unwrap()];
        let mut untold = adjacent();
        untold.node("b").underlay_networks = Vec::new();
        let mut behind_a_router = adjacent();
        behind_a_router.on_link.clear();
        let mut behind_nat = adjacent();
        behind_nat.local.underlay.public_address = [203, 0, 113, 1].into();
        for (cluster, why) in [
            (
                elsewhere,
                "192.0.2.9 is in no network of this node's link eth0 (192.168.64.0/24)",
            ),
            (
                one_sided,
                "192.168.64.1 is in none of the peer's networks (192.168.64.8/30)",
            ),
            (untold, "the peer's networks (none)"),
            (
                behind_a_router,
                "does not lead to its underlay address 192.168.64.9 on link eth0",
            ),
            (behind_nat, "203.0.113.1 is in none of the peer's networks"),
        ] {
            let desired = desired(&cluster);
            assert_eq!(routes(&desired), ["blackhole route 10.64.0.0/26"], "{why}");
            let [told] = &desired.not_adjacent[..] else {
                panic!("{:?}", desired.not_adjacent);
            };
            assert!(
                told.starts_with("node \"b\" is not adjacent") && told.contains(why),
                "{told}"
            );
        }
    }

    #[test]
    fn a_peer_with_another_backend_is_refused_by_name() {
        let mut cluster = Cluster::of(&BACKEND);
        cluster.adjoin("b", 9);
        cluster.carrier("b", 1, 8472, MacAddr::for_vtep(&"b".parse().unwrap()));
        let desired = desired(&cluster);
        assert_eq!(routes(&desired), ["blackhole route 10.64.0.0/26"]);
        assert_eq!(
            desired.refusals,
            [
                "node \"b\" is not routed: its backend is vxlan, this node's host-gw; all nodes \
              must use the same"
            ]
        );
    }
}
