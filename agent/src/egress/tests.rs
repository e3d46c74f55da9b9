//! The table's decisions over plain data: no root, no network, no clock.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::change::{Change, change, transaction};
use super::desired::desired;
use super::fake::{FakeFirewall, applied};
use super::ruleset::{Element, Ruleset};
use super::task::{Keeper, Outcome};
use super::tool::ToolError;
use super::{Options, listing};
use crate::dataplane::testing::{Cluster, endpoint};
use crate::state::Endpoints;

fn options() -> Options {
    Options {
        masquerade: true,
        exempt: Vec::new(),
        to_nodes: true,
        random_fully: true,
    }
}

fn pods(addresses: &[&str]) -> Endpoints {
    let endpoints = addresses.iter().map(|address| {
        let endpoint = endpoint(&format!("pod-{address}"), address, true);
        (endpoint.link.clone(), endpoint)
    });
    Arc::new(endpoints.collect::<BTreeMap<_, _>>())
}

fn cluster() -> Cluster {
    let mut cluster = Cluster::new();
    cluster.pool("default", "10.64.0.0/16");
    cluster
}

fn wanted(cluster: &Cluster, pods: &Endpoints, options: &Options) -> Ruleset {
    desired(&cluster.state(), pods, options)
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
        let ruleset = wanted(cluster, &pods(&[]), &options());
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
    let ruleset = wanted(&cluster, &pods(&[]), &options());
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
    let ruleset = wanted(&cluster, &pods(&[]), &options);
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
    let with = wanted(&cluster, &pods(&[]), &options());
    assert!(!with.sets.contains_key("nodes4"));
    let without = Options {
        to_nodes: false,
        ..options()
    };
    assert_eq!(
        prefixes(&wanted(&cluster, &pods(&[]), &without), "nodes4"),
        ["192.168.64.1/32", "192.168.65.1/32", "203.0.113.9/32"]
    );
}

#[test]
fn without_masquerading_the_source_check_is_left() {
    let off = Options {
        masquerade: false,
        ..options()
    };
    let ruleset = wanted(&cluster(), &pods(&["10.64.0.5"]), &off);
    assert_eq!(ruleset.chains.keys().collect::<Vec<_>>(), ["source_check"]);
    assert_eq!(ruleset.sets["pod_sources4"].elements.len(), 1);
}

#[test]
fn a_pod_that_comes_or_goes_changes_elements_only_and_others_the_whole_table() {
    let cluster = cluster();
    let one = wanted(&cluster, &pods(&["10.64.0.5"]), &options());
    let two = wanted(&cluster, &pods(&["10.64.0.6"]), &options());
    let Some(Change::Elements(changes)) = change(&two, Some(&one)) else {
        panic!("{:?}", change(&two, Some(&one)));
    };
    assert_eq!(changes.len(), 2);
    assert!(
        changes
            .iter()
            .all(|c| (c.new.len(), c.gone.len(), c.flush) == (1, 1, false))
    );
    let plain = Options {
        random_fully: false,
        ..options()
    };
    let plain = wanted(&cluster, &pods(&["10.64.0.5"]), &plain);
    assert_eq!(
        change(&one, Some(&plain)),
        Some(Change::Rewrite("chain egress differs".into()))
    );
    assert!(matches!(change(&one, None), Some(Change::Rewrite(_))));
    assert_eq!(change(&one, Some(&one)), None);
}

