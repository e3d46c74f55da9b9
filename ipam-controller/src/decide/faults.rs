//! What is wrong with records that somebody wrote by hand: named, and left alone.

use std::collections::BTreeSet;

use viaduct_datastore::Mark;
use viaduct_model::{Cidr, Invalid, Kind, PoolName, block_faults};

use super::Decision;
use crate::view::View;

/// Finds blocks that agents do not route to, and records that cannot be read; returns the
/// blocks.
pub(super) fn find(view: &View, decision: &mut Decision) -> BTreeSet<Cidr> {
    for ((kind, name), unreadable) in &view.unreadable {
        let mark = mark("Unreadable", &unreadable.reason);
        decision.faults.insert((*kind, name.clone()), mark);
    }
    let blocks = view.blocks.values().map(|block| &block.record);
    let found = block_faults(blocks, |name| view.pools.get(name).map(|pool| &pool.record));
    for (cidr, fault) in &found {
        let Some(block) = view.blocks.get(cidr) else {
            continue;
        };
        let sentence = fault.refusal(&block.record).to_string();
        let mark = mark(fault.reason(), &sentence);
        decision
            .faults
            .insert((Kind::Block, cidr.record_name()), mark);
        decision.problems.push(sentence);
    }
    found.into_keys().collect()
}

/// Takes down that a pool is wrong, and what follows from it.
pub(super) fn of_pool(
    decision: &mut Decision,
    name: &PoolName,
    reason: &str,
    invalid: &Invalid,
    so: &str,
) {
    let sentence = format!("{invalid}; {so}");
    let key = (Kind::Pool, name.as_str().to_owned());
    // The first is told: of some pools there is one for each node.
    let mark = mark(reason, &sentence);
    decision.faults.entry(key).or_insert(mark);
    decision.problems.push(sentence);
}

fn mark(reason: &str, text: &str) -> Mark {
    Mark {
        reason: reason.to_owned(),
        text: text.to_owned(),
    }
}
