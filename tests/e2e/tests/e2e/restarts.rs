//! Agent, controller and etcd are killed at any time: packets flow meanwhile, and
//! afterwards everything works and nothing is left over.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use viaduct_e2e::{Monitor, Pinging, Raw, entries, eventually, everybody_pings, leaks, ours};
use viaduct_lab::node::READY_TIMEOUT;
use viaduct_lab::{Datastore, Lab, LabOptions, Node, Signal, in_lab, netns};
use viaduct_model::Kind;

fn on(datastore: Datastore) -> LabOptions {
    LabOptions {
        datastore,
        ..LabOptions::default()
    }
}

/// Between the two pods of the lab, both ways.
fn stream(lab: &Lab) -> Result<[Pinging; 2]> {
    let pods = lab.pods();
    let [a, b] = &pods[..] else {
        anyhow::bail!("{} pods", pods.len());
    };
    Ok([Pinging::start(a, b)?, Pinging::start(b, a)?])
}

#[test]
fn no_packet_is_lost_and_nothing_is_touched_when_an_agent_is_killed_and_started_again() {
    in_lab(on(Datastore::Sqlite), |lab| {
        let node = lab.node("n1")?;
        let before = ours(&node)?;
        let streams = stream(lab)?;
        let monitor = Monitor::start(&node)?;
        for _ in 0..3 {
            node.restart_agent()?;
        }
        let told = monitor.stop()?;
        ensure!(told.is_empty(), "a restart changed the kernel: {told:#?}");
        let after = ours(&node)?;
        ensure!(before == after, "{before:#?} became {after:#?}");
        for stream in streams {
            stream.lost_nothing(100)?;
        }
        leaks(&node)
    });
}

#[test]
fn the_monitor_of_these_tests_does_see_what_changes() {
    in_lab(on(Datastore::Sqlite), |lab| {
        let node = lab.node("n1")?;
        let monitor = Monitor::start(&node)?;
        node.ip("route del blackhole 10.64.0.0/26")
            .or_else(|_| node.ip("route del blackhole 10.64.0.64/26"))?;
        node.run("nft", &["flush", "table", "inet", "viaduct"])?;
        let told = monitor.stop()?;
        for what in ["blackhole", "inet viaduct"] {
            let is = told.iter().any(|line| line.contains(what));
            ensure!(is, "a change of {what} was not told: {told:#?}");
        }
        Ok(())
    });
}

#[test]
fn no_packet_is_lost_while_etcd_and_controller_are_killed_and_come_back() {
    in_lab(on(Datastore::Etcd), |lab| {
        let streams = stream(lab)?;
        let node = lab.node("n1")?;
        lab.controller().kill(Signal::SIGKILL)?;
        lab.store().kill()?;
        // Without store and controller pods come and go from the node's own block.
        let pod = node.add_pod("meanwhile")?;
        everybody_pings(&lab.pods())?;
        eventually(|| {
            let ready = node.readyz()?;
            ensure!(
                ready.status == 200,
                "packets flow, so it is ready: {ready:?}"
            );
            ensure!(
                ready.body.contains("warning: the datastore is not reached"),
                "a lost store is not shown: {ready:?}"
            );
            ensure!(node.metric("viaduct_store_connected ")? < 0.5, "the metric");
            Ok(())
        })?;
        node.del_pod(&pod)?;
        lab.store().restart()?;
        lab.start_controller()?;
        let third = lab.add_node()?;
        third.add_pod("p1")?;
        eventually(|| everybody_pings(&lab.pods()))?;
        eventually(|| {
            let ready = node.readyz()?;
            ensure!(ready.body.trim() == "ok", "still {ready:?}");
            Ok(())
        })?;
        for stream in streams {
            stream.lost_nothing(100)?;
        }
        lab.nodes().iter().try_for_each(|node| leaks(node))
    });
}

#[test]
fn an_agent_that_restarts_without_its_store_changes_nothing_and_serves_its_pods() {
    in_lab(on(Datastore::Etcd), |lab| {
        let node = lab.node("n1")?;
        let before = ours(&node)?;
        let streams = stream(lab)?;
        lab.store().kill()?;
        node.kill_agent(Signal::SIGKILL)?;
        node.start_agent()?;
        eventually(|| {
            let ready = node.readyz()?;
            ensure!(
                ready.status == 503 && ready.body.contains("the datastore is not reached"),
                "{ready:?}"
            );
            Ok(())
        })?;
        let after = ours(&node)?;
        ensure!(before == after, "{before:#?} became {after:#?}");
        // DEL works, as it needs nothing but the ledger.
        let pod = lab.pods().into_iter().find(|pod| pod.node == "n2");
        let pod = pod.context("no pod on n2")?;
        for stream in streams {
            stream.lost_nothing(50)?;
        }
        lab.node("n2")?.del_pod(&pod)?;
        let own = node.pods().first().cloned().context("no pod on n1")?;
        node.del_pod(&own)?;
        lab.store().restart()?;
        node.await_ready(READY_TIMEOUT)?;
        eventually(|| leaks(&node))
    });
}

