//! The cluster's view, kept from what the datastore says. The index is pure; one
//! task follows the store and publishes.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;
use viaduct_datastore::records::decode;
use viaduct_datastore::store::{Entry, SharedStore};
use viaduct_datastore::{Update, follow};
use viaduct_model::{
    Block, Cidr, ClusterView, Invalid, Kind, Node, NodeName, Pool, PoolName, Record, block_faults,
};

/// The kinds that a view is made of.
const KINDS: [Kind; 3] = [Kind::Pool, Kind::Block, Kind::Node];

/// Builds a [`ClusterView`] from updates.
///
/// A record that turns unreadable keeps its last readable content: somebody's
/// typing error must not cut a peer off.
#[derive(Debug, Default)]
pub struct ViewIndex {
    view: Arc<ClusterView>,
    told: [bool; 3],
    /// Blocks that somebody's hand made wrongly, kept out of the view.
    refused: BTreeMap<Cidr, Arc<Block>>,
    /// Whether pools or blocks have changed since they were looked over.
    unscreened: bool,
}

impl ViewIndex {
    /// Applies what a follower of `kind` was told. Returns what could not be read.
    pub fn apply(&mut self, kind: Kind, update: Update) -> Vec<Invalid> {
        self.unscreened |= kind != Kind::Node;
        if kind == Kind::Block {
            self.forget_refused(&update);
        }
        let view = Arc::make_mut(&mut self.view);
        let mut refused = Vec::new();
        match update {
            Update::Reset(entries) => {
                // Start from nothing but what the new list names: the rest is gone.
                retain_named(view, kind, &entries);
                for entry in &entries {
                    refused.extend(put(view, kind, entry));
                }
                if let Some(at) = KINDS.iter().position(|k| *k == kind) {
                    self.told[at] = true;
                }
            }
            Update::Put(entry) => refused.extend(put(view, kind, &entry)),
            Update::Delete(name) => {
                view.unreadable.remove(&label(kind, &name));
                remove(view, kind, &name);
            }
        }
        refused
    }

    /// Blocks that are told of anew are judged anew.
    fn forget_refused(&mut self, update: &Update) {
        match update {
            Update::Reset(_) => self.refused.clear(),
            Update::Put(Entry { name, .. }) | Update::Delete(name) => {
                if let Some(cidr) = Cidr::from_record_name(name) {
                    self.refused.remove(&cidr);
                }
            }
        }
    }

    /// Takes blocks out that somebody's hand made wrongly, and puts back those that are no
    /// longer wrong; to be called before the view is published. Returns what was found
    /// that was not before.
    pub fn screen(&mut self) -> Vec<Invalid> {
        if !self.unscreened {
            return Vec::new();
        }
        self.unscreened = false;
        let all = self.view.blocks.iter().chain(&self.refused);
        let all: BTreeMap<&Cidr, &Block> = all.map(|(cidr, block)| (cidr, &**block)).collect();
        let pools = &self.view.pools;
        let faults = block_faults(all.into_values(), |name| pools.get(name));
        if faults.keys().eq(self.refused.keys()) {
            return Vec::new();
        }
        let view = Arc::make_mut(&mut self.view);
        let before = std::mem::take(&mut self.refused);
        let mut told = Vec::new();
        for (cidr, block) in &before {
            if !faults.contains_key(cidr) {
                view.unreadable.remove(&block_label(cidr));
                view.blocks.insert(*cidr, block.clone());
            }
        }
        for (cidr, fault) in faults {
            let known = before.get(&cidr).cloned();
            let Some(block) = view.blocks.remove(&cidr).or_else(|| known.clone()) else {
                continue;
            };
            let refusal = fault.refusal(&block);
            // While it is there, nothing of its node's is swept either.
            view.unreadable
                .insert(block_label(&cidr), refusal.to_string());
            if known.is_none() {
                told.push(refusal);
            }
            self.refused.insert(cidr, block);
        }
        told
    }

    /// The view, once every kind has been told whole.
    pub fn complete(&self) -> Option<Arc<ClusterView>> {
        self.told.iter().all(|t| *t).then(|| self.view.clone())
    }
}

pub(crate) fn label(kind: Kind, name: &str) -> String {
    format!("{}/{name}", kind.plural())
}

fn block_label(cidr: &Cidr) -> String {
    label(Kind::Block, &cidr.record_name())
}

