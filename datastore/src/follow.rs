//! Following a kind for ever: list, watch, and list again when the store says so.
//!
//! Called by everybody who keeps a picture of the cluster. Every interruption is
//! answered by listing anew, which is right whatever happened meanwhile (history
//! compacted, store restored from a backup); what the follower knows already is
//! not told again. Must never give up, and never ends the process.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use tokio::sync::mpsc;
use viaduct_model::Kind;

use crate::backoff::Backoff;
use crate::store::{Change, Cursor, Entry, SharedStore, StoreError, Version};

/// What a follower is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Update {
    /// Here is everything; what is not in it is gone. First of all, and again
    /// when listing anew after an interruption showed a difference.
    Reset(Vec<Entry>),
    /// One record was created or updated.
    Put(Entry),
    /// One record is gone.
    Delete(String),
}

/// How many updates may wait for the follower before the watch itself waits.
const QUEUE: usize = 64;

/// A watch that lasted this long was a good one, and the next failure is the first.
const SETTLED: Duration = Duration::from_secs(5);

/// Follows a kind until the receiver is dropped. Never gives up: a lost
/// connection is retried with backoff and jitter, for ever.
pub fn follow(store: SharedStore, kind: Kind) -> mpsc::Receiver<Update> {
    let (told, receiver) = mpsc::channel(QUEUE);
    let follower = Follower {
        store,
        kind,
        told,
        known: None,
    };
    tokio::spawn(follower.run());
    receiver
}

/// The receiver is dropped: nobody listens any more.
struct Dropped;

struct Follower {
    store: SharedStore,
    kind: Kind,
    told: mpsc::Sender<Update>,
    /// The versions that the follower was told of; `None` before the first list.
    known: Option<HashMap<String, Version>>,
}

impl Follower {
    async fn run(mut self) {
        let mut backoff = Backoff::default();
        loop {
            let told = self.told.clone();
            let begun = Instant::now();
            let outcome = tokio::select! {
                () = told.closed() => return,
                outcome = self.once() => outcome,
            };
            match outcome {
                Err(Dropped) => return,
                Ok(why) => {
                    tracing::debug!(kind = %self.kind, %why, "listing anew");
                }
            }
            if begun.elapsed() >= SETTLED {
                backoff.reset();
            }
            tokio::select! {
                () = told.closed() => return,
                () = tokio::time::sleep(backoff.next()) => {}
            }
        }
    }

    /// Lists and watches until something fails; says what did.
    async fn once(&mut self) -> Result<StoreError, Dropped> {
        let list = match self.store.list(self.kind).await {
            Ok(list) => list,
            Err(e) => return Ok(e),
        };
        self.reset(list.entries).await?;
        self.watch(list.cursor).await
    }

    async fn reset(&mut self, entries: Vec<Entry>) -> Result<(), Dropped> {
        let versions: HashMap<_, _> = entries
            .iter()
            .map(|e| (e.name.clone(), e.version.clone()))
            .collect();
        if self.known.as_ref() == Some(&versions) {
            return Ok(());
        }
        self.known = Some(versions);
        self.tell(Update::Reset(entries)).await
    }

    async fn watch(&mut self, cursor: Cursor) -> Result<StoreError, Dropped> {
        let mut changes = match self.store.watch(self.kind, cursor).await {
            Ok(changes) => changes,
            Err(e) => return Ok(e),
        };
        while let Some(change) = changes.next().await {
            match change {
                Ok(change) => self.change(change).await?,
                Err(e) => return Ok(e),
            }
        }
        Ok(StoreError::Unavailable {
            store: self.store.describe(),
            reason: "the watch ended".into(),
        })
    }

    async fn change(&mut self, change: Change) -> Result<(), Dropped> {
        let known = self.known.get_or_insert_default();
        let update = match change {
            Change::Put(entry) => {
                known.insert(entry.name.clone(), entry.version.clone());
                Update::Put(entry)
            }
            Change::Delete { name } => {
                // A store may tell of a record that came and went unseen.
                if known.remove(&name).is_none() {
                    return Ok(());
                }
                Update::Delete(name)
            }
        };
        self.tell(update).await
    }

    async fn tell(&self, update: Update) -> Result<(), Dropped> {
        self.told.send(update).await.map_err(|_| Dropped)
    }
}
