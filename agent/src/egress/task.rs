//! The task that owns the table: every trigger leads to the same comparison.
//!
//! It remembers how the table was last seen or made. A pod that comes or goes is
//! compared with that memory and costs one transaction; the kernel is listed only when
//! there is reason to doubt the memory: at the start, when somebody else's transaction
//! touched the table, after a failure, a moment after changes of our own, and at every
//! audit. Nothing is touched before the datastore has said "here is everything".
//!
//! Our own transactions come back as notifications like everybody's. The kernel sends
//! them before `nft` ends, so that what is there when it has ended is the echo, and one
//! more than our own is somebody else's.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::change::{Change, change, transaction};
use super::desired::desired;
use super::ruleset::{Chain, Ruleset, SPOOFED, TABLE};
use super::tool::{Firewall, ToolError};
use super::{EgressReport, Options};
use crate::dataplane::pace::{Backoff, pause_after};
use crate::kernel::NetlinkError;
use crate::kernel::nftables::{Seen, TableMonitor, counted_packets};
use crate::state::{Endpoints, NodeState};

/// How often the table is listed though nothing called for it, in seconds. Jittered,
/// lest all nodes do it at once.
const AUDIT_SECONDS: std::ops::Range<f64> = 54.0..66.0;

/// What changes of pods wait for, so that many become one transaction. `rp_filter` holds a new pod to its address meanwhile.
const GATHER: Duration = Duration::from_millis(100);

/// When changes of our own are looked at.
const VERIFY: Duration = Duration::from_secs(1);

/// How often the counter is read.
const COUNT: Duration = Duration::from_secs(2);

/// Says that somebody touched the table, and what the counter has counted.
pub trait Watcher: Send + 'static {
    /// Waits until somebody has.
    fn next(&mut self) -> impl Future<Output = Result<Seen, NetlinkError>> + Send;

    /// What has come until now, without waiting.
    fn drain(&mut self) -> Result<Seen, NetlinkError>;

    /// The packets counted since the counter was made; `None` when it is not there.
    fn spoofed(&mut self) -> Option<u64>;
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

    fn spoofed(&mut self) -> Option<u64> {
        match counted_packets(TABLE, SPOOFED) {
            Ok(packets) => packets,
            Err(error) => {
                tracing::debug!(%error, "the counter of spoofed packets cannot be read");
                None
            }
        }
    }
}

/// What the task is told, and where it tells how it goes.
#[derive(Debug)]
pub struct Egress {
    /// What the user decides.
    pub options: Options,
    /// The node and the cluster; nothing is touched while this is `None`.
    pub state: watch::Receiver<Option<NodeState>>,
    /// The ledger.
    pub endpoints: watch::Receiver<Endpoints>,
    /// How it goes.
    pub report: watch::Sender<EgressReport>,
}

impl Egress {
    /// Keeps the table as it should be until the inputs end.
    pub async fn run(mut self, firewall: impl Firewall, mut watcher: impl Watcher) {
        let mut keeper = Keeper::new(firewall, self.options.clone());
        let mut schedule = Schedule::new();
        let mut counter = Counter::default();
        let mut count = tokio::time::interval(COUNT);
        count.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut hears = true;
        loop {
            tokio::select! {
                biased;
                () = sleep_until(schedule.at()) => {
                    let wanted = {
                        let state = self.state.borrow_and_update();
                        let endpoints = self.endpoints.borrow_and_update();
                        let options = &self.options;
                        state.as_ref().map(|state| desired(state, &endpoints, options))
                    };
                    let look = schedule.begin();
                    let Some(wanted) = wanted else { continue };
                    // A table made anew counts from zero.
                    counter.take(watcher.spoofed());
                    let begun = Instant::now();
                    let outcome = keeper.run(&wanted, look).await;
                    match watcher.drain() {
                        Ok(seen) if seen.lost || seen.transactions > outcome.writes => schedule.look(),
                        Ok(_) => {}
                        Err(error) => tracing::error!(%error, "nftables' notifications fail"),
                    }
                    schedule.ended(&outcome, begun.elapsed());
                    counter.take(watcher.spoofed());
                    self.publish(outcome, counter.total);
                }
                changed = self.state.changed() => match changed {
                    // Mostly compared and found to change nothing here. What does is
                    // about addresses that pods may have at any moment.
                    Ok(()) => schedule.compare(Duration::ZERO),
                    Err(_) => return,
                },
                changed = self.endpoints.changed() => match changed {
                    Ok(()) => schedule.compare(GATHER),
                    Err(_) => return,
                },
                seen = watcher.next(), if hears => match seen {
                    Ok(_) => schedule.look(),
                    Err(error) => {
                        // The audit still finds what is no longer told.
                        tracing::error!(%error, "nftables' notifications have ended");
                        hears = false;
                    }
                },
                _ = count.tick() => {
                    counter.take(watcher.spoofed());
                    let total = counter.total;
                    self.report.send_if_modified(|report| {
                        std::mem::replace(&mut report.spoofed_packets, total) != total
                    });
                }
            }
        }
    }