fn retain_named(view: &mut ClusterView, kind: Kind, entries: &[Entry]) {
    let named: std::collections::BTreeSet<&str> = entries.iter().map(|e| e.name.as_str()).collect();
    match kind {
        Kind::Pool => view.pools.retain(|n, _| named.contains(n.as_str())),
        Kind::Block => view
            .blocks
            .retain(|c, _| named.contains(c.record_name().as_str())),
        Kind::Node => view.nodes.retain(|n, _| named.contains(n.as_str())),
        Kind::Claim => {}
    }
    let prefix = label(kind, "");
    view.unreadable.retain(|l, _| {
        l.strip_prefix(&prefix)
            .is_none_or(|name| named.contains(name))
    });
}

fn put(view: &mut ClusterView, kind: Kind, entry: &Entry) -> Option<Invalid> {
    let unreadable = &mut view.unreadable;
    match kind {
        Kind::Pool => {
            insert::<PoolName, Pool, _>(&mut view.pools, unreadable, entry, |n| n.parse().ok())
        }
        Kind::Block => {
            insert::<Cidr, Block, _>(&mut view.blocks, unreadable, entry, Cidr::from_record_name)
        }
        Kind::Node => {
            insert::<NodeName, Node, _>(&mut view.nodes, unreadable, entry, |n| n.parse().ok())
        }
        Kind::Claim => None,
    }
}

fn insert<K: Ord, T: Record, V: From<T>>(
    records: &mut BTreeMap<K, V>,
    unreadable: &mut BTreeMap<String, String>,
    entry: &Entry,
    key: impl Fn(&str) -> Option<K>,
) -> Option<Invalid> {
    let label = label(T::KIND, &entry.name);
    // `decode` validates the name, so that the key is there whenever it succeeds.
    match (decode::<T>(entry), key(&entry.name)) {
        (Ok(named), Some(key)) => {
            unreadable.remove(&label);
            records.insert(key, named.record.into());
            None
        }
        (Err(invalid), _) => {
            unreadable.insert(label, invalid.to_string());
            Some(invalid)
        }
        (Ok(_), None) => None,
    }
}

fn remove(view: &mut ClusterView, kind: Kind, name: &str) {
    match kind {
        Kind::Pool => drop(
            name.parse()
                .ok()
                .and_then(|n: PoolName| view.pools.remove(&n)),
        ),
        Kind::Block => drop(Cidr::from_record_name(name).and_then(|c| view.blocks.remove(&c))),
        Kind::Node => drop(
            name.parse()
                .ok()
                .and_then(|n: NodeName| view.nodes.remove(&n)),
        ),
        Kind::Claim => {}
    }
}

/// Follows the store for ever and publishes each new view; `None` until the
/// datastore has said "here is everything".
pub fn publish(store: SharedStore) -> watch::Receiver<Option<Arc<ClusterView>>> {
    let (sender, receiver) = watch::channel(None);
    tokio::spawn(async move {
        let [mut pools, mut blocks, mut nodes] = KINDS.map(|kind| follow(store.clone(), kind));
        let mut index = ViewIndex::default();
        loop {
            let (kind, update) = tokio::select! {
                Some(update) = pools.recv() => (Kind::Pool, update),
                Some(update) = blocks.recv() => (Kind::Block, update),
                Some(update) = nodes.recv() => (Kind::Node, update),
                () = sender.closed() => return,
                else => return,
            };
            report(index.apply(kind, update));
            // Take what else has arrived, so that a burst is one new view.
            for (kind, channel) in KINDS.into_iter().zip([&mut pools, &mut blocks, &mut nodes]) {
                while let Ok(update) = channel.try_recv() {
                    report(index.apply(kind, update));
                }
            }
            report_wrong(index.screen());
            let view = index.complete();
            sender.send_if_modified(|published| {
                let changed = *published != view;
                *published = view;
                changed
            });
        }
    });
    receiver
}

fn report(refused: Vec<Invalid>) {
    for invalid in refused {
        tracing::warn!(%invalid, "a record in the datastore cannot be read; its last readable content stays in force");
    }
}

