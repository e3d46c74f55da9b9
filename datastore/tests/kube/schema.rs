//! What the API server takes and what it refuses, by the definitions alone, and what the
//! store makes of it.

use std::sync::Arc;

use kube::core::Request;
use serde_json::{Value, json};
use viaduct_datastore::{Records, StoreError, open};
use viaduct_model::{Block, Claim, Kind, Pool};

use crate::api_server::ApiServer;

fn object(kind: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "viaduct.dev/v1alpha1", "kind": kind,
        "metadata": {"name": name}, "spec": spec,
    })
}

fn path(kind: &str) -> String {
    format!("/apis/viaduct.dev/v1alpha1/{}s", kind.to_lowercase())
}

/// Creates an object; what the API server says against it.
async fn refused(server: &ApiServer, kind: &str, name: &str, spec: Value) -> Option<String> {
    let created = server
        .create(&path(kind), &object(kind, name, &spec))
        .await
        .map(drop);
    match created {
        Ok(()) => None,
        Err(kube::Error::Api(status)) => Some(status.message),
        Err(e) => panic!("{e}"),
    }
}

/// Replaces fields of an object; what the API server says against it.
async fn unchangeable(server: &ApiServer, kind: &str, name: &str, spec: Value) -> Option<String> {
    let patch = kube::api::Patch::Merge(json!({ "spec": spec }));
    let request = Request::new(path(kind)).patch(name, &Default::default(), &patch);
    match server
        .client()
        .await
        .request::<Value>(request.unwrap())
        .await
    {
        Ok(_) => None,
        Err(kube::Error::Api(status)) => Some(status.message),
        Err(e) => panic!("{e}"),
    }
}

