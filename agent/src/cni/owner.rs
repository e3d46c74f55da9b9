//! The one task that owns the ledger and the addresses.
//!
//! Requests come in as messages. What each means is decided here, at once and in
//! order; the blocking work on the kernel runs beside and reports back with a
//! message. While an attachment is being worked on, further requests for it wait in
//! line. What the runtime does not wait for any more is finished all the same, so
//! that ledger, addresses and kernel never disagree.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use viaduct_cni::protocol::{Reply, Request, Verb, Wired};
use viaduct_cni::{CniError, spool};
use viaduct_model::{Endpoint, MacAddr};

use super::addresses::Addresses;
use super::descriptors::Namespace;
use super::ledger::Ledger;
use super::metrics::CniMetrics;
use super::wiring::{self, Failure, Wiring};
use super::{GATEWAY, pair_of};
use crate::kernel::{NetlinkError, NetlinkSocket, veth};
use crate::state::{AddressUsage, Endpoints, NodeState};

/// How often the deletion of links is tried again before it is left to the
/// reconciler.
const DELETIONS: u32 = 3;

/// One request on its way through.
#[derive(Debug)]
pub(super) struct Job {
    /// What is asked.
    pub(super) request: Request,
    /// The descriptors of an ADD, checked; `None` with DEL.
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
        outcome: Result<(), Failure>,
    },
    /// A DEL's pod is cut off.
    CutOff {
        job: Job,
        outcome: Result<(), NetlinkError>,
    },
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
    pub(super) wiring: Wiring,
    pub(super) metrics: CniMetrics,
    pub(super) node: watch::Receiver<Option<NodeState>>,
    pub(super) endpoints_out: watch::Sender<Endpoints>,
    pub(super) usage_out: watch::Sender<AddressUsage>,
    pub(super) events: mpsc::Receiver<Event>,
    pub(super) own: mpsc::Sender<Event>,
    pub(super) starved: bool,
}

impl Owner {
    /// Runs until it is told to stop.
    pub(super) async fn run(mut self) {
        let mut stopping = false;
        let mut node_lives = true;
        while !(stopping && self.busy.is_empty()) {
            tokio::select! {
                event = self.events.recv() => match event {
                    Some(Event::Stop) | None => stopping = true,
                    Some(event) => self.take(event),
                },
                changed = self.node.changed(), if node_lives => match changed {
                    Ok(()) => self.adopt_node(),
                    Err(_) => node_lives = false,
                },
            }
        }
    }

