//! Blocks: one for each node, more when they are needed, and what happens when
//! there are none left.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use viaduct_e2e::{Raw, eventually, everybody_pings, leaks, viaductctl};
use viaduct_lab::node::READY_TIMEOUT;
use viaduct_lab::{Daemon, Datastore, Lab, LabOptions, Node, Signal, http, in_lab};
use viaduct_model::Kind;

/// Two blocks of four addresses: the third node has to wait.
fn tiny_pool() -> LabOptions {
    LabOptions {
        nodes: 2,
        pool: Some("10.64.0.0/29".to_owned()),
        controller_args: vec!["--block-size".to_owned(), "30".to_owned()],
        ..LabOptions::default()
    }
}

/// That a full pool shows wherever somebody may look.
fn full_pool_shows(lab: &Lab, waiting: &Node) -> Result<()> {
    let (raw, name) = (Raw::open(lab)?, waiting.name());
    eventually(|| {
        let pool = raw.json(Kind::Pool, "default")?;
        let status = &pool["status"];
        ensure!(
            status["exhaustedSince"].is_string()
                && status["blocksFree"] == 0
                && status["blocksTotal"] == 2,
            "{pool}"
        );
        let claim = raw.json(Kind::Claim, name)?;
        let condition = claim["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|condition| condition["type"] == "BlocksAvailable")
            .with_context(|| claim.to_string())?;
        ensure!(
            condition["status"] == "False" && condition["reason"] == "PoolExhausted",
            "{condition}"
        );
        let log = lab.controller().log();
        let told =
            |line: &str| line.contains("WARN") && line.contains(name) && line.contains("default");
        ensure!(log.lines().any(told), "not in the controller's log: {log}");
        let metrics = lab.controller_http("/metrics")?.body;
        let sample = metrics.lines().find(|line| {
            line.starts_with("viaduct_controller_pool_waiting_nodes{")
                && line.contains("\"default\"")
        });
        ensure!(
            sample.is_some_and(|line| line.ends_with(" 1")),
            "not in the controller's metrics: {metrics}"
        );
        let ready = waiting.readyz()?;
        ensure!(
            ready.status == 503 && ready.body.contains("waits for a block"),
            "{ready:?}"
        );
        let status = viaductctl(lab, &["status"])?.worked()?;
        ensure!(
            status.contains("PoolExhausted") && status.contains("exhausted since"),
            "{status}"
        );
        Ok(())
    })
}

/// That all of it is gone again.
fn full_pool_is_over(lab: &Lab) -> Result<()> {
    let raw = Raw::open(lab)?;
    eventually(|| {
        let pool = raw.json(Kind::Pool, "default")?;
        ensure!(pool["status"]["exhaustedSince"].is_null(), "{pool}");
        let metrics = lab.controller_http("/metrics")?.body;
        let waiting = metrics
            .lines()
            .filter(|line| line.starts_with("viaduct_controller_pool_waiting_nodes{"))
            .any(|line| !line.ends_with(" 0"));
        ensure!(!waiting, "{metrics}");
        let status = viaductctl(lab, &["status"])?.worked()?;
        ensure!(!status.contains("exhausted"), "{status}");
        Ok(())
    })
}

#[test]
fn a_node_that_finds_the_pool_full_waits_visibly_until_a_pool_is_added() {
    in_lab(tiny_pool(), |lab| {
        let third = lab.new_node()?;
        third.start_agent()?;
        full_pool_shows(lab, &third)?;
        let add = third.cni("ADD", "early", &viaduct_lab::netns::add("early")?)?;
        ensure!(add.error_code() == Some(11), "{add:?}");
        everybody_pings(&lab.pods())?;
        let create = ["pools", "create", "more", "--cidr", "10.65.0.0/24"];
        viaductctl(lab, &create)?.worked()?;
        third.await_ready(READY_TIMEOUT)?;
        let pod = third.add_pod("p1")?;
        ensure!(pod.ip.to_string().starts_with("10.65.0."), "{}", pod.ip);
        eventually(|| everybody_pings(&lab.pods()))?;
        full_pool_is_over(lab)
    });
}

#[test]
fn a_node_that_waits_gets_the_block_that_is_freed() {
    in_lab(tiny_pool(), |lab| {
        let third = lab.new_node()?;
        third.start_agent()?;
        full_pool_shows(lab, &third)?;
        let raw = Raw::open(lab)?;
        lab.node("n2")?.agent().stop()?;
        raw.delete(Kind::Node, "n2")?;
        for block in raw.blocks_by_node()?.remove("n2").unwrap_or_default() {
            raw.delete(Kind::Block, &block.replace('/', "-"))?;
        }
        third.await_ready(READY_TIMEOUT)?;
        third.add_pod("p1")?;
        let pods: Vec<_> = lab.pods().into_iter().filter(|p| p.node != "n2").collect();
        eventually(|| everybody_pings(&pods))
    });
}

#[test]
fn pods_beyond_one_block_get_a_second_block() {
    let options = LabOptions {
        controller_args: vec!["--block-size".to_owned(), "28".to_owned()],
        ..LabOptions::default()
    };
    in_lab(options, |lab| {
        let node = lab.node("n1")?;
        let mut addresses: BTreeSet<_> = lab.pods().iter().map(|pod| pod.ip).collect();
        for number in 0..24 {
            let name = format!("q{number}");
            // A block that is just being asked for is "try again later".
            let pod = eventually(|| node.add_pod(&name))?;
            ensure!(addresses.insert(pod.ip), "{} was given twice", pod.ip);
        }
        let blocks = Raw::open(lab)?.blocks_by_node()?;
        ensure!(
            blocks["n1"].len() >= 2 && blocks["n2"].len() == 1,
            "{blocks:?}"
        );
        // From the far node, so that every block is routed there.
        let far = lab.node("n2")?.pods()[0].clone();
        eventually(|| {
            node.pods()
                .iter()
                .try_for_each(|pod| far.ping(pod.ip, Default::default()))
        })?;
        leaks(&node)?;
        // And a restart finds all of them again.
        node.restart_agent()?;
        leaks(&node)?;
        node.pods()
            .iter()
            .try_for_each(|pod| far.ping(pod.ip, Default::default()))
    });
}

fn leads(port: u16) -> Result<bool> {
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let ready = http::get_here(address, "/readyz")?;
    ensure!(ready.status == 200, "{ready:?}");
    Ok(ready.body.contains("leading"))
}

fn a_second_controller_takes_over(lab: &Lab) -> Result<()> {
    let second = lab.another_controller("controller-2", 9872);
    second.start()?;
    eventually(|| leads(9872))?;
    ensure!(leads(9871)? && !leads(9872)?, "not exactly one leads");
    lab.add_nodes(2)?;
    takes_over_after(lab, lab.controller(), Signal::SIGKILL)?;
    lab.start_controller()?;
    eventually(|| leads(9871))?;
    ensure!(!leads(9871)?, "the one that came back leads as well");
    takes_over_after(lab, &second, Signal::SIGTERM)?;
    lab.add_pods(1)?;
    eventually(|| everybody_pings(&lab.pods()))
}

/// Ends the leader and adds a node, which only the other one can serve.
fn takes_over_after(lab: &Lab, leader: &Daemon, signal: Signal) -> Result<()> {
    leader.kill(signal)?;
    lab.add_node()?;
    let blocks = Raw::open(lab)?.blocks_by_node()?;
    ensure!(
        blocks.len() == lab.nodes().len() && blocks.values().all(|of_node| of_node.len() == 1),
        "not one block for each node: {blocks:?}"
    );
    Ok(())
}

#[test]
fn of_two_controllers_on_sqlite_one_takes_over_from_the_other() {
    let options = LabOptions {
        nodes: 0,
        pods: 0,
        ..LabOptions::default()
    };
    in_lab(options, |lab| {
        a_second_controller_takes_over(lab)?;
        Ok(())
    });
}

#[test]
fn of_two_controllers_on_etcd_one_takes_over_from_the_other() {
    let options = LabOptions {
        nodes: 0,
        pods: 0,
        datastore: Datastore::Etcd,
        ..LabOptions::default()
    };
    in_lab(options, |lab| {
        a_second_controller_takes_over(lab)?;
        Ok(())
    });
}

#[test]
fn no_node_gets_a_block_that_lies_in_its_underlay() {
    let options = LabOptions {
        nodes: 0,
        pods: 0,
        pool: Some("172.29.0.0/20".to_owned()),
        ..LabOptions::default()
    };
    in_lab(options, |lab| {
        let node = lab.new_node()?;
        node.start_agent()?;
        eventually(|| {
            let ready = lab.controller_http("/readyz")?.body;
            let log = lab.controller().log();
            for part in ["default", "172.29.0.0/20", "172.29.0.0/24", "n1"] {
                ensure!(ready.contains(part), "without {part}: {ready}");
                ensure!(log.contains(part), "without {part}: {log}");
            }
            Ok(())
        })?;
        let blocks = Raw::open(lab)?.blocks_by_node()?;
        ensure!(blocks.is_empty(), "{blocks:?}");
        viaductctl(lab, &["pools", "delete", "default"])?.worked()?;
        viaductctl(lab, &["pools", "create", "good", "--cidr", "10.9.0.0/24"])?.worked()?;
        node.await_ready(READY_TIMEOUT)
    });
}
