//! An agent's memory in a small cluster, and what it costs when nothing changes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use viaduct_lab::{Datastore, Lab, LabOptions, node::READY_TIMEOUT};

use super::Setting;
use crate::process;
use crate::row::{Limit, Row, Unit};

/// What start-up leaves to do is done by then.
const SETTLE: Duration = Duration::from_secs(3);

/// On etcd.
pub(super) fn on_etcd(setting: Setting) -> Result<Vec<Row>> {
    run(setting, Datastore::Etcd, "etcd")
}

/// On sqlite, whose watch is a different one.
pub(super) fn on_sqlite(setting: Setting) -> Result<Vec<Row>> {
    run(setting, Datastore::Sqlite, "sqlite")
}

fn run(setting: Setting, datastore: Datastore, shown: &str) -> Result<Vec<Row>> {
    let options = LabOptions {
        nodes: 3,
        datastore,
        ..LabOptions::default()
    };
    let lab = Lab::up(options, setting.control)?;
    let (mut resident, mut notes) = (Vec::new(), Vec::new());
    for _ in 0..setting.rounds {
        for node in lab.nodes() {
            node.agent().stop()?;
            node.start_agent()?;
        }
        lab.await_ready(READY_TIMEOUT)?;
        std::thread::sleep(SETTLE);
        notes.clear();
        let mut largest = 0.0_f64;
        for pid in pids(&lab)? {
            let all = process::resident_mib(pid)?;
            let anonymous = process::anonymous_mib(pid)?;
            notes.push(format!(
                "{all:.1} MiB, of which {anonymous:.1} MiB are not of the program's file"
            ));
            largest = largest.max(all);
        }
        resident.push(largest);
    }
    // In one piece: an agent looks at everything about once a minute, which
    // windows of half a minute and a median would hide.
    let idle = idle(&pids(&lab)?, setting.idle * u32::try_from(setting.rounds)?)?;
    let told = format!("the {} agents, each over the whole time", idle.len());
    Ok(vec![
        Row::alone(
            &format!("agent's resident memory, 3 nodes, {shown}"),
            Unit::Mebibytes,
            resident,
        )
        .limited(Limit::AtMost(20.0))
        .noted(notes),
        Row::alone(
            &format!("agent's CPU time, nothing changes, {shown}"),
            Unit::PercentOfACore,
            idle,
        )
        .limited(Limit::AtMost(0.05))
        .noted(vec![told]),
    ])
}

fn pids(lab: &Lab) -> Result<Vec<u32>> {
    lab.nodes()
        .iter()
        .map(|node| node.agent_pid().context("an agent has ended"))
        .collect()
}

/// The share of a core that each process takes within `time`, in percent.
pub(super) fn idle(pids: &[u32], time: Duration) -> Result<Vec<f64>> {
    let start = Instant::now();
    let times = || pids.iter().map(|pid| process::cpu_time(*pid));
    let before = times().collect::<Result<Vec<_>>>()?;
    std::thread::sleep(time);
    let after = times().collect::<Result<Vec<_>>>()?;
    let took = start.elapsed().as_secs_f64();
    Ok(before
        .iter()
        .zip(&after)
        .map(|(before, after)| after.saturating_sub(*before).as_secs_f64() / took * 100.0)
        .collect())
}
