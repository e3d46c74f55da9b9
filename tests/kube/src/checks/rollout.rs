//! Deploying Viaduct, and replacing it under traffic.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{WEB, leaving};
use crate::cluster::{Cluster, Deployed, NODES};
use crate::pods::{self, Stream};
use crate::wait;

/// Where Viaduct runs.
pub(super) const NAMESPACE: &str = "viaduct-system";

/// The DaemonSet.
pub(super) const AGENTS: &str = "daemonset/viaduct-agent";

/// The controller's Deployment.
pub(super) const CONTROLLERS: &str = "deployment/viaduct-controller";

/// The bit of CAP_NET_ADMIN.
const NET_ADMIN: u64 = 1 << 12;

pub(super) fn deploy(cluster: &Cluster) -> Result<String> {
    leaving::remember(cluster)?;
    let since = Instant::now();
    let deployed = Deployed::chosen();
    if deployed == Deployed::Adopt {
        // It brings a pool, which the API server must know the kind of.
        cluster.apply_kustomization("deploy/crds")?;
        let definitions = [
            "--for=condition=Established",
            "crd",
            "--all",
            "--timeout=30s",
        ];
        cluster.kubectl(&[&["wait"], &definitions[..]].concat())?;
    }
    cluster.apply_kustomization(deployed.kustomization())?;
    nodes_ready(cluster)?;
    let took = since.elapsed();
    rolled_out(cluster, AGENTS)?;
    if deployed != Deployed::Adopt {
        rolled_out(cluster, CONTROLLERS)?;
    }
    Ok(format!("all Ready after {:.1} s", took.as_secs_f64()))
}

/// Waits until every node is.
pub(super) fn nodes_ready(cluster: &Cluster) -> Result<()> {
    wait::until(Duration::from_secs(120), || {
        for node in NODES {
            let node = cluster.get(&["node", node])?;
            ensure!(
                pods::is_ready(&node),
                "{} is not Ready",
                node["metadata"]["name"]
            );
        }
        Ok(())
    })
}

/// Waits until every pod of it is the new one and ready.
pub(super) fn rolled_out(cluster: &Cluster, what: &str) -> Result<()> {
    let arguments = ["-n", NAMESPACE, "rollout", "status", what, "--timeout=180s"];
    cluster.kubectl(&arguments).map(drop)
}

pub(super) fn privileges(cluster: &Cluster) -> Result<String> {
    for node in NODES {
        // From the node, whose PID namespace has the agent's.
        let script = "for p in /proc/[0-9]*; do \
             if [ \"$(tr '\\0' '\\n' <$p/cmdline 2>/dev/null | head -n 1)\" = /usr/bin/viaduct-agent ]; then \
             grep -E '^(Uid|CapPrm|CapEff|CapBnd|Seccomp):' $p/status; fi; done";
        let status = cluster.on(node, &["sh", "-c", script])?;
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_whitespace().nth(1))
                .with_context(|| format!("{node}: no {name} of an agent"))
        };
        ensure!(field("Uid:")? == "64870", "{node}: uid {}", field("Uid:")?);
        for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
            let bits = u64::from_str_radix(field(set)?, 16)?;
            ensure!(bits == NET_ADMIN, "{node}: {set} {bits:#x}");
        }
        ensure!(field("Seccomp:")? == "2", "{node}: no seccomp filter");
    }
    Ok(String::new())
}

pub(super) fn update(cluster: &Cluster) -> Result<String> {
    let web = pods::all_ready(cluster, "web", WEB)?;
    let streams = streams(cluster, &web)?;
    let before = ready_since(cluster)?;
    let since = Instant::now();
    cluster.kubectl(&["-n", NAMESPACE, "rollout", "restart", AGENTS])?;
    rolled_out(cluster, AGENTS)?;
    let took = since.elapsed();
    settle();
    let packets = lost_none(streams)?;
    let after = ready_since(cluster)?;
    // A node that is not Ready for a moment has its pods taken out of all services.
    ensure!(
        before == after,
        "nodes were not Ready: since {before:?}, then {after:?}"
    );
    Ok(format!(
        "{packets} packets, the update took {:.1} s",
        took.as_secs_f64()
    ))
}

/// Since when each node is Ready without a break.
fn ready_since(cluster: &Cluster) -> Result<Vec<String>> {
    let mut since = Vec::new();
    for node in NODES {
        let node = cluster.get(&["node", node])?;
        let conditions = node["status"]["conditions"].as_array();
        let ready = conditions.and_then(|all| all.iter().find(|c| c["type"] == "Ready"));
        let ready = ready.context("a node has no condition Ready")?;
        since.push(format!(
            "{} {}",
            ready["status"], ready["lastTransitionTime"]
        ));
    }
    Ok(since)
}

/// A stream from the first pod of each node to the first of each other.
pub(super) fn streams(cluster: &Cluster, web: &[pods::Pod]) -> Result<Vec<Stream>> {
    let first = |node: &str| {
        let found = web.iter().find(|pod| pod.node == node);
        found.with_context(|| format!("no pod on {node}"))
    };
    let mut streams = Vec::new();
    for from in NODES {
        for to in NODES.iter().filter(|to| **to != from) {
            streams.push(Stream::start(cluster, first(from)?, first(to)?)?);
        }
    }
    Ok(streams)
}

/// What follows from a change may come a moment after it.
pub(super) fn settle() {
    std::thread::sleep(Duration::from_secs(3));
}

/// Ends all of them; says how many packets went and came.
pub(super) fn lost_none(streams: Vec<Stream>) -> Result<u64> {
    for stream in &streams {
        stream.stop()?;
    }
    // All are ended, and all that lost something are named.
    let (mut packets, mut losses) = (0, Vec::new());
    for stream in streams {
        match stream.lost_none() {
            Ok(sent) => packets += sent,
            Err(error) => losses.push(format!("{error:#}")),
        }
    }
    ensure!(losses.is_empty(), "{}", losses.join("; "));
    Ok(packets)
}
