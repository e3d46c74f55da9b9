//! DEL as the owner decides it: a pod is cut off before its address is freed, and
//! its link deleted behind the answer.

use std::sync::Arc;
use std::time::Duration;

use viaduct_cni::protocol::Reply;
use viaduct_cni::{CniError, fault, spool};
use viaduct_model::Endpoint;

use super::owner::{Event, Job, Owner};
use super::wiring;
use crate::kernel::{NetlinkError, veth};

/// How often the deletion of links is tried again before it is left to the
/// reconciler.
const DELETIONS: u32 = 3;

impl Owner {
    pub(super) fn begin_del(&mut self, link: &str, job: Job) {
        fault::point("del.begun");
        let known = match self.endpoints.get(link) {
            Some(existing) if existing.id == job.request.id => Some(existing.clone()),
            Some(existing) if self.stand_ins.contains_key(link) => Some(existing.clone()),
            _ => None,
        };
        let Some(existing) = known else {
            // A record that somebody else put there would come to life at the next start.
            if !self.endpoints.contains_key(link)
                && let Err(e) = self.ledger.remove(link)
            {
                tracing::warn!(attachment = %job.request.id, error = %e, "a record that nobody goes by cannot be removed");
            }
            return self.gone(job);
        };
        // Published as not wired: the reconciler leaves such links alone.
        let leaving = Endpoint {
            wired: false,
            ..existing
        };
        Arc::make_mut(&mut self.endpoints).insert(link.to_owned(), leaving.clone());
        self.publish();
        fault::point("del.published");
        let (wiring, own) = (self.wiring.clone(), self.own.clone());
        tokio::spawn(async move {
            let outcome = wiring
                .run(move |host| wiring::cut_off(host, &leaving))
                .await
                .and_then(|outcome| outcome);
            let _ = own.send(Event::CutOff { job, outcome }).await;
        });
    }

    pub(super) fn cut_off(&mut self, job: Job, outcome: Result<(), NetlinkError>) {
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
        fault::point("del.cut_off");
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
        fault::point("del.removed");
        // Not the job's id: a stand-in's is another.
        if let Some(endpoint) = self.endpoints.get(&link) {
            for address in self.addresses.release(&endpoint.id) {
                self.forgetting.released(address);
            }
            self.judge_foreign();
        }
        self.stand_ins.remove(&link);
        if let Err(e) = spool::remove(&self.run_dir, &job.request.id) {
            tracing::warn!(attachment = %job.request.id, error = %e, "its spooled DEL cannot be removed");
        }
        self.publish();
        // The deletion of the link, the slow part, need not be waited for; but the
        // attachment stays busy until then.
        fault::point("del.spool_cleared");
        let _ = job.answer.send(Reply::Gone);
        fault::point("del.answered");
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

    pub(super) fn deleted(&mut self, outcome: Result<(), NetlinkError>) {
        fault::point("del.deleted");
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
}
