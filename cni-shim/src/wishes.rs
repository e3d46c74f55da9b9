//! What a runtime may ask of ADD beyond an address and a MAC of the agent's choice:
//! the capabilities `ips` and `mac`, their older forms, and what is allowed there.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use viaduct_model::MacAddr;

use crate::CniError;
use crate::protocol::Wired;

/// An address and a MAC that are asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Wishes {
    /// The addresses; at most one per family.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// The MAC of the pod's interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
}

impl Wishes {
    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether what was wired is what was asked for.
    pub fn are_met_by(&self, wired: &Wired) -> bool {
        self.mac.is_none_or(|mac| mac == wired.pod_mac)
            && self.addresses.iter().all(|a| wired.addresses.contains(a))
    }

    /// Reads `runtimeConfig`, then `args`, then the `IP` and `MAC` of `CNI_ARGS`: what
    /// comes first outweighs what comes later, as the conventions of CNI have it.
    /// Unknown keys are other plugins' business.
    ///
    /// # Errors
    /// Code 7 for a field that is not what it must be, 4 for `CNI_ARGS`.
    pub fn read(config: &Map<String, Value>, args: &[(String, String)]) -> Result<Self, CniError> {
        let runtime = object(config, "runtimeConfig")?;
        let legacy = match object(config, "args")? {
            Some(args) => object(args, "cni")?,
            None => None,
        };
        let lists = [("runtimeConfig", runtime), ("args.cni", legacy)];
        let mut addresses = None;
        for (at, object) in lists {
            let value = object.and_then(|object| object.get("ips"));
            if let Some(value) = value.filter(|value| !value.is_null()) {
                addresses = Some(addresses_of(at, value)?);
                break;
            }
        }
        let of_args = |key: &str| {
            let found = args.iter().rev().find(|(k, _)| k == key);
            found.map(|(_, value)| value.as_str())
        };
        let addresses = match (addresses, of_args("IP")) {
            (Some(addresses), _) => addresses,
            (None, Some(text)) => text
                .split(',')
                .map(|one| address(one).ok_or_else(|| environment("IP", one, ADDRESS)))
                .collect::<Result<_, _>>()?,
            (None, None) => Vec::new(),
        };
        if let Some(second) = addresses
            .iter()
            .skip(1)
            .find(|a| same_family(addresses.first(), a))
        {
            return Err(invalid(
                "runtimeConfig.ips",
                &second.to_string(),
                "one address per family",
            ));
        }
        let mac = match (
            runtime.and_then(|runtime| runtime.get("mac")),
            of_args("MAC"),
        ) {
            (Some(Value::String(text)), _) => {
                Some(mac(text).ok_or_else(|| invalid("runtimeConfig.mac", text, MAC))?)
            }
            (None | Some(Value::Null), Some(text)) => {
                Some(mac(text).ok_or_else(|| environment("MAC", text, MAC))?)
            }
            (None | Some(Value::Null), None) => None,
            (Some(other), _) => return Err(invalid("runtimeConfig.mac", &other.to_string(), MAC)),
        };
        Ok(Self { addresses, mac })
    }
}

const ADDRESS: &str = "an IP address, with or without a prefix length";
const MAC: &str = "six hexadecimal octets that name one station, such as 02:00:5e:00:53:01, and not the host end's";

fn same_family(first: Option<&IpAddr>, other: &IpAddr) -> bool {
    first.is_some_and(|first| first.is_ipv4() == other.is_ipv4())
}

fn object<'a>(
    of: &'a Map<String, Value>,
    field: &'static str,
) -> Result<Option<&'a Map<String, Value>>, CniError> {
    match of.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(object)) => Ok(Some(object)),
        Some(other) => Err(invalid(field, &other.to_string(), "an object")),
    }
}

fn addresses_of(at: &str, value: &Value) -> Result<Vec<IpAddr>, CniError> {
    let field = format!("{at}.ips");
    let list = value
        .as_array()
        .ok_or_else(|| invalid(&field, &value.to_string(), "a list of addresses"))?;
    list.iter()
        .map(|one| {
            one.as_str()
                .and_then(address)
                .ok_or_else(|| invalid(&field, &one.to_string(), ADDRESS))
        })
        .collect()
}

