//! What the controller remembers beyond the records: since when, by its own
//! clock, it has seen things stand as they do.
//!
//! Owned by the control loop, kept up by every controller whether it leads or
//! not. It starts empty, so a controller that has just started waits in full: no
//! time is ever taken from a record or from another machine's clock.

use std::collections::BTreeMap;
use std::time::Duration;

use viaduct_model::{BlockState, Cidr, NodeName, PoolName};

use crate::view::View;

/// Times are the controller's own: how long after its start.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// Owners of blocks for which no agent runs, with since when.
    pub gone_since: BTreeMap<NodeName, Duration>,
    /// Quarantined blocks, with since when.
    pub quarantined_since: BTreeMap<Cidr, Duration>,
    /// When a pool's status was written last.
    pub status_at: BTreeMap<PoolName, Duration>,
    /// The greatest generation seen of a block that is gone now.
    generations: BTreeMap<Cidr, u64>,
    /// Blocks seen last, to notice those that go.
    seen: BTreeMap<Cidr, u64>,
}

impl Memory {
    /// Compares the view with what is remembered. To be called before every
    /// decision, and while standing by whenever the view changes.
    pub fn observe(&mut self, view: &View, now: Duration) {
        if !view.is_complete() {
            return;
        }
        let mut gone = BTreeMap::new();
        let mut quarantined = BTreeMap::new();
        let mut seen = BTreeMap::new();
        for (&cidr, block) in &view.blocks {
            let block = &block.record;
            seen.insert(cidr, block.generation);
            if !view.is_alive(&block.node) && !gone.contains_key(&block.node) {
                let since = self.gone_since.get(&block.node).copied();
                gone.insert(block.node.clone(), since.unwrap_or(now));
            }
            if block.state == BlockState::Quarantined {
                let since = self.quarantined_since.get(&cidr).copied();
                quarantined.insert(cidr, since.unwrap_or(now));
            }
        }
        for (cidr, generation) in std::mem::take(&mut self.seen) {
            if !seen.contains_key(&cidr) {
                self.generations.insert(cidr, generation);
            }
        }
        self.gone_since = gone;
        self.quarantined_since = quarantined;
        self.seen = seen;
        self.status_at
            .retain(|pool, _| view.pools.contains_key(pool));
    }

    /// The generation of a block that is about to be created.
    pub fn next_generation(&self, cidr: &Cidr) -> u64 {
        self.generations
            .get(cidr)
            .map_or(1, |last| last.saturating_add(1))
    }
}
