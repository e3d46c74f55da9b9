//! What the table `netdev viaduct` should be: a pure function of the ledger and of the
//! devices that there are.
//!
//! Each pod's device has a chain of its own, at the device's ingress: before routing,
//! connection tracking and the kernel's own source check, so that what is dropped is
//! counted and has left no trace. Packets that come from no pod, those of tunnels and
//! of the underlay, meet nothing at all. The chain is called after its device.
//!
//! What a pod sends from its own address is done with after one rule. Any other IPv4 is
//! dropped, and so is what hides in a VLAN that no device of ours has: two tags of
//! number zero are taken off later than this. IPv6 passes, for pods have no IPv6
//! addresses yet but the link's own.
//!
//! A pod's first moments pass without its chain, held by its device's
//! strict `rp_filter`: an ADD never waits for `nft`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::json;
use viaduct_model::{Endpoint, Family};

use super::ruleset::{
    Base, Chain, Device, Rule, Ruleset, SPOOFED, address_field, matches, meta, verdict,
};

/// `raw`: early, lest another chain at the same place let a packet out elsewhere.
const EARLY: i64 = -300;

/// What is dropped of all that is not from the pod's own address, by protocol.
const JUDGED: [&str; 3] = ["ip", "8021q", "8021ad"];

/// The pods that are judged: wired, and not about to leave.
pub fn judged(endpoints: &BTreeMap<String, Endpoint>) -> impl Iterator<Item = &Endpoint> {
    endpoints.values().filter(|endpoint| endpoint.wired)
}

/// The table as it should be. A chain for a device that is not there is nothing that
/// every kernel makes, so those are left out; `indices` has the others.
pub fn desired(endpoints: &BTreeMap<String, Endpoint>, indices: &BTreeMap<String, u32>) -> Ruleset {
    let mut ruleset = Ruleset::default();
    ruleset.counters.insert(SPOOFED.to_owned());
    for endpoint in judged(endpoints) {
        if let Some(index) = indices.get(&endpoint.link) {
            let chain = chain(endpoint, *index);
            ruleset.chains.insert(endpoint.link.clone(), chain);
        }
    }
    ruleset
}

fn chain(endpoint: &Endpoint, index: u32) -> Chain {
    let v4 = |ip: &&IpAddr| Family::of(**ip) == Family::V4;
    let source = address_field(Family::V4, "saddr");
    let own = endpoint.addresses.iter().filter(v4).map(|address| {
        let is_own = matches("==", &source, &json!(address.to_string()));
        Rule::bare(vec![is_own, verdict("accept")])
    });
    let others = JUDGED.map(|protocol| {
        let is = matches("==", &meta("protocol"), &json!(protocol));
        Rule::bare(vec![is, json!({"counter": SPOOFED}), verdict("drop")])
    });
    Chain {
        rules: own.chain(others).collect(),
        base: Some(Base {
            r#type: "filter".to_owned(),
            hook: "ingress".to_owned(),
            priority: EARLY,
            policy: "accept".to_owned(),
            device: Some(Device {
                name: endpoint.link.clone(),
                index: Some(index),
            }),
        }),
    }
}
