//! 20,000 pods come and go on one node: whether anything of the agent grows by it, and whether
//! ADD takes longer while the store is down.
//!
//! Namespaces are made once: what is measured is the agent's part, and a container's own
//! namespace costs the kernel more than all of that. Growth is the slope of a straight line
//! through what was counted after each batch, the first quarter left out (the heap and the
//! kernel's tables find their size there), over 1,000 cycles.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use viaduct_lab::{
    Datastore, Lab, LabOptions, Node, Signal, command, eventually, in_parallel, netns,
    node::READY_TIMEOUT,
};

use super::Setting;
use super::cni::{sandbox, viaduct};
use crate::plugin::{Plugin, Sandbox};
use crate::process;
use crate::row::{Limit, Row, Unit};
use crate::stats::percentile;

/// ADDs with their DELs.
const CYCLES: usize = 20_000;
/// Pods that come and go together.
const BATCH: usize = 200;
/// Calls of the plugin at once.
const WIDTH: usize = 32;
/// ADDs that are timed for each p99, one by one.
const TIMED: usize = 400;

/// What the agent has after a batch, with no pod there.
#[derive(Debug, Clone, Copy)]
struct Counted {
    cycles: f64,
    resident_kib: f64,
    descriptors: f64,
    devices: f64,
    files: f64,
}

pub(super) fn run(setting: Setting) -> Result<Vec<Row>> {
    let options = LabOptions {
        nodes: 0,
        pods: 0,
        datastore: Datastore::Etcd,
        // Enough addresses that none has to be waited for.
        controller_args: ["--block-size", "20"].map(str::to_owned).into(),
        ..LabOptions::default()
    };
    let lab = Lab::up(options, setting.control)?;
    let node = lab.add_node()?;
    lab.await_ready(READY_TIMEOUT)?;
    let sandboxes = (0..BATCH).map(sandbox).collect::<Result<Vec<_>>>()?;
    let plugin = viaduct(&node);
    let start = Instant::now();
    let mut counted = vec![count(&node, 0)?];
    for batch in 1..=CYCLES / BATCH {
        cycle(&plugin, &node, &sandboxes)?;
        counted.push(count(&node, batch * BATCH)?);
    }
    let took = start.elapsed().as_secs_f64();
    let mut rows = slopes(&counted, took)?;
    rows.push(outage(&lab, &node, &plugin, &sandboxes, setting.rounds)?);
    Ok(rows)
}

/// All come, all go.
fn cycle(plugin: &Plugin, node: &Node, sandboxes: &[Sandbox]) -> Result<()> {
    let made: Vec<Result<Value>> = in_parallel(WIDTH, sandboxes, |sandbox| {
        netns::within(node.netns(), || Ok(plugin.add(sandbox)?.result))
    });
    let made = made.into_iter().collect::<Result<Vec<_>>>()?;
    let wired: Vec<(&Sandbox, Value)> = sandboxes.iter().zip(made).collect();
    in_parallel(WIDTH, &wired, |(sandbox, result)| {
        netns::within(node.netns(), || plugin.del(sandbox, result).map(drop))
    })
    .into_iter()
    .collect()
}

fn count(node: &Node, cycles: usize) -> Result<Counted> {
    // Devices are deleted behind the answer.
    let devices = eventually(READY_TIMEOUT, || {
        let listed = node.ip("-o link show")?;
        let ours = listed.lines().filter(|line| line.contains(": via")).count();
        let pods = listed
            .lines()
            .filter(|line| line.contains(": via") && !line.contains(": via."))
            .count();
        ensure!(pods == 0, "{pods} devices of pods that are gone");
        Ok(ours)
    })?;
    let pid = node.agent_pid().context("no agent")?;
    let entries = |path: &std::path::Path| -> Result<usize> {
        Ok(command::run("find", [path.as_os_str()])?.lines().count())
    };
    Ok(Counted {
        cycles: cycles as f64,
        resident_kib: process::resident_mib(pid)? * 1024.0,
        descriptors: std::fs::read_dir(format!("/proc/{pid}/fd"))?.count() as f64,
        devices: devices as f64,
        files: entries(node.run_dir())? as f64,
    })
}