async fn stored(server: &ApiServer, kind: &str, name: &str) -> Value {
    let request = Request::new(path(kind)).get(name, &Default::default());
    server
        .client()
        .await
        .request(request.unwrap())
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pools_that_cannot_be_are_refused_by_the_api_server() {
    let server = ApiServer::shared().await;
    let good = [
        json!({"cidr": "10.64.0.0/16"}),
        json!({"cidr": "10.64.0.0/26", "blockSize": 26, "reserved": ["10.64.0.0/30"]}),
        json!({"cidr": "fd00:64::/48", "blockSize": 122, "natOutgoing": false}),
        json!({"cidr": "fd00:64::/112", "blockSize": 112}),
    ];
    for (n, spec) in good.into_iter().enumerate() {
        let name = format!("schema-good-{n}");
        assert_eq!(refused(&server, "AddressPool", &name, spec).await, None);
    }
    for (spec, says) in [
        (
            json!({"cidr": "10.64.0.0"}),
            "a prefix whose host bits are zero",
        ),
        (
            json!({"cidr": "10.64.0.1/16"}),
            "a prefix whose host bits are zero",
        ),
        (
            json!({"cidr": "10.64.0.0/33"}),
            "a prefix whose host bits are zero",
        ),
        (json!({"cidr": "127.0.0.0/16"}), "unicast addresses"),
        (
            json!({"cidr": "ff02::/64", "blockSize": 122}),
            "unicast addresses",
        ),
        (
            json!({"cidr": "10.64.0.0/24", "blockSize": 16}),
            "must fit into the pool",
        ),
        (
            json!({"cidr": "10.0.0.0/8", "blockSize": 12}),
            "16 to 32 for IPv4",
        ),
        (
            json!({"cidr": "10.0.0.0/16", "blockSize": 64}),
            "16 to 32 for IPv4",
        ),
        (
            json!({"cidr": "fd00::/48", "blockSize": 64}),
            "112 to 128 for IPv6",
        ),
        (json!({"cidr": "10.0.0.0/27"}), "so it must be given"),
        (
            json!({"cidr": "10.0.0.0/16", "reserved": ["10.1.0.0/24"]}),
            "inside the pool's cidr",
        ),
        (
            json!({"cidr": "10.0.0.0/16", "reserved": ["x"]}),
            "a prefix whose host bits are zero",
        ),
        (json!({}), "spec.cidr"),
    ] {
        let shown = spec.to_string();
        let said = refused(&server, "AddressPool", "schema-bad", spec).await;
        assert!(
            said.as_ref().is_some_and(|s| s.contains(says)),
            "{shown}: {said:?}"
        );
    }
    let said = unchangeable(
        &server,
        "AddressPool",
        "schema-good-0",
        json!({"cidr": "10.65.0.0/16"}),
    )
    .await;
    assert!(said.is_some_and(|s| s.contains("cannot be changed")));
    let fine = unchangeable(
        &server,
        "AddressPool",
        "schema-good-0",
        json!({"disabled": true}),
    )
    .await;
    assert_eq!(fine, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocks_are_named_by_their_cidr_and_change_hands_by_a_new_grant_only() {
    let server = ApiServer::shared().await;
    let spec = |cidr: &str| json!({"cidr": cidr, "pool": "p", "node": "a", "generation": 1, "state": "active"});
    for (name, cidr) in [
        ("10.99.0.0-26", "10.99.0.0/26"),
        ("fd00-99---122", "fd00:99::/122"),
    ] {
        assert_eq!(
            refused(&server, "AddressBlock", name, spec(cidr)).await,
            None
        );
    }
    let said = refused(
        &server,
        "AddressBlock",
        "10.99.0.64-26",
        spec("10.99.0.0/26"),
    )
    .await;
    assert!(said.is_some_and(|s| s.contains("the name of a block is its cidr")));
    let change = async |fields| unchangeable(&server, "AddressBlock", "10.99.0.0-26", fields).await;
    for fields in [
        json!({"cidr": "10.98.0.0/26"}),
        json!({"pool": "q"}),
        json!({"node": "b"}),
        json!({"trustMs": 5}),
        json!({"generation": 0}),
        json!({"state": "free"}),
        json!({"cidr": "10.98.0.0/26", "generation": 2}),
    ] {
        assert!(change(fields.clone()).await.is_some(), "{fields}");
    }
    assert_eq!(change(json!({"state": "releasing"})).await, None);
    let granted = json!({"node": "b", "generation": 2, "trustMs": 5});
    assert_eq!(change(granted).await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_networks_that_no_peer_could_use_are_refused() {
    let server = ApiServer::shared().await;
    let good = json!({
        "incarnation": "i", "underlay": {"v4": "192.0.2.1"}, "mtu": 1450, "underlayNetworks": ["192.0.2.0/24"],
        "backend": {"type": "vxlan", "vni": 1, "port": 8472, "vtepMac": "02:00:5e:00:53:01"},
    });
    assert_eq!(
        refused(&server, "NodeNetwork", "schema-a", good.clone()).await,
        None
    );
    for (pointer, value, says) in [
        ("/underlay", json!({}), "at least one underlay address"),
        ("/underlay/v4", json!("2001:db8::1"), "an IPv4 address"),
        ("/underlay/v4", json!("192.0.2.1000"), "spec.underlay.v4"),
        (
            "/underlayNetworks/0",
            json!("192.0.2.1/24"),
            "host bits are zero",
        ),
        ("/mtu", json!(68), "576"),
        ("/backend/type", json!("gre"), "Unsupported value"),
        ("/backend/vtepMac", json!("x"), "vtepMac"),
        ("/backend", json!({"type": "vxlan"}), "vxlan needs"),
    ] {
        let mut spec = good.clone();
        *spec.pointer_mut(pointer).unwrap() = value;
        let said = refused(&server, "NodeNetwork", "schema-b", spec).await;
        assert!(
            said.as_ref().is_some_and(|s| s.contains(says)),
            "{pointer}: {said:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_field_that_the_definitions_do_not_name_is_no_silent_loss() {
    let server = ApiServer::shared().await;
    let store = open(&server.options()).await.unwrap();
    let value = br#"{"cidr":"10.77.0.0/16","natOutgoing":true,"disabled":false,"colour":"red"}"#;
    let refused = store.create(Kind::Pool, "schema-newer", value, None).await;
    let Err(StoreError::Refused { reason, .. }) = refused else {
        panic!("{refused:?}");
    };
    assert!(
        reason.contains("spec.colour") && reason.contains("deploy/crds"),
        "{reason}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_leaves_what_others_wrote_beside_the_record() {
    let server = ApiServer::shared().await;
    let records = Records::new(open(&server.options()).await.unwrap());
    let mut pool = Pool::new("10.78.0.0/16".parse().unwrap(), Some(26));
    records
        .create("schema-labelled", &pool, None)
        .await
        .unwrap();
    let patch = kube::api::Patch::Merge(json!({"metadata": {"labels": {"team": "a"}}}));
    let request =
        Request::new(path("AddressPool")).patch("schema-labelled", &Default::default(), &patch);
    server
        .client()
        .await
        .request::<Value>(request.unwrap())
        .await
        .unwrap();
    let there = records
        .get::<Pool>("schema-labelled")
        .await
        .unwrap()
        .unwrap();
    pool.disabled = true;
    pool.status = Some(viaduct_model::PoolStatus {
        exhausted_since: Some("2026-01-01T00:00:00Z".into()),
        blocks_total: u64::MAX,
        blocks_free: 3,
        generation: 4,
    });
    let version = records
        .update("schema-labelled", &pool, &there.version, None)
        .await
        .unwrap();
    let object = stored(&server, "AddressPool", "schema-labelled").await;
    assert_eq!(object["metadata"]["labels"]["team"], "a");
    assert_eq!(
        (&object["spec"]["disabled"], &object["status"]["blocksFree"]),
        (&json!(true), &json!(3))
    );
    assert_eq!(object["status"]["generation"], json!(4));
    // Writing what stands already writes nothing.
    let again = records
        .update("schema-labelled", &pool, &version, None)
        .await
        .unwrap();
    assert_eq!(again, version);
    // What the status no longer says is gone.
    let status = pool.status.as_mut().unwrap();
    (status.exhausted_since, status.blocks_total) = (None, 8);
    records
        .update("schema-labelled", &pool, &version, None)
        .await
        .unwrap();
    let object = stored(&server, "AddressPool", "schema-labelled").await;
    assert_eq!(object["status"]["blocksUsed"], json!(5));
    let read = records
        .get::<Pool>("schema-labelled")
        .await
        .unwrap()
        .unwrap();
    assert_eq!(read.record, pool);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_goes_to_one_of_many_that_reach_for_it() {
    let server = ApiServer::shared().await;
    let mut tasks = Vec::new();
    for n in 0..8 {
        let records = Records::new(open(&server.options()).await.unwrap());
        tasks.push(tokio::spawn(async move {
            let node = format!("node-{n}").parse().unwrap();
            let block = Block::new(
                "10.97.0.0/26".parse().unwrap(),
                "p".parse().unwrap(),
                node,
                1,
            );
            records.create("10.97.0.0-26", &block, None).await
        }));
    }
    let mut won = 0;
    for task in tasks {
        match task.await.unwrap() {
            Ok(_) => won += 1,
            Err(StoreError::AlreadyExists { .. }) => {}
            Err(e) => panic!("{e}"),
        }
    }
    assert_eq!(won, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claims_columns_are_filled() {
    let server: Arc<ApiServer> = ApiServer::shared().await;
    server.node("schema-claim").await;
    let records = Records::new(open(&server.options()).await.unwrap());
    let mut claim: Claim = serde_json::from_value(json!({
        "incarnation": "i", "host": "h", "agentVersion": "0.1.0", "wants": {"v4": 2, "v6": 0},
        "blocks": {"10.0.0.0-26": {"used": 12, "free": 51}, "10.0.0.64-26": {"used": 0, "free": 64}},
        "conditions": [{"type": "Ready", "status": "True", "reason": "KernelVerified", "message": "m",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}],
    }))
    .unwrap();
    let version = records.create("schema-claim", &claim, None).await.unwrap();
    let object = stored(&server, "BlockClaim", "schema-claim").await;
    assert_eq!(object["status"]["owned"], 2);
    assert_eq!(object["status"]["usage"], "12/115");
    claim.blocks.pop_last();
    claim.conditions.clear();
    let version = records
        .update("schema-claim", &claim, &version, None)
        .await
        .unwrap();
    let read = records.get::<Claim>("schema-claim").await.unwrap().unwrap();
    assert_eq!((read.record, read.version), (claim, version));
}
