//! Which blocks a node may hand out addresses from, and until when.
//!
//! A [`Tenure`] is owned by the agent's tenure task. It is told what the store's watch
//! says and what single reads show, with the boot-time clock's reading from *before*
//! each read; it never reads a clock or asks the store.
//!
//! The one rule: **a block serves for its trust after it was last read as active, ours
//! and of the generation that we hold.** The controller frees a block only after its
//! record has said `quarantined` for longer than that (or after we gave it back, which
//! is never taken back), so a node stops before anybody else can begin. No clock of
//! two machines is compared: both only measure how long something lasts.
//!
//! A trust that has run out is not renewed by reading: by then the store may have been
//! put back to an older state in which the block still seems ours. The node asks for a
//! new grant, which the controller gives after it has heard all who hold blocks.
//!
//! A generation tells today's grant from one of the past. A record that is older than
//! what we hold, or that we gave up already, comes from a store that was put back.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{Block, BlockState, Cidr, NodeName};

/// What the store said last of a block that we hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Word {
    /// It is ours and active.
    Active,
    /// It is ours, but being given back or quarantined.
    Withheld,
    /// There is no record.
    Forgotten,
    /// It is ours by a record that is older than our grant.
    Aged,
    /// An older record names another owner.
    Disputed,
}

/// A block that we were granted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Held {
    generation: u64,
    trust_ms: u64,
    /// When the last read that proved it was begun.
    proved_ms: Option<u64>,
    word: Word,
}

impl Held {
    fn new(block: &Block) -> Self {
        Self {
            generation: block.generation,
            trust_ms: u64::try_from(block.trust().as_millis()).unwrap_or(u64::MAX),
            proved_ms: None,
            word: word_of(block.state),
        }
    }

    fn until_ms(&self) -> Option<u64> {
        Some(self.proved_ms?.saturating_add(self.trust_ms))
    }

    fn trusted(&self, now_ms: u64) -> bool {
        self.until_ms().is_some_and(|until| now_ms < until)
    }

    /// It was proved once, and then not for too long.
    fn lapsed(&self, now_ms: u64) -> bool {
        self.until_ms().is_some_and(|until| now_ms >= until)
    }
}

fn word_of(state: BlockState) -> Word {
    match state {
        BlockState::Active => Word::Active,
        BlockState::Releasing | BlockState::Quarantined => Word::Withheld,
    }
}

/// A node's hold on its blocks. Serialisable, so that a restart of the agent forgets
/// nothing; of no worth after a reboot, like the clock that it is measured by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tenure {
    node: NodeName,
    #[serde(with = "by_name")]
    held: BTreeMap<Cidr, Held>,
    /// Held blocks that are given back. Never taken back.
    giving: BTreeSet<Cidr>,
    /// The greatest generation of each block that we held once and hold no more.
    #[serde(with = "by_name")]
    over: BTreeMap<Cidr, u64>,
    /// Records that name us as the owner under a grant that is over.
    #[serde(skip)]
    ghosts: BTreeMap<Cidr, u64>,
    /// Held blocks that are about to be given back, each with the round in which that was
    /// begun; may still be taken back.
    #[serde(skip)]
    withheld: BTreeMap<Cidr, u64>,
    /// How often a block was withheld.
    #[serde(skip)]
    round: u64,
}

impl Tenure {
    /// Nothing is held.
    pub fn new(node: NodeName) -> Self {
        Self {
            node,
            held: BTreeMap::new(),
            giving: BTreeSet::new(),
            over: BTreeMap::new(),
            ghosts: BTreeMap::new(),
            withheld: BTreeMap::new(),
            round: 0,
        }
    }

    /// Whether this was written by `node` and in the boot that `now_ms` is of.
    pub fn is_of(&self, node: &NodeName, now_ms: u64) -> bool {
        let past = |held: &Held| held.proved_ms.is_none_or(|proved| proved <= now_ms);
        self.node == *node && self.held.values().all(past)
    }

    /// Takes in all blocks as the watch tells of them.
    pub fn told<B: Borrow<Block>>(&mut self, blocks: &BTreeMap<Cidr, B>, now_ms: u64) {
        self.ghosts.clear();
        let absent: Vec<Cidr> = self
            .held
            .keys()
            .filter(|cidr| !blocks.contains_key(cidr))
            .copied()
            .collect();
        for cidr in absent {
            self.vanished(cidr);
        }
        for block in blocks.values() {
            self.stands(block.borrow(), now_ms);
        }
    }

