//! The cluster as the controller sees it: all four kinds, with versions.
//!
//! Owned by the control loop. Fed by what the datastore's watches tell and by the
//! outcome of our own writes, which it must know at once: the watch tells of them
//! later, and of older changes of the same record before that. So for a record
//! that we wrote ourselves the view waits until the watch has caught up with that
//! write and passes over everything older.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use viaduct_datastore::store::Entry;
use viaduct_datastore::{Update, Version, records};
use viaduct_model::{Block, Cidr, Claim, Kind, Node, NodeName, Pool, PoolName, Record};

/// A record that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// What is wrong, as a sentence.
    pub reason: String,
}

/// A record and the version that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Versioned<T> {
    /// The version.
    pub version: Version,
    /// The record.
    pub record: T,
}

/// How long the watch may take to catch up with a write of our own before the
/// record is read anew.
pub const CATCH_UP: Duration = Duration::from_secs(5);

/// How long the cluster's word is good that a node stands whose records are gone.
pub const STANDING: Duration = Duration::from_secs(15);

/// What the watch has still to tell of one record.
#[derive(Debug, Clone)]
struct Expected {
    /// The version that we know of; `None`: deleted.
    version: Option<Version>,
    /// By when it ought to have been told.
    until: Duration,
}

/// All records at one moment.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// Pools by name.
    pub pools: BTreeMap<PoolName, Versioned<Pool>>,
    /// Blocks by CIDR.
    pub blocks: BTreeMap<Cidr, Versioned<Block>>,
    /// Nodes by name.
    pub nodes: BTreeMap<NodeName, Versioned<Node>>,
    /// Claims by node.
    pub claims: BTreeMap<NodeName, Versioned<Claim>>,
    /// What could not be read, by kind and name.
    pub unreadable: BTreeMap<(Kind, String), Unreadable>,
    /// How often the blocks were told anew as a whole list.
    pub block_lists: u64,
    /// Nodes of which the cluster itself said that they stand, and until when that is
    /// believed without asking again.
    standing: BTreeMap<NodeName, Duration>,
    listed: BTreeSet<Kind>,
    expected: BTreeMap<(Kind, String), Expected>,
}

impl View {
    /// Takes in what the watch of `kind` tells. `now` is the controller's clock.
    pub fn update(&mut self, kind: Kind, update: Update, now: Duration) {
        match update {
            Update::Reset(entries) => self.reset(kind, entries, now),
            Update::Put(entry) => self.told(kind, entry.name.clone(), Some(entry)),
            Update::Delete(name) => self.told(kind, name, None),
        }
    }

    /// Takes in what a write or read of our own has shown: the record as it is, or
    /// that there is none. The watch tells of it later.
    pub fn learn(&mut self, kind: Kind, name: &str, entry: Option<Entry>, now: Duration) {
        self.expected.insert(
            (kind, name.to_owned()),
            Expected {
                version: entry.as_ref().map(|e| e.version.clone()),
                until: now + CATCH_UP,
            },
        );
        self.replace(kind, name, entry);
    }

    /// Records that the watch did not catch up with in time; the caller reads them
    /// and hands the answer to [`View::settle`].
    pub fn overdue(&self, now: Duration) -> Vec<(Kind, String)> {
        self.expected
            .iter()
            .filter(|(_, expected)| expected.until <= now)
            .map(|(key, _)| key.clone())
            .collect()
    }

    /// When the next record is overdue.
    pub fn overdue_at(&self) -> Option<Duration> {
        self.expected.values().map(|expected| expected.until).min()
    }

    /// Takes in the record as it was just read, and trusts the watch again.
    pub fn settle(&mut self, kind: Kind, name: &str, entry: Option<Entry>) {
        self.expected.remove(&(kind, name.to_owned()));
        self.replace(kind, name, entry);
    }

    /// Whether every kind has been listed: before, nothing may be decided.
    pub fn is_complete(&self) -> bool {
        self.missing().is_empty()
    }

    /// The kinds that were not listed yet.
    pub fn missing(&self) -> Vec<Kind> {
        Kind::ALL
            .into_iter()
            .filter(|kind| !self.listed.contains(kind))
            .collect()
    }

