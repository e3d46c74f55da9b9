//! The Node that a node's own records belong to.
//!
//! The API server deletes them when their Node is deleted, by the Node's uid, so that a
//! Node that comes back under its old name starts anew. And whoever writes them must run
//! on that Node: the kernel's boot id is what tells.

use kube::core::params::GetParams;
use serde::Deserialize;
use serde_json::{Value, json};

use super::fault::Fault;
use super::server::{Call, Server};
use crate::store::StoreError;

/// As much of a Node as matters here.
#[derive(Debug, Deserialize)]
struct Node {
    metadata: super::resource::Metadata,
    #[serde(default)]
    status: NodeStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NodeStatus {
    node_info: NodeInfo,
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
