//! One reconcile: list, decide, change, and list again to see that it is so.
//!
//! Blocks, and so runs on a thread of its own; called by the reconciler only. The
//! order is what makes it safe: the kernel is listed *first* and the newest inputs
//! are taken *after*. The ledger's entry of a pod precedes its link, so that a link
//! that was listed and has no entry is nobody's.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use tokio::sync::watch;
use viaduct_model::Cidr;

use super::diff::diff;
use super::hints::{Expected, is_right};
use super::host::{self, Host};
use super::kernel::{Kernel, KernelError};
use super::objects::{Actual, Address, Desired, LinkName};
use super::plan::{Op, Plan};
use super::rivals;
use crate::backend::Backend;
use crate::state::{Endpoints, NodeState};

/// How often one reconcile changes things before it leaves the rest to the next. A
/// change can undo another (a new MAC flushes the link's neighbours), so that once
/// may not be enough.
const PASSES: usize = 4;

/// The most problems that are told one by one.
const TOLD: usize = 20;

/// What a reconcile did and found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Whether the kernel is as it should be.
    pub verified: bool,
    /// Whether this node's overlay address stands on a tunnel that is right, where the
    /// backend has one, and its own blocks' routes; `None` while the node has no such
    /// address.
    pub overlay: Option<bool>,
    /// What does not succeed, one sentence each.
    pub problems: Vec<String>,
    /// What was refused, one sentence each.
    pub refusals: Vec<String>,
    /// What is refused until more of the cluster was heard, one sentence each.
    pub awaited: Vec<String>,
    /// Routes of others into our blocks, one sentence each.
    pub conflicts: Vec<String>,
    /// Peers that are not adjacent and so have no route, one sentence each.
    pub not_adjacent: Vec<String>,
    /// Changes that were made.
    pub applied: u64,
    /// Those of them that were needed though nothing but the kernel had changed.
    pub repaired: u64,
}

/// What reconciles have in common.
#[derive(Debug)]
pub struct Cycle<K> {
    kernel: K,
    backend: &'static Backend,
    state: watch::Receiver<Option<NodeState>>,
    endpoints: watch::Receiver<Endpoints>,
    expected: watch::Sender<Arc<Expected>>,
    decided: Option<Arc<Desired>>,
    /// The host that it was decided for.
    host: Host,
    was_right: bool,
    look_for_rivals: bool,
    territory: BTreeSet<Cidr>,
    conflicts: Vec<String>,
}

impl<K: Kernel> Cycle<K> {
    /// Nothing is listed or changed yet.
    pub fn new(
        kernel: K,
        backend: &'static Backend,
        state: watch::Receiver<Option<NodeState>>,
        endpoints: watch::Receiver<Endpoints>,
    ) -> Self {
        Self {
            kernel,
            backend,
            state,
            endpoints,
            expected: watch::Sender::default(),
            decided: None,
            host: Host::default(),
            was_right: false,
            look_for_rivals: true,
            territory: BTreeSet::new(),
            conflicts: Vec::new(),
        }
    }

    /// Has the next reconcile list the routes of others too. They may be very many,
    /// so that it is done when there is a reason: at start, when one of them or our
    /// blocks changed, and at each audit.
    pub fn look_for_rivals(&mut self) {
        self.look_for_rivals = true;
    }

    /// What hints are to be compared with, always the newest.
    pub fn expected(&self) -> watch::Receiver<Arc<Expected>> {
        self.expected.subscribe()
    }

    /// Reconciles once. `None` while there is no state of the node yet: before the
    /// datastore has said "here is everything", nothing is touched.
    pub fn run(&mut self) -> Option<Outcome> {
        let outcome = match self.try_run() {
            Ok(outcome) => outcome?,
            Err(error) => Outcome {
                problems: vec![error.to_string()],
                ..Outcome::default()
            },
        };
        self.was_right = outcome.verified;
        Some(outcome)
    }

    fn try_run(&mut self) -> Result<Option<Outcome>, KernelError> {
        if self.state.borrow().is_none() {
            return Ok(None);
        }
        let before = self.decided.clone();
        let mut outcome = Outcome::default();
        let mut failures = HashMap::new();
        let mut actual = self.kernel.dump()?;
        for pass in 0.. {
            let Some(desired) = self.decide(&actual) else {
                return Ok(None);
            };
            let plan = diff(&desired, &actual);
            let hopeless = plan.iter().all(|op| failures.contains_key(&op.to_string()));
            if plan.is_empty() || hopeless || pass == PASSES {
                outcome.conclude(&desired, &actual, &plan, &failures);
                outcome.conflicts = self.conflicts(&desired);
                return Ok(Some(outcome));
            }
            let answers = self.kernel.apply(&plan);
            failures = plan
                .iter()
                .zip(&answers)
                .filter_map(|(op, answer)| Some((op.to_string(), answer.clone().err()?)))
                .collect();
            let done = answers.iter().filter(|answer| answer.is_ok()).count() as u64;
            outcome.applied += done;
            if self.was_right && before.as_ref() == Some(&desired) {
                outcome.repaired += done;
                log_repairs(&plan);
            }
            actual = self.kernel.dump()?;
        }
        Ok(None)
    }

