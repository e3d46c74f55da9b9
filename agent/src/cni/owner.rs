//! The one task that owns the ledger and the addresses.
//!
//! Requests come in as messages. What each means is decided here, at once and in
//! order; the blocking work on the kernel runs beside and reports back with a
//! message. While an attachment is being worked on, further requests for it wait in
//! line. What the runtime does not wait for any more is finished all the same, so
//! that ledger, addresses and kernel never disagree.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};
use viaduct_cni::CniError;
use viaduct_cni::protocol::{Reply, Request, Verb};
use viaduct_model::{Endpoint, Tenure};

use super::addresses::Addresses;
use super::descriptors::Namespace;
use super::forgetting::Forgetting;
use super::gc::Collection;
use super::hunger::{self, Hungry};
use super::inquiry::Inquiry;
use super::ledger::Ledger;
use super::metrics::CniMetrics;
use super::wiring::{Failure, Wired, Wiring};
use crate::isolation::{self, Foreign};
use crate::kernel::NetlinkError;
use crate::memory::Memory;
use crate::state::{AddressUsage, Endpoints, NodeState};

/// One request on its way through.
#[derive(Debug)]
pub(super) struct Job {
    /// What is asked.
    pub(super) request: Request,
    /// The descriptors of an ADD or CHECK, checked; `None` with DEL.
    pub(super) namespace: Option<Namespace>,
    /// Where the answer goes; nobody may be listening any more.
    pub(super) answer: oneshot::Sender<Reply>,
}

/// What the owner is told.
#[derive(Debug)]
pub(super) enum Event {
    /// A request.
    Job(Job),
    /// An attachment was found to stand as it should, or not.
    Inspected { job: Job, stands: bool },
    /// An ADD came to its end.
    Wired {
        job: Job,
        outcome: Result<Wired, Failure>,
    },
    /// A DEL's pod is cut off.
    CutOff {
        job: Job,
        outcome: Result<(), NetlinkError>,
    },
    /// A CHECK has looked: what differs.
    Checked {
        job: Job,
        differences: Result<Vec<String>, NetlinkError>,
    },
    /// Remove the attachments of a network that are not to be kept.
    Collect(Collection),
    /// Say what is known of an address.
    Inquire(Inquiry),
    /// Links that were marked are deleted.
    Deleted(Result<(), NetlinkError>),
    /// Finish what is under way and end.
    Stop,
}

/// The owner's state.
pub(super) struct Owner {
    pub(super) run_dir: std::path::PathBuf,
    pub(super) ledger: Ledger,
    pub(super) addresses: Addresses,
    /// What the ledger holds, by link. Published after each change.
    pub(super) endpoints: Endpoints,
    /// Links whose record is damaged; their endpoint is a stand-in that only keeps
    /// the addresses taken.
    pub(super) stand_ins: BTreeMap<String, String>,
    /// Attachments that are being worked on, and who waits for them.
    pub(super) busy: HashMap<String, VecDeque<Job>>,
    /// Links that are marked and not deleted yet.
    pub(super) doomed: Vec<String>,
    /// Links that a deletion under way is about.
    pub(super) dying: Vec<String>,
    pub(super) failed_deletions: u32,
    /// Where released addresses go for their connections to be forgotten.
    pub(super) forgetting: Forgetting,
    pub(super) wiring: Wiring,
    pub(super) metrics: CniMetrics,
    pub(super) node: watch::Receiver<Option<NodeState>>,
    /// What to go by while `node` is not known.
    pub(super) memory: Option<Arc<Memory>>,
    pub(super) endpoints_out: watch::Sender<Endpoints>,
    pub(super) usage_out: watch::Sender<AddressUsage>,
    pub(super) events: mpsc::Receiver<Event>,
    pub(super) own: mpsc::Sender<Event>,
    pub(super) starved: bool,
    pub(super) tenure: Option<watch::Receiver<Arc<Tenure>>>,
    /// Pods that are cut off, because their address belongs to another node now.
    pub(super) foreign: BTreeMap<String, Foreign>,
    /// ADDs that wait for an address.
    pub(super) hungry: VecDeque<Hungry>,
    /// Links of ADDs under way whose address was just handed out.
    pub(super) fresh: HashSet<String>,
}

