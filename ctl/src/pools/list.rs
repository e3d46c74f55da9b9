//! `viaductctl pools list`. Pure: it is handed a snapshot.

use serde_json::Value;
use viaduct_datastore::Named;
use viaduct_model::Pool;

use crate::output::{record_json, table};
use crate::snapshot::Snapshot;

const HEADINGS: [&str; 8] = [
    "NAME",
    "CIDR",
    "BLOCK SIZE",
    "BLOCKS",
    "TAKEN",
    "FREE",
    "STATE",
    "NODES",
];

/// The pools as a table.
pub(crate) fn render(snapshot: &Snapshot) -> String {
    let rows: Vec<_> = snapshot
        .pools
        .iter()
        .map(|pool| row(snapshot, pool))
        .collect();
    table(&HEADINGS, &rows)
}

fn row(snapshot: &Snapshot, pool: &Named<Pool>) -> Vec<String> {
    let Pool {
        cidr,
        status,
        node_selector,
        disabled,
        ..
    } = &pool.record;
    let exhausted = status.as_ref().and_then(|s| s.exhausted_since.as_ref());
    let state = match (disabled, exhausted) {
        (true, _) => "disabled".to_owned(),
        (false, Some(since)) => format!("exhausted since {since}"),
        (false, None) => "active".to_owned(),
    };
    let selector: Vec<String> = node_selector
        .iter()
        .map(|(k, v)| format!("{k}={v}"))
        .collect();
    vec![
        pool.name.clone(),
        cidr.to_string(),
        format!("/{}", pool.record.block_len()),
        status
            .as_ref()
            .map(|s| s.blocks_total.to_string())
            .unwrap_or_default(),
        snapshot.blocks_from(&pool.name).to_string(),
        status
            .as_ref()
            .map(|s| s.blocks_free.to_string())
            .unwrap_or_default(),
        state,
        if selector.is_empty() {
            "all".to_owned()
        } else {
            selector.join(",")
        },
    ]
}

/// The pools for programs.
pub(crate) fn json(snapshot: &Snapshot) -> Value {
    snapshot.pools.iter().map(record_json).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_as_a_table() {
        let mut snapshot = crate::fixture::snapshot();
        let mut other = snapshot.pools[0].clone();
        other.name = "blue".to_owned();
        other.record.disabled = true;
        other.record.status = None;
        other.record.node_selector = [("zone".to_owned(), "a".to_owned())].into();
        snapshot.pools.insert(0, other);
        insta::assert_snapshot!(render(&snapshot), @r#"
        NAME     CIDR          BLOCK SIZE  BLOCKS  TAKEN  FREE  STATE                                 NODES
        blue     10.64.0.0/26  /26         -       0      -     disabled                              zone=a
        default  10.64.0.0/26  /26         1       1      0     exhausted since 2026-11-21T09:00:00Z  all
        "#);
    }
}
