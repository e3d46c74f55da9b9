//! Which node gets which new block.

use std::collections::{BTreeMap, BTreeSet};

use viaduct_datastore::NodeCidrs;
use viaduct_model::{Block, Carver, Cidr, Claim, Family, Node, NodeName, Pool, PoolName};

use super::{Action, ActiveBlocks, Decision, Moment, faults};
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

/// The most blocks that one node gets in one decision, all together; more follow.
const AT_ONCE: usize = 16;

/// Gives every node the blocks of a family that it wants beyond those that it has: one
/// to each in turn, so that a greedy claim starves nobody, and first to those that have
/// none at all, in name order.
pub(super) fn allot(
    moment: &Moment<'_>,
    restored: &BTreeSet<Cidr>,
    active: &ActiveBlocks<'_>,
    decision: &mut Decision,
) -> Space {
    let view = moment.view;
    let mut space = Space {
        carvers: carvers(view, restored),
        exhausted: BTreeSet::new(),
    };
    let unusable = overlapping(view, decision);
    if moment.policy.node_cidrs == NodeCidrs::Adopt {
        return space;
    }
    let wishes: Vec<_> = wishes(view, active)
        .into_iter()
        .filter_map(|wish| Some((wish.clone(), fitting(view, &wish, &unusable, decision)?)))
        .collect();
    for round in 0..AT_ONCE {
        for (wish, fitting) in &wishes {
            if wish.more <= round || (round > 0 && moment.listens) {
                continue;
            }
            let found = fitting
                .iter()
                .find_map(|pool| Some((*pool, space.carvers.get(*pool)?.next_free()?)));
            match found {
                Some(_) if moment.listens => {}
                Some((pool, cidr)) => {
                    for carver in space.carvers.values_mut() {
                        carver.take(&cidr);
                    }
                    let block = Block::new(cidr, pool.clone(), wish.node.clone(), 0);
                    let block = moment.granted(&block, wish.node);
                    decision.actions.push(Action::CreateBlock(block));
                }
                None if round == 0
                    || fitting.iter().any(|pool| !space.exhausted.contains(*pool)) =>
                {
                    space.exhausted.extend(fitting.iter().copied().cloned());
                    let waiting = Waiting {
                        node: wish.node.clone(),
                        family: wish.family,
                        full: fitting.iter().copied().cloned().collect(),
                    };
                    if !decision.waiting.contains(&waiting) {
                        decision.waiting.push(waiting);
                    }
                }
                None => {}
            }
        }
    }
    space
}

/// The pools that may serve a wish. `None` while the node's record is missing: without
/// it nothing is known of its labels and underlay. It comes in a moment: its agent
/// writes it right after the claim.
fn fitting<'a>(
    view: &'a View,
    wish: &Wish<'_>,
    unusable: &BTreeSet<PoolName>,
    decision: &mut Decision,
) -> Option<Vec<&'a PoolName>> {
    let node = &view.nodes.get(wish.node)?.record;
    Some(
        view.pools
            .iter()
            .map(|(name, pool)| (name, &pool.record))
            .filter(|(name, pool)| {
                pool.cidr.family() == wish.family && !pool.disabled && !unusable.contains(*name)
            })
            .filter(|(name, pool)| fits(wish.node, node, name, pool, decision))
            .map(|(name, _)| name)
            .collect(),
    )
}

/// An index of the taken blocks of every pool.
fn carvers(view: &View, restored: &BTreeSet<Cidr>) -> BTreeMap<PoolName, Carver> {
    let taken: Vec<Cidr> = view
        .blocks
        .keys()
        .copied()
        .chain(view.unreadable_blocks())
        .chain(restored.iter().copied())
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

/// A node that wants more blocks than it has.
#[derive(Debug, Clone)]
struct Wish<'a> {
    node: &'a NodeName,
    family: Family,
    /// How many more.
    more: usize,
}

/// Nodes that want more than they have, neediest first.
fn wishes<'a>(view: &'a View, active: &ActiveBlocks<'_>) -> Vec<Wish<'a>> {
    let mut wishes = Vec::new();
    for (node, claim) in &view.claims {
        let claim: &Claim = &claim.record;
        for family in Family::ALL {
            let owned = active.get(node).map_or(0, |blocks| {
                blocks.iter().filter(|b| b.family() == family).count()
            });
            let wanted = usize::try_from(claim.wants.of(family)).unwrap_or(usize::MAX);
            let more = wanted.saturating_sub(owned);
            if more > 0 {
                wishes.push((owned > 0, Wish { node, family, more }));
            }
        }
    }
    // Stable: name order stays within each half.
    wishes.sort_by_key(|(has_some, _)| *has_some);
    wishes.into_iter().map(|(_, wish)| wish).collect()
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
