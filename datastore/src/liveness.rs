//! Holding a record on a liveness lease: there as long as its owner is alive.
//!
//! The agent holds its claim this way. One task owns the lease and the record:
//! it keeps the lease alive, writes new content when there is any, comes back
//! when the lease was lost, and says at all times whether it holds. It must
//! never take a record away from somebody who is alive.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use viaduct_model::{Invalid, Kind};

use crate::backoff::Backoff;
use crate::ownership;
use crate::store::{LeaseId, Presence, SharedStore, StoreError, Version};

/// Whether the record is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HoldState {
    /// The record stands, on a lease that was kept alive within its time.
    Held,
    /// It may have lapsed: the lease could not be kept alive in time.
    Lost {
        /// Since when, by this process's clock.
        since: Instant,
        /// What was said last; one sentence.
        reason: String,
    },
    /// While we could not keep it alive, somebody else took the record.
    Taken {
        /// Its content.
        by: Vec<u8>,
    },
}

/// Why a record is not held.
#[derive(Debug, Clone, Error)]
pub enum HoldError {
    /// Somebody else holds it and is alive.
    #[error(
        "{kind} {name:?} is held by somebody else who is alive: {}",
        String::from_utf8_lossy(by)
    )]
    Held {
        /// Which record.
        kind: Kind,
        /// Its name.
        name: String,
        /// Its content, which says who that is.
        by: Vec<u8>,
    },
    /// Such a record cannot be.
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

/// A record that is being held. When dropped, nothing is kept alive any more and
/// the record goes when its lease runs out; [`Holding::release`] is quicker.
#[derive(Debug)]
pub struct Holding {
    /// What the record shall say; written when it differs from what stands.
    pub content: watch::Sender<Vec<u8>>,
    /// Whether it is held.
    pub state: watch::Receiver<HoldState>,
    /// How old the proof behind [`HoldState::Held`] may be.
    pub lag: Duration,
    pub(crate) release: oneshot::Sender<()>,
    pub(crate) task: JoinHandle<()>,
}

impl Holding {
    /// Gives the record up at once. Takes a few seconds at most, also when the
    /// store does not answer; then the record goes with its lease.
    pub async fn release(self) {
        let Self {
            release,
            task,
            content: _content,
            ..
        } = self;
        let _ = release.send(());
        // An error means that the task is gone, and nothing is held any more.
        let _ = task.await;
    }
}

/// Whether a record's content is ours, from whatever run of this process.
pub type SameOwner = Arc<dyn Fn(&[u8]) -> bool + Send + Sync>;

/// Takes hold of a record and keeps it. While the store does not answer it keeps
/// trying, for ever; dropping the future ends that.
///
/// A record that is ours already (`same_owner`; we were restarted) is taken over
/// at once, one whose owner's lease runs out when it does.
///
/// # Errors
/// [`HoldError::Held`] as soon as it is plain that another owner is alive: after
/// about a third of its ttl.
///
/// Where the cluster's own Node objects tell who is there ([`Presence::Nodes`]) the
/// record hangs on no lease: it stays when the process ends, and goes with its Node.
pub async fn hold(
    store: SharedStore,
    kind: Kind,
    name: &str,
    initial: Vec<u8>,
    same_owner: impl Fn(&[u8]) -> bool + Send + Sync + 'static,
    ttl: Duration,
) -> Result<Holding, HoldError> {
    if store.presence() == Presence::Nodes {
        return ownership::hold(store, kind, name, initial, Arc::new(same_owner), ttl).await;
    }
    let mut holder = Holder {
        store,
        kind,
        name: name.to_owned(),
        same_owner: Arc::new(same_owner),
        ttl,
        on: None,
        written: initial,
    };
    let mut backoff = Backoff::default();
    let mut rival = Rival::default();
    loop {
        let asked = Instant::now();
        match holder.take().await {
            Ok(Take::Ours) => break,
            Ok(Take::Foreign {
                value,
                version,
                left,
            }) => {
                if rival.is_alive(&version, left, asked) {
                    holder.end_lease().await;
                    return Err(HoldError::Held {
                        kind,
                        name: holder.name,
                        by: value,
                    });
                }
                backoff.reset();
                tokio::time::sleep(look_again(ttl)).await;
            }
            Err(StoreError::Invalid(invalid)) => return Err(invalid.into()),
            Err(e) => {
                tracing::debug!(%kind, name, "not held yet: {e}");
                tokio::time::sleep(backoff.next()).await;
            }
        }
    }
    let (content, new_content) = watch::channel(holder.written.clone());
    let (tell, state) = watch::channel(HoldState::Held);
    let (release, released) = oneshot::channel();
    let task = tokio::spawn(holder.keep(new_content, tell, released));
    Ok(Holding {
        content,
        state,
        lag: ttl,
        release,
        task,
    })
}

