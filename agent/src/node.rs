//! What this node says of itself, decided from the view: its overlay address, its
//! Node record, its Claim. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use viaduct_model::addresses::asks_for;
use viaduct_model::record::{Extra, Overlay, Underlay};
use viaduct_model::{
    Block, BlockState, BlockUsage, Cidr, Claim, ClusterView, Condition, Family, Node, NodeName,
    PerFamily, Tenure,
};

use crate::state::{AddressUsage, DataplaneReport, LocalNode, UnderlayTrouble};

/// What does not change while an agent runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The node's name.
    pub name: NodeName,
    /// This life of the node.
    pub incarnation: String,
    /// The machine's host name, for people.
    pub host: String,
    /// Labels that pools select nodes by.
    pub labels: BTreeMap<String, String>,
}

/// The node's active IPv4 blocks, in address order.
fn active_blocks<'a>(view: &'a ClusterView, node: &'a NodeName) -> impl Iterator<Item = &'a Block> {
    view.blocks_of(node)
        .filter(|b| b.state == BlockState::Active && b.cidr.family() == Family::V4)
}

/// The node's own address among the pods': the one that its record names as long
/// as the block that holds it is owned, else the first of its first block.
pub fn overlay(view: &ClusterView, node: &NodeName, current: Option<Ipv4Addr>) -> Option<Ipv4Addr> {
    let recorded = view.nodes.get(node).and_then(|n| n.overlay.v4);
    let mut owned = active_blocks(view, node).peekable();
    let first = owned.peek().map(|b| b.cidr.first());
    let kept = current
        .or(recorded)
        .filter(|ip| active_blocks(view, node).any(|b| b.cidr.contains((*ip).into())));
    match (kept, first) {
        (Some(ip), _) => Some(ip),
        (None, Some(IpAddr::V4(ip))) => Some(ip),
        _ => None,
    }
}

/// The Node record that this agent wants to stand in the store. What it does not
/// know of the record that stands there, it keeps.
pub fn record(identity: &Identity, local: &LocalNode, standing: Option<&Node>) -> Node {
    Node {
        incarnation: identity.incarnation.clone(),
        underlay: Underlay {
            v4: Some(local.underlay.public_address),
            v6: None,
        },
        underlay_networks: local.underlay.networks.clone(),
        backend: local.carrier.clone(),
        overlay: Overlay {
            v4: local.overlay,
            v6: None,
        },
        mtu: local.mtu,
        labels: identity.labels.clone(),
        extra: standing.map(|n| n.extra.clone()).unwrap_or_default(),
    }
}

/// The node's hold on its blocks, and when.
#[derive(Debug, Clone, Copy)]
pub struct Hold<'a> {
    /// The hold.
    pub tenure: &'a Tenure,
    /// The boot-time clock.
    pub now_ms: u64,
}

/// What is the matter with this node, as its tasks found.
#[derive(Debug, Clone, Copy)]
pub struct Findings<'a> {
    /// How the kernel compares.
    pub report: &'a DataplaneReport,
    /// What is the matter with the underlay.
    pub trouble: &'a UnderlayTrouble,
}

