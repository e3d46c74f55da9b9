//! Not one packet is lost while agents, controller and etcd die and come back: a UDP
//! stream of 1,000 packets a second and a TCP stream run from pod to pod meanwhile.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use viaduct_e2e::{Carried, Traffic, eventually, everybody_pings, leaks};
use viaduct_lab::node::READY_TIMEOUT;
use viaduct_lab::{Datastore, Lab, LabOptions, Node, Pod, Signal, in_lab, in_parallel};

/// How long etcd is away, in seconds; `make soak-outage` makes it five minutes.
const OUTAGE: &str = "VIADUCT_OUTAGE_SECONDS";

/// Pods that come, and go, on each node in that time.
const CHURN: usize = 50;

fn on(datastore: Datastore) -> LabOptions {
    LabOptions {
        datastore,
        ..LabOptions::default()
    }
}

/// Runs `happening` under a stream each way between the lab's two first pods, and lets
/// the streams go on for as long again, to see what TCP loses by itself.
fn undisturbed(lab: &Lab, happening: impl FnOnce() -> Result<()>) -> Result<[Carried; 2]> {
    let pods = lab.pods();
    let [a, b, ..] = &pods[..] else {
        anyhow::bail!("{} pods", pods.len());
    };
    let mut there = Traffic::start(a, b)?;
    let mut back = Traffic::start(b, a)?;
    let begun = Instant::now();
    happening()?;
    let took = begun.elapsed();
    there.mark()?;
    back.mark()?;
    std::thread::sleep(took);
    Ok([there.lost_nothing()?, back.lost_nothing()?])
}

#[test]
fn an_interruption_of_a_tenth_of_a_second_is_seen_in_both_streams() {
    in_lab(on(Datastore::Sqlite), |lab| {
        let pods = lab.pods();
        let traffic = Traffic::start(&pods[0], &pods[1])?;
        let node = lab.node("n1")?;
        node.kill_agent(Signal::SIGKILL)?;
        let route = node.ip("route show proto 87 dev via.vx4")?;
        node.ip(&format!("route del {}", route.trim()))?;
        std::thread::sleep(Duration::from_millis(100));
        node.ip(&format!("route add {} dev via.vx4", route.trim()))?;
        std::thread::sleep(Duration::from_secs(1));
        let carried = traffic.stop()?;
        ensure!(carried.lost.len() > 50, "{carried:?}");
        ensure!(carried.retransmitted.0 > 2, "{carried:?}");
        Ok(())
    });
}

#[test]
fn nothing_is_lost_when_agents_are_killed_and_started_again() {
    in_lab(on(Datastore::Sqlite), |lab| {
        undisturbed(lab, || {
            for _ in 0..3 {
                lab.nodes()
                    .iter()
                    .try_for_each(|node| node.restart_agent())?;
            }
            Ok(())
        })
        .map(drop)
    });
}

#[test]
fn nothing_is_lost_when_agents_stop_cleanly_and_start_again() {
    in_lab(on(Datastore::Sqlite), |lab| {
        undisturbed(lab, || {
            for node in lab.nodes().iter().cycle().take(6) {
                node.agent().stop()?;
                node.start_agent()?;
                node.await_ready(READY_TIMEOUT)?;
            }
            Ok(())
        })
        .map(drop)
    });
}

#[test]
fn nothing_is_lost_when_the_agents_binary_is_replaced() {
    in_lab(on(Datastore::Sqlite), |lab| {
        undisturbed(lab, || {
            let old = viaduct_lab::binaries::program("viaduct-agent");
            let new = Path::new("/run/lab/viaduct-agent.new");
            // Another file with another content that does the same.
            let mut binary = std::fs::read(&old)?;
            binary.extend_from_slice(b"the next release");
            std::fs::write(new, binary)?;
            viaduct_lab::command::run("chmod", ["0755", "/run/lab/viaduct-agent.new"])?;
            let (from, to) = (new.display().to_string(), old.display().to_string());
            viaduct_lab::command::run("mount", ["--bind", &from, &to])?;
            for node in lab.nodes() {
                node.agent().stop()?;
                node.start_agent()?;
                node.await_ready(READY_TIMEOUT)?;
                let pid = node.agent_pid().context("the agent ended")?;
                let exe = std::fs::metadata(format!("/proc/{pid}/exe"))?.len();
                ensure!(exe == std::fs::metadata(new)?.len(), "not the new binary");
            }
            Ok(())
        })
        .map(drop)
    });
}

#[test]
fn nothing_is_lost_when_controller_and_etcd_are_killed_and_come_back() {
    in_lab(on(Datastore::Etcd), |lab| {
        undisturbed(lab, || {
            lab.controller().kill(Signal::SIGKILL)?;
            lab.start_controller()?;
            lab.store().kill()?;
            std::thread::sleep(Duration::from_secs(1));
            lab.store().restart()?;
            lab.await_ready(READY_TIMEOUT)
        })
        .map(drop)
    });
}

#[test]
fn pods_come_and_go_and_nothing_is_lost_while_etcd_is_gone() {
    let seconds = std::env::var(OUTAGE).map_or(Ok(8), |text| text.parse());
    let outage = Duration::from_secs(seconds.expect("a number of seconds"));
    in_lab(on(Datastore::Etcd), move |lab| {
        undisturbed(lab, || {
            lab.store().kill()?;
            let begun = Instant::now();
            in_parallel(2, &lab.nodes(), |node| churn(node, begun, outage))
                .into_iter()
                .collect::<Result<Vec<_>>>()?;
            std::thread::sleep((begun + outage).saturating_duration_since(Instant::now()));
            everybody_pings(&lab.pods())?;
            lab.store().restart()?;
            lab.await_ready(READY_TIMEOUT)
        })?;
        lab.nodes()
            .iter()
            .try_for_each(|node| eventually(|| leaks(node)))
    });
}

/// Adds pods, and then removes them, spread over nearly all of the outage.
fn churn(node: &Node, begun: Instant, outage: Duration) -> Result<()> {
    let steps = u32::try_from(2 * CHURN)?;
    let step = outage.mul_f64(0.9) / steps;
    let pace = |done: usize| {
        let due = begun + step * u32::try_from(done).unwrap_or(steps);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    };
    let mut pods: Vec<Pod> = Vec::new();
    for n in 0..CHURN {
        pods.push(node.add_pod(&format!("new{n}"))?);
        pace(n);
    }
    for (n, pod) in pods.iter().enumerate() {
        node.del_pod(pod)?;
        pace(CHURN + n);
    }
    Ok(())
}
