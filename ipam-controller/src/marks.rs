//! Saying on records themselves what is wrong with them: a condition and an event each, in
//! Kubernetes.
//!
//! One task beside the control loop, which tells it what ought to be said and whether this
//! controller is the one to say it. It never gives up and never holds the loop up; a new
//! leader first reads what its predecessor has said.

use std::collections::BTreeMap;

use tokio::sync::watch;
use viaduct_datastore::store::SharedStore;
use viaduct_datastore::{Backoff, Mark, Note, StoreError};
use viaduct_model::Kind;

use crate::decide::Faults;

/// The kinds whose records the controller may mark: the others are their nodes' own.
const MARKED: [Kind; 2] = [Kind::Pool, Kind::Block];

/// Runs until the sender is gone. `None`: another controller is the one to say it.
pub async fn keep(store: SharedStore, mut wanted: watch::Receiver<Option<Faults>>) {
    let mut backoff = Backoff::default();
    let mut said: Option<Faults> = None;
    loop {
        let now = wanted.borrow_and_update().clone();
        let outcome = match now {
            None => {
                said = None;
                Ok(())
            }
            Some(now) => say(&store, &mut said, &now).await,
        };
        let pause = match outcome {
            Ok(()) => {
                backoff.reset();
                None
            }
            Err(error) => {
                let pause = backoff.next();
                tracing::debug!(%error, retry_in = ?pause, "records cannot be told what is wrong with them");
                Some(pause)
            }
        };
        let changed = tokio::select! {
            changed = wanted.changed() => changed.is_ok(),
            () = tokio::time::sleep(pause.unwrap_or_default()), if pause.is_some() => true,
        };
        if !changed {
            return;
        }
    }
}

/// Makes the store say `wanted`; `said` follows what was done.
async fn say(
    store: &SharedStore,
    said: &mut Option<Faults>,
    wanted: &Faults,
) -> Result<(), StoreError> {
    let there = match said {
        Some(there) => there,
        None => said.insert(standing(store).await?),
    };
    for ((kind, name), mark) in difference(there, wanted) {
        if MARKED.contains(&kind) {
            store.set_mark(kind, &name, mark.as_ref()).await?;
        }
        let key = (kind, name);
        let before = match &mark {
            Some(mark) => there.insert(key.clone(), mark.clone()),
            None => there.remove(&key),
        };
        if let Some(note) = note(key, before.as_ref(), mark.as_ref())
            && let Err(error) = store.note(&note).await
        {
            tracing::debug!(%error, reason = note.reason, "people could not be told");
        }
    }
    Ok(())
}

async fn standing(store: &SharedStore) -> Result<Faults, StoreError> {
    let mut found = Faults::new();
    for kind in MARKED {
        for (name, mark) in store.marks(kind).await? {
            found.insert((kind, name), mark);
        }
    }
    Ok(found)
}

/// What has to be said anew, or no longer.
fn difference(said: &Faults, wanted: &Faults) -> BTreeMap<(Kind, String), Option<Mark>> {
    let gone = said.keys().filter(|key| !wanted.contains_key(*key));
    let new = wanted
        .iter()
        .filter(|(key, mark)| said.get(*key) != Some(*mark));
    gone.map(|key| (key.clone(), None))
        .chain(new.map(|(key, mark)| (key.clone(), Some(mark.clone()))))
        .collect()
}

/// An event, where there is another thing wrong than before.
fn note((kind, name): (Kind, String), before: Option<&Mark>, now: Option<&Mark>) -> Option<Note> {
    let now = now?;
    if before.is_some_and(|before| before.reason == now.reason) {
        return None;
    }
    Some(Note {
        kind,
        name,
        reason: match now.reason.as_str() {
            "Unreadable" => "Unreadable",
            _ => "Conflict",
        },
        text: now.text.clone(),
        warning: true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(of: &[(&str, &str, &str)]) -> Faults {
        of.iter()
            .map(|(name, reason, text)| {
                let mark = Mark {
                    reason: (*reason).to_owned(),
                    text: (*text).to_owned(),
                };
                ((Kind::Block, (*name).to_owned()), mark)
            })
            .collect()
    }

    #[test]
    fn what_is_said_already_is_not_said_again_and_what_is_over_is_taken_back() {
        let said = faults(&[("a", "Overlaps", "1"), ("b", "Overlaps", "1")]);
        let wanted = faults(&[("a", "Overlaps", "1"), ("c", "OutsidePool", "2")]);
        let todo = difference(&said, &wanted);
        let names: Vec<_> = todo
            .iter()
            .map(|((_, name), mark)| (name.as_str(), mark.is_some()))
            .collect();
        assert_eq!(names, [("b", false), ("c", true)]);
        assert!(difference(&wanted, &wanted).is_empty());
    }

    #[test]
    fn an_event_is_for_what_is_newly_wrong() {
        let key = || (Kind::Block, "a".to_owned());
        let of = |reason| faults(&[("a", reason, "x")]).into_values().next();
        let told = |before: Option<Mark>, now: Option<Mark>| {
            note(key(), before.as_ref(), now.as_ref()).map(|note| note.reason)
        };
        assert_eq!(told(None, of("Overlaps")), Some("Conflict"));
        assert_eq!(told(of("Overlaps"), of("Overlaps")), None);
        assert_eq!(told(of("Overlaps"), of("Unreadable")), Some("Unreadable"));
        assert_eq!(told(of("Overlaps"), None), None);
    }
}