    /// Whether an agent runs for `node`, as far as can be told: a claim that
    /// cannot be read is still a claim.
    pub fn is_alive(&self, node: &NodeName) -> bool {
        self.claims.contains_key(node) || self.is_unreadable(Kind::Claim, node.as_str())
    }

    /// Whether `node` is registered, readably or not.
    pub fn is_registered(&self, node: &NodeName) -> bool {
        self.nodes.contains_key(node) || self.is_unreadable(Kind::Node, node.as_str())
    }

    /// Takes in that the cluster itself says that `node` stands.
    pub fn stands(&mut self, node: &NodeName, now: Duration) {
        self.standing.retain(|_, until| *until > now);
        self.standing.insert(node.clone(), now + STANDING);
    }

    /// Until when `node` is believed to stand though its records are gone.
    pub fn stands_until(&self, node: &NodeName) -> Option<Duration> {
        self.standing.get(node).copied()
    }

    /// Blocks that are taken though their records cannot be read: their names say
    /// which they are.
    pub fn unreadable_blocks(&self) -> impl Iterator<Item = Cidr> + '_ {
        self.unreadable
            .keys()
            .filter(|(kind, _)| *kind == Kind::Block)
            .filter_map(|(_, name)| Cidr::from_record_name(name))
    }

    fn is_unreadable(&self, kind: Kind, name: &str) -> bool {
        self.unreadable.contains_key(&(kind, name.to_owned()))
    }

    fn reset(&mut self, kind: Kind, entries: Vec<Entry>, now: Duration) {
        self.listed.insert(kind);
        self.block_lists += u64::from(kind == Kind::Block);
        let fresh: BTreeSet<&str> = entries.iter().map(|e| e.name.as_str()).collect();
        let gone: Vec<String> = self
            .names(kind)
            .into_iter()
            .filter(|name| !fresh.contains(name.as_str()))
            .collect();
        for name in gone {
            self.told(kind, name, None);
        }
        for entry in entries {
            self.told(kind, entry.name.clone(), Some(entry));
        }
        // What a list did not confirm may never be told by the watch behind it.
        for ((of, _), expected) in &mut self.expected {
            if *of == kind {
                expected.until = expected.until.min(now + CATCH_UP / 5);
            }
        }
    }

    /// The watch says how a record stands; older news than ours is passed over.
    fn told(&mut self, kind: Kind, name: String, entry: Option<Entry>) {
        let key = (kind, name);
        if let Some(expected) = self.expected.get(&key) {
            if expected.version.as_ref() != entry.as_ref().map(|e| &e.version) {
                return;
            }
            self.expected.remove(&key);
        }
        self.replace(kind, &key.1, entry);
    }

    fn names(&self, kind: Kind) -> Vec<String> {
        let mut names: Vec<String> = self
            .unreadable
            .keys()
            .filter(|(of, _)| *of == kind)
            .map(|(_, name)| name.clone())
            .collect();
        match kind {
            Kind::Pool => names.extend(self.pools.keys().map(ToString::to_string)),
            Kind::Block => names.extend(self.blocks.keys().map(Cidr::record_name)),
            Kind::Node => names.extend(self.nodes.keys().map(ToString::to_string)),
            Kind::Claim => names.extend(self.claims.keys().map(ToString::to_string)),
        }
        names
    }

    fn replace(&mut self, kind: Kind, name: &str, entry: Option<Entry>) {
        let outcome = match kind {
            Kind::Pool => put(&mut self.pools, name.parse().ok(), entry),
            Kind::Block => put(&mut self.blocks, Cidr::from_record_name(name), entry),
            Kind::Node => put(&mut self.nodes, name.parse().ok(), entry),
            Kind::Claim => put(&mut self.claims, name.parse().ok(), entry),
        };
        let key = (kind, name.to_owned());
        match outcome {
            Ok(()) => drop(self.unreadable.remove(&key)),
            Err(unreadable) => drop(self.unreadable.insert(key, unreadable)),
        }
    }
}

