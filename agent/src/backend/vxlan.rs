//! The VXLAN backend (RFC 7348): one link `via.vx4`; for each peer a forwarding
//! entry (its VTEP's MAC to its underlay address), a neighbour (its overlay address
//! to that MAC) and a route for each of its blocks by that overlay address.
//!
//! A packet from pod to pod leaves through the peer's route, finds the VTEP's MAC in
//! the neighbour and the underlay address in the forwarding entry; the peer receives
//! it addressed to its own MAC and routes it to the pod. Nothing is learnt and no
//! ARP is ever sent.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use viaduct_model::record::Backend as Carrier;
use viaduct_model::{Block, BlockState, Cidr, Family, MacAddr, Node, NodeName};

use super::Backend;
use crate::dataplane::objects::{
    Address, Desired, DesiredLink, LinkKind, LinkName, Route, Settings, VXLAN_LINK, Vxlan,
};
use crate::state::{LocalNode, NodeState};

/// This backend.
pub const BACKEND: Backend = Backend {
    name: "vxlan",
    desire,
};

/// The settings of the tunnel's link. The source check is loose, because what
/// another node itself sends to a pod may carry that node's underlay address, whose
/// way back does not lead through the tunnel; a strict check would drop it.
pub const TUNNEL: Settings = Settings {
    forwarding: true,
    rp_filter: 2,
    proxy_arp: false,
};

fn desire(state: &NodeState, desired: &mut Desired) {
    let local = &state.local;
    let link: LinkName = VXLAN_LINK.into();
    desired.links.insert(
        link.clone(),
        DesiredLink {
            kind: LinkKind::Vxlan(Vxlan {
                vni: local.vni,
                port: local.port,
                local: Some(local.underlay.address),
                underlay: local.underlay.index,
                learning: false,
            }),
            mac: local.vtep_mac,
            mtu: local.mtu,
            settings: TUNNEL,
        },
    );
    refuse_pools(state, desired);
    let blocks = usable_blocks(state, desired);
    let own = blocks.get(&local.name).map_or(&[][..], Vec::as_slice);
    for block in own {
        desired.routes.insert(Route::blackhole(*block));
    }
    // An address that lies in the underlay would hide a host there.
    let overlay = local
        .overlay
        .filter(|overlay| clash(Cidr::host(IpAddr::V4(*overlay)), local).is_none());
    if let Some(address) = overlay {
        desired.addresses.insert(Address {
            link: link.clone(),
            address,
            prefix_len: 32,
        });
    }
    let mut macs = BTreeMap::from([(local.vtep_mac, &local.name)]);
    for (name, node) in &state.view.nodes {
        if *name == local.name {
            continue;
        }
        let theirs = blocks.get(name).map_or(&[][..], Vec::as_slice);
        match peer(name, node, theirs, state, &mut macs) {
            Ok(Some(peer)) => peer.desire(&link, overlay, desired),
            Ok(None) => {}
            Err(why) => desired
                .refusals
                .push(format!("node {:?} is not routed: {why}", name.as_str())),
        }
    }
}

/// A peer that can be reached.
struct Peer<'a> {
    mac: MacAddr,
    underlay: Ipv4Addr,
    overlay: Ipv4Addr,
    blocks: &'a [Cidr],
}

impl Peer<'_> {
    fn desire(&self, link: &LinkName, source: Option<Ipv4Addr>, desired: &mut Desired) {
        desired.fdb.insert((link.clone(), self.mac), self.underlay);
        desired
            .neighbours
            .insert((link.clone(), self.overlay), self.mac);
        desired.routes.extend(
            self.blocks
                .iter()
                .map(|block| Route::through(*block, link.clone()).onlink_via(self.overlay, source)),
        );
    }
}

