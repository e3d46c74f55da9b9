//! The control loop: the one task that owns what the controller sees, remembers
//! and does.
//!
//! ```text
//! watches ──> View ──> Memory ──decide──> actions ──one by one──> store
//!               ^                                        │
//!               └──────────── outcome of each ───────────┘
//! ```
//!
//! Every trigger is the same trigger: news from a watch, leadership won, a time
//! that a decision named. A controller that stands by sees and remembers all the
//! same, so that it needs no start when it takes over. Nothing here ever ends the
//! process: what the store fails is tried again, with growing waits, for ever.

use std::collections::BTreeSet;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{mpsc, watch};
use viaduct_datastore::store::SharedStore;
use viaduct_datastore::{Backoff, Leadership, NodeCidrs, StoreError, Update, follow};
use viaduct_model::Kind;

use crate::act::{Stop, perform};
use crate::decide::{Action, Decision, Faults, Now, Policy, decide};
use crate::marks;
use crate::memory::Memory;
use crate::metrics::Metrics;
use crate::notes;
use crate::publish::{self, Shares};
use crate::status::{Status, sentence};
use crate::view::View;

/// The election's name in the store.
const ELECTION: &str = "controller";

/// The loop goes round at least this often, which is what liveness means.
const BEAT: Duration = Duration::from_secs(10);

/// Actions after which the news is read before going on.
const BATCH: usize = 256;

/// How many updates of the watches may wait for the loop.
const QUEUE: usize = 256;

/// What the control loop works with.
#[derive(Debug)]
pub struct Control {
    /// The store.
    pub store: SharedStore,
    /// How the user wants it.
    pub policy: Policy,
    /// Who we are in the election; `None`: act without being elected.
    pub identity: Option<String>,
    /// Where the status is published.
    pub status: watch::Sender<Status>,
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// The beginning of our clock.
    pub started: Instant,
}

type Campaign = Pin<Box<dyn Future<Output = Leadership> + Send>>;

/// Where an elected controller stands.
enum Role {
    /// Acts without being elected.
    Unelected,
    Campaigning(Campaign),
    Leading(Leadership),
}

struct Loop {
    control: Control,
    view: View,
    memory: Memory,
    role: Role,
    backoff: Backoff,
    /// After a failure of the store: when to try again.
    retry_at: Option<Duration>,
    told: Told,
    now: Status,
    /// What records are to be told is wrong with them; `None` while another leads.
    faults: watch::Sender<Option<Faults>>,
    /// The blocks that may be published as pod CIDRs; `None` while another leads.
    shares: watch::Sender<Option<Shares>>,
    /// What stood in the way of that.
    conflicts: watch::Receiver<Faults>,
    /// Why this controller may not even stand for election.
    seat: watch::Sender<Option<String>>,
    trouble: watch::Receiver<Option<String>>,
}

/// What was logged already.
#[derive(Default)]
struct Told {
    remarks: BTreeSet<String>,
    failure: Option<String>,
}

impl Control {
    /// Runs until `stop` turns true; then resigns.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let mut updates = follow_all(&self.store);
        let (faults, wanted) = watch::channel(None);
        tokio::spawn(marks::keep(self.store.clone(), wanted));
        let (shares, to_publish) = watch::channel(None);
        let (told, conflicts) = watch::channel(Faults::new());
        if self.policy.node_cidrs == NodeCidrs::Publish {
            tokio::spawn(publish::keep(self.store.clone(), to_publish, told));
        }
        let (seat, trouble) = watch::channel(None);
        let role = match &self.identity {
            None => Role::Unelected,
            Some(identity) => {
                Role::Campaigning(campaign(self.store.clone(), identity.clone(), seat.clone()))
            }
        };
        let memory = Memory::new(self.policy.restored, stride());
        let mut inner = Loop {
            control: self,
            view: View::default(),
            memory,
            role,
            backoff: Backoff::default(),
            retry_at: None,
            told: Told::default(),
            now: Status::default(),
            faults,
            shares,
            conflicts,
            seat,
            trouble,
        };
        tokio::select! {
            // Whatever is under way may be cut off: every write is checked by the
            // store, and the next leader looks for itself.
            _ = stop.wait_for(|stop| *stop) => {}
            () = inner.go(&mut updates) => {}
        }
        if let Role::Leading(leadership) = inner.role {
            leadership.resign().await;
        }
    }
}

