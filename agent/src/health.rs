//! How the agent is: alive, ready, in numbers. Reads what the tasks publish and
//! owns nothing but the registry.

mod addresses;

use std::fmt;
use std::sync::Arc;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use viaduct_datastore::Connectivity;
use viaduct_model::ClusterView;

use addresses::BlockLabels;

use crate::clock::now_ms;
use crate::egress::EgressReport;
use crate::spoofed::Spoofed;
use crate::state::{AddressUsage, DataplaneReport, UnderlayTrouble};

/// What the tasks publish about themselves.
#[derive(Debug, Clone)]
pub struct Sources {
    /// Whether the store answers.
    pub store: watch::Receiver<Connectivity>,
    /// The cluster, once it was told whole.
    pub view: watch::Receiver<Option<Arc<ClusterView>>>,
    /// How the kernel compares.
    pub report: watch::Receiver<DataplaneReport>,
    /// How the nft table compares.
    pub egress: watch::Receiver<EgressReport>,
    /// How addresses are used.
    pub usage: watch::Receiver<AddressUsage>,
    /// What is the matter with the underlay.
    pub trouble: watch::Receiver<UnderlayTrouble>,
}

/// The agent's health.
#[derive(Clone)]
pub struct Health {
    sources: Sources,
    spoofed: Spoofed,
    registry: Arc<Registry>,
    numbers: Numbers,
}

/// Whether the agent is ready, and what is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readiness {
    /// What keeps it from being ready.
    pub problems: Vec<String>,
    /// What is worth knowing all the same: packets flow without the store.
    pub warnings: Vec<String>,
}

impl Readiness {
    /// Whether the kernel is verified equal to what the cluster wants.
    pub fn ready(&self) -> bool {
        self.problems.is_empty()
    }
}

impl fmt::Display for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", if self.ready() { "ok" } else { "not ready" })?;
        for problem in &self.problems {
            writeln!(f, "problem: {problem}")?;
        }
        for warning in &self.warnings {
            writeln!(f, "warning: {warning}")?;
        }
        Ok(())
    }
}

#[derive(Clone, Default)]
struct Numbers {
    store_connected: Gauge,
    ready: Gauge,
    peers: Gauge,
    unreadable: Gauge,
    not_adjacent: Gauge,
    refused: Gauge,
    problems: Gauge,
    conflicts: Gauge,
    foreign: Gauge,
    waiting: Gauge,
    reconciles: Counter,
    repairs: Counter,
    egress_problems: Gauge,
    egress_repairs: Counter,
    spoofed: Counter,
    addresses: Family<BlockLabels, Gauge>,
}

impl Numbers {
    fn register(&self, registry: &mut Registry) {
        registry.register(
            "store_connected",
            "Whether the datastore answers",
            self.store_connected.clone(),
        );
        registry.register(
            "ready",
            "Whether the kernel is verified equal to what the cluster wants",
            self.ready.clone(),
        );
        registry.register("peers", "Other nodes in the cluster", self.peers.clone());
        registry.register(
            "unreadable_records",
            "Records in the datastore that cannot be read",
            self.unreadable.clone(),
        );
        registry.register(
            "peers_not_adjacent",
            "Other nodes that have no route because they are not adjacent",
            self.not_adjacent.clone(),
        );
        registry.register(
            "refusals",
            "Peers, pools and blocks that are not put into the kernel",
            self.refused.clone(),
        );
        registry.register(
            "dataplane_problems",
            "Objects that differ in the kernel",
            self.problems.clone(),
        );
        registry.register(
            "foreign_route_conflicts",
            "Routes of others that lead into this network's blocks",
            self.conflicts.clone(),
        );
        registry.register(
            "pods_cut_off",
            "Pods that are cut off because their address belongs to another node",
            self.foreign.clone(),
        );
        registry.register(
            "pods_waiting_for_address",
            "ADDs that wait for an address",
            self.waiting.clone(),
        );
        registry.register(
            "dataplane_reconciles",
            "Comparisons of the kernel with what it should be",
            self.reconciles.clone(),
        );
        registry.register(
            "dataplane_repairs",
            "Objects repaired after somebody else changed them",
            self.repairs.clone(),
        );
        registry.register(
            "egress_problems",
            "What differs in the nft table or cannot be done there",
            self.egress_problems.clone(),
        );
        registry.register(
            "egress_repairs",
            "Transactions that undid what somebody else did to the nft table",
            self.egress_repairs.clone(),
        );
        registry.register(
            "spoofed_packets",
            "Packets dropped because of where they claim to come from, such as those that a pod \
             sends from an address that is not its own; counted by the kernel for all devices \
             of the node with rp_filter, since the agent's start",
            self.spoofed.clone(),
        );
        registry.register(
            "addresses",
            "Pod addresses by block and state; those that cool down are among the free",
            self.addresses.clone(),
        );
    }
}

