//! Keeps this node's Node record in the store as it should be: writes it when it
//! changes, and again when somebody deleted or damaged it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use viaduct_datastore::records::{decode, encode};
use viaduct_datastore::store::{SharedStore, StoreError};
use viaduct_model::{ClusterView, Kind, Node, NodeName};

use crate::view;

/// Runs until `wanted` has no sender any more. `wanted` makes the record from the
/// one that stands in the store, so that unknown fields survive.
pub async fn keep(
    store: SharedStore,
    name: NodeName,
    mut wanted: watch::Receiver<Option<Node>>,
    mut view: watch::Receiver<Option<Arc<ClusterView>>>,
) {
    let mut backoff = Backoff::default();
    loop {
        let record = wanted.borrow_and_update().clone();
        let standing = view
            .borrow_and_update()
            .as_ref()
            .and_then(|v| v.nodes.get(&name).cloned());
        // A view keeps the last content of a record that was damaged since.
        let in_sync = view.borrow().as_ref().is_some_and(|v| {
            !v.unreadable
                .contains_key(&view::label(Kind::Node, name.as_str()))
        });
        if let Some(record) = record.filter(|r| !in_sync || standing.as_deref() != Some(r)) {
            match ensure(&store, &name, &record).await {
                Ok(()) => backoff.reset(),
                Err(error) => {
                    let pause = backoff.next();
                    tracing::warn!(%error, retry_in = ?pause, "cannot write this node's record");
                    tokio::time::sleep(pause).await;
                    continue;
                }
            }
        }
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            changed = view.changed() => if changed.is_err() { return },
        }
    }
}

/// Makes the record stand in the store; writes nothing if it does. Fields that are unknown
/// here are those that stand there now: `record` may have been made before somebody added them.
async fn ensure(store: &SharedStore, name: &NodeName, record: &Node) -> Result<(), StoreError> {
    let name = name.as_str();
    let Some(entry) = store.get(Kind::Node, name).await? else {
        let value = encode(name, record)?;
        return store.create(Kind::Node, name, &value, None).await.map(drop);
    };
    let mut record = record.clone();
    // This agent is the record's only writer, so what cannot be read may go.
    if let Ok(standing) = decode::<Node>(&entry) {
        record.extra.clone_from(&standing.record.extra);
        if standing.record == record {
            return Ok(());
        }
    }
    let value = encode(name, &record)?;
    let update = store.update(Kind::Node, name, &value, &entry.version, None);
    update.await.map(drop)
}

/// Exponential backoff with full jitter, from 100 ms to 10 s.
#[derive(Debug, Default)]
struct Backoff {
    failures: u32,
}

impl Backoff {
    fn reset(&mut self) {
        self.failures = 0;
    }

    fn next(&mut self) -> Duration {
        let ceiling = (100_u64 << self.failures.min(7)).min(10_000);
        self.failures += 1;
        Duration::from_millis(rand::random_range(ceiling / 2..=ceiling))
    }
}
