//! `viaductctl ipam check` on a running cluster, as the README tells an operator to run it.

use anyhow::{Context, Result, ensure};

use super::WEB;
use super::node_cidrs::blocks;
use super::permissions::elsewhere;
use super::rollout::NAMESPACE;
use crate::cluster::{Cluster, NODES};
use crate::pods;

/// How a command is run in the agent's container on a node.
fn reach(cluster: &Cluster) -> String {
    let kubectl = format!("{} -n {NAMESPACE}", cluster.kubectl_words());
    format!(
        "{kubectl} exec -c agent $({kubectl} get pod -l app.kubernetes.io/component=agent \
         --field-selector spec.nodeName={{node}} -o name) --"
    )
}

/// Whether the whole cluster is clean, and what is said.
fn check(cluster: &Cluster) -> Result<(bool, String)> {
    let program = cluster.own_program("viaductctl");
    let conf = format!("--kubeconfig={}", cluster.admin());
    let reach = format!("--reach={}", reach(cluster));
    cluster.asked(&[&program, "--datastore=kube", &conf, "ipam", "check", &reach])
}

pub(super) fn compared(cluster: &Cluster) -> Result<String> {
    if elsewhere() {
        return Ok("the records are not in the Kubernetes API".into());
    }
    let web = pods::all_ready(cluster, "web", WEB)?;
    let (clean, said) = check(cluster)?;
    ensure!(clean && said.contains("clean: "), "{said}");
    let summary = said.lines().last().unwrap_or_default().to_owned();

    // A route of somebody else's into a block of the second node's, on the first; and a pod on
    // the second whose device somebody has deleted.
    let blocks = blocks(cluster)?;
    let theirs = blocks
        .iter()
        .find(|block| block["spec"]["node"] == NODES[1] && block["spec"]["state"] == "active");
    let theirs = theirs.and_then(|block| block["spec"]["cidr"].as_str());
    let (network, _) = theirs
        .and_then(|cidr| cidr.split_once('/'))
        .context("no block")?;
    let stranger = format!("{network}/32");
    let route = ["ip", "route", "add", &stranger, "dev", "eth0"];
    cluster.on(NODES[0], &route)?;
    let pod = web.iter().find(|pod| pod.node == NODES[1]);
    let pod = pod.context("no pod on the second node")?;
    let device = format!(
        "ip -o route get {} | sed -E 's/.* dev ([^ ]+).*/\\1/'",
        pod.ip
    );
    let device = cluster.on(NODES[1], &["sh", "-c", &device])?;
    cluster.on(NODES[1], &["ip", "link", "delete", device.trim()])?;

    let (clean, said) = check(cluster)?;
    ensure!(!clean, "nothing is found: {said}");
    for (sort, what) in [("stranger: ", &stranger), ("leak: ", &pod.ip)] {
        let told = said
            .lines()
            .any(|l| l.starts_with(sort) && l.contains(what.as_str()));
        ensure!(told, "no {sort}{what}: {said}");
    }
    // What is printed puts it right, perhaps in two rounds: the pod of an address that was
    // released is a stranger.
    for _ in 0..3 {
        let (clean, said) = check(cluster)?;
        if clean {
            pods::everybody_reaches_everybody(cluster, &pods::all_ready(cluster, "web", WEB)?)?;
            return Ok(summary);
        }
        for line in said
            .lines()
            .filter_map(|l| l.trim().strip_prefix("repair: "))
        {
            repair(cluster, line)?;
        }
    }
    let (_, said) = check(cluster)?;
    anyhow::bail!("the repairs that are printed put nothing right: {said}");
}

/// Does what is printed as an operator would. In the agent's container there is no program
/// `ip`: what begins with that is for the node itself.
fn repair(cluster: &Cluster, line: &str) -> Result<()> {
    if let Some((reach, rest)) = line.split_once(" -- ip ") {
        let node = NODES
            .iter()
            .find(|node| reach.contains(&format!("nodeName={node} ")));
        let node = node.with_context(|| format!("no node in {line}"))?;
        return cluster
            .on(node, &["sh", "-c", &format!("ip {rest}")])
            .map(drop);
    }
    let line = match line.strip_prefix("kubectl ") {
        Some(rest) => format!("{} {rest}", cluster.kubectl_words()),
        None => line.to_owned(),
    };
    cluster.outside(&["sh", "-c", &line]).map(drop)
}
