//! The embedded store: one sqlite file, any number of processes of one machine.
//!
//! `engine` does the work on a thread of its own, `wake` tells the watchers
//! of other processes, `election` locks a file. See `docs/adr/0010` to `0012`.

mod clock;
mod election;
mod engine;
mod files;
mod rows;
mod schema;
mod wake;
mod worker;

use std::collections::VecDeque;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::{self, BoxStream, StreamExt};
use tokio::sync::watch;
use viaduct_model::{Invalid, Kind};

use crate::connectivity::Monitor;
use crate::store::{
    Change, Connectivity, Cursor, Entry, Leadership, LeaseId, List, Store, StoreError, Version,
};
use engine::Engine;
use rows::Position;
use worker::Worker;

/// How often watchers look without having been woken: covers a writer killed
/// between its commit and the wake-up call, and leases that run out.
const POLL_EVERY: Duration = Duration::from_secs(1);

/// A sqlite store.
pub struct SqliteStore {
    path: PathBuf,
    shared: Arc<Shared>,
    watcher: OnceLock<()>,
}

struct Shared {
    url: String,
    worker: Worker,
    monitor: Monitor,
    /// Where the history stood when last looked at.
    position: watch::Sender<Position>,
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SqliteStore")
            .field(&self.shared.url)
            .finish()
    }
}

impl SqliteStore {
    /// A store at `path`. The file need not exist, nor its directory yet.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn new(path: PathBuf) -> Result<Self, StoreError> {
        let url = format!("sqlite:{}", path.display());
        let worker =
            Worker::start(url.clone(), path.clone()).map_err(|e| StoreError::Unavailable {
                store: url.clone(),
                reason: format!("no thread for it: {e}"),
            })?;
        Ok(Self {
            path,
            shared: Arc::new(Shared {
                worker,
                monitor: Monitor::new(url.clone()),
                position: watch::Sender::new(Position::default()),
                url,
            }),
            watcher: OnceLock::new(),
        })
    }

    async fn run<T: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Engine) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.shared.run(f).await
    }
}

impl Shared {
    async fn run<T: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Engine) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.monitor.saw(self.worker.run(f).await)
    }

    /// Looks where the history stands, and wakes this process's watches.
    async fn poll(&self) {
        if let Ok(position) = self.run(Engine::poll).await {
            self.stands_at(position);
        }
    }

    fn stands_at(&self, position: Position) {
        self.position.send_if_modified(|known| {
            let moved = *known != position;
            *known = position;
            moved
        });
    }
}

