//! The tables' keeper: every trigger leads to the same comparison.
//!
//! Each table goes its own way (`parts`), so that what one suffers never stops the
//! other. Doubt about what is remembered arises at the start, when somebody else's
//! transaction touched the table, after a failure, a moment after changes of our own,
//! and at every audit. No masquerading is touched before the datastore has said "here
//! is everything"; the source check knows all that it needs from the ledger.
//!
//! Our own transactions come back as notifications like everybody's. The kernel sends
//! them before `nft` ends, so that what is there when it has ended is the echo, and one
//! more than our own is somebody else's.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::keeper::{Keeper, Outcome, rp_filter_is_loose};
use super::parts::{Masquerade, Part, SourceCheck};
use super::ruleset::{SPOOFED, TABLE, TableFamily};
use super::tool::Firewall;
use super::{EgressReport, Options, TableReport};
use crate::dataplane::pace::{Allowance, Backoff};
use crate::kernel::NetlinkError;
use crate::kernel::nftables::{Seen, TableMonitor, counted_packets};
use crate::state::{Endpoints, NodeState};

/// How often the table is listed though nothing called for it, in seconds. Jittered,
/// lest all nodes do it at once. Rarely, because it costs a process and every change is
/// told, lost notifications too.
const AUDIT_SECONDS: std::ops::Range<f64> = 270.0..330.0;

/// The same while nothing is heard.
const DEAF_AUDIT_SECONDS: std::ops::Range<f64> = 54.0..66.0;

/// How many times longer than a change's own wait the first one of many waits.
const PATIENCE: u32 = 10;

/// When changes of our own are looked at.
const VERIFY: Duration = Duration::from_secs(1);

/// How often the counter is read.
const COUNT: Duration = Duration::from_secs(5);

/// Says that somebody touched a table.
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

/// Hears of changes of the table of this family. A kernel that cannot tell has no
/// nftables either, which the table's own report will say.
pub fn monitor(family: TableFamily) -> Option<TableMonitor> {
    TableMonitor::open(family, TABLE)
        .inspect_err(|error| tracing::error!(%error, "changes of {family} are not heard of"))
        .ok()
}

/// What the task is told, and where it tells how it goes.
#[derive(Debug)]
pub struct Egress {
    /// What the user decides.
    pub options: Options,
    /// The node and the cluster; nothing is masqueraded while this is `None`.
    pub state: watch::Receiver<Option<NodeState>>,
    /// The ledger.
    pub endpoints: watch::Receiver<Endpoints>,
    /// How it goes.
    pub report: watch::Sender<EgressReport>,
}

impl Egress {
    /// Keeps the tables as they should be until the inputs end. Must be called in the
    /// network namespace whose tables they are.
    pub async fn run(self, firewall: impl Firewall + Clone) {
        if rp_filter_is_loose() {
            tracing::warn!(
                "net.ipv4.conf.all.rp_filter is 2 (loose), which outweighs the strict setting of \
                 pods' devices: in its first moments, and where the bandwidth plugin \
                 shapes what it sends, a pod can send from addresses that are not its own; set it \
                 to 0 or 1"
            );
        }
        let report = &self.report;
        let masquerade = keep(
            Masquerade::new(self.options, self.state),
            firewall.clone(),
            monitor(TableFamily::Inet),
            |update| {
                report.send_if_modified(|report| update(&mut report.masquerade));
            },
        );
        let source_check = keep(
            SourceCheck::new(self.endpoints),
            firewall,
            monitor(TableFamily::Netdev),
            |update| {
                report.send_if_modified(|report| update(&mut report.source_check));
            },
        );
        tokio::join!(masquerade, source_check);
    }
}

/// Keeps one table until its part ends.
async fn keep<P: Part>(
    mut part: P,
    firewall: impl Firewall,
    mut watcher: impl Watcher,
    publish: impl Fn(&dyn Fn(&mut TableReport) -> bool),
) {
    let mut keeper = Keeper::new(firewall, P::FAMILY);
    let mut schedule = Schedule::new();
    let mut dropped = Dropped::default();
    let mut count = tokio::time::interval(COUNT);
    count.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut hears = true;
    loop {
        tokio::select! {
            biased;
            () = sleep_until(schedule.at()) => {
                let look = schedule.begin();
                if !part.is_ready() {
                    continue;
                }
                // A table made anew counts from zero.
                dropped.read::<P>();
                let begun = Instant::now();
                let outcome = keeper.run(|| part.wanted(), look).await;
                match watcher.drain() {
                    Ok(seen) if seen.lost || seen.transactions > outcome.writes => schedule.look(),
                    Ok(_) => {}
                    Err(error) => tracing::error!(%error, "nftables' notifications fail"),
                }
                schedule.ended(&outcome, begun.elapsed());
                schedule.wait_for(part.is_waiting());
                dropped.read::<P>();
                publish(&|report| tell(P::FAMILY, report, &outcome, dropped.total));
            }
            changed = part.changed() => match changed {
                Some(gather) => schedule.compare(gather),
                None => return,
            },
            seen = watcher.next(), if hears => match seen {
                Ok(_) => schedule.look(),
                Err(error) => {
                    // The audit still finds what is no longer told.
                    tracing::error!(%error, "nftables' notifications have ended");
                    hears = false;
                    schedule.audit = DEAF_AUDIT_SECONDS;
                    schedule.look();
                }
            },
            _ = count.tick(), if P::COUNTS => {
                dropped.read::<P>();
                let total = dropped.total;
                publish(&|report| std::mem::replace(&mut report.dropped, total) != total);
            }
        }
    }
}

