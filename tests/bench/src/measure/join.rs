//! A node joins: from the start of its agent to the first reply of its pod to
//! every other pod, on etcd; and where the time goes.
//!
//! The lab's etcd keeps its data in memory, so a disk's `fsync` is not in the
//! numbers; all its other work is.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Barrier;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use viaduct_lab::{Datastore, Lab, LabOptions, Node, Pod, netns};

use self::witness::{KernelWitness, StoreWitness};
use super::Setting;
use crate::icmp::Pinger;
use crate::row::{Limit, Row, Unit};
use crate::stats::median;

mod witness;

const TIMEOUT: Duration = Duration::from_secs(30);
const ECHO_INTERVAL: Duration = Duration::from_millis(1);

/// What happened, by the time since the agent was started, in milliseconds.
type Timeline = Vec<(String, f64)>;

pub(super) fn run(setting: Setting) -> Result<Vec<Row>> {
    let options = LabOptions {
        nodes: 3,
        datastore: Datastore::Etcd,
        env: vec![("RUST_LOG".to_owned(), "info".to_owned())],
        ..LabOptions::default()
    };
    let lab = Lab::up(options, setting.control)?;
    let others = lab.pods();
    let (mut totals, mut timelines) = (Vec::new(), Vec::new());
    for _ in 0..setting.rounds {
        let node = lab.new_node()?;
        let (total, timeline) = join(&lab, &node, &others)
            .with_context(|| format!("the agent's log ends:\n{}", node.agent().log_tail(20)))?;
        totals.push(total);
        timelines.push(timeline);
        if setting.verbose {
            eprintln!("{}\n", node.agent().log());
        }
        // So that the next is a fourth again.
        node.agent().stop()?;
    }
    Ok(vec![
        Row::alone(
            "join, to the first reply from every pod",
            Unit::Milliseconds,
            totals,
        )
        .limited(Limit::AtMost(150.0))
        .noted(told(&timelines)),
    ])
}

/// Starts the node's agent, wires a pod as soon as there is somebody to do it, and
/// pings it from every other pod.
fn join(lab: &Lab, node: &Node, others: &[Pod]) -> Result<(f64, Timeline)> {
    let sandbox = format!("{}-joining", node.name());
    let pod_netns = netns::add(&sandbox)?;
    let store = StoreWitness::start(lab.store_options(), node.name())?;
    let kernels = [
        KernelWitness::start(node, "the new node")?,
        KernelWitness::start(&*lab.node("n1")?, "peer n1")?,
    ];
    let pingers = others
        .iter()
        .map(|pod| Pinger::open(&pod.netns, 0x6a6f))
        .collect::<Result<Vec<_>>>()?;
    let all_wait = Barrier::new(others.len() + 1);
    std::thread::scope(|scope| {
        let mut waiting = Vec::new();
        for pinger in &pingers {
            let (tell, told) = mpsc::channel::<Ipv4Addr>();
            let all_wait = &all_wait;
            let pinging = scope.spawn(move || {
                all_wait.wait();
                let ip = told.recv().context("there is no pod to ping")?;
                pinger.first_reply(ip, ECHO_INTERVAL, TIMEOUT)
            });
            waiting.push((tell, pinging));
        }
        all_wait.wait();
        let start = Instant::now();
        node.start_agent()?;
        let mut timeline = vec![("process started".to_owned(), since(start, Instant::now()))];
        let ip = attach(node, &sandbox, &pod_netns, start, &mut timeline)?;
        for (tell, _) in &waiting {
            tell.send(ip).context("a pinger has ended")?;
        }
        let mut last = 0.0_f64;
        for ((_, pinging), pod) in waiting.into_iter().zip(others) {
            let replied = match pinging.join() {
                Ok(replied) => replied.with_context(|| format!("from {}", pod.name))?,
                Err(_) => bail!("a pinger panicked"),
            };
            timeline.push((
                format!("first reply to {}", pod.name),
                since(start, replied),
            ));
            last = last.max(since(start, replied));
        }
        timeline.extend(store.stop(start));
        for kernel in kernels {
            timeline.extend(kernel.stop(start)?);
        }
        Ok((last, timeline))
    })
}

/// CNI ADD, as soon as the socket is there, and again while the answer is "later".
fn attach(
    node: &Node,
    sandbox: &str,
    pod_netns: &std::path::Path,
    start: Instant,
    timeline: &mut Timeline,
) -> Result<Ipv4Addr> {
    let socket = node.run_dir().join("cni.sock");
    while !socket.exists() {
        node.agent().still_runs()?;
        if start.elapsed() > TIMEOUT {
            bail!("there is no {}", socket.display());
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    timeline.push(("CNI socket there".to_owned(), since(start, Instant::now())));
    let mut calls = 0;
    loop {
        calls += 1;
        let outcome = node.cni("ADD", sandbox, pod_netns)?;
        if outcome.succeeded() {
            let calls = if calls == 1 {
                String::new()
            } else {
                format!(", at call {calls}")
            };
            timeline.push((
                format!("CNI ADD answered{calls}"),
                since(start, Instant::now()),
            ));
            return match outcome.address()? {
                IpAddr::V4(ip) => Ok(ip),
                IpAddr::V6(ip) => bail!("the pod's address is {ip}"),
            };
        }
        if outcome.error_code() != Some(11) || start.elapsed() > TIMEOUT {
            outcome.check("ADD of the joining pod")?;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn since(start: Instant, then: Instant) -> f64 {
    then.saturating_duration_since(start).as_secs_f64() * 1e3
}

/// The medians of the rounds' timelines, in order of time.
fn told(timelines: &[Timeline]) -> Vec<String> {
    let mut names: Vec<&String> = Vec::new();
    for (name, _) in timelines.iter().flatten() {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let mut lines: Vec<(f64, String)> = names
        .into_iter()
        .map(|name| {
            let times: Vec<f64> = timelines
                .iter()
                .filter_map(|t| t.iter().find(|(n, _)| n == name).map(|(_, at)| *at))
                .collect();
            let at = median(&times);
            (at, format!("{at:7.1} ms  {name}"))
        })
        .collect();
    lines.sort_by(|a, b| a.0.total_cmp(&b.0));
    lines.into_iter().map(|(_, line)| line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeline_is_told_in_order_of_time_not_of_notice() {
        let timelines = [
            vec![("b".to_owned(), 20.0), ("a".to_owned(), 3.0)],
            vec![("b".to_owned(), 10.0), ("a".to_owned(), 5.0)],
        ];
        assert_eq!(told(&timelines), ["    4.0 ms  a", "   15.0 ms  b"]);
    }
}
