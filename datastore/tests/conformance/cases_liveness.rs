//! What holding a record on a lease must do on every store.

use std::sync::Arc;
use std::time::{Duration, Instant};

use viaduct_datastore::{HoldError, HoldState, Holding, Store, hold};
use viaduct_model::Kind;

use crate::Lab;
use crate::follower::{PATIENCE, eventually};

const TTL: Duration = Duration::from_secs(3);

/// Holds the claim "n" with content `<owner> <text>`.
async fn held(store: &Arc<dyn Store>, owner: &str, text: &str) -> Result<Holding, HoldError> {
    let content = format!("{owner} {text}").into_bytes();
    let ours = format!("{owner} ").into_bytes();
    let same = move |value: &[u8]| value.starts_with(&ours);
    hold(store.clone(), Kind::Claim, "n", content, same, TTL).await
}

async fn content(store: &Arc<dyn Store>) -> Option<String> {
    let entry = store.get(Kind::Claim, "n").await.unwrap()?;
    Some(String::from_utf8(entry.value).unwrap())
}

pub async fn a_held_record_lives_and_is_released(lab: &impl Lab) {
    let store = lab.open().await;
    let holding = held(&store, "a", "1").await.unwrap();
    let first = store.get(Kind::Claim, "n").await.unwrap().unwrap();
    tokio::time::sleep(TTL * 2).await;
    let later = store.get(Kind::Claim, "n").await.unwrap().unwrap();
    assert_eq!(first, later, "nothing is written while nothing changes");
    assert_eq!(*holding.state.borrow(), HoldState::Held);
    let asked = Instant::now();
    holding.content.send_replace(b"a 2".to_vec());
    eventually("new content is written", async || {
        (content(&store).await? == "a 2").then_some(())
    })
    .await;
    assert!(
        asked.elapsed() < TTL / 3,
        "at once, not with the next keep-alive"
    );
    holding.release().await;
    assert_eq!(content(&store).await, None);
}

pub async fn a_held_record_is_taken_over_by_its_own_owner_at_once(lab: &impl Lab) {
    let store = lab.open().await;
    // Dropped, not released: as after a kill -9.
    drop(held(&store, "a", "1").await.unwrap());
    let begun = Instant::now();
    let holding = held(&lab.open().await, "a", "2").await.unwrap();
    assert!(begun.elapsed() < TTL / 2, "took {:?}", begun.elapsed());
    assert_eq!(content(&store).await.as_deref(), Some("a 2"));
    // The first lease runs out meanwhile, and takes nothing along.
    tokio::time::sleep(TTL + Duration::from_secs(2)).await;
    assert_eq!(content(&store).await.as_deref(), Some("a 2"));
    holding.release().await;
}

pub async fn a_record_held_by_somebody_alive_is_refused_by_name(lab: &impl Lab) {
    let store = lab.open().await;
    let holding = held(&store, "a", "1").await.unwrap();
    let begun = Instant::now();
    let refused = held(&lab.open().await, "b", "1").await.map(drop);
    let took = begun.elapsed();
    assert!(
        matches!(&refused, Err(HoldError::Held { by, .. }) if by == b"a 1"),
        "{refused:?}"
    );
    assert!(took < TTL + Duration::from_secs(1), "took {took:?}");
    assert_eq!(content(&store).await.as_deref(), Some("a 1"));
    holding.release().await;
}

pub async fn a_record_whose_owner_died_is_taken_over(lab: &impl Lab) {
    let store = lab.open().await;
    drop(held(&store, "a", "1").await.unwrap());
    let taken = tokio::time::timeout(PATIENCE, held(&lab.open().await, "b", "1")).await;
    let holding = taken.unwrap().unwrap();
    assert_eq!(content(&store).await.as_deref(), Some("b 1"));
    holding.release().await;
}

pub async fn a_held_record_that_was_deleted_is_written_again(lab: &impl Lab) {
    let store = lab.open().await;
    let holding = held(&store, "a", "1").await.unwrap();
    let version = store.get(Kind::Claim, "n").await.unwrap().unwrap().version;
    store.delete(Kind::Claim, "n", &version).await.unwrap();
    eventually("the record is back", async || content(&store).await).await;
    assert_eq!(*holding.state.borrow(), HoldState::Held);
    holding.release().await;
}

pub async fn a_holder_comes_back_after_its_lease_was_lost(lab: &impl Lab) {
    let store = lab.open().await;
    let mut holding = held(&store, "a", "1").await.unwrap();
    // Somebody else took it while we were away; then that one goes.
    let version = store.get(Kind::Claim, "n").await.unwrap().unwrap().version;
    let lease = store.grant_lease(TTL).await.unwrap();
    store
        .update(Kind::Claim, "n", b"b 1", &version, Some(&lease))
        .await
        .unwrap();
    let taken = |s: &HoldState| matches!(s, HoldState::Taken { by } if by == b"b 1");
    tokio::time::timeout(PATIENCE, holding.state.wait_for(taken))
        .await
        .unwrap()
        .unwrap();
    store.revoke_lease(&lease).await.unwrap();
    let again = |s: &HoldState| *s == HoldState::Held;
    tokio::time::timeout(PATIENCE, holding.state.wait_for(again))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(content(&store).await.as_deref(), Some("a 1"));
    holding.release().await;
}
