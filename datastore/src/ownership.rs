//! Holding a record where the cluster's own Node objects tell who is there.
//!
//! The counterpart of [`liveness`](crate::liveness) for stores without liveness leases.
//! The store itself takes the record only from the machine of its Node, so that a record
//! of another run on this machine may be taken over at once. Nothing is written while
//! nothing changes; the record is looked at once in a while, because a store that was
//! restored, or somebody's hand, may have taken it away.

use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};
use viaduct_model::Kind;

use crate::backoff::Backoff;
use crate::liveness::{HoldError, HoldState, Holding, SameOwner};
use crate::store::{SharedStore, StoreError, Version};

/// How seldom a record that stands is looked at, in the caller's ttl.
const LOOK_EVERY: u32 = 6;

/// Takes hold of a record and keeps it, as [`crate::hold`] says.
pub(crate) async fn hold(
    store: SharedStore,
    kind: Kind,
    name: &str,
    initial: Vec<u8>,
    same_owner: SameOwner,
    ttl: Duration,
) -> Result<Holding, HoldError> {
    let mut owner = Owner {
        store,
        kind,
        name: name.to_owned(),
        same_owner,
        ttl,
        on: None,
        proved: Instant::now(),
    };
    let mut backoff = Backoff::default();
    let mut told = String::new();
    loop {
        match owner.take(&initial).await {
            Ok(()) => break,
            Err(StoreError::Invalid(invalid)) => return Err(invalid.into()),
            Err(e) => {
                let why = e.to_string();
                if told != why {
                    tracing::warn!(%kind, name, "not held yet, trying on: {why}");
                    told = why;
                }
                tokio::time::sleep(backoff.next()).await;
            }
        }
    }
    let (content, new_content) = watch::channel(initial);
    let (tell, state) = watch::channel(HoldState::Held);
    let (release, released) = oneshot::channel();
    let task = tokio::spawn(owner.keep(new_content, tell, released));
    Ok(Holding {
        content,
        state,
        lag: ttl * (LOOK_EVERY + 1),
        release,
        task,
    })
}

struct Owner {
    store: SharedStore,
    kind: Kind,
    name: String,
    same_owner: SameOwner,
    ttl: Duration,
    /// The version that we wrote, and what we wrote then.
    on: Option<(Version, Vec<u8>)>,
    /// When the record was last seen to be ours: before the request was sent.
    proved: Instant,
}

impl Owner {
    /// Makes the record ours, whoever's it was.
    async fn take(&mut self, wanted: &[u8]) -> Result<(), StoreError> {
        let asked = Instant::now();
        let version = match self.store.get(self.kind, &self.name).await? {
            None => {
                let created = self.store.create(self.kind, &self.name, wanted, None);
                created.await?
            }
            Some(there) => {
                if !(self.same_owner)(&there.value) {
                    let by = String::from_utf8_lossy(&there.value);
                    tracing::info!(kind = %self.kind, name = %self.name, %by, "taking the record over from another run");
                }
                let updated =
                    self.store
                        .update(self.kind, &self.name, wanted, &there.version, None);
                updated.await?
            }
        };
        self.on = Some((version, wanted.to_vec()));
        self.proved = asked;
        Ok(())
    }

    /// Looks at the record and makes it say `wanted`. Answers with its content when it is
    /// somebody else's.
    async fn refresh(&mut self, wanted: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let asked = Instant::now();
        match self.store.get(self.kind, &self.name).await? {
            Some(there) if !(self.same_owner)(&there.value) => return Ok(Some(there.value)),
            Some(there)
                if self.on.as_ref().is_some_and(|(version, wrote)| {
                    *version == there.version && wrote == wanted
                }) =>
            {
                self.proved = asked;
            }
            _ => self.take(wanted).await?,
        }
        Ok(None)
    }

    /// Keeps the record until told to release it or the handle is dropped. Either way it
    /// stays: its Node does.
    async fn keep(
        mut self,
        mut content: watch::Receiver<Vec<u8>>,
        state: watch::Sender<HoldState>,
        mut released: oneshot::Receiver<()>,
    ) {
        let mut backoff = Backoff::default();
        let mut pause = self.look_again();
        loop {
            tokio::select! {
                _ = &mut released => return,
                changed = content.changed() => if changed.is_err() {
                    return;
                },
                () = tokio::time::sleep(pause) => {}
            }
            let wanted = content.borrow_and_update().clone();
            let outcome = tokio::select! {
                _ = &mut released => return,
                outcome = self.refresh(&wanted) => outcome,
            };
            match outcome {
                Ok(None) => {
                    backoff.reset();
                    pause = self.look_again();
                    self.publish(&state, HoldState::Held);
                }
                Ok(Some(by)) => {
                    pause = self.look_again();
                    self.publish(&state, HoldState::Taken { by });
                }
                Err(e) => {
                    pause = backoff.next();
                    self.doubt(&state, e.to_string());
                }
            }
        }
    }

    /// A thousand nodes do not look in step.
    fn look_again(&self) -> Duration {
        (self.ttl * LOOK_EVERY).mul_f64(rand::random_range(0.9..=1.0))
    }

    /// Something failed: says so if the record was not seen for long.
    fn doubt(&self, state: &watch::Sender<HoldState>, reason: String) {
        let since = self.proved + self.ttl * (LOOK_EVERY + 1);
        if since <= Instant::now() && !matches!(*state.borrow(), HoldState::Lost { .. }) {
            self.publish(state, HoldState::Lost { since, reason });
        }
    }

    fn publish(&self, state: &watch::Sender<HoldState>, new: HoldState) {
        crate::liveness::publish(self.kind, &self.name, state, new);
    }
}
