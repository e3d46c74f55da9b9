//! What all backends have in common about peers: whose records are sound, which blocks
//! may be routed, who is adjacent. Pure.
//!
//! A peer is refused as a whole and by name, so that it is never half reachable; what
//! overlaps the underlay is never routed, since that would cut nodes off.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr};

use viaduct_model::{Block, BlockState, Cidr, Family, Node, NodeName};

use crate::dataplane::objects::{Desired, Route};
use crate::state::{LocalNode, NodeState};

/// A peer that can be reached.
#[derive(Debug)]
pub struct Peer<'a> {
    /// Its name.
    pub name: &'a NodeName,
    /// Its record.
    pub node: &'a Node,
    /// Its address on the underlay.
    pub underlay: Ipv4Addr,
    /// Its address among the pods'.
    pub overlay: Ipv4Addr,
    /// Its blocks.
    pub blocks: Vec<Cidr>,
    /// Whether it can be reached without a tunnel; else why not.
    pub adjacent: Result<(), String>,
    /// The MTU of its pods, where it is less than that of this node's: what is longer
    /// would be dropped on the way, and nobody told.
    pub mtu: Option<u32>,
}

impl Peer<'_> {
    /// The sentence that refuses it.
    pub fn refusal(&self, why: &str) -> String {
        refusal(self.name, why)
    }

    /// Plain routes by its underlay address, which the kernel must find on the link.
    pub fn route_directly(&self, local: &LocalNode, desired: &mut Desired) {
        let route = |block: &Cidr| {
            Route::through(*block, local.underlay.name.as_str().into())
                .via(self.underlay)
                .with_mtu(self.mtu)
        };
        desired.routes.extend(self.blocks.iter().map(route));
    }
}

fn refusal(name: &NodeName, why: &str) -> String {
    format!("node {:?} is not routed: {why}", name.as_str())
}

/// The peers whose records are sound; the others are refused. Takes all blocks but this
/// node's.
pub(super) fn sound<'a>(
    state: &'a NodeState,
    mut blocks: BTreeMap<NodeName, Vec<Cidr>>,
    desired: &mut Desired,
) -> Vec<Peer<'a>> {
    // With thousands of nodes, each must not look through all blocks.
    let mut homes: HashMap<&NodeName, Vec<&Block>> = HashMap::new();
    for block in state.view.blocks.values() {
        homes.entry(&block.node).or_default().push(block);
    }
    let mut peers = Vec::new();
    for (name, node) in &state.view.nodes {
        if *name == state.local.name {
            continue;
        }
        let theirs = blocks.remove(name).unwrap_or_default();
        let homes = homes.get(name).map_or(&[][..], Vec::as_slice);
        match peer((name, node), theirs, homes, state) {
            Ok(Some(peer)) => peers.push(peer),
            Ok(None) => {}
            Err(why) if why.passes => desired.awaited.push(refusal(name, &why.what)),
            Err(why) => desired.refusals.push(refusal(name, &why.what)),
        }
    }
    peers
}

/// Why a peer is not routed.
struct Unsound {
    what: String,
    /// Whether more news may set it right, as they do at every start.
    passes: bool,
}

impl Unsound {
    fn of(what: String) -> Self {
        Self {
            what,
            passes: false,
        }
    }
}

/// What to know of a peer with those usable blocks, of all that are its; `None` while it has
/// no overlay address yet.
fn peer<'a>(
    (name, node): (&'a NodeName, &'a Node),
    blocks: Vec<Cidr>,
    homes: &[&Block],
    state: &'a NodeState,
) -> Result<Option<Peer<'a>>, Unsound> {
    let local = &state.local;
    let Some(overlay) = node.overlay.v4 else {
        return Ok(None);
    };
    let (theirs, ours) = (node.backend.name(), local.carrier.name());
    if theirs != ours {
        return Err(Unsound::of(format!(
            "its backend is {theirs}, this node's {ours}; all nodes must use the same"
        )));
    }
    let Some(underlay) = node.underlay.v4 else {
        return Err(Unsound::of(
            "it has no IPv4 underlay address; its pods are reached by one".into(),
        ));
    };
    if underlay.is_unspecified()
        || underlay.is_multicast()
        || underlay.is_broadcast()
        || underlay.is_loopback()
    {
        return Err(Unsound::of(format!(
            "its underlay address {underlay} is no address of a host on a network"
        )));
    }
    if underlay == local.underlay.address || underlay == local.underlay.public_address {
        return Err(Unsound::of(format!(
            "its underlay address {underlay} is this node's own; each node must have its own"
        )));
    }
    // A quarantined or refused block still is the node's: only then is the address wrong.
    let home = homes
        .iter()
        .find(|block| block.cidr.contains(IpAddr::V4(overlay)));
    match home {
        None => {
            let address = IpAddr::V4(overlay);
            let view = &state.view;
            let taken = view
                .blocks
                .values()
                .any(|block| block.cidr.contains(address));
            let in_a_pool = view.pools.values().any(|pool| pool.cidr.contains(address));
            return Err(Unsound {
                what: format!("its overlay address {overlay} lies in no block of its own"),
                // Its block may be told of right after it.
                passes: in_a_pool && !taken,
            });
        }
        // Without the block the address is no next hop either.
        Some(block) if !blocks.contains(&block.cidr) => return Ok(None),
        Some(_) => {}
    }
    Ok(Some(Peer {
        name,
        node,
        underlay,
        overlay,
        blocks,
        adjacent: adjacent(local, node, underlay, &state.on_link),
        mtu: (node.mtu < local.mtu).then_some(node.mtu),
    }))
}

/// Whether a peer is on the network that this node's underlay link is on, as both nodes
/// and the kernel's routing see it; else what speaks against it.
fn adjacent(
    local: &LocalNode,
    peer: &Node,
    address: Ipv4Addr,
    on_link: &BTreeSet<Ipv4Addr>,
) -> Result<(), String> {
    let link = &local.underlay.name;
    let holds =
        |networks: &[Cidr], ip: Ipv4Addr| networks.iter().any(|net| net.contains(ip.into()));
    let shown = |networks: &[Cidr]| {
        let all: Vec<String> = networks.iter().map(ToString::to_string).collect();
        if all.is_empty() {
            "none".to_owned()
        } else {
            all.join(", ")
        }
    };
    if !holds(&local.underlay.networks, address) {
        return Err(format!(
            "its underlay address {address} is in no network of this node's link {link} ({})",
            shown(&local.underlay.networks)
        ));
    }
    let own = local.underlay.public_address;
    if !holds(&peer.underlay_networks, own) {
        return Err(format!(
            "this node's underlay address {own} is in none of the peer's networks ({})",
            shown(&peer.underlay_networks)
        ));
    }
    if !on_link.contains(&address) {
        return Err(format!(
            "this node's routing does not lead to its underlay address {address} on link {link} itself"
        ));
    }
    Ok(())
}

/// The network of the underlay that `cidr` shares addresses with.
pub(super) fn clash(cidr: Cidr, local: &LocalNode) -> Option<Cidr> {
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
pub(super) fn usable_blocks(
    state: &NodeState,
    desired: &mut Desired,
) -> BTreeMap<NodeName, Vec<Cidr>> {
    refuse_pools(state, desired);
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
         which would lead into itself",
        block.pool.as_str(),
        node.as_str()
    ))
}
