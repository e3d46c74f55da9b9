//! Viaduct is taken away as deploy/uninstall/README.md says, and comes back by its chart.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::WEB;
use super::rollout::{self, AGENTS, CONTROLLERS, NAMESPACE};
use crate::cluster::{Cluster, NODES};
use crate::{pods, wait};

/// The image as `cluster.sh load` has imported it, and the one that deploy/ names.
const IMAGE: (&str, &str) = ("localhost/viaduct", "dev");
const RELEASED: &str = "ghcr.io/viaduct-net/viaduct";

/// How the DaemonSet of deploy/uninstall is called.
const UNINSTALL: &str = "daemonset/viaduct-uninstall";

/// Prints all of a node that Viaduct could leave something in, one object a line.
///
/// Left out is what others write at any time: rules of kube-proxy and of the plugin portmap
/// (only tables of ours are looked for), `route_localnet` which both set, neighbours that come
/// and go, and link-local addresses, which a link gets a while after it.
const TRACES: &str = r#"
ip -o link show | sed -E 's/^[0-9]+: ([^:@]+).*/link \1/'
for family in -4 -6; do
  ip -o $family address show | sed -E 's/^[0-9]+: +//; s/ (valid_lft|scope).*//; s/^/address /' | grep -v ' fe80'
  ip $family route show table all | grep -v -e fe80 -e 'ff00::/8' | sed -E 's/^/route /; s/ +$//'
  ip $family rule show | sed 's/^/rule /'
  ip $family neigh show nud permanent | sed 's/^/neighbour /'
  ip $family nexthop show | sed 's/^/nexthop /'
