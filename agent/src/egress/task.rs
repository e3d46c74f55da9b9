//! The table's keeper at work: every trigger leads to the same comparison.
//!
//! Doubt about what is remembered arises at the start, when somebody else's transaction
//! touched the table, after a failure, a moment after changes of our own, and at every
//! audit. Nothing is touched before the datastore has said "here is everything".
//!
//! Our own transactions come back as notifications like everybody's. The kernel sends
//! them before `nft` ends, so that what is there when it has ended is the echo, and one
//! more than our own is somebody else's.

use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::change::{Change, transaction};
use super::keeper::{Keeper, Look, Outcome};
use super::masquerade;
use super::ruleset::{TABLE, TableFamily};
use super::tool::{Firewall, ToolError};
use super::{EgressReport, Options};
use crate::dataplane::pace::{Allowance, Backoff};
use crate::kernel::NetlinkError;
use crate::kernel::nftables::{Seen, TableMonitor};
use crate::state::NodeState;

/// How often the kernel is asked whether anything has changed though nothing called for
/// it, in seconds. Jittered, lest all nodes do it at once. Only if it has, the table is
/// listed, which costs a process.
const AUDIT_SECONDS: std::ops::Range<f64> = 54.0..66.0;

/// When changes of our own are looked at.
const VERIFY: Duration = Duration::from_secs(1);

/// Says that somebody touched the table.
pub trait Watcher: Send + 'static {
    /// Waits until somebody has.
    fn next(&mut self) -> impl Future<Output = Result<Seen, NetlinkError>> + Send;

    /// What has come until now, without waiting.
    fn drain(&mut self) -> Result<Seen, NetlinkError>;
}

/// Without a monitor nothing is heard, and the audit has to do.
impl Watcher for Option<TableMonitor> {
    async fn next(&mut self) -> Result<Seen, NetlinkError> {
        match self {
            Some(monitor) => monitor.next().await,
            None => std::future::pending().await,
        }
    }

    fn drain(&mut self) -> Result<Seen, NetlinkError> {
        self.as_mut()
            .map_or(Ok(Seen::default()), TableMonitor::drain)
    }
}

/// Hears of changes of the table. A kernel that cannot tell has no nftables either,
/// which the report will say.
pub fn monitor() -> Option<TableMonitor> {
    TableMonitor::open(TableFamily::Inet, TABLE)
        .inspect_err(|error| tracing::error!(%error, "changes of nft tables are not heard of"))
        .ok()
}

/// What the task is told, and where it tells how it goes.
#[derive(Debug)]
pub struct Egress {
    /// What the user decides.
    pub options: Options,
    /// The node and the cluster; nothing is masqueraded while this is `None`.
    pub state: watch::Receiver<Option<NodeState>>,
    /// How it goes.
    pub report: watch::Sender<EgressReport>,
}

impl Egress {
    /// Keeps the table as it should be until the inputs end. Must be called in the
    /// network namespace whose table it is.
    pub async fn run(self, mut firewall: impl Firewall) {
        let watcher = monitor();
        remove_former(&mut firewall).await;
        self.keep(firewall, watcher).await;
    }

    async fn keep(mut self, firewall: impl Firewall, mut watcher: impl Watcher) {
        let mut keeper = Keeper::new(firewall);
        let mut schedule = Schedule::new();
        let mut hears = true;
        loop {
            tokio::select! {
                biased;
                () = sleep_until(schedule.at()) => {
                    let look = schedule.begin();
                    let wanted = match &*self.state.borrow_and_update() {
                        Some(state) => masquerade::desired(state, &self.options),
                        None => continue,
                    };
                    let before = programs_cpu();
                    let outcome = keeper.run(wanted, look).await;
                    schedule.ended(&outcome, programs_cpu().saturating_sub(before));
                    match watcher.drain() {
                        Ok(seen) if seen.lost || seen.transactions > outcome.writes => {
                            heed(seen, &mut keeper, &mut schedule);
                        }
                        Ok(_) => {}
                        Err(error) => tracing::error!(%error, "nftables' notifications fail"),
                    }
                    self.report.send_if_modified(|report| tell(report, outcome));
                }
                changed = self.state.changed() => match changed {
                    Ok(()) => schedule.compare(),
                    Err(_) => return,
                },
                seen = watcher.next(), if hears => match seen {
                    Ok(seen) => heed(seen, &mut keeper, &mut schedule),
                    Err(error) => {
                        // The audit still finds what is no longer told.
                        tracing::error!(%error, "nftables' notifications have ended");
                        hears = false;
                        schedule.look();
                    }
                },
            }
        }
    }
}

