//! What every store must do.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use viaduct_datastore::{Change, Connectivity, Store, StoreError, Update, Version, follow};
use viaduct_model::Kind;

use crate::Lab;
use crate::follower::{PATIENCE, eventually, listed, picture, until};

pub async fn create_gives_a_record_once_only(lab: &impl Lab) {
    let store = lab.open().await;
    let version = store
        .create(Kind::Pool, "a", b"{\"n\":1}", None)
        .await
        .unwrap();
    let again = store.create(Kind::Pool, "a", b"{}", None).await;
    assert!(
        matches!(&again, Err(StoreError::AlreadyExists { kind: Kind::Pool, name }) if name == "a"),
        "{again:?}"
    );
    let entry = lab
        .open()
        .await
        .get(Kind::Pool, "a")
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (entry.name.as_str(), &entry.value[..]),
        ("a", &b"{\"n\":1}"[..])
    );
    assert_eq!(entry.version, version);
    assert_eq!(store.get(Kind::Pool, "b").await.unwrap(), None);
}

pub async fn update_needs_the_version_that_was_read(lab: &impl Lab) {
    let store = lab.open().await;
    let first = store.create(Kind::Node, "a", b"{}", None).await.unwrap();
    let second = store
        .update(Kind::Node, "a", b"{\"n\":2}", &first, None)
        .await
        .unwrap();
    assert_ne!(first, second);
    for stale in [&first, &Version("nonsense".into())] {
        let refused = store.update(Kind::Node, "a", b"{}", stale, None).await;
        assert!(
            matches!(refused, Err(StoreError::Conflict { .. })),
            "{refused:?}"
        );
    }
    let absent = store.update(Kind::Node, "b", b"{}", &second, None).await;
    assert!(
        matches!(absent, Err(StoreError::Conflict { .. })),
        "{absent:?}"
    );
    let now = store.get(Kind::Node, "a").await.unwrap().unwrap();
    assert_eq!((now.value, now.version), (b"{\"n\":2}".to_vec(), second));
}

pub async fn delete_needs_the_version_that_was_read(lab: &impl Lab) {
    let store = lab.open().await;
    let first = store.create(Kind::Node, "a", b"{}", None).await.unwrap();
    let second = store
        .update(Kind::Node, "a", b"{\"n\":2}", &first, None)
        .await
        .unwrap();
    let stale = store.delete(Kind::Node, "a", &first).await;
    assert!(
        matches!(stale, Err(StoreError::Conflict { .. })),
        "{stale:?}"
    );
    assert!(store.get(Kind::Node, "a").await.unwrap().is_some());
    store.delete(Kind::Node, "a", &second).await.unwrap();
    assert!(store.get(Kind::Node, "a").await.unwrap().is_none());
    let gone = store.delete(Kind::Node, "a", &second).await;
    assert!(matches!(gone, Err(StoreError::Conflict { .. })), "{gone:?}");
    // A record created anew is not the one that was read.
    store.create(Kind::Node, "a", b"{}", None).await.unwrap();
    let old = store.delete(Kind::Node, "a", &second).await;
    assert!(matches!(old, Err(StoreError::Conflict { .. })), "{old:?}");
}

pub async fn names_that_leave_their_kind_are_refused(lab: &impl Lab) {
    let store = lab.open().await;
    for name in ["", "a/b", "../x", &"n".repeat(600)] {
        let refused = store.create(Kind::Node, name, b"{}", None).await;
        assert!(
            matches!(refused, Err(StoreError::Invalid(_))),
            "{name:?}: {refused:?}"
        );
    }
}

pub async fn kinds_do_not_see_each_other(lab: &impl Lab) {
    let store = lab.open().await;
    for kind in Kind::ALL {
        store
            .create(kind, "same", kind.plural().as_bytes(), None)
            .await
            .unwrap();
    }
    for kind in Kind::ALL {
        let list = listed(&store, kind).await;
        assert_eq!(list.len(), 1);
        assert_eq!(list["same"], kind.plural().as_bytes());
    }
}