fn report_wrong(found: Vec<Invalid>) {
    for invalid in found {
        tracing::warn!("{invalid}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use viaduct_datastore::Version;

    fn entry(name: &str, value: &str) -> Entry {
        Entry {
            name: name.to_owned(),
            value: value.as_bytes().to_vec(),
            version: Version("1".to_owned()),
        }
    }

    const POOL: &str = r#"{"cidr":"10.64.0.0/16"}"#;

    fn complete() -> ViewIndex {
        let mut index = ViewIndex::default();
        for kind in KINDS {
            index.apply(kind, Update::Reset(Vec::new()));
        }
        index
    }

    #[test]
    fn nothing_is_published_before_every_kind_was_told() {
        let mut index = ViewIndex::default();
        index.apply(Kind::Pool, Update::Reset(vec![entry("default", POOL)]));
        index.apply(Kind::Block, Update::Reset(Vec::new()));
        assert!(index.complete().is_none());
        index.apply(Kind::Node, Update::Reset(Vec::new()));
        assert_eq!(index.complete().unwrap().pools.len(), 1);
    }

    #[test]
    fn a_record_that_cannot_be_read_is_reported_and_all_others_work() {
        let mut index = complete();
        let refused = index.apply(
            Kind::Pool,
            Update::Reset(vec![
                entry("bad", "{"),
                entry("default", POOL),
                entry("odd", r#"{"cidr":7}"#),
            ]),
        );
        assert_eq!(refused.len(), 2);
        let view = index.complete().unwrap();
        assert_eq!(view.pools.len(), 1);
        assert!(
            view.unreadable.contains_key("pools/bad") && view.unreadable.contains_key("pools/odd")
        );
    }

    #[test]
    fn a_record_that_turns_unreadable_keeps_its_last_content() {
        let mut index = complete();
        index.apply(Kind::Pool, Update::Put(entry("default", POOL)));
        index.apply(Kind::Pool, Update::Put(entry("default", "garbage")));
        let view = index.complete().unwrap();
        assert_eq!((view.pools.len(), view.unreadable.len()), (1, 1));
        // Also over a new list, and readable again clears the report.
        index.apply(Kind::Pool, Update::Reset(vec![entry("default", "garbage")]));
        assert_eq!(index.complete().unwrap().pools.len(), 1);
        index.apply(Kind::Pool, Update::Put(entry("default", POOL)));
        assert!(index.complete().unwrap().unreadable.is_empty());
    }

    #[test]
    fn what_a_new_list_lacks_is_gone() {
        let mut index = complete();
        index.apply(Kind::Pool, Update::Put(entry("default", POOL)));
        index.apply(Kind::Pool, Update::Put(entry("bad", "{")));
        index.apply(Kind::Pool, Update::Reset(Vec::new()));
        let view = index.complete().unwrap();
        assert!(view.pools.is_empty() && view.unreadable.is_empty());
    }

    fn block(cidr: &str, node: &str) -> Entry {
        let cidr: Cidr = cidr.parse().unwrap();
        let text = format!(
            r#"{{"cidr":"{cidr}","pool":"default","node":"{node}","generation":1,"state":"active"}}"#
        );
        entry(&cidr.record_name(), &text)
    }

    #[test]
    fn blocks_by_hand_that_take_anothers_addresses_are_kept_out_until_they_are_right() {
        let mut index = complete();
        index.apply(Kind::Pool, Update::Put(entry("default", POOL)));
        index.apply(Kind::Block, Update::Put(block("10.64.0.0/26", "a")));
        assert!(index.screen().is_empty());
        for wrong in ["10.64.0.0/28", "192.0.2.0/26"] {
            index.apply(Kind::Block, Update::Put(block(wrong, "b")));
            let told = index.screen();
            assert_eq!((told.len(), told[0].value.as_str()), (1, wrong));
        }
        let view = index.complete().unwrap();
        assert_eq!((view.blocks.len(), view.unreadable.len()), (1, 2));
        // Told of again, also by a new list: no news.
        index.apply(Kind::Block, Update::Put(block("10.64.0.0/28", "b")));
        index.screen();
        assert_eq!(index.complete().unwrap().blocks.len(), 1);
        // The right one goes: the other is no longer over anything.
        index.apply(Kind::Block, Update::Delete("10.64.0.0-26".into()));
        assert!(index.screen().is_empty());
        let view = index.complete().unwrap();
        let left: Vec<String> = view.blocks.keys().map(ToString::to_string).collect();
        assert_eq!(left, ["10.64.0.0/28"]);
        index.apply(Kind::Block, Update::Reset(Vec::new()));
        index.screen();
        let view = index.complete().unwrap();
        assert!(view.blocks.is_empty() && view.unreadable.is_empty());
    }
}