impl Health {
    /// Health from what the tasks publish; `register` adds the metrics that tasks
    /// keep themselves.
    pub fn new(sources: Sources, spoofed: Spoofed, register: impl FnOnce(&mut Registry)) -> Self {
        let mut registry = Registry::with_prefix("viaduct");
        let numbers = Numbers::default();
        numbers.register(&mut registry);
        register(&mut registry);
        Self {
            sources,
            spoofed,
            registry: Arc::new(registry),
            numbers,
        }
    }

    /// Whether the tasks that the agent consists of still run.
    ///
    /// # Errors
    /// Names the one that does not.
    pub fn alive(&self) -> Result<(), String> {
        // A task that ended has dropped its sender.
        let ended = [
            (
                self.sources.report.has_changed().is_err(),
                "the reconcile loop",
            ),
            (
                self.sources.egress.has_changed().is_err(),
                "the keeper of the nft table",
            ),
            (self.sources.usage.has_changed().is_err(), "the CNI server"),
            (
                self.sources.view.has_changed().is_err(),
                "the datastore's follower",
            ),
        ];
        match ended.into_iter().find(|(ended, _)| *ended) {
            Some((_, what)) => Err(format!("{what} has ended")),
            None => Ok(()),
        }
    }

    /// Whether the agent is ready, and what is not as it should be.
    pub fn readiness(&self) -> Readiness {
        readiness(
            &self.sources.store.borrow(),
            self.sources.view.borrow().as_deref(),
            &self.sources.report.borrow(),
            &self.sources.trouble.borrow(),
            &self.sources.egress.borrow(),
            &self.sources.usage.borrow(),
        )
    }