pub async fn any_bytes_come_back_as_they_were(lab: &impl Lab) {
    let store = lab.open().await;
    let large = vec![b'x'; 300_000];
    for (name, value) in [
        ("empty", &b""[..]),
        ("not-utf8", b"\xff\xfe\0"),
        ("unicode", "größe".as_bytes()),
        ("large", &large),
    ] {
        store.create(Kind::Pool, name, value, None).await.unwrap();
        let read = store.get(Kind::Pool, name).await.unwrap().unwrap();
        assert!(read.value == value, "{name}");
    }
    let names: Vec<_> = listed(&store, Kind::Pool).await.into_keys().collect();
    assert_eq!(names, ["empty", "large", "not-utf8", "unicode"]);
}

pub async fn two_writers_on_one_key_lose_no_update(lab: &impl Lab) {
    const EACH: u32 = 100;
    let store = lab.open().await;
    store
        .create(Kind::Pool, "counter", b"0", None)
        .await
        .unwrap();
    let add = async |store: Arc<dyn Store>| {
        let mut done = 0;
        while done < EACH {
            let read = store.get(Kind::Pool, "counter").await.unwrap().unwrap();
            let n: u32 = String::from_utf8(read.value).unwrap().parse().unwrap();
            let next = (n + 1).to_string();
            match store
                .update(Kind::Pool, "counter", next.as_bytes(), &read.version, None)
                .await
            {
                Ok(_) => done += 1,
                Err(StoreError::Conflict { .. }) => {}
                Err(e) => panic!("{e}"),
            }
        }
    };
    tokio::join!(add(lab.open().await), add(lab.open().await));
    let end = store.get(Kind::Pool, "counter").await.unwrap().unwrap();
    assert_eq!(end.value, (2 * EACH).to_string().as_bytes());
}

pub async fn a_watch_continues_a_list_without_a_gap(lab: &impl Lab) {
    let (store, other) = (lab.open().await, lab.open().await);
    store
        .create(Kind::Block, "before", b"0", None)
        .await
        .unwrap();
    let list = store.list(Kind::Block).await.unwrap();
    // All of this happens after the list and before the watch.
    let a = other.create(Kind::Block, "a", b"1", None).await.unwrap();
    other
        .create(Kind::Node, "elsewhere", b"1", None)
        .await
        .unwrap();
    let b = other.create(Kind::Block, "b", b"1", None).await.unwrap();
    other.delete(Kind::Block, "b", &b).await.unwrap();
    let a2 = other
        .update(Kind::Block, "a", b"2", &a, None)
        .await
        .unwrap();
    let mut changes = store.watch(Kind::Block, list.cursor).await.unwrap();
    let c = other.create(Kind::Block, "c", b"1", None).await.unwrap();
    let mut seen = Vec::new();
    loop {
        let change = tokio::time::timeout(PATIENCE, changes.next())
            .await
            .expect("a change");
        let change = change.expect("the watch goes on").unwrap();
        let last = matches!(&change, Change::Put(e) if e.name == "c");
        seen.push(change);
        if last {
            break;
        }
    }
    let of = |name: &str| {
        let mut all = seen.iter().filter(|c| match c {
            Change::Put(e) => e.name == name,
            Change::Delete { name: n } => n == name,
        });
        all.next_back().cloned()
    };
    assert!(matches!(of("a"), Some(Change::Put(e)) if e.version == a2 && e.value == b"2"));
    assert!(
        matches!(of("b"), None | Some(Change::Delete { .. })),
        "{seen:?}"
    );
    assert!(matches!(of("c"), Some(Change::Put(e)) if e.version == c));
    assert!(
        of("elsewhere").is_none() && of("before").is_none(),
        "{seen:?}"
    );
}

