//! The Node that a node's own records belong to, and what is read of it and told to it.
//!
//! The API server deletes them when their Node is deleted, by the Node's uid, so that a
//! Node that comes back under its old name starts anew. And whoever writes them must run
//! on that Node: the kernel's boot id is what tells.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::core::params::GetParams;
use serde::Deserialize;
use serde_json::{Value, json};
use viaduct_model::Cidr;

use super::fault::Fault;
use super::server::{Call, Server};
use crate::store::StoreError;

/// As much of a Node as matters here.
#[derive(Debug, Deserialize)]
struct Node {
    metadata: NodeMetadata,
    #[serde(default)]
    spec: NodeSpec,
    #[serde(default)]
    status: NodeStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NodeSpec {
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NodeMetadata {
    uid: String,
    resource_version: String,
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NodeStatus {
    node_info: NodeInfo,
    conditions: Vec<NodeCondition>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NodeCondition {
    r#type: String,
    status: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NodeInfo {
    #[serde(rename = "bootID")]
    boot_id: String,
}

async fn node(server: &Server, name: &str) -> Result<Option<Node>, Fault> {
    let request = kube::core::Request::new("/api/v1/nodes").get(name, &GetParams::default());
    match server.call(&Call::new("get", "nodes", request)?).await {
        Ok(node) => Ok(Some(node)),
        // A cluster without Nodes does not exist, so it is the object.
        Err(Fault::NoObject | Fault::NoKind) => Ok(None),
        Err(fault) => Err(fault),
    }
}

impl Node {
    /// Whether somebody said already that its pods have a network.
    fn has_network(&self) -> bool {
        let conditions = &self.status.conditions;
        conditions
            .iter()
            .any(|c| c.r#type == NETWORK_UNAVAILABLE && c.status == "False")
    }
}

/// The condition by which Kubernetes keeps pods away from a node without a network.
const NETWORK_UNAVAILABLE: &str = "NetworkUnavailable";

/// The Node's labels.
pub(super) async fn labels(
    server: &Server,
    name: &str,
) -> Result<BTreeMap<String, String>, StoreError> {
    let node = node(server, name).await.map_err(|e| server.error(e))?;
    Ok(node.map(|node| node.metadata.labels).unwrap_or_default())
}

/// The Node's pod CIDRs; none while there is no Node.
pub(super) async fn cidrs(server: &Server, name: &str) -> Result<Vec<Cidr>, StoreError> {
    let node = node(server, name).await.map_err(|e| server.error(e))?;
    let given = node.map(|node| node.spec.pod_cidrs).unwrap_or_default();
    Ok(given
        .iter()
        .map(|cidr| cidr.parse())
        .collect::<Result<_, _>>()?)
}

/// Writes the Node's pod CIDRs if nothing stands there.
pub(super) async fn publish_cidrs(
    server: &Server,
    manager: &str,
    name: &str,
    cidrs: &[Cidr],
) -> Result<(), StoreError> {
    let Some(node) = node(server, name).await.map_err(|e| server.error(e))? else {
        return Ok(());
    };
    let texts: Vec<String> = cidrs.iter().map(ToString::to_string).collect();
    // With the version that was read: somebody else may give them at this very moment.
    let patch = Patch::Merge(json!({
        "metadata": { "resourceVersion": node.metadata.resource_version },
        "spec": { "podCIDR": texts.first(), "podCIDRs": texts },
    }));
    let params = PatchParams {
        field_manager: Some(manager.to_owned()),
        ..PatchParams::default()
    };
    let written = async {
        if !node.spec.pod_cidrs.is_empty() {
            return Err(Fault::Conflict);
        }
        let request = kube::core::Request::new("/api/v1/nodes").patch(name, &params, &patch);
        let call = Call::new("patch", "nodes", request)?;
        server.call::<Value>(&call).await.map(drop)
    };
    written.await.map_err(|fault| server.error(fault))
}

/// Says on the Node that its pods have a network, unless that is said there.
pub(super) async fn announce_network(
    server: &Server,
    manager: &str,
    name: &str,
) -> Result<(), StoreError> {
    let there = node(server, name).await.map_err(|e| server.error(e))?;
    if there.is_none_or(|node| node.has_network()) {
        return Ok(());
    }
    let now = now();
    // Applied: of the Node's conditions this one is ours and no other.
    let patch = Patch::Apply(json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": name },
        "status": { "conditions": [{
            "type": NETWORK_UNAVAILABLE,
            "status": "False",
            "reason": "ViaductReady",
            "message": "the kernel is verified to be as the cluster wants it",
            "lastHeartbeatTime": now,
            "lastTransitionTime": now,
        }] },
    }));
    let params = PatchParams::apply(manager).force();
    let request = kube::core::Request::new("/api/v1/nodes")
        .patch_subresource("status", name, &params, &patch);
    let told = async {
        let call = Call::new("patch", "nodes/status", request)?;
        server.call::<Value>(&call).await.map(drop)
    };
    match told.await {
        Ok(()) | Err(Fault::NoObject) => Ok(()),
        Err(fault) => Err(server.error(fault)),
    }
}

/// The time for people, as the API server takes it.
pub(super) fn now() -> String {
    format!("{:.0}", Timestamp::now())
}

/// Whether the Node object stands.
pub(super) async fn stands(server: &Server, name: &str) -> Result<bool, StoreError> {
    let node = node(server, name).await.map_err(|e| server.error(e))?;
    Ok(node.is_some())
}

/// The owner reference for the records of the node `name`, as a list of one.
pub(super) async fn references(server: &Server, name: &str) -> Result<Value, StoreError> {
    let node = node(server, name).await.map_err(|e| server.error(e))?;
    let refuse = |reason: String| StoreError::NotOurNode {
        name: name.to_owned(),
        reason,
    };
    let Some(node) = node else {
        return Err(refuse("there is no Node object of that name".into()));
    };
    let its = &node.status.node_info.boot_id;
    if let Some(ours) = boot_id()
        && !its.is_empty()
        && *its != ours
    {
        return Err(refuse(format!(
            "its Node object is of another machine or an earlier boot (boot id {its}, here {ours})"
        )));
    }
    Ok(json!([{
        "apiVersion": "v1",
        "kind": "Node",
        "name": name,
        "uid": node.metadata.uid,
    }]))
}

/// The running kernel's own id; a kubelet tells the same of its Node.
fn boot_id() -> Option<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(text.trim().to_owned())
}
