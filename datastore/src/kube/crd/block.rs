//! `AddressBlock`: a piece of a pool that belongs to one node, written by the controller.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::shared::{CidrText, StatusCondition, conditions};
use crate::kube::resource::{Map, Shape};

/// How a Block record is laid out as an object: all of it is the spec. Its state is
/// there too, so that create-if-absent gives the whole block in one write.
pub(in crate::kube) const SHAPE: Shape = Shape {
    kind: "AddressBlock",
    plural: "addressblocks",
    owned_by_node: false,
    split: |_| Map::new(),
    join: |_, _| {},
};

/// A piece of a pool, and the node that it belongs to. Written by the controller: to
/// give a node another block, let it ask for one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "viaduct.dev",
    version = "v1alpha1",
    kind = "AddressBlock",
    plural = "addressblocks",
    shortname = "vblock",
    category = "viaduct",
    status = "AddressBlockStatus",
    doc = "A piece of a pool and the node that it belongs to. Written by the controller only.",
    derive = "PartialEq",
    validation = Rule::new("self.metadata.name == self.spec.cidr.replace('/', '-').replace(':', '-')")
        .message("the name of a block is its cidr, with '-' for '/' and ':'"),
    selectable = ".spec.node",
    printcolumn(name = "Node", type_ = "string", json_path = ".spec.node"),
    printcolumn(name = "State", type_ = "string", json_path = ".spec.state"),
    printcolumn(name = "CIDR", type_ = "string", json_path = ".spec.cidr"),
    printcolumn(name = "Pool", type_ = "string", json_path = ".spec.pool"),
    printcolumn(
        name = "Generation",
        type_ = "integer",
        json_path = ".spec.generation",
        priority = 1
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.node == oldSelf.node || self.generation > oldSelf.generation")
        .message("a block goes to another node by a new grant only, of a greater generation"),
    validation = Rule::new("self.generation > oldSelf.generation || (has(self.trustMs) == has(oldSelf.trustMs) && (!has(self.trustMs) || self.trustMs == oldSelf.trustMs))")
        .message("trustMs: what a grant promises is changed by a new grant only, of a greater generation"),
)]
pub struct AddressBlockSpec {
    /// The addresses.
    #[x_kube(validation = Rule::new("self == oldSelf").message("a block's cidr cannot be changed"))]
    pub cidr: CidrText,
    /// The pool that it was carved from.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("a block's pool cannot be changed"))]
    pub pool: String,
    /// The node that owns it.
    #[schemars(length(min = 1, max = 253))]
    pub node: String,
    /// Greater than that of every earlier grant of this cidr.
    #[schemars(range(min = 0))]
    #[x_kube(validation = Rule::new("self >= oldSelf").message("a block's generation only grows"))]
    pub generation: i64,
    /// Where it is in its life.
    pub state: BlockStateText,
    /// For how long, in milliseconds, the owner may hand out addresses after it last read
    /// this record as active: a promise that the controller keeps before it frees the block.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub trust_ms: Option<i64>,
}

/// Where a block is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum BlockStateText {
    /// The node hands out addresses from it.
    Active,
    /// The node gives it back.
    Releasing,
    /// The node is gone, and nobody uses it until it is free again.
    Quarantined,
}

/// What the leading controller says of a block.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AddressBlockStatus {
    /// What is the matter with it, if anything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions")]
    pub conditions: Vec<StatusCondition>,
}
