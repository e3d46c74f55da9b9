//! What only a server can suffer: kill -9, no answer, a lost history, another past,
//! missing permissions, a token or an authority that is replaced, too many requests.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use viaduct_datastore::{Connectivity, Cursor, Store, StoreError, StoreOptions, open};
use viaduct_model::Kind;

use crate::api_server::ApiServer;
use crate::follower::{PATIENCE, eventually, listed, picture, until};
use crate::outage::{self, Outage, list_fails_within};
use crate::proxy::Proxy;

fn pool(n: u8) -> Vec<u8> {
    json!({"cidr": format!("10.{n}.0.0/16"), "natOutgoing": true, "disabled": false})
        .to_string()
        .into_bytes()
}

/// Creates, as soon as the store lets us.
async fn put(store: &Arc<dyn Store>, name: &str) {
    outage::put(store, name, &pool(1)).await;
}

async fn first_change(store: &Arc<dyn Store>, from: Cursor) -> Result<(), StoreError> {
    use futures_util::StreamExt;
    match store.watch(Kind::Pool, from).await {
        Ok(mut changes) => {
            let first = tokio::time::timeout(PATIENCE, changes.next()).await;
            first.expect("an answer").unwrap().map(drop)
        }
        Err(e) => Err(e),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_goes_on_after_kill_9_a_lost_history_and_another_past() {
    let server = ApiServer::start().await;
    let store = open(&server.options()).await.unwrap();
    let mut seen = picture(store.clone(), Kind::Pool);
    put(&store, "a").await;
    until(&mut seen, "told", |p| p.len() == 1).await;
    let cursor = store.list(Kind::Pool).await.unwrap().cursor;
    for name in ["b", "c"] {
        server.kill();
        let begun = Instant::now();
        let down = store.get(Kind::Pool, "a").await;
        assert!(
            matches!(down, Err(StoreError::Unavailable { .. })),
            "{down:?}"
        );
        assert!(
            begun.elapsed() < Duration::from_secs(6),
            "{:?}",
            begun.elapsed()
        );
        let said = store.connectivity().borrow().clone();
        assert!(
            matches!(said, Connectivity::Disconnected { .. }),
            "{said:?}"
        );
        server.compact().await;
        server.restart().await;
        let begun = Instant::now();
        put(&store, name).await;
        until(&mut seen, "the follower sees new writes", |p| {
            p.contains_key(name)
        })
        .await;
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "{:?}",
            begun.elapsed()
        );
        assert_eq!(*store.connectivity().borrow(), Connectivity::Connected);
    }
    // The position from before is answered, not waited on.
    for old in [cursor, Cursor("nonsense".into())] {
        let told = first_change(&store, old).await;
        assert!(
            matches!(told, Err(StoreError::Compacted { .. })),
            "{told:?}"
        );
    }
    // Restored from nothing at all: not even the definitions are there.
    server.kill();
    server.forget_everything();
    server.restart().await;
    let bare = store.list(Kind::Pool).await;
    assert!(
        matches!(&bare, Err(StoreError::Refused { reason, .. }) if reason.contains("deploy/crds")),
        "{bare:?}"
    );
    assert!(matches!(
        &*store.connectivity().borrow(),
        Connectivity::Disconnected { .. }
    ));
    server.install().await;
    put(&store, "z").await;
    until(&mut seen, "the new truth", |p| {
        p.len() == 1 && p.contains_key("z")
    })
    .await;
    assert_eq!(*store.connectivity().borrow(), Connectivity::Connected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thirty_seconds_out_of_reach_are_noticed_and_survived() {
    let server = ApiServer::start().await;
    let proxy = Proxy::to(server.host()).await;
    let outage = Outage {
        direct: open(&server.options()).await.unwrap(),
        store: open(&server.options_through(&proxy.host)).await.unwrap(),
        proxy: &proxy,
        value: &pool(1),
        noticed: Duration::from_secs(20),
        hangs: Duration::from_secs(7),
    };
    outage.survive(|| {}).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_stops_before_the_next_one_begins() {
    let server = ApiServer::shared().await;
    let proxy = Proxy::to(server.host()).await;
    let cut_off = open(&server.options_through(&proxy.host)).await.unwrap();
    let first = cut_off.campaign("cut-off", "first").await.unwrap();
    let direct = open(&server.options()).await.unwrap();
    let next =
        tokio::spawn(async move { (direct.campaign("cut-off", "second").await, Instant::now()) });
    tokio::time::sleep(Duration::from_secs(5)).await;
    proxy.freeze(true);
    let frozen = Instant::now();
    let mut lost = first.lost.clone();
    let told = tokio::time::timeout(PATIENCE, lost.wait_for(|lost| *lost));
    told.await.unwrap().unwrap();
    let stopped = Instant::now();
    let (second, began) = tokio::time::timeout(PATIENCE, next).await.unwrap().unwrap();
    assert!(!*second.unwrap().lost.borrow());
    assert!(stopped < began, "two leaders for {:?}", stopped - began);
    assert!(
        began - frozen < Duration::from_secs(15),
        "{:?}",
        began - frozen
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resigning_is_told_before_it_returns() {
    let server = ApiServer::shared().await;
    let (one, two) = (
        open(&server.options()).await.unwrap(),
        open(&server.options()).await.unwrap(),
    );
    let first = one.campaign("resigns", "one").await.unwrap();
    first.resign().await;
    let begun = Instant::now();
    let second = two.campaign("resigns", "two").await.unwrap();
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
    drop(second);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_permitted_is_named_by_verb_and_resource() {
    let server = ApiServer::shared().await;
    let options = server.kubeconfig("nobody", "nobody-token", server.port());
    let store = open(&options).await.unwrap();
    let refused = store.list(Kind::Node).await;
    let Err(StoreError::Refused { reason, .. }) = &refused else {
        panic!("{refused:?}");
    };
    assert!(
        reason.contains("list") && reason.contains("nodenetworks"),
        "{reason}"
    );
    let role = |verbs: &[&str]| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "nobody"},
            "rules": [{"apiGroups": ["viaduct.dev"], "resources": ["nodenetworks", "addresspools"], "verbs": verbs}],
        })
    };
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    server
        .create(&format!("{rbac}/clusterroles"), &role(&["list", "get"]))
        .await
        .unwrap();
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "nobody"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "nobody"},
        "subjects": [{"kind": "User", "name": "nobody"}],
    });
    server
        .create(&format!("{rbac}/clusterrolebindings"), &binding)
        .await
        .unwrap();
    // What works does not hide what does not.
    eventually("pools can be listed", async || {
        store.list(Kind::Pool).await.ok()
    })
    .await;
    eventually("node networks, too", async || {
        store.list(Kind::Node).await.ok()
    })
    .await;
    assert_eq!(*store.connectivity().borrow(), Connectivity::Connected);
    let cursor = store.list(Kind::Node).await.unwrap().cursor;
    let denied = store.watch(Kind::Node, cursor).await.map(drop);
    assert!(
        matches!(&denied, Err(StoreError::Refused { .. })),
        "{denied:?}"
    );
    store.list(Kind::Pool).await.unwrap();
    let said = store.connectivity().borrow().clone();
    assert!(
        matches!(&said, Connectivity::Disconnected { reason } if reason.contains("watch")),
        "{said:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_and_an_authority_that_are_replaced_are_read_anew() {
    let server = ApiServer::shared().await;
    let options = server.kubeconfig("rotated", "worn-out", server.port());
    let store = open(&options).await.unwrap();
    let refused = store.list(Kind::Pool).await;
    assert!(
        matches!(refused, Err(StoreError::Refused { .. })),
        "{refused:?}"
    );
    std::fs::write(server.path("rotated.token"), "admin-token").unwrap();
    store.list(Kind::Pool).await.unwrap();
    // Another authority: connections that stand go on, new ones are refused until ours
    // is back.
    let config = std::fs::read_to_string(server.path("rotated.conf")).unwrap();
    let old = server.path("old-ca.pem");
    std::fs::copy(server.path("stranger.pem"), &old).unwrap();
    let stale = config.replace("ca.pem", "old-ca.pem");
    std::fs::write(server.path("rotated.conf"), &stale).unwrap();
    let store = open(&options).await.unwrap();
    let refused = store.list(Kind::Pool).await;
    assert!(
        matches!(refused, Err(StoreError::Unavailable { .. })),
        "{refused:?}"
    );
    std::fs::copy(server.path("ca.pem"), &old).unwrap();
    store.list(Kind::Pool).await.unwrap();
}

/// A server that answers each request with the next of these, after a while.
async fn scripted(answers: Vec<(Duration, &'static str)>) -> StoreOptions {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let answers = Arc::new(std::sync::Mutex::new(answers.into_iter()));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answers = answers.clone();
            tokio::spawn(async move {
                let mut request = vec![0; 16 * 1024];
                while let Ok(1..) = stream.read(&mut request).await {
                    let Some((after, answer)) = answers.lock().unwrap().next() else {
                        return;
                    };
                    tokio::time::sleep(after).await;
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    let dir = tempfile::tempdir().unwrap().keep();
    let path = dir.join("config");
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": format!("http://127.0.0.1:{port}")}}],
        "users": [{"name": "u", "user": {}}],
    });
    std::fs::write(&path, config.to_string()).unwrap();
    StoreOptions {
        url: "kube".into(),
        kubeconfig: Some(path),
        ..StoreOptions::default()
    }
}

const EMPTY: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 47\r\n\r\n\
    {\"metadata\":{\"resourceVersion\":\"7\"},\"items\":[]}";
const BUSY: &str = "HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n\
    {\"kind\":\"Status\",\"code\":429,\"message\":\"slow down, please\",\"details\":{\"retryAfterSeconds\":1}, \"x\":1}";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_server_is_asked_again_when_it_says_and_no_earlier() {
    let now = Duration::ZERO;
    let store = open(&scripted(vec![(now, BUSY), (now, EMPTY)]).await)
        .await
        .unwrap();
    let begun = Instant::now();
    let list = store.list(Kind::Pool).await.unwrap();
    assert!(list.entries.is_empty());
    assert!(
        begun.elapsed() >= Duration::from_secs(1),
        "{:?}",
        begun.elapsed()
    );
    let store = open(&scripted(vec![(now, BUSY); 50]).await).await.unwrap();
    let begun = Instant::now();
    let busy = store.list(Kind::Pool).await;
    assert!(
        matches!(&busy, Err(StoreError::Unavailable { reason, .. }) if reason.contains("slow down")),
        "{busy:?}"
    );
    assert!(
        begun.elapsed() < Duration::from_secs(7),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_answers_are_waited_for_and_endless_ones_are_not() {
    let slow = scripted(vec![(Duration::from_secs(3), EMPTY)]).await;
    let store = open(&slow).await.unwrap();
    assert!(listed(&store, Kind::Pool).await.is_empty());
    let endless = scripted(vec![(Duration::from_secs(600), EMPTY); 5]).await;
    let store = open(&endless).await.unwrap();
    list_fails_within(&store, Duration::from_secs(7)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_older_than_what_the_server_remembers_is_taken_all_the_same() {
    let server = ApiServer::start().await;
    let store = open(&server.options()).await.unwrap();
    let first = store.campaign("outage", "first").await.unwrap();
    server.kill();
    let mut lost = first.lost.clone();
    let told = tokio::time::timeout(PATIENCE, lost.wait_for(|lost| *lost));
    told.await.unwrap().unwrap();
    server.restart().await;
    // Nobody renews it while others write, and their history is forgotten.
    for name in ["a", "b", "c"] {
        put(&store, name).await;
    }
    server.compact().await;
    server.kill();
    server.restart().await;
    let begun = Instant::now();
    eventually("somebody leads", async || {
        store.campaign("outage", "second").await.ok()
    })
    .await;
    assert!(
        begun.elapsed() < Duration::from_secs(25),
        "{:?}",
        begun.elapsed()
    );
}