    /// Takes in what one read showed that was begun at `asked_ms`.
    pub fn read(&mut self, cidr: Cidr, block: Option<&Block>, asked_ms: u64) {
        let Some(block) = block else {
            return self.vanished(cidr);
        };
        self.stands(block, asked_ms);
        let ours = block.node == self.node && block.state == BlockState::Active;
        if let Some(held) = self.held.get_mut(&cidr)
            && ours
            && held.generation == block.generation
            && !held.lapsed(asked_ms)
        {
            held.proved_ms = held.proved_ms.max(Some(asked_ms));
        }
    }

    /// Hands out nothing from a block that may be given back, or goes on.
    pub fn withhold(&mut self, cidr: &Cidr, withheld: bool) {
        if withheld && self.held.contains_key(cidr) {
            self.round += 1;
            self.withheld.insert(*cidr, self.round);
        } else {
            self.withheld.remove(cidr);
        }
    }

    /// Blocks that may be given back next, once whoever hands out addresses goes by a
    /// tenure of this [`Tenure::round`] and they are empty still.
    pub fn withheld(&self) -> BTreeMap<Cidr, u64> {
        self.withheld.clone()
    }

    /// How often a block was withheld so far.
    pub fn round(&self) -> u64 {
        self.round
    }

    /// Gives a block back for good. It has no address in use, and none is handed out
    /// from it any more. The caller writes the tenure down before it tells anybody.
    pub fn give(&mut self, cidr: Cidr) {
        if self.held.contains_key(&cidr) {
            self.giving.insert(cidr);
        }
    }

    /// Whether addresses may be handed out from this block now.
    pub fn serves(&self, cidr: &Cidr, now_ms: u64) -> bool {
        self.serves_until(cidr).is_some_and(|until| now_ms < until)
    }

    /// Until when addresses may be handed out from this block.
    pub fn serves_until(&self, cidr: &Cidr) -> Option<u64> {
        self.held
            .get(cidr)
            .filter(|held| {
                held.word == Word::Active
                    && !self.giving.contains(cidr)
                    && !self.withheld.contains_key(cidr)
            })
            .and_then(Held::until_ms)
    }

    /// Until when addresses may be handed out, by block. Blocks that are held and
    /// serve nothing are named with `None`.
    pub fn terms(&self) -> BTreeMap<Cidr, Option<u64>> {
        self.held
            .keys()
            .map(|cidr| (*cidr, self.serves_until(cidr)))
            .collect()
    }

    /// What the claim says we hold: `used` blocks have addresses in use. A block that
    /// the store has forgotten and that nobody needs is let go. What was never proved is no
    /// proof to anybody: the grant may be one of long ago that we heard of late.
    pub fn holds(&self, used: impl Fn(&Cidr) -> bool, now_ms: u64) -> BTreeMap<String, u64> {
        self.held
            .iter()
            .filter(|(cidr, held)| {
                !self.giving.contains(cidr)
                    && match held.word {
                        Word::Active => held.proved_ms.is_some(),
                        Word::Withheld | Word::Aged => true,
                        Word::Forgotten => held.trusted(now_ms) || used(cidr),
                        Word::Disputed => held.trusted(now_ms),
                    }
            })
            .map(|(cidr, held)| (cidr.record_name(), held.generation))
            .collect()
    }

    /// What the claim says we give back, grants that are over included.
    pub fn gives(&self) -> BTreeMap<String, u64> {
        self.giving
            .iter()
            .filter_map(|cidr| Some((*cidr, self.held.get(cidr)?.generation)))
            .chain(self.ghosts.iter().map(|(cidr, at)| (*cidr, *at)))
            .map(|(cidr, generation)| (cidr.record_name(), generation))
            .collect()
    }

    /// What the claim says has to be granted anew: what we trust no more, and what no
    /// reading will prove. Whoever restores blocks hears all others first.
    pub fn renews(&self, now_ms: u64) -> BTreeMap<String, u64> {
        self.held
            .iter()
            .filter(|(cidr, held)| {
                let over = match held.word {
                    Word::Active => held.lapsed(now_ms),
                    Word::Withheld | Word::Forgotten | Word::Aged => !held.trusted(now_ms),
                    Word::Disputed => false,
                };
                over && !self.giving.contains(cidr)
            })
            .map(|(cidr, held)| (cidr.record_name(), held.generation))
            .collect()
    }

    /// What a grant of this block that is to be believed has as its generation at least.
    pub fn next_generation(&self, cidr: &Cidr) -> u64 {
        let held = self.held.get(cidr).map(|held| held.generation);
        held.max(self.over.get(cidr).copied())
            .unwrap_or(0)
            .saturating_add(1)
    }

    /// The greatest generation of a grant of ours that is over.
    pub fn ended(&self) -> u64 {
        self.over.values().copied().max().unwrap_or(0)
    }

