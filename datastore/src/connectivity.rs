//! Whether a store answers, as its calls and watches find: published through a
//! watch channel and logged once per change, not once per attempt.
//!
//! Owned by each store; must never decide anything by itself.

use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;

use crate::store::{Connectivity, StoreError};

/// Publishes what the last call or watch of one store found.
#[derive(Debug)]
pub(crate) struct Monitor {
    store: String,
    state: watch::Sender<Connectivity>,
    /// What was last refused, as it was logged. Locked for the time of a comparison only.
    refused: Mutex<Option<String>>,
}

impl Monitor {
    /// Nothing was tried yet on the store of this name.
    pub(crate) fn new(store: String) -> Self {
        Self {
            store,
            state: watch::Sender::new(Connectivity::Unknown),
            refused: Mutex::default(),
        }
    }

    /// The published state.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Connectivity> {
        self.state.subscribe()
    }

    /// Notes the outcome of a call and hands it on. An answer that we do not
    /// like (a conflict, a lease that is gone) is an answer still.
    pub(crate) fn saw<T>(&self, outcome: Result<T, StoreError>) -> Result<T, StoreError> {
        match &outcome {
            Err(StoreError::Unavailable { reason, .. }) => self.disconnected(reason, false),
            Err(StoreError::Refused { reason, .. }) => {
                let new = self.newly_refused(Some(reason.as_str()));
                self.disconnected(reason, new);
            }
            _ => {
                self.newly_refused(None);
                self.connected();
            }
        }
        outcome
    }

    fn connected(&self) {
        let changed = self.state.send_if_modified(|state| {
            let changed = *state != Connectivity::Connected;
            if changed {
                *state = Connectivity::Connected;
            }
            changed
        });
        if changed {
            tracing::info!(store = %self.store, "the datastore answers");
        }
    }

    /// Whether something else is refused than what was logged last: a permission that is
    /// missing is somebody's mistake, and named also when the store was out of reach before.
    fn newly_refused(&self, reason: Option<&str>) -> bool {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let new = refused.as_deref() != reason;
        if new {
            *refused = reason.map(str::to_owned);
        }
        new
    }

    fn disconnected(&self, reason: &str, must_be_said: bool) {
        let mut lost = must_be_said;
        self.state.send_if_modified(|state| {
            if let Connectivity::Disconnected { reason: known } = state {
                let changed = known != reason;
                if changed {
                    reason.clone_into(known);
                }
                return changed;
            }
            lost = true;
            *state = Connectivity::Disconnected {
                reason: reason.to_owned(),
            };
            true
        });
        if lost {
            tracing::warn!(store = %self.store, reason, "the datastore does not answer; retrying");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gone(reason: &str) -> Result<(), StoreError> {
        Err(StoreError::Unavailable {
            store: "x".into(),
            reason: reason.into(),
        })
    }

    #[test]
    fn what_is_refused_is_named_once_also_after_an_outage() {
        let monitor = Monitor::new("x".into());
        assert!(monitor.newly_refused(Some("cannot list pools")));
        assert!(!monitor.newly_refused(Some("cannot list pools")));
        let _ = monitor.saw(gone("down"));
        assert!(!monitor.newly_refused(Some("cannot list pools")));
        assert!(monitor.newly_refused(Some("cannot get nodes")));
        let _ = monitor.saw(Ok(()));
        assert!(monitor.newly_refused(Some("cannot get nodes")));
    }

    #[test]
    fn a_change_is_published_once() {
        let monitor = Monitor::new("x".into());
        let mut seen = monitor.subscribe();
        assert_eq!(*seen.borrow_and_update(), Connectivity::Unknown);
        let _ = monitor.saw(gone("down"));
        assert!(seen.has_changed().unwrap());
        assert_eq!(
            *seen.borrow_and_update(),
            Connectivity::Disconnected {
                reason: "down".into()
            }
        );
        let _ = monitor.saw(gone("down"));
        assert!(!seen.has_changed().unwrap());
        let _ = monitor.saw(Ok(()));
        assert_eq!(*seen.borrow_and_update(), Connectivity::Connected);
        let _ = monitor.saw(Ok(()));
        assert!(!seen.has_changed().unwrap());
    }
}
