//! `BlockClaim`: what a node asks of the controller, and how it fares, written by its
//! agent.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::shared::{StatusCondition, conditions};
use crate::kube::resource::{Map, Shape};

/// How a Claim record is laid out as an object: what it asks for is the spec, how it
/// fares (counts, conditions) the status, with sums for `kubectl get`.
pub(in crate::kube) const SHAPE: Shape = Shape {
    kind: "BlockClaim",
    plural: "blockclaims",
    owned_by_node: true,
    split,
    join,
};

/// The record's fields that are in the status.
const FIELDS: [&str; 2] = ["blocks", "conditions"];

fn split(record: &mut Map) -> Map {
    let mut status: Map = FIELDS
        .iter()
        .filter_map(|&field| Some((field.to_owned(), record.remove(field)?)))
        .collect();
    let blocks = status.get("blocks").and_then(Value::as_object);
    let owned = blocks.map_or(0, Map::len);
    let sum = |field: &str| -> u64 {
        let counts = blocks.into_iter().flat_map(Map::values);
        counts.filter_map(|usage| usage.get(field)?.as_u64()).sum()
    };
    let (used, free) = (sum("used"), sum("free"));
    status.insert("owned".into(), owned.into());
    status.insert("usage".into(), format!("{used}/{free}").into());
    status
}

fn join(record: &mut Map, mut status: Map) {
    for field in FIELDS {
        if let Some(value) = status.remove(field) {
            record.insert(field.into(), value);
        }
    }
}

/// What a node asks of the controller.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "viaduct.dev",
    version = "v1alpha1",
    kind = "BlockClaim",
    plural = "blockclaims",
    shortname = "vclaim",
    category = "viaduct",
    status = "BlockClaimStatus",
    doc = "What a node asks of the controller, and how it fares. Written by that node's agent only, and gone with the Node.",
    derive = "PartialEq",
    printcolumn(name = "Blocks", type_ = "integer", json_path = ".status.owned"),
    printcolumn(name = "Used/Free", type_ = "string", json_path = ".status.usage"),
    printcolumn(name = "Wanted", type_ = "integer", json_path = ".spec.wants.v4"),
    printcolumn(
        name = "Wanted6",
        type_ = "integer",
        json_path = ".spec.wants.v6",
        priority = 1
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(name = "Version", type_ = "string", json_path = ".spec.agentVersion"),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct BlockClaimSpec {
    /// The incarnation of the agent that writes it.
    #[schemars(length(max = 253))]
    pub incarnation: String,
    /// Where that agent runs: the machine's host name.
    #[schemars(length(max = 253))]
    pub host: String,
    /// The agent's release.
    #[schemars(length(max = 253))]
    pub agent_version: String,
    /// How many blocks the node wants to own.
    pub wants: WantedBlocks,
    /// Blocks that the node gives back, by name, each with the generation of the grant.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 1024))]
    pub gives: BTreeMap<String, i64>,
    /// Blocks that the node holds, by name, each with the generation of the grant: its proof
    /// where the records have been lost.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 65536))]
    pub holds: BTreeMap<String, i64>,
    /// Blocks that the node was cut off from for too long, by name, each with the generation
    /// of the grant that is to be made anew.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 65536))]
    pub renews: BTreeMap<String, i64>,
    /// The greatest generation of a grant of this node that is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub ended: Option<i64>,
}

/// A count for each address family.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WantedBlocks {
    /// IPv4.
    #[serde(default)]
    #[schemars(range(min = 0, max = 65536))]
    pub v4: i32,
    /// IPv6.
    #[serde(default)]
    #[schemars(range(min = 0, max = 65536))]
    pub v6: i32,
}

/// How a node fares.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BlockClaimStatus {
    /// Addresses in use and free, for each block by its name.
    #[serde(default)]
    pub blocks: BTreeMap<String, BlockUsageStatus>,
    /// How many blocks that is.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub owned: i32,
    /// Addresses in use and free in all of them, for people: "12/114".
    #[serde(default)]
    pub usage: String,
    /// What is the matter with the node, if anything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions")]
    pub conditions: Vec<StatusCondition>,
}

/// How many addresses of a block are in use and free.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BlockUsageStatus {
    /// In use by pods.
    #[schemars(range(min = 0))]
    pub used: i32,
    /// Free, cooling ones included.
    #[schemars(range(min = 0))]
    pub free: i32,
}