/// The CPU time of all programs that have ended: `nft` is the only one that an agent
/// starts. How long one took says little, since it mostly waits for the kernel.
fn programs_cpu() -> Duration {
    let used = getrusage(UsageWho::RUSAGE_CHILDREN).map(|used| {
        let both = used.user_time() + used.system_time();
        u64::try_from(both.num_microseconds()).unwrap_or(0)
    });
    // The call cannot fail with an argument that there is.
    Duration::from_micros(used.unwrap_or(0))
}

/// Somebody else has touched the table.
fn heed<F: Firewall>(seen: Seen, keeper: &mut Keeper<F>, schedule: &mut Schedule) {
    if seen.gone && !seen.lost {
        keeper.deleted();
        schedule.compare();
    } else {
        schedule.look();
    }
}

/// Agents used to judge pods' sources by chains in a table of their own; the kernel's
/// source check has always stood beside them (docs/adr/0052).
async fn remove_former(firewall: &mut impl Firewall) {
    let former = TableFamily::Netdev;
    let stands = match firewall.list(former).await {
        Ok(found) => found.is_some(),
        Err(error) => matches!(error, ToolError::Unreadable(_)),
    };
    if !stands {
        return;
    }
    let text = transaction(former, None, &Change::Remove);
    match firewall.apply(text).await {
        Ok(()) => tracing::info!("{former}, which a former release made, is removed"),
        Err(error) => tracing::warn!(%error, "{former}, which a former release made, stays"),
    }
}

/// Writes down how a comparison went; says whether that is news.
fn tell(report: &mut EgressReport, outcome: Outcome) -> bool {
    let before = report.clone();
    for sentence in &outcome.problems {
        if !report.problems.contains(sentence) {
            tracing::warn!("egress: {sentence}");
        }
    }
    if outcome.verified && !report.verified {
        tracing::info!("{} is as it should be", TableFamily::Inet);
    }
    report.verified = outcome.verified;
    report.problems = outcome.problems;
    report.repairs += outcome.repairs;
    *report != before
}

/// When the next comparison begins, and whether it has to look.
struct Schedule {
    /// When what is wanted is compared with memory.
    compare_at: Option<Instant>,
    /// From when on memory is to be doubted.
    look_at: Option<Instant>,
    audit_at: Instant,
    /// Not before.
    earliest: Instant,
    allowance: Allowance,
    failed: Backoff,
}

/// The earlier one.
fn sooner(one: Option<Instant>, other: Instant) -> Option<Instant> {
    Some(one.map_or(other, |one| one.min(other)))
}

impl Schedule {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            compare_at: None,
            look_at: Some(now),
            audit_at: now,
            earliest: now,
            allowance: Allowance::new(now),
            failed: Backoff::default(),
        }
    }

    fn at(&self) -> Instant {
        let wanted = self.compare_at.into_iter().chain(self.look_at);
        wanted.fold(self.audit_at, Instant::min).max(self.earliest)
    }

    /// Somebody else touched the table.
    fn look(&mut self) {
        self.look_at = sooner(self.look_at, Instant::now());
    }

    /// Something that is compared with memory has changed.
    fn compare(&mut self) {
        self.compare_at = sooner(self.compare_at, Instant::now());
    }

    /// Says whether to look; what is wanted from now on is the next one's.
    fn begin(&mut self) -> Look {
        let now = Instant::now();
        self.compare_at = None;
        let look = if self.look_at.is_some_and(|at| at <= now) {
            self.look_at = None;
            Look::Yes
        } else if self.audit_at <= now {
            Look::IfChanged
        } else {
            return Look::No;
        };
        self.audit_at = now + Duration::from_secs_f64(rand::random_range(AUDIT_SECONDS));
        look
    }

    fn ended(&mut self, outcome: &Outcome, took: Duration) {
        let now = Instant::now();
        self.earliest = self.allowance.spend(now, took);
        if outcome.verified {
            self.failed.succeeded();
            if outcome.writes > 0 {
                self.look_at = sooner(self.look_at, now + VERIFY);
            }
        } else {
            let wait = self.failed.failed();
            self.look_at = sooner(self.look_at, now + wait);
        }
    }
}