pub async fn no_change_is_missed_under_ten_thousand_concurrent_writes(lab: &impl Lab) {
    const WRITERS: usize = 4;
    const ROUNDS: usize = 2_500;
    let early = picture(lab.open().await, Kind::Block);
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        let store = lab.open().await;
        writers.push(tokio::spawn(async move {
            // 125 keys each: created, updated over and over, a fifth deleted.
            let mut versions: Vec<Option<Version>> = vec![None; 125];
            for round in 0..ROUNDS {
                let slot = (round * 7) % versions.len();
                let name = format!("w{writer}-{slot:03}");
                let value = format!("{{\"round\":{round}}}").into_bytes();
                versions[slot] = match versions[slot].take() {
                    None => Some(
                        store
                            .create(Kind::Block, &name, &value, None)
                            .await
                            .unwrap(),
                    ),
                    Some(v) if round % 5 == 0 => {
                        store.delete(Kind::Block, &name, &v).await.unwrap();
                        None
                    }
                    Some(v) => Some(
                        store
                            .update(Kind::Block, &name, &value, &v, None)
                            .await
                            .unwrap(),
                    ),
                };
            }
        }));
    }
    // Some begin to follow in the midst of it.
    let mut followers = vec![early];
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        followers.push(picture(lab.open().await, Kind::Block));
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let store = lab.open().await;
    let truth = listed(&store, Kind::Block).await;
    assert!(truth.len() > 100, "the test wrote {} records", truth.len());
    for follower in &mut followers {
        until(follower, "the follower equals the list", |picture| {
            *picture == truth
        })
        .await;
        assert_eq!(follower.borrow().1, 1, "it was told everything once only");
    }
}

pub async fn a_follower_is_told_everything_first_and_stops_when_dropped(lab: &impl Lab) {
    let store = lab.open().await;
    let mut updates = follow(store.clone(), Kind::Node);
    let next = tokio::time::timeout(PATIENCE, updates.recv())
        .await
        .unwrap();
    assert_eq!(
        next,
        Some(Update::Reset(vec![])),
        "an empty store is told of, too"
    );
    let version = store.create(Kind::Node, "a", b"1", None).await.unwrap();
    let next = tokio::time::timeout(PATIENCE, updates.recv())
        .await
        .unwrap();
    assert!(matches!(next, Some(Update::Put(e)) if e.name == "a" && e.version == version));
    store.delete(Kind::Node, "a", &version).await.unwrap();
    let next = tokio::time::timeout(PATIENCE, updates.recv())
        .await
        .unwrap();
    assert_eq!(next, Some(Update::Delete("a".into())));
    drop(updates);
    eventually("the follower lets go of the store", async || {
        (Arc::strong_count(&store) == 1).then_some(())
    })
    .await;
}

