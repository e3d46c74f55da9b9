//! The result of ADD, as each version of the specification writes it.

use std::fmt::Write as _;
use std::net::IpAddr;

use serde::Serialize;
use serde_json::Value;

use crate::protocol::Wired;
use crate::version::CniVersion;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AddResult<'a> {
    cni_version: CniVersion,
    interfaces: [Interface<'a>; 2],
    ips: Vec<Ip>,
    routes: Vec<Route>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dns: Option<&'a Value>,
}

#[derive(Serialize)]
struct Interface<'a> {
    name: &'a str,
    mac: String,
    /// Since 1.1.0.
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sandbox: Option<&'a str>,
}

#[derive(Serialize)]
struct Ip {
    /// Until 0.4.0.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'static str>,
    address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway: Option<IpAddr>,
    interface: u32,
}

#[derive(Serialize)]
struct Route {
    dst: &'static str,
    gw: IpAddr,
}

/// Prints the result of an ADD in the configuration's version.
///
/// The host end comes first, as the specification's examples have it; addresses
/// point at the second interface, the pod's.
///
/// # Errors
/// Only when the DNS settings cannot be printed.
pub fn add_result(
    version: CniVersion,
    wired: &Wired,
    ifname: &str,
    netns: &str,
    dns: Option<&Value>,
) -> Result<String, serde_json::Error> {
    let mtu = (version >= CniVersion::V1_1_0).then_some(wired.mtu);
    let result = AddResult {
        cni_version: version,
        interfaces: [
            Interface {
                name: &wired.host_link,
                mac: wired.host_mac.to_string(),
                mtu,
                sandbox: None,
            },
            Interface {
                name: ifname,
                mac: wired.pod_mac.to_string(),
                mtu,
                sandbox: Some(netns),
            },
        ],
        ips: wired
            .addresses
            .iter()
            .map(|&address| Ip {
                version: (version < CniVersion::V1_0_0).then_some(match address {
                    IpAddr::V4(_) => "4",
                    IpAddr::V6(_) => "6",
                }),
                address: match address {
                    IpAddr::V4(v4) => format!("{v4}/32"),
                    IpAddr::V6(v6) => format!("{v6}/128"),
                },
                gateway: gateway(wired, address.is_ipv4()),
                interface: 1,
            })
            .collect(),
        routes: wired
            .gateways
            .iter()
            .filter(|_| !wired.secondary)
            .map(|&gw| Route {
                dst: if gw.is_ipv4() { "0.0.0.0/0" } else { "::/0" },
                gw,
            })
            .collect(),
        dns,
    };
    serde_json::to_string(&result)
}

fn gateway(wired: &Wired, v4: bool) -> Option<IpAddr> {
    wired.gateways.iter().copied().find(|g| g.is_ipv4() == v4)
}

/// Prints the answer to VERSION; `requested` is what the runtime named, and is
/// echoed as the specification demands.
pub fn version_result(requested: &str) -> String {
    let mut text = format!(
        "{{\"cniVersion\":{},\"supportedVersions\":[",
        Value::from(requested)
    );
    for (i, version) in CniVersion::ALL.iter().enumerate() {
        let comma = if i == 0 { "" } else { "," };
        // Writing into a String does not fail.
        let _ = write!(text, "{comma}\"{version}\"");
    }
    text.push_str("]}");
    text
}