/// The Claim that this agent wants to stand in the store.
///
/// `previous` gives conditions the time of their last transition; `now` is
/// RFC 3339.
pub fn claim(
    identity: &Identity,
    view: Option<&ClusterView>,
    usage: &AddressUsage,
    hold: Hold<'_>,
    findings: Findings<'_>,
    previous: Option<&Claim>,
    now: &str,
) -> Claim {
    let Findings { report, trouble } = findings;
    let gives = hold.tenure.gives();
    // What is given back must not be asked for at the same time.
    let kept = |block: &&Block| !gives.contains_key(&block.cidr.record_name());
    let active = view
        .into_iter()
        .flat_map(|v| active_blocks(v, &identity.name));
    let active: BTreeSet<Cidr> = active.filter(kept).map(|block| block.cidr).collect();
    let (owned, wanted) = (active.len(), wanted_blocks(&active, usage));
    let used = |cidr: &Cidr| usage.blocks.get(cidr).is_some_and(|block| block.used > 0);
    let mut conditions = Vec::new();
    if let Some(view) = view {
        conditions.push(blocks_available(view, owned, wanted));
        let problems: Vec<&String> = trouble.problems.iter().chain(&report.problems).collect();
        conditions.push(ready(owned, &problems));
        conditions.push(peers_reachable(report));
        conditions.extend(conflict(&report.conflicts));
        conditions.extend(addresses_owned(usage));
    }
    for condition in &mut conditions {
        let before = previous
            .and_then(|p| p.conditions.iter().find(|c| c.r#type == condition.r#type))
            .filter(|c| c.status == condition.status);
        condition.last_transition_time = before.map_or(now, |c| &c.last_transition_time).to_owned();
    }
    Claim {
        incarnation: identity.incarnation.clone(),
        host: identity.host.clone(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        wants: PerFamily {
            v4: u32::try_from(wanted).unwrap_or(u32::MAX),
            v6: 0,
        },
        holds: hold.tenure.holds(used, hold.now_ms),
        renews: hold.tenure.renews(hold.now_ms),
        ended: hold.tenure.ended(),
        // What is given away is not counted among ours any more.
        blocks: usage
            .blocks
            .iter()
            .filter(|(cidr, _)| !gives.contains_key(&cidr.record_name()))
            .map(|(cidr, used)| (cidr.record_name(), *used))
            .collect(),
        gives,
        conditions,
        extra: Extra::new(),
    }
}

/// How many blocks the node wants: as many more than it owns as it takes to bring its
/// free addresses up to the watermark, those that pods wait for included.
fn wanted_blocks(active: &BTreeSet<Cidr>, usage: &AddressUsage) -> usize {
    let owned: BTreeMap<Cidr, BlockUsage> = active
        .iter()
        .map(|cidr| {
            // Right after a block came, the address manager may not have counted it yet.
            let fresh = BlockUsage {
                used: 0,
                free: u32::try_from(cidr.size()).unwrap_or(u32::MAX),
            };
            (*cidr, usage.blocks.get(cidr).copied().unwrap_or(fresh))
        })
        .collect();
    let asks = asks_for(&owned, Family::V4, usage.waiting) as usize;
    let starved = usage.starved && usage.waiting == 0;
    asks.max(owned.len() + usize::from(starved))
}

fn blocks_available(view: &ClusterView, owned: usize, wanted: usize) -> Condition {
    let exhausted: Vec<&str> = view
        .pools
        .iter()
        .filter(|(_, p)| p.cidr.family() == Family::V4)
        .filter(|(_, p)| {
            p.status
                .as_ref()
                .is_some_and(|s| s.exhausted_since.is_some())
        })
        .map(|(name, _)| name.as_str())
        .collect();
    let (status, reason, message) = if owned >= wanted {
        (
            "True",
            "BlocksAssigned",
            format!("the node owns the {owned} IPv4 blocks that it wants"),
        )
    } else if view.pools.is_empty() {
        (
            "False",
            "NoPool",
            "there is no pool; make one with `viaductctl pools create`".to_owned(),
        )
    } else if !exhausted.is_empty() {
        (
            "False",
            "PoolExhausted",
            format!(
                "the node owns {owned} IPv4 blocks and wants {wanted}, but pool {} has none left; \
                 add a pool with `viaductctl pools create`",
                exhausted.join(", ")
            ),
        )
    } else {
        (
            "False",
            "Waiting",
            format!(
                "the node owns {owned} IPv4 blocks and waits for the controller to give it {wanted}"
            ),
        )
    };
    condition("BlocksAvailable", status, reason, message)
}

/// Whether all peers are routed as far as this node decides; those that are not are
/// named.
fn peers_reachable(report: &DataplaneReport) -> Condition {
    let (reason, told) = match (&report.not_adjacent[..], &report.refusals[..]) {
        ([], []) => {
            return condition(
                "PeersReachable",
                "True",
                "AllRouted",
                "every peer that owns a block has its routes".to_owned(),
            );
        }
        ([], refused) => ("Refused", refused),
        (distant, _) => ("NotAdjacent", distant),
    };
    condition("PeersReachable", "False", reason, first_of(told))
}

/// The first sentence, and how many more there are.
fn first_of<T: AsRef<str>>(sentences: &[T]) -> String {
    match sentences {
        [] => String::new(),
        [only] => only.as_ref().to_owned(),
        [first, rest @ ..] => format!("{} (and {} more)", first.as_ref(), rest.len()),
    }
}

fn ready(owned: usize, problems: &[&String]) -> Condition {
    match problems {
        [] if owned == 0 => condition(
            "Ready",
            "False",
            "NoBlock",
            "the node owns no block yet".to_owned(),
        ),
        [] => condition(
            "Ready",
            "True",
            "KernelVerified",
            "the kernel is as the cluster wants it".to_owned(),
        ),
        told => condition("Ready", "False", "KernelDiffers", first_of(told)),
    }
}

/// A condition only while there is one: pods whose address belongs to another node.
fn addresses_owned(usage: &AddressUsage) -> Option<Condition> {
    let told: Vec<String> = usage.foreign.values().map(ToString::to_string).collect();
    (!told.is_empty())
        .then(|| condition("AddressesOwned", "False", "OwnedByAnother", first_of(&told)))
}

/// A condition only while there is one: others' routes are others' business.
fn conflict(conflicts: &[String]) -> Option<Condition> {
    (!conflicts.is_empty()).then(|| {
        condition(
            "NoRouteConflict",
            "False",
            "ForeignRoute",
            first_of(conflicts),
        )
    })
}

/// The condition that the Node's pod CIDRs are not what this node's blocks could be; there
/// only while it is so.
pub fn conflict_of_cidrs(sentence: String, previous: Option<&Claim>, now: &str) -> Condition {
    let mut told = condition("NodeCIDRsAdopted", "False", "Conflict", sentence);
    let before = previous
        .and_then(|claim| claim.conditions.iter().find(|c| c.r#type == told.r#type))
        .map_or(now, |c| &c.last_transition_time);
    told.last_transition_time = before.to_owned();
    told
}

fn condition(r#type: &str, status: &str, reason: &str, message: String) -> Condition {
    Condition {
        r#type: r#type.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message,
        last_transition_time: String::new(),
    }
}

#[cfg(test)]
mod tests;
