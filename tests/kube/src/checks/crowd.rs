//! Many pods at once on one node.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::WEB;
use super::permissions::elsewhere;
use super::rollout::NAMESPACE;
use crate::cluster::{Cluster, NODES};
use crate::{pods, wait};

/// As many as a node is meant to carry.
const MANY: usize = 110;

/// More than one block of 64 has, so that another pool is needed.
const MORE: usize = 80;

/// The node that crowd.yaml names.
const NODE: &str = NODES[1];

/// How long that many may take on two busy cores.
const PATIENCE: Duration = Duration::from_secs(300);

pub(super) fn starts(cluster: &Cluster) -> Result<String> {
    cluster.apply("tests/kube/manifests/crowd.yaml")?;
    let before = adds(cluster)?;
    let since = Instant::now();
    scale(cluster, MANY)?;
    ready(cluster, MANY)?;
    let took = since.elapsed().as_secs_f64();
    let stages = stages(cluster)?;
    let after = adds(cluster)?;
    everybody_answers(cluster, MANY)?;
    empty(cluster)?;
    let (count, ours) = (after.0 - before.0, after.1 - before.1);
    ensure!(count >= MANY as f64, "the agent counted {count} ADDs");
    Ok(format!(
        "all seen Ready after {took:.1} s; from the first scheduled to the last {stages}; ours of that: \
         {count} ADDs of {:.0} ms on average, several at a time, {ours:.1} s in all",
        1000.0 * ours / count
    ))
}

pub(super) fn second_pool(cluster: &Cluster) -> Result<String> {
    cluster.apply("tests/kube/manifests/crowd.yaml")?;
    disable(cluster, true)?;
    scale(cluster, MORE)?;
    // As many start as the node's blocks have addresses for, and no more.
    let stuck = wait::until(PATIENCE, || {
        let reached = running(cluster)?;
        std::thread::sleep(Duration::from_secs(10));
        let now = running(cluster)?;
        ensure!(reached == now && now > 0, "{now} pods run, and more start");
        Ok(now)
    })?;
    if stuck >= MORE {
        bail!("{stuck} pods run although no block was to be had");
    }
    second(cluster)?;
    ready(cluster, MORE)?;
    everybody_answers(cluster, MORE)?;
    empty(cluster)?;
    disable(cluster, false)?;
    Ok(format!(
        "{stuck} of {MORE} ran, all after the second pool came"
    ))
}

/// When the last pod of the crowd had reached each stage, counted from when the first was
/// scheduled: the API tells whole seconds.
fn stages(cluster: &Cluster) -> Result<String> {
    let listed = cluster.get(&["pods", "-l", "app=crowd"])?;
    let pods = listed["items"].as_array().context("no list of pods")?;
    let times = |kind: &str| -> Vec<u64> {
        let conditions = pods
            .iter()
            .filter_map(|pod| pod["status"]["conditions"].as_array())
            .flatten();
        conditions
            .filter(|c| c["type"] == kind)
            .filter_map(|c| second_of_day(c["lastTransitionTime"].as_str()?))
            .collect()
    };
    let scheduled = times("PodScheduled");
    let first = scheduled.iter().min().context("no pod is scheduled")?;
    let last = |kind: &str| {
        let after = times(kind)
            .into_iter()
            .map(|time| (time + DAY - first) % DAY);
        after.max().unwrap_or_default()
    };
    Ok(format!(
        "scheduled {} s, with a sandbox and its network {} s, Ready {} s",
        last("PodScheduled"),
        last("PodReadyToStartContainers"),
        last("Ready")
    ))
}

/// The seconds of a day.
const DAY: u64 = 86400;

/// 2026-11-21T19:05:02Z is second 68702 of its day.
fn second_of_day(time: &str) -> Option<u64> {
    let clock = time.split_once('T')?.1.trim_end_matches('Z');
    clock
        .split(':')
        .try_fold(0, |sum, part| Some(sum * 60 + part.parse::<u64>().ok()?))
}

