//! What is measured. Adding a measurement is one file and one line in [`ALL`].

mod agent;
mod churn;
mod cni;
mod heal;
mod join;
mod kube;
mod path;
mod peers;
mod underlay;

use std::time::Duration;

use anyhow::Result;
use viaduct_lab::Control;

use crate::row::Row;

/// How to measure.
#[derive(Debug)]
pub(crate) struct Setting {
    /// The lab's way out, which the lab takes over.
    pub control: Control,
    /// How often both sides are measured.
    pub rounds: usize,
    /// How long an agent with nothing to do is watched.
    pub idle: Duration,
    /// Whether to print logs.
    pub verbose: bool,
}

/// One measurement.
#[derive(Debug)]
pub(crate) struct Measurement {
    /// What `--only` calls it.
    pub name: &'static str,
    /// One line for people.
    pub about: &'static str,
    /// Whether it takes so long only because it watches something that does nothing, and
    /// so may be taken together with its neighbours of that kind.
    pub mostly_waits: bool,
    /// An environment variable without which it is left out.
    pub needs: Option<&'static str>,
    /// Measures, inside a lab's namespaces where nothing is set up yet.
    pub run: fn(Setting) -> Result<Vec<Row>>,
}

/// All measurements, in the order in which they run.
pub(crate) const ALL: &[Measurement] = &[
    Measurement {
        name: "cni",
        about: "ADD and DEL of 200 pods through the plugin, beside ptp with host-local",
        mostly_waits: false,
        needs: None,
        run: cni::run,
    },
    Measurement {
        name: "churn",
        about: "20,000 ADD and DEL: what grows by it; ADD while the store is down",
        mostly_waits: false,
        needs: None,
        run: churn::run,
    },
    Measurement {
        name: "join",
        about: "from the start of a fourth agent to its pod's first reply to every other pod",
        mostly_waits: false,
        needs: None,
        run: join::run,
    },
    Measurement {
        name: "agent",
        about: "an agent's memory and its CPU time when nothing changes, on etcd",
        mostly_waits: true,
        needs: None,
        run: agent::on_etcd,
    },
    Measurement {
        name: "agent-sqlite",
        about: "the same on sqlite",
        mostly_waits: true,
        needs: None,
        run: agent::on_sqlite,
    },
    Measurement {
        name: "peers",
        about: "2,000 peers: cold start, beside ip -batch and bridge -batch; memory",
        mostly_waits: false,
        needs: None,
        run: peers::run,
    },
    Measurement {
        name: "heal",
        about: "damage to repair, 200 times for each kind of object; damage without end",
        mostly_waits: false,
        needs: None,
        run: heal::run,
    },
    Measurement {
        name: "underlay",
        about: "a node's underlay changes, goes and comes back: until its pods are reached",
        mostly_waits: false,
        needs: None,
        run: underlay::run,
    },
    Measurement {
        name: "path",
        about: "pod to pod over two nodes by vxlan, beside the same made by hand and node to node",
        mostly_waits: false,
        needs: None,
        run: path::vxlan,
    },
    Measurement {
        name: "path-host-gw",
        about: "pod to pod over two nodes by host-gw, beside the same made by hand and node to node",
        mostly_waits: false,
        needs: None,
        run: path::host_gw,
    },
    Measurement {
        name: "kube",
        about: "1,000 and 5,000 nodes in a real API server of Kubernetes",
        mostly_waits: false,
        needs: Some(kube::PROGRAMS),
        run: kube::run,
    },
];

/// The names of all measurements.
pub(crate) fn names() -> Vec<&'static str> {
    ALL.iter().map(|m| m.name).collect()
}
