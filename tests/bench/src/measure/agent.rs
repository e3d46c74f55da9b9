//! An agent's memory in a small cluster, and what it costs when nothing changes.

use std::time::Instant;

use anyhow::{Context, Result};
use viaduct_lab::{Datastore, Lab, LabOptions, node::READY_TIMEOUT};

use super::Setting;
use crate::process;
use crate::row::{Limit, Row, Unit};

/// What start-up leaves to do is done by then.
const SETTLE: std::time::Duration = std::time::Duration::from_secs(3);

pub(super) fn run(setting: Setting) -> Result<Vec<Row>> {
    let options = LabOptions {
        nodes: 3,
        datastore: Datastore::Etcd,
        ..LabOptions::default()
    };
    let lab = Lab::up(options, setting.control)?;
    let (mut resident, mut idle, mut notes) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..setting.rounds {
        for node in lab.nodes() {
            node.agent().stop()?;
            node.start_agent()?;
        }
        lab.await_ready(READY_TIMEOUT)?;
        std::thread::sleep(SETTLE);
        let pids = lab
            .nodes()
            .iter()
            .map(|node| node.agent_pid().context("an agent has ended"))
            .collect::<Result<Vec<_>>>()?;
        let start = Instant::now();
        let before = pids
            .iter()
            .map(|pid| process::cpu_time(*pid))
            .collect::<Result<Vec<_>>>()?;
        std::thread::sleep(setting.idle);
        let after = pids
            .iter()
            .map(|pid| process::cpu_time(*pid))
            .collect::<Result<Vec<_>>>()?;
        let took = start.elapsed();
        // The worst of the three counts.
        let busiest = before
            .iter()
            .zip(&after)
            .map(|(before, after)| after.saturating_sub(*before))
            .max()
            .unwrap_or_default();
        idle.push(busiest.as_secs_f64() / took.as_secs_f64() * 100.0);
        let mut largest = 0.0_f64;
        notes.clear();
        for pid in &pids {
            let all = process::resident_mib(*pid)?;
            notes.push(format!(
                "resident {all:.1} MiB, of which {:.1} MiB are not of the program's file",
                process::anonymous_mib(*pid)?
            ));
            largest = largest.max(all);
        }
        resident.push(largest);
    }
    Ok(vec![
        Row::alone(
            "agent's resident memory, 3 nodes, etcd",
            Unit::Mebibytes,
            resident,
        )
        .limited(Limit::AtMost(20.0))
        .noted(notes),
        Row::alone(
            "agent's CPU time, nothing changes",
            Unit::PercentOfACore,
            idle,
        )
        .limited(Limit::AtMost(0.05)),
    ])
}
