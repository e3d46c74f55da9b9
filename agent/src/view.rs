//! The cluster's view, kept from what the datastore says. The index is pure; one
//! task follows the store and publishes.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;
use viaduct_datastore::records::decode;
use viaduct_datastore::store::{Entry, SharedStore};
use viaduct_datastore::{Update, follow};
use viaduct_model::{
    Block, Cidr, ClusterView, Invalid, Kind, Node, NodeName, Pool, PoolName, Record,
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
}

impl ViewIndex {
    /// Applies what a follower of `kind` was told. Returns what could not be read.
    pub fn apply(&mut self, kind: Kind, update: Update) -> Vec<Invalid> {
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

    /// The view, once every kind has been told whole.
    pub fn complete(&self) -> Option<Arc<ClusterView>> {
        self.told.iter().all(|t| *t).then(|| self.view.clone())
    }
}

pub(crate) fn label(kind: Kind, name: &str) -> String {
    format!("{}/{name}", kind.plural())
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
            insert::<PoolName, Pool>(&mut view.pools, unreadable, entry, |n| n.parse().ok())
        }
        Kind::Block => {
            insert::<Cidr, Block>(&mut view.blocks, unreadable, entry, Cidr::from_record_name)
        }
        Kind::Node => {
            insert::<NodeName, Node>(&mut view.nodes, unreadable, entry, |n| n.parse().ok())
        }
        Kind::Claim => None,
    }
}

fn insert<K: Ord, T: Record>(
    records: &mut BTreeMap<K, T>,
    unreadable: &mut BTreeMap<String, String>,
    entry: &Entry,
    key: impl Fn(&str) -> Option<K>,
) -> Option<Invalid> {
    let label = label(T::KIND, &entry.name);
    // `decode` validates the name, so that the key is there whenever it succeeds.
    match (decode::<T>(entry), key(&entry.name)) {
        (Ok(named), Some(key)) => {
            unreadable.remove(&label);
            records.insert(key, named.record);
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
}
