//! What people are told of single records, beside log and metrics: events in Kubernetes.
//!
//! Called by the leading controller's loop. Telling is nobody's duty: it runs beside the
//! loop, and what fails is logged and forgotten.

use viaduct_datastore::Note;
use viaduct_datastore::store::SharedStore;
use viaduct_model::{BlockState, Kind};

use crate::decide::{Action, Waiting};
use crate::status::sentence;

/// Of a node that began to wait: at its claim, and at each pool that is full.
pub fn of_waiting(waiting: &Waiting) -> Vec<Note> {
    let note = |kind, name: &str| Note {
        kind,
        name: name.to_owned(),
        reason: if waiting.full.is_empty() {
            "NoPool"
        } else {
            "PoolExhausted"
        },
        text: sentence(waiting),
        warning: true,
    };
    let pools = waiting.full.iter();
    pools
        .map(|pool| note(Kind::Pool, pool.as_str()))
        .chain([note(Kind::Claim, waiting.node.as_str())])
        .collect()
}

/// Of an action that was carried out, where it is one that people ask about later.
pub fn of_action(action: &Action) -> Option<Note> {
    let Action::SetBlockState { block, .. } = action else {
        return None;
    };
    let node = block.node.as_str();
    let (reason, text) = match block.state {
        BlockState::Quarantined => (
            "Quarantined",
            format!("node {node:?} is gone: the block rests before it is free again"),
        ),
        BlockState::Active => ("Returned", format!("node {node:?} has the block again")),
        BlockState::Releasing => return None,
    };
    Some(Note {
        kind: Kind::Block,
        name: block.cidr.record_name(),
        reason,
        text,
        warning: block.state == BlockState::Quarantined,
    })
}

/// Tells, beside whatever else goes on.
pub fn tell(store: &SharedStore, notes: impl IntoIterator<Item = Note>) {
    let notes: Vec<Note> = notes.into_iter().collect();
    if notes.is_empty() {
        return;
    }
    let store = store.clone();
    tokio::spawn(async move {
        for note in notes {
            if let Err(error) = store.note(&note).await {
                tracing::debug!(%error, reason = note.reason, "people could not be told");
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use viaduct_model::Family;

    #[test]
    fn a_full_pool_and_the_claim_that_waits_both_tell_of_it() {
        let mut waiting = Waiting {
            node: "n".parse().unwrap(),
            family: Family::V4,
            full: vec!["p".parse().unwrap()],
        };
        let told: Vec<_> = of_waiting(&waiting)
            .into_iter()
            .map(|note| (note.kind, note.name, note.reason))
            .collect();
        let expected = [
            (Kind::Pool, "p".to_owned(), "PoolExhausted"),
            (Kind::Claim, "n".to_owned(), "PoolExhausted"),
        ];
        assert_eq!(told, expected);
        waiting.full.clear();
        assert_eq!(of_waiting(&waiting)[0].reason, "NoPool");
    }
}
