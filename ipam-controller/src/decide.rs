//! What the controller does next: a pure function of what it sees and remembers.
//!
//! Called by the control loop whenever something changed, and when a time that a
//! former decision named has come. Reads no clock and writes nowhere, so every
//! rule can be tested as plain data.
//!
//! The order of block creations is part of the contract: always the lowest free
//! block of the first pool that fits. Two controllers that both believe they lead
//! then reach for the same key, where create-if-absent lets one of them through,
//! and the other learns of it before it goes on. So no block ever goes to two
//! nodes, and no node gets two for one wish.

mod allot;
mod faults;
mod lifecycle;
mod status;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use viaduct_datastore::{Mark, NodeCidrs, Version};
use viaduct_model::{Block, BlockState, Cidr, Kind, NodeName, Pool, PoolName};

pub use allot::Waiting;

use crate::memory::Memory;
use crate::view::View;

/// How the user wants it.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Pools to create when the store has none.
    pub bootstrap: Vec<(PoolName, Pool)>,
    /// How long a node that vanished keeps its blocks.
    pub reclaim_after: Duration,
    /// How long a block rests before it is free again.
    pub quarantine: Duration,
    /// How long a pool's status stays as it is though its counts changed.
    pub refresh: Duration,
    /// What Nodes' pod CIDRs have to do with blocks: with `Adopt` none is given here.
    pub node_cidrs: NodeCidrs,
}

/// The moment of a decision.
#[derive(Debug, Clone)]
pub struct Now {
    /// The controller's own monotonic clock.
    pub mono: Duration,
    /// The wall clock (RFC 3339), only ever shown to people.
    pub wall: String,
}

/// One write, with what has to be true of the store itself before it is made.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Create a pool, unless there is one of that name.
    CreatePool(PoolName, Box<Pool>),
    /// Create a block, unless there is one of that CIDR.
    CreateBlock(Box<Block>),
    /// Change a block's state.
    SetBlockState {
        /// The block, as it is to be.
        block: Box<Block>,
        /// The version that this was decided on.
        expected: Version,
        /// What must be verified first.
        guard: Guard,
    },
    /// Delete a block, so that it is free.
    DeleteBlock {
        /// The block, as it stands.
        block: Box<Block>,
        /// The version that this was decided on.
        expected: Version,
        /// What must be verified first.
        guard: Guard,
    },
    /// Write a pool's status.
    SetPoolStatus {
        /// The pool's name.
        name: PoolName,
        /// The pool with its new status.
        pool: Box<Pool>,
        /// The version that this was decided on.
        expected: Version,
    },
}

/// What is read from the store once more right before a block is taken from a
/// node, because what the watches told may be old and taking is not undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// Nothing.
    None,
    /// That no agent runs for the block's node.
    NodeGone,
    /// That no agent runs for it and that it is not registered either.
    NodeRemoved,
    /// That the node gives the block, and reports no use of it.
    Given,
}

/// What is wrong, by record.
pub type Faults = BTreeMap<(Kind, String), Mark>;

/// What follows from what is seen.
#[derive(Debug, Clone, Default)]
pub struct Decision {
    /// What to do, in this order; stop at the first that fails.
    pub actions: Vec<Action>,
    /// Nodes that wait for blocks which no pool has.
    pub waiting: Vec<Waiting>,
    /// What is wrong and left alone, one sentence each.
    pub problems: Vec<String>,
    /// What is wrong with single records, for the records themselves.
    pub faults: Faults,
    /// When to decide again though nothing changed.
    pub recheck_at: Option<Duration>,
    /// Blocks in total and free, by pool.
    pub pools: BTreeMap<PoolName, (u64, u64)>,
}

impl Decision {
    fn recheck(&mut self, at: Duration) {
        self.recheck_at = Some(self.recheck_at.map_or(at, |before| before.min(at)));
    }
}

/// Decides. `memory` must have observed this very view.
pub fn decide(view: &View, memory: &Memory, policy: &Policy, now: &Now) -> Decision {
    let mut decision = Decision::default();
    if !view.is_complete() {
        return decision;
    }
    decision.problems = view
        .unreadable
        .values()
        .map(|unreadable| unreadable.reason.clone())
        .collect();
    let wrong = faults::find(view, &mut decision);
    bootstrap(view, policy, &mut decision);
    // How many active blocks each node has once the state changes below are made.
    let mut active = lifecycle::settle(view, memory, policy, now, &mut decision);
    // Nobody routes to those that are wrong: their nodes get others.
    for blocks in active.values_mut() {
        blocks.retain(|cidr| !wrong.contains(cidr));
    }
    let space = allot::allot(view, memory, policy, &active, &mut decision);
    status::refresh(view, memory, policy, now, &space, &mut decision);
    decision
}

fn bootstrap(view: &View, policy: &Policy, decision: &mut Decision) {
    let unreadable = view.unreadable.keys().any(|(kind, _)| *kind == Kind::Pool);
    if view.pools.is_empty() && !unreadable {
        decision.actions.extend(
            policy
                .bootstrap
                .iter()
                .map(|(name, pool)| Action::CreatePool(name.clone(), Box::new(pool.clone()))),
        );
    }
}

/// Active blocks by node.
type ActiveBlocks<'a> = BTreeMap<&'a NodeName, Vec<Cidr>>;

/// `block` in another state.
fn with_state(block: &Block, state: BlockState) -> Box<Block> {
    Box::new(Block {
        state,
        ..block.clone()
    })
}
