//! A controller: the real view, memory, decisions and writes. Two may believe that they
//! lead, each with an old picture; each may stop between a check and its write.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use viaduct_controller::act::{Stop, perform};
use viaduct_controller::decide::{Action, Now, Policy, decide};
use viaduct_controller::memory::Memory;
use viaduct_controller::view::View;
use viaduct_datastore::store::SharedStore;
use viaduct_model::{Cidr, Kind};

use crate::rng::Rng;
use crate::store::{Fate, Follower, SimStore};

type Acting = Pin<Box<dyn Future<Output = (View, Result<(), Stop>)> + Send>>;

/// A controller's process.
pub struct Controller {
    view: View,
    memory: Memory,
    policy: Policy,
    followers: [Follower; 4],
    actions: VecDeque<Action>,
    acting: Option<Acting>,
    /// World time when what it is at was begun.
    begun_at: u64,
    /// Whether it believes that it leads.
    pub leads: bool,
    /// Whether it reaches the store.
    pub connected: bool,
    /// Until when the process is stopped, in world time.
    pub asleep_until: u64,
    /// What its clock shows when the world's shows 0, and how it runs, in percent.
    started: u64,
    rate: u64,
}

impl std::fmt::Debug for Controller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Controller(leads: {})", self.leads)
    }
}

impl Controller {
    /// A process that starts at `now` of the world.
    pub fn start(policy: Policy, now: u64, rng: &mut Rng) -> Self {
        Self {
            view: View::default(),
            memory: Memory::new(policy.restored, 1 + rng.under(1 << 24)),
            policy,
            followers: Kind::ALL.map(Follower::new),
            actions: VecDeque::new(),
            acting: None,
            begun_at: 0,
            leads: true,
            connected: true,
            asleep_until: 0,
            started: now,
            rate: 95 + rng.under(11),
        }
    }

    /// Its connections break; it lists anew.
    pub fn cut(&mut self) {
        self.followers.iter_mut().for_each(Follower::cut);
    }

    /// Whether it has seen everything and is at nothing.
    pub fn is_current(&self, store: &SimStore) -> bool {
        let store = store.lock();
        self.acting.is_none() && self.followers.iter().all(|f| f.is_current(&store))
    }

    /// One turn: one call of the store, or some news, or a decision. Returns a block that
    /// it took from a node whose claim it could have seen when it looked again.
    pub fn step(
        &mut self,
        store: &SimStore,
        now: u64,
        rng: &mut Rng,
        faults: bool,
    ) -> Option<(Cidr, String)> {
        self.turn(store, now, rng, faults);
        let taken = std::mem::take(&mut store.lock().taken);
        let seen = |(_, _, since): &(Cidr, String, u64)| *since < self.begun_at;
        let blind = taken.into_iter().find(seen);
        blind.map(|(cidr, node, _)| (cidr, node))
    }

    fn turn(&mut self, store: &SimStore, now: u64, rng: &mut Rng, faults: bool) {
        let clock = Duration::from_millis((now - self.started) * self.rate / 100);
        if self.acting.is_some() {
            return self.go_on(store, rng, faults);
        }
        if self.connected {
            let inner = store.lock();
            let at_most = 1 + rng.index(8);
            for (kind, follower) in Kind::ALL.into_iter().zip(&mut self.followers) {
                if faults && rng.one_in(3) {
                    continue;
                }
                for _ in 0..at_most {
                    match follower.next(&inner) {
                        Some(update) => self.view.update(kind, update, clock),
                        None => break,
                    }
                }
            }
        }
        self.memory.observe(&self.view, clock);
        // A real one reads anew what the watch did not confirm.
        for (kind, name) in self.view.overdue(clock) {
            if self.connected {
                let entry = store.lock().get(kind, &name).cloned();
                self.view.settle(kind, &name, entry);
            }
        }
        if !self.leads {
            self.actions.clear();
            return;
        }
        if self.actions.is_empty() {
            self.memory.observe(&self.view, clock);
            let moment = Now {
                mono: clock,
                wall: String::new(),
            };
            let decision = decide(&self.view, &self.memory, &self.policy, &moment);
            self.actions = decision.actions.into();
        }
        let Some(action) = self.actions.pop_front() else {
            return;
        };
        if let Action::SetPoolStatus { name, .. } = &action {
            self.memory.status_at.insert(name.clone(), clock);
        }
        let mut view = std::mem::take(&mut self.view);
        self.begun_at = now;
        let shared: SharedStore = Arc::new(store.clone());
        self.acting = Some(Box::pin(async move {
            let done = perform(&shared, &action, &mut view, clock).await;
            (view, done)
        }));
        self.go_on(store, rng, faults);
    }

    /// The next call of what it is at.
    fn go_on(&mut self, store: &SimStore, rng: &mut Rng, faults: bool) {
        let fate = match rng.under(20) {
            _ if !self.connected => Fate::Lost,
            0 if faults => Fate::Lost,
            1 if faults => Fate::Unheard,
            _ => Fate::Done,
        };
        store.lock().fate = fate;
        let Some(acting) = &mut self.acting else {
            return;
        };
        let polled = acting
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()));
        if let Poll::Ready((view, done)) = polled {
            self.view = view;
            self.acting = None;
            if done.is_err() {
                self.actions.clear();
            }
        }
        store.lock().fate = Fate::Done;
    }
}
