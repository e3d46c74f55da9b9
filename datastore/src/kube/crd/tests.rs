//! That the schema names every field that the model's records have, and that the files
//! in `deploy/crds` are those that the types make.

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use viaduct_model::{
    Backend, Block, BlockState, BlockUsage, Claim, Condition, Kind, Node, PerFamily, Pool,
    PoolStatus, Record,
};

use super::*;
use crate::kube::resource::Parts;

/// What is left of a record when it went through the typed resource.
fn typed<Spec, Status>(record: &impl Record) -> (Parts, Value, Value)
where
    Spec: Serialize + DeserializeOwned,
    Status: Serialize + DeserializeOwned,
{
    let kind = kind_of(record);
    let parts = Parts::of(kind, "x", &serde_json::to_vec(record).unwrap()).unwrap();
    let spec: Spec = serde_json::from_value(Value::Object(parts.spec.clone())).unwrap();
    let status: Status = serde_json::from_value(Value::Object(parts.status.clone())).unwrap();
    let (spec, status) = (json!(spec), json!(status));
    (parts, spec, status)
}

fn kind_of<T: Record>(_: &T) -> Kind {
    T::KIND
}

fn assert_whole<Spec, Status>(record: &impl Record)
where
    Spec: Serialize + DeserializeOwned,
    Status: Serialize + DeserializeOwned,
{
    let (parts, spec, status) = typed::<Spec, Status>(record);
    assert_eq!(Value::Object(parts.spec), spec);
    let absent = crate::kube::resource::dropped(&Value::Object(parts.status), &status);
    assert_eq!(absent, None);
}

#[test]
fn the_schema_names_every_field_of_a_pool() {
    let mut pool = Pool::new("10.0.0.0/16".parse().unwrap(), Some(26));
    pool.node_selector.insert("zone".into(), "a".into());
    pool.reserved.push("10.0.0.0/24".parse().unwrap());
    pool.status = Some(PoolStatus {
        exhausted_since: Some("2026-01-01T00:00:00Z".into()),
        blocks_total: u64::MAX,
        blocks_free: 1,
        generation: 7,
    });
    assert_whole::<AddressPoolSpec, AddressPoolStatus>(&pool);
}

#[test]
fn the_schema_names_every_field_and_state_of_a_block() {
    let mut block = Block::new(
        "10.0.0.0/26".parse().unwrap(),
        "p".parse().unwrap(),
        "n".parse().unwrap(),
        7,
    );
    block.trust_ms = Some(240_000);
    for state in [
        BlockState::Active,
        BlockState::Releasing,
        BlockState::Quarantined,
    ] {
        // A state that the model gets is missing here until it is in the schema.
        match state {
            BlockState::Active | BlockState::Releasing | BlockState::Quarantined => {}
        }
        block.state = state;
        assert_whole::<AddressBlockSpec, AddressBlockStatus>(&block);
    }
}

#[test]
fn the_schema_names_every_field_and_backend_of_a_node() {
    let backends = [
        Backend::Vxlan {
            vni: 1,
            port: 8472,
            vtep_mac: "02:00:5e:00:53:01".parse().unwrap(),
        },
        Backend::Ipip,
        Backend::HostGw,
    ];
    for backend in backends {
        // A backend that the model gets is missing here until it is in the schema.
        match &backend {
            Backend::Vxlan { .. } | Backend::Ipip | Backend::HostGw => {}
        }
        let node: Node = serde_json::from_value(json!({
            "incarnation": "i", "underlay": {"v4": "192.0.2.1", "v6": "2001:db8::1"},
            "underlayNetworks": ["192.0.2.0/24"], "backend": backend,
            "overlay": {"v4": "10.0.0.0", "v6": "fd00::"}, "mtu": 1450, "labels": {"a": "b"},
        }))
        .unwrap();
        assert!(node.extra.is_empty(), "{:?}", node.extra);
        assert_whole::<NodeNetworkSpec, NodeNetworkStatus>(&node);
    }
}

#[test]
fn the_schema_names_every_field_of_a_claim() {
    let usage = BlockUsage { used: 1, free: 63 };
    let claim = Claim {
        incarnation: "i".into(),
        host: "h".into(),
        agent_version: "0".into(),
        wants: PerFamily { v4: 1, v6: 2 },
        gives: [("10.0.0.0-26".to_owned(), 7)].into(),
        holds: [("10.0.0.64-26".to_owned(), 8)].into(),
        renews: [("10.0.0.128-26".to_owned(), 9)].into(),
        ended: 9,
        blocks: [("10.0.0.0-26".to_owned(), usage)].into(),
        conditions: vec![Condition {
            r#type: "Ready".into(),
            status: "True".into(),
            reason: "KernelVerified".into(),
            message: "m".into(),
            last_transition_time: "2026-01-01T00:00:00Z".into(),
        }],
        extra: Default::default(),
    };
    assert_whole::<BlockClaimSpec, BlockClaimStatus>(&claim);
}

#[test]
fn the_files_in_deploy_are_those_that_the_types_make() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/crds");
    for (name, text) in files().unwrap() {
        let there = std::fs::read_to_string(dir.join(&name)).unwrap_or_default();
        assert!(
            there == text,
            "deploy/crds/{name} is stale: cargo run -p viaduct-datastore --bin crdgen -- deploy/crds"
        );
    }
}
