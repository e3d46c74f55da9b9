//! `viaductctl pools list`. Pure: it is handed a snapshot.

use serde_json::Value;
use viaduct_datastore::Named;
use viaduct_model::Pool;

use crate::output::{record_json, table};
use crate::snapshot::Snapshot;

const HEADINGS: [&str; 11] = [
    "NAME",
    "CIDR",
    "BLOCK SIZE",
    "BLOCKS",
    "TAKEN",
    "FREE",
    "USED",
    "FREE IN BLOCKS",
    "USE",
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
    let usage = Usage::of(snapshot, &pool.name, cidr.size());
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
        usage.used.to_string(),
        usage.free.to_string(),
        bar(&usage),
        state,
        if selector.is_empty() {
            "all".to_owned()
        } else {
            selector.join(",")
        },
    ]
}

/// How the addresses of a pool are used, as the agents last said.
#[derive(Debug, Default)]
struct Usage {
    size: u128,
    used: u128,
    free: u128,
    /// In blocks, and neither: reserved, nodes' own, or of a node whose agent is away.
    other: u128,
}

impl Usage {
    fn of(snapshot: &Snapshot, pool: &str, size: u128) -> Self {
        let mut usage = Self {
            size,
            ..Self::default()
        };
        for block in &snapshot.blocks {
            let block = &block.record;
            if block.pool.as_str() != pool {
                continue;
            }
            let told = snapshot.usage(block).unwrap_or_default();
            let (used, free) = (u128::from(told.used), u128::from(told.free));
            usage.used += used;
            usage.free += free;
            usage.other += block.cidr.size().saturating_sub(used + free);
        }
        usage
    }
}

/// How many signs a bar has.
const BAR: u128 = 20;

/// `#` used, `-` reserved or unknown, `+` free in a block of a node, `.` in no block; the share
/// of the pool that is used.
fn bar(usage: &Usage) -> String {
    let signs = |n: u128| n.saturating_mul(BAR).div_ceil(usage.size.max(1)).min(BAR);
    let used = signs(usage.used);
    let other = signs(usage.used + usage.other).max(used);
    let blocks = signs(usage.used + usage.other + usage.free).max(other);
    let bar: String = (0..BAR)
        .map(|at| match at {
            at if at < used => '#',
            at if at < other => '-',
            at if at < blocks => '+',
            _ => '.',
        })
        .collect();
    let percent = usage.used.saturating_mul(100) / usage.size.max(1);
    format!("[{bar}] {percent}%")
}

/// The pools for programs.
pub(crate) fn json(snapshot: &Snapshot) -> Value {
    let pools = snapshot.pools.iter().map(|pool| {
        let usage = Usage::of(snapshot, &pool.name, pool.record.cidr.size());
        let count = |n: u128| u64::try_from(n).unwrap_or(u64::MAX);
        let mut value = record_json(pool);
        value["addresses"] = serde_json::json!({
            "total": count(usage.size),
            "used": count(usage.used),
            "free": count(usage.free),
            "reservedOrUnknown": count(usage.other),
        });
        value
    });
    pools.collect()
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
        NAME     CIDR          BLOCK SIZE  BLOCKS  TAKEN  FREE  USED  FREE IN BLOCKS  USE                         STATE                                 NODES
        blue     10.64.0.0/26  /26         -       0      -     0     0               [....................] 0%   disabled                              zone=a
        default  10.64.0.0/26  /26         1       1      0     60    3               [###################-] 93%  exhausted since 2026-11-21T09:00:00Z  all
        "#);
    }
}
