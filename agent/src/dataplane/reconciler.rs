//! The loop: every trigger is the same trigger. A new state of the cluster, a change
//! in the ledger, a hint from the kernel, the audit timer and the retry timer all
//! only mark the kernel as unseen; then one reconcile follows.
//!
//! Started once by `main`. It owns the kernel and the report, and ends when the
//! tasks that publish its inputs end.

use std::sync::Arc;
use std::time::Duration;

use nix::time::ClockId;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, sleep_until};

use super::cycle::{Cycle, Outcome};
use super::hints::{Drift, Expected, Hint, is_about_rival, judge};
use super::kernel::Kernel;
use super::pace::{Allowance, Backoff, SOON};
use super::patience::Patience;
use crate::backend::Backend;
use crate::state::{DataplaneReport, Endpoints, NodeState};

/// How often all is listed though nothing called for it, in seconds. Jittered, lest
/// all nodes do it at once.
const AUDIT_SECONDS: std::ops::Range<f64> = 54.0..66.0;

/// How often routes of others are looked at though no hint called for it: at each
/// audit, but not at each look.
const RIVALS: Duration = Duration::from_secs(50);

/// What the reconciler is told, and where it tells how it goes.
#[derive(Debug)]
pub struct Reconciler {
    /// How pod traffic is carried.
    pub backend: &'static Backend,
    /// The node and the cluster; nothing is touched while this is `None`.
    pub state: watch::Receiver<Option<NodeState>>,
    /// The ledger.
    pub endpoints: watch::Receiver<Endpoints>,
    /// What the kernel says has changed.
    pub hints: mpsc::Receiver<Vec<Hint>>,
    /// How it goes.
    pub report: watch::Sender<DataplaneReport>,
}

type Job<K> = JoinHandle<(Cycle<K>, Option<Outcome>, Duration)>;

/// Where the cycle is: here, or at work on its thread.
enum Worker<K> {
    Idle(Box<Cycle<K>>),
    Busy(Job<K>),
}

impl Reconciler {
    /// Keeps `kernel` as it should be until the inputs end.
    ///
    /// # Errors
    /// When a reconcile panicked, which is a fault in this program.
    pub async fn run<K: Kernel>(mut self, kernel: K) -> Result<(), JoinError> {
        let cycle = Cycle::new(
            kernel,
            self.backend,
            self.state.clone(),
            self.endpoints.clone(),
        );
        let expected = cycle.expected();
        let mut worker = Worker::Idle(Box::new(cycle));
        let mut schedule = Schedule::new();
        let mut patience = Patience::default();
        loop {
            worker = match worker {
                Worker::Idle(mut cycle) if schedule.due() => {
                    if schedule.rivals_due() {
                        cycle.look_for_rivals();
                    }
                    Worker::Busy(start(*cycle))
                }
                other => other,
            };
            if let Worker::Busy(_) = worker {
                schedule.begun();
            }
            tokio::select! {
                biased;
                done = finished(&mut worker) => {
                    let (cycle, outcome, took) = done?;
                    worker = Worker::Idle(Box::new(cycle));
                    schedule.ended(outcome.as_ref(), took);
                    if let Some(mut outcome) = outcome {
                        let (overdue, again) =
                            patience.judge(std::mem::take(&mut outcome.awaited), Instant::now());
                        outcome.refusals.extend(overdue);
                        if let Some(after) = again {
                            schedule.mark(after);
                        }
                        self.publish(outcome);
                    }
                }
                () = sleep_until(schedule.at()), if matches!(worker, Worker::Idle(_)) => {}
                changed = self.state.changed() => match changed {
                    Ok(()) => schedule.mark(Duration::ZERO),
                    Err(_) => return Ok(()),
                },
                changed = self.endpoints.changed() => match changed {
                    // The CNI server has wired the pod itself; this is to verify it.
                    Ok(()) => schedule.mark(SOON),
                    Err(_) => return Ok(()),
                },
                Some(hints) = self.hints.recv() => {
                    let expected = expected.borrow().clone();
                    schedule.rivals |= hints.iter().any(|hint| is_about_rival(hint, &expected));
                    match worst(&hints, &expected) {
                        Drift::None => {}
                        Drift::Excess | Drift::Rival => schedule.mark(SOON),
                        Drift::Broken => schedule.mark(Duration::ZERO),
                    }
                }
            }
        }
    }