/// An address; its prefix length must be one, and is not needed: pods have whole
/// addresses here.
fn address(text: &str) -> Option<IpAddr> {
    let (address, length) = match text.trim().split_once('/') {
        Some((address, length)) => (address, Some(length.parse::<u8>().ok()?)),
        None => (text.trim(), None),
    };
    let address: IpAddr = address.parse().ok()?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    (length.is_none_or(|length| length <= longest)).then_some(address)
}

fn mac(text: &str) -> Option<MacAddr> {
    let mac: MacAddr = text.trim().to_ascii_lowercase().parse().ok()?;
    (mac.is_unicast() && mac != MacAddr::HOST_END).then_some(mac)
}

fn shortened(value: &str) -> String {
    value.chars().take(64).collect()
}

fn invalid(field: &str, value: &str, allowed: &str) -> CniError {
    let value = shortened(value);
    CniError::new(
        CniError::INVALID_CONFIG,
        format!("network configuration: field {field:?}: {value:?} is not allowed: {allowed}"),
    )
}

fn environment(key: &str, value: &str, allowed: &str) -> CniError {
    let value = shortened(value);
    CniError::new(
        CniError::INVALID_ENVIRONMENT,
        format!("CNI_ARGS: {key} {value:?} is not allowed: {allowed}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(config: Value, args: &[(&str, &str)]) -> Result<Wishes, CniError> {
        let args: Vec<_> = args
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        Wishes::read(config.as_object().unwrap(), &args)
    }

    #[test]
    fn capabilities_outweigh_args_and_those_the_environment() {
        let config = json!({
            "runtimeConfig": {"ips": ["10.0.0.1/24"], "mac": "02:00:5E:00:53:01", "other": 1},
            "args": {"cni": {"ips": ["10.0.0.2"], "labels": []}, "mine": 7},
        });
        let args = [("IP", "10.0.0.3"), ("MAC", "02:00:5e:00:53:02"), ("X", "y")];
        let wishes = read(config, &args).unwrap();
        assert_eq!(wishes.addresses, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(wishes.mac, Some("02:00:5e:00:53:01".parse().unwrap()));
        let wishes = read(json!({"args": {"cni": {"ips": ["10.0.0.2"]}}}), &args).unwrap();
        assert_eq!(wishes.addresses, ["10.0.0.2".parse::<IpAddr>().unwrap()]);
        let wishes = read(json!({"runtimeConfig": null}), &args).unwrap();
        assert_eq!(wishes.addresses, ["10.0.0.3".parse::<IpAddr>().unwrap()]);
        assert_eq!(wishes.mac, Some("02:00:5e:00:53:02".parse().unwrap()));
        assert!(
            read(json!({}), &[("K8S_POD_NAME", "p")])
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn what_is_malformed_is_refused_and_named() {
        for (config, named) in [
            (json!({"runtimeConfig": []}), "runtimeConfig"),
            (
                json!({"runtimeConfig": {"ips": "10.0.0.1"}}),
                "runtimeConfig.ips",
            ),
            (
                json!({"runtimeConfig": {"ips": ["10.0.0.1/33"]}}),
                "10.0.0.1/33",
            ),
            (json!({"runtimeConfig": {"ips": [7]}}), "7"),
            (
                json!({"runtimeConfig": {"ips": ["10.0.0.1", "10.0.0.2"]}}),
                "10.0.0.2",
            ),
            (
                json!({"runtimeConfig": {"mac": "01:00:5e:00:53:01"}}),
                "01:00",
            ),
            (
                json!({"runtimeConfig": {"mac": "ee:76:69:61:00:01"}}),
                "host end",
            ),
            (json!({"runtimeConfig": {"mac": 7}}), "runtimeConfig.mac"),
            (json!({"args": {"cni": {"ips": {}}}}), "args.cni.ips"),
        ] {
            let error = read(config, &[]).unwrap_err();
            assert_eq!(error.code, 7);
            assert!(error.msg.contains(named), "{error}");
        }
        for bad in [("IP", "x"), ("MAC", "02:00")] {
            assert_eq!(read(json!({}), &[bad]).unwrap_err().code, 4);
        }
    }
}
