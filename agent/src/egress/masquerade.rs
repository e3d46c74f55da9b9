//! What the table `inet viaduct` should be: a pure function of the node's state and
//! the user's options.
//!
//! A packet gets an address of the node when its source lies in a pool that has
//! `natOutgoing`, and its destination is outside: in no pool, no multicast, nothing
//! that `--no-masquerade-to` names. Pools, not the node's own blocks: a block is in use
//! moments after it came, and a connection that begins before the table knows it would
//! keep the pod's address for ever. Of other nodes' pods nothing comes by here on its
//! way out. What kube-proxy has marked is kube-proxy's.
//!
//! The chain is asked once for each connection, by its first packet. It comes after the
//! customary place of source NAT, so that whoever wants another address for some
//! traffic says so there and is not asked again here. What costs is connection
//! tracking, which every such chain switches on for every packet; so there is no table
//! at all where nothing is to be masqueraded.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde_json::json;
use viaduct_model::{Cidr, Family, Pool};

use super::Options;
use super::prefixes::fewest;
use super::ruleset::{
    Base, Chain, Element, NamedSet, Rule, Ruleset, SetKind, address_field, matches, meta, verdict,
};
use crate::state::NodeState;

/// The bit that kube-proxy marks what it will masquerade itself with
/// (`--iptables-masquerade-bit`, default 14).
const KUBE_PROXY_MARK: u32 = 0x4000;

/// `srcnat` (100) and a little later.
const AFTER_SOURCE_NAT: i64 = 110;

/// The families that this release gives pods addresses of. The second one needs its
/// line here and the same sets and rules come to be for it.
const FAMILIES: [Family; 1] = [Family::V4];

/// The table as it should be; `None` where there should be none.
pub fn desired(state: &NodeState, options: &Options) -> Option<Ruleset> {
    options.masquerade.then(|| {
        let mut ruleset = Ruleset::default();
        masquerade(state, options, &mut ruleset);
        ruleset
    })
}

/// Whether pods with addresses of this pool are masqueraded. A pool that was deleted
/// with blocks in use takes no pod's way to the outside away.
pub fn nat_outgoing(pool: Option<&Pool>) -> bool {
    pool.is_none_or(|pool| pool.nat_outgoing)
}

fn masquerade(state: &NodeState, options: &Options, ruleset: &mut Ruleset) {
    let view = &state.view;
    let pools = || view.pools.values();
    // Blocks beside the pools are those of a pool that was deleted while in use.
    let blocks = view.blocks.keys();
    let orphaned: Vec<Cidr> = blocks
        .filter(|block| !pools().any(|pool| pool.cidr.covers(block)))
        .copied()
        .collect();
    let cidrs = |natted: bool| -> Vec<Cidr> {
        let pools = pools().filter(|pool| !natted || pool.nat_outgoing);
        pools
            .map(|pool| pool.cidr)
            .chain(orphaned.clone())
            .collect()
    };
    let (sources, pods) = (cidrs(true), cidrs(false));
    let underlay: BTreeMap<Family, BTreeSet<Element>> = underlay(state);
    let mut rules = vec![Rule::new(
        "kube-proxy masquerades what it has marked",
        vec![
            matches(
                "==",
                &json!({"&": [meta("mark"), KUBE_PROXY_MARK]}),
                &json!(KUBE_PROXY_MARK),
            ),
            verdict("return"),
        ],
    )];
    for family in FAMILIES {
        let destination = address_field(family, "daddr");
        let mut leave = |what: &str, of: &str| {
            rules.push(Rule::new(
                what,
                vec![
                    matches("==", &destination, &json!(format!("@{of}"))),
                    verdict("return"),
                ],
            ));
        };
        let (own, pools) = (named("masqueraded", family), named("pods", family));
        let (exempt, nodes) = (named("exempt", family), named("nodes", family));
        prefixes(ruleset, &own, family, &sources);
        prefixes(ruleset, &pools, family, &pods);
        leave("pods see pods' own addresses", &pools);
        let mut exempted = options.exempt.clone();
        exempted.extend(multicast(family));
        prefixes(ruleset, &exempt, family, &exempted);
        leave("multicast and --no-masquerade-to", &exempt);
        if !options.to_nodes {
            let addresses = underlay.get(&family).cloned().unwrap_or_default();
            set(ruleset, &nodes, SetKind::Addresses(family), addresses);
            leave("--masquerade-to-nodes=false", &nodes);
        }
        rules.push(Rule::new(
            "pods to the outside",
            vec![
                matches(
                    "==",
                    &address_field(family, "saddr"),
                    &json!(format!("@{own}")),
                ),
                if options.random_fully {
                    json!({"masquerade": {"flags": "fully-random"}})
                } else {
                    verdict("masquerade")
                },
            ],
        ));
    }
    let base = Base {
        r#type: "nat".to_owned(),
        hook: "postrouting".to_owned(),
        priority: AFTER_SOURCE_NAT,
        policy: "accept".to_owned(),
    };
    let base = Some(base);
    let chain = Chain { base, rules };
    ruleset.chains.insert("egress".to_owned(), chain);
}

/// The addresses that nodes are reached at, this one's included.
fn underlay(state: &NodeState) -> BTreeMap<Family, BTreeSet<Element>> {
    let mut addresses: BTreeMap<Family, BTreeSet<Element>> = BTreeMap::new();
    let recorded = state.view.nodes.values().flat_map(|node| {
        let v4 = node.underlay.v4.map(IpAddr::V4);
        v4.into_iter().chain(node.underlay.v6.map(IpAddr::V6))
    });
    let own = [
        state.local.underlay.address,
        state.local.underlay.public_address,
    ];
    for address in recorded.chain(own.map(IpAddr::V4)) {
        addresses
            .entry(Family::of(address))
            .or_default()
            .insert(Element::Prefix(Cidr::host(address)));
    }
    addresses
}

/// RFC 5771 and RFC 4291, section 2.7.
fn multicast(family: Family) -> Option<Cidr> {
    let prefix = match family {
        Family::V4 => "224.0.0.0/4",
        Family::V6 => "ff00::/8",
    };
    prefix.parse().ok()
}

fn named(what: &str, family: Family) -> String {
    match family {
        Family::V4 => format!("{what}4"),
        Family::V6 => format!("{what}6"),
    }
}

fn prefixes(ruleset: &mut Ruleset, name: &str, family: Family, of: &[Cidr]) {
    let elements = fewest(of.iter().copied().filter(|p| p.family() == family));
    let elements = elements.into_iter().map(Element::Prefix).collect();
    set(ruleset, name, SetKind::Prefixes(family), elements);
}

fn set(ruleset: &mut Ruleset, name: &str, kind: SetKind, elements: BTreeSet<Element>) {
    let set = NamedSet { kind, elements };
    ruleset.sets.insert(name.to_owned(), set);
}