impl Loop {
    async fn go(&mut self, updates: &mut mpsc::Receiver<(Kind, Update)>) {
        loop {
            let wake_at = self.round().await;
            let now = self.clock();
            let wake_in = wake_at.saturating_sub(now).min(BEAT);
            tokio::select! {
                update = updates.recv() => match update {
                    Some((kind, update)) => self.view.update(kind, update, now),
                    // The followers end with the runtime only.
                    None => return,
                },
                () = self.role.changed() => self.role_changed(),
                _ = self.trouble.changed() => {}
                Ok(()) = self.conflicts.changed() => {}
                () = tokio::time::sleep(wake_in) => {}
            }
            // All that is known already goes into one decision.
            while let Ok((kind, update)) = updates.try_recv() {
                self.view.update(kind, update, now);
            }
        }
    }

    /// Looks, decides and acts; returns when to do so again though nothing changes.
    async fn round(&mut self) -> Duration {
        self.reread_overdue().await;
        let now = self.clock();
        self.memory.observe(&self.view, now);
        #[expect(
            clippy::disallowed_methods,
            reason = "shown to people in pools' status"
        )]
        let wall = SystemTime::now();
        let moment = Now {
            mono: now,
            wall: humantime::format_rfc3339_seconds(wall).to_string(),
        };
        let decision = decide(&self.view, &self.memory, &self.control.policy, &moment);
        self.publish(&decision);
        let mut wake_at = now + BEAT;
        wake_at = [decision.recheck_at, self.view.overdue_at()]
            .into_iter()
            .flatten()
            .fold(wake_at, Duration::min);
        let to_do = self.role.acts() && !decision.actions.is_empty();
        if !to_do && self.view.overdue(now).is_empty() {
            // What failed has come to nothing: somebody else did it, or must.
            self.now.failure = None;
            self.told.failure = None;
            self.retry_at = None;
        }
        if to_do {
            match self.retry_at.filter(|at| *at > now) {
                Some(at) => wake_at = wake_at.min(at),
                None => {
                    self.act(&decision).await;
                    // The outcome is news like any other.
                    wake_at = self.retry_at.unwrap_or(now);
                }
            }
        }
        wake_at
    }

    /// Carries out actions until one fails, leadership is lost or there is news
    /// enough to look again.
    async fn act(&mut self, decision: &Decision) {
        for action in decision.actions.iter().take(BATCH) {
            if !self.role.acts() {
                return;
            }
            let now = self.clock();
            match perform(&self.control.store, action, &mut self.view, now).await {
                Ok(()) => {
                    self.worked();
                    self.control.metrics.count(action);
                    log(action);
                    notes::tell(&self.control.store, notes::of_action(action));
                    if let Action::SetPoolStatus { name, .. } = action {
                        self.memory.status_at.insert(name.clone(), now);
                    }
                }
                Err(Stop::Outdated(why)) => {
                    self.worked();
                    self.control.metrics.count_conflict();
                    tracing::debug!(%why, "the store stands otherwise: deciding again");
                    return;
                }
                Err(Stop::Store(error)) => {
                    self.failed(error.to_string());
                    return;
                }
            }
        }
    }

    /// Reads records of which the watch should have told long ago.
    async fn reread_overdue(&mut self) {
        let now = self.clock();
        if self.retry_at.is_some_and(|at| at > now) {
            return;
        }
        for (kind, name) in self.view.overdue(now) {
            match self.control.store.get(kind, &name).await {
                Ok(entry) => {
                    self.view.settle(kind, &name, entry);
                    self.worked();
                }
                Err(error) => {
                    self.failed(error.to_string());
                    return;
                }
            }
        }
    }

    fn role_changed(&mut self) {
        let identity = self.control.identity.clone().unwrap_or_default();
        match &self.role {
            Role::Leading(leadership) if !*leadership.lost.borrow() => {
                tracing::info!(%identity, "leading");
            }
            Role::Leading(_) => {
                tracing::warn!(%identity, "the leadership is lost; standing by");
                let store = self.control.store.clone();
                self.role = Role::Campaigning(campaign(store, identity, self.seat.clone()));
            }
            Role::Unelected | Role::Campaigning(_) => {}
        }
    }

    fn worked(&mut self) {
        self.backoff.reset();
        self.retry_at = None;
        self.now.failure = None;
        if self.told.failure.take().is_some() {
            tracing::info!("the datastore takes writes again");
        }
    }

    fn failed(&mut self, failure: String) {
        self.retry_at = Some(self.clock() + self.backoff.next());
        self.control.metrics.count_failure();
        if self.told.failure.as_ref() != Some(&failure) {
            tracing::warn!("{failure}; trying again until it works");
            self.told.failure = Some(failure.clone());
        }
        self.now.failure = Some(failure);
        self.control.status.send_replace(self.now.clone());
    }

    fn publish(&mut self, decision: &Decision) {
        self.now.describe(&self.view, decision);
        self.now.leads = self.role.acts();
        self.now.election = self.trouble.borrow_and_update().clone();
        self.now.beat = self.clock();
        let remarks: BTreeSet<String> = decision
            .problems
            .iter()
            .cloned()
            .chain(decision.waiting.iter().map(sentence))
            .collect();
        for new in remarks.difference(&self.told.remarks) {
            tracing::warn!("{new}");
        }
        if self.role.acts() {
            let waiting = decision.waiting.iter();
            let new = waiting.filter(|w| !self.told.remarks.contains(&sentence(w)));
            notes::tell(&self.control.store, new.flat_map(notes::of_waiting));
        }
        let wanted = self.role.acts() && self.view.is_complete();
        let shares = wanted && self.control.policy.node_cidrs == NodeCidrs::Publish;
        let shares = shares.then(|| publish::shares(&self.view, &decision.faults));
        send(&self.shares, shares);
        let wanted = wanted.then(|| {
            let mut faults = decision.faults.clone();
            faults.extend(self.conflicts.borrow_and_update().clone());
            faults
        });
        send(&self.faults, wanted);
        for gone in self.told.remarks.difference(&remarks) {
            tracing::info!("no longer so: {gone}");
        }
        self.told.remarks = remarks;
        self.control.status.send_replace(self.now.clone());
    }

    fn clock(&self) -> Duration {
        self.control.started.elapsed()
    }
}

