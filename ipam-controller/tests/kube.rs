//! Two controllers on a real API server: one leads; takeover after kill -9, after a clean
//! stop, and from a leader that was only paused and then goes on.
//!
//! Needs `VIADUCT_KUBE_BINS`, as the datastore's own suite does: `make test-kube-store`.

// No library: nothing here is reachable from outside, and a failure is a panic.
#![allow(unreachable_pub, clippy::unwrap_used)]

#[allow(dead_code, reason = "the datastore's suite needs more of it")]
#[path = "../../datastore/tests/kube/api_server.rs"]
mod api_server;

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use api_server::ApiServer;
use kube::core::Request;
use serde_json::{Value, json};
use viaduct_datastore::{Records, StoreOptions, open};
use viaduct_model::{Block, Claim, Node};

/// A controller, killed when it is dropped.
struct Controller(Child);

impl Controller {
    fn start(options: &StoreOptions, pool: &str) -> Self {
        Self::start_with(options, pool, "off")
    }

    fn start_with(options: &StoreOptions, pool: &str, node_cidrs: &str) -> Self {
        let kubeconfig = options.kubeconfig.as_ref().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_viaduct-controller"))
            .args(["--datastore", "kube", "--quarantine", "2s"])
            .args(["--http", "127.0.0.1:0", "--kubeconfig"])
            .arg(kubeconfig)
            .args(["--pool", pool, "--node-cidrs", node_cidrs])
            .stdin(Stdio::null())
            .spawn();
        Self(child.unwrap())
    }

    fn signal(&self, name: &str) {
        let pid = self.0.id().to_string();
        let sent = Command::new("kill").args([name, &pid]).status().unwrap();
        assert!(sent.success());
    }

