//! ADDs that wait for an address: the node's blocks are full, and the claim has asked
//! for as many more as it takes.
//!
//! An ADD that waited in vain is told to come again; so is one that a DEL overtakes.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use viaduct_cni::CniError;
use viaduct_model::Family;

use super::owner::{Job, Owner};

/// How long an ADD waits for a block: some exchanges with the controller through the
/// store. Runtimes wait far longer.
const PATIENCE: Duration = Duration::from_secs(2);

/// An ADD that waits for an address.
#[derive(Debug)]
pub(super) struct Hungry {
    link: String,
    job: Job,
    until: Instant,
    /// Why there was none.
    error: CniError,
}

/// Completes when the first has waited for long enough.
pub(super) async fn patience(hungry: &VecDeque<Hungry>) {
    match hungry.front() {
        Some(first) => sleep_until(first.until).await,
        None => std::future::pending().await,
    }
}

impl Owner {
    /// Whether a block may come soon: the store is read, and not all pools are full; or
    /// one is there and only to be proved (`unproved`).
    pub(super) fn may_grow(&self, unproved: bool) -> bool {
        let node = self.node.borrow();
        let Some(state) = &*node else { return false };
        if unproved {
            return true;
        }
        let mut pools = state.view.pools.values();
        pools.any(|pool| {
            let full = pool
                .status
                .as_ref()
                .is_some_and(|s| s.exhausted_since.is_some());
            pool.cidr.family() == Family::V4 && !pool.disabled && !full
        })
    }

    /// Has an ADD wait for an address, until `until` if it waits already.
    pub(super) fn queue(&mut self, link: &str, job: Job, error: CniError, until: Option<Instant>) {
        self.hungry.push_back(Hungry {
            link: link.to_owned(),
            job,
            until: until.unwrap_or_else(|| Instant::now() + PATIENCE),
            error,
        });
        self.publish();
    }

    /// Tries those again that wait: something has become free.
    pub(super) fn feed(&mut self) {
        for hungry in std::mem::take(&mut self.hungry) {
            self.add_anew(&hungry.link, hungry.job, Some(hungry.until));
        }
        self.publish();
    }

    /// Refuses those that waited for too long, or all.
    pub(super) fn send_away(&mut self, all: bool) {
        let now = Instant::now();
        while let Some(hungry) = self.hungry.pop_front_if(|h| all || h.until <= now) {
            self.starved = true;
            self.refuse(hungry.job, hungry.error);
        }
        self.publish();
    }

    /// Refuses the one that waits for an address for this link, if any.
    pub(super) fn give_up(&mut self, link: &str) {
        if let Some(at) = self.hungry.iter().position(|h| h.link == link)
            && let Some(hungry) = self.hungry.remove(at)
        {
            self.refuse(hungry.job, hungry.error);
        }
    }
}
