//! `viaductctl status`: the whole network on one screen. Pure: it is handed a
//! snapshot. What is wrong in it is shown, and is no failure of the command; that
//! the store does not answer is.

use serde_json::{Value, json};

use crate::output::record_json;
use crate::snapshot::Snapshot;
use crate::{nodes, pools};

/// The status as text.
pub(crate) fn render(store: &str, snapshot: &Snapshot) -> String {
    let alive = snapshot
        .nodes
        .iter()
        .filter(|node| snapshot.claim(&node.name).is_some())
        .count();
    let mut text = format!(
        "Datastore {store} answers.\n{} nodes, {alive} of them alive; {} pools, {} blocks.\n",
        snapshot.nodes.len(),
        snapshot.pools.len(),
        snapshot.blocks.len()
    );
    if !snapshot.pools.is_empty() {
        text.push_str(&format!("\n{}", pools::list::render(snapshot)));
    }
    if !snapshot.nodes.is_empty() {
        text.push_str(&format!("\n{}", nodes::render(snapshot)));
    }
    let problems = problems(snapshot);
    if !problems.is_empty() {
        text.push_str("\nNeeds attention:\n");
        for problem in problems {
            text.push_str(&format!("  {problem}\n"));
        }
    }
    text
}

/// What somebody ought to look at, one sentence each.
fn problems(snapshot: &Snapshot) -> Vec<String> {
    let exhausted = snapshot.pools.iter().filter_map(|pool| {
        let since = pool.record.status.as_ref()?.exhausted_since.as_ref()?;
        Some(format!(
            "pool {:?} is exhausted since {since}: a node waits for a block",
            pool.name
        ))
    });
    let gone = snapshot
        .nodes
        .iter()
        .filter(|node| snapshot.claim(&node.name).is_none());
    let gone = gone.map(|node| {
        format!(
            "node {:?} has no live agent; its {} blocks stay with it",
            node.name,
            snapshot.blocks_of(&node.name).count()
        )
    });
    let waiting = snapshot.claims.iter().flat_map(|claim| {
        claim
            .record
            .conditions
            .iter()
            .filter(|c| c.status != "True")
            .map(|c| {
                format!(
                    "node {:?}: {} is {} ({}): {}",
                    claim.name, c.r#type, c.status, c.reason, c.message
                )
            })
    });
    let unreadable = snapshot
        .unreadable
        .iter()
        .map(|e| format!("unreadable: {e}"));
    exhausted
        .chain(gone)
        .chain(waiting)
        .chain(unreadable)
        .collect()
}

/// The status for programs.
pub(crate) fn json(store: &str, snapshot: &Snapshot) -> Value {
    let unreadable: Vec<String> = snapshot
        .unreadable
        .iter()
        .map(ToString::to_string)
        .collect();
    json!({
        "datastore": {"url": store, "answers": true},
        "pools": snapshot.pools.iter().map(record_json).collect::<Vec<_>>(),
        "nodes": nodes::json(snapshot),
        "blocks": snapshot.blocks.len(),
        "problems": problems(snapshot),
        "unreadable": unreadable,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_needs_attention_is_named() {
        let text = render("sqlite:/x", &crate::fixture::snapshot());
        insta::assert_snapshot!(text, @r#"
        Datastore sqlite:/x answers.
        2 nodes, 1 of them alive; 1 pools, 1 blocks.

        NAME     CIDR          BLOCK SIZE  BLOCKS  TAKEN  FREE  USED  FREE IN BLOCKS  USE                         STATE                                 NODES
        default  10.64.0.0/26  /26         1       1      0     60    3               [###################-] 93%  exhausted since 2026-11-21T09:00:00Z  all

        NAME  AGENT  UNDERLAY     BACKEND  OVERLAY    MTU   BLOCKS  USED  FREE  CONDITIONS
        n1    alive  172.29.0.11  vxlan    10.64.0.0  1450  1       60    3     BlocksAvailable=False(PoolExhausted)
        n2    gone   172.29.0.12  vxlan    -          1450  0       -     -     -

        Needs attention:
          pool "default" is exhausted since 2026-11-21T09:00:00Z: a node waits for a block
          node "n2" has no live agent; its 0 blocks stay with it
          node "n1": BlocksAvailable is False (PoolExhausted): waits for a block
          unreadable: pool "x": record "{" is not allowed: EOF while parsing
        "#);
    }

    #[test]
    fn an_empty_store_is_no_trouble() {
        let text = render("sqlite:/x", &Snapshot::default());
        assert_eq!(
            text,
            "Datastore sqlite:/x answers.\n0 nodes, 0 of them alive; 0 pools, 0 blocks.\n"
        );
    }
}
