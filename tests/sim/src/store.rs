//! The store: records, leases, history, snapshots; and the trait that the controller's
//! own code calls it by.
//!
//! Each call waits for one turn and then happens at once, so that the simulation decides
//! when, and whether the request or its answer gets lost.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use tokio::sync::watch;
use viaduct_datastore::{
    Change, Connectivity, Cursor, Entry, Leadership, LeaseId, List, Store, StoreError, Update,
    Version, records,
};
use viaduct_model::{Block, BlockState, Cidr, Kind, Record};

use crate::trace;

/// How long a quarantine lasts at least, in milliseconds of the world: as long as it was
/// chosen (`world::QUARANTINE`), by the fastest clock.
const LEAST_QUARANTINE: u64 = crate::world::QUARANTINE * 100 / 105 - 10;

/// What becomes of the next call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fate {
    /// It works.
    #[default]
    Done,
    /// The request is lost.
    Lost,
    /// It works, and nobody hears of it.
    Unheard,
}

/// A store's content; what a snapshot holds.
#[derive(Debug, Clone, Default)]
pub struct Content {
    /// Records by kind and name.
    pub records: BTreeMap<(Kind, String), Entry>,
    /// Claims' leases: when they run out, by the name of the node.
    pub leases: BTreeMap<String, u64>,
    revision: u64,
}

/// The store.
#[derive(Debug, Default)]
pub struct Inner {
    /// What stands in it.
    pub content: Content,
    /// What happened, by kind, since it was put back last.
    pub history: BTreeMap<Kind, Vec<Update>>,
    /// How often it was put back.
    pub epoch: u64,
    /// What becomes of the next call of a controller.
    pub fate: Fate,
    /// Blocks as they stand, decoded.
    pub blocks: BTreeMap<Cidr, Block>,
    /// When each block's record was last written as quarantined, in world time.
    pub quarantined_at: BTreeMap<Cidr, u64>,
    /// Since when each node's claim has stood without a break, in world time.
    pub claimed_since: BTreeMap<String, u64>,
    /// Blocks that were taken from nodes whose claims stand, with since when.
    pub taken: Vec<(Cidr, String, u64)>,
    /// A block that was freed too soon, with how long its quarantine lasted.
    pub hasty: Option<(Cidr, u64)>,
    /// World time.
    pub now: u64,
}

/// The store as everybody shares it.
#[derive(Debug, Clone, Default)]
pub struct SimStore(pub Arc<Mutex<Inner>>);

impl SimStore {
    /// The content, for a moment.
    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// The record of this name.
    pub fn get(&self, kind: Kind, name: &str) -> Option<&Entry> {
        self.content.records.get(&(kind, name.to_owned()))
    }

    /// Writes a record, if the one there has the expected version.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] or [`StoreError::AlreadyExists`].
    pub fn put(
        &mut self,
        kind: Kind,
        name: &str,
        value: &[u8],
        expected: Option<&Version>,
    ) -> Result<Version, StoreError> {
        let (name, there) = (name.to_owned(), self.get(kind, name).map(|e| &e.version));
        match (there, expected) {
            (Some(_), None) => return Err(StoreError::AlreadyExists { kind, name }),
            (there, Some(_)) if there != expected => {
                return Err(StoreError::Conflict { kind, name });
            }
            _ => {}
        }
        self.content.revision += 1;
        let version = Version(self.content.revision.to_string());
        let entry = Entry {
            name: name.clone(),
            value: value.to_vec(),
            version: version.clone(),
        };
        trace::record(self.now, kind, &name, self.get(kind, &name), Some(&entry));
        self.note(kind, &name, Some(&entry));
        self.tell(kind, Update::Put(entry.clone()));
        self.content.records.insert((kind, name), entry);
        Ok(version)
    }