pub async fn a_lease_that_is_kept_alive_keeps_its_record(lab: &impl Lab) {
    let store = lab.open().await;
    let lease = store.grant_lease(Duration::from_secs(2)).await.unwrap();
    store
        .create(Kind::Claim, "a", b"1", Some(&lease))
        .await
        .unwrap();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(5) {
        store.keep_alive(&lease).await.unwrap();
        let left = store
            .lease_remaining(Kind::Claim, "a")
            .await
            .unwrap()
            .unwrap();
        assert!(left <= Duration::from_secs(2), "{left:?}");
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    assert!(store.get(Kind::Claim, "a").await.unwrap().is_some());
    store.create(Kind::Claim, "free", b"1", None).await.unwrap();
    assert_eq!(
        store.lease_remaining(Kind::Claim, "free").await.unwrap(),
        None
    );
    assert_eq!(
        store.lease_remaining(Kind::Claim, "absent").await.unwrap(),
        None
    );
}

pub async fn a_lease_that_runs_out_takes_its_record_away(lab: &impl Lab) {
    let (store, other) = (lab.open().await, lab.open().await);
    let mut seen = picture(other, Kind::Claim);
    let lease = store.grant_lease(Duration::from_secs(2)).await.unwrap();
    store
        .create(Kind::Claim, "leased", b"1", Some(&lease))
        .await
        .unwrap();
    let loose = store
        .create(Kind::Claim, "loosened", b"1", Some(&lease))
        .await
        .unwrap();
    store
        .update(Kind::Claim, "loosened", b"2", &loose, None)
        .await
        .unwrap();
    until(&mut seen, "both are seen", |p| p.len() == 2).await;
    // Nobody reads or writes: the follower has to notice by itself.
    until(&mut seen, "the record goes with its lease", |p| {
        !p.contains_key("leased")
    })
    .await;
    assert_eq!(
        seen.borrow().0["loosened"],
        b"2",
        "it hung on the lease no more"
    );
    let dead = store.keep_alive(&lease).await;
    assert!(
        matches!(dead, Err(StoreError::LeaseExpired { .. })),
        "{dead:?}"
    );
    let dead = store.create(Kind::Claim, "late", b"1", Some(&lease)).await;
    assert!(
        matches!(dead, Err(StoreError::LeaseExpired { .. })),
        "{dead:?}"
    );
    // Revival: a new lease, the same name.
    let lease = store.grant_lease(Duration::from_secs(30)).await.unwrap();
    store
        .create(Kind::Claim, "leased", b"3", Some(&lease))
        .await
        .unwrap();
    until(&mut seen, "the record is back", |p| {
        p.contains_key("leased")
    })
    .await;
}

pub async fn a_revoked_lease_takes_its_record_away(lab: &impl Lab) {
    let store = lab.open().await;
    let lease = store.grant_lease(Duration::from_secs(60)).await.unwrap();
    store
        .create(Kind::Claim, "a", b"1", Some(&lease))
        .await
        .unwrap();
    store.revoke_lease(&lease).await.unwrap();
    assert!(store.get(Kind::Claim, "a").await.unwrap().is_none());
    store
        .revoke_lease(&lease)
        .await
        .expect("gone already is good");
}

pub async fn a_record_put_on_another_lease_outlives_the_first(lab: &impl Lab) {
    let store = lab.open().await;
    let first = store.grant_lease(Duration::from_secs(60)).await.unwrap();
    let second = store.grant_lease(Duration::from_secs(60)).await.unwrap();
    let version = store
        .create(Kind::Claim, "a", b"1", Some(&first))
        .await
        .unwrap();
    store
        .update(Kind::Claim, "a", b"2", &version, Some(&second))
        .await
        .unwrap();
    store.revoke_lease(&first).await.unwrap();
    assert!(store.get(Kind::Claim, "a").await.unwrap().is_some());
    store.revoke_lease(&second).await.unwrap();
    assert!(store.get(Kind::Claim, "a").await.unwrap().is_none());
}

pub async fn one_leader_at_a_time_and_resigning_on_drop(lab: &impl Lab) {
    let (one, two) = (lab.open().await, lab.open().await);
    let mut waiting = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(500)).await;
        two.campaign("controller", "two").await
    });
    let first = one.campaign("controller", "one").await.unwrap();
    let elsewhere = one
        .campaign("another", "one")
        .await
        .expect("elections are independent");
    let early = tokio::time::timeout(Duration::from_secs(2), &mut waiting).await;
    assert!(early.is_err(), "two leaders: {early:?}");
    assert!(!*first.lost.borrow());
    let resigned = Instant::now();
    drop(first);
    let second = tokio::time::timeout(PATIENCE, waiting)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    let took = resigned.elapsed();
    assert!(
        took < Duration::from_secs(2),
        "resigning took effect after {took:?}"
    );
    assert!(!*second.lost.borrow() && !*elsewhere.lost.borrow());
}

pub async fn connectivity_says_connected_once_something_worked(lab: &impl Lab) {
    let store = lab.open().await;
    let seen = store.connectivity();
    store.get(Kind::Pool, "x").await.unwrap();
    assert_eq!(*seen.borrow(), Connectivity::Connected);
}
