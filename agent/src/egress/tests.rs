//! The table's decisions over plain data: no root, no network, no clock.

use proptest::prelude::*;

use super::change::{Change, change, transaction};
use super::fake::applied;
use super::ruleset::{Element, Ruleset, TableFamily};
use super::{Options, listing, masquerade};
use crate::dataplane::testing::Cluster;

pub(super) fn options() -> Options {
    Options {
        masquerade: true,
        exempt: Vec::new(),
        to_nodes: true,
        random_fully: true,
    }
}

pub(super) fn cluster() -> Cluster {
    let mut cluster = Cluster::new();
    cluster.pool("default", "10.64.0.0/16");
    cluster
}

pub(super) fn wanted(cluster: &Cluster, options: &Options) -> Ruleset {
    masquerade::desired(&cluster.state(), options).expect("a table")
}

/// The table of a cluster of so many nodes and one more, where nodes are not outside:
/// they differ in elements of a set.
pub(super) fn with_nodes(nodes: u16) -> Ruleset {
    let mut cluster = cluster();
    for n in 2..=nodes {
        cluster.peer(&format!("peer-{n}"), n);
    }
    let options = Options {
        to_nodes: false,
        ..options()
    };
    wanted(&cluster, &options)
}

const INET: TableFamily = TableFamily::Inet;

/// The table after it was made anew.
fn made(wanted: &Ruleset) -> (String, Ruleset) {
    let text = transaction(INET, Some(wanted), &Change::Rewrite(String::new()));
    let made = applied(None, &text).expect("a table");
    (text, made)
}

fn prefixes(ruleset: &Ruleset, set: &str) -> Vec<String> {
    let elements = ruleset.sets[set].elements.iter();
    elements
        .map(|element| match element {
            Element::Prefix(prefix) => prefix.to_string(),
            other => format!("{other:?}"),
        })
        .collect()
}

#[test]
fn pools_that_want_it_are_masqueraded_and_deleted_ones_go_on() {
    let mut cluster = cluster();
    let own = |cluster: &Cluster| {
        let ruleset = wanted(cluster, &options());
        prefixes(&ruleset, "masqueraded4")
    };
    assert_eq!(own(&cluster), ["10.64.0.0/16"]);
    // A new block changes nothing: its pods may be there before the table could be.
    cluster.block("10.64.9.0/26", "a");
    assert_eq!(own(&cluster), ["10.64.0.0/16"]);
    for pool in cluster.view.pools.values_mut() {
        pool.nat_outgoing = false;
    }
    assert!(own(&cluster).is_empty());
    // Deleted while in use: the pods keep their way out, and other pods see them.
    cluster.view.pools.clear();
    assert_eq!(
        own(&cluster),
        ["10.64.0.0/26", "10.64.1.0/26", "10.64.9.0/26"]
    );
    let ruleset = wanted(&cluster, &options());
    assert!(prefixes(&ruleset, "pods4").contains(&"10.64.1.0/26".to_owned()));
}

#[test]
fn every_pool_multicast_and_what_the_user_names_see_the_pods_address() {
    let mut cluster = cluster();
    cluster.pool("second", "10.65.0.0/16");
    cluster.pool("six", "fd00:64::/48");
    let options = Options {
        exempt: vec![
            "192.0.2.0/24".parse().unwrap(),
            "192.0.2.7/32".parse().unwrap(),
        ],
        ..options()
    };
    let ruleset = wanted(&cluster, &options);
    assert_eq!(prefixes(&ruleset, "pods4"), ["10.64.0.0/15"]);
    assert_eq!(
        prefixes(&ruleset, "exempt4"),
        ["192.0.2.0/24", "224.0.0.0/4"]
    );
}

#[test]
fn nodes_are_outside_unless_the_user_says_otherwise() {
    let mut cluster = cluster();
    cluster.local.underlay.public_address = "203.0.113.9".parse().unwrap();
    let with = wanted(&cluster, &options());
    assert!(!with.sets.contains_key("nodes4"));
    let without = Options {
        to_nodes: false,
        ..options()
    };
    assert_eq!(
        prefixes(&wanted(&cluster, &without), "nodes4"),
        ["192.168.64.1/32", "192.168.65.1/32", "203.0.113.9/32"]
    );
}

#[test]
fn without_masquerading_there_is_no_table_that_would_track_connections() {
    let off = Options {
        masquerade: false,
        ..options()
    };
    let none = masquerade::desired(&cluster().state(), &off);
    assert_eq!(none, None);
    let on = wanted(&cluster(), &options());
    assert_eq!(change(None, Some(&on)), Some(Change::Remove));
    assert_eq!(change(None, None), None);
    let text = transaction(INET, None, &Change::Remove);
    assert_eq!(applied(Some(on), &text), None);
}

