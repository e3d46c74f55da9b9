//! What happens to whole nodes.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::WEB;
use super::rollout::{self, NAMESPACE, nodes_ready};
use crate::cluster::{Cluster, NODES};
use crate::{pods, wait};

pub(super) fn daemons(cluster: &Cluster) -> Result<String> {
    let node = NODES[1];
    let before = pods::all_ready(cluster, "web", WEB)?;
    let streams = rollout::streams(cluster, &before)?;
    for daemon in ["kubelet", "containerd"] {
        cluster.on(
            node,
            &["sh", "-c", &format!("kill $(cat /run/{daemon}.pid)")],
        )?;
    }
    rollout::settle();
    nodes_ready(cluster)?;
    let packets = rollout::lost_none(streams)?;
    let after = pods::all_ready(cluster, "web", WEB)?;
    ensure!(before == after, "before {before:?}, after {after:?}");
    // And new pods start there.
    cluster.kubectl(&["delete", "pod", &first_on(&after, node)?, "--wait=false"])?;
    pods::everybody_reaches_everybody(cluster, &pods::all_ready(cluster, "web", WEB)?)?;
    Ok(format!("{packets} packets"))
}

fn first_on(web: &[pods::Pod], node: &str) -> Result<String> {
    let found = web
        .iter()
        .find(|pod| pod.node == node)
        .map(|pod| pod.name.clone());
    found.ok_or_else(|| anyhow::anyhow!("no pod on {node}"))
}

pub(super) fn returns(cluster: &Cluster) -> Result<String> {
    let node = NODES[2];
    let drain = [
        "drain",
        node,
        "--ignore-daemonsets",
        "--delete-emptydir-data",
        "--force",
    ];
    cluster.kubectl(&[&drain[..], &["--timeout=120s"]].concat())?;
    cluster.power("off", node)?;
    cluster.kubectl(&["delete", "node", node])?;
    // Nobody is left who could say that its pods have ended.
    let its = format!("--field-selector=spec.nodeName={node}");
    cluster.kubectl(&["delete", "pods", "--all-namespaces", &its, "--force"])?;
    cluster.power("on", node)?;
    wait::until(Duration::from_secs(60), || cluster.get(&["node", node]))?;
    nodes_ready(cluster)?;
    rollout::rolled_out(cluster, "daemonset/viaduct-agent")?;
    let agents = pods::ready(cluster, NAMESPACE, "app.kubernetes.io/component=agent")?;
    ensure!(agents.len() == NODES.len(), "{agents:?}");
    // Twelve pods anew, so that each node has its share again.
    cluster.kubectl(&["rollout", "restart", "deployment/web"])?;
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=120s"])?;
    let web = pods::all_ready(cluster, "web", WEB)?;
    ensure!(
        web.iter().any(|pod| pod.node == node),
        "no pod on {node}: {web:?}"
    );
    let pairs = pods::everybody_reaches_everybody(cluster, &web)?;
    Ok(format!("{pairs} pairs"))
}
