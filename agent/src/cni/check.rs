//! CHECK: an attachment compared with its record and with what the runtime was told.
//!
//! The looking is two close-ups, one through the host's socket and one through the
//! pod's; the judging is a pure function that names what differs.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use viaduct_cni::CniError;
use viaduct_cni::previous::{NamedLink, Previous};
use viaduct_cni::protocol::Reply;
use viaduct_model::{Endpoint, MacAddr};

use super::descriptors::Namespace;
use super::owner::{Event, Job, Owner};
use super::{GATEWAY, pair_of};
use crate::dataplane;
use crate::dataplane::diff::diff;
use crate::dataplane::objects::{Actual, Desired, LinkKind};
use crate::kernel::closeup::{Closeup, closeup};
use crate::kernel::veth::Pair;
use crate::kernel::{NetlinkError, NetlinkSocket, secondary};

/// How often it is looked again, since what was just broken is just being repaired,
/// and what a new pod needs may still be on its way.
const LOOKS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(100);

impl Owner {
    pub(super) fn begin_check(&mut self, link: &str, mut job: Job) {
        let (Some(namespace), Some(previous)) = (job.namespace.take(), job.request.previous.take())
        else {
            let why = "CHECK came without descriptors or without what ADD had said";
            return self.refuse(job, CniError::new(CniError::PROTOCOL, why));
        };
        let known = self.endpoints.get(link).cloned();
        let Some(endpoint) = known.filter(|e| e.id == job.request.id) else {
            let error = match self.stand_ins.get(link) {
                Some(why) => CniError::new(
                    CniError::CHECK_FAILED,
                    format!(
                        "attachment {}: its record in the ledger cannot be read: {why}",
                        job.request.id
                    ),
                ),
                None => CniError::new(
                    CniError::UNKNOWN_CONTAINER,
                    format!("attachment {} is not known on this node", job.request.id),
                ),
            };
            return self.refuse(job, error);
        };
        let mut differences = Vec::new();
        if !endpoint.wired {
            differences.push("the ledger says that it is not wired".to_owned());
        }
        if endpoint.network != job.request.network {
            differences.push(format!(
                "the ledger says that it is of network {:?}, not {:?}",
                endpoint.network, job.request.network
            ));
        }
        if endpoint.netns_id != namespace.id {
            differences.push(format!(
                "CNI_NETNS {:?} is another network namespace than the one that was wired",
                job.request.netns
            ));
        }
        // While the blocks are not known nobody can say.
        if self.node.borrow().is_some() {
            let lost = endpoint
                .addresses
                .iter()
                .filter(|a| !self.addresses.are_ours(&[**a]));
            differences
                .extend(lost.map(|a| format!("address {a} is in no block of this node any more")));
            differences.extend(self.foreign.get(link).map(ToString::to_string));
        }
        let (wiring, own) = (self.wiring.clone(), self.own.clone());
        tokio::spawn(async move {
            let looked = wiring
                .run(move |host| compare(host, namespace, &endpoint, &previous))
                .await
                .and_then(|looked| looked)
                .map(|more| {
                    differences.extend(more);
                    differences
                });
            let _ = own
                .send(Event::Checked {
                    job,
                    differences: looked,
                })
                .await;
        });
    }

    pub(super) fn checked(&mut self, job: Job, differences: Result<Vec<String>, NetlinkError>) {
        let id = &job.request.id;
        let error = match differences {
            Ok(differences) if differences.is_empty() => return self.answer(job, Reply::Fine),
            Ok(differences) => CniError::new(
                CniError::CHECK_FAILED,
                format!(
                    "attachment {id} is not as it should be: {}",
                    differences.join("; ")
                ),
            ),
            Err(e) => CniError::new(
                CniError::KERNEL_REFUSED,
                format!("attachment {id}: the kernel cannot be asked: {e}"),
            ),
        };
        self.refuse(job, error);
    }
}

fn compare(
    host: &mut NetlinkSocket,
    namespace: Namespace,
    endpoint: &Endpoint,
    previous: &Previous,
) -> Result<Vec<String>, NetlinkError> {
    let mut pod = NetlinkSocket::from_fd(namespace.rtnetlink)?;
    let Some(pair) = pair_of(endpoint) else {
        return Ok(vec!["the ledger holds no IPv4 address for it".to_owned()]);
    };
    let mut looks = 0;
    loop {
        let seen = Seen {
            host: closeup(host, &endpoint.link)?,
            pod: closeup(&mut pod, &endpoint.id.ifname)?,
        };
        let mut differences = differences(endpoint, &pair, previous, &seen);
        if let (true, Some(inside)) = (endpoint.secondary, &seen.pod)
            && !secondary::stands(&mut pod, &pair, inside.link.index)?
        {
            differences.push(format!(
                "in the container, packets from {} have no way of their own out of {}",
                pair.address, pair.ifname
            ));
        }
        looks += 1;
        if differences.is_empty() || looks == LOOKS {
            return Ok(differences);
        }
        std::thread::sleep(PAUSE);
    }
}

/// Both ends as they are.
struct Seen {
    host: Option<Closeup>,
    pod: Option<Closeup>,
}

