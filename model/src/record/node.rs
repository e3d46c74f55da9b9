//! A node: what peers need to know to reach its pods.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use super::{Extra, Kind, Record};
use crate::{Cidr, Invalid, MacAddr, NodeName};

/// What peers need to reach a node's pods. Written by that node's agent only.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// Tells two agents under one name apart; drawn anew at each boot.
    pub incarnation: String,
    /// Where tunnels to this node end.
    pub underlay: Underlay,
    /// The underlay's on-link prefixes: who shares them is adjacent, and no pool
    /// may overlap them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub underlay_networks: Vec<Cidr>,
    /// How this node carries pod traffic.
    pub backend: Backend,
    /// The node's own addresses in the overlay; absent until it owns a block.
    #[serde(default)]
    pub overlay: Overlay,
    /// The MTU of this node's pods in bytes.
    pub mtu: u32,
    /// Labels that pools select nodes by.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Unknown fields, kept.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A node's addresses on the network that carries the tunnels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Underlay {
    /// IPv4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v4: Option<Ipv4Addr>,
    /// IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v6: Option<Ipv6Addr>,
}

/// A node's own addresses among the pods': the first of its first block.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlay {
    /// IPv4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v4: Option<Ipv4Addr>,
    /// IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v6: Option<Ipv6Addr>,
}

/// How a node carries pod traffic, with what its peers must know of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "type",
    rename_all = "kebab-case",
    rename_all_fields = "camelCase"
)]
pub enum Backend {
    /// VXLAN (RFC 7348).
    Vxlan {
        /// The VXLAN network identifier, 1 to 16777215.
        vni: u32,
        /// The UDP port that this node's VTEP listens on.
        port: u16,
        /// The MAC of this node's VTEP.
        vtep_mac: MacAddr,
    },
}

impl Backend {
    /// The name as `--backend` takes it.
    pub fn name(&self) -> &'static str {
        match self {
            Backend::Vxlan { .. } => "vxlan",
        }
    }
}

impl Record for Node {
    const KIND: Kind = Kind::Node;

    fn validate(&self, name: &str) -> Result<(), Invalid> {
        name.parse::<NodeName>()?;
        if self.underlay.v4.is_none() && self.underlay.v6.is_none() {
            return Err(Invalid::new(
                format!("node {name:?}"),
                "underlay",
                "",
                "at least one underlay address",
            ));
        }
        Ok(())
    }
}