    /// Deletes a record, if it has the expected version, where one is expected.
    ///
    /// # Errors
    /// [`StoreError::Conflict`].
    pub fn delete(
        &mut self,
        kind: Kind,
        name: &str,
        expected: Option<&Version>,
    ) -> Result<(), StoreError> {
        let there = self.get(kind, name).map(|e| &e.version);
        if expected.is_some() && there != expected {
            let name = name.to_owned();
            return Err(StoreError::Conflict { kind, name });
        }
        let gone = self.content.records.remove(&(kind, name.to_owned()));
        if gone.is_some() {
            trace::record(self.now, kind, name, gone.as_ref(), None);
            self.content.revision += 1;
            self.note(kind, name, None);
            self.tell(kind, Update::Delete(name.to_owned()));
        }
        Ok(())
    }

    /// Ends the claims whose lease has run out.
    pub fn expire(&mut self) {
        let now = self.now;
        let over: Vec<String> = self
            .content
            .leases
            .iter()
            .filter(|(_, until)| **until <= now)
            .map(|(name, _)| name.clone())
            .collect();
        for name in over {
            self.content.leases.remove(&name);
            // Nothing is expected, so it cannot be turned down.
            let _ = self.delete(Kind::Claim, &name, None);
        }
    }

    /// Puts the store back to an older content. All watches break; leases begin anew.
    pub fn put_back(&mut self, content: Content, ttl: u64) {
        trace::put_back(self.now, &content);
        self.content = content;
        for until in self.content.leases.values_mut() {
            *until = self.now + ttl;
        }
        self.epoch += 1;
        self.history.clear();
        self.blocks = all(&self.content);
        self.claimed_since.clear();
        for claim in self.list(Kind::Claim) {
            self.claimed_since.insert(claim.name, self.now);
        }
    }

    /// All records of a kind.
    pub fn list(&self, kind: Kind) -> Vec<Entry> {
        let of = |((k, _), _): &(&(Kind, String), &Entry)| *k == kind;
        let records = self.content.records.iter().filter(of);
        records.map(|(_, entry)| entry.clone()).collect()
    }

    fn tell(&mut self, kind: Kind, update: Update) {
        self.history.entry(kind).or_default().push(update);
    }

    fn note(&mut self, kind: Kind, name: &str, entry: Option<&Entry>) {
        if kind == Kind::Claim {
            if entry.is_none() {
                self.claimed_since.remove(name);
            } else {
                let since = self.claimed_since.entry(name.to_owned());
                since.or_insert(self.now);
            }
        }
        let (Kind::Block, Some(cidr)) = (kind, Cidr::from_record_name(name)) else {
            return;
        };
        let found = entry.and_then(|e| records::decode::<Block>(e).ok());
        // A quarantine begins, or ends with the block free.
        let quarantined = |block: &Block| block.state == BlockState::Quarantined;
        let before = self.blocks.get(&cidr);
        let begins = found.as_ref().is_some_and(|b| quarantined(&b.record));
        if let Some(before) = before
            && begins != quarantined(before)
            && (begins || found.is_none())
            && let Some(since) = self.claimed_since.get(before.node.as_str())
        {
            self.taken.push((cidr, before.node.to_string(), *since));
        }
        if before.is_some_and(quarantined) && found.is_none() {
            let since = self.quarantined_at.get(&cidr).copied().unwrap_or(0);
            let lasted = self.now.saturating_sub(since);
            if lasted < LEAST_QUARANTINE {
                self.hasty = Some((cidr, lasted));
            }
        }
        match found {
            Some(block) => {
                if block.record.state == viaduct_model::BlockState::Quarantined {
                    self.quarantined_at.insert(cidr, self.now);
                }
                self.blocks.insert(cidr, block.record);
            }
            None => drop(self.blocks.remove(&cidr)),
        }
    }
}

/// All readable blocks of a content.
pub fn all(content: &Content) -> BTreeMap<Cidr, Block> {
    let records = content
        .records
        .iter()
        .filter(|((k, _), _)| *k == Block::KIND);
    let decoded = records.filter_map(|(_, entry)| records::decode::<Block>(entry).ok());
    decoded
        .map(|named| (named.record.cidr, named.record))
        .collect()
}

