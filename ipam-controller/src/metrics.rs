//! The metrics, in Prometheus' text form.

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use viaduct_datastore::Connectivity;
use viaduct_model::{BlockState, Kind};

use crate::decide::Action;
use crate::status::Status;

type Labels = Vec<(&'static str, String)>;
type Gauges = Family<Labels, Gauge>;

/// Every metric of the controller. Counters are the control loop's; the gauges are
/// set from its status when somebody asks.
#[derive(Debug, Default)]
pub struct Metrics {
    registry: Registry,
    actions: Family<Labels, Counter>,
    conflicts: Counter,
    failures: Counter,
    leads: Gauge,
    connected: Gauge,
    pool_total: Gauges,
    pool_free: Gauges,
    pool_waiting: Gauges,
    pool_addresses: Gauges,
    blocks: Gauges,
    waiting: Gauges,
    unreadable: Gauges,
    agents: Gauge,
    nodes: Gauge,
}

impl Metrics {
    /// All metrics, at zero.
    pub fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("viaduct_controller"),
            ..Self::default()
        };
        let registry = &mut metrics.registry;
        let (m, r) = (&metrics.actions, &mut *registry);
        r.register(
            "actions",
            "Writes that succeeded, by what they did",
            m.clone(),
        );
        r.register(
            "conflicts",
            "Writes turned down because the store stood otherwise than thought",
            metrics.conflicts.clone(),
        );
        r.register(
            "store_failures",
            "Writes and reads that the store failed",
            metrics.failures.clone(),
        );
        r.register(
            "leader",
            "1 while this controller acts",
            metrics.leads.clone(),
        );
        r.register(
            "store_connected",
            "1 while the datastore answers",
            metrics.connected.clone(),
        );
        for (name, help, gauges) in [
            (
                "pool_blocks",
                "Blocks that a pool can hold",
                &metrics.pool_total,
            ),
            (
                "pool_blocks_free",
                "Blocks of a pool that are free",
                &metrics.pool_free,
            ),
            (
                "pool_waiting_nodes",
                "Nodes that wait for a block which this pool does not have",
                &metrics.pool_waiting,
            ),
            (
                "pool_addresses",
                "Addresses in blocks of a pool by state, as the nodes' agents last said",
                &metrics.pool_addresses,
            ),
            ("blocks", "Blocks by state", &metrics.blocks),
            (
                "waiting_nodes",
                "Nodes that wait for a block which no pool has, by family",
                &metrics.waiting,
            ),
            (
                "unreadable_records",
                "Records that cannot be read, by kind",
                &metrics.unreadable,
            ),
        ] {
            r.register(name, help, gauges.clone());
        }
        r.register(
            "agents",
            "Nodes for which an agent runs",
            metrics.agents.clone(),
        );
        r.register("nodes", "Nodes that are registered", metrics.nodes.clone());
        metrics
    }

    /// Counts a write that succeeded.
    pub fn count(&self, action: &Action) {
        let what = match action {
            Action::CreatePool(..) => "create_pool",
            Action::CreateBlock(_) => "create_block",
            Action::RestoreBlock { .. } => "restore_block",
            Action::SetBlockState { .. } => "set_block_state",
            Action::DeleteBlock { .. } => "delete_block",
            Action::SetPoolStatus { .. } => "set_pool_status",
        };
        self.actions
            .get_or_create(&vec![("action", what.to_owned())])
            .inc();
    }

    /// Counts a write that was turned down.
    pub fn count_conflict(&self) {
        self.conflicts.inc();
    }

    /// Counts a failure of the store.
    pub fn count_failure(&self) {
        self.failures.inc();
    }

    /// The text that Prometheus reads.
    pub fn render(&self, status: &Status, connectivity: &Connectivity) -> String {
        self.leads.set(i64::from(status.leads));
        self.connected
            .set(i64::from(*connectivity == Connectivity::Connected));
        let set = |gauges: &Gauges, label, of: String, n: u64| {
            gauges
                .get_or_create(&vec![(label, of)])
                .set(i64::try_from(n).unwrap_or(i64::MAX));
        };
        for gauges in [
            &self.pool_total,
            &self.pool_free,
            &self.pool_waiting,
            &self.pool_addresses,
        ] {
            gauges.clear();
        }
        for (pool, addresses) in &status.addresses {
            for (state, n) in [
                ("used", addresses.used),
                ("free", addresses.free),
                ("reserved", addresses.reserved),
            ] {
                let labels = vec![("pool", pool.to_string()), ("state", state.to_owned())];
                self.pool_addresses
                    .get_or_create(&labels)
                    .set(i64::try_from(n).unwrap_or(i64::MAX));
            }
        }
        for (pool, &(total, free)) in &status.pools {
            let waiting = status.waiting.iter().filter(|w| w.full.contains(pool));
            set(&self.pool_total, "pool", pool.to_string(), total);
            set(&self.pool_free, "pool", pool.to_string(), free);
            set(
                &self.pool_waiting,
                "pool",
                pool.to_string(),
                waiting.count() as u64,
            );
        }
        for state in [
            BlockState::Active,
            BlockState::Releasing,
            BlockState::Quarantined,
        ] {
            let n = status.blocks.get(&state).copied().unwrap_or(0);
            set(&self.blocks, "state", state.to_string(), n);
        }
        for family in viaduct_model::Family::ALL {
            let waiting = status.waiting.iter().filter(|w| w.family == family);
            set(
                &self.waiting,
                "family",
                family.to_string(),
                waiting.count() as u64,
            );
        }
        for kind in Kind::ALL {
            let n = status.unreadable.get(&kind).copied().unwrap_or(0);
            set(&self.unreadable, "kind", kind.to_string(), n);
        }
        self.agents.set(status.nodes.0 as i64);
        self.nodes.set(status.nodes.1 as i64);
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::Waiting;
    use crate::status::Addresses;

    fn lines(text: &str, of: &str) -> Vec<String> {
        let mut lines: Vec<String> = text
            .lines()
            .filter_map(|line| line.strip_prefix("viaduct_controller_"))
            .filter(|line| line.starts_with(of))
            .map(str::to_owned)
            .collect();
        lines.sort();
        lines
    }

    #[test]
    fn a_pool_is_told_by_used_free_and_reserved_addresses_and_by_blocks_as_long_as_it_exists() {
        let metrics = Metrics::new();
        let mut status = Status::default();
        let pool = || "p".parse().unwrap();
        let counts = Addresses {
            used: 3,
            free: 12,
            reserved: 1,
        };
        status.addresses.insert(pool(), counts);
        status.pools.insert(pool(), (16, 0));
        status.waiting.push(Waiting {
            node: "n".parse().unwrap(),
            family: viaduct_model::Family::V4,
            full: vec![pool()],
        });
        let text = metrics.render(&status, &Connectivity::Connected);
        assert_eq!(
            lines(&text, "pool_"),
            [
                r#"pool_addresses{pool="p",state="free"} 12"#,
                r#"pool_addresses{pool="p",state="reserved"} 1"#,
                r#"pool_addresses{pool="p",state="used"} 3"#,
                r#"pool_blocks_free{pool="p"} 0"#,
                r#"pool_blocks{pool="p"} 16"#,
                r#"pool_waiting_nodes{pool="p"} 1"#,
            ]
        );
        let wait = lines(&text, "waiting_nodes");
        assert_eq!(wait.iter().filter(|line| line.ends_with(" 1")).count(), 1);
        let text = metrics.render(&Status::default(), &Connectivity::Connected);
        assert_eq!(lines(&text, "pool_"), Vec::<String>::new());
    }
}
