//! GC: the runtime says which attachments of a network are valid still, and the others
//! are taken away as by a DEL each.
//!
//! Left alone is what the list cannot speak of: attachments of other networks, those
//! that are being worked on, and links whose record cannot be read, since nobody can
//! say which network they are of.

use std::collections::BTreeSet;

use tokio::sync::oneshot;
use viaduct_cni::CniError;
use viaduct_cni::protocol::{NetworkRequest, PROTOCOL, Reply, Request, Verb};
use viaduct_cni::wishes::Wishes;
use viaduct_model::AttachmentId;

use super::owner::{Event, Job, Owner};

/// Attachments whose removal has begun, and where it is answered.
pub(super) type Removals = Vec<(AttachmentId, oneshot::Receiver<Reply>)>;

/// What is to be removed, and who wants to know.
#[derive(Debug)]
pub(super) struct Collection {
    pub(super) request: NetworkRequest,
    pub(super) begun: oneshot::Sender<Removals>,
}

impl Owner {
    pub(super) fn collect(&mut self, collection: Collection) {
        let Collection { request, begun } = collection;
        let keep: BTreeSet<&str> = request.keep.iter().map(String::as_str).collect();
        let stale: Vec<AttachmentId> = self
            .endpoints
            .values()
            .filter(|endpoint| endpoint.network == request.network)
            .filter(|endpoint| !keep.contains(endpoint.link.as_str()))
            .filter(|endpoint| !self.stand_ins.contains_key(&endpoint.link))
            .filter(|endpoint| !self.busy.contains_key(&endpoint.link))
            .map(|endpoint| endpoint.id.clone())
            .collect();
        let mut removals = Removals::with_capacity(stale.len());
        for id in stale {
            tracing::info!(attachment = %id, network = %request.network, "collected: the runtime does not know it any more");
            let (answer, answered) = oneshot::channel();
            removals.push((id.clone(), answered));
            let request = Request {
                protocol: PROTOCOL,
                verb: Verb::Del,
                id,
                network: request.network.clone(),
                netns: String::new(),
                pod: None,
                wishes: Wishes::default(),
                previous: None,
            };
            self.take(Event::Job(Job {
                request,
                namespace: None,
                answer,
            }));
        }
        let _ = begun.send(removals);
    }
}

/// Waits until all is removed, and says what is not.
pub(super) async fn finished(removals: Removals) -> Reply {
    let count = removals.len();
    let mut failures: Vec<CniError> = Vec::new();
    for (id, answered) in removals {
        match answered.await {
            Ok(Reply::Refused(error)) => failures.push(error),
            Ok(_) => {}
            Err(_) => failures.push(CniError::new(
                CniError::TRY_AGAIN_LATER,
                format!("attachment {id}: viaduct-agent is stopping"),
            )),
        }
    }
    let Some(first) = failures.first() else {
        return Reply::Fine;
    };
    let all: Vec<String> = failures.iter().map(|error| error.msg.clone()).collect();
    Reply::Refused(
        CniError::new(
            first.code,
            format!(
                "{} of {count} stale attachments cannot be removed: {}",
                failures.len(),
                first.msg
            ),
        )
        .with_details(all.join("; ")),
    )
}
