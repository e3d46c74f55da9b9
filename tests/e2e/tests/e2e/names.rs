//! One name, one agent.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use viaduct_e2e::{eventually, everybody_pings, ours};
use viaduct_lab::environment::scaled;
use viaduct_lab::node::READY_TIMEOUT;
use viaduct_lab::{Datastore, Lab, LabOptions, Signal, in_lab};

fn on(datastore: Datastore) -> LabOptions {
    LabOptions {
        datastore,
        ..LabOptions::default()
    }
}

/// Starts an agent on a node of its own under the name of a node that runs.
fn second_agent_is_refused(lab: &Lab) -> Result<()> {
    let first = lab.node("n1")?;
    let incarnation = std::fs::read_to_string(first.run_dir().join("incarnation"))?;
    let second = lab.new_node()?;
    let args = second.agent().args();
    let args = args
        .into_iter()
        .map(|arg| if arg == "n3" { "n1".to_owned() } else { arg });
    second.agent().set_args(args.collect());
    second.start_agent()?;
    let status = eventually(|| second.agent().ended().context("it still runs"))?;
    ensure!(status.code() == Some(1), "{status}");
    let log = second.agent().log();
    for part in ["\"n1\"", incarnation.trim(), "host", "--node-name"] {
        ensure!(
            log.contains(part),
            "the refusal does not name {part}: {log}"
        );
    }
    // It has taken nothing and harmed nobody.
    let lines = ours(&second)?;
    ensure!(
        !lines.iter().any(|line| line.contains("172.29.0.1")),
        "{lines:#?}"
    );
    ensure!(first.readyz()?.body.trim() == "ok");
    everybody_pings(&lab.pods())
}

#[test]
fn the_second_agent_of_a_name_is_refused_on_sqlite_naming_the_first() {
    in_lab(on(Datastore::Sqlite), |lab| {
        second_agent_is_refused(lab)?;
        Ok(())
    });
}

#[test]
fn the_second_agent_of_a_name_is_refused_on_etcd_naming_the_first() {
    in_lab(on(Datastore::Etcd), |lab| {
        second_agent_is_refused(lab)?;
        Ok(())
    });
}

#[test]
fn a_second_agent_in_one_run_directory_is_refused() {
    in_lab(on(Datastore::Sqlite), |lab| {
        let first = lab.node("n1")?;
        let second = lab.new_node()?;
        let run_dir = first.run_dir().display().to_string();
        let args = second.agent().args();
        let args = args.into_iter().map(|arg| {
            if arg.starts_with("/run/viaduct-") {
                run_dir.clone()
            } else {
                arg
            }
        });
        second.agent().set_args(args.collect());
        second.start_agent()?;
        let status = eventually(|| second.agent().ended().context("it still runs"))?;
        ensure!(status.code() == Some(1), "{status}");
        let log = second.agent().log();
        ensure!(log.contains(&run_dir) && log.contains("another"), "{log}");
        everybody_pings(&lab.pods())
    });
}

fn killed_agent_is_back_at_once(lab: &Lab) -> Result<()> {
    let node = lab.node("n1")?;
    node.kill_agent(Signal::SIGKILL)?;
    let start = Instant::now();
    node.start_agent()?;
    node.await_ready(READY_TIMEOUT)?;
    // Well before the dead one's lease of ten seconds is over.
    let took = start.elapsed();
    ensure!(took < scaled(Duration::from_secs(6)), "{took:?}");
    Ok(())
}

#[test]
fn an_agent_that_was_killed_takes_its_name_back_at_once_on_sqlite() {
    in_lab(on(Datastore::Sqlite), |lab| {
        killed_agent_is_back_at_once(lab)
    });
}

#[test]
fn an_agent_that_was_killed_takes_its_name_back_at_once_on_etcd() {
    in_lab(on(Datastore::Etcd), |lab| {
        killed_agent_is_back_at_once(lab)?;
        Ok(())
    });
}

#[test]
fn a_machine_that_died_frees_its_name_for_another() {
    in_lab(on(Datastore::Sqlite), |lab| {
        let dead = lab.node("n2")?;
        dead.kill_agent(Signal::SIGKILL)?;
        dead.ip("link set eth0 down")?;
        let heir = lab.new_node()?;
        let args = heir.agent().args();
        let args = args
            .into_iter()
            .map(|arg| if arg == "n3" { "n2".to_owned() } else { arg });
        heir.agent().set_args(args.collect());
        // Refused until the lease is over, and then let in: what a supervisor does.
        eventually(|| {
            heir.start_agent()?;
            heir.await_ready(READY_TIMEOUT)
        })?;
        let pod = heir.add_pod("p1")?;
        let other = lab.node("n1")?.pods().first().cloned().context("no pod")?;
        eventually(|| everybody_pings(&[pod.clone(), other.clone()]))
    });
}
