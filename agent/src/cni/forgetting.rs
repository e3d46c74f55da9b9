//! Has the kernel forget the connections of addresses that were released: whoever has
//! such an address next must not meet the last one's (a client that calls again from
//! the same port would be taken for the old connection).
//!
//! It runs behind DEL's answer and well within the cool-down. Each look walks the
//! kernel's whole table, some ten milliseconds in which that CPU does nothing else and
//! whoever changes links waits: hence addresses are gathered for seconds. An address that
//! is needed before that is not handed over before its connections are gone.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use viaduct_cni::fault;

use super::metrics::CniMetrics;
use crate::kernel::NetlinkError;
use crate::kernel::conntrack::Conntrack;

/// How long released addresses are gathered. The cool-down (30 s, unless it was chosen)
/// is longer, so that hardly any ADD has to wait for a look.
const TOGETHER: Duration = Duration::from_secs(3);

/// Addresses whose connections are not forgotten yet.
type Pending = Arc<Mutex<BTreeSet<Ipv4Addr>>>;

enum Message {
    /// An address was added to those that wait.
    Released,
    /// Somebody needs one of them now.
    Needed(oneshot::Sender<()>),
}

/// Where released addresses are sent.
#[derive(Debug, Clone)]
pub(super) struct Forgetting {
    pending: Pending,
    messages: mpsc::UnboundedSender<Message>,
}

impl Forgetting {
    /// Begins. It ends with the last clone.
    pub(super) fn begin(metrics: CniMetrics) -> Self {
        let (messages, incoming) = mpsc::unbounded_channel();
        let pending = Pending::default();
        tokio::spawn(run(incoming, pending.clone(), metrics));
        Self { pending, messages }
    }

    /// Takes a released address; it never waits.
    pub(super) fn released(&self, address: IpAddr) {
        if let IpAddr::V4(address) = address {
            locked(&self.pending).insert(address);
            // Its receiver lives as long as any sender does.
            let _ = self.messages.send(Message::Released);
        }
    }

    /// Returns once none of these addresses has connections of an earlier pod.
    pub(super) async fn are_clean(&self, addresses: &[IpAddr]) {
        let waits = |address: &IpAddr| match address {
            IpAddr::V4(address) => locked(&self.pending).contains(address),
            IpAddr::V6(_) => false,
        };
        if addresses.iter().any(waits) {
            self.all_done().await;
        }
    }

    /// Returns once the connections of all that was released are forgotten.
    pub(super) async fn all_done(&self) {
        if locked(&self.pending).is_empty() {
            return;
        }
        let (done, answer) = oneshot::channel();
        if self.messages.send(Message::Needed(done)).is_ok() {
            let _ = answer.await;
        }
    }
}

fn locked(pending: &Pending) -> MutexGuard<'_, BTreeSet<Ipv4Addr>> {
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn run(
    mut incoming: mpsc::UnboundedReceiver<Message>,
    pending: Pending,
    metrics: CniMetrics,
) {
    while let Some(first) = incoming.recv().await {
        let mut waiting = gather(first, &mut incoming).await;
        let batch = locked(&pending).clone();
        if !batch.is_empty() {
            forget(batch.clone(), &metrics).await;
            // Not before: whoever needs one of them waits for the look that is under way.
            locked(&pending).retain(|address| !batch.contains(address));
        }
        for done in waiting.drain(..) {
            let _ = done.send(());
        }
    }
}

/// Waits for more; for nothing once somebody needs an address. Says who waits.
async fn gather(
    first: Message,
    incoming: &mut mpsc::UnboundedReceiver<Message>,
) -> Vec<oneshot::Sender<()>> {
    let due = Instant::now() + TOGETHER;
    let mut next = Some(first);
    while let Some(message) = next {
        if let Message::Needed(done) = message {
            return vec![done];
        }
        next = tokio::select! {
            message = incoming.recv() => message,
            () = sleep_until(due) => None,
        };
    }
    Vec::new()
}

async fn forget(batch: BTreeSet<Ipv4Addr>, metrics: &CniMetrics) {
    fault::point("forgetting.begun");
    let look = move || -> Result<usize, NetlinkError> { Conntrack::open()?.forget(&batch) };
    match tokio::task::spawn_blocking(look).await {
        Ok(Ok(count)) => {
            metrics.forgotten.inc_by(count as u64);
        }
        Ok(Err(error)) => {
            tracing::warn!(%error, "the kernel's connections of released addresses cannot be forgotten");
        }
        Err(error) => tracing::error!(%error, "forgetting connections was cut off"),
    }
    fault::point("forgetting.done");
}