/// Replaces what stands under `key`, which is `None` when the name itself is bad.
fn put<K: Ord, T: Record>(
    map: &mut BTreeMap<K, Versioned<T>>,
    key: Option<K>,
    entry: Option<Entry>,
) -> Result<(), Unreadable> {
    if let Some(key) = &key {
        map.remove(key);
    }
    let Some(entry) = entry else {
        return Ok(());
    };
    match (records::decode::<T>(&entry), key) {
        (Ok(named), Some(key)) => {
            let (version, record) = (named.version, named.record);
            map.insert(key, Versioned { version, record });
            Ok(())
        }
        (Ok(_), None) => Err(Unreadable {
            reason: format!("{} {:?} has a name that is not one", T::KIND, entry.name),
        }),
        (Err(invalid), _) => Err(Unreadable {
            reason: invalid.to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(100);

    fn entry(name: &str, version: &str, node: &str) -> Entry {
        let cidr = Cidr::from_record_name(name).unwrap();
        let block = Block::new(cidr, "p".parse().unwrap(), node.parse().unwrap(), 1);
        Entry {
            name: name.into(),
            value: records::encode(name, &block).unwrap(),
            version: Version(version.into()),
        }
    }

    fn owner(view: &View) -> Option<&str> {
        let block = view.blocks.get(&"10.0.0.0/26".parse().unwrap())?;
        Some(block.record.node.as_str())
    }

    const B: &str = "10.0.0.0-26";

    #[test]
    fn older_news_than_our_own_write_is_passed_over() {
        let mut view = View::default();
        view.learn(Kind::Block, B, Some(entry(B, "7", "ours")), NOW);
        view.update(Kind::Block, Update::Put(entry(B, "5", "older")), NOW);
        view.update(Kind::Block, Update::Delete(B.into()), NOW);
        assert_eq!(owner(&view), Some("ours"));
        view.update(Kind::Block, Update::Put(entry(B, "7", "ours")), NOW);
        view.update(Kind::Block, Update::Delete(B.into()), NOW);
        assert_eq!(owner(&view), None);
        assert!(view.overdue(NOW + CATCH_UP).is_empty());
    }

    #[test]
    fn a_write_that_the_watch_never_tells_is_read_anew() {
        let mut view = View::default();
        view.learn(Kind::Block, B, Some(entry(B, "7", "ours")), NOW);
        assert!(view.overdue(NOW).is_empty());
        let overdue = view.overdue(NOW + CATCH_UP);
        assert_eq!(overdue, [(Kind::Block, B.to_owned())]);
        view.settle(Kind::Block, B, None);
        assert_eq!((owner(&view), view.overdue_at()), (None, None));
    }

    #[test]
    fn a_list_older_than_our_write_does_not_undo_it() {
        let mut view = View::default();
        view.learn(Kind::Block, B, Some(entry(B, "7", "ours")), NOW);
        view.update(Kind::Block, Update::Reset(vec![]), NOW);
        assert_eq!(owner(&view), Some("ours"));
        view.settle(Kind::Block, B, Some(entry(B, "7", "ours")));
        view.update(Kind::Block, Update::Reset(vec![]), NOW);
        assert_eq!(owner(&view), None);
    }

    #[test]
    fn what_cannot_be_read_is_kept_apart_and_recovers() {
        let mut view = View::default();
        let broken = |name: &str| Entry {
            name: name.into(),
            value: b"not JSON".to_vec(),
            version: Version("1".into()),
        };
        view.update(Kind::Block, Update::Put(broken(B)), NOW);
        view.update(Kind::Block, Update::Put(broken("odd")), NOW);
        view.update(Kind::Claim, Update::Put(broken("n")), NOW);
        assert_eq!(
            view.unreadable_blocks().collect::<Vec<_>>(),
            ["10.0.0.0/26".parse().unwrap()]
        );
        assert!(view.is_alive(&"n".parse().unwrap()));
        assert_eq!(view.unreadable.len(), 3);
        view.update(Kind::Block, Update::Put(entry(B, "2", "n")), NOW);
        assert_eq!((owner(&view), view.unreadable.len()), (Some("n"), 2));
        view.update(Kind::Block, Update::Reset(vec![]), NOW);
        view.update(Kind::Claim, Update::Delete("n".into()), NOW);
        assert!(view.unreadable.is_empty() && view.blocks.is_empty());
        assert_eq!(view.missing(), [Kind::Pool, Kind::Node, Kind::Claim]);
    }
}