    fn publish(&self, outcome: Outcome, spoofed: u64) {
        self.report.send_if_modified(|report| {
            let before = report.clone();
            for sentence in outcome.problems.iter().chain(&outcome.warnings) {
                if !report.problems.contains(sentence) && !report.warnings.contains(sentence) {
                    tracing::warn!("egress: {sentence}");
                }
            }
            if outcome.verified && !report.verified && outcome.warnings.is_empty() {
                tracing::info!("nft table inet {TABLE} is as it should be");
            }
            report.verified = outcome.verified;
            report.problems = outcome.problems;
            report.warnings = outcome.warnings;
            report.repairs += outcome.repairs;
            report.spoofed_packets = spoofed;
            *report != before
        });
    }
}

/// The sum over all lives of the counter: one that was made anew begins at zero.
#[derive(Debug, Default)]
struct Counter {
    total: u64,
    last: u64,
}

impl Counter {
    fn take(&mut self, now: Option<u64>) {
        let now = now.unwrap_or(0);
        self.total += now.checked_sub(self.last).unwrap_or(now);
        self.last = now;
    }
}

/// What one comparison did and found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Whether the table is as it should be.
    pub verified: bool,
    /// What differs or failed.
    pub problems: Vec<String>,
    /// What is worth knowing.
    pub warnings: Vec<String>,
    /// Transactions made.
    pub writes: u64,
    /// Those of them that undid what somebody else had done.
    pub repairs: u64,
}

/// The comparison and what it remembers.
#[derive(Debug)]
pub struct Keeper<F> {
    firewall: F,
    options: Options,
    /// How the table was last seen or made; `None` when that is not known.
    known: Option<Ruleset>,
    /// The same while it is doubted: what differs from it now, somebody else has done.
    left: Option<Ruleset>,
    /// How this release of `nft` spells chains that we have just made.
    dialect: Option<Dialect>,
}

#[derive(Debug)]
struct Dialect {
    wanted: Chains,
    listed: Chains,
}

type Chains = std::collections::BTreeMap<String, Chain>;

/// How often one comparison changes the table before it leaves the rest to the next.
const PASSES: usize = 4;

impl<F: Firewall> Keeper<F> {
    /// Nothing is listed or changed yet.
    pub fn new(firewall: F, options: Options) -> Self {
        Self {
            firewall,
            options,
            known: None,
            left: None,
            dialect: None,
        }
    }

    /// Compares and changes; `look` says that memory is to be doubted.
    pub async fn run(&mut self, wanted: &Ruleset, look: bool) -> Outcome {
        let mut outcome = Outcome::default();
        if look && self.known.is_some() {
            self.left = self.known.take();
        }
        let done = self.try_run(wanted, &mut outcome).await;
        outcome.verified = matches!(done, Ok(true));
        if let Err(error) = done {
            self.tell(&error, &mut outcome);
        }
        outcome
    }

    async fn try_run(
        &mut self,
        wanted: &Ruleset,
        outcome: &mut Outcome,
    ) -> Result<bool, ToolError> {
        let mut rewritten = false;
        for _ in 0..PASSES {
            let remembered = self.known.is_some();
            let listed = match self.known.take() {
                Some(known) => Some(known),
                None => self.firewall.list().await?.map(|found| self.read(found)),
            };
            let left = self.left.take();
            let drifted = left.is_some_and(|left| listed.as_ref() != Some(&left));
            let Some(change) = change(wanted, listed.as_ref()) else {
                self.known = listed;
                return Ok(true);
            };
            let spelling = listed.as_ref().filter(|_| rewritten);
            if spelling.is_some_and(|listed| self.learn(wanted, listed)) {
                // Read again in the dialect that was just learnt.
                continue;
            }
            tracing::debug!(%change, "nft table inet {TABLE} changes");
            match self.firewall.apply(transaction(wanted, &change)).await {
                // It may fit no longer, and has done nothing then.
                Err(ToolError::Refused(_)) if remembered => {
                    self.left = listed;
                    continue;
                }
                applied => applied?,
            }
            outcome.writes += 1;
            if drifted {
                outcome.repairs += 1;
                tracing::warn!(
                    "nft table inet {TABLE} was changed by somebody else and is repaired: {change}"
                );
            }
            match change {
                Change::Elements(_) => {
                    self.known = Some(wanted.clone());
                    return Ok(true);
                }
                // Looked at once: this is where a spelling shows.
                Change::Rewrite(_) => rewritten = true,
            }
        }
        outcome.problems.push(format!(
            "nft table inet {TABLE} differs again and again from what was just written; somebody else changes it"
        ));
        Ok(false)
    }