    /// Takes over the blocks of a new state of the node.
    pub(super) fn adopt_node(&mut self) {
        let changed = match &*self.node.borrow_and_update() {
            Some(state) => self.addresses.adopt(state),
            None => false,
        };
        if changed {
            self.starved = false;
        }
        self.publish();
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Job(job) => {
                let link = job.request.id.link_name();
                match self.busy.get_mut(&link) {
                    Some(line) => line.push_back(job),
                    None => self.begin(&link, job),
                }
            }
            Event::Inspected { job, stands } => self.inspected(job, stands),
            Event::Wired { job, outcome } => self.wired(job, outcome),
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
        }
    }

    /// The attachment is free again: whoever waits is next.
    fn finish(&mut self, link: &str) {
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

    fn answer(&mut self, job: Job, reply: Reply) {
        let link = job.request.id.link_name();
        // Whoever asked may have gone; what was done stands and DEL undoes it.
        let _ = job.answer.send(reply);
        self.finish(&link);
    }

    fn refuse(&mut self, job: Job, error: CniError) {
        tracing::warn!(attachment = %job.request.id, code = error.code, error = %error.msg, "refused");
        self.answer(job, Reply::Refused(error));
    }

    fn begin_add(&mut self, link: &str, job: Job) {
        // A DEL of an earlier life must not strike this one at the next start.
        if let Err(e) = spool::remove(&self.run_dir, &job.request.id) {
            let error = CniError::new(
                CniError::IO_FAILURE,
                format!(
                    "attachment {}: cannot clear its spooled DEL: {e}",
                    job.request.id
                ),
            );
            return self.refuse(job, error);
        }
        let Some(namespace) = &job.namespace else {
            let error = CniError::new(CniError::PROTOCOL, "ADD came without descriptors");
            return self.refuse(job, error);
        };
        let Some(existing) = self.endpoints.get(link).cloned() else {
            return self.add_anew(link, job);
        };
        if self.stand_ins.contains_key(link) || existing.id != job.request.id {
            let error = CniError::new(
                CniError::CONFLICT,
                format!(
                    "attachment {}: its link {link} belongs to {}",
                    job.request.id, existing.id
                ),
            )
            .with_details("DEL that attachment first");
            return self.refuse(job, error);
        }
        if existing.wired && existing.netns_id == namespace.id {
            return self.inspect(&existing, job);
        }
        self.add_again(existing, job);
    }

    fn add_anew(&mut self, link: &str, job: Job) {
        let mtu = self.node.borrow().as_ref().map(|state| state.local.mtu);
        let Some(mtu) = mtu else {
            let why = "this node has not read its blocks from the datastore yet";
            return self.refuse(job, CniError::new(CniError::TRY_AGAIN_LATER, why));
        };
        let (address, allocated_at) = match self.addresses.allocate(&job.request.id) {
            Ok(allocated) => allocated,
            Err(e) => {
                self.starved = true;
                self.publish();
                let error = CniError::new(CniError::TRY_AGAIN_LATER, e.to_string());
                return self.refuse(job, error);
            }
        };
        let request = &job.request;
        let endpoint = Endpoint {
            id: request.id.clone(),
            network: request.network.clone(),
            netns: request.netns.clone(),
            netns_id: job.namespace.as_ref().map_or((0, 0), |n| n.id),
            link: link.to_owned(),
            addresses: vec![address],
            pod_mac: request.id.pod_mac(),
            mtu,
            allocated_at,
            wired: false,
            pod: request.pod.clone(),
        };
        self.wire(endpoint, job, false);
    }

    /// The attachment is there, but not as this ADD wants it: the same addresses, a
    /// new pair.
    fn add_again(&mut self, existing: Endpoint, job: Job) {
        if !self.addresses.are_ours(&existing.addresses) {
            let error = CniError::new(
                CniError::TRY_AGAIN_LATER,
                format!(
                    "attachment {}: its address is in no block of this node any more",
                    existing.id
                ),
            )
            .with_details("DEL it, then ADD again");
            return self.refuse(job, error);
        }
        let endpoint = Endpoint {
            netns: job.request.netns.clone(),
            netns_id: job.namespace.as_ref().map_or((0, 0), |n| n.id),
            wired: false,
            ..existing
        };
        self.wire(endpoint, job, true);
    }

    /// Writes the endpoint down and has it wired.
    fn wire(&mut self, endpoint: Endpoint, mut job: Job, replace: bool) {
        let (Some(pair), Some(namespace)) = (pair_of(&endpoint), job.namespace.take()) else {
            if !replace {
                self.addresses.release(&endpoint.id);
            }
            let error = CniError::new(
                CniError::CONFLICT,
                format!(
                    "attachment {}: its record holds no IPv4 address, or its descriptors are lost",
                    endpoint.id
                ),
            );
            return self.refuse(job, error);
        };
        if let Err(error) = self.record(endpoint.clone()) {
            if !replace {
                self.forget(&endpoint);
            }
            return self.refuse(job, error);
        }
        let (wiring, own) = (self.wiring.clone(), self.own.clone());
        tokio::spawn(async move {
            let outcome = wiring
                .run(move |host| wiring::wire(host, &pair, namespace, replace))
                .await
                .unwrap_or_else(|e| Err(no_socket(&e)));
            let _ = own.send(Event::Wired { job, outcome }).await;
        });
    }

    fn wired(&mut self, job: Job, outcome: Result<(), Failure>) {
        let link = job.request.id.link_name();
        let Some(endpoint) = self.endpoints.get(&link).cloned() else {
            // Only this attachment's own jobs remove it, and they wait in line.
            let error = CniError::new(
                CniError::CONFLICT,
                format!("link {link}: its record is gone"),
            );
            return self.refuse(job, error);
        };
        match outcome {
            Ok(()) => {
                let endpoint = Endpoint {
                    wired: true,
                    ..endpoint
                };
                let reply = Reply::Wired(answer_of(&endpoint));
                match self.record(endpoint) {
                    Ok(()) => self.answer(job, reply),
                    // The record says "not wired" still, which a DEL or the next
                    // start cleans up.
                    Err(error) => self.refuse(job, error),
                }
            }
            Err(failure) => {
                if !failure.leftover {
                    self.forget(&endpoint);
                }
                self.refuse(job, failure.error);
            }
        }
    }

    fn inspect(&mut self, existing: &Endpoint, mut job: Job) {
        let pair = pair_of(existing);
        let (wiring, own) = (self.wiring.clone(), self.own.clone());
        tokio::spawn(async move {
            let namespace = job.namespace.take();
            let (namespace, stands) = match (pair, namespace) {
                (Some(pair), Some(namespace)) => wiring
                    .run(move |host| inspect(host, &pair, namespace))
                    .await
                    .map_or((None, false), |(n, stands)| (Some(n), stands)),
                (_, namespace) => (namespace, false),
            };
            job.namespace = namespace;
            let _ = own.send(Event::Inspected { job, stands }).await;
        });
    }

    fn inspected(&mut self, job: Job, stands: bool) {
        let link = job.request.id.link_name();
        match self.endpoints.get(&link).cloned() {
            Some(existing) if stands => self.answer(job, Reply::Wired(answer_of(&existing))),
            Some(existing) => self.add_again(existing, job),
            None => self.add_anew(&link, job),
        }
    }

    fn begin_del(&mut self, link: &str, job: Job) {
        let known = match self.endpoints.get(link) {
            Some(existing) if existing.id == job.request.id => Some(existing.clone()),
            Some(existing) if self.stand_ins.contains_key(link) => Some(existing.clone()),
            _ => None,
        };
        let Some(existing) = known else {
            return self.gone(job);
        };
        // Published as not wired: the reconciler leaves such links alone.
        let leaving = Endpoint {
            wired: false,
            ..existing
        };
        Arc::make_mut(&mut self.endpoints).insert(link.to_owned(), leaving.clone());
        self.publish();
        let (wiring, own) = (self.wiring.clone(), self.own.clone());
        tokio::spawn(async move {
            let outcome = wiring
                .run(move |host| wiring::cut_off(host, &leaving))
                .await
                .and_then(|outcome| outcome);
            let _ = own.send(Event::CutOff { job, outcome }).await;
        });
    }

    fn cut_off(&mut self, job: Job, outcome: Result<(), NetlinkError>) {
        let link = job.request.id.link_name();
        if let Err(e) = outcome {
            let error = CniError::new(
                CniError::KERNEL_REFUSED,
                format!(
                    "attachment {}: cannot cut link {link} off: {e}",
                    job.request.id
                ),
            );
            return self.refuse(job, error);
        }
        if let Err(e) = self.ledger.remove(&link) {
            let error = CniError::new(
                CniError::IO_FAILURE,
                format!(
                    "attachment {}: cannot remove its record: {e}",
                    job.request.id
                ),
            );
            return self.refuse(job, error);
        }
        // Not the job's id: a stand-in's is another.
        if let Some(endpoint) = self.endpoints.get(&link) {
            self.addresses.release(&endpoint.id);
        }
        self.stand_ins.remove(&link);
        if let Err(e) = spool::remove(&self.run_dir, &job.request.id) {
            tracing::warn!(attachment = %job.request.id, error = %e, "its spooled DEL cannot be removed");
        }
        self.publish();
        // The deletion of the link, the slow part, need not be waited for; but the
        // attachment stays busy until then.
        let _ = job.answer.send(Reply::Gone);
        self.doomed.push(link);
        self.delete_doomed(Duration::ZERO);
    }

    fn gone(&mut self, job: Job) {
        if let Err(e) = spool::remove(&self.run_dir, &job.request.id) {
            tracing::warn!(attachment = %job.request.id, error = %e, "its spooled DEL cannot be removed");
        }
        self.answer(job, Reply::Gone);
    }

    /// Deletes all that is marked, unless a deletion is under way already.
    fn delete_doomed(&mut self, after: Duration) {
        if !self.dying.is_empty() || self.doomed.is_empty() {
            return;
        }
        self.dying = std::mem::take(&mut self.doomed);
        let (wiring, own) = (self.wiring.clone(), self.own.clone());
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            let outcome = wiring.run(veth::delete_doomed).await.and_then(|o| o);
            let _ = own.send(Event::Deleted(outcome)).await;
        });
    }

    fn deleted(&mut self, outcome: Result<(), NetlinkError>) {
        let links = std::mem::take(&mut self.dying);
        if let Err(e) = outcome {
            self.failed_deletions += 1;
            tracing::warn!(?links, error = %e, "links of deleted attachments cannot be deleted");
            if self.failed_deletions < DELETIONS {
                self.doomed.extend(links);
                return self.delete_doomed(Duration::from_millis(100));
            }
        }
        self.failed_deletions = 0;
        let endpoints = Arc::make_mut(&mut self.endpoints);
        for link in &links {
            endpoints.remove(link);
        }
        self.publish();
        for link in links {
            self.finish(&link);
        }
        self.delete_doomed(Duration::ZERO);
    }

    /// Writes an endpoint into the ledger and publishes it.
    fn record(&mut self, endpoint: Endpoint) -> Result<(), CniError> {
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
    fn forget(&mut self, endpoint: &Endpoint) {
        if let Err(e) = self.ledger.remove(&endpoint.link) {
            tracing::error!(attachment = %endpoint.id, error = %e, "the record of a failed ADD stays; its address stays taken");
            return;
        }
        Arc::make_mut(&mut self.endpoints).remove(&endpoint.link);
        self.addresses.release(&endpoint.id);
        self.publish();
    }

    /// Tells the other tasks how things stand.
    pub(super) fn publish(&self) {
        let count = i64::try_from(self.endpoints.len()).unwrap_or(i64::MAX);
        self.metrics.endpoints.set(count);
        self.endpoints_out.send_if_modified(|out| {
            let changed = *out != self.endpoints;
            if changed {
                *out = self.endpoints.clone();
            }
            changed
        });
        let usage = AddressUsage {
            blocks: self.addresses.usage(),
            starved: self.starved,
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

/// Looks an attachment over and gives its descriptors back, the socket as a new
/// one of the same namespace.
fn inspect(host: &mut NetlinkSocket, pair: &veth::Pair, namespace: Namespace) -> (Namespace, bool) {
    let stands = namespace
        .rtnetlink
        .try_clone()
        .ok()
        .and_then(|fd| NetlinkSocket::from_fd(fd).ok())
        .is_some_and(|mut pod| wiring::stands(host, pair, &mut pod));
    (namespace, stands)
}

fn answer_of(endpoint: &Endpoint) -> Wired {
    Wired {
        host_link: endpoint.link.clone(),
        host_mac: MacAddr::HOST_END,
        pod_mac: endpoint.pod_mac,
        mtu: endpoint.mtu,
        addresses: endpoint.addresses.clone(),
        gateways: vec![GATEWAY.into()],
    }
}

fn no_socket(error: &NetlinkError) -> Failure {
    Failure {
        error: CniError::new(
            CniError::TRY_AGAIN_LATER,
            format!("the node's kernel cannot be asked: {error}"),
        ),
        // Without a socket nothing was done; a step that was cut off may have been.
        leftover: !matches!(error, NetlinkError::Socket { .. }),
    }
}