    fn conflicts(&mut self, desired: &Desired) -> Vec<String> {
        let territory = rivals::territory(desired);
        if self.look_for_rivals || territory != self.territory {
            match self.kernel.foreign_routes() {
                Ok(foreign) => {
                    self.conflicts = rivals::conflicts(&territory, &foreign);
                    self.territory = territory;
                    self.look_for_rivals = false;
                }
                // It hides no fault of ours; the next look tries again.
                Err(error) => tracing::warn!(%error, "routes of others are not looked at"),
            }
        }
        self.conflicts.clone()
    }

    /// Decides from the newest inputs what should be there, and tells it to whoever
    /// judges hints before the first change makes an echo.
    fn decide(&mut self, actual: &Actual) -> Option<Arc<Desired>> {
        // A closed watch still holds its last value.
        let fresh = self.decided.is_none()
            || self.host != actual.host
            || self.state.has_changed().unwrap_or(true)
            || self.endpoints.has_changed().unwrap_or(true);
        if fresh {
            let state = self.state.borrow_and_update();
            let endpoints = self.endpoints.borrow_and_update();
            let mut desired = self.backend.desired(state.as_ref()?, &endpoints);
            self.host = actual.host;
            host::suit(&mut desired, self.host);
            if self.decided.as_deref() != Some(&desired) {
                self.decided = Some(Arc::new(desired));
            }
        }
        let desired = self.decided.clone()?;
        let names: BTreeMap<u32, LinkName> = actual
            .links
            .iter()
            .map(|(name, link)| (link.index, name.clone()))
            .collect();
        let foreign: BTreeMap<u32, LinkName> = desired
            .forwarding
            .iter()
            .filter_map(|name| Some((actual.foreign.get(name)?.index, name.clone())))
            .collect();
        self.expected.send_if_modified(|expected| {
            let same = expected.names == names
                && expected.foreign == foreign
                && Arc::ptr_eq(&expected.desired, &desired);
            if !same {
                *expected = Arc::new(Expected {
                    desired: desired.clone(),
                    names,
                    foreign,
                });
            }
            !same
        });
        Some(desired)
    }
}

impl Outcome {
    fn conclude(
        &mut self,
        desired: &Desired,
        actual: &Actual,
        rest: &Plan,
        failures: &HashMap<String, KernelError>,
    ) {
        self.verified = rest.is_empty();
        let on_right_link = |address: &Address| {
            let link = &address.link;
            actual.addresses.contains(address)
                && matches!(
                    (desired.links.get(link), actual.links.get(link)),
                    (Some(want), Some(is)) if is_right(want, is)
                )
        };
        let mut own_blocks = desired.routes.iter().filter(|route| route.link.is_none());
        self.overlay = desired.wires.then(|| {
            desired.addresses.iter().all(on_right_link)
                && own_blocks.all(|route| actual.routes.contains(route))
        });
        self.refusals = desired.refusals.clone();
        self.awaited = desired.awaited.clone();
        self.not_adjacent = desired.not_adjacent.clone();
        let mut waiting: BTreeMap<&LinkName, usize> = BTreeMap::new();
        let mut told = Vec::new();
        for op in rest {
            let text = op.to_string();
            match failures.get(&text) {
                Some(KernelError::NoLink(link)) => *waiting.entry(link).or_default() += 1,
                Some(error) => told.push(format!("{text}: {error}")),
                None => told.push(format!(
                    "{text}: done, and undone again by somebody else each time"
                )),
            }
        }
        let more = told.len().saturating_sub(TOLD);
        told.truncate(TOLD);
        self.problems.append(&mut told);
        if more > 0 {
            self.problems.push(format!("{more} more objects differ"));
        }
        self.problems.extend(
            waiting.into_iter().map(|(link, count)| {
                format!("link {link} is missing: {count} objects wait for it")
            }),
        );
    }
}

fn log_repairs(plan: &[Op]) {
    for op in plan.iter().take(TOLD) {
        tracing::info!("repaired: {op}");
    }
    if plan.len() > TOLD {
        tracing::info!("repaired: {} more objects", plan.len() - TOLD);
    }
}