fn differences(endpoint: &Endpoint, pair: &Pair, previous: &Previous, seen: &Seen) -> Vec<String> {
    let mut told = what_was_told(endpoint, previous);
    match &seen.host {
        Some(host) => told.extend(host_end(endpoint, host)),
        None => told.push(format!("link {} is not there", endpoint.link)),
    }
    let ifname = &endpoint.id.ifname;
    match &seen.pod {
        Some(pod) => told.extend(pod_end(endpoint, pair, previous, pod)),
        None => told.push(format!("the container has no interface {ifname}")),
    }
    if let (Some(host), Some(pod)) = (&seen.host, &seen.pod)
        && (host.peer, pod.peer) != (Some(pod.link.index), Some(host.link.index))
    {
        told.push(format!(
            "link {} and the container's {ifname} are not the two ends of one pair",
            endpoint.link
        ));
    }
    told
}

/// The runtime's memory against the ledger.
fn what_was_told(endpoint: &Endpoint, previous: &Previous) -> Vec<String> {
    let mut told = Vec::new();
    let links = [
        (&endpoint.link, &previous.host_link, MacAddr::HOST_END),
        (&endpoint.id.ifname, &previous.pod_link, endpoint.pod_mac),
    ];
    for (name, link, mac) in links {
        let Some(NamedLink { mac: theirs, mtu }) = link else {
            told.push(format!("prevResult does not name {name}"));
            continue;
        };
        if let Some(theirs) = theirs.filter(|theirs| *theirs != mac) {
            told.push(format!(
                "prevResult says MAC {theirs} of {name}, the ledger {mac}"
            ));
        }
        if let Some(theirs) = mtu.filter(|theirs| *theirs != endpoint.mtu) {
            told.push(format!(
                "prevResult says MTU {theirs} of {name}, the ledger {}",
                endpoint.mtu
            ));
        }
    }
    for address in &endpoint.addresses {
        if !previous.addresses.contains(address) {
            told.push(format!("prevResult does not name its address {address}"));
        }
    }
    for address in &previous.addresses {
        if !endpoint.addresses.contains(address) {
            told.push(format!(
                "prevResult names address {address}, which the ledger does not"
            ));
        }
    }
    told
}

/// The host end, by the very functions that keep it as it is.
fn host_end(endpoint: &Endpoint, seen: &Closeup) -> Vec<String> {
    let mut desired = Desired::default();
    let wired = Endpoint {
        wired: true,
        ..endpoint.clone()
    };
    let endpoints = Arc::new(BTreeMap::from([(endpoint.link.clone(), wired)]));
    dataplane::endpoints::desire(&endpoints, &mut desired);
    let mut actual = Actual::default();
    actual.links.insert(seen.name.clone(), seen.link.clone());
    actual.addresses = seen.addresses.clone();
    let ours = seen.routes.iter().filter(|(_, ours)| *ours);
    actual.routes = ours.map(|(route, _)| route.clone()).collect();
    actual.neighbours = seen
        .neighbours
        .iter()
        .map(|(address, mac)| ((seen.name.clone(), *address), *mac))
        .collect();
    let mut told: Vec<String> = diff(&desired, &actual)
        .iter()
        .map(|op| format!("on the host it needs {op}"))
        .collect();
    if !seen.carries {
        told.push(format!("link {} carries no packets", endpoint.link));
    }
    told
}

fn pod_end(endpoint: &Endpoint, pair: &Pair, previous: &Previous, seen: &Closeup) -> Vec<String> {
    let name = &endpoint.id.ifname;
    let mut told = Vec::new();
    let mut differs = |what: String| told.push(format!("in the container, {what}"));
    if seen.link.kind != LinkKind::Veth {
        differs(format!("{name} is no end of a veth pair"));
    }
    if seen.link.mac != Some(endpoint.pod_mac) {
        let is = seen
            .link
            .mac
            .map_or("none".to_owned(), |mac| mac.to_string());
        differs(format!(
            "the MAC of {name} is {is}, not {}",
            endpoint.pod_mac
        ));
    }
    if seen.link.mtu != endpoint.mtu {
        differs(format!(
            "the MTU of {name} is {}, not {}",
            seen.link.mtu, endpoint.mtu
        ));
    }
    if !seen.link.up {
        differs(format!("{name} is down"));
    } else if !seen.carries {
        differs(format!("{name} carries no packets"));
    }
    for address in &endpoint.addresses {
        let there = |a: &IpAddr| seen.addresses.iter().any(|s| IpAddr::V4(s.address) == *a);
        if address.is_ipv4() && !there(address) {
            differs(format!("address {address} is missing on {name}"));
        }
    }
    if seen.neighbours.get(&GATEWAY) != Some(&MacAddr::HOST_END) {
        differs(format!(
            "the permanent neighbour {GATEWAY} on {name} with MAC {} is missing",
            MacAddr::HOST_END
        ));
    }
    // A later plugin may have replaced it, and says so by not naming it.
    let expected = previous.default_via.contains(&IpAddr::V4(pair.gateway));
    let default = seen.routes.iter().any(|(route, _)| {
        route.destination.prefix_len() == 0 && route.via == Some(pair.gateway) && route.onlink
    });
    if expected && !endpoint.secondary && !default {
        differs(format!(
            "the default route via {GATEWAY} on {name} is missing"
        ));
    }
    told
}