#[test]
fn nodes_and_exempt_destinations_change_elements_and_flags_the_whole_table() {
    let Some(Change::Elements(sets)) = change(Some(&with_nodes(3)), Some(&with_nodes(2))) else {
        panic!("{:?}", change(Some(&with_nodes(3)), Some(&with_nodes(2))));
    };
    let [set] = sets.as_slice() else {
        panic!("{sets:?}");
    };
    assert_eq!((set.new.len(), set.gone.len(), set.flush), (1, 0, false));
    let plain = Options {
        random_fully: false,
        ..options()
    };
    let (plain, random) = (wanted(&cluster(), &plain), wanted(&cluster(), &options()));
    assert_eq!(
        change(Some(&random), Some(&plain)),
        Some(Change::Rewrite("chain egress differs".into()))
    );
    assert!(matches!(
        change(Some(&random), None),
        Some(Change::Rewrite(_))
    ));
    assert_eq!(change(Some(&random), Some(&random)), None);
}

#[test]
fn whatever_else_is_in_a_table_is_a_difference() {
    let wanted = wanted(&cluster(), &options());
    let chain = "egress";
    for damage in [
        r#"{"table": {"name": "viaduct", "flags": "dormant"}}"#,
        r#"{"map": {"name": "m"}}"#,
        r#"{"chain": {"name": "mine"}}"#,
        r#"{"chain": {"name": "mine", "hook": "ingress", "type": "filter", "prio": 0}}"#,
        r#"{"counter": {"name": "mine"}}"#,
        r#"{"set": {"name": "mine", "type": "ipv4_addr"}}"#,
        r#"{"set": {"name": "pods4", "type": "ipv4_addr", "flags": ["interval"], "timeout": 5}}"#,
        &format!(r#"{{"rule": {{"chain": "{chain}", "expr": [{{"accept": null}}]}}}}"#),
    ] {
        let (text, is) = made(&wanted);
        assert_eq!(change(Some(&wanted), Some(&is)), None);
        let end = text.rfind("]}").unwrap();
        let damaged = format!("{},{{\"add\":{damage}}}]}}", &text[..end]);
        let damaged = applied(None, &damaged);
        assert!(
            change(Some(&wanted), damaged.as_ref()).is_some(),
            "{damage}"
        );
    }
}

#[test]
fn what_is_no_listing_is_refused_in_one_sentence() {
    assert!(listing::parse("").unwrap_err().contains("no JSON"));
    assert!(listing::parse("{}").unwrap_err().contains("nftables"));
    assert_eq!(
        listing::parse(r#"{"nftables": [{"metainfo": {}}]}"#).unwrap(),
        Ruleset::default()
    );
}

#[test]
fn both_spellings_of_types_flags_and_elements_are_read() {
    let read = |set: &str| {
        let text = format!(r#"{{"nftables": [{{"set": {set}}}]}}"#);
        let ruleset = listing::parse(&text).unwrap();
        assert_eq!(ruleset.unknown, Vec::<String>::new(), "{set}");
        prefixes(&ruleset, "s")
    };
    for flags in [r#"["interval"]"#, r#""interval""#] {
        assert_eq!(
            read(&format!(
                r#"{{"name": "s", "type": "ipv4_addr", "flags": {flags}, "elem":
                   [{{"range": ["10.0.0.0", "10.0.1.255"]}}, {{"prefix": {{"addr": "10.0.2.0", "len": 23}}}}]}}"#
            )),
            ["10.0.0.0/22"]
        );
    }
    let odd = read(r#"{"name": "s", "type": "ipv4_addr", "elem": ["x"]}"#);
    assert_eq!(odd, [r#"Other("\"x\"")"#]);
}

proptest! {
    #[test]
    fn from_any_table_one_transaction_leads_to_any_other(
        (from, to) in (masquerading(), masquerading())
    ) {
        let is = from.as_ref().map(|from| made(from).1);
        prop_assert_eq!(change(from.as_ref(), is.as_ref()), None);
        let Some(difference) = change(to.as_ref(), is.as_ref()) else {
            return Ok(());
        };
        let then = applied(is, &transaction(INET, to.as_ref(), &difference));
        prop_assert_eq!(change(to.as_ref(), then.as_ref()), None);
    }
}

/// Any pools, peers and options.
fn masquerading() -> impl Strategy<Value = Option<Ruleset>> {
    let pools = prop::collection::btree_set(0u8..8, 1..4);
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    (pools, flags, 1u16..5).prop_map(|(pools, flags, peers)| {
        let mut cluster = Cluster::new();
        for n in pools {
            cluster.pool(&format!("p{n}"), &format!("10.{}.0.0/16", 64 + n));
        }
        for n in 1..peers {
            cluster.peer(&format!("peer-{n}"), n + 1);
        }
        let options = Options {
            masquerade: flags.0,
            exempt: Vec::new(),
            to_nodes: flags.1,
            random_fully: flags.2,
        };
        masquerade::desired(&cluster.state(), &options)
    })
}
