//! The life of blocks that exist: given back, reclaimed, quarantined, freed.
//!
//! A block leaves a node in two ways. A living node *gives* it: it names the block
//! in its claim when no address of it is in use, the block becomes `releasing`,
//! and once the claim no longer counts it among its blocks the record is deleted.
//! A *vanished* node loses it: after the reclaim time, or at once when the node's
//! record was deleted too, it becomes `quarantined`, and after the quarantine it
//! is deleted. A node that comes back in time keeps what is still there. Where the cluster
//! itself knows of nodes, it is asked before a block is taken, and its word holds.

use std::collections::{BTreeMap, BTreeSet};

use viaduct_datastore::Version;
use viaduct_model::{Block, BlockState, Cidr, Claim, PoolName};

use super::{Action, ActiveBlocks, Decision, Guard, Moment, with_state};
use crate::memory::freed_generation;

/// How blocks stand after a decision.
pub(super) struct Settled<'a> {
    /// Active ones by node.
    pub(super) active: ActiveBlocks<'a>,
    /// Generations that have to stand in the pool's status before blocks are freed.
    pub(super) freed: BTreeMap<PoolName, u64>,
}

/// Moves every block on in its life, but for those that are just being restored.
pub(super) fn settle<'a>(
    moment: &Moment<'a>,
    restored: &BTreeSet<Cidr>,
    decision: &mut Decision,
) -> Settled<'a> {
    let view = moment.view;
    let mut settled = Settled {
        active: ActiveBlocks::new(),
        freed: BTreeMap::new(),
    };
    for (&cidr, versioned) in &view.blocks {
        if restored.contains(&cidr) {
            continue;
        }
        let (block, version) = (&versioned.record, &versioned.version);
        let state = if view.is_alive(&block.node) {
            let claim = view.claims.get(&block.node).map(|c| &c.record);
            of_living(moment, block, version, claim, &mut settled, decision)
        } else {
            of_vanished(moment, block, version, &mut settled, decision)
        };
        if state == BlockState::Active {
            settled.active.entry(&block.node).or_default().push(cidr);
        }
    }
    settled
}

/// The state that a living node's block is in after this decision. Without a
/// readable claim nothing is taken away.
fn of_living(
    moment: &Moment<'_>,
    block: &Block,
    version: &Version,
    claim: Option<&Claim>,
    settled: &mut Settled<'_>,
    decision: &mut Decision,
) -> BlockState {
    let gives = claim.is_some_and(|c| c.gives(block));
    let reports = claim.is_some_and(|c| c.blocks.contains_key(&block.cidr.record_name()));
    let renews = claim.is_some_and(|c| c.renews(block));
    let mut set = |block| {
        decision.actions.push(Action::SetBlockState {
            block,
            expected: version.clone(),
            guard: Guard::None,
        });
    };
    match block.state {
        BlockState::Active if gives => {
            set(with_state(block, BlockState::Releasing));
            BlockState::Releasing
        }
        // The node was cut off for so long that it does not trust the old grant any more.
        BlockState::Active if renews && !moment.listens => {
            set(moment.granted(block, &block.node));
            BlockState::Active
        }
        // It came back before its blocks were free again.
        BlockState::Quarantined if !moment.listens => {
            set(moment.granted(block, &block.node));
            BlockState::Active
        }
        BlockState::Releasing if gives && !reports => {
            free(moment, block, version, Guard::Given, settled, decision);
            BlockState::Releasing
        }
        // The agent started anew, no longer gives the block and counts it as its own.
        BlockState::Releasing if !gives && reports => {
            set(with_state(block, BlockState::Active));
            BlockState::Active
        }
        unchanged => unchanged,
    }
}

/// The state that a vanished node's block is in after this decision.
fn of_vanished(
    moment: &Moment<'_>,
    block: &Block,
    version: &Version,
    settled: &mut Settled<'_>,
    decision: &mut Decision,
) -> BlockState {
    let (memory, policy, now) = (moment.memory, moment.policy, moment.now);
    if let Some(until) = moment
        .view
        .stands_until(&block.node)
        .filter(|&t| t > now.mono)
    {
        decision.recheck(until);
        return block.state;
    }
    if block.state == BlockState::Quarantined {
        let since = memory.quarantined_since.get(&block.cidr);
        // What the owner was promised holds, whatever the flag says today.
        let rest = policy.quarantine.max(block.rest());
        let free_at = since.map_or(now.mono, |(_, at)| *at) + rest;
        if now.mono >= free_at {
            free(moment, block, version, Guard::NodeGone, settled, decision);
        } else {
            decision.recheck(free_at);
        }
        return BlockState::Quarantined;
    }
    let guard = if moment.view.is_registered(&block.node) {
        let since = memory.gone_since.get(&block.node);
        let reclaim_at = since.copied().unwrap_or(now.mono) + policy.reclaim_after;
        if now.mono < reclaim_at {
            decision.recheck(reclaim_at);
            return block.state;
        }
        Guard::NodeGone
    } else {
        Guard::NodeRemoved
    };
    if moment.listens {
        return block.state;
    }
    decision.actions.push(Action::SetBlockState {
        block: with_state(block, BlockState::Quarantined),
        expected: version.clone(),
        guard,
    });
    BlockState::Quarantined
}

/// Frees a block, once its generation is remembered without its record.
fn free(
    moment: &Moment<'_>,
    block: &Block,
    version: &Version,
    guard: Guard,
    settled: &mut Settled<'_>,
    decision: &mut Decision,
) {
    if moment.listens {
        return;
    }
    let view = moment.view;
    let keeper = if view.pools.contains_key(&block.pool) {
        Some(&block.pool)
    } else {
        view.pools.keys().next()
    };
    if let Some(pool) = keeper
        && freed_generation(view) < block.generation
    {
        // For all blocks at once: a pool's record goes to every node.
        let all = view.blocks.values().map(|b| b.record.generation);
        let greatest = all.max().unwrap_or(block.generation);
        settled.freed.insert(pool.clone(), greatest);
        return;
    }
    decision.actions.push(Action::DeleteBlock {
        block: Box::new(block.clone()),
        expected: version.clone(),
        guard,
    });
}
