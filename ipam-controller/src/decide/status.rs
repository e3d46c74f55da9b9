//! What the controller says of pools: their counts, and since when they are full.

use std::collections::BTreeMap;

use viaduct_model::{Pool, PoolName, PoolStatus};

use super::allot::Space;
use super::{Action, Decision, Moment};

/// Writes the status of pools whose exhaustion changed, and at most once in
/// `policy.refresh` of those whose counts did. `freed` are generations that have to
/// stand there now, because blocks wait for it to be freed.
pub(super) fn refresh(
    moment: &Moment<'_>,
    space: &Space,
    freed: &BTreeMap<PoolName, u64>,
    decision: &mut Decision,
) {
    let Moment {
        view,
        memory,
        policy,
        now,
        ..
    } = moment;
    for (name, versioned) in &view.pools {
        let pool = &versioned.record;
        let Some(carver) = space.carvers.get(name) else {
            continue;
        };
        let before = pool.status.as_ref();
        let since = before.and_then(|status| status.exhausted_since.clone());
        let exhausted_since = space
            .exhausted
            .contains(name)
            .then(|| since.clone().unwrap_or_else(|| now.wall.clone()));
        let generation = before.map_or(0, |status| status.generation);
        let saturated = |n: u128| u64::try_from(n).unwrap_or(u64::MAX);
        let status = PoolStatus {
            exhausted_since,
            blocks_total: saturated(carver.total()),
            blocks_free: saturated(carver.free_count()),
            generation: generation.max(freed.get(name).copied().unwrap_or(0)),
        };
        decision
            .pools
            .insert(name.clone(), (status.blocks_total, status.blocks_free));
        if before == Some(&status) {
            continue;
        }
        let urgent =
            before.is_none() || status.exhausted_since != since || status.generation != generation;
        let due_at = memory
            .status_at
            .get(name)
            .map_or(now.mono, |at| *at + policy.refresh);
        if !urgent && now.mono < due_at {
            decision.recheck(due_at);
            continue;
        }
        decision.actions.push(Action::SetPoolStatus {
            name: name.clone(),
            pool: Box::new(Pool {
                status: Some(status),
                ..pool.clone()
            }),
            expected: versioned.version.clone(),
        });
    }
}
