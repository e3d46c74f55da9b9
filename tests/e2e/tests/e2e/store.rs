//! A store that is away at the start, and records that nobody can read.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use viaduct_e2e::{Raw, eventually, everybody_pings, leaks, viaductctl};
use viaduct_lab::node::READY_TIMEOUT;
use viaduct_lab::{Datastore, Lab, LabOptions, Signal, in_lab, netns};
use viaduct_model::Kind;

#[test]
fn programs_that_start_without_a_store_say_so_and_work_as_soon_as_it_is_there() {
    let options = LabOptions {
        nodes: 0,
        pods: 0,
        datastore: Datastore::Etcd,
        ..LabOptions::default()
    };
    in_lab(options, |lab| {
        lab.controller().kill(Signal::SIGKILL)?;
        lab.store().kill()?;
        lab.start_controller()?;
        let nodes = [lab.new_node()?, lab.new_node()?];
        let netns = netns::add("early")?;
        for node in &nodes {
            node.start_agent()?;
            eventually(|| {
                let ready = node.readyz()?;
                ensure!(ready.status == 503, "{ready:?}");
                ensure!(ready.body.contains("datastore is not reached"), "{ready:?}");
                Ok(())
            })?;
            eventually(|| {
                let log = node.agent().log();
                ensure!(
                    log.contains("datastore does not answer"),
                    "it does not say so: {log}"
                );
                Ok(())
            })?;
            let add = node.cni("ADD", "early", &netns)?;
            ensure!(add.error_code() == Some(11), "{add:?}");
            node.cni("DEL", "early", &netns)?.check("DEL")?;
        }
        let ready = lab.controller_http("/readyz")?;
        ensure!(
            ready.status == 503 && ready.body.contains("datastore"),
            "{ready:?}"
        );
        let status = viaductctl(lab, &["status"])?;
        ensure!(
            status.code == Some(1) && status.stderr.contains("172.29.0.1:2379"),
            "{status:?}"
        );
        lab.store().restart()?;
        lab.await_ready(READY_TIMEOUT)?;
        lab.add_pods(1)?;
        eventually(|| everybody_pings(&lab.pods()))?;
        nodes.iter().try_for_each(|node| leaks(node))
    });
}

/// Records that no program can make sense of, with a part of each that is told.
const UNREADABLE: [(Kind, &str, &str); 7] = [
    (Kind::Node, "broken", "{"),
    (
        Kind::Node,
        "wrong-types",
        r#"{"incarnation":5,"underlay":"here"}"#,
    ),
    (Kind::Node, "latin", "\u{fffd} not JSON"),
    (Kind::Block, "10.64.9.0-26", "[]"),
    (
        Kind::Block,
        "10.64.10.0-26",
        r#"{"cidr":"10.64.11.0/26","pool":"default","node":"n1","generation":1,"state":"active"}"#,
    ),
    (
        Kind::Pool,
        "odd",
        r#"{"cidr":"10.99.0.0/16","blockSize":"many"}"#,
    ),
    (Kind::Claim, "weird", "nonsense"),
];

fn unreadable_records_harm_nobody_else(lab: &Lab) -> Result<()> {
    let raw = Raw::open(lab)?;
    for (kind, name, text) in UNREADABLE {
        raw.put(kind, name, text)?;
    }
    let node = lab.node("n1")?;
    eventually(|| {
        let ready = node.readyz()?;
        ensure!(
            ready.status == 200,
            "a bad record made the agent unready: {ready:?}"
        );
        let log = node.agent().log();
        // Agents do not read claims.
        for (kind, name, _) in UNREADABLE.iter().filter(|(kind, ..)| *kind != Kind::Claim) {
            let part = format!("{kind} {name:?}");
            let warned = |line: &str| line.starts_with("warning: ") && line.contains(&part);
            ensure!(
                ready.body.lines().any(warned),
                "{part} is not in {}",
                ready.body
            );
            ensure!(log.contains(name), "{part} is not logged: {log}");
        }
        let unreadable = node.metric("viaduct_unreadable_records ")?;
        ensure!(
            (unreadable - 6.0).abs() < 0.1,
            "{unreadable} unreadable records"
        );
        Ok(())
    })?;
    let status = viaductctl(lab, &["status"])?.worked()?;
    for (kind, name, _) in UNREADABLE {
        let part = format!("{kind} {name:?}");
        ensure!(status.contains(&part), "{part} is not in {status}");
    }
    eventually(|| {
        let ready = lab.controller_http("/readyz")?;
        ensure!(ready.status == 200, "{ready:?}");
        for (kind, name, _) in UNREADABLE.iter().filter(|(kind, ..)| *kind != Kind::Node) {
            ensure!(
                ready.body.contains(name),
                "{kind} {name} is not in {ready:?}"
            );
        }
        Ok(())
    })?;
    // All others work, and new ones too.
    let late = lab.add_node()?;
    late.add_pod("p1")?;
    eventually(|| everybody_pings(&lab.pods()))?;
    node.restart_agent()?;
    everybody_pings(&lab.pods())?;
    for (kind, name, text) in UNREADABLE {
        let now = raw.get(kind, name)?;
        ensure!(now == text, "{kind} {name} was changed to {now}");
    }
    for (kind, name, _) in UNREADABLE {
        raw.delete(kind, name)?;
    }
    eventually(|| {
        let ready = node.readyz()?;
        ensure!(ready.body.trim() == "ok", "{ready:?}");
        Ok(())
    })
}

