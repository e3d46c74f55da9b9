//! `viaductctl blocks`: which node owns which addresses. Pure: it is handed a
//! snapshot.

use serde_json::{Value, json};
use viaduct_datastore::Named;
use viaduct_model::Block;

use crate::output::{record_json, table};
use crate::snapshot::Snapshot;

const HEADINGS: [&str; 7] = [
    "CIDR",
    "NODE",
    "POOL",
    "STATE",
    "GENERATION",
    "USED",
    "FREE",
];

/// The blocks as a table, in address order.
pub(crate) fn render(snapshot: &Snapshot) -> String {
    let rows: Vec<_> = snapshot
        .blocks
        .iter()
        .map(|block| row(snapshot, block))
        .collect();
    table(&HEADINGS, &rows)
}

fn row(snapshot: &Snapshot, block: &Named<Block>) -> Vec<String> {
    let block = &block.record;
    let usage = snapshot.usage(block);
    vec![
        block.cidr.to_string(),
        block.node.to_string(),
        block.pool.to_string(),
        block.state.to_string(),
        block.generation.to_string(),
        usage.map(|u| u.used.to_string()).unwrap_or_default(),
        usage.map(|u| u.free.to_string()).unwrap_or_default(),
    ]
}

/// The blocks for programs, each with its usage where its node says.
pub(crate) fn json(snapshot: &Snapshot) -> Value {
    let one = |block: &Named<Block>| {
        let mut value = record_json(block);
        value["usage"] = json!(snapshot.usage(&block.record));
        value
    };
    snapshot.blocks.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_as_a_table() {
        insta::assert_snapshot!(render(&crate::fixture::snapshot()), @r#"
        CIDR          NODE  POOL     STATE   GENERATION  USED  FREE
        10.64.0.0/26  n1    default  active  1           60    3
        "#);
    }

    #[test]
    fn a_block_of_a_node_that_is_gone_shows_no_usage() {
        let mut snapshot = crate::fixture::snapshot();
        snapshot.claims.clear();
        assert_eq!(json(&snapshot)[0]["usage"], Value::Null);
        assert!(render(&snapshot).trim_end().ends_with('-'));
    }
}
