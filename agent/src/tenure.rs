//! Keeps this node's hold on its blocks: reads their records again before the trust in
//! them runs out, writes down what it holds, gives surplus blocks back, and publishes.
//!
//! One task owns the [`Tenure`]; the rules are in there. It reads the store and writes
//! one file in the run directory, so that a restarted agent knows what it gave away and
//! until when it may go on. Whoever hands out addresses compares the published terms
//! with the clock at that very moment: this task may be asleep with the whole machine.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use viaduct_datastore::records::decode;
use viaduct_datastore::store::SharedStore;
use viaduct_model::addresses::Surplus;
use viaduct_model::{Block, Cidr, ClusterView, Kind, NodeName, Tenure};

use crate::clock::{boot_id, now_ms};
use crate::run_dir::write_atomically;
use crate::state::AddressUsage;

/// The file inside the run directory.
pub const FILE: &str = "tenure.json";

/// How long one read may take. A late answer counts from when it was asked for.
const READ_LIMIT: Duration = Duration::from_secs(5);

/// How long after a read that failed the next one is begun, in milliseconds.
const RETRY_MS: u64 = 500;

/// The least time between two looks at the surplus that nothing called for.
const LOOK_MS: u64 = 1000;

/// What the keeper works with.
#[derive(Debug)]
pub struct Keeper {
    /// The store that records are read from.
    pub store: SharedStore,
    /// Where the tenure is written down.
    pub run_dir: PathBuf,
    /// The cluster.
    pub view: watch::Receiver<Option<Arc<ClusterView>>>,
    /// How addresses are used.
    pub usage: watch::Receiver<AddressUsage>,
    /// Where the tenure is published; holds what an earlier agent left.
    pub out: watch::Sender<Arc<Tenure>>,
    /// How long a block has to be empty and dispensable before it is given back.
    pub give_back_after: Duration,
}

/// Reads what the last agent of this node left; nothing is held where that cannot be
/// read, or is of another node or another boot.
pub fn load(run_dir: &Path, node: &NodeName) -> Tenure {
    let path = run_dir.join(FILE);
    let left = match std::fs::read(&path) {
        Ok(text) => serde_json::from_slice::<Written>(&text).map_err(|e| e.to_string()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Tenure::new(node.clone());
        }
        Err(error) => Err(error.to_string()),
    };
    match left {
        // Also on a disk that outlasts a reboot: what a clock of another boot says is nothing.
        Ok(left)
            if left.boot_id.is_some()
                && left.boot_id == boot_id()
                && left.tenure.is_of(node, now_ms()) =>
        {
            left.tenure
        }
        Ok(_) => Tenure::new(node.clone()),
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "which blocks this node held cannot be read; it asks for them anew");
            Tenure::new(node.clone())
        }
    }
}

/// The file's content.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    /// The boot whose clock the times are of.
    boot_id: Option<String>,
    #[serde(flatten)]
    tenure: Tenure,
}

/// The answer to one read.
struct Answer {
    cidr: Cidr,
    asked_ms: u64,
    /// What stands there, or why nobody can tell.
    record: Result<Option<Block>, String>,
}

struct Task {
    keeper: Keeper,
    tenure: Tenure,
    /// As it was written down last.
    written: Tenure,
    surplus: Surplus,
    /// Reads that are under way.
    reading: BTreeSet<Cidr>,
    /// When to try again what failed.
    retry: BTreeMap<Cidr, u64>,
    answers: mpsc::Sender<Answer>,
    /// Why records cannot be read, as it was logged last.
    failure: Option<String>,
}

impl Keeper {
    /// Runs until the view's publisher or all who listen are gone.
    pub async fn run(self) {
        let (answers, mut answered) = mpsc::channel(64);
        let tenure = Tenure::clone(&self.out.borrow());
        let mut task = Task {
            surplus: Surplus::new(self.give_back_after),
            written: tenure.clone(),
            tenure,
            keeper: self,
            reading: BTreeSet::new(),
            retry: BTreeMap::new(),
            answers,
            failure: None,
        };
        let (mut view, mut usage) = (task.keeper.view.clone(), task.keeper.usage.clone());
        view.mark_changed();
        loop {
            if view.has_changed().unwrap_or(false) {
                let told = view.borrow_and_update().clone();
                if let Some(told) = told {
                    task.tenure.told(&told.blocks, now_ms());
                }
            }
            task.give_surplus(&usage.borrow_and_update().clone());
            task.publish();
            let wake = task.read_due();
            let pause = Duration::from_millis(wake.saturating_sub(now_ms()).max(1));
            tokio::select! {
                changed = view.changed() => if changed.is_err() { return } else { view.mark_changed() },
                changed = usage.changed() => if changed.is_err() { return },
                Some(answer) = answered.recv() => task.answered(answer),
                () = tokio::time::sleep(pause) => {}
                () = task.keeper.out.closed() => return,
            }
        }
    }
}

