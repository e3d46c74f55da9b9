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
mod restore;
mod status;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use viaduct_datastore::{Mark, NodeCidrs, Version};
use viaduct_model::{Block, BlockState, Cidr, Kind, NodeName, Pool, PoolName};

pub use allot::Waiting;

use crate::memory::Memory;
use crate::view::{Versioned, View};

/// How the user wants it.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Pools to create when the store has none.
    pub bootstrap: Vec<(PoolName, Pool)>,
    /// How long a node that vanished keeps its blocks.
    pub reclaim_after: Duration,
    /// How long a block rests before it is free again.
    pub quarantine: Duration,
    /// How long a controller that starts with blocks in the store only listens.
    pub listen: Duration,
    /// Whether whoever starts the controller says that the store was put back.
    pub restored: bool,
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
    /// Give a block back to the node that proves to hold it: the record is missing, or
    /// says less than the node knows.
    RestoreBlock {
        /// The block, as it is to be.
        block: Box<Block>,
        /// The version of the record that is there; `None`: there is none.
        expected: Option<Version>,
    },
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
    let complete = bootstrap(view, policy, &mut decision);
    // While agents may still come with blocks that the store has forgotten, nothing is
    // given to others, nothing taken and nothing granted anew.
    let listens = memory
        .listens_until(policy.listen, policy.quarantine)
        .filter(|until| now.mono < *until);
    if let Some(until) = listens {
        decision.recheck(until);
    }
    let moment = Moment {
        view,
        memory,
        policy,
        now,
        listens: listens.is_some(),
    };
    let restored = restore::restore(&moment, &mut decision);
    // How many active blocks each node has once the state changes below are made.
    let mut settled = lifecycle::settle(&moment, &restored, &mut decision);
    // Nobody routes to those that are wrong: their nodes get others.
    for blocks in settled.active.values_mut() {
        blocks.retain(|cidr| !wrong.contains(cidr));
    }
    let space = allot::allot(&moment, &restored, &settled.active, &mut decision);
    // What is restored meanwhile has it in its own record.
    if let (Some(floor), Some(pool), false) =
        (memory.floor(view), view.pools.keys().next(), moment.listens)
    {
        let first = |action: &Action| matches!(action, Action::CreatePool(..));
        decision.actions.retain(first);
        settled.freed.insert(pool.clone(), floor);
    }
    // A pool without a status tells that the bootstrap may have been cut off.
    if complete {
        status::refresh(&moment, &space, &settled.freed, &mut decision);
    }
    decision
}

/// What all parts of one decision go by.
struct Moment<'a> {
    view: &'a View,
    memory: &'a Memory,
    policy: &'a Policy,
    now: &'a Now,
    /// Nothing is to be given or taken yet.
    listens: bool,
}

/// Creates the pools of the bootstrap where there is none, or goes on where an earlier
/// controller was cut off: then those that there are are ours and have no status yet,
/// because that is written when all are there. Says whether all are.
fn bootstrap(view: &View, policy: &Policy, decision: &mut Decision) -> bool {
    let unreadable = view.unreadable.keys().any(|(kind, _)| *kind == Kind::Pool);
    let ours = |(name, pool): (&PoolName, &Versioned<Pool>)| {
        policy.bootstrap.iter().any(|(of, _)| of == name) && pool.record.status.is_none()
    };
    if unreadable || !view.pools.iter().all(ours) {
        return true;
    }
    let missing: Vec<Action> = policy
        .bootstrap
        .iter()
        .filter(|(name, _)| !view.pools.contains_key(name))
        .map(|(name, pool)| Action::CreatePool(name.clone(), Box::new(pool.clone())))
        .collect();
    let complete = missing.is_empty();
    decision.actions.extend(missing);
    complete
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

impl Moment<'_> {
    /// `block` granted anew to `node`.
    fn granted(&self, block: &Block, node: &NodeName) -> Box<Block> {
        Box::new(Block {
            node: node.clone(),
            state: BlockState::Active,
            generation: self.memory.next_generation(self.view, &block.cidr),
            trust_ms: Some(Block::trust_for(self.policy.quarantine)),
            ..block.clone()
        })
    }
}