/// What to know of a peer; `None` while it has no overlay address yet. A peer is
/// refused as a whole, so that it is never half reachable.
fn peer<'a>(
    name: &'a NodeName,
    node: &Node,
    blocks: &'a [Cidr],
    state: &'a NodeState,
    macs: &mut BTreeMap<MacAddr, &'a NodeName>,
) -> Result<Option<Peer<'a>>, String> {
    let local = &state.local;
    let Some(overlay) = node.overlay.v4 else {
        return Ok(None);
    };
    let Carrier::Vxlan {
        vni,
        port,
        vtep_mac: mac,
    } = node.backend;
    if (vni, port) != (local.vni, local.port) {
        return Err(format!(
            "it uses VNI {vni} and port {port}, this node VNI {} and port {}; all nodes must use the same",
            local.vni, local.port
        ));
    }
    let Some(underlay) = node.underlay.v4 else {
        return Err("it has no IPv4 underlay address; the tunnel needs one".into());
    };
    if underlay.is_unspecified()
        || underlay.is_multicast()
        || underlay.is_broadcast()
        || underlay.is_loopback()
    {
        return Err(format!(
            "its underlay address {underlay} is no address of a host on a network"
        ));
    }
    if underlay == local.underlay.address || underlay == local.underlay.public_address {
        return Err(format!(
            "its underlay address {underlay} is this node's own; each node must have its own"
        ));
    }
    if mac.0[0] & 1 != 0 || mac.0 == [0; 6] {
        return Err(format!("its VTEP MAC {mac} is no unicast address"));
    }
    // A quarantined or refused block still is the node's: only then is the address wrong.
    let home = state
        .view
        .blocks_of(name)
        .find(|block| block.cidr.contains(IpAddr::V4(overlay)));
    match home {
        None => {
            return Err(format!(
                "its overlay address {overlay} lies in no block of its own"
            ));
        }
        // Without the block the address is no next hop either.
        Some(block) if !blocks.contains(&block.cidr) => return Ok(None),
        Some(_) => {}
    }
    if let Some(other) = macs.get(&mac) {
        return Err(format!(
            "its VTEP MAC {mac} is that of node {:?} too; each node must have its own",
            other.as_str()
        ));
    }
    macs.insert(mac, name);
    Ok(Some(Peer {
        mac,
        underlay,
        overlay,
        blocks,
    }))
}

/// The network of the underlay that `cidr` shares addresses with.
fn clash(cidr: Cidr, local: &LocalNode) -> Option<Cidr> {
    let underlay = &local.underlay;
    let address = Cidr::host(IpAddr::V4(underlay.address));
    underlay
        .networks
        .iter()
        .copied()
        .chain([address])
        .find(|network| network.overlaps(&cidr))
}

fn refuse_pools(state: &NodeState, desired: &mut Desired) {
    let local = &state.local;
    for (name, pool) in &state.view.pools {
        if let Some(network) = clash(pool.cidr, local) {
            desired.refusals.push(format!(
                "pool {:?} ({}) overlaps the underlay network {network} of link {}: blocks that \
                 overlap it are not routed, since that would cut this node off; use another pool",
                name.as_str(),
                pool.cidr,
                local.underlay.name
            ));
        }
    }
}

/// The IPv4 blocks to be routed, by node: those given out that neither touch the
/// underlay nor hold the underlay address of any node.
fn usable_blocks(state: &NodeState, desired: &mut Desired) -> BTreeMap<NodeName, Vec<Cidr>> {
    let underlays: BTreeMap<Ipv4Addr, &NodeName> = state
        .view
        .nodes
        .iter()
        .filter_map(|(name, node)| Some((node.underlay.v4?, name)))
        .collect();
    let mut usable: BTreeMap<NodeName, Vec<Cidr>> = BTreeMap::new();
    let mut refused: BTreeSet<String> = BTreeSet::new();
    for block in state.view.blocks.values() {
        if block.cidr.family() != Family::V4 || block.state == BlockState::Quarantined {
            continue;
        }
        match block_refusal(block, state, &underlays) {
            Some(why) => {
                refused.insert(why);
            }
            None => usable
                .entry(block.node.clone())
                .or_default()
                .push(block.cidr),
        }
    }
    desired.refusals.extend(refused);
    usable
}

fn block_refusal(
    block: &Block,
    state: &NodeState,
    underlays: &BTreeMap<Ipv4Addr, &NodeName>,
) -> Option<String> {
    let cidr = block.cidr;
    if let Some(network) = clash(cidr, &state.local) {
        return Some(format!(
            "block {cidr} of pool {:?} is not routed: it overlaps the underlay network {network} of link {}",
            block.pool.as_str(),
            state.local.underlay.name
        ));
    }
    let (IpAddr::V4(first), IpAddr::V4(last)) = (cidr.first(), cidr.last()) else {
        return None;
    };
    let (address, node) = underlays.range(first..=last).next()?;
    Some(format!(
        "block {cidr} of pool {:?} is not routed: it holds the underlay address {address} of node {:?}, \
         whose tunnel would lead into itself",
        block.pool.as_str(),
        node.as_str()
    ))
}

#[cfg(test)]
mod tests {
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
        cluster.carrier("b", 1, 8472, cluster.local.vtep_mac);
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
        cluster.node("b").overlay.v4 = Some("10.99.0.0".parse().unwrap());
        assert_refused(&cluster, "lies in no block of its own");
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
}