    fn publish(&self, outcome: Outcome) {
        self.report.send_if_modified(|report| {
            let before = report.clone();
            warn_of_new(&report.problems, &outcome.problems);
            warn_of_new(&report.refusals, &outcome.refusals);
            warn_of_new(&report.conflicts, &outcome.conflicts);
            warn_of_new(&report.not_adjacent, &outcome.not_adjacent);
            if outcome.verified && !report.verified {
                tracing::info!(applied = outcome.applied, "the kernel is as it should be");
            }
            // Without an address of the node's own no pod can be wired; once it has
            // stood, a fault elsewhere is no reason to refuse pods.
            report.can_wire = match outcome.overlay {
                Some(stands) => report.can_wire || stands,
                None => report.can_wire && !outcome.verified,
            };
            report.verified = outcome.verified;
            report.problems = outcome.problems;
            report.refusals = outcome.refusals;
            report.conflicts = outcome.conflicts;
            report.not_adjacent = outcome.not_adjacent;
            report.repairs += outcome.repaired;
            let told = *report != before;
            // A count alone is no news.
            report.reconciles += 1;
            told || report.reconciles == 1
        });
    }
}

fn warn_of_new(known: &[String], now: &[String]) {
    for sentence in now.iter().filter(|sentence| !known.contains(sentence)) {
        tracing::warn!("dataplane: {sentence}");
    }
}

fn worst(hints: &[Hint], expected: &Arc<Expected>) -> Drift {
    hints
        .iter()
        .map(|hint| judge(hint, expected))
        .max()
        .unwrap_or(Drift::None)
}

fn start<K: Kernel>(mut cycle: Cycle<K>) -> Job<K> {
    tokio::task::spawn_blocking(move || {
        let begun = cpu_time();
        let outcome = cycle.run();
        (cycle, outcome, cpu_time().saturating_sub(begun))
    })
}

/// How long this thread has been at work. Not the time of the clock: deleting a link
/// is mostly waiting, and costs nobody anything.
fn cpu_time() -> Duration {
    ClockId::CLOCK_THREAD_CPUTIME_ID
        .now()
        .map_or(Duration::ZERO, Duration::from)
}

/// Waits for the thread's answer; for ever while there is none to come.
async fn finished<K>(
    worker: &mut Worker<K>,
) -> Result<(Cycle<K>, Option<Outcome>, Duration), JoinError> {
    match worker {
        Worker::Busy(job) => job.await,
        Worker::Idle(_) => std::future::pending().await,
    }
}

/// When the next reconcile begins.
struct Schedule {
    /// When somebody wants it.
    wanted: Instant,
    /// Not before.
    earliest: Instant,
    allowance: Allowance,
    backoff: Backoff,
    running: bool,
    /// Whether routes of others are to be looked at.
    rivals: bool,
    /// When that is due though no hint called for it.
    next_rivals: Instant,
}

impl Schedule {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            wanted: now,
            earliest: now,
            allowance: Allowance::new(now),
            backoff: Backoff::default(),
            running: false,
            rivals: true,
            next_rivals: now,
        }
    }

    /// Whether the reconcile that begins now looks at routes of others, and if so
    /// that the next need not.
    fn rivals_due(&mut self) -> bool {
        let now = Instant::now();
        let due = std::mem::take(&mut self.rivals) || self.next_rivals <= now;
        if due {
            self.next_rivals = now + RIVALS;
        }
        due
    }

    fn at(&self) -> Instant {
        self.wanted.max(self.earliest)
    }

    fn due(&self) -> bool {
        self.at() <= Instant::now()
    }

    fn mark(&mut self, delay: Duration) {
        self.wanted = self.wanted.min(Instant::now() + delay);
    }

    /// What is wanted from now on is not served by the reconcile that runs.
    fn begun(&mut self) {
        if !std::mem::replace(&mut self.running, true) {
            let audit = Duration::from_secs_f64(rand::random_range(AUDIT_SECONDS));
            self.wanted = Instant::now() + audit;
        }
    }

    fn ended(&mut self, outcome: Option<&Outcome>, took: Duration) {
        self.running = false;
        self.earliest = self.allowance.spend(Instant::now(), took);
        match outcome {
            Some(outcome) if !outcome.verified => {
                let wait = self.backoff.failed();
                self.mark(wait);
            }
            _ => self.backoff.succeeded(),
        }
    }
}
