//! What the control loop says of itself: for readiness, metrics and logs.

use std::collections::BTreeMap;
use std::time::Duration;

use viaduct_datastore::Connectivity;
use viaduct_model::{BlockState, Kind, PoolName};

use crate::decide::{Decision, Waiting};
use crate::view::View;

/// How the controller stands. Owned by the control loop, published by watch.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// Whether this controller acts.
    pub leads: bool,
    /// Kinds that were not listed yet.
    pub missing: Vec<Kind>,
    /// What failed last, until something works again.
    pub failure: Option<String>,
    /// Why this controller may not stand for election.
    pub election: Option<String>,
    /// Nodes that wait for blocks which no pool has.
    pub waiting: Vec<Waiting>,
    /// What is wrong with records and left alone.
    pub problems: Vec<String>,
    /// Blocks in total and free, by pool.
    pub pools: BTreeMap<PoolName, (u64, u64)>,
    /// Blocks by state.
    pub blocks: BTreeMap<BlockState, u64>,
    /// Records that cannot be read, by kind.
    pub unreadable: BTreeMap<Kind, u64>,
    /// Nodes for which an agent runs, and which are registered.
    pub nodes: (u64, u64),
    /// When the loop last went round, by its own clock.
    pub beat: Duration,
}

impl Status {
    /// Takes over what a decision was made on and what it says.
    pub(crate) fn describe(&mut self, view: &View, decision: &Decision) {
        self.missing = view.missing();
        self.waiting.clone_from(&decision.waiting);
        self.problems.clone_from(&decision.problems);
        self.pools.clone_from(&decision.pools);
        self.blocks.clear();
        for block in view.blocks.values() {
            *self.blocks.entry(block.record.state).or_default() += 1;
        }
        self.unreadable.clear();
        for (kind, _) in view.unreadable.keys() {
            *self.unreadable.entry(*kind).or_default() += 1;
        }
        self.nodes = (view.claims.len() as u64, view.nodes.len() as u64);
    }

    /// Why the controller is not ready; empty when it is. Standing by is ready,
    /// and so is a controller that finds fault with single records.
    pub fn unready(&self, connectivity: &Connectivity) -> Vec<String> {
        let mut reasons = Vec::new();
        match connectivity {
            Connectivity::Connected => {}
            Connectivity::Unknown => reasons.push("the datastore has not answered yet".to_owned()),
            Connectivity::Disconnected { reason } => {
                reasons.push(format!("the datastore does not answer: {reason}"));
            }
        }
        if !self.missing.is_empty() {
            let kinds: Vec<&str> = self.missing.iter().map(|kind| kind.plural()).collect();
            reasons.push(format!("not listed yet: {}", kinds.join(", ")));
        }
        reasons.extend(self.election.clone());
        reasons.extend(self.failure.clone());
        reasons
    }

    /// What is worth knowing though the controller is ready.
    pub fn remarks(&self) -> Vec<String> {
        let mut remarks = self.problems.clone();
        remarks.extend(self.waiting.iter().map(sentence));
        remarks
    }
}

/// Why a node waits, as a sentence.
pub fn sentence(waiting: &Waiting) -> String {
    let (node, family) = (waiting.node.as_str(), waiting.family);
    if waiting.full.is_empty() {
        return format!(
            "node {node:?} wants an {family} block, but no pool of that family is meant for it; \
             create one with `viaductctl pools create`"
        );
    }
    let full: Vec<&str> = waiting.full.iter().map(|pool| pool.as_str()).collect();
    format!(
        "node {node:?} waits for an {family} block: full are the pools {}; it gets one as soon as \
         a pool is added or a block is freed",
        full.join(", ")
    )
}