impl Task {
    /// Begins the reads that are due; says when to look again.
    fn read_due(&mut self) -> u64 {
        let now = now_ms();
        let mut wake = now + 60_000;
        let tenure = &self.tenure;
        self.retry.retain(|cidr, _| tenure.is_held(cidr));
        for (cidr, due) in self.tenure.reads_due() {
            if self.reading.contains(&cidr) {
                continue;
            }
            let due = due.max(self.retry.get(&cidr).copied().unwrap_or(0));
            // What has run out is renewed by a new grant, not by reading.
            if self
                .tenure
                .serves_until(&cidr)
                .is_some_and(|until| until <= now)
            {
                continue;
            }
            if due > now {
                wake = wake.min(due);
                continue;
            }
            self.reading.insert(cidr);
            let (store, answers) = (self.keeper.store.clone(), self.answers.clone());
            tokio::spawn(async move {
                let record = read(&store, cidr).await;
                let _ = answers
                    .send(Answer {
                        cidr,
                        asked_ms: now,
                        record,
                    })
                    .await;
            });
        }
        // When a trust runs out, the claim and the dataplane have to hear of it.
        let lapses = self.tenure.terms().into_values().flatten();
        wake = lapses.filter(|at| *at > now).fold(wake, u64::min);
        // At once would be a loop where a surplus block has to stay for another reason.
        let due = self.surplus.due_at().map(|at| at.max(now + LOOK_MS));
        due.map_or(wake, |at| wake.min(at))
    }

    fn answered(&mut self, answer: Answer) {
        self.reading.remove(&answer.cidr);
        match answer.record {
            Ok(record) => {
                self.retry.remove(&answer.cidr);
                self.tenure
                    .read(answer.cidr, record.as_ref(), answer.asked_ms);
                if self.retry.is_empty() && self.failure.take().is_some() {
                    tracing::info!("the records of this node's blocks can be read again");
                }
            }
            Err(failure) => {
                self.retry.insert(answer.cidr, now_ms() + RETRY_MS);
                if self.failure.as_ref() != Some(&failure) {
                    tracing::warn!(
                        block = %answer.cidr,
                        "{failure}; addresses of the block are handed out until its trust is over"
                    );
                    self.failure = Some(failure);
                }
            }
        }
    }

    /// Lets the next surplus block go, in two steps: first nothing is handed out from it
    /// any more, and once the CNI server has said so, and that it is empty still, it is
    /// given back for good.
    fn give_surplus(&mut self, usage: &AddressUsage) {
        for (cidr, round) in self.tenure.withheld() {
            // What it said before it heard of that says nothing: it may have handed one out.
            if usage.heeds < round || !usage.draining.contains(&cidr) {
                continue;
            }
            if usage.blocks.get(&cidr).is_some_and(|block| block.used == 0) {
                tracing::info!(block = %cidr, "giving back a block that is empty and not needed");
                self.tenure.give(cidr);
            }
            self.tenure.withhold(&cidr, false);
        }
        let now = now_ms();
        let serving: BTreeMap<_, _> = usage
            .blocks
            .iter()
            .filter(|(cidr, _)| self.tenure.serves(cidr, now))
            .map(|(cidr, usage)| (*cidr, *usage))
            .collect();
        let spare = match usage.waiting {
            0 => self.surplus.due(&serving, usage.keep, now),
            _ => None,
        };
        if let Some(cidr) = spare {
            self.tenure.withhold(&cidr, true);
        }
    }

    /// Writes down what changed, then publishes it: what was given away must not come
    /// back with a restart.
    fn publish(&mut self) {
        if self.tenure != self.written {
            let path = self.keeper.run_dir.join(FILE);
            let content = Written {
                boot_id: boot_id(),
                tenure: self.tenure.clone(),
            };
            let written = serde_json::to_vec(&content)
                .map_err(std::io::Error::other)
                .and_then(|text| write_atomically(&path, &text));
            match written {
                Ok(()) => self.written = self.tenure.clone(),
                Err(error) => {
                    tracing::warn!(%error, path = %path.display(), "which blocks this node holds cannot be written down");
                    if self.tenure.gives() != self.written.gives() {
                        // Nobody may hear of a gift that a restart would forget.
                        return;
                    }
                }
            }
        }
        let now = now_ms();
        let lapsed = self.tenure.renews(now).len();
        self.keeper.out.send_if_modified(|out| {
            let changed = **out != self.tenure || lapsed > 0;
            if changed {
                *out = Arc::new(self.tenure.clone());
            }
            changed
        });
    }
}

/// Reads one block's record, or says why that fails.
async fn read(store: &SharedStore, cidr: Cidr) -> Result<Option<Block>, String> {
    let name = cidr.record_name();
    let asked = tokio::time::timeout(READ_LIMIT, store.get(Kind::Block, &name));
    match asked.await {
        Ok(Ok(None)) => Ok(None),
        Ok(Ok(Some(entry))) => match decode::<Block>(&entry) {
            Ok(named) => Ok(Some(named.record)),
            Err(invalid) => Err(invalid.to_string()),
        },
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!(
            "the datastore does not answer for {READ_LIMIT:?} when asked for a block"
        )),
    }
}