#[test]
fn whatever_else_is_in_the_table_is_a_difference() {
    let wanted = wanted(&cluster(), &pods(&["10.64.0.5"]), &options());
    for damage in [
        r#"{"table": {"family": "inet", "name": "viaduct", "flags": "dormant"}}"#,
        r#"{"map": {"name": "m"}}"#,
        r#"{"chain": {"name": "mine"}}"#,
        r#"{"counter": {"name": "mine"}}"#,
        r#"{"set": {"name": "mine", "type": "ipv4_addr"}}"#,
        r#"{"set": {"name": "pods4", "type": "ipv4_addr", "flags": ["interval"], "timeout": 5}}"#,
        r#"{"rule": {"chain": "egress", "expr": [{"accept": null}]}}"#,
    ] {
        let text = transaction(&wanted, &Change::Rewrite(String::new()));
        assert_eq!(change(&wanted, Some(&applied(None, &text))), None);
        let end = text.rfind("]}").unwrap();
        let damaged = format!("{},{{\"add\":{damage}}}]}}", &text[..end]);
        let table = applied(None, &damaged);
        assert!(
            matches!(change(&wanted, Some(&table)), Some(Change::Rewrite(_))),
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
    let odd = read(r#"{"name": "s", "type": ["ifname", "ipv4_addr"], "elem": ["x"]}"#);
    assert_eq!(odd, [r#"Other("\"x\"")"#]);
}

fn fake() -> &'static Mutex<FakeFirewall> {
    Box::leak(Box::default())
}

async fn compare(
    keeper: &mut Keeper<&'static Mutex<FakeFirewall>>,
    wanted: &Ruleset,
    look: bool,
) -> Outcome {
    keeper.run(wanted, look).await
}

#[tokio::test]
async fn a_table_that_is_right_is_not_written_and_pods_cost_no_listing() {
    let (fake, cluster) = (fake(), cluster());
    let one = wanted(&cluster, &pods(&["10.64.0.5"]), &options());
    let mut keeper = Keeper::new(fake, options());
    assert!(compare(&mut keeper, &one, true).await.verified);
    let asked = |fake: &FakeFirewall| (fake.transactions.len(), fake.lists);
    assert_eq!(asked(&fake.lock().unwrap()), (1, 2));
    // Another life of the agent.
    let mut keeper = Keeper::new(fake, options());
    let outcome = compare(&mut keeper, &one, true).await;
    assert!(outcome.verified && outcome.writes == 0);
    let lists = fake.lock().unwrap().lists;
    let two = wanted(&cluster, &pods(&["10.64.0.5", "10.64.0.6"]), &options());
    let outcome = compare(&mut keeper, &two, false).await;
    assert!(outcome.verified && outcome.writes == 1 && outcome.repairs == 0);
    assert_eq!(fake.lock().unwrap().lists, lists);
    assert_eq!(fake.lock().unwrap().table.as_ref(), Some(&two));
}

#[tokio::test]
async fn what_somebody_else_did_is_undone_and_counted() {
    let (fake, cluster) = (fake(), cluster());
    let wanted = wanted(&cluster, &pods(&["10.64.0.5"]), &options());
    let mut keeper = Keeper::new(fake, options());
    compare(&mut keeper, &wanted, true).await;
    fake.lock().unwrap().table = None;
    let outcome = compare(&mut keeper, &wanted, true).await;
    assert!(outcome.verified && outcome.repairs == 1);
    let mut table = fake.lock().unwrap().table.clone().unwrap();
    table.sets.get_mut("pod_links").unwrap().elements.clear();
    fake.lock().unwrap().table = Some(table);
    let outcome = compare(&mut keeper, &wanted, true).await;
    assert!(outcome.verified && outcome.repairs == 1);
    assert_eq!(fake.lock().unwrap().table.as_ref(), Some(&wanted));
}

#[tokio::test]
async fn a_pod_that_comes_while_the_table_vanishes_is_there_when_it_is_back() {
    let (fake, cluster) = (fake(), cluster());
    let one = wanted(&cluster, &pods(&["10.64.0.5"]), &options());
    let mut keeper = Keeper::new(fake, options());
    compare(&mut keeper, &one, true).await;
    fake.lock().unwrap().table = None;
    let two = wanted(&cluster, &pods(&["10.64.0.5", "10.64.0.6"]), &options());
    let outcome = compare(&mut keeper, &two, false).await;
    assert!(
        outcome.verified && outcome.problems.is_empty(),
        "{outcome:?}"
    );
    assert_eq!((outcome.writes, outcome.repairs), (1, 1));
    assert_eq!(fake.lock().unwrap().table.as_ref(), Some(&two));
}

#[tokio::test]
async fn another_releases_spelling_is_learnt_once_and_foreign_rules_never() {
    let (fake, cluster) = (fake(), cluster());
    fake.lock().unwrap().accent = true;
    let wanted = wanted(&cluster, &pods(&["10.64.0.5"]), &options());
    let mut keeper = Keeper::new(fake, options());
    let outcome = compare(&mut keeper, &wanted, true).await;
    assert!(outcome.verified && outcome.writes == 1, "{outcome:?}");
    let outcome = compare(&mut keeper, &wanted, true).await;
    assert!(outcome.verified && outcome.writes == 0, "{outcome:?}");
    let mut table = fake.lock().unwrap().table.clone().unwrap();
    table.chains.get_mut("egress").unwrap().rules.pop();
    fake.lock().unwrap().table = Some(table);
    let outcome = compare(&mut keeper, &wanted, true).await;
    assert!(outcome.verified && outcome.writes == 1, "{outcome:?}");
}

#[tokio::test]
async fn a_missing_nft_is_a_problem_only_where_masquerading_needs_it() {
    let fake = fake();
    fake.lock().unwrap().broken = Some(ToolError::Missing);
    let ruleset = wanted(&cluster(), &pods(&[]), &options());
    let outcome = Keeper::new(fake, options()).run(&ruleset, true).await;
    assert!(!outcome.verified);
    assert!(
        outcome.problems[0].contains("install nftables"),
        "{outcome:?}"
    );
    let off = Options {
        masquerade: false,
        ..options()
    };
    let outcome = Keeper::new(fake, off).run(&ruleset, true).await;
    assert!(outcome.verified && outcome.problems.is_empty());
    assert!(outcome.warnings[0].contains("rp_filter"), "{outcome:?}");
    fake.lock().unwrap().broken = Some(ToolError::Refused("no".into()));
    let outcome = Keeper::new(fake, options()).run(&ruleset, true).await;
    assert!(
        !outcome.verified && outcome.problems[0].ends_with("no"),
        "{outcome:?}"
    );
}

proptest! {
    #[test]
    fn from_any_table_one_transaction_leads_to_any_other(
        (from, to) in (table(), table())
    ) {
        let whole = transaction(&from, &Change::Rewrite(String::new()));
        let is = applied(None, &whole);
        prop_assert_eq!(&is, &from);
        if let Some(change) = change(&to, Some(&is)) {
            prop_assert_eq!(applied(Some(is), &transaction(&to, &change)), to);
        } else {
            prop_assert_eq!(is, to);
        }
    }
}

/// Any pods, pools and options.
fn table() -> impl Strategy<Value = Ruleset> {
    let numbers = prop::collection::btree_set(0u8..64, 0..6);
    let pools = prop::collection::btree_set(0u8..8, 1..4);
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    (numbers, pools, flags, 1u16..5).prop_map(|(addresses, pools, flags, peers)| {
        let mut cluster = Cluster::new();
        for n in pools {
            cluster.pool(&format!("p{n}"), &format!("10.{}.0.0/16", 64 + n));
        }
        for n in 1..peers {
            cluster.peer(&format!("peer-{n}"), n + 1);
        }
        let addresses: Vec<String> = addresses.iter().map(|n| format!("10.64.0.{n}")).collect();
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        let options = Options {
            masquerade: flags.0,
            exempt: Vec::new(),
            to_nodes: flags.1,
            random_fully: flags.2,
        };
        desired(&cluster.state(), &pods(&addresses), &options)
    })
}
