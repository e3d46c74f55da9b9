//! What the controller remembers beyond the records: since when, by its own
//! clock, it has seen things stand as they do.
//!
//! Owned by the control loop, kept up by every controller whether it leads or
//! not. It starts empty, so a controller that has just started waits in full: no
//! time is ever taken from a record or from another machine's clock.

use std::collections::BTreeMap;
use std::time::Duration;

use viaduct_datastore::Version;
use viaduct_model::{BlockState, Cidr, NodeName, PoolName};

use crate::view::{Versioned, View};

/// How long a controller that has just started listens before it gives or takes: the
/// time that agents need to come back to a store that was away.
pub const LISTEN: Duration = Duration::from_secs(5);

/// How many low bits of a generation count grants; those above are the age of the store,
/// which is another after each time that it was put back.
const AGE: u32 = 20;

/// Times are the controller's own: how long after its start.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// Owners of blocks for which no agent runs, with since when.
    pub gone_since: BTreeMap<NodeName, Duration>,
    /// Quarantined blocks, each with the version of its record that says so, lest two
    /// quarantines be taken for one, and with since when.
    pub quarantined_since: BTreeMap<Cidr, (Version, Duration)>,
    /// When a pool's status was written last.
    pub status_at: BTreeMap<PoolName, Duration>,
    /// When the store was last seen to have been put back to an older state.
    pub put_back_at: Option<Duration>,
    /// When this controller first saw everything, if there were blocks then.
    pub began_at: Option<Duration>,
    /// Whether everything was seen once.
    begun: bool,
    /// The greatest generation seen of each block, also of those that are gone.
    generations: BTreeMap<Cidr, u64>,
    /// The greatest generation that any node said is over.
    ended: u64,
    /// Whether whoever started this controller said that the store was put back.
    restored: bool,
    /// How many ages later it is when the store was put back.
    stride: u64,
    /// What generations have to be greater than since the store was put back.
    floor: u64,
    /// Active blocks and their generations at the last look.
    seen: BTreeMap<Cidr, (u64, BlockState)>,
    /// How often the list of blocks was told anew.
    lists: u64,
}

impl Memory {
    /// The memory of a controller that starts, on a store that was put back if so
    /// `restored`. `stride` is a number by chance: grants that the store has forgotten
    /// and those that are made since must not have one generation, so each time that it
    /// is put back a new age begins.
    pub fn new(restored: bool, stride: u64) -> Self {
        Self {
            restored,
            stride,
            ..Self::default()
        }
    }

    /// Compares the view with what is remembered. To be called before every
    /// decision, and while standing by whenever the view changes.
    pub fn observe(&mut self, view: &View, now: Duration) {
        if !view.is_complete() {
            return;
        }
        let mut put_back = false;
        if !self.begun {
            self.begun = true;
            put_back = self.restored;
            self.began_at = (!view.blocks.is_empty()).then_some(now);
        }
        let mut gone = BTreeMap::new();
        let mut quarantined = BTreeMap::new();
        let mut seen = BTreeMap::new();
        for (&cidr, Versioned { version, record }) in &view.blocks {
            seen.insert(cidr, (record.generation, record.state));
            if !view.is_alive(&record.node) && !gone.contains_key(&record.node) {
                let since = self.gone_since.get(&record.node).copied();
                gone.insert(record.node.clone(), since.unwrap_or(now));
            }
            if record.state == BlockState::Quarantined {
                let since = self.quarantined_since.remove(&cidr);
                let since = since.filter(|(of, _)| of == version);
                quarantined.insert(cidr, since.unwrap_or_else(|| (version.clone(), now)));
            }
        }
        if self.is_put_back(view, &seen) {
            self.put_back_at = Some(now);
            put_back = true;
        }
        for (cidr, (generation, _)) in &seen {
            self.saw(*cidr, *generation);
        }
        for claim in view.claims.values() {
            self.ended = self.ended.max(claim.record.ended);
            for (name, generation) in &claim.record.holds {
                if let Some(cidr) = Cidr::from_record_name(name) {
                    self.saw(cidr, *generation);
                }
            }
        }
        self.floor = self.floor.max(age_of(self.greatest(view)));
        if put_back {
            self.floor = self.floor.saturating_add(self.stride << AGE);
        }
        self.gone_since = gone;
        self.quarantined_since = quarantined;
        self.seen = seen;
        self.lists = view.block_lists;
        self.status_at
            .retain(|pool, _| view.pools.contains_key(pool));
    }

