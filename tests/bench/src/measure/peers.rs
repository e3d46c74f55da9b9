//! An agent that starts in a cluster of 2,000: how long until all of them are in
//! the kernel, beside `bridge -batch` and `ip -batch`; and its memory then.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use viaduct_lab::{Datastore, Lab, LabOptions, Node, node::READY_TIMEOUT};
use viaduct_model::MacAddr;

use super::Setting;
use crate::process;
use crate::reference::{batch::Batches, vxlan};
use crate::row::{Limit, Row, Unit};
use crate::simulated;

const PEERS: u32 = 2000;
const TIMEOUT: Duration = Duration::from_secs(60);
const SETTLE: Duration = Duration::from_secs(3);

pub(super) fn run(setting: Setting) -> Result<Vec<Row>> {
    let options = LabOptions {
        nodes: 1,
        datastore: Datastore::Etcd,
        pool: Some("10.64.0.0/12".to_owned()),
        ..LabOptions::default()
    };
    let lab = Lab::up(options, setting.control)?;
    let node = lab.node("n1")?;
    let peers = simulated::peers(PEERS, Ipv4Addr::new(10, 72, 0, 0))?;
    simulated::write(&lab.store_options(), &peers)?;
    let by_hand = lab.new_node()?;
    let batches = Batches::write(&peers)?;
    let (mut ours, mut theirs, mut resident) = (Vec::new(), Vec::new(), Vec::new());
    let mut notes = Vec::new();
    for _ in 0..setting.rounds {
        theirs.push(milliseconds(reference(&by_hand, &batches)?));
        node.agent().stop()?;
        wipe(&node, "via.vx4")?;
        ours.push(milliseconds(cold_start(&node)?));
        node.await_ready(READY_TIMEOUT)?;
        std::thread::sleep(SETTLE);
        let pid = node.agent_pid().context("the agent has ended")?;
        resident.push(process::resident_mib(pid)?);
        notes = vec![format!(
            "of which {:.1} MiB are not of the program's file",
            process::anonymous_mib(pid)?
        )];
    }
    let pid = node.agent_pid().context("the agent has ended")?;
    let idle = super::agent::idle(&[pid], setting.idle * u32::try_from(setting.rounds)?)?;
    if setting.verbose {
        eprintln!("{}", node.agent().log_tail(60));
    }
    Ok(vec![
        Row::alone("2,000 peers from a cold start", Unit::Milliseconds, ours)
            .beside("ip -batch, bridge -batch", theirs)
            .limited(Limit::RatioAtMost(3.0)),
        Row::alone(
            "agent's resident memory, 2,000 nodes, etcd",
            Unit::Mebibytes,
            resident,
        )
        .limited(Limit::AtMost(40.0))
        .noted(notes),
        Row::alone(
            "agent's CPU time, nothing changes, 2,000 nodes",
            Unit::PercentOfACore,
            idle,
        ),
    ])
}

/// From before the agent's process is started until all peers' forwarding
/// entries, neighbours and routes are in the kernel.
fn cold_start(node: &Node) -> Result<Duration> {
    let start = Instant::now();
    node.start_agent()?;
    let pid = node.agent_pid().context("the agent has ended at once")?;
    // Counting the prefixes of the routing table costs microseconds, so that
    // waiting takes nothing from the agent. Routes come last; the rest is
    // counted then.
    while process::prefixes(pid)? < PEERS as usize {
        node.agent().still_runs()?;
        ensure!(
            start.elapsed() < TIMEOUT,
            "after {TIMEOUT:?}, {} routes; the log ends:\n{}",
            process::prefixes(pid)?,
            node.agent().log_tail(10)
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut took = start.elapsed();
    while objects(node, "via.vx4")? < [PEERS as usize; 3] {
        ensure!(
            start.elapsed() < TIMEOUT,
            "after {TIMEOUT:?}, {:?}",
            objects(node, "via.vx4")?
        );
        took = start.elapsed();
    }
    Ok(took)
}

fn reference(node: &Node, batches: &Batches) -> Result<Duration> {
    wipe(node, vxlan::DEVICE)?;
    let mac = MacAddr::derived("bench", node.name());
    vxlan::device(node, Ipv4Addr::new(10, 76, 0, 1), mac)?;
    let took = batches.run(node)?;
    let there = objects(node, vxlan::DEVICE)?;
    ensure!(there >= [PEERS as usize; 3], "the batches made {there:?}");
    Ok(took)
}

/// Removes the tunnel's device, and with it all that stands on it.
fn wipe(node: &Node, device: &str) -> Result<()> {
    if node.run("ip", &["link", "show", device]).is_ok() {
        node.run("ip", &["link", "del", device])?;
    }
    Ok(())
}

/// How many forwarding entries, neighbours and routes stand on a device.
fn objects(node: &Node, device: &str) -> Result<[usize; 3]> {
    Ok([
        count(node.run("bridge", &["fdb", "show", "dev", device])?, "dst"),
        count(node.run("ip", &["neigh", "show", "dev", device])?, "lladdr"),
        count(
            node.run("ip", &["route", "show", "dev", device, "proto", "87"])?,
            "via",
        ),
    ])
}

fn count(text: String, needle: &str) -> usize {
    text.lines().filter(|line| line.contains(needle)).count()
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