    /// Blocks that we hold although an older record names another owner: pods on them
    /// go on, until it is settled or our trust runs out.
    pub fn disputed(&self, now_ms: u64) -> BTreeSet<Cidr> {
        self.held
            .iter()
            .filter(|(_, held)| held.word == Word::Disputed && held.trusted(now_ms))
            .map(|(cidr, _)| *cidr)
            .collect()
    }

    /// Blocks that were ours and are not: no pod may go on with an address of theirs,
    /// whether or not another owns them by now.
    pub fn lost(&self) -> BTreeSet<Cidr> {
        let over = self.over.keys();
        over.filter(|cidr| !self.held.contains_key(cidr))
            .copied()
            .collect()
    }

    /// Whether nobody else may have the block yet, whatever the records say.
    pub fn is_trusted(&self, cidr: &Cidr, now_ms: u64) -> bool {
        self.held.get(cidr).is_some_and(|held| held.trusted(now_ms)) && !self.giving.contains(cidr)
    }

    /// Whether we hold the block, serving or not.
    pub fn is_held(&self, cidr: &Cidr) -> bool {
        self.held.contains_key(cidr)
    }

    /// Whether this node knows that its grant of the block at `generation` is over.
    pub fn is_over(&self, cidr: &Cidr, generation: u64) -> bool {
        self.over.get(cidr).is_some_and(|over| generation <= *over)
    }

    /// Blocks whose record is to be read, with when: at once what was never proved or
    /// is not as it should be, the others when a quarter of their trust has passed.
    pub fn reads_due(&self) -> BTreeMap<Cidr, u64> {
        self.held
            .iter()
            .filter(|(cidr, _)| !self.giving.contains(cidr))
            .filter_map(|(cidr, held)| match held.word {
                Word::Active => Some((
                    *cidr,
                    held.proved_ms
                        .map_or(0, |proved| proved.saturating_add(held.trust_ms / 4)),
                )),
                // Its next word comes by the watch.
                Word::Withheld | Word::Forgotten | Word::Aged | Word::Disputed => None,
            })
            .collect()
    }

    /// A block that we hold has no record.
    fn vanished(&mut self, cidr: Cidr) {
        if self.giving.contains(&cidr) {
            self.end(cidr);
        } else if let Some(held) = self.held.get_mut(&cidr) {
            held.word = Word::Forgotten;
        }
    }

    /// A record as it stands.
    fn stands(&mut self, block: &Block, now_ms: u64) {
        let cidr = block.cidr;
        if block.node != self.node {
            let Some(held) = self.held.get_mut(&cidr) else {
                return;
            };
            if block.generation < held.generation && held.trusted(now_ms) {
                held.word = Word::Disputed;
            } else {
                self.end(cidr);
            }
            return;
        }
        if self
            .over
            .get(&cidr)
            .is_some_and(|over| block.generation <= *over)
        {
            self.ghosts.insert(cidr, block.generation);
            return;
        }
        match self.held.get_mut(&cidr) {
            // What we give back stands in a store that was put back at an older grant.
            Some(held) if block.generation < held.generation && self.giving.contains(&cidr) => {
                self.end(cidr);
                self.ghosts.insert(cidr, block.generation);
            }
            Some(held) if block.generation == held.generation => held.word = word_of(block.state),
            Some(held) if block.generation < held.generation => held.word = Word::Aged,
            _ => {
                // A new grant is not what we gave back.
                self.giving.remove(&cidr);
                self.held.insert(cidr, Held::new(block));
            }
        }
    }

    /// Our grant of this block is over.
    fn end(&mut self, cidr: Cidr) {
        self.giving.remove(&cidr);
        self.withheld.remove(&cidr);
        if let Some(held) = self.held.remove(&cidr) {
            let over = self.over.entry(cidr).or_default();
            *over = held.generation.max(*over);
        }
    }
}

/// Maps by CIDR as JSON objects.
mod by_name {
    use std::collections::BTreeMap;

    use serde::de::DeserializeOwned;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::Cidr;

    pub(super) fn serialize<S: Serializer, T: Serialize>(
        map: &BTreeMap<Cidr, T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_map(map.iter().map(|(cidr, value)| (cidr.record_name(), value)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>, T: DeserializeOwned>(
        deserializer: D,
    ) -> Result<BTreeMap<Cidr, T>, D::Error> {
        let named = BTreeMap::<String, T>::deserialize(deserializer)?;
        named
            .into_iter()
            .map(|(name, value)| {
                let cidr = Cidr::from_record_name(&name)
                    .ok_or_else(|| serde::de::Error::custom(format!("{name:?} is no block")))?;
                Ok((cidr, value))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests;