impl Role {
    fn acts(&self) -> bool {
        match self {
            Role::Unelected => true,
            Role::Campaigning(_) => false,
            Role::Leading(leadership) => !*leadership.lost.borrow(),
        }
    }

    /// Waits until leadership is won or lost. May be dropped and called again.
    async fn changed(&mut self) {
        match self {
            Role::Unelected => std::future::pending().await,
            Role::Campaigning(campaign) => {
                let leadership = campaign.await;
                *self = Role::Leading(leadership);
            }
            // An error means that the store's side of the leadership ended.
            Role::Leading(leadership) => {
                if leadership.lost.wait_for(|lost| *lost).await.is_err() {
                    let (ended, lost) = watch::channel(true);
                    drop(ended);
                    leadership.lost = lost;
                }
            }
        }
    }
}

/// Campaigns until elected, however often the store fails; `trouble` has why it is refused
/// to us.
fn campaign(
    store: SharedStore,
    identity: String,
    trouble: watch::Sender<Option<String>>,
) -> Campaign {
    Box::pin(async move {
        let mut backoff = Backoff::default();
        loop {
            match store.campaign(ELECTION, &identity).await {
                Ok(leadership) => {
                    trouble.send_replace(None);
                    return leadership;
                }
                Err(error @ StoreError::SecondInstallation { .. }) => {
                    let sentence = error.to_string();
                    if trouble.borrow().as_ref() != Some(&sentence) {
                        tracing::error!("{sentence}");
                        trouble.send_replace(Some(sentence));
                    }
                }
                Err(error) => tracing::debug!(%error, "campaigning again"),
            }
            tokio::time::sleep(backoff.next()).await;
        }
    })
}

/// By chance, and small enough for hundreds of restored stores to go into what JSON's
/// readers can count exactly.
fn stride() -> u64 {
    1 + RandomState::new().hash_one(()) % (1 << 24)
}

/// Publishes what is news.
fn send<T: PartialEq>(to: &watch::Sender<T>, new: T) {
    to.send_if_modified(|before| {
        let changed = *before != new;
        *before = new;
        changed
    });
}

/// Follows all kinds through one channel.
fn follow_all(store: &SharedStore) -> mpsc::Receiver<(Kind, Update)> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    for kind in Kind::ALL {
        let mut updates = follow(store.clone(), kind);
        let sender = sender.clone();
        tokio::spawn(async move {
            while let Some(update) = updates.recv().await {
                if sender.send((kind, update)).await.is_err() {
                    return;
                }
            }
        });
    }
    receiver
}

fn log(action: &Action) {
    match action {
        Action::CreatePool(name, pool) => {
            tracing::info!(pool = %name, cidr = %pool.cidr, "created the pool");
        }
        Action::CreateBlock(block) => {
            tracing::info!(node = %block.node, block = %block.cidr, pool = %block.pool, "gave a block");
        }
        Action::RestoreBlock { block, .. } => {
            tracing::warn!(node = %block.node, block = %block.cidr, "gave a block back that the store had forgotten");
        }
        Action::SetBlockState { block, .. } => {
            tracing::info!(node = %block.node, block = %block.cidr, state = %block.state, "block changed");
        }
        Action::DeleteBlock { block, .. } => {
            tracing::info!(node = %block.node, block = %block.cidr, "freed the block");
        }
        Action::SetPoolStatus { name, pool, .. } => {
            tracing::debug!(pool = %name, status = ?pool.status, "pool status written");
        }
    }
}