/// How often a record that is in the way is looked at.
fn look_again(ttl: Duration) -> Duration {
    (ttl / 20).clamp(Duration::from_millis(50), Duration::from_millis(500))
}

/// What is known of another owner.
#[derive(Debug, Default)]
struct Rival {
    first: Option<(Version, Duration, Instant)>,
}

impl Rival {
    /// Some stores count what is left of a lease in whole seconds, downwards.
    const ROUNDING: Duration = Duration::from_millis(1200);

    /// Judges from one more look: its record was rewritten, or more is left of
    /// its lease than can be if nobody renewed it.
    fn is_alive(&mut self, version: &Version, left: Duration, asked: Instant) -> bool {
        let (first, first_left, since) = self
            .first
            .get_or_insert_with(|| (version.clone(), left, Instant::now()));
        let elapsed = asked.saturating_duration_since(*since);
        first != version
            || left > *first_left
            // A slow answer must not look like a renewal, nor may a lease that has
            // run out and that the store has only not ended yet.
            || (!left.is_zero() && left + elapsed > *first_left + Self::ROUNDING)
    }
}

/// How an attempt to take the record ended.
enum Take {
    Ours,
    Foreign {
        value: Vec<u8>,
        version: Version,
        left: Duration,
    },
}

/// What we hold the record by.
#[derive(Debug, Clone)]
struct On {
    lease: LeaseId,
    version: Version,
    /// When the lease was last proved alive: before the request was sent.
    proved: Instant,
}

struct Holder {
    store: SharedStore,
    kind: Kind,
    name: String,
    same_owner: SameOwner,
    ttl: Duration,
    on: Option<On>,
    /// What the record says, or shall say when it is taken.
    written: Vec<u8>,
}

impl fmt::Debug for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Holder({} {:?})", self.kind, self.name)
    }
}

impl Holder {
    /// Tries to take the record, on a new lease.
    async fn take(&mut self) -> Result<Take, StoreError> {
        let there = self.store.get(self.kind, &self.name).await?;
        if let Some(entry) = &there
            && !(self.same_owner)(&entry.value)
        {
            let left = self.store.lease_remaining(self.kind, &self.name).await?;
            if let Some(left) = left {
                return Ok(Take::Foreign {
                    value: entry.value.clone(),
                    version: entry.version.clone(),
                    left,
                });
            }
            // Gone by now, or on no lease at all: written by hand, and so
            // replaced, if it is still what we saw.
        }
        let proved = Instant::now();
        let lease = self.store.grant_lease(self.ttl).await?;
        let outcome = match &there {
            None => {
                self.store
                    .create(self.kind, &self.name, &self.written, Some(&lease))
                    .await
            }
            Some(entry) => {
                self.store
                    .update(
                        self.kind,
                        &self.name,
                        &self.written,
                        &entry.version,
                        Some(&lease),
                    )
                    .await
            }
        };
        match outcome {
            Ok(version) => {
                self.on = Some(On {
                    lease,
                    version,
                    proved,
                });
                Ok(Take::Ours)
            }
            Err(e) => {
                // Not needed; if this fails it runs out by itself.
                let _ = self.store.revoke_lease(&lease).await;
                Err(e)
            }
        }
    }

    async fn end_lease(&mut self) {
        if let Some(on) = self.on.take()
            && let Err(e) = self.store.revoke_lease(&on.lease).await
        {
            tracing::debug!(kind = %self.kind, name = %self.name, "the lease will run out by itself: {e}");
        }
    }

    /// Keeps the record until told to release it or the handle is dropped.
    async fn keep(
        mut self,
        mut content: watch::Receiver<Vec<u8>>,
        state: watch::Sender<HoldState>,
        mut released: oneshot::Receiver<()>,
    ) {
        let mut backoff = Backoff::default();
        let mut pause = self.ttl / 3;
        loop {
            tokio::select! {
                release = &mut released => return self.finish(release.is_ok()).await,
                changed = content.changed() => if changed.is_err() {
                    return;
                },
                () = tokio::time::sleep(pause) => {}
            }
            let wanted = content.borrow_and_update().clone();
            // A store that hangs must not keep us from saying that it is over.
            let time_left = match &self.on {
                Some(on) if *state.borrow() == HoldState::Held => {
                    self.ttl.saturating_sub(on.proved.elapsed())
                }
                _ => Duration::MAX,
            };
            let outcome = tokio::select! {
                release = &mut released => return self.finish(release.is_ok()).await,
                outcome = tokio::time::timeout(time_left, self.refresh(wanted)) => outcome,
            };
            match outcome {
                Ok(Ok(None)) => {
                    backoff.reset();
                    pause = self.ttl / 3;
                    self.publish(&state, HoldState::Held);
                }
                Ok(Ok(Some(by))) => {
                    pause = self.ttl / 3;
                    self.publish(&state, HoldState::Taken { by });
                }
                Ok(Err(e)) => {
                    pause = backoff.next().min(self.ttl / 3);
                    self.doubt(&state, e.to_string());
                }
                Err(_) => {
                    pause = backoff.next();
                    self.doubt(&state, "the store does not answer".into());
                }
            }
        }
    }