#[test]
fn records_that_cannot_be_read_are_told_on_sqlite_and_all_others_work() {
    in_lab(LabOptions::default(), |lab| {
        unreadable_records_harm_nobody_else(lab)?;
        Ok(())
    });
}

#[test]
fn records_that_cannot_be_read_are_told_on_etcd_and_all_others_work() {
    let options = LabOptions {
        datastore: Datastore::Etcd,
        ..LabOptions::default()
    };
    in_lab(options, |lab| {
        unreadable_records_harm_nobody_else(lab)?;
        Ok(())
    });
}

/// Adds a field of a release to come.
fn with_colour(raw: &Raw, kind: Kind, name: &str, change: impl Fn(&mut Value)) -> Result<()> {
    let mut record = raw.json(kind, name)?;
    record["colour"] = json!({"of": ["money"]});
    change(&mut record);
    raw.put(kind, name, &record.to_string())
}

#[test]
fn fields_that_nobody_knows_survive_what_we_write() {
    in_lab(LabOptions::default(), |lab| {
        let raw = Raw::open(lab)?;
        let colour = json!({"of": ["money"]});
        // The MTU is wrong, so the agent has to write its record again.
        with_colour(&raw, Kind::Node, "n1", |node| node["mtu"] = json!(999))?;
        eventually(|| {
            let node = raw.json(Kind::Node, "n1")?;
            ensure!(node["mtu"] == 1450 && node["colour"] == colour, "{node}");
            Ok(())
        })?;
        with_colour(&raw, Kind::Pool, "default", |_| ())?;
        viaductctl(lab, &["pools", "disable", "default"])?.worked()?;
        let pool = raw.json(Kind::Pool, "default")?;
        ensure!(
            pool["disabled"] == true && pool["colour"] == colour,
            "{pool}"
        );
        // An agent that restarts reads and writes it all the same.
        lab.node("n1")?.restart_agent()?;
        ensure!(raw.json(Kind::Node, "n1")?["colour"] == colour);
        everybody_pings(&lab.pods())
    });
}

#[test]
fn records_of_ours_that_somebody_deletes_or_damages_are_written_again() {
    in_lab(LabOptions::default(), |lab| {
        let raw = Raw::open(lab)?;
        let (node, blocks) = (raw.json(Kind::Node, "n1")?, raw.blocks_by_node()?);
        let claim = raw.json(Kind::Claim, "n1")?;
        for damage in 0..4 {
            match damage {
                0 => raw.delete(Kind::Node, "n1")?,
                1 => raw.put(Kind::Node, "n1", "{")?,
                2 => raw.delete(Kind::Claim, "n1")?,
                _ => raw.put(Kind::Claim, "n1", "{")?,
            }
            eventually(|| {
                let now = raw.json(Kind::Node, "n1")?;
                ensure!(now == node, "{node} became {now}");
                let now = raw.json(Kind::Claim, "n1")?;
                ensure!(now["incarnation"] == claim["incarnation"], "{now}");
                Ok(())
            })?;
            ensure!(raw.blocks_by_node()? == blocks, "an accident cost a block");
        }
        lab.await_ready(READY_TIMEOUT)?;
        eventually(|| everybody_pings(&lab.pods()))
    });
}
