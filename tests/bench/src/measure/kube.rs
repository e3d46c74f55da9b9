//! A large cluster in a real API server: how long a new node takes into the others'
//! kernels, what agents ask while nothing happens, and what 5,000 nodes take in memory,
//! most of which join within a minute.
//!
//! Two agents and the controller are real, the other nodes are records; there are no
//! kubelets, and everybody is admin.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use viaduct_datastore::{Records, open};
use viaduct_lab::node::READY_TIMEOUT;
use viaduct_lab::{Datastore, Lab, LabOptions, Node, eventually};

use super::Setting;
use crate::api::{Api, Counters};
use crate::process;
use crate::row::{Limit, Row, Unit};
use crate::simulated::{self, Peer};
use crate::stats::median;

/// The variable that names the directory of Kubernetes' programs.
pub(crate) const PROGRAMS: &str = "VIADUCT_KUBE_BINS";

/// Nodes that are there when new ones are timed.
const KNOWN: u32 = 1_000;
/// Nodes at the end.
const ALL: u32 = 5_000;
/// New nodes that are timed each round.
const TIMED: u32 = 10;
/// The rest joins within this time, if the API server is quick enough.
const JOIN: Duration = Duration::from_secs(60);
const TIMEOUT: Duration = Duration::from_secs(120);
/// What start-up leaves to do is done by then.
const SETTLE: Duration = Duration::from_secs(10);

/// Without a write for so long, nothing is left to tell.
const QUIET: Duration = Duration::from_secs(40);

/// The real nodes.
const REAL: usize = 2;

pub(super) fn run(setting: Setting) -> Result<Vec<Row>> {
    let programs = std::env::var_os(PROGRAMS).with_context(|| format!("{PROGRAMS} is not set"))?;
    let definitions = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../deploy/crds");
    let options = LabOptions {
        nodes: REAL,
        pods: 0,
        datastore: Datastore::Kube {
            programs: programs.into(),
            definitions,
        },
        pool: Some("10.64.0.0/12".to_owned()),
        ..LabOptions::default()
    };
    let lab = Lab::up(options, setting.control)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let kubeconfig = lab.store().kubeconfig().context("no kubeconfig")?;
    std::thread::sleep(Duration::from_secs(2));
    let mut base = Vec::new();
    for node in lab.nodes() {
        base.push(process::prefixes(pid(&node)?)?);
    }
    let cluster = Cluster {
        lab: &lab,
        base,
        api: runtime.block_on(Api::connect(&kubeconfig))?,
        records: Records::new(runtime.block_on(open(&lab.store_options()))?),
        runtime,
    };
    let peers = simulated::peers(ALL, Ipv4Addr::new(10, 72, 0, 0))?;
    let (known, rest) = peers.split_at(KNOWN as usize);
    cluster.join(known, Duration::ZERO)?;
    cluster.await_routes(known.len())?;

    let rounds = u32::try_from(setting.rounds)?;
    let (timed, rest) = rest.split_at((rounds * TIMED) as usize);
    let mut appeared = Vec::new();
    for (round, some) in timed.chunks(TIMED as usize).enumerate() {
        let there = known.len() + round * TIMED as usize;
        appeared.push(cluster.time(some, there)?);
    }

    let before = cluster.counters()?;
    let begun = Instant::now();
    cluster.join(rest, JOIN)?;
    let took = begun.elapsed();
    cluster.await_routes(peers.len())?;
    let caught_up = begun.elapsed();
    let joined = cluster.counters()?.since(before);
    lab.await_ready(READY_TIMEOUT)?;
    std::thread::sleep(SETTLE);
    if setting.verbose {
        eprintln!("{}", lab.log_tails(30));
    }
    let pids = lab
        .nodes()
        .iter()
        .map(|node| pid(node))
        .collect::<Result<Vec<_>>>()?;
    let controller = lab.controller().pid().context("the controller has ended")?;
    let note = format!(
        "{} nodes joined within {:.0} s; all of them were in the kernels after {:.0} s",
        rest.len(),
        took.as_secs_f64(),
        caught_up.as_secs_f64()
    );
    let mut rows = vec![
        Row::alone(
            "a new node's routes in other kernels, 1,000 nodes, kube",
            Unit::Milliseconds,
            appeared,
        )
        .limited(Limit::AtMost(500.0)),
        memory("agent", 48.0, &pids, note.clone())?,
        memory("controller", 96.0, &[controller], note)?,
        Row::alone(
            "watched for each change and watcher, kube",
            Unit::Bytes,
            vec![joined.event_bytes / joined.events.max(1.0)],
        ),
    ];
    rows.extend(cluster.idle(setting.idle * rounds)?);
    Ok(rows)
}

fn pid(node: &Node) -> Result<u32> {
    node.agent_pid().context("an agent has ended")
}

