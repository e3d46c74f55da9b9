//! What only a server can suffer: compaction, kill -9, no answer, another past.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use viaduct_datastore::{Connectivity, Cursor, Store, StoreError, StoreOptions, open};
use viaduct_model::Kind;

use crate::Lab;
use crate::child::Process;
use crate::etcd::EtcdLab;
use crate::etcd_process::Etcd;
use crate::follower::{PATIENCE, eventually, listed, picture, until};
use crate::outage::{self, Outage};
use crate::proxy::Proxy;

async fn at(url: String) -> Arc<dyn Store> {
    let options = StoreOptions {
        url,
        ..StoreOptions::default()
    };
    open(&options).await.unwrap()
}

/// Creates, as soon as the store lets us.
async fn put(store: &Arc<dyn Store>, name: &str) {
    outage::put(store, name, b"1").await;
}

/// Writes that are none of ours, which flannel's watch never survives.
fn foreign(etcd: &Etcd) {
    for n in 0..200 {
        etcd.ctl(&["put", &format!("/registry/pods/{n}"), "foreign"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_can_read_the_store_with_etcdctl() {
    let etcd = Etcd::start();
    let store = at(etcd.url()).await;
    store
        .create(Kind::Block, "10.0.0.0-26", b"{\"node\":\"a\"}", None)
        .await
        .unwrap();
    store.create(Kind::Node, "a", b"{}", None).await.unwrap();
    let _leads = store.campaign("controller", "us").await.unwrap();
    let page = etcd.ctl(&["get", "--prefix", "/viaduct/"]);
    let lines: Vec<_> = page.lines().collect();
    assert_eq!(
        lines,
        [
            "/viaduct/v1/blocks/10.0.0.0-26",
            "{\"node\":\"a\"}",
            "/viaduct/v1/election/controller",
            "{\"identity\":\"us\"}",
            "/viaduct/v1/nodes/a",
            "{}",
        ]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compacted_cursor_says_so_and_a_follower_recovers() {
    let lab = EtcdLab::on(Etcd::start());
    let store = lab.open().await;
    let mut seen = picture(lab.open().await, Kind::Pool);
    put(&store, "a").await;
    until(&mut seen, "told", |p| p.len() == 1).await;
    let list = store.list(Kind::Pool).await.unwrap();
    put(&store, "b").await;
    put(&store, "c").await;
    lab.etcd().compact();
    let compacted = match store.watch(Kind::Pool, list.cursor).await {
        Ok(mut changes) => changes.next().await.unwrap().map(drop),
        Err(e) => Err(e),
    };
    assert!(
        matches!(compacted, Err(StoreError::Compacted { .. })),
        "{compacted:?}"
    );
    let foreign = store
        .watch(Kind::Pool, Cursor("nonsense".into()))
        .await
        .map(drop);
    assert!(
        matches!(foreign, Err(StoreError::Compacted { .. })),
        "{foreign:?}"
    );
    put(&store, "d").await;
    until(&mut seen, "a watch that is up to date goes on", |p| {
        p.len() == 4
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_goes_on_after_kill_9_and_restart() {
    let lab = EtcdLab::on(Etcd::start());
    let store = lab.open().await;
    let mut seen = picture(store.clone(), Kind::Pool);
    put(&store, "a").await;
    until(&mut seen, "told", |p| p.len() == 1).await;
    for name in ["b", "c"] {
        lab.etcd().kill();
        let begun = Instant::now();
        let down = store.get(Kind::Pool, "a").await;
        assert!(
            matches!(down, Err(StoreError::Unavailable { .. })),
            "{down:?}"
        );
        assert!(
            begun.elapsed() < Duration::from_secs(5),
            "it hung for {:?}",
            begun.elapsed()
        );
        let said = store.connectivity().borrow().clone();
        assert!(
            matches!(said, Connectivity::Disconnected { .. }),
            "{said:?}"
        );
        lab.etcd().restart();
        let begun = Instant::now();
        put(&store, name).await;
        until(&mut seen, "the follower sees new writes", |p| {
            p.contains_key(name)
        })
        .await;
        assert!(
            begun.elapsed() < Duration::from_secs(8),
            "{:?}",
            begun.elapsed()
        );
        assert_eq!(*store.connectivity().borrow(), Connectivity::Connected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_writes_then_compaction_then_restart_are_survived() {
    let lab = EtcdLab::on(Etcd::start());
    let store = lab.open().await;
    put(&store, "a").await;
    let mut seen = picture(lab.open().await, Kind::Pool);
    until(&mut seen, "told", |p| p.len() == 1).await;
    let cursor = store.list(Kind::Pool).await.unwrap().cursor;
    foreign(lab.etcd());
    lab.etcd().compact();
    lab.etcd().kill();
    lab.etcd().restart();
    put(&store, "b").await;
    until(&mut seen, "a new record is seen", |p| p.len() == 2).await;
    // The position from before must be answered, not waited on.
    let old = match store.watch(Kind::Pool, cursor).await {
        Ok(mut changes) => changes.next().await.unwrap().map(drop),
        Err(e) => Err(e),
    };
    assert!(matches!(old, Err(StoreError::Compacted { .. })), "{old:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thirty_seconds_out_of_reach_are_noticed_and_survived() {
    let lab = EtcdLab::on(Etcd::start());
    let proxy = Proxy::to(lab.etcd().host()).await;
    let options = StoreOptions {
        url: format!("etcd://{}", proxy.host),
        ..lab.options().clone()
    };
    let outage = Outage {
        direct: lab.open().await,
        store: open(&options).await.unwrap(),
        proxy: &proxy,
        value: b"1",
        noticed: Duration::from_secs(12),
        hangs: Duration::from_secs(6),
    };
    outage
        .survive(|| {
            foreign(lab.etcd());
            lab.etcd().compact();
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_with_another_past_is_listed_anew() {
    let etcd = Etcd::start();
    let store = at(etcd.url()).await;
    let mut seen = picture(store.clone(), Kind::Pool);
    for name in ["a", "b", "c"] {
        put(&store, name).await;
    }
    foreign(&etcd);
    until(&mut seen, "told", |p| p.len() == 3).await;
    let cursor = store.list(Kind::Pool).await.unwrap().cursor;
    etcd.kill();
    // Restored from nothing at all: revisions begin anew, far below ours.
    std::fs::remove_dir_all(etcd.dir().join("data")).unwrap();
    etcd.restart();
    put(&store, "z").await;
    until(&mut seen, "the new truth", |p| {
        p.len() == 1 && p.contains_key("z")
    })
    .await;
    let old = store.watch(Kind::Pool, cursor).await.map(drop);
    assert!(matches!(old, Err(StoreError::Compacted { .. })), "{old:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opening_needs_no_etcd_and_a_dead_member_no_patience() {
    let dead = Proxy::to("127.0.0.1:1".into()).await;
    dead.freeze(true);
    let lab = EtcdLab::on(Etcd::start());
    lab.etcd().kill();
    let store = lab.open().await;
    let mut seen = picture(store.clone(), Kind::Pool);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(seen.borrow().1, 0);
    lab.etcd().restart();
    put(&store, "a").await;
    until(&mut seen, "it came through", |p| p.len() == 1).await;
    // One member refuses, one is silent, one lives.
    for _ in 0..4 {
        let options = StoreOptions {
            url: format!("etcd://127.0.0.1:1,{},{}", dead.host, lab.etcd().host()),
            ..lab.options().clone()
        };
        let store = open(&options).await.unwrap();
        let begun = Instant::now();
        assert_eq!(listed(&store, Kind::Pool).await.len(), 1);
        assert!(
            begun.elapsed() < Duration::from_secs(5),
            "{:?}",
            begun.elapsed()
        );
        let begun = Instant::now();
        assert_eq!(listed(&store, Kind::Pool).await.len(), 1);
        assert!(
            begun.elapsed() < Duration::from_secs(1),
            "it stays with who lives"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_stops_before_the_next_one_begins() {
    let etcd = Etcd::start();
    let proxy = Proxy::to(etcd.host()).await;
    let cut_off = at(format!("etcd://{}", proxy.host)).await;
    let first = cut_off.campaign("controller", "first").await.unwrap();
    let direct = at(etcd.url()).await;
    let next = tokio::spawn(async move {
        (
            direct.campaign("controller", "second").await,
            Instant::now(),
        )
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    proxy.freeze(true);
    let mut lost = first.lost.clone();
    tokio::time::timeout(PATIENCE, lost.wait_for(|lost| *lost))
        .await
        .unwrap()
        .unwrap();
    let stopped = Instant::now();
    let (second, began) = tokio::time::timeout(PATIENCE, next).await.unwrap().unwrap();
    assert!(!*second.unwrap().lost.borrow());
    assert!(stopped < began, "two leaders for {:?}", stopped - began);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_killed_is_followed_when_its_lease_runs_out() {
    let etcd = Etcd::start();
    let store = at(etcd.url()).await;
    let leader = Process::start("lead", &etcd.url(), "child");
    eventually("the child leads", async || {
        store.get(Kind::Pool, "leads").await.unwrap()
    })
    .await;
    leader.kill();
    let killed = Instant::now();
    let led = tokio::time::timeout(PATIENCE, store.campaign("controller", "us")).await;
    led.unwrap().unwrap();
    assert!(
        killed.elapsed() < Duration::from_secs(14),
        "{:?}",
        killed.elapsed()
    );
}
