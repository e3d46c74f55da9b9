//! Helpers of the cases: waiting, and following into a map.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use viaduct_datastore::{Store, Update, follow};
use viaduct_model::Kind;

/// Name to value.
pub type Picture = BTreeMap<String, Vec<u8>>;

/// The longest that anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// Follows a kind into a map, counting resets.
pub fn picture(store: Arc<dyn Store>, kind: Kind) -> watch::Receiver<(Picture, usize)> {
    let mut updates = follow(store, kind);
    let (tell, seen) = watch::channel((Picture::new(), 0));
    tokio::spawn(async move {
        while let Some(update) = updates.recv().await {
            tell.send_modify(|(picture, resets)| match update {
                Update::Reset(entries) => {
                    *resets += 1;
                    *picture = entries.into_iter().map(|e| (e.name, e.value)).collect();
                }
                Update::Put(entry) => {
                    picture.insert(entry.name, entry.value);
                }
                Update::Delete(name) => {
                    picture.remove(&name);
                }
            });
            if tell.is_closed() {
                return;
            }
        }
    });
    seen
}

/// The store's own answer.
pub async fn listed(store: &Arc<dyn Store>, kind: Kind) -> Picture {
    let list = store.list(kind).await.expect("list");
    list.entries
        .into_iter()
        .map(|e| (e.name, e.value))
        .collect()
}

/// Waits until a picture satisfies `f`.
pub async fn until(
    seen: &mut watch::Receiver<(Picture, usize)>,
    what: &str,
    f: impl Fn(&Picture) -> bool,
) {
    let waited = tokio::time::timeout(PATIENCE, seen.wait_for(|(picture, _)| f(picture)))
        .await
        .is_ok_and(|w| w.is_ok());
    if !waited {
        let (picture, resets) = &*seen.borrow();
        panic!(
            "{what}: not within {PATIENCE:?}; {} records, {resets} resets",
            picture.len()
        );
    }
}

/// Asks again and again until the answer is `Some`.
pub async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut ask: impl FnMut() -> F,
) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(
            begun.elapsed() < PATIENCE,
            "{what}: not within {PATIENCE:?}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