    /// The metrics as OpenMetrics text.
    ///
    /// # Errors
    /// When the text cannot be written.
    pub fn metrics(&self) -> Result<String, fmt::Error> {
        let (numbers, sources) = (&self.numbers, &self.sources);
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        numbers
            .store_connected
            .set((*sources.store.borrow() == Connectivity::Connected).into());
        numbers.ready.set(self.readiness().ready().into());
        let view = sources.view.borrow();
        numbers.peers.set(
            view.as_ref()
                .map_or(0, |v| count(v.nodes.len().saturating_sub(1))),
        );
        numbers
            .unreadable
            .set(view.as_ref().map_or(0, |v| count(v.unreadable.len())));
        drop(view);
        let report = sources.report.borrow();
        numbers.problems.set(count(report.problems.len()));
        numbers.conflicts.set(count(report.conflicts.len()));
        numbers.not_adjacent.set(count(report.not_adjacent.len()));
        numbers.refused.set(count(report.refusals.len()));
        numbers
            .reconciles
            .inc_by(report.reconciles.saturating_sub(numbers.reconciles.get()));
        numbers
            .repairs
            .inc_by(report.repairs.saturating_sub(numbers.repairs.get()));
        drop(report);
        let egress = sources.egress.borrow();
        numbers.egress_problems.set(count(egress.problems.len()));
        for (number, value) in [
            (&numbers.egress_repairs, egress.repairs),
            (&numbers.spoofed, self.spoofed.count()),
        ] {
            number.inc_by(value.saturating_sub(number.get()));
        }
        drop(egress);
        let usage = sources.usage.borrow();
        numbers.foreign.set(count(usage.foreign.len()));
        numbers.waiting.set(usage.waiting.into());
        drop(usage);
        let usage = sources.usage.borrow().clone();
        addresses::count(&numbers.addresses, &usage, now_ms());
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

fn readiness(
    store: &Connectivity,
    view: Option<&ClusterView>,
    report: &DataplaneReport,
    trouble: &UnderlayTrouble,
    egress: &EgressReport,
    usage: &AddressUsage,
) -> Readiness {
    let mut readiness = Readiness {
        problems: Vec::new(),
        warnings: Vec::new(),
    };
    let disconnected = match store {
        Connectivity::Disconnected { reason } => {
            Some(format!("the datastore is not reached: {reason}"))
        }
        Connectivity::Unknown => Some("the datastore was not reached yet".to_owned()),
        Connectivity::Connected => None,
    };
    match view {
        // Without a first view there is nothing to hold the kernel to.
        None => readiness
            .problems
            .push(disconnected.unwrap_or("the datastore was not read whole yet".to_owned())),
        Some(view) => {
            readiness.warnings.extend(disconnected);
            readiness.warnings.extend(view.unreadable.values().cloned());
            if !report.can_wire {
                readiness.problems.push(
                    "the node has no overlay address in the kernel yet; it waits for a block"
                        .to_owned(),
                );
            }
            readiness.problems.extend(trouble.problems.iter().cloned());
            readiness.problems.extend(report.problems.iter().cloned());
            readiness.problems.extend(egress.problems.iter().cloned());
            readiness.warnings.extend(trouble.warnings.iter().cloned());
            // One bad record or distant peer must not make every node unready.
            readiness
                .warnings
                .extend(report.not_adjacent.iter().cloned());
            readiness.warnings.extend(report.refusals.iter().cloned());
            readiness.warnings.extend(report.conflicts.iter().cloned());
            if readiness.problems.is_empty() {
                for (verified, what) in [
                    (report.verified, "the kernel is not verified yet"),
                    (egress.verified, "the nft table is not verified yet"),
                ] {
                    if !verified {
                        readiness.problems.push(what.to_owned());
                    }
                }
            }
            let foreign = usage.foreign.values();
            readiness.warnings.extend(foreign.map(ToString::to_string));
        }
    }
    readiness
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unused() -> AddressUsage {
        AddressUsage::default()
    }

    fn verified() -> DataplaneReport {
        DataplaneReport {
            verified: true,
            can_wire: true,
            ..DataplaneReport::default()
        }
    }

    fn stands() -> EgressReport {
        EgressReport {
            verified: true,
            ..EgressReport::default()
        }
    }

    #[test]
    fn a_lost_store_is_shown_but_the_kernel_decides() {
        let lost = Connectivity::Disconnected {
            reason: "connection refused".into(),
        };
        let with_view = readiness(
            &lost,
            Some(&ClusterView::default()),
            &verified(),
            &fine(),
            &stands(),
            &unused(),
        );
        assert!(with_view.ready() && with_view.to_string().contains("connection refused"));
        let without = readiness(
            &lost,
            None,
            &DataplaneReport::default(),
            &fine(),
            &stands(),
            &unused(),
        );
        assert!(!without.ready() && without.to_string().contains("connection refused"));
    }

    #[test]
    fn what_differs_is_named() {
        let report = DataplaneReport {
            verified: false,
            can_wire: true,
            problems: vec!["route X: no".into()],
            ..DataplaneReport::default()
        };
        let readiness = readiness(
            &Connectivity::Connected,
            Some(&ClusterView::default()),
            &report,
            &fine(),
            &stands(),
            &unused(),
        );
        assert_eq!(readiness.to_string(), "not ready\nproblem: route X: no\n");
    }

    #[test]
    fn a_peer_that_is_not_adjacent_is_named_and_a_lost_underlay_is_a_problem() {
        let report = DataplaneReport {
            not_adjacent: vec!["node \"b\" is not adjacent".into()],
            ..verified()
        };
        let told = |trouble: &UnderlayTrouble| {
            let view = ClusterView::default();
            readiness(
                &Connectivity::Connected,
                Some(&view),
                &report,
                trouble,
                &stands(),
                &unused(),
            )
            .to_string()
        };
        assert_eq!(told(&fine()), "ok\nwarning: node \"b\" is not adjacent\n");
        let lost = UnderlayTrouble {
            problems: vec!["eth0 is gone".into()],
            warnings: vec![],
        };
        assert!(told(&lost).starts_with("not ready\nproblem: eth0 is gone\n"));
    }

    fn fine() -> UnderlayTrouble {
        UnderlayTrouble::default()
    }

    #[test]
    fn the_nft_table_is_part_of_being_ready() {
        let ready = |egress: &EgressReport| {
            let view = ClusterView::default();
            readiness(
                &Connectivity::Connected,
                Some(&view),
                &verified(),
                &fine(),
                egress,
                &unused(),
            )
        };
        assert!(ready(&stands()).ready());
        assert!(!ready(&EgressReport::default()).ready());
        let missing = EgressReport {
            problems: vec!["nft is missing".into()],
            ..EgressReport::default()
        };
        assert_eq!(
            ready(&missing).to_string(),
            "not ready\nproblem: nft is missing\n"
        );
    }
}
