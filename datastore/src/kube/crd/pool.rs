//! `AddressPool`: a range of pod addresses, written by the user.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::shared::{CidrText, StatusCondition, conditions};
use crate::kube::resource::{Map, Shape};

/// How a Pool record is laid out as an object: its `status` is the object's.
pub(in crate::kube) const SHAPE: Shape = Shape {
    kind: "AddressPool",
    plural: "addresspools",
    owned_by_node: false,
    split,
    join,
};

fn split(record: &mut Map) -> Map {
    let mut status = match record.remove("status") {
        Some(Value::Object(status)) => status,
        _ => Map::new(),
    };
    for count in COUNTS {
        if let Some(value) = status.get_mut(count)
            && value.as_u64().is_some_and(|n| n > MOST)
        {
            *value = MOST.into();
        }
    }
    // For people. Of a pool that is too large to be counted it is not known.
    let count = |name| status.get(name).and_then(Value::as_u64);
    if let (Some(total), Some(free)) = (count("blocksTotal"), count("blocksFree"))
        && total < MOST
    {
        status.insert(USED.into(), total.saturating_sub(free).into());
    }
    status
}

fn join(record: &mut Map, mut status: Map) {
    status.remove("conditions");
    status.remove(USED);
    for count in COUNTS {
        if let Some(value) = status.get_mut(count)
            && value.as_u64() == Some(MOST)
        {
            *value = u64::MAX.into();
        }
    }
    // A status that only holds conditions says nothing of the pool's blocks.
    if status.contains_key(COUNTS[0]) {
        record.insert("status".into(), Value::Object(status));
    }
}

const COUNTS: [&str; 2] = ["blocksTotal", "blocksFree"];

/// What follows from those, and is in the object only.
const USED: &str = "blocksUsed";

/// The API server's integers are signed: what saturates in the record does so here.
const MOST: u64 = i64::MAX as u64;

/// A range of pod addresses that blocks are carved from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "viaduct.dev",
    version = "v1alpha1",
    kind = "AddressPool",
    plural = "addresspools",
    shortname = "vpool",
    category = "viaduct",
    status = "AddressPoolStatus",
    doc = "A range of pod addresses that blocks for nodes are carved from. Pools must not overlap.",
    derive = "PartialEq",
    printcolumn(name = "CIDR", type_ = "string", json_path = ".spec.cidr"),
    printcolumn(name = "Block Size", type_ = "integer", json_path = ".spec.blockSize"),
    printcolumn(name = "Blocks", type_ = "integer", json_path = ".status.blocksTotal"),
    printcolumn(name = "Used", type_ = "integer", json_path = ".status.blocksUsed"),
    printcolumn(name = "Free", type_ = "integer", json_path = ".status.blocksFree"),
    printcolumn(name = "Disabled", type_ = "boolean", json_path = ".spec.disabled"),
    printcolumn(
        name = "Exhausted",
        type_ = "date",
        json_path = ".status.exhaustedSince",
        description = "how long a node has been waiting for a block"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.blockSize) || !isCIDR(self.cidr) || self.blockSize >= cidr(self.cidr).prefixLength()")
        .message("blockSize: a block must fit into the pool"),
    validation = Rule::new("!has(self.blockSize) || !isCIDR(self.cidr) || (cidr(self.cidr).ip().family() == 4 ? self.blockSize >= 16 && self.blockSize <= 32 : self.blockSize >= 112)")
        .message("blockSize: the prefix length of a block, 16 to 32 for IPv4 and 112 to 128 for IPv6"),
    validation = Rule::new("has(self.blockSize) || !isCIDR(self.cidr) || cidr(self.cidr).prefixLength() <= (cidr(self.cidr).ip().family() == 4 ? 26 : 122)")
        .message("blockSize: blocks of the default size (26 for IPv4, 122 for IPv6) do not fit into this pool, so it must be given"),
    validation = Rule::new("!has(self.reserved) || !isCIDR(self.cidr) || self.reserved.all(r, !isCIDR(r) || cidr(self.cidr).containsCIDR(cidr(r)))")
        .message("reserved: ranges inside the pool's cidr are needed"),
)]
pub struct AddressPoolSpec {
    /// The range. Cannot be changed, and must not overlap another pool's.
    #[x_kube(
        validation = Rule::new("self == oldSelf").message("a pool's cidr cannot be changed: create another pool and disable this one"),
        validation = Rule::new("!isCIDR(self) || cidr(self).ip().isGlobalUnicast()").message("a range of unicast addresses that may be routed is needed: not loopback, link-local, multicast or unspecified"),
    )]
    pub cidr: CidrText,
    /// The prefix length of a block; 26 for IPv4 and 122 for IPv6 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 128))]
    pub block_size: Option<i32>,
    /// Labels that a node must carry to be given blocks of this pool.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub node_selector: BTreeMap<String, String>,
    /// Whether traffic that leaves the cluster is masqueraded.
    #[serde(default = "yes")]
    pub nat_outgoing: bool,
    /// No new blocks are carved while true; those given stay.
    #[serde(default)]
    pub disabled: bool,
    /// Ranges that are never handed out to a pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub reserved: Vec<CidrText>,
}

fn yes() -> bool {
    true
}

/// What the leading controller says of a pool.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AddressPoolStatus {
    /// Since when a node waits for a block that the pool does not have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub exhausted_since: Option<String>,
    /// How many blocks the pool can hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocks_total: Option<i64>,
    /// How many of them are free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocks_free: Option<i64>,
    /// How many are not: given to nodes or in quarantine. Absent where the pool is too large.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocks_used: Option<i64>,
    /// No block that was ever freed had a greater generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub generation: Option<i64>,
    /// What is the matter with it, if anything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions")]
    pub conditions: Vec<StatusCondition>,
}
