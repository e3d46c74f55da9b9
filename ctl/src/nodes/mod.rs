//! `viaductctl nodes`: who is in the network, and how they fare. Listing is pure: it is
//! handed a snapshot.

pub(crate) mod delete;

use clap::Subcommand;
use serde_json::{Value, json};
use viaduct_datastore::Named;
use viaduct_model::{Claim, Node, NodeName};

use crate::output::{record_json, table};
use crate::snapshot::Snapshot;

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// List the nodes, as when no verb is given
    List,
    /// Remove a node that will not come back: its blocks are free after the quarantine
    ///
    /// Refused while an agent runs for it; in Kubernetes, while its Node object exists. A node that comes back all the same stops
    /// handing out addresses before others get its blocks, and registers anew.
    Delete {
        /// The node's name
        name: NodeName,
    },
}

const HEADINGS: [&str; 10] = [
    "NAME",
    "AGENT",
    "UNDERLAY",
    "BACKEND",
    "OVERLAY",
    "MTU",
    "BLOCKS",
    "USED",
    "FREE",
    "CONDITIONS",
];

/// The nodes as a table.
pub(crate) fn render(snapshot: &Snapshot) -> String {
    let rows: Vec<_> = snapshot
        .nodes
        .iter()
        .map(|node| row(snapshot, node))
        .collect();
    table(&HEADINGS, &rows)
}

fn row(snapshot: &Snapshot, node: &Named<Node>) -> Vec<String> {
    let claim = snapshot.claim(&node.name);
    let Node {
        underlay, overlay, ..
    } = &node.record;
    let usage = |count: fn(&viaduct_model::BlockUsage) -> u32| {
        let sum = |claim: &Claim| claim.blocks.values().map(count).sum::<u32>().to_string();
        claim.map(sum).unwrap_or_default()
    };
    vec![
        node.name.clone(),
        if claim.is_some() { "alive" } else { "gone" }.to_owned(),
        both(underlay.v4, underlay.v6),
        node.record.backend.name().to_owned(),
        both(overlay.v4, overlay.v6),
        node.record.mtu.to_string(),
        snapshot.blocks_of(&node.name).count().to_string(),
        usage(|block| block.used),
        usage(|block| block.free),
        claim.map(conditions).unwrap_or_default(),
    ]
}

/// What is there of two addresses.
fn both(v4: Option<impl ToString>, v6: Option<impl ToString>) -> String {
    let there: Vec<String> = v4
        .map(|a| a.to_string())
        .into_iter()
        .chain(v6.map(|a| a.to_string()))
        .collect();
    there.join(",")
}

/// The conditions, `Type` alone where it holds, else with status and reason.
fn conditions(claim: &Claim) -> String {
    let one = |c: &viaduct_model::Condition| match c.status.as_str() {
        "True" => c.r#type.clone(),
        status => format!("{}={status}({})", c.r#type, c.reason),
    };
    claim
        .conditions
        .iter()
        .map(one)
        .collect::<Vec<_>>()
        .join(",")
}

/// The nodes for programs, each with its claim.
pub(crate) fn json(snapshot: &Snapshot) -> Value {
    let one = |node: &Named<Node>| {
        let mut value = record_json(node);
        value["claim"] = json!(snapshot.claim(&node.name));
        value
    };
    snapshot.nodes.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_as_a_table() {
        insta::assert_snapshot!(render(&crate::fixture::snapshot()), @r#"
        NAME  AGENT  UNDERLAY     BACKEND  OVERLAY    MTU   BLOCKS  USED  FREE  CONDITIONS
        n1    alive  172.29.0.11  vxlan    10.64.0.0  1450  1       60    3     BlocksAvailable=False(PoolExhausted)
        n2    gone   172.29.0.12  vxlan    -          1450  0       -     -     -
        "#);
    }

    #[test]
    fn programs_get_the_claim_with_the_node() {
        let nodes = json(&crate::fixture::snapshot());
        assert_eq!(nodes[0]["name"], "n1");
        assert_eq!(nodes[0]["version"], "7");
        assert_eq!(nodes[0]["claim"]["blocks"]["10.64.0.0-26"]["used"], 60);
        assert_eq!(nodes[1]["claim"], Value::Null);
    }
}
