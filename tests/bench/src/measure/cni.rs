//! CNI ADD and DEL of many pods, beside `ptp` with `host-local`.
//!
//! Both wire the very same pod namespaces to the very same node namespace, in
//! turn. Viaduct's agent is stopped while the reference is measured, so that its
//! netlink monitor takes nothing from it.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use viaduct_lab::{
    Lab, LabOptions, Node, binaries, command, eventually, in_parallel, netns, node::READY_TIMEOUT,
};

use super::Setting;
use crate::plugin::{Plugin, Sandbox};
use crate::reference::ptp;
use crate::row::{Limit, Row, Unit};
use crate::stats::percentile;

const PODS: usize = 200;
const WIDTH: usize = 32;
/// Wired and unwired before anything is timed: first calls load programs.
const WARM_UP: usize = 3;

/// What one round of one plugin came to.
#[derive(Debug, Default)]
struct Round {
    add: Vec<f64>,
    del: Vec<f64>,
    /// From the first DEL until no link of any of them is left, for each pod.
    gone: f64,
    parallel_add: f64,
    parallel_del: f64,
}

pub(super) fn run(setting: Setting) -> Result<Vec<Row>> {
    let options = LabOptions {
        nodes: 0,
        pods: 0,
        // Enough addresses that none has to be waited for.
        controller_args: ["--block-size", "20"].map(str::to_owned).into(),
        ..LabOptions::default()
    };
    let lab = Lab::up(options, setting.control)?;
    let node = lab.new_node()?;
    let sandboxes = (0..PODS).map(sandbox).collect::<Result<Vec<_>>>()?;
    let viaduct = viaduct(&node);
    let reference = ptp::plugin(Path::new("/run/lab/host-local"))?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..setting.rounds {
        let our_turn = |rounds: &mut Vec<Round>| -> Result<()> {
            node.start_agent()?;
            node.await_ready(READY_TIMEOUT)?;
            rounds.push(measure(&viaduct, &node, &sandboxes)?);
            node.agent().stop()
        };
        // Who begins alternates, too.
        if round % 2 == 0 {
            our_turn(&mut ours)?;
        }
        theirs.push(measure(&reference, &node, &sandboxes)?);
        if round % 2 == 1 {
            our_turn(&mut ours)?;
        }
    }
    Ok(rows(&ours, &theirs))
}

pub(super) fn sandbox(number: usize) -> Result<Sandbox> {
    let id = format!("pod{number}");
    let netns = netns::add(&id)?;
    Ok(Sandbox { id, netns })
}

pub(super) fn viaduct(node: &Node) -> Plugin {
    Plugin {
        name: "viaduct",
        program: binaries::program("viaduct"),
        path: binaries::DIR.into(),
        config: json!({
            "cniVersion": "1.0.0",
            "name": "viaduct",
            "type": "viaduct",
            "socket": node.run_dir().join("cni.sock"),
        }),
    }
}

fn measure(plugin: &Plugin, node: &Node, sandboxes: &[Sandbox]) -> Result<Round> {
    let mut round = netns::within(node.netns(), || {
        one_by_one(plugin, &sandboxes[..WARM_UP.min(sandboxes.len())])?;
        one_by_one(plugin, sandboxes)
    })?;
    let (took, results) = at_once(node, sandboxes, |sandbox| Ok(plugin.add(sandbox)?.result))?;
    round.parallel_add = sandboxes.len() as f64 / took.as_secs_f64();
    let wired: Vec<(&Sandbox, Value)> = sandboxes.iter().zip(results).collect();
    let (took, _) = at_once(node, &wired, |(sandbox, result)| {
        plugin.del(sandbox, result).map(drop)
    })?;
    round.parallel_del = sandboxes.len() as f64 / took.as_secs_f64();
    Ok(round)
}

/// All pods are there before the first goes, as on a node in use.
fn one_by_one(plugin: &Plugin, sandboxes: &[Sandbox]) -> Result<Round> {
    let mut round = Round::default();
    let mut results = Vec::new();
    let before = links()?;
    for sandbox in sandboxes {
        let called = plugin.add(sandbox)?;
        round.add.push(milliseconds(called.took));
        results.push(called.result);
    }
    let start = Instant::now();
    for (sandbox, result) in sandboxes.iter().zip(&results) {
        round
            .del
            .push(milliseconds(plugin.del(sandbox, result)?.took));
    }
    // A plugin may answer before the kernel is through.
    eventually(READY_TIMEOUT, || {
        ensure!(
            links()? <= before,
            "there are links left of pods that are gone"
        );
        Ok(())
    })?;
    round.gone = milliseconds(start.elapsed()) / sandboxes.len() as f64;
    Ok(round)
}

/// How many links the namespace of this thread has.
fn links() -> Result<usize> {
    Ok(command::run("ip", ["-o", "link", "show"])?.lines().count())
}

fn at_once<I: Sync, T: Send>(
    node: &Node,
    items: &[I],
    work: impl Fn(&I) -> Result<T> + Sync,
) -> Result<(Duration, Vec<T>)> {
    let start = Instant::now();
    let results = in_parallel(WIDTH, items, |item| {
        netns::within(node.netns(), || work(item))
    });
    let took = start.elapsed();
    Ok((took, results.into_iter().collect::<Result<_>>()?))
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn rows(ours: &[Round], theirs: &[Round]) -> Vec<Row> {
    let row = |measure: &str, unit, number: &dyn Fn(&Round) -> f64| {
        Row::alone(measure, unit, ours.iter().map(number).collect())
            .beside("ptp + host-local", theirs.iter().map(number).collect())
    };
    let ms = Unit::Milliseconds;
    vec![
        row("CNI ADD, p50", ms, &|r| percentile(&r.add, 0.5)).limited(Limit::RatioAtMost(0.35)),
        row("CNI ADD, p99", ms, &|r| percentile(&r.add, 0.99)).limited(Limit::RatioAtMost(0.5)),
        row("CNI DEL, p50", ms, &|r| percentile(&r.del, 0.5)).limited(Limit::RatioAtMost(0.35)),
        row("CNI DEL, p99", ms, &|r| percentile(&r.del, 0.99)),
        row("CNI DEL, until the links are gone", ms, &|r| r.gone),
        row("CNI ADD, 32 at once", Unit::PodsPerSecond, &|r| {
            r.parallel_add
        }),
        row("CNI DEL, 32 at once", Unit::PodsPerSecond, &|r| {
            r.parallel_del
        }),
    ]
}
