//! What the CNI server counts.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use viaduct_cni::protocol::{NetworkVerb, Reply, Verb};

type Labels<const N: usize> = [(&'static str, &'static str); N];

/// A verb as metrics name it.
pub(super) fn verb(verb: Verb) -> &'static str {
    match verb {
        Verb::Add => "add",
        Verb::Del => "del",
        Verb::Check => "check",
    }
}

/// The same of a verb about a network.
pub(super) fn network_verb(verb: NetworkVerb) -> &'static str {
    match verb {
        NetworkVerb::Gc => "gc",
        NetworkVerb::Status => "status",
    }
}

/// The CNI server's metrics; clones share their values.
#[derive(Debug, Clone)]
pub struct CniMetrics {
    requests: Family<Labels<2>, Counter>,
    durations: Family<Labels<1>, Histogram, fn() -> Histogram>,
    /// Attachments that the ledger holds.
    pub endpoints: Gauge,
    /// Damaged records of the ledger and the spool that were found at start.
    pub damaged: Gauge,
    /// DELs of the spool that could not be done at start.
    pub spooled: Gauge,
    /// Addresses that were handed out before they had cooled down.
    pub early_reuses: Counter,
    /// Connections of released addresses that the kernel was made to forget.
    pub forgotten: Counter,
}

impl Default for CniMetrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            // 0.25 ms to 4 s.
            durations: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.000_25, 2.0, 15))
            }),
            endpoints: Gauge::default(),
            damaged: Gauge::default(),
            spooled: Gauge::default(),
            early_reuses: Counter::default(),
            forgotten: Counter::default(),
        }
    }
}

impl CniMetrics {
    /// Makes the metrics visible in `registry`.
    pub fn register(&self, registry: &mut Registry) {
        let cni = registry.sub_registry_with_prefix("cni");
        cni.register(
            "requests",
            "Requests of the CNI plugin by verb and result",
            self.requests.clone(),
        );
        cni.register(
            "request_duration_seconds",
            "Time from a request to its answer",
            self.durations.clone(),
        );
        cni.register(
            "endpoints",
            "Attachments in the ledger",
            self.endpoints.clone(),
        );
        cni.register(
            "damaged_records",
            "Records of ledger and spool that could not be read at start",
            self.damaged.clone(),
        );
        cni.register(
            "spooled",
            "Spooled DELs that could not be done at start",
            self.spooled.clone(),
        );
        cni.register(
            "early_reuses",
            "Addresses handed out before they had cooled down",
            self.early_reuses.clone(),
        );
        cni.register(
            "forgotten_connections",
            "Tracked connections of released addresses that were deleted",
            self.forgotten.clone(),
        );
    }

    /// Counts one request and its answer.
    pub(super) fn answered(&self, verb: &'static str, reply: &Reply, took: Duration) {
        let result = match reply {
            Reply::Wired(_) | Reply::Gone | Reply::Fine | Reply::Address(_) => "ok",
            Reply::Refused(error) if error.code == viaduct_cni::CniError::TRY_AGAIN_LATER => {
                "later"
            }
            Reply::Refused(_) => "refused",
        };
        self.requests
            .get_or_create(&[("verb", verb), ("result", result)])
            .inc();
        self.durations
            .get_or_create(&[("verb", verb)])
            .observe(took.as_secs_f64());
    }
}
