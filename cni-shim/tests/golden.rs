//! The exact bytes that the plugin prints, per version of the CNI specification.
//! The files in `golden/` have the form of the specification's own examples;
//! they are compared as JSON, and key by key so that nothing is extra.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests too.

use std::net::IpAddr;

use serde_json::Value;
use viaduct_cni::CniError;
use viaduct_cni::protocol::Wired;
use viaduct_cni::result::{add_result, version_result};
use viaduct_cni::version::CniVersion;

fn golden(name: &str) -> Value {
    let path = format!("{}/tests/golden/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn wired() -> Wired {
    Wired {
        host_link: "via0123456789ab".into(),
        host_mac: "ee:76:69:61:00:01".parse().unwrap(),
        pod_mac: "02:00:5e:00:53:01".parse().unwrap(),
        mtu: 1450,
        addresses: vec!["10.244.1.7".parse::<IpAddr>().unwrap()],
        gateways: vec!["169.254.1.1".parse::<IpAddr>().unwrap()],
        secondary: false,
    }
}

#[test]
fn add_prints_what_each_version_defines() {
    let dns = serde_json::json!({"nameservers": ["10.96.0.10"], "search": ["cluster.local"]});
    for version in CniVersion::ALL {
        let text = add_result(version, &wired(), "eth0", "/run/netns/blue", Some(&dns)).unwrap();
        let printed: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(printed, golden(&format!("add-{version}")), "{version}");
    }
}

#[test]
fn both_families_are_printed_with_their_own_gateway() {
    let mut both = wired();
    both.addresses.push("fd00:10:244::7".parse().unwrap());
    both.gateways.push("fe80::1".parse().unwrap());
    for version in [CniVersion::V0_4_0, CniVersion::V1_1_0] {
        let text = add_result(version, &both, "eth0", "/run/netns/blue", None).unwrap();
        let printed: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(printed, golden(&format!("add-dual-{version}")), "{version}");
    }
}

#[test]
fn errors_are_printed_as_the_specification_defines() {
    let error = CniError::new(7, "network configuration: field \"name\" is missing")
        .with_details("a network must have a name");
    for version in CniVersion::ALL {
        let printed: Value = serde_json::from_str(&error.to_json(version)).unwrap();
        let mut expected = golden("error");
        expected["cniVersion"] = version.as_str().into();
        assert_eq!(printed, expected);
    }
    let bare: Value =
        serde_json::from_str(&CniError::new(11, "later").to_json(CniVersion::NEWEST)).unwrap();
    assert_eq!(
        bare,
        serde_json::json!({"cniVersion": "1.1.0", "code": 11, "msg": "later"})
    );
}

#[test]
fn version_echoes_what_was_asked_and_lists_all() {
    let printed: Value = serde_json::from_str(&version_result("1.0.0")).unwrap();
    assert_eq!(printed, golden("version"));
}
