//! The life of blocks that exist: given back, reclaimed, quarantined, freed.
//!
//! A block leaves a node in two ways. A living node *gives* it: it names the block
//! in its claim when no address of it is in use, the block becomes `releasing`,
//! and once the claim no longer counts it among its blocks the record is deleted.
//! A *vanished* node loses it: after the reclaim time, or at once when the node's
//! record was deleted too, it becomes `quarantined`, and after the quarantine it
//! is deleted. A node that comes back in time keeps what is still there. Where the cluster
//! itself knows of nodes, it is asked before a block is taken, and its word holds.

use viaduct_datastore::Version;
use viaduct_model::{Block, BlockState, Claim};

use super::{Action, ActiveBlocks, Decision, Guard, Now, Policy, with_state};
use crate::memory::Memory;
use crate::view::View;

/// Moves every block on in its life; returns the active ones by node.
pub(super) fn settle<'a>(
    view: &'a View,
    memory: &Memory,
    policy: &Policy,
    now: &Now,
    decision: &mut Decision,
) -> ActiveBlocks<'a> {
    let mut active = ActiveBlocks::new();
    for (&cidr, versioned) in &view.blocks {
        let (block, version) = (&versioned.record, &versioned.version);
        let state = if view.is_alive(&block.node) {
            let claim = view.claims.get(&block.node).map(|c| &c.record);
            of_living(block, version, claim, decision)
        } else {
            of_vanished(view, memory, policy, now, block, version, decision)
        };
        if state == BlockState::Active {
            active.entry(&block.node).or_default().push(cidr);
        }
    }
    active
}

/// The state that a living node's block is in after this decision. Without a
/// readable claim nothing is taken away.
fn of_living(
    block: &Block,
    version: &Version,
    claim: Option<&Claim>,
    decision: &mut Decision,
) -> BlockState {
    let gives = claim.is_some_and(|c| c.gives.contains(&block.cidr));
    let reports = claim.is_some_and(|c| c.blocks.contains_key(&block.cidr.record_name()));
    let (state, guard) = match block.state {
        BlockState::Active if gives => (BlockState::Releasing, Guard::None),
        // It came back before its blocks were free again.
        BlockState::Quarantined => (BlockState::Active, Guard::None),
        BlockState::Releasing if gives && !reports => {
            decision.actions.push(Action::DeleteBlock {
                block: Box::new(block.clone()),
                expected: version.clone(),
                guard: Guard::Given,
            });
            return BlockState::Releasing;
        }
        // The agent started anew, no longer gives the block and counts it as its own.
        BlockState::Releasing if !gives && reports => (BlockState::Active, Guard::None),
        unchanged => return unchanged,
    };
    decision.actions.push(Action::SetBlockState {
        block: with_state(block, state),
        expected: version.clone(),
        guard,
    });
    state
}

/// The state that a vanished node's block is in after this decision.
fn of_vanished(
    view: &View,
    memory: &Memory,
    policy: &Policy,
    now: &Now,
    block: &Block,
    version: &Version,
    decision: &mut Decision,
) -> BlockState {
    if let Some(until) = view.stands_until(&block.node).filter(|&t| t > now.mono) {
        decision.recheck(until);
        return block.state;
    }
    if block.state == BlockState::Quarantined {
        let since = memory.quarantined_since.get(&block.cidr);
        let free_at = since.copied().unwrap_or(now.mono) + policy.quarantine;
        if now.mono >= free_at {
            decision.actions.push(Action::DeleteBlock {
                block: Box::new(block.clone()),
                expected: version.clone(),
                guard: Guard::NodeGone,
            });
        } else {
            decision.recheck(free_at);
        }
        return BlockState::Quarantined;
    }
    let guard = if view.is_registered(&block.node) {
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
    decision.actions.push(Action::SetBlockState {
        block: with_state(block, BlockState::Quarantined),
        expected: version.clone(),
        guard,
    });
    BlockState::Quarantined
}