    /// What was listed, in our own spelling where it is known to mean the same.
    fn read(&self, mut found: Ruleset) -> Ruleset {
        if let Some(dialect) = &self.dialect
            && dialect.listed == found.chains
        {
            found.chains = dialect.wanted.clone();
        }
        found
    }

    /// Takes what is listed right after the table was made anew for another release's
    /// spelling of it, if it has the same chains with as many rules each.
    fn learn(&mut self, wanted: &Ruleset, listed: &Ruleset) -> bool {
        let shape = |chains: &Chains| -> Vec<(String, usize)> {
            chains
                .iter()
                .map(|(name, chain)| (name.clone(), chain.rules.len()))
                .collect()
        };
        let same = listed.unknown.is_empty()
            && listed.chains != wanted.chains
            && shape(&listed.chains) == shape(&wanted.chains);
        let known = self
            .dialect
            .as_ref()
            .is_some_and(|d| d.wanted == wanted.chains && d.listed == listed.chains);
        if same && !known {
            tracing::debug!("this release of nft spells the table's rules in its own way");
            self.dialect = Some(Dialect {
                wanted: wanted.chains.clone(),
                listed: listed.chains.clone(),
            });
        }
        same && !known
    }

    /// Without masquerading the table is a second line of defence, and a host without
    /// nftables is a host that can be used.
    fn tell(&self, error: &ToolError, outcome: &mut Outcome) {
        if *error != ToolError::Missing || self.options.masquerade {
            let sentence = format!("nft table inet {TABLE}: {error}");
            outcome.problems.push(sentence);
            return;
        }
        outcome.verified = true;
        let mut sentence = format!(
            "pods are held to their own addresses by the kernel's rp_filter alone: {error}"
        );
        if rp_filter_of_all().as_deref() == Some("2") {
            sentence.push_str(
                "; and net.ipv4.conf.all.rp_filter is 2, which outweighs the strict check of pods' \
                 devices, so that pods can send from addresses that are not theirs",
            );
        }
        outcome.warnings.push(sentence);
    }
}

fn rp_filter_of_all() -> Option<String> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/conf/all/rp_filter").ok()?;
    Some(text.trim().to_owned())
}

/// When the next comparison begins, and whether it has to look.
struct Schedule {
    wanted: Instant,
    earliest: Instant,
    /// From when on memory is to be doubted.
    look_at: Instant,
    backoff: Backoff,
}

impl Schedule {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            wanted: now,
            earliest: now,
            look_at: now,
            backoff: Backoff::default(),
        }
    }

    fn at(&self) -> Instant {
        self.wanted.min(self.look_at).max(self.earliest)
    }

    /// Somebody else touched the table.
    fn look(&mut self) {
        self.look_at = self.look_at.min(Instant::now());
    }

    /// Something that is compared with memory has changed.
    fn compare(&mut self, delay: Duration) {
        self.wanted = self.wanted.min(Instant::now() + delay);
    }

    /// Says whether to look; what is wanted from now on is the next one's.
    fn begin(&mut self) -> bool {
        let now = Instant::now();
        let audit = now + Duration::from_secs_f64(rand::random_range(AUDIT_SECONDS));
        let look = self.look_at <= now;
        self.wanted = audit;
        if look {
            self.look_at = audit;
        }
        look
    }

    fn ended(&mut self, outcome: &Outcome, took: Duration) {
        let now = Instant::now();
        self.earliest = now + pause_after(took);
        if outcome.verified {
            self.backoff.succeeded();
            if outcome.writes > 0 {
                self.look_at = self.look_at.min(now + VERIFY);
            }
        } else {
            let wait = self.backoff.failed();
            self.look_at = self.look_at.min(now + wait);
        }
    }
}