done
bridge fdb show | grep -v 'dev eth0' | sed 's/^/fdb /'
nft list tables | grep -i viaduct
for device in all default eth0; do
  grep -H . /proc/sys/net/ipv[46]/conf/$device/* 2>/dev/null | grep -v -e route_localnet -e stable_secret
done
for directory in /opt/cni/bin /etc/cni/net.d /run/viaduct; do
  find $directory ! -path $directory -printf 'file %p %s %m %U\n' 2>/dev/null
done
true"#;

/// What a node may keep by decision: the lock, so that nobody holds one on a file that is gone.
const STAYS: &str = "file /run/viaduct/agent.lock ";

fn traces(cluster: &Cluster, node: &str) -> Result<BTreeSet<String>> {
    let printed = cluster.on(node, &["sh", "-c", TRACES])?;
    let lines = printed.lines().map(|line| line.trim_end().to_owned());
    Ok(lines.collect())
}

/// Keeps what the nodes are like before anything of Viaduct's is there.
pub(super) fn remember(cluster: &Cluster) -> Result<()> {
    for node in NODES {
        let before: Vec<String> = traces(cluster, node)?.into_iter().collect();
        cluster.keep(node, &before.join("\n"))?;
    }
    Ok(())
}

/// What is different on the nodes: with a + what is there now, with a - what was before.
fn differences(cluster: &Cluster) -> Result<Vec<String>> {
    let mut differences = Vec::new();
    for node in NODES {
        let kept = cluster
            .kept(node)
            .context("what nodes were before is not known: the first check is needed")?;
        let before: BTreeSet<String> = kept.lines().map(str::to_owned).collect();
        let now = traces(cluster, node)?;
        let more = now.difference(&before);
        let more = more.filter(|line| !line.starts_with(STAYS));
        differences.extend(more.map(|line| format!("{node} +{line}")));
        let less = before.difference(&now);
        differences.extend(less.map(|line| format!("{node} -{line}")));
    }
    Ok(differences)
}

pub(super) fn uninstalled(cluster: &Cluster) -> Result<String> {
    let there = differences(cluster)?;
    for what in [
        "link via",
        "route ",
        "table inet viaduct",
        "/etc/cni/net.d/10-viaduct.conflist",
        "/opt/cni/bin/viaduct",
        "/run/viaduct/endpoints",
    ] {
        // Else there is nothing to be taken away, or it is looked for in the wrong place.
        ensure!(
            there.iter().any(|line| line.contains(what)),
            "a cluster with Viaduct has no {what}: {there:?}"
        );
    }
    let since = Instant::now();
    let everything = fs::read_to_string(cluster.repository("deploy/viaduct.yaml"))?;
    // The test's own ConfigMaps may have other names: they go with the namespace.
    let delete = ["delete", "--ignore-not-found", "--timeout=120s", "-f", "-"];
    cluster.kubectl_with(&delete, &everything)?;
    let theirs = "--field-selector=spec.hostNetwork=false";
    cluster.kubectl(&["delete", "pods", "-A", theirs, "--timeout=60s"])?;
    let job = fs::read_to_string(cluster.repository("deploy/uninstall/viaduct-uninstall.yaml"))?;
    let job = with_image(&job);
    cluster.kubectl_with(&["apply", "-f", "-"], &job)?;
    let rollout = ["-n", "kube-system", "rollout", "status", UNINSTALL];
    cluster.kubectl(&[&rollout[..], &["--timeout=120s"]].concat())?;
    let said = cluster.kubectl(&["-n", "kube-system", "logs", UNINSTALL, "-c", "uninstall"])?;
    cluster.kubectl_with(&["delete", "--timeout=60s", "-f", "-"], &job)?;
    let took = since.elapsed().as_secs_f64();
    let left = differences(cluster)?;
    ensure!(left.is_empty(), "{left:#?}; {said}");
    let kinds = cluster.kubectl(&["get", "crd", "-o", "name"])?;
    ensure!(!kinds.contains("viaduct.dev"), "definitions stay: {kinds}");
    Ok(format!(
        "{} traces of it on {} nodes are gone after {took:.1} s",
        there.len(),
        NODES.len()
    ))
}

/// The DaemonSet with the image that there is here.
fn with_image(job: &str) -> String {
    let image = format!("image: {}:{}", IMAGE.0, IMAGE.1);
    let lines = job.lines().map(|line| match line.split_once("image: ") {
        Some((before, name)) if name.starts_with(RELEASED) => format!("{before}{image}\n"),
        _ => format!("{line}\n"),
    });
    lines.collect()
}

pub(super) fn chart(cluster: &Cluster) -> Result<String> {
    let helm = cluster.here(&["deploy/helm/helm.sh"])?;
    let since = Instant::now();
    cluster.kubectl(&["create", "namespace", NAMESPACE])?;
    let label = "pod-security.kubernetes.io/enforce=privileged";
    cluster.kubectl(&["label", "namespace", NAMESPACE, label])?;
    let values = format!("image.repository={},image.tag={}", IMAGE.0, IMAGE.1);
    let chart = cluster.repository("deploy/helm/viaduct");
    let conf = format!("--kubeconfig={}", cluster.admin());
    let helm = [helm.trim(), &conf, "-n", NAMESPACE];
    cluster.outside(&[&helm[..], &["install", "viaduct", &chart, "--set", &values]].concat())?;
    rollout::nodes_ready(cluster)?;
    rollout::rolled_out(cluster, AGENTS)?;
    rollout::rolled_out(cluster, CONTROLLERS)?;
    let ready = since.elapsed().as_secs_f64();
    let web = pods::all_ready(cluster, "web", WEB)?;
    let pairs = pods::everybody_reaches_everybody(cluster, &web)?;
    // And away again by the other way, which leaves the records: the next release wants them.
    cluster.outside(&[&helm[..], &["uninstall", "viaduct", "--wait"]].concat())?;
    wait::until(Duration::from_secs(60), || {
        let agents = cluster.kubectl(&["-n", NAMESPACE, "get", "pods", "-o", "name"])?;
        ensure!(agents.is_empty(), "there still are {agents}");
        Ok(())
    })?;
    pods::everybody_reaches_everybody(cluster, &web)
        .context("while nothing of the chart is there but what agents left")?;
    cluster.outside(&[&helm[..], &["install", "viaduct", &chart, "--set", &values]].concat())?;
    rollout::rolled_out(cluster, AGENTS)?;
    let after = pods::all_ready(cluster, "web", WEB)?;
    ensure!(web == after, "before {web:?}, after {after:?}");
    pods::everybody_reaches_everybody(cluster, &after)?;
    Ok(format!("{pairs} pairs, all Ready after {ready:.1} s"))
}
