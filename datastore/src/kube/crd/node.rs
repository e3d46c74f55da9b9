//! `NodeNetwork`: what peers need to reach a node's pods, written by its agent.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::shared::{CidrText, Ipv4Text, Ipv6Text, StatusCondition, conditions};
use crate::kube::resource::{Map, Shape};

/// How a Node record is laid out as an object: all of it is the spec.
pub(in crate::kube) const SHAPE: Shape = Shape {
    kind: "NodeNetwork",
    plural: "nodenetworks",
    owned_by_node: true,
    split: |_| Map::new(),
    join: |_, _| {},
};

/// What peers need to reach a node's pods.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "viaduct.dev",
    version = "v1alpha1",
    kind = "NodeNetwork",
    plural = "nodenetworks",
    shortname = "nodenet",
    category = "viaduct",
    status = "NodeNetworkStatus",
    doc = "What peers need to reach a node's pods. Written by that node's agent only, and gone with the Node.",
    derive = "PartialEq",
    printcolumn(name = "Underlay", type_ = "string", json_path = ".spec.underlay.v4"),
    printcolumn(
        name = "Underlay6",
        type_ = "string",
        json_path = ".spec.underlay.v6",
        priority = 1
    ),
    printcolumn(name = "Backend", type_ = "string", json_path = ".spec.backend.type"),
    printcolumn(name = "MTU", type_ = "integer", json_path = ".spec.mtu"),
    printcolumn(name = "Overlay", type_ = "string", json_path = ".spec.overlay.v4"),
    printcolumn(
        name = "Overlay6",
        type_ = "string",
        json_path = ".spec.overlay.v6",
        priority = 1
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct NodeNetworkSpec {
    /// Tells two agents under one name apart; drawn anew at each boot.
    #[schemars(length(max = 253))]
    pub incarnation: String,
    /// Where tunnels to this node end.
    #[x_kube(validation = Rule::new("has(self.v4) || has(self.v6)").message("at least one underlay address is needed"))]
    pub underlay: NodeAddresses,
    /// The underlay's on-link prefixes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub underlay_networks: Vec<CidrText>,
    /// How this node carries pod traffic.
    pub backend: BackendSpec,
    /// The node's own addresses in the overlay; absent until it owns a block.
    #[serde(default)]
    pub overlay: NodeAddresses,
    /// The MTU of this node's pods in bytes.
    #[schemars(range(min = 576, max = 65535))]
    pub mtu: i32,
    /// Labels that pools select nodes by.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 256))]
    pub labels: BTreeMap<String, String>,
}

/// An address of each family.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeAddresses {
    /// IPv4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v4: Option<Ipv4Text>,
    /// IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v6: Option<Ipv6Text>,
}

/// How a node carries pod traffic, with what its peers must know of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.type != 'vxlan' || (has(self.vni) && has(self.port) && has(self.vtepMac))")
        .message("vxlan needs vni, port and vtepMac"),
)]
pub struct BackendSpec {
    /// Which.
    pub r#type: BackendType,
    /// The VXLAN network identifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16_777_215))]
    pub vni: Option<i32>,
    /// The UDP port that this node's tunnel listens on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<i32>,
    /// The MAC of this node's VTEP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^([0-9a-f]{2}:){5}[0-9a-f]{2}$"))]
    pub vtep_mac: Option<String>,
}

/// The ways in which a node can carry pod traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BackendType {
    /// VXLAN (RFC 7348).
    Vxlan,
    /// IPv4 in IPv4 (RFC 2003).
    Ipip,
    /// Plain routes by the nodes' underlay addresses.
    HostGw,
}

/// What is said of a node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeNetworkStatus {
    /// What is the matter with it, if anything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions")]
    pub conditions: Vec<StatusCondition>,
}