/// Looks for changes by other processes as long as the store is in use.
async fn look_out(shared: Weak<Shared>, path: PathBuf) {
    let mut tick = tokio::time::interval(POLL_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut waker = None;
    let mut said = false;
    loop {
        if waker.is_none() {
            waker = match wake::Waker::new(&path) {
                Ok(waker) => Some(waker),
                Err(e) => {
                    // A missing directory shows as the store being unavailable.
                    if e.kind() != std::io::ErrorKind::NotFound && !said {
                        said = true;
                        tracing::warn!(store = %path.display(), "changes are found by polling only: {e}");
                    }
                    None
                }
            };
        }
        let woken = async {
            match &mut waker {
                Some(waker) => waker.woken().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = tick.tick() => {}
            woken = woken => if woken.is_err() {
                waker = None;
            }
        }
        let Some(shared) = shared.upgrade() else {
            return;
        };
        shared.poll().await;
    }
}

/// A name that could leave its kind's part of the key space is refused.
pub(crate) fn check_name(kind: Kind, name: &str) -> Result<(), Invalid> {
    if name.is_empty() || name.contains('/') || name.contains('\0') || name.len() > 512 {
        return Err(Invalid::new(
            kind.to_string(),
            "name",
            name,
            "1 to 512 characters, none of them a slash",
        ));
    }
    Ok(())
}

fn prefix(kind: Kind) -> String {
    format!("/viaduct/v1/{}/", kind.plural())
}

fn key(kind: Kind, name: &str) -> Result<String, StoreError> {
    check_name(kind, name)?;
    Ok(prefix(kind) + name)
}

#[async_trait]
impl Store for SqliteStore {
    fn describe(&self) -> String {
        self.shared.url.clone()
    }

    fn connectivity(&self) -> watch::Receiver<Connectivity> {
        self.shared.monitor.subscribe()
    }

    async fn get(&self, kind: Kind, name: &str) -> Result<Option<Entry>, StoreError> {
        let (key, name) = (key(kind, name)?, name.to_owned());
        self.run(move |engine| engine.get(&key, &name)).await
    }

    async fn list(&self, kind: Kind) -> Result<List, StoreError> {
        let (entries, cursor) = self.run(move |engine| engine.list(&prefix(kind))).await?;
        Ok(List { entries, cursor })
    }

    async fn create(
        &self,
        kind: Kind,
        name: &str,
        value: &[u8],
        lease: Option<&LeaseId>,
    ) -> Result<Version, StoreError> {
        let key = key(kind, name)?;
        let (value, lease) = (value.to_vec(), lease.cloned());
        let exists = StoreError::AlreadyExists {
            kind,
            name: name.to_owned(),
        };
        self.run(move |engine| engine.create(&key, &value, lease.as_ref(), exists))
            .await
    }

    async fn update(
        &self,
        kind: Kind,
        name: &str,
        value: &[u8],
        expected: &Version,
        lease: Option<&LeaseId>,
    ) -> Result<Version, StoreError> {
        let key = key(kind, name)?;
        let (value, expected, lease) = (value.to_vec(), expected.clone(), lease.cloned());
        let conflict = StoreError::Conflict {
            kind,
            name: name.to_owned(),
        };
        self.run(move |engine| engine.update(&key, &value, &expected, lease.as_ref(), conflict))
            .await
    }

    async fn delete(&self, kind: Kind, name: &str, expected: &Version) -> Result<(), StoreError> {
        let key = key(kind, name)?;
        let expected = expected.clone();
        let conflict = StoreError::Conflict {
            kind,
            name: name.to_owned(),
        };
        self.run(move |engine| engine.delete(&key, &expected, conflict))
            .await
    }

    async fn watch(
        &self,
        kind: Kind,
        from: Cursor,
    ) -> Result<BoxStream<'static, Result<Change, StoreError>>, StoreError> {
        self.watcher.get_or_init(|| {
            tokio::spawn(look_out(Arc::downgrade(&self.shared), self.path.clone()));
        });
        // Subscribed before the first look, so that nothing falls between.
        let mut watch = Watch {
            position: self.shared.position.subscribe(),
            shared: self.shared.clone(),
            kind,
            cursor: from,
            ready: VecDeque::new(),
            ended: false,
        };
        watch.look().await?;
        Ok(stream::unfold(watch, |mut watch| async move {
            let next = watch.next().await?;
            Some((next, watch))
        })
        .boxed())
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.run(move |engine| engine.grant(ttl)).await
    }

    async fn keep_alive(&self, lease: &LeaseId) -> Result<(), StoreError> {
        let lease = lease.clone();
        self.run(move |engine| engine.keep_alive(&lease)).await
    }

    async fn revoke_lease(&self, lease: &LeaseId) -> Result<(), StoreError> {
        let lease = lease.clone();
        self.run(move |engine| engine.revoke(&lease)).await
    }

    async fn lease_remaining(
        &self,
        kind: Kind,
        name: &str,
    ) -> Result<Option<Duration>, StoreError> {
        let key = key(kind, name)?;
        self.run(move |engine| engine.remaining(&key)).await
    }

    async fn campaign(&self, election: &str, identity: &str) -> Result<Leadership, StoreError> {
        election::campaign(&self.shared.url, &self.path, election, identity).await
    }
}

/// One watch of one kind.
struct Watch {
    shared: Arc<Shared>,
    position: watch::Receiver<Position>,
    kind: Kind,
    cursor: Cursor,
    ready: VecDeque<Change>,
    ended: bool,
}

impl Watch {
    async fn next(&mut self) -> Option<Result<Change, StoreError>> {
        loop {
            if let Some(change) = self.ready.pop_front() {
                return Some(Ok(change));
            }
            if self.ended {
                return None;
            }
            // Never the last sender: `shared` holds it.
            let seen = &self.cursor;
            let _ = self.position.wait_for(|at| at.cursor() != *seen).await;
            if let Err(e) = self.look().await {
                self.ended = true;
                return Some(Err(e));
            }
        }
    }

    async fn look(&mut self) -> Result<(), StoreError> {
        let (kind, from) = (self.kind, self.cursor.clone());
        let batch = self
            .shared
            .run(move |engine| engine.changes(&prefix(kind), &from))
            .await?;
        self.ready.extend(batch.changes);
        self.cursor = batch.cursor;
        // Else an older position would have us look again at once.
        self.shared.stands_at(batch.newest);
        Ok(())
    }
}
