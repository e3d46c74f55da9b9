//! Keeps the content of this node's Claim current: at once where the controller
//! has to act, seldom where only counts tick.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::Instant;
use viaduct_datastore::records::encode;
use viaduct_model::{Claim, ClusterView, Tenure};

use crate::clock::now_ms;
use crate::egress::EgressReport;
use crate::node::{self, Findings, Hold, Identity};
use crate::state::{AddressUsage, DataplaneReport, UnderlayTrouble};

/// How seldom counts of used addresses are written: each write costs the store an
/// fsync, and on a busy node they change with every pod.
const TICK: Duration = Duration::from_secs(30);

/// What a claim is made of.
#[derive(Debug, Clone)]
pub struct Sources {
    /// The cluster.
    pub view: watch::Receiver<Option<Arc<ClusterView>>>,
    /// How addresses are used.
    pub usage: watch::Receiver<AddressUsage>,
    /// How the kernel compares.
    pub report: watch::Receiver<DataplaneReport>,
    /// What is the matter with the underlay.
    pub trouble: watch::Receiver<UnderlayTrouble>,
    /// Why the Node's pod CIDRs are not adopted, if they ought to be.
    pub cidrs: watch::Receiver<Option<String>>,
    /// How the nft table compares.
    pub egress: watch::Receiver<EgressReport>,
    /// Which blocks the node holds.
    pub tenure: watch::Receiver<Arc<Tenure>>,
}

impl Sources {
    /// The claim as it should stand now.
    pub fn claim(&self, identity: &Identity, previous: Option<&Claim>) -> Claim {
        #[expect(clippy::disallowed_methods, reason = "shown to people in conditions")]
        let wall = SystemTime::now();
        let now = humantime::format_rfc3339_seconds(wall).to_string();
        let view = self.view.borrow().clone();
        let mut report = self.report.borrow().clone();
        report
            .problems
            .extend(self.egress.borrow().problems.iter().cloned());
        let mut claim = node::claim(
            identity,
            view.as_deref(),
            &self.usage.borrow(),
            Hold {
                tenure: &self.tenure.borrow(),
                now_ms: now_ms(),
            },
            Findings {
                report: &report,
                trouble: &self.trouble.borrow(),
            },
            previous,
            &now,
        );
        let conflict = self.cidrs.borrow().clone();
        claim
            .conditions
            .extend(conflict.map(|sentence| node::conflict_of_cidrs(sentence, previous, &now)));
        claim
    }
}

/// Runs until a source or the holder of the claim is gone.
pub async fn keep(
    identity: Identity,
    first: Claim,
    content: watch::Sender<Vec<u8>>,
    mut sources: Sources,
) {
    let mut sent = first;
    let mut sent_at = Instant::now();
    loop {
        let claim = sources.claim(&identity, Some(&sent));
        let due = match urgency(&sent, &claim) {
            Urgency::None => None,
            Urgency::Tick => Some(sent_at + TICK),
            Urgency::Now => Some(Instant::now()),
        };
        if due.is_some_and(|due| due <= Instant::now()) {
            match encode(identity.name.as_str(), &claim) {
                Ok(bytes) => drop(content.send(bytes)),
                Err(error) => tracing::error!(%error, "cannot encode this node's claim"),
            }
            sent = claim;
            sent_at = Instant::now();
        }
        let alive = tokio::select! {
            changed = sources.view.changed() => changed.is_ok(),
            changed = sources.usage.changed() => changed.is_ok(),
            changed = sources.report.changed() => changed.is_ok(),
            changed = sources.trouble.changed() => changed.is_ok(),
            changed = sources.egress.changed() => changed.is_ok(),
            Ok(()) = sources.cidrs.changed() => true,
            changed = sources.tenure.changed() => changed.is_ok(),
            () = content.closed() => false,
            () = tokio::time::sleep_until(due.unwrap_or(sent_at + TICK)), if due.is_some() => true,
        };
        if !alive {
            return;
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Urgency {
    None,
    Tick,
    Now,
}

/// How soon a changed claim has to be written.
fn urgency(sent: &Claim, wanted: &Claim) -> Urgency {
    if sent == wanted {
        return Urgency::None;
    }
    // Another set of blocks is news, not a tick: `viaductctl status` counts by it.
    let same_blocks = sent.blocks.keys().eq(wanted.blocks.keys());
    let counts_only = same_blocks
        && *sent
            == Claim {
                blocks: sent.blocks.clone(),
                ..wanted.clone()
            };
    if counts_only {
        Urgency::Tick
    } else {
        Urgency::Now
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use viaduct_model::{BlockUsage, PerFamily};

    fn claim(wants: u32, used: u32) -> Claim {
        Claim {
            incarnation: "i".into(),
            host: "h".into(),
            agent_version: "0".into(),
            wants: PerFamily { v4: wants, v6: 0 },
            gives: BTreeMap::new(),
            holds: BTreeMap::new(),
            renews: BTreeMap::new(),
            ended: 0,
            blocks: BTreeMap::from([("10.64.0.0-26".to_owned(), BlockUsage { used, free: 0 })]),
            conditions: Vec::new(),
            extra: BTreeMap::new(),
        }
    }

    #[test]
    fn counts_wait_and_wishes_do_not() {
        assert_eq!(urgency(&claim(1, 0), &claim(1, 0)), Urgency::None);
        assert_eq!(urgency(&claim(1, 0), &claim(1, 5)), Urgency::Tick);
        assert_eq!(urgency(&claim(1, 0), &claim(2, 5)), Urgency::Now);
        let mut grown = claim(1, 0);
        let usage = BlockUsage { used: 0, free: 63 };
        grown.blocks.insert("10.64.0.64-26".to_owned(), usage);
        assert_eq!(urgency(&claim(1, 0), &grown), Urgency::Now);
    }
}