    /// Until when nothing may be given or taken, if that is still to come: agents
    /// may hold blocks that the store has forgotten, and say so when they come back.
    pub fn listens_until(&self, listen: Duration, quarantine: Duration) -> Option<Duration> {
        let began = self.began_at.map(|at| at + listen);
        let put_back = self.put_back_at.map(|at| at + quarantine);
        began.max(put_back)
    }

    /// The generation of a block that is about to be granted.
    pub fn next_generation(&self, view: &View, cidr: &Cidr) -> u64 {
        let seen = self.generations.get(cidr).copied().unwrap_or(0);
        seen.max(freed_generation(view))
            .max(self.ended)
            .max(self.floor)
            .saturating_add(1)
    }

    /// What has to stand in a pool's status before anything new is granted: in which age
    /// it is. Otherwise the next controller may know nothing of it.
    pub fn floor(&self, view: &View) -> Option<u64> {
        (self.floor > age_of(freed_generation(view))).then_some(self.floor)
    }

    /// The greatest generation that is known.
    fn greatest(&self, view: &View) -> u64 {
        let seen = self.generations.values().copied().max().unwrap_or(0);
        seen.max(self.ended).max(freed_generation(view))
    }

    /// Whether the store says less than it said before, or less than agents know.
    fn is_put_back(&self, view: &View, seen: &BTreeMap<Cidr, (u64, BlockState)>) -> bool {
        // Against the last look, lest the same step back be told for ever.
        let older = seen.iter().any(|(cidr, (generation, _))| {
            let before = self.seen.get(cidr).map(|(generation, _)| generation);
            before
                .or_else(|| self.generations.get(cidr))
                .is_some_and(|known| generation < known)
        });
        // Freed blocks go one by one, after they were released or quarantined. One that
        // is missing from a new list though it was active is another matter.
        let lost = view.block_lists != self.lists
            && self
                .seen
                .iter()
                .any(|(cidr, (_, state))| *state == BlockState::Active && !seen.contains_key(cidr));
        older || lost || self.is_held_beyond(view, seen)
    }

    /// Whether an agent holds, at a generation that is news to us, what the store has
    /// no record of though no controller freed it, or only an older one.
    fn is_held_beyond(&self, view: &View, seen: &BTreeMap<Cidr, (u64, BlockState)>) -> bool {
        let freed = freed_generation(view);
        let holds = view.claims.values().flat_map(|claim| &claim.record.holds);
        holds
            .filter_map(|(name, held)| Some((Cidr::from_record_name(name)?, *held)))
            .any(|(cidr, held)| {
                let news = self
                    .generations
                    .get(&cidr)
                    .is_none_or(|known| held > *known);
                news && match seen.get(&cidr) {
                    Some((generation, _)) => held > *generation,
                    None => held > freed,
                }
            })
    }

    fn saw(&mut self, cidr: Cidr, generation: u64) {
        let known = self.generations.entry(cidr).or_default();
        *known = generation.max(*known);
    }
}

/// The first generation of the age that `generation` is of.
fn age_of(generation: u64) -> u64 {
    generation >> AGE << AGE
}

/// No block that was ever freed had a greater generation, as far as the store knows.
pub fn freed_generation(view: &View) -> u64 {
    view.pools
        .values()
        .filter_map(|pool| Some(pool.record.status.as_ref()?.generation))
        .max()
        .unwrap_or(0)
}