/// Waits for one turn.
async fn turn() {
    let mut waited = false;
    std::future::poll_fn(|_| {
        if std::mem::replace(&mut waited, true) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
}

fn lost() -> StoreError {
    StoreError::Unavailable {
        store: "simulated".into(),
        reason: "lost on the way".into(),
    }
}

impl SimStore {
    async fn call<T>(
        &self,
        act: impl FnOnce(&mut Inner) -> Result<T, StoreError> + Send,
    ) -> Result<T, StoreError> {
        turn().await;
        let mut inner = self.lock();
        match std::mem::take(&mut inner.fate) {
            Fate::Done => act(&mut inner),
            Fate::Lost => Err(lost()),
            Fate::Unheard => act(&mut inner).and(Err(lost())),
        }
    }
}

#[async_trait]
impl Store for SimStore {
    fn describe(&self) -> String {
        "simulated".into()
    }
    fn connectivity(&self) -> watch::Receiver<Connectivity> {
        watch::channel(Connectivity::Connected).1
    }
    async fn get(&self, kind: Kind, name: &str) -> Result<Option<Entry>, StoreError> {
        self.call(|s| Ok(s.get(kind, name).cloned())).await
    }
    async fn list(&self, _: Kind) -> Result<List, StoreError> {
        Err(lost())
    }
    async fn create(
        &self,
        kind: Kind,
        name: &str,
        value: &[u8],
        _: Option<&LeaseId>,
    ) -> Result<Version, StoreError> {
        self.call(|s| s.put(kind, name, value, None)).await
    }
    async fn update(
        &self,
        kind: Kind,
        name: &str,
        value: &[u8],
        expected: &Version,
        _: Option<&LeaseId>,
    ) -> Result<Version, StoreError> {
        self.call(|s| s.put(kind, name, value, Some(expected)))
            .await
    }
    async fn delete(&self, kind: Kind, name: &str, expected: &Version) -> Result<(), StoreError> {
        self.call(|s| s.delete(kind, name, Some(expected))).await
    }
    async fn watch(
        &self,
        _: Kind,
        _: Cursor,
    ) -> Result<BoxStream<'static, Result<Change, StoreError>>, StoreError> {
        Err(lost())
    }
    async fn grant_lease(&self, _: Duration) -> Result<LeaseId, StoreError> {
        Err(lost())
    }
    async fn keep_alive(&self, _: &LeaseId) -> Result<(), StoreError> {
        Err(lost())
    }
    async fn revoke_lease(&self, _: &LeaseId) -> Result<(), StoreError> {
        Err(lost())
    }
    async fn lease_remaining(&self, _: Kind, _: &str) -> Result<Option<Duration>, StoreError> {
        Err(lost())
    }
    async fn campaign(&self, _: &str, _: &str) -> Result<Leadership, StoreError> {
        Err(lost())
    }
}

/// What one follower has been told of one kind.
#[derive(Debug, Clone)]
pub struct Follower {
    kind: Kind,
    at: usize,
    /// `None`: it lists anew.
    epoch: Option<u64>,
}

impl Follower {
    /// A follower that lists first.
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            at: 0,
            epoch: None,
        }
    }

    /// The connection is lost: it lists anew.
    pub fn cut(&mut self) {
        self.epoch = None;
    }

    /// Whether it has been told everything.
    pub fn is_current(&self, store: &Inner) -> bool {
        self.epoch == Some(store.epoch) && self.at == len(store, self.kind)
    }

    /// The next thing that it is told.
    pub fn next(&mut self, store: &Inner) -> Option<Update> {
        if self.epoch != Some(store.epoch) {
            self.epoch = Some(store.epoch);
            self.at = len(store, self.kind);
            return Some(Update::Reset(store.list(self.kind)));
        }
        let update = store.history.get(&self.kind)?.get(self.at)?.clone();
        self.at += 1;
        Some(update)
    }
}

fn len(store: &Inner, kind: Kind) -> usize {
    store.history.get(&kind).map_or(0, Vec::len)
}