/// The slope of the least squares' line, for 1,000 cycles.
fn slope(counted: &[Counted], number: impl Fn(&Counted) -> f64) -> f64 {
    let n = counted.len() as f64;
    let x = counted.iter().map(|c| c.cycles).sum::<f64>() / n;
    let y = counted.iter().map(&number).sum::<f64>() / n;
    let along = |c: &Counted| (c.cycles - x) * (number(c) - y);
    let across = |c: &Counted| (c.cycles - x).powi(2);
    let squares: f64 = counted.iter().map(across).sum();
    if squares == 0.0 {
        return 0.0;
    }
    1000.0 * counted.iter().map(along).sum::<f64>() / squares
}

fn slopes(counted: &[Counted], took: f64) -> Result<Vec<Row>> {
    let steady = counted
        .get(counted.len() / 4..)
        .context("nothing was counted")?;
    let (Some(first), Some(last)) = (counted.first(), counted.last()) else {
        anyhow::bail!("nothing was counted");
    };
    let row = |what: &str, unit, limit, number: fn(&Counted) -> f64| {
        let note = format!(
            "{} before, {} after {} cycles; {:.0} cycles a second",
            number(first),
            number(last),
            last.cycles,
            last.cycles / took
        );
        Row::alone(
            &format!("{what}, growth over 1,000 ADD and DEL"),
            unit,
            vec![slope(steady, number)],
        )
        .limited(Limit::AtMost(limit))
        .noted(vec![note])
    };
    let each = Unit::Each;
    Ok(vec![
        // The allocator hands back what it likes: a page for every two cycles would be a leak.
        row("agent's memory", Unit::Kibibytes, 40.0, |c| c.resident_kib),
        row("agent's descriptors", each, 0.01, |c| c.descriptors),
        row("node's devices", each, 0.01, |c| c.devices),
        row("run directory's files", each, 0.01, |c| c.files),
    ])
}

/// ADD with the store down, beside ADD with the store up, in turn.
fn outage(
    lab: &Lab,
    node: &Node,
    plugin: &Plugin,
    sandboxes: &[Sandbox],
    rounds: usize,
) -> Result<Row> {
    let etcd = lab.store().daemon().context("no etcd")?;
    let (mut down, mut up) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        up.push(p99(plugin, node, sandboxes)?);
        // Stopped, it neither answers nor refuses: the worst kind of outage.
        etcd.signal(Signal::SIGSTOP)?;
        let measured = p99(plugin, node, sandboxes);
        etcd.signal(Signal::SIGCONT)?;
        down.push(measured?);
        lab.await_ready(READY_TIMEOUT)?;
    }
    // Equal, as far as two p99 of one machine ever are.
    Ok(
        Row::alone("CNI ADD, p99, store down", Unit::Milliseconds, down)
            .beside("store up", up)
            .limited(Limit::RatioAtMost(1.25)),
    )
}

fn p99(plugin: &Plugin, node: &Node, sandboxes: &[Sandbox]) -> Result<f64> {
    let mut took = Vec::with_capacity(TIMED);
    while took.len() < TIMED {
        let made = netns::within(node.netns(), || {
            let mut made = Vec::new();
            for sandbox in sandboxes {
                let called = plugin.add(sandbox)?;
                took.push(called.took.as_secs_f64() * 1e3);
                made.push(called.result);
            }
            Ok(made)
        })?;
        let wired: Vec<(&Sandbox, Value)> = sandboxes.iter().zip(made).collect();
        in_parallel(WIDTH, &wired, |(sandbox, result)| {
            netns::within(node.netns(), || plugin.del(sandbox, result).map(drop))
        })
        .into_iter()
        .collect::<Result<Vec<()>>>()?;
    }
    Ok(percentile(&took, 0.99))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leak_has_a_slope_and_noise_has_none() {
        let counted = |number: fn(usize) -> f64| -> Vec<Counted> {
            let one = |i: usize| Counted {
                cycles: (i * 200) as f64,
                resident_kib: number(i),
                descriptors: 0.0,
                devices: 0.0,
                files: 0.0,
            };
            (0..100).map(one).collect()
        };
        let leak = slope(&counted(|i| 500.0 + 2.0 * i as f64), |c| c.resident_kib);
        assert!((leak - 10.0).abs() < 1e-6, "{leak}");
        let noise = slope(&counted(|i| (i % 2) as f64), |c| c.resident_kib);
        assert!(noise.abs() < 0.01, "{noise}");
        assert_eq!(slope(&counted(|_| 7.0)[..1], |c| c.resident_kib), 0.0);
    }
}