/// The most memory that processes ever had, in MiB.
fn memory(what: &str, limit: f64, pids: &[u32], note: String) -> Result<Row> {
    let mut peak = 0.0_f64;
    let mut notes = vec![note];
    for pid in pids {
        peak = peak.max(process::peak_mib(*pid)?);
        notes.push(format!(
            "at rest {:.1} MiB, of which {:.1} MiB are not of the program's file",
            process::resident_mib(*pid)?,
            process::anonymous_mib(*pid)?
        ));
    }
    Ok(Row::alone(
        &format!("{what}'s largest memory ever, 5,000 nodes, kube"),
        Unit::Mebibytes,
        vec![peak],
    )
    .limited(Limit::AtMost(limit))
    .noted(notes))
}

/// The lab and ways to its API server.
struct Cluster<'a> {
    lab: &'a Lab,
    /// The routes in the real nodes' kernels that were there before all others.
    base: Vec<usize>,
    api: Api,
    records: Records,
    runtime: tokio::runtime::Runtime,
}

impl Cluster<'_> {
    /// Has nodes join, evenly within `time` if that can be.
    fn join(&self, peers: &[Peer], time: Duration) -> Result<()> {
        let begun = Instant::now();
        let groups = peers.chunks(simulated::WIDTH);
        let count = u32::try_from(groups.len())?;
        for (group, some) in (0..).zip(groups) {
            std::thread::sleep((time * group / count).saturating_sub(begun.elapsed()));
            self.runtime.block_on(async {
                let joins = some.iter().map(|peer| self.join_one(peer));
                futures_util::future::try_join_all(joins).await
            })?;
        }
        Ok(())
    }

    /// In the order of life, but that the first NodeNetwork, which has no address yet and
    /// makes no route, is left out.
    async fn join_one(&self, peer: &Peer) -> Result<()> {
        self.prepare_one(peer).await?;
        simulated::write_node(&self.records, peer).await
    }

    async fn prepare_one(&self, peer: &Peer) -> Result<()> {
        self.api.create_node(peer.name.as_str()).await?;
        simulated::write_block(&self.records, peer).await?;
        simulated::write_claim(&self.records, peer).await
    }

    /// Has nodes join one by one; how long from the request to create a NodeNetwork until
    /// its route is in all kernels, in milliseconds.
    fn time(&self, peers: &[Peer], mut there: usize) -> Result<f64> {
        let mut times = Vec::new();
        for peer in peers {
            self.runtime.block_on(self.prepare_one(peer))?;
            // What that led to is over.
            std::thread::sleep(Duration::from_millis(300));
            there += 1;
            let begun = Instant::now();
            self.runtime
                .block_on(simulated::write_node(&self.records, peer))?;
            self.await_routes(there)?;
            times.push(begun.elapsed().as_secs_f64() * 1e3);
        }
        Ok(median(&times))
    }

    /// Waits until all real nodes have routes to so many others that are simulated.
    fn await_routes(&self, simulated: usize) -> Result<()> {
        let begun = Instant::now();
        for (node, base) in self.lab.nodes().iter().zip(&self.base) {
            let pid = pid(node)?;
            while process::prefixes(pid)? < base + simulated {
                node.agent().still_runs()?;
                ensure!(
                    begun.elapsed() < TIMEOUT,
                    "after {TIMEOUT:?}, {} routes of {simulated}; the log ends:\n{}",
                    process::prefixes(pid)?,
                    node.agent().log_tail(10)
                );
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(())
    }

    fn counters(&self) -> Result<Counters> {
        self.runtime.block_on(self.api.counters())
    }

    /// What is asked of the API server while nothing happens.
    fn idle(&self, time: Duration) -> Result<Vec<Row>> {
        // Claims and pools tell their numbers with a delay of up to half a minute.
        eventually(TIMEOUT, || {
            let before = self.counters()?;
            std::thread::sleep(QUIET);
            let writes = self.counters()?.since(before).writes;
            ensure!(writes == 0.0, "{writes} writes within {QUIET:?}");
            Ok(())
        })
        .ok();
        let time = time.max(Duration::from_secs(60));
        let begun = Instant::now();
        let before = self.counters()?;
        std::thread::sleep(time);
        let asked = self.counters()?.since(before);
        let seconds = begun.elapsed().as_secs_f64();
        Ok(vec![
            Row::alone(
                "writes while nothing happens, 5,000 nodes, kube",
                Unit::PerSecond,
                vec![asked.writes / seconds],
            )
            .limited(Limit::AtMost(0.0)),
            Row::alone(
                "requests of an agent while nothing happens, kube",
                Unit::PerMinute,
                vec![asked.reads / seconds * 60.0 / REAL as f64],
            )
            .limited(Limit::AtMost(2.0))
            .noted(vec![format!(
                "watches apart, the controller's included, over {seconds:.0} s"
            )]),
        ])
    }
}