/// Writes down how a comparison went; says whether that is news.
fn tell(family: TableFamily, report: &mut TableReport, outcome: &Outcome, dropped: u64) -> bool {
    let before = report.clone();
    for sentence in outcome.problems.iter().chain(&outcome.warnings) {
        if !report.problems.contains(sentence) && !report.warnings.contains(sentence) {
            tracing::warn!("egress: {sentence}");
        }
    }
    if outcome.verified && !report.verified && outcome.warnings.is_empty() {
        tracing::info!("{family} is as it should be");
    }
    report.verified = outcome.verified;
    report.problems.clone_from(&outcome.problems);
    report.warnings.clone_from(&outcome.warnings);
    report.repairs += outcome.repairs;
    report.dropped = dropped;
    *report != before
}

/// The sum over all lives of the counter: one that was made anew begins at zero.
#[derive(Debug, Default)]
struct Dropped {
    total: u64,
    last: u64,
}

impl Dropped {
    fn read<P: Part>(&mut self) {
        if !P::COUNTS {
            return;
        }
        let now = counted_packets(P::FAMILY, TABLE, SPOOFED).unwrap_or_else(|error| {
            tracing::debug!(%error, "the counter of spoofed packets cannot be read");
            None
        });
        let now = now.unwrap_or(0);
        self.total += now.checked_sub(self.last).unwrap_or(now);
        self.last = now;
    }
}

/// When the next comparison begins, and whether it has to look.
struct Schedule {
    wanted: Instant,
    /// When what changed has been gathered, and until when that may last.
    gathered: Option<(Instant, Instant)>,
    earliest: Instant,
    audit: std::ops::Range<f64>,
    allowance: Allowance,
    /// From when on memory is to be doubted.
    look_at: Instant,
    failed: Backoff,
    waiting: Backoff,
}

impl Schedule {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            wanted: now,
            gathered: None,
            earliest: now,
            audit: AUDIT_SECONDS,
            allowance: Allowance::new(now),
            look_at: now,
            failed: Backoff::default(),
            waiting: Backoff::default(),
        }
    }

    fn at(&self) -> Instant {
        let wanted = self.wanted.min(self.look_at);
        let gathered = self.gathered.map_or(wanted, |(at, _)| at);
        wanted.min(gathered).max(self.earliest)
    }

    /// Somebody else touched the table.
    fn look(&mut self) {
        self.look_at = self.look_at.min(Instant::now());
    }

    /// Something that is compared with memory has changed. More of it is waited for until
    /// there was none for so long: the kernel makes links wait while a transaction runs, and
    /// pods that are being added must not.
    fn compare(&mut self, quiet: Duration) {
        let now = Instant::now();
        let latest = self.gathered.map_or(now + quiet * PATIENCE, |(_, at)| at);
        self.gathered = Some(((now + quiet).min(latest), latest));
    }

    /// Says whether to look; what is wanted from now on is the next one's.
    fn begin(&mut self) -> bool {
        let now = Instant::now();
        let audit = now + Duration::from_secs_f64(rand::random_range(self.audit.clone()));
        let look = self.look_at <= now;
        self.wanted = audit;
        self.gathered = None;
        if look {
            self.look_at = audit;
        }
        look
    }

    fn ended(&mut self, outcome: &Outcome, took: Duration) {
        let now = Instant::now();
        self.earliest = self.allowance.spend(now, took);
        if outcome.verified {
            self.failed.succeeded();
            if outcome.writes > 0 {
                self.look_at = self.look_at.min(now + VERIFY);
            }
        } else {
            let wait = self.failed.failed();
            self.look_at = self.look_at.min(now + wait);
        }
    }

    /// Something that nobody tells of is waited for.
    fn wait_for(&mut self, something: bool) {
        if something {
            let wait = self.waiting.failed();
            self.wanted = self.wanted.min(Instant::now() + wait);
        } else {
            self.waiting.succeeded();
        }
    }
}