#[test]
fn the_kernels_state_is_not_swept_before_the_store_has_told_everything() {
    in_lab(on(Datastore::Etcd), |lab| {
        let (node, backend) = (lab.node("n1")?, lab.options().backend);
        let before = ours(&node)?;
        node.kill_agent(Signal::SIGKILL)?;
        // The peer vanishes for good while n1 does not look.
        let gone = lab.node("n2")?;
        gone.agent().stop()?;
        let raw = Raw::open(lab)?;
        raw.delete(Kind::Node, "n2")?;
        for block in raw.blocks_by_node()?.remove("n2").unwrap_or_default() {
            raw.delete(Kind::Block, &block.replace('/', "-"))?;
        }
        drop(raw);
        lab.controller().stop()?;
        lab.store().kill()?;
        node.start_agent()?;
        eventually(|| {
            let ready = node.readyz()?;
            ensure!(
                ready.body.contains("the datastore is not reached"),
                "{ready:?}"
            );
            Ok(())
        })?;
        // Something of ours is damaged, which must not make it sweep either.
        node.ip("route flush type blackhole proto 87")?;
        std::thread::sleep(std::time::Duration::from_millis(300));
        let on_tunnel = backend.tunnel().map(|tunnel| format!("dev {tunnel}"));
        let peers = |lines: &[String]| -> Vec<String> {
            let of_peer = |line: &&String| {
                let on_tunnel = on_tunnel.as_deref().is_some_and(|on| line.contains(on));
                on_tunnel || line.contains("172.29.0.12")
            };
            lines.iter().filter(of_peer).cloned().collect()
        };
        ensure!(
            peers(&before).len() == entries(backend),
            "all of the peer's: {before:#?}"
        );
        let now = ours(&node)?;
        ensure!(peers(&before) == peers(&now), "{before:#?} became {now:#?}");
        lab.store().restart()?;
        node.await_ready(READY_TIMEOUT)?;
        eventually(|| {
            let left = peers(&ours(&node)?);
            ensure!(left.is_empty(), "still there: {left:#?}");
            Ok(())
        })
    });
}

/// Adds and removes pods without pause until told to stop, however often the
/// agent is away, as a container runtime would.
fn churn(node: &Node, name: &str, stop: &AtomicBool, rounds: &AtomicUsize) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        let container = format!("{}-{name}", node.name());
        let path = netns::add(&container)?;
        eventually(|| node.cni("ADD", &container, &path)?.check("ADD"))?;
        eventually(|| node.cni("DEL", &container, &path)?.check("DEL"))?;
        netns::remove(&container)?;
        rounds.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

#[test]
fn agents_controller_and_etcd_killed_in_the_midst_of_adds_leave_nothing_behind() {
    in_lab(on(Datastore::Etcd), |lab| {
        let node = lab.node("n1")?;
        let (stop, rounds) = (AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|scope| -> Result<()> {
            let workers: Vec<_> = ["a", "b", "c", "d"]
                .map(|name| scope.spawn(|| churn(&node, name, &stop, &rounds)))
                .into();
            let killing = kill_all_in_turn(lab, &node, &rounds);
            stop.store(true, Ordering::Relaxed);
            for worker in workers {
                worker.join().map_err(|_| anyhow::anyhow!("a panic"))??;
            }
            killing
        })?;
        lab.await_ready(READY_TIMEOUT)?;
        eventually(|| leaks(&node))?;
        everybody_pings(&lab.pods())?;
        let damaged = node.metric("viaduct_cni_damaged_records ")?;
        ensure!(damaged < 0.5, "{damaged} damaged records");
        Ok(())
    });
}

fn kill_all_in_turn(lab: &Lab, node: &Node, rounds: &AtomicUsize) -> Result<()> {
    for turn in 0..6 {
        // So that each kill meets work in progress, at another moment each time.
        let until = rounds.load(Ordering::Relaxed) + 5 + turn;
        eventually(|| {
            ensure!(rounds.load(Ordering::Relaxed) >= until, "no progress");
            Ok(())
        })?;
        node.kill_agent(Signal::SIGKILL)?;
        match turn % 3 {
            1 => {
                lab.store().kill()?;
                lab.store().restart()?;
            }
            2 => {
                lab.controller().kill(Signal::SIGKILL)?;
                lab.start_controller()?;
            }
            _ => {}
        }
        node.start_agent()?;
    }
    Ok(())
}
