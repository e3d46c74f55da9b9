//! ADD as the owner decides it: what there is of the attachment already, which
//! address it gets, and what an outcome means.

use std::io;
use std::net::IpAddr;

use tokio::time::Instant;
use viaduct_cni::protocol::{Reply, Wired};
use viaduct_cni::wishes::Wishes;
use viaduct_cni::{CniError, fault, spool};
use viaduct_model::{AllocateError, AttachmentId, Endpoint, MacAddr};

use super::descriptors::Namespace;
use super::owner::{Event, Job, Owner};
use super::wiring::{self, Failure, Wired as Made};
use super::{GATEWAY, pair_of};
use crate::kernel::{NetlinkError, NetlinkSocket, veth};

impl Owner {
    pub(super) fn begin_add(&mut self, link: &str, job: Job) {
        fault::point("add.begun");
        // A DEL of an earlier life must not strike this one at the next start.
        // One that may not be touched may not be read then either.
        let cleared = spool::remove(&self.run_dir, &job.request.id);
        if let Err(e) = cleared.or_else(unless_forbidden) {
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
            return self.add_anew(link, job, None);
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
        if let Some(why) = contradiction(&existing, &job.request.wishes) {
            let error = CniError::new(
                CniError::CONFLICT,
                format!("attachment {} is there already: {why}", job.request.id),
            )
            .with_details("DEL it first");
            return self.refuse(job, error);
        }
        if existing.wired && existing.netns_id == namespace.id {
            return self.inspect(&existing, job);
        }
        self.add_again(existing, job);
    }

    /// `waits_until`: it waits for an address already, until then.
    pub(super) fn add_anew(&mut self, link: &str, job: Job, waits_until: Option<Instant>) {
        let known = self.node.borrow().as_ref().map(|state| state.local.mtu);
        let remembered = self.memory.as_ref().filter(|memory| memory.holds_now());
        let mtu = known.or_else(|| Some(remembered?.mtu));
        let Some(mtu) = mtu else {
            let why = "this node has not read its blocks from the datastore yet";
            return self.refuse(job, CniError::new(CniError::TRY_AGAIN_LATER, why));
        };
        let allocated = match *job.request.wishes.addresses.as_slice() {
            [] => self.addresses.allocate(&job.request.id),
            [address @ IpAddr::V4(_)] => self.addresses.take(&job.request.id, address),
            _ => {
                let error = CniError::new(
                    CniError::INVALID_CONFIG,
                    format!(
                        "attachment {}: the addresses {:?} are not allowed: one IPv4 address",
                        job.request.id, job.request.wishes.addresses
                    ),
                );
                return self.refuse(job, error);
            }
        };
        let (address, allocated_at) = match allocated {
            Ok(allocated) => allocated,
            Err(e) => {
                let error = not_allocated(&job.request.id, &e);
                if error.code == CniError::TRY_AGAIN_LATER {
                    self.starved = true;
                    let unproved = matches!(e, AllocateError::AllDraining { .. });
                    if self.may_grow(unproved) {
                        return self.queue(link, job, error, waits_until);
                    }
                    self.publish();
                }
                return self.refuse(job, error);
            }
        };
        fault::point("add.allocated");
        let request = &job.request;
        let endpoint = Endpoint {
            id: request.id.clone(),
            network: request.network.clone(),
            netns: request.netns.clone(),
            netns_id: job.namespace.as_ref().map_or((0, 0), |n| n.id),
            link: link.to_owned(),
            addresses: vec![address],
            pod_mac: request.wishes.mac.unwrap_or_else(|| request.id.pod_mac()),
            mtu,
            allocated_at,
            wired: false,
            secondary: false,
            pod: request.pod.clone(),
        };
        self.fresh.insert(link.to_owned());
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
                let _ = self.addresses.release(&endpoint.id);
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
        fault::point("add.recorded");
        let (wiring, own) = (self.wiring.clone(), self.own.clone());
        let forgetting = self.forgetting.clone();
        tokio::spawn(async move {
            forgetting.are_clean(&endpoint.addresses).await;
            fault::point("add.clean");
            let outcome = wiring
                .run(move |host| wiring::wire(host, &endpoint, &pair, namespace, replace))
                .await
                .unwrap_or_else(|e| Err(no_socket(&e)));
            let _ = own.send(Event::Wired { job, outcome }).await;
        });
    }

    pub(super) fn wired(&mut self, job: Job, outcome: Result<Made, Failure>) {
        let link = job.request.id.link_name();
        let fresh = self.fresh.remove(&link);
        let Some(endpoint) = self.endpoints.get(&link).cloned() else {
            // Only this attachment's own jobs remove it, and they wait in line.
            let error = CniError::new(
                CniError::CONFLICT,
                format!("link {link}: its record is gone"),
            );
            return self.refuse(job, error);
        };
        match outcome {
            // The machine, or this agent alone, may have slept for longer than the block
            // was surely ours.
            Ok(_) if fresh && !self.addresses.serve(&endpoint.addresses) => {
                let error = CniError::new(
                    CniError::TRY_AGAIN_LATER,
                    format!(
                        "attachment {}: while it was wired, its address {:?} ceased to be surely this \
                         node's",
                        endpoint.id, endpoint.addresses
                    ),
                );
                self.refuse(job, error);
            }
            Ok(Made { secondary }) => {
                fault::point("add.wired");
                let endpoint = Endpoint {
                    wired: true,
                    secondary,
                    ..endpoint
                };
                let reply = Reply::Wired(answer_of(&endpoint));
                match self.record(endpoint) {
                    Ok(()) => {
                        fault::point("add.recorded_wired");
                        self.answer(job, reply);
                        fault::point("add.answered");
                    }
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

    pub(super) fn inspected(&mut self, job: Job, stands: bool) {
        let link = job.request.id.link_name();
        match self.endpoints.get(&link).cloned() {
            Some(existing) if stands => self.answer(job, Reply::Wired(answer_of(&existing))),
            Some(existing) => self.add_again(existing, job),
            None => self.add_anew(&link, job, None),
        }
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

fn unless_forbidden(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::PermissionDenied => Ok(()),
        _ => Err(error),
    }
}

/// What an ADD wants that the attachment, which is there already, has not.
fn contradiction(existing: &Endpoint, wishes: &Wishes) -> Option<String> {
    let other = wishes
        .addresses
        .iter()
        .find(|a| !existing.addresses.contains(a));
    if let Some(address) = other {
        let has = &existing.addresses;
        return Some(format!("it has {has:?}, and is asked to have {address}"));
    }
    let mac = wishes.mac.filter(|mac| *mac != existing.pod_mac)?;
    let has = existing.pod_mac;
    Some(format!("it has MAC {has}, and is asked to have {mac}"))
}

fn not_allocated(id: &AttachmentId, error: &AllocateError) -> CniError {
    let msg = format!("attachment {id}: {error}");
    match error {
        AllocateError::NotOurs { .. } | AllocateError::Reserved { .. } => {
            CniError::new(CniError::INVALID_CONFIG, msg)
        }
        AllocateError::Taken { .. } => CniError::new(CniError::CONFLICT, msg),
        AllocateError::NoBlock { .. }
        | AllocateError::AllDraining { .. }
        | AllocateError::Full { .. } => CniError::new(CniError::TRY_AGAIN_LATER, error.to_string()),
    }
}

fn answer_of(endpoint: &Endpoint) -> Wired {
    Wired {
        host_link: endpoint.link.clone(),
        host_mac: MacAddr::HOST_END,
        pod_mac: endpoint.pod_mac,
        mtu: endpoint.mtu,
        addresses: endpoint.addresses.clone(),
        gateways: vec![GATEWAY.into()],
        secondary: endpoint.secondary,
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
