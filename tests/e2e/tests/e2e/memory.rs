//! A node that restarts while its datastore is away still starts pods, as long as it
//! can be sure of its blocks.

use anyhow::{Context, Result, ensure};
use viaduct_e2e::{eventually, everybody_pings, leaks};
use viaduct_lab::node::READY_TIMEOUT;
use viaduct_lab::{Datastore, LabOptions, Node, Signal, in_lab};

/// Starts the agent anew without a datastore and waits until it serves.
fn restart_alone(node: &Node) -> Result<()> {
    if node.agent().is_running() {
        node.kill_agent(Signal::SIGKILL)?;
    }
    node.start_agent()?;
    eventually(|| {
        let ready = node.readyz()?;
        ensure!(
            ready.status == 503 && ready.body.contains("the datastore is not reached"),
            "{ready:?}"
        );
        Ok(())
    })
}

#[test]
fn after_a_restart_without_the_store_pods_start_from_the_nodes_own_blocks() {
    let options = LabOptions {
        datastore: Datastore::Etcd,
        ..LabOptions::default()
    };
    in_lab(options, |lab| {
        let node = lab.node("n1")?;
        let path = node.run_dir().join("blocks.json");
        eventually(|| std::fs::metadata(&path).map(drop).context("no blocks.json"))?;
        lab.store().kill()?;
        restart_alone(&node)?;
        let pod = node.add_pod("meanwhile")?;
        everybody_pings(&lab.pods())?;
        node.del_pod(&pod)?;

        // What is remembered was proven too long ago.
        node.kill_agent(Signal::SIGKILL)?;
        let text = std::fs::read_to_string(&path)?;
        let mut memory: serde_json::Value = serde_json::from_str(&text)?;
        // Of another boot's clock, so that it is no proof however long this one runs.
        memory["provenMs"] = u64::MAX.into();
        std::fs::write(&path, memory.to_string())?;
        restart_alone(&node)?;
        refused(&node, "too old to go by")?;

        // It is fresh, but the node's own routes do not stand as they did.
        node.kill_agent(Signal::SIGKILL)?;
        std::fs::write(&path, &text)?;
        let block = node.ip("route show type blackhole proto 87")?;
        let block = block.split_whitespace().nth(1).context("no block")?;
        node.ip(&format!("route del blackhole {block} proto 87"))?;
        restart_alone(&node)?;
        refused(&node, "has not read the cluster")?;

        lab.store().restart()?;
        node.await_ready(READY_TIMEOUT)?;
        node.add_pod("afterwards")?;
        everybody_pings(&lab.pods())?;
        eventually(|| leaks(&node))
    });
}

fn refused(node: &Node, why: &str) -> Result<()> {
    let said = node.add_pod("refused").err().map(|e| format!("{e:#}"));
    ensure!(
        said.as_deref().is_some_and(|said| said.contains(why)),
        "ADD: {said:?}"
    );
    Ok(())
}
