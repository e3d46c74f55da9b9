//! A node: what peers need to know to reach its pods.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use super::{Extra, Kind, Record};
use crate::{Cidr, Invalid, MacAddr, NodeName};

/// What peers need to reach a node's pods. Written by that node's agent only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// IPv4 in IPv4 (RFC 2003).
    Ipip,
    /// Plain routes by the nodes' underlay addresses.
    HostGw,
}

impl Backend {
    /// The name as `--backend` takes it.
    pub fn name(&self) -> &'static str {
        match self {
            Backend::Vxlan { .. } => "vxlan",
            Backend::Ipip => "ipip",
            Backend::HostGw => "host-gw",
        }
    }
}

impl Record for Node {
    const KIND: Kind = Kind::Node;

    fn validate(&self, name: &str) -> Result<(), Invalid> {
        name.parse::<NodeName>()?;
        let refuse = |field, value: String, allowed: &str| {
            Err(Invalid::new(
                format!("node {name:?}"),
                field,
                value,
                allowed,
            ))
        };
        let v4 = self.underlay.v4.map(IpAddr::V4);
        let v6 = self.underlay.v6.map(IpAddr::V6);
        if v4.is_none() && v6.is_none() {
            return refuse("underlay", String::new(), "at least one underlay address");
        }
        // Peers would send their tunnels' packets there.
        for address in v4.into_iter().chain(v6) {
            let broadcast = address == IpAddr::V4(Ipv4Addr::BROADCAST);
            if address.is_unspecified() || address.is_multicast() || broadcast {
                return refuse(
                    "underlay",
                    address.to_string(),
                    "the unicast address at which peers reach the node",
                );
            }
        }
        if !MTU.contains(&self.mtu) {
            return refuse("mtu", self.mtu.to_string(), "576 to 65535 bytes");
        }
        match &self.backend {
            Backend::Vxlan { vni, .. } if !(1..=MAX_VNI).contains(vni) => {
                refuse("vni", vni.to_string(), "1 to 16777215")
            }
            Backend::Vxlan { port: 0, .. } => refuse("port", "0".into(), "1 to 65535"),
            Backend::Vxlan { vtep_mac, .. } if !vtep_mac.is_unicast() => refuse(
                "vtepMac",
                vtep_mac.to_string(),
                "a unicast MAC that is not all zero",
            ),
            Backend::Vxlan { .. } | Backend::Ipip | Backend::HostGw => Ok(()),
        }
    }
}

/// The MTUs that a pod can have: what every IPv4 host must take (RFC 791), and
/// what an IPv4 packet can be.
const MTU: std::ops::RangeInclusive<u32> = 576..=65535;

/// A VXLAN network identifier has 24 bits.
const MAX_VNI: u32 = 0x00ff_ffff;

#[cfg(test)]
mod tests {
    use super::*;

    fn node(change: impl Fn(&mut serde_json::Value)) -> Result<(), Invalid> {
        let mut json = serde_json::json!({
            "incarnation": "i", "underlay": {"v4": "192.0.2.5"}, "mtu": 1450,
            "backend": {"type": "vxlan", "vni": 1, "port": 8472, "vtepMac": "02:00:5e:00:53:01"},
        });
        change(&mut json);
        serde_json::from_value::<Node>(json).unwrap().validate("n")
    }

    #[test]
    fn backends_without_parameters_are_their_name_alone() {
        for (backend, text) in [
            (Backend::Ipip, r#"{"type":"ipip"}"#),
            (Backend::HostGw, r#"{"type":"host-gw"}"#),
        ] {
            assert_eq!(serde_json::to_string(&backend).unwrap(), text);
            assert_eq!(serde_json::from_str::<Backend>(text).unwrap(), backend);
            assert!(text.contains(backend.name()));
        }
    }

    #[test]
    fn what_peers_cannot_send_to_is_refused_by_field() {
        assert_eq!(node(|_| ()), Ok(()));
        for (path, value, field) in [
            ("/underlay/v4", "0.0.0.0".into(), "underlay"),
            ("/underlay/v4", "239.1.1.1".into(), "underlay"),
            ("/underlay/v4", "255.255.255.255".into(), "underlay"),
            ("/underlay/v4", serde_json::Value::Null, "underlay"),
            ("/mtu", 100.into(), "mtu"),
            ("/mtu", 70_000.into(), "mtu"),
            ("/backend/vni", 0.into(), "vni"),
            ("/backend/vni", 16_777_216.into(), "vni"),
            ("/backend/port", 0.into(), "port"),
            ("/backend/vtepMac", "01:00:5e:00:53:01".into(), "vtepMac"),
            ("/backend/vtepMac", "00:00:00:00:00:00".into(), "vtepMac"),
        ] {
            let refused = node(|json| *json.pointer_mut(path).unwrap() = value.clone());
            let error = refused.unwrap_err();
            assert_eq!(error.field, field, "{path} {value}");
            assert!(error.object.contains("\"n\""), "{error}");
        }
    }
}
