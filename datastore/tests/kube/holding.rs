//! A node's own records: whose they are, and how long they stay.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::core::Request;
use serde_json::{Value, json};
use viaduct_datastore::{HoldState, Holding, Store, StoreError, hold, open};
use viaduct_model::Kind;

use crate::api_server::ApiServer;
use crate::follower::{PATIENCE, eventually};

const TTL: Duration = Duration::from_secs(2);

fn claim(owner: &str, wants: u32) -> Vec<u8> {
    json!({
        "incarnation": owner, "host": "h", "agentVersion": "0",
        "wants": {"v4": wants, "v6": 0}, "blocks": {},
    })
    .to_string()
    .into_bytes()
}

async fn held(store: &Arc<dyn Store>, name: &str, owner: &'static str) -> Holding {
    let ours = move |value: &[u8]| {
        let record: Value = serde_json::from_slice(value).unwrap();
        record["incarnation"] == owner
    };
    let holding = hold(store.clone(), Kind::Claim, name, claim(owner, 1), ours, TTL);
    tokio::time::timeout(PATIENCE, holding)
        .await
        .unwrap()
        .unwrap()
}

/// Who holds the claim, and what it wants.
async fn standing(store: &Arc<dyn Store>, name: &str) -> Option<(String, u64)> {
    let entry = store.get(Kind::Claim, name).await.unwrap()?;
    let record: Value = serde_json::from_slice(&entry.value).unwrap();
    let owner = record["incarnation"].as_str().unwrap().to_owned();
    Some((owner, record["wants"]["v4"].as_u64().unwrap()))
}