    async fn finish(&mut self, release: bool) {
        if release {
            self.end_lease().await;
        }
    }

    /// Proves the lease alive and makes the record say `wanted`. Answers with
    /// the content of the record when somebody else holds it.
    async fn refresh(&mut self, wanted: Vec<u8>) -> Result<Option<Vec<u8>>, StoreError> {
        self.written = wanted;
        if let Some(on) = &mut self.on {
            let asked = Instant::now();
            match self.store.keep_alive(&on.lease).await {
                Ok(()) => {
                    on.proved = asked;
                    let lease = on.lease.clone();
                    return self.write(&lease).await;
                }
                Err(StoreError::LeaseExpired { .. }) => self.on = None,
                Err(e) => return Err(e),
            }
        }
        Ok(match self.take().await? {
            Take::Ours => None,
            Take::Foreign { value, .. } => Some(value),
        })
    }

    /// Makes the record say what it should, on a lease that is alive.
    async fn write(&mut self, lease: &LeaseId) -> Result<Option<Vec<u8>>, StoreError> {
        let there = self.store.get(self.kind, &self.name).await?;
        let version = match there {
            None => {
                // Deleted by accident, or so: its owner lives.
                self.store
                    .create(self.kind, &self.name, &self.written, Some(lease))
                    .await?
            }
            Some(entry) if !(self.same_owner)(&entry.value) => {
                self.end_lease().await;
                return Ok(Some(entry.value));
            }
            Some(entry) => {
                let as_left = self
                    .on
                    .as_ref()
                    .is_some_and(|on| on.version == entry.version);
                if as_left && entry.value == self.written {
                    return Ok(None);
                }
                self.store
                    .update(
                        self.kind,
                        &self.name,
                        &self.written,
                        &entry.version,
                        Some(lease),
                    )
                    .await?
            }
        };
        if let Some(on) = &mut self.on {
            on.version = version;
        }
        Ok(None)
    }

    /// Something failed: says so if the lease may have run out by now.
    fn doubt(&self, state: &watch::Sender<HoldState>, reason: String) {
        let since = match &self.on {
            Some(on) if on.proved.elapsed() < self.ttl => return,
            Some(on) => on.proved + self.ttl,
            None => Instant::now(),
        };
        if !matches!(*state.borrow(), HoldState::Lost { .. }) {
            self.publish(state, HoldState::Lost { since, reason });
        }
    }

    fn publish(&self, state: &watch::Sender<HoldState>, new: HoldState) {
        publish(self.kind, &self.name, state, new);
    }
}

/// Publishes a state that is another than before, and logs it.
pub(crate) fn publish(kind: Kind, name: &str, state: &watch::Sender<HoldState>, new: HoldState) {
    if *state.borrow() == new {
        return;
    }
    match &new {
        HoldState::Held => tracing::info!(%kind, name, "the record is held again"),
        HoldState::Lost { reason, .. } => {
            tracing::warn!(%kind, name, reason, "the record may have lapsed");
        }
        HoldState::Taken { by } => {
            let by = String::from_utf8_lossy(by);
            tracing::error!(%kind, name, %by, "the record was taken by somebody else");
        }
    }
    state.send_replace(new);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks at a lease once, and again `later` with `left` on it.
    fn alive(first: u64, later: u64, left: u64) -> bool {
        let version = Version("1".to_owned());
        let mut rival = Rival::default();
        let now = Instant::now();
        assert!(!rival.is_alive(&version, Duration::from_secs(first), now));
        let then = now + Duration::from_secs(later);
        rival.is_alive(&version, Duration::from_secs(left), then)
    }

    #[test]
    fn a_lease_that_counts_down_is_nobodys() {
        assert!(!alive(9, 3, 6));
        assert!(!alive(9, 3, 7), "whole seconds are rounded");
    }

    #[test]
    fn a_renewed_lease_is_somebodys() {
        assert!(alive(9, 3, 9));
        assert!(alive(6, 1, 9));
    }

    #[test]
    fn a_lease_that_ran_out_is_nobodys_however_late_the_store_ends_it() {
        assert!(!alive(2, 5, 0));
    }
}