/// Completes when the hold on the blocks changed; never where nobody keeps it.
async fn tenure_changed(tenure: &mut Option<watch::Receiver<Arc<Tenure>>>) {
    if let Some(watched) = tenure
        && watched.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

impl Owner {
    /// Runs until it is told to stop.
    pub(super) async fn run(mut self) {
        let mut stopping = false;
        let mut node_lives = true;
        while !(stopping && self.busy.is_empty()) {
            tokio::select! {
                event = self.events.recv() => match event {
                    Some(Event::Stop) | None => {
                        stopping = true;
                        self.send_away(true);
                    }
                    Some(event) => self.take(event),
                },
                changed = self.node.changed(), if node_lives => match changed {
                    Ok(()) => self.adopt_node(),
                    Err(_) => node_lives = false,
                },
                () = tenure_changed(&mut self.tenure) => self.adopt_node(),
                () = hunger::patience(&self.hungry) => self.send_away(false),
            }
        }
        // The next agent does not know what was released just now.
        self.forgetting.all_done().await;
    }

    /// Takes over the blocks of a new state of the node.
    pub(super) fn adopt_node(&mut self) {
        if let Some(tenure) = &mut self.tenure {
            self.addresses.hold(&tenure.borrow_and_update());
        }
        let changed = match (&*self.node.borrow_and_update(), &self.memory) {
            (Some(state), _) => self.addresses.adopt(state),
            (None, Some(memory)) => {
                self.addresses.remember(memory);
                false
            }
            (None, None) => false,
        };
        if changed {
            self.starved = false;
        }
        self.judge_foreign();
        self.publish();
        if changed {
            self.feed();
        }
    }

    /// Finds the pods that have to be cut off, and says so once of each.
    pub(super) fn judge_foreign(&mut self) {
        let foreign = match &*self.node.borrow() {
            Some(state) => isolation::foreign(state, self.endpoints.values()),
            None => return,
        };
        for (link, new) in &foreign {
            if self.foreign.get(link) != Some(new) {
                tracing::error!("{new}");
            }
        }
        for (link, old) in &self.foreign {
            if !foreign.contains_key(link) {
                tracing::info!(attachment = %old.attachment, "no longer cut off");
            }
        }
        self.foreign = foreign;
    }

    pub(super) fn take(&mut self, event: Event) {
        match event {
            Event::Job(job) => {
                let link = job.request.id.link_name();
                match self.busy.get_mut(&link) {
                    Some(line) => {
                        line.push_back(job);
                        // Whoever waits for an address must not keep a DEL waiting.
                        self.give_up(&link);
                    }
                    None => self.begin(&link, job),
                }
            }
            Event::Inspected { job, stands } => self.inspected(job, stands),
            Event::Wired { job, outcome } => self.wired(job, outcome),
            Event::Checked { job, differences } => self.checked(job, differences),
            Event::Collect(collection) => self.collect(collection),
            Event::Inquire(inquiry) => self.inquire(inquiry),
            Event::CutOff { job, outcome } => self.cut_off(job, outcome),
            Event::Deleted(outcome) => self.deleted(outcome),
            Event::Stop => {}
        }
    }

    fn begin(&mut self, link: &str, job: Job) {
        self.busy.insert(link.to_owned(), VecDeque::new());
        match job.request.verb {
            Verb::Add => self.begin_add(link, job),
            Verb::Del => self.begin_del(link, job),
            Verb::Check => self.begin_check(link, job),
        }
    }

    /// The attachment is free again: whoever waits is next.
    pub(super) fn finish(&mut self, link: &str) {
        match self.busy.remove(link).unwrap_or_default() {
            mut line if !line.is_empty() => {
                if let Some(next) = line.pop_front() {
                    self.begin(link, next);
                }
                if let Some(now) = self.busy.get_mut(link) {
                    now.extend(line);
                } else {
                    // `begin` answered at once; the rest comes as if new.
                    for job in line {
                        self.take(Event::Job(job));
                    }
                }
            }
            _ => {}
        }
    }

    pub(super) fn answer(&mut self, job: Job, reply: Reply) {
        let link = job.request.id.link_name();
        // Whoever asked may have gone; what was done stands and DEL undoes it.
        let _ = job.answer.send(reply);
        self.finish(&link);
    }

    pub(super) fn refuse(&mut self, job: Job, error: CniError) {
        tracing::warn!(attachment = %job.request.id, code = error.code, error = %error.msg, "refused");
        self.answer(job, Reply::Refused(error));
    }

    /// Writes an endpoint into the ledger and publishes it.
    pub(super) fn record(&mut self, endpoint: Endpoint) -> Result<(), CniError> {
        self.ledger.write(&endpoint).map_err(|e| {
            CniError::new(
                CniError::IO_FAILURE,
                format!("attachment {}: cannot write its record: {e}", endpoint.id),
            )
        })?;
        Arc::make_mut(&mut self.endpoints).insert(endpoint.link.clone(), endpoint);
        self.publish();
        Ok(())
    }

    /// Takes an endpoint back of which nothing is left in the kernel.
    pub(super) fn forget(&mut self, endpoint: &Endpoint) {
        if let Err(e) = self.ledger.remove(&endpoint.link) {
            tracing::error!(attachment = %endpoint.id, error = %e, "the record of a failed ADD stays; its address stays taken");
            return;
        }
        Arc::make_mut(&mut self.endpoints).remove(&endpoint.link);
        // Nobody ever spoke with it: there is nothing to forget.
        let _ = self.addresses.release(&endpoint.id);
        self.publish();
        self.feed();
    }

    /// Tells the other tasks how things stand.
    pub(super) fn publish(&self) {
        let count = i64::try_from(self.endpoints.len()).unwrap_or(i64::MAX);
        self.metrics.endpoints.set(count);
        let early = self.addresses.early_reuses();
        let counted = self.metrics.early_reuses.get();
        self.metrics
            .early_reuses
            .inc_by(early.saturating_sub(counted));
        self.endpoints_out.send_if_modified(|out| {
            // Every change made a copy, since the watch holds the last one.
            let changed = !Arc::ptr_eq(out, &self.endpoints);
            if changed {
                *out = self.endpoints.clone();
            }
            changed
        });
        let usage = AddressUsage {
            blocks: self.addresses.usage(),
            cooling: self.addresses.cooling(),
            starved: self.starved,
            waiting: u32::try_from(self.hungry.len()).unwrap_or(u32::MAX),
            draining: self.addresses.draining(),
            heeds: self.addresses.heeds(),
            keep: self.addresses.keep(),
            foreign: self.foreign.clone(),
        };
        self.usage_out.send_if_modified(|out| {
            let changed = *out != usage;
            if changed {
                *out = usage;
            }
            changed
        });
    }
}