    /// Whether the Lease says that it leads.
    fn leads(&self, holder: &str) -> bool {
        holder.contains(&format!("-{}-", self.0.id()))
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn holder(server: &ApiServer) -> String {
    let path = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases";
    let request = Request::new(path).get("viaduct-controller", &Default::default());
    let lease: Result<Value, _> = server.client().await.request(request.unwrap()).await;
    let lease = lease.unwrap_or_default();
    lease["spec"]["holderIdentity"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// Waits until it is so; how long that took.
async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !is_so().await {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "{what}: not within a minute"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    begun.elapsed()
}

/// Nodes that want a block each.
async fn nodes(server: &ApiServer, records: &Records, numbers: std::ops::Range<usize>) {
    for n in numbers {
        let name = format!("n{n}");
        server.node(&name).await;
        let node: Node = serde_json::from_value(json!({
            "incarnation": "i", "underlay": {"v4": "192.0.2.1"}, "backend": {"type": "ipip"}, "mtu": 1480,
        }))
        .unwrap();
        records.create(&name, &node, None).await.unwrap();
        let claim: Claim = serde_json::from_value(json!({
            "incarnation": "i", "host": "h", "agentVersion": "0", "wants": {"v4": 1, "v6": 0},
        }))
        .unwrap();
        records.create(&name, &claim, None).await.unwrap();
    }
}

/// How many blocks each node has.
async fn owned(records: &Records) -> BTreeMap<String, usize> {
    let mut owned = BTreeMap::new();
    for block in records.list::<Block>().await.unwrap().0 {
        *owned.entry(block.record.node.to_string()).or_default() += 1;
    }
    owned
}

async fn served(records: &Records, nodes: usize) -> Duration {
    until("every node has a block", async || {
        owned(records).await.len() == nodes
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_is_followed_and_a_deposed_one_does_no_harm() {
    let server = ApiServer::start().await;
    let records = Records::new(open(&server.options()).await.unwrap());
    let first = Controller::start(&server.options(), "10.64.0.0/16");
    until("the first leads", async || {
        first.leads(&holder(&server).await)
    })
    .await;
    let second = Controller::start(&server.options(), "10.64.0.0/16");
    nodes(&server, &records, 0..10).await;
    served(&records, 10).await;
    // Paused, as by a hypervisor: it does not know that its time runs out.
    first.signal("-STOP");
    let took = until("the second leads", async || {
        second.leads(&holder(&server).await)
    })
    .await;
    assert!(took < Duration::from_secs(15), "takeover after {took:?}");
    nodes(&server, &records, 10..20).await;
    served(&records, 20).await;
    // More for both to do at the very moment when it goes on.
    let wishes = nodes(&server, &records, 20..40);
    let goes_on = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        first.signal("-CONT");
    };
    tokio::join!(wishes, goes_on);
    served(&records, 40).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let owned = owned(&records).await;
    assert!(owned.values().all(|blocks| *blocks == 1), "{owned:?}");
    assert!(second.leads(&holder(&server).await));
    // kill -9: the one that was deposed stands by and leads again.
    drop(second);
    let took = until("the first leads again", async || {
        first.leads(&holder(&server).await)
    })
    .await;
    assert!(took < Duration::from_secs(15), "takeover after {took:?}");
    // A clean stop hands over at once.
    let third = Controller::start(&server.options(), "10.64.0.0/16");
    tokio::time::sleep(Duration::from_secs(3)).await;
    first.signal("-TERM");
    let took = until("the third leads", async || {
        third.leads(&holder(&server).await)
    })
    .await;
    assert!(took < Duration::from_secs(2), "handed over after {took:?}");
}

/// The reasons of all events, with the name of what they are about.
async fn events(server: &ApiServer) -> Vec<String> {
    let path = "/apis/events.k8s.io/v1/namespaces/default/events";
    let request = Request::new(path).list(&Default::default());
    let list: Value = server
        .client()
        .await
        .request(request.unwrap())
        .await
        .unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let about = |event: &Value| {
        let (reason, object) = (text(&event["reason"]), &event["regarding"]);
        format!(
            "{reason} {} {}",
            text(&object["kind"]),
            text(&object["name"])
        )
    };
    list["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(about)
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocks_go_with_their_node_object_and_events_tell() {
    let server = ApiServer::start().await;
    let records = Records::new(open(&server.options()).await.unwrap());
    let _controller = Controller::start(&server.options(), "10.64.0.0/26");
    nodes(&server, &records, 0..2).await;
    served(&records, 1).await;
    until("the full pool is told of", async || {
        let told = events(&server).await;
        told.contains(&"PoolExhausted AddressPool default".to_owned())
            && told
                .iter()
                .any(|e| e.starts_with("PoolExhausted BlockClaim n"))
    })
    .await;
    let owner = owned(&records).await.into_keys().next().unwrap();
    // Its records are deleted by hand while the Node stands: nothing is freed.
    for kind in ["blockclaims", "nodenetworks"] {
        delete(
            &server,
            &format!("/apis/viaduct.dev/v1alpha1/{kind}"),
            &owner,
        )
        .await;
    }
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(owned(&records).await.contains_key(&owner));
    // The Node goes: its block is quarantined, then the other's.
    delete(&server, "/api/v1/nodes", &owner).await;
    until("the other node has the block", async || {
        let owned = owned(&records).await;
        owned.len() == 1 && !owned.contains_key(&owner)
    })
    .await;
    let told = events(&server).await;
    assert!(
        told.contains(&"Quarantined AddressBlock 10.64.0.0-26".to_owned()),
        "{told:?}"
    );
}

/// The reason of the condition Valid on a block, if it is there.
async fn wrong(server: &ApiServer, plural: &str, name: &str) -> Option<String> {
    let path = format!("/apis/viaduct.dev/v1alpha1/{plural}");
    let request = Request::new(path).get(name, &Default::default());
    let object: Result<Value, _> = server.client().await.request(request.unwrap()).await;
    let conditions = object.ok()?["status"]["conditions"].clone();
    let valid = conditions
        .as_array()?
        .iter()
        .find(|c| c["type"] == "Valid")?;
    assert_eq!(valid["status"], "False");
    valid["reason"].as_str().map(str::to_owned)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocks_and_pools_written_wrongly_by_hand_are_marked_and_told_of() {
    let server = ApiServer::start().await;
    let records = Records::new(open(&server.options()).await.unwrap());
    let controller = Controller::start(&server.options(), "10.64.0.0/24");
    nodes(&server, &records, 0..1).await;
    served(&records, 1).await;
    let create = async |kind: &str, name: &str, spec: Value| {
        let path = format!("/apis/viaduct.dev/v1alpha1/{}s", kind.to_lowercase());
        let object = json!({"apiVersion": "viaduct.dev/v1alpha1", "kind": kind,
            "metadata": {"name": name}, "spec": spec});
        drop(server.create(&path, &object).await.unwrap());
    };
    let block = |cidr: &str| json!({"cidr": cidr, "pool": "default", "node": "n0", "generation": 1, "state": "active"});
    create("AddressBlock", "10.64.0.0-28", block("10.64.0.0/28")).await;
    create("AddressBlock", "192.0.2.0-26", block("192.0.2.0/26")).await;
    create("AddressPool", "inner", json!({"cidr": "10.64.0.128/25"})).await;
    let marked = async || {
        [
            wrong(&server, "addressblocks", "10.64.0.0-28").await,
            wrong(&server, "addressblocks", "192.0.2.0-26").await,
            wrong(&server, "addressblocks", "10.64.0.0-26").await,
            wrong(&server, "addresspools", "inner").await,
            wrong(&server, "addresspools", "default").await,
        ]
    };
    let expected = [
        Some("Overlaps".to_owned()),
        Some("OutsidePool".to_owned()),
        None,
        Some("Overlaps".to_owned()),
        None,
    ];
    until("all are marked", async || marked().await == expected).await;
    let conflicts = async || {
        let told = events(&server).await;
        told.into_iter()
            .filter(|e| e.starts_with("Conflict"))
            .count()
    };
    until("all are told of", async || conflicts().await == 3).await;
    // Another leader says nothing again, and takes back what is over.
    drop(controller);
    let _controller = Controller::start(&server.options(), "10.64.0.0/24");
    delete(
        &server,
        "/apis/viaduct.dev/v1alpha1/addresspools",
        "default",
    )
    .await;
    until("the mark is gone", async || {
        wrong(&server, "addresspools", "inner").await.is_none()
    })
    .await;
    assert_eq!(conflicts().await, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_blocks_are_published_as_pod_cidrs_and_foreign_ones_are_never_fought() {
    let server = ApiServer::start().await;
    let records = Records::new(open(&server.options()).await.unwrap());
    nodes(&server, &records, 0..2).await;
    // Somebody else has given this one its pod CIDR.
    let foreign = json!({"spec": {"podCIDR": "10.99.1.0/24", "podCIDRs": ["10.99.1.0/24"]}});
    let patch = kube::api::Patch::Merge(foreign);
    let request = Request::new("/api/v1/nodes").patch("n1", &Default::default(), &patch);
    let patched: Result<Value, _> = server.client().await.request(request.unwrap()).await;
    drop(patched.unwrap());
    let _controller = Controller::start_with(&server.options(), "10.64.0.0/24", "publish");
    served(&records, 2).await;
    let given = async |node: &str| {
        let request = Request::new("/api/v1/nodes").get(node, &Default::default());
        let node: Value = server
            .client()
            .await
            .request(request.unwrap())
            .await
            .unwrap();
        node["spec"]["podCIDRs"].clone()
    };
    until("the first is published", async || {
        given("n0").await == json!(["10.64.0.0/26"])
    })
    .await;
    until("the other's block tells of the conflict", async || {
        wrong(&server, "addressblocks", "10.64.0.64-26").await == Some("NodeCIDRs".to_owned())
    })
    .await;
    assert_eq!(given("n1").await, json!(["10.99.1.0/24"]));
    assert_eq!(wrong(&server, "addressblocks", "10.64.0.0-26").await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_installation_stands_aside_until_the_first_is_gone() {
    let server = ApiServer::start().await;
    let first = Controller::start(&server.options(), "10.64.0.0/16");
    until("the first leads", async || {
        first.leads(&holder(&server).await)
    })
    .await;
    // The same cluster, from another namespace.
    let path = server.options().kubeconfig.unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let mut conf: Value = serde_json::from_str(&text).unwrap();
    conf["contexts"][0]["context"]["namespace"] = json!("default");
    let other = path.with_file_name("second.conf");
    std::fs::write(&other, conf.to_string()).unwrap();
    let mut options = server.options();
    options.kubeconfig = Some(other);
    let store = open(&options).await.unwrap();
    let refused = store.campaign("controller", "second").await.unwrap_err();
    let sentence = refused.to_string();
    assert!(
        sentence.contains("\"kube-system\"") && sentence.contains("uninstall one of the two"),
        "{sentence}"
    );
    drop(first);
    let begun = Instant::now();
    let leadership = store.campaign("controller", "second").await.unwrap();
    assert!(
        begun.elapsed() < Duration::from_secs(15),
        "{:?}",
        begun.elapsed()
    );
    leadership.resign().await;
}

async fn delete(server: &ApiServer, path: &str, name: &str) {
    let request = Request::new(path).delete(name, &Default::default());
    let deleted: Value = server
        .client()
        .await
        .request(request.unwrap())
        .await
        .unwrap();
    drop(deleted);
}