fn scale(cluster: &Cluster, count: usize) -> Result<()> {
    let replicas = format!("--replicas={count}");
    cluster
        .kubectl(&["scale", "deployment/crowd", &replicas])
        .map(drop)
}

fn running(cluster: &Cluster) -> Result<usize> {
    Ok(pods::ready(cluster, "default", "app=crowd")?.len())
}

fn ready(cluster: &Cluster, count: usize) -> Result<()> {
    wait::until(PATIENCE, || {
        let there = running(cluster)?;
        ensure!(there == count, "{there} of {count} pods are ready");
        Ok(())
    })
}

fn empty(cluster: &Cluster) -> Result<()> {
    scale(cluster, 0)?;
    wait::until(PATIENCE, || {
        let left = cluster.get(&["pods", "-l", "app=crowd"])?;
        let left = left["items"].as_array().map_or(0, Vec::len);
        ensure!(left == 0, "{left} pods are still there");
        Ok(())
    })
}

/// A pod of another node asks each of them.
fn everybody_answers(cluster: &Cluster, count: usize) -> Result<()> {
    let crowd = pods::ready(cluster, "default", "app=crowd")?;
    ensure!(crowd.len() == count, "{} pods", crowd.len());
    let web = pods::all_ready(cluster, "web", WEB)?;
    let elsewhere = web.iter().find(|pod| pod.node != NODE);
    let from = elsewhere.context("no pod on another node")?;
    let urls: Vec<String> = crowd
        .iter()
        .map(|pod| format!("http://{}:8080/", pod.ip))
        .collect();
    for (pod, answer) in crowd.iter().zip(pods::ask(cluster, from, &urls)?) {
        ensure!(answer.pod == pod.name, "{}: {answer:?}", pod.name);
    }
    Ok(())
}

/// Whether nodes get blocks of the first pool.
fn disable(cluster: &Cluster, disabled: bool) -> Result<()> {
    if elsewhere() {
        let verb = if disabled { "disable" } else { "enable" };
        return viaductctl(cluster, &["pools", verb, "default"]).map(drop);
    }
    let patch = format!(r#"{{"spec":{{"disabled":{disabled}}}}}"#);
    let arguments = ["patch", "addresspool", "default", "--type=merge", "-p"];
    cluster
        .kubectl(&[&arguments[..], &[&patch]].concat())
        .map(drop)
}

/// Another pool.
fn second(cluster: &Cluster) -> Result<()> {
    if elsewhere() {
        let create = ["pools", "create", "second", "--cidr", "10.245.0.0/16"];
        return viaductctl(cluster, &create).map(drop);
    }
    let pool = r#"{"apiVersion":"viaduct.dev/v1alpha1","kind":"AddressPool",
        "metadata":{"name":"second"},"spec":{"cidr":"10.245.0.0/16"}}"#;
    cluster.kubectl_with(&["apply", "-f", "-"], pool).map(drop)
}

/// viaductctl in an agent's container, which reaches etcd as the agent does; in the
/// Kubernetes API an agent may not write pools.
fn viaductctl(cluster: &Cluster, arguments: &[&str]) -> Result<String> {
    let exec = [
        "-n",
        NAMESPACE,
        "exec",
        "daemonset/viaduct-agent",
        "-c",
        "agent",
        "--",
    ];
    cluster.kubectl(&[&exec[..], &["/usr/bin/viaductctl"], arguments].concat())
}

/// How many ADDs the node's agent has answered with success, and how long they took.
fn adds(cluster: &Cluster) -> Result<(f64, f64)> {
    let script =
        "exec 3<>/dev/tcp/127.0.0.1/9870; printf 'GET /metrics HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3";
    let metrics = cluster.on(NODE, &["bash", "-c", script])?;
    let value = |name: &str| -> Result<f64> {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name));
        Ok(line.unwrap_or(" 0").trim().parse()?)
    };
    Ok((
        value("viaduct_cni_requests_total{verb=\"add\",result=\"ok\"}")?,
        value("viaduct_cni_request_duration_seconds_sum{verb=\"add\"}")?,
    ))
}
