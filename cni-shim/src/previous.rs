//! The result of ADD as a runtime gives it back with CHECK (`prevResult`): as much of
//! it as viaduct made. What later plugins of the chain added is theirs.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use viaduct_model::{AttachmentId, MacAddr};

use crate::CniError;

/// A link as a result names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NamedLink {
    /// Its MAC, if the result says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    /// Its MTU in bytes, if the result says (since 1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
}

/// What the runtime was told of an attachment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Previous {
    /// The host end, if it is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_link: Option<NamedLink>,
    /// The pod's interface, if it is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_link: Option<NamedLink>,
    /// The addresses of the pod's interface.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// The next hops of the default routes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub default_via: Vec<IpAddr>,
}

impl Previous {
    /// Picks from a result what concerns this attachment.
    ///
    /// # Errors
    /// Code 7 when it is no result at all.
    pub fn of(result: &Value, id: &AttachmentId, netns: &str) -> Result<Self, CniError> {
        let result = result
            .as_object()
            .ok_or_else(|| invalid("must be an object"))?;
        let mut previous = Self::default();
        let host_link = id.link_name();
        let mut ours = None;
        for (index, interface) in list(result, "interfaces")?.iter().enumerate() {
            let name = interface["name"].as_str().unwrap_or_default();
            let sandbox = interface["sandbox"].as_str().unwrap_or_default();
            if name == id.ifname && (sandbox == netns && !sandbox.is_empty()) {
                previous.pod_link = Some(link(interface)?);
                ours = Some(index as u64);
            } else if name == host_link && sandbox.is_empty() {
                previous.host_link = Some(link(interface)?);
            }
        }
        for ip in list(result, "ips")? {
            // Without an index it is the container's, that is, ours.
            let concerns_us = match ip.get("interface") {
                None | Some(Value::Null) => true,
                Some(index) => index.as_u64() == ours && ours.is_some(),
            };
            if concerns_us {
                let text = ip["address"].as_str().unwrap_or_default();
                let address = text.split('/').next().unwrap_or_default();
                let address = address
                    .parse()
                    .map_err(|_| invalid(&format!("holds the address {text:?}, which is none")))?;
                previous.addresses.push(address);
            }
        }
        for route in list(result, "routes")? {
            let default = matches!(route["dst"].as_str(), Some("0.0.0.0/0" | "::/0"));
            let via: Option<IpAddr> = route["gw"].as_str().and_then(|gw| gw.parse().ok());
            previous.default_via.extend(via.filter(|_| default));
        }
        Ok(previous)
    }
}

fn link(interface: &Value) -> Result<NamedLink, CniError> {
    let mac = match interface["mac"].as_str().filter(|mac| !mac.is_empty()) {
        None => None,
        Some(text) => Some(
            text.to_ascii_lowercase()
                .parse()
                .map_err(|_| invalid(&format!("holds the MAC {text:?}, which is none")))?,
        ),
    };
    let mtu = interface["mtu"]
        .as_u64()
        .and_then(|mtu| mtu.try_into().ok());
    Ok(NamedLink {
        mac,
        mtu: mtu.filter(|mtu| *mtu != 0),
    })
}

fn list<'a>(result: &'a Map<String, Value>, field: &str) -> Result<&'a [Value], CniError> {
    match result.get(field) {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(list)) => Ok(list),
        Some(_) => Err(invalid(&format!("field {field:?} must be a list"))),
    }
}

fn invalid(why: &str) -> CniError {
    CniError::new(
        CniError::INVALID_CONFIG,
        format!("network configuration: field \"prevResult\" {why}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ours_is_picked_from_what_a_chain_made() {
        let id = AttachmentId::new("c1", "eth0").unwrap();
        let result = json!({
            "cniVersion": "1.1.0",
            "interfaces": [
                {"name": id.link_name(), "mac": "ee:76:69:61:00:01", "mtu": 1450},
                {"name": "eth0", "mac": "02:00:5E:00:53:01", "sandbox": "/run/netns/a"},
                {"name": "bwp1", "mac": "02:00:5e:00:53:09"},
            ],
            "ips": [
                {"address": "10.0.0.7/32", "gateway": "169.254.1.1", "interface": 1},
                {"address": "192.0.2.1/32", "interface": 2},
            ],
            "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}, {"dst": "192.0.2.0/24"}],
        });
        let previous = Previous::of(&result, &id, "/run/netns/a").unwrap();
        assert_eq!(previous.addresses, ["10.0.0.7".parse::<IpAddr>().unwrap()]);
        assert_eq!(previous.default_via.len(), 1);
        assert_eq!(previous.host_link.as_ref().unwrap().mtu, Some(1450));
        let pod = previous.pod_link.unwrap();
        assert_eq!(pod.mac, Some("02:00:5e:00:53:01".parse().unwrap()));
        let elsewhere = Previous::of(&result, &id, "/run/netns/b").unwrap();
        assert!(elsewhere.pod_link.is_none() && elsewhere.addresses.is_empty());
    }

    #[test]
    fn nonsense_is_refused() {
        let id = AttachmentId::new("c1", "eth0").unwrap();
        for bad in [
            json!(7),
            json!({"interfaces": {}}),
            json!({"ips": [{"address": "x"}]}),
            json!({"ips": [7]}),
            json!({"interfaces": [{"name": id.link_name(), "mac": "x"}]}),
        ] {
            let error = Previous::of(&bad, &id, "/n").unwrap_err();
            assert_eq!(error.code, 7, "{bad}");
            assert!(error.msg.contains("prevResult"), "{error}");
        }
    }
}