async fn object(server: &ApiServer, path: &str, name: &str) -> Value {
    let request = Request::new(path).get(name, &Default::default());
    server
        .client()
        .await
        .request(request.unwrap())
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_claim_is_written_when_it_changes_and_stays_when_the_agent_ends() {
    let server = ApiServer::shared().await;
    server.node("hold-a").await;
    let store = open(&server.options()).await.unwrap();
    let holding = held(&store, "hold-a", "one").await;
    let first = store.get(Kind::Claim, "hold-a").await.unwrap().unwrap();
    tokio::time::sleep(TTL * 7).await;
    let later = store.get(Kind::Claim, "hold-a").await.unwrap().unwrap();
    assert_eq!(first, later, "nothing is written while nothing changes");
    assert_eq!(*holding.state.borrow(), HoldState::Held);
    holding.content.send_replace(claim("one", 2));
    eventually("new content is written", async || {
        (standing(&store, "hold-a").await?.1 == 2).then_some(())
    })
    .await;
    holding.release().await;
    assert_eq!(standing(&store, "hold-a").await, Some(("one".into(), 2)));
    // The next run on this machine takes it over at once.
    let begun = Instant::now();
    let mut next = held(&store, "hold-a", "two").await;
    assert!(begun.elapsed() < TTL, "{:?}", begun.elapsed());
    assert_eq!(standing(&store, "hold-a").await, Some(("two".into(), 1)));
    // And one that was not yet dead hears of it.
    let other = held(&store, "hold-a", "three").await;
    let taken = |s: &HoldState| matches!(s, HoldState::Taken { .. });
    let heard = tokio::time::timeout(PATIENCE, next.state.wait_for(taken));
    heard.await.unwrap().unwrap();
    assert_eq!(standing(&store, "hold-a").await, Some(("three".into(), 1)));
    drop(other);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_claim_that_was_deleted_is_written_again() {
    let server = ApiServer::shared().await;
    server.node("hold-b").await;
    let store = open(&server.options()).await.unwrap();
    let holding = held(&store, "hold-b", "one").await;
    let version = store
        .get(Kind::Claim, "hold-b")
        .await
        .unwrap()
        .unwrap()
        .version;
    store.delete(Kind::Claim, "hold-b", &version).await.unwrap();
    eventually("the claim is back", async || {
        standing(&store, "hold-b").await
    })
    .await;
    assert_eq!(*holding.state.borrow(), HoldState::Held);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nodes_records_belong_to_its_node_object() {
    let server = ApiServer::shared().await;
    let store = open(&server.options()).await.unwrap();
    assert_eq!(store.node_stands("hold-c").await.unwrap(), Some(false));
    let refused = store
        .create(Kind::Claim, "hold-c", &claim("i", 1), None)
        .await;
    let Err(StoreError::NotOurNode { name, reason }) = &refused else {
        panic!("{refused:?}");
    };
    assert!(
        name == "hold-c" && reason.contains("no Node object"),
        "{reason}"
    );
    server.node("hold-c").await;
    assert_eq!(store.node_stands("hold-c").await.unwrap(), Some(true));
    store
        .create(Kind::Claim, "hold-c", &claim("i", 1), None)
        .await
        .unwrap();
    let node = object(&server, "/api/v1/nodes", "hold-c").await;
    let claims = "/apis/viaduct.dev/v1alpha1/blockclaims";
    let owners = &object(&server, claims, "hold-c").await["metadata"]["ownerReferences"];
    assert_eq!(owners[0]["uid"], node["metadata"]["uid"]);
    assert_eq!(
        (&owners[0]["kind"], &owners[0]["name"]),
        (&json!("Node"), &json!("hold-c"))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_machine_cannot_write_a_nodes_records() {
    let server = ApiServer::shared().await;
    server.node("hold-d").await;
    let patch = kube::api::Patch::Merge(json!({"status": {"nodeInfo": {
        "bootID": "f00", "machineID": "", "systemUUID": "", "kernelVersion": "", "osImage": "",
        "containerRuntimeVersion": "", "kubeletVersion": "", "kubeProxyVersion": "",
        "operatingSystem": "", "architecture": "",
    }}}));
    let request = Request::new("/api/v1/nodes").patch_subresource(
        "status",
        "hold-d",
        &Default::default(),
        &patch,
    );
    server
        .client()
        .await
        .request::<Value>(request.unwrap())
        .await
        .unwrap();
    let store = open(&server.options()).await.unwrap();
    let refused = store
        .create(Kind::Claim, "hold-d", &claim("i", 1), None)
        .await;
    assert!(
        matches!(&refused, Err(StoreError::NotOurNode { reason, .. }) if reason.contains("f00")),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_are_no_leases_and_that_is_said() {
    let server = ApiServer::shared().await;
    let store = open(&server.options()).await.unwrap();
    let refused = store.grant_lease(TTL).await;
    assert!(
        matches!(&refused, Err(e @ StoreError::Unsupported { .. }) if e.to_string().contains("Node object")),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nodes_pod_cidrs_are_read_and_the_block_made_of_one_goes_with_the_node() {
    let server = ApiServer::shared().await;
    server.node("hold-e").await;
    let store = open(&server.options()).await.unwrap();
    assert!(store.node_cidrs("hold-e").await.unwrap().is_empty());
    assert!(store.node_cidrs("hold-nobody").await.unwrap().is_empty());
    let cidr = "10.96.7.0/24".parse().unwrap();
    store.publish_node_cidrs("hold-e", &[cidr]).await.unwrap();
    assert_eq!(store.node_cidrs("hold-e").await.unwrap(), [cidr]);
    // Once and for ever.
    let other = "10.96.8.0/24".parse().unwrap();
    assert!(store.publish_node_cidrs("hold-e", &[other]).await.is_err());
    let block =
        json!({"cidr": cidr, "pool": "p", "node": "hold-e", "generation": 1, "state": "active"});
    let name = "10.96.7.0-24";
    let value = block.to_string();
    store
        .adopt_block(name, value.as_bytes(), "hold-e")
        .await
        .unwrap();
    let node = object(&server, "/api/v1/nodes", "hold-e").await;
    let path = "/apis/viaduct.dev/v1alpha1/addressblocks";
    let owners = &object(&server, path, name).await["metadata"]["ownerReferences"];
    assert_eq!(owners[0]["uid"], node["metadata"]["uid"]);
}
