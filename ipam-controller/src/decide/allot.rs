//! Which node gets which new block.

use std::collections::{BTreeMap, BTreeSet};

use viaduct_datastore::NodeCidrs;
use viaduct_model::{Block, Carver, Cidr, Claim, Family, Node, NodeName, Pool, PoolName};

use super::{Action, ActiveBlocks, Decision, Policy, faults};
use crate::memory::Memory;
use crate::view::View;

/// A node that wants a block which no pool has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// The node.
    pub node: NodeName,
    /// The family that it wants.
    pub family: Family,
    /// The pools that it could be served from, all full; empty when none is meant
    /// for it.
    pub full: Vec<PoolName>,
}

/// The pools with their taken blocks, and those for which a node waits.
pub(super) struct Space {
    pub(super) carvers: BTreeMap<PoolName, Carver>,
    pub(super) exhausted: BTreeSet<PoolName>,
}

/// Gives every node that wants more blocks of a family than it has the next one:
/// first those that have none at all, then the others, in name order. One block
/// for each node and family at a time, so that a greedy claim starves nobody.
pub(super) fn allot(
    view: &View,
    memory: &Memory,
    policy: &Policy,
    active: &ActiveBlocks<'_>,
    decision: &mut Decision,
) -> Space {
    let mut space = Space {
        carvers: carvers(view),
        exhausted: BTreeSet::new(),
    };
    let unusable = overlapping(view, decision);
    if policy.node_cidrs == NodeCidrs::Adopt {
        return space;
    }
    for (name, family) in wishes(view, active) {
        let node = view.nodes.get(name).map(|node| &node.record);
        let candidates: Vec<(&PoolName, &Pool)> = view
            .pools
            .iter()
            .map(|(pool_name, pool)| (pool_name, &pool.record))
            .filter(|(pool_name, pool)| {
                pool.cidr.family() == family && !pool.disabled && !unusable.contains(*pool_name)
            })
            .collect();
        // Without its record nothing is known of a node's labels and underlay. It
        // comes in a moment: its agent writes it right after the claim.
        let Some(node) = node else {
            continue;
        };
        let fitting: Vec<&PoolName> = candidates
            .iter()
            .filter(|(pool_name, pool)| fits(name, node, pool_name, pool, decision))
            .map(|(pool_name, _)| *pool_name)
            .collect();
        let found = fitting
            .iter()
            .find_map(|pool| Some((*pool, space.carvers.get(*pool)?.next_free()?)));
        match found {
            Some((pool, cidr)) => {
                for carver in space.carvers.values_mut() {
                    carver.take(&cidr);
                }
                decision
                    .actions
                    .push(Action::CreateBlock(Box::new(Block::new(
                        cidr,
                        pool.clone(),
                        name.clone(),
                        memory.next_generation(&cidr),
                    ))));
            }
            None => {
                space.exhausted.extend(fitting.iter().copied().cloned());
                decision.waiting.push(Waiting {
                    node: name.clone(),
                    family,
                    full: fitting.into_iter().cloned().collect(),
                });
            }
        }
    }
    space
}

/// An index of the taken blocks of every pool.
fn carvers(view: &View) -> BTreeMap<PoolName, Carver> {
    let taken: Vec<Cidr> = view
        .blocks
        .keys()
        .copied()
        .chain(view.unreadable_blocks())
        .collect();
    view.pools
        .iter()
        .map(|(name, pool)| {
            let mut carver = Carver::new(&pool.record);
            for block in &taken {
                carver.take(block);
            }
            (name.clone(), carver)
        })
        .collect()
}

/// Pools that overlap one with an earlier name: nothing is carved from them.
fn overlapping(view: &View, decision: &mut Decision) -> BTreeSet<PoolName> {
    let mut refused = BTreeSet::new();
    let mut by_address: Vec<(&PoolName, &Pool)> = view
        .pools
        .iter()
        .map(|(name, pool)| (name, &pool.record))
        .collect();
    // CIDRs overlap only by one covering the other, and then the outer comes first.
    by_address.sort_by_key(|(_, pool)| (pool.cidr.first(), pool.cidr.prefix_len()));
    let mut outer: Vec<(&PoolName, &Pool)> = Vec::new();
    for (name, pool) in by_address {
        while outer
            .last()
            .is_some_and(|(_, top)| !top.cidr.covers(&pool.cidr))
        {
            outer.pop();
        }
        for &(other_name, other) in &outer {
            let (later, earlier) = if name > other_name {
                ((name, pool), (other_name, other))
            } else {
                ((other_name, other), (name, pool))
            };
            if let Err(invalid) = later.1.disjoint_from(later.0, [earlier]) {
                let so = "no block is carved from it";
                faults::of_pool(decision, later.0, "Overlaps", &invalid, so);
                refused.insert(later.0.clone());
            }
        }
        outer.push((name, pool));
    }
    refused
}

/// Nodes that want more than they have, neediest first.
fn wishes<'a>(view: &'a View, active: &ActiveBlocks<'_>) -> Vec<(&'a NodeName, Family)> {
    let mut wishes = Vec::new();
    for (node, claim) in &view.claims {
        let claim: &Claim = &claim.record;
        for family in Family::ALL {
            let owned = active.get(node).map_or(0, |blocks| {
                blocks.iter().filter(|b| b.family() == family).count()
            });
            let wanted = usize::try_from(claim.wants.of(family)).unwrap_or(usize::MAX);
            if wanted > owned {
                wishes.push((owned > 0, node, family));
            }
        }
    }
    // Stable: name order stays within each half.
    wishes.sort_by_key(|(has_some, _, _)| *has_some);
    wishes
        .into_iter()
        .map(|(_, node, family)| (node, family))
        .collect()
}

/// Whether `pool` may serve the node.
fn fits(
    name: &NodeName,
    node: &Node,
    pool_name: &PoolName,
    pool: &Pool,
    decision: &mut Decision,
) -> bool {
    if !pool.selects(&node.labels) {
        return false;
    }
    match pool.apart_from_underlay(pool_name, name, node) {
        Ok(()) => true,
        Err(invalid) => {
            let so = "the node gets no block of it";
            faults::of_pool(decision, pool_name, "OverlapsUnderlay", &invalid, so);
            false
        }
    }
}
