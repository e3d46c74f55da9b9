//! The table's decisions over plain data: no root, no network, no clock.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::change::{Change, change, transaction};
use super::fake::{FakeFirewall, applied};
use super::keeper::{Keeper, Outcome};
use super::ruleset::{Element, Ruleset, TableFamily};
use super::tool::ToolError;
use super::{Options, listing, masquerade, source_check};
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

fn wanted(cluster: &Cluster, options: &Options) -> Ruleset {
    masquerade::desired(&cluster.state(), options).expect("a table")
}

/// The table of the source check, where all pods' devices are there.
fn judging(pods: &Endpoints) -> Ruleset {
    let indices = (7..).zip(pods.keys()).map(|(n, link)| (link.clone(), n));
    source_check::desired(pods, &indices.collect())
}

const INET: TableFamily = TableFamily::Inet;
const NETDEV: TableFamily = TableFamily::Netdev;

/// The table after it was made anew.
fn made(family: TableFamily, wanted: &Ruleset) -> (String, Ruleset) {
    let text = transaction(family, Some(wanted), &Change::Rewrite(String::new()));
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
fn a_pods_own_address_is_done_with_after_one_rule_and_all_else_is_dropped() {
    let one = judging(&pods(&["10.64.0.5"]));
    let (link, chain) = one.chains.first_key_value().unwrap();
    let base = chain.base.as_ref().unwrap();
    assert_eq!(base.device.as_ref().map(|d| &d.name), Some(link));
    let rules: Vec<String> = chain
        .rules
        .iter()
        .map(|rule| serde_json::to_string(&rule.statements).unwrap())
        .collect();
    assert_eq!(rules.len(), 4);
    assert!(rules[0].contains("10.64.0.5") && rules[0].contains("accept"));
    assert!(rules[1..].iter().all(|rule| rule.contains("drop")));
}

#[test]
fn pods_that_leave_and_devices_that_are_gone_have_no_chain() {
    let endpoints = pods(&["10.64.0.5", "10.64.0.6"]);
    let link = endpoints.keys().next().unwrap();
    let indices = BTreeMap::from([(link.clone(), 7)]);
    let ruleset = source_check::desired(&endpoints, &indices);
    assert_eq!(ruleset.chains.keys().collect::<Vec<_>>(), [link]);
    let mut leaving = BTreeMap::clone(&endpoints);
    for endpoint in leaving.values_mut() {
        endpoint.wired = false;
    }
    let ruleset = source_check::desired(&leaving, &indices);
    assert!(ruleset.chains.is_empty());
}

#[test]
fn a_pod_that_comes_or_goes_changes_its_chain_only() {
    let one = judging(&pods(&["10.64.0.5"]));
    let two = judging(&pods(&["10.64.0.6"]));
    let Some(Change::Parts(parts)) = change(Some(&two), Some(&one)) else {
        panic!("{:?}", change(Some(&two), Some(&one)));
    };
    let comes = |chain: &Option<_>| chain.is_some();
    assert_eq!(parts.chains.values().filter(|c| comes(c)).count(), 1);
    assert_eq!(parts.chains.len(), 2);
    // Also where an old kernel has taken the chain away with the device.
    let text = transaction(NETDEV, Some(&two), &Change::Parts(parts));
    let mut gone = one.clone();
    gone.chains.clear();
    let (_, listed) = made(NETDEV, &two);
    assert_eq!(applied(Some(gone), &text).as_ref(), Some(&listed));
    assert_eq!(change(Some(&two), Some(&listed)), None);
}

#[test]
fn another_device_of_the_same_name_gets_a_chain_of_its_own() {
    let endpoints = pods(&["10.64.0.5"]);
    let link = endpoints.keys().next().unwrap();
    let with = |index| {
        let indices = BTreeMap::from([(link.clone(), index)]);
        source_check::desired(&endpoints, &indices)
    };
    assert_eq!(change(Some(&with(7)), Some(&with(7))), None);
    let Some(Change::Parts(parts)) = change(Some(&with(8)), Some(&with(7))) else {
        panic!("nothing changes");
    };
    assert!(parts.chains[link].is_some());
}

#[test]
fn nodes_and_exempt_destinations_change_elements_and_flags_the_whole_table() {
    let to_nodes = |n: u16| {
        let mut cluster = cluster();
        for n in 2..=n {
            cluster.peer(&format!("peer-{n}"), n);
        }
        let options = Options {
            to_nodes: false,
            ..options()
        };
        wanted(&cluster, &options)
    };
    let Some(Change::Parts(parts)) = change(Some(&to_nodes(3)), Some(&to_nodes(2))) else {
        panic!("{:?}", change(Some(&to_nodes(3)), Some(&to_nodes(2))));
    };
    let [set] = parts.sets.as_slice() else {
        panic!("{parts:?}");
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
    let tables = [
        (INET, wanted(&cluster(), &options())),
        (NETDEV, judging(&pods(&["10.64.0.5"]))),
    ];
    for (family, wanted) in tables {
        let chain = wanted.chains.keys().next().unwrap();
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
            let (text, is) = made(family, &wanted);
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

fn fake() -> &'static Mutex<FakeFirewall> {
    Box::leak(Box::default())
}

type Kept = Keeper<&'static Mutex<FakeFirewall>>;

async fn compare(keeper: &mut Kept, wanted: &Ruleset, look: bool) -> Outcome {
    keeper.run(|| Some(wanted.clone()), look).await
}

/// What is in the fake's table but for devices' indices.
fn holds(fake: &Mutex<FakeFirewall>, wanted: &Ruleset) -> bool {
    let fake = fake.lock().unwrap();
    change(Some(wanted), fake.table.as_ref()).is_none()
}

#[tokio::test]
async fn a_table_that_is_right_is_not_written_and_pods_cost_no_listing() {
    let fake = fake();
    let one = judging(&pods(&["10.64.0.5"]));
    let mut keeper = Keeper::new(fake, NETDEV);
    assert!(compare(&mut keeper, &one, true).await.verified);
    let asked = |fake: &FakeFirewall| (fake.transactions.len(), fake.lists);
    assert_eq!(asked(&fake.lock().unwrap()), (1, 2));
    // Another life of the agent.
    let mut keeper = Keeper::new(fake, NETDEV);
    let outcome = compare(&mut keeper, &one, true).await;
    assert!(outcome.verified && outcome.writes == 0);
    let lists = fake.lock().unwrap().lists;
    let two = judging(&pods(&["10.64.0.5", "10.64.0.6"]));
    let outcome = compare(&mut keeper, &two, false).await;
    assert!(outcome.verified && outcome.writes == 1 && outcome.repairs == 0);
    assert_eq!(fake.lock().unwrap().lists, lists);
    assert!(holds(fake, &two));
    let outcome = compare(&mut keeper, &two, true).await;
    assert!(outcome.verified && outcome.writes == 0, "{outcome:?}");
}

#[tokio::test]
async fn what_somebody_else_did_is_undone_and_counted() {
    let fake = fake();
    let wanted = judging(&pods(&["10.64.0.5"]));
    let mut keeper = Keeper::new(fake, NETDEV);
    compare(&mut keeper, &wanted, true).await;
    fake.lock().unwrap().table = None;
    let outcome = compare(&mut keeper, &wanted, true).await;
    assert!(outcome.verified && outcome.repairs == 1);
    let mut table = fake.lock().unwrap().table.clone().unwrap();
    table.chains.clear();
    fake.lock().unwrap().table = Some(table);
    let outcome = compare(&mut keeper, &wanted, true).await;
    assert!(outcome.verified && outcome.repairs == 1);
    assert!(holds(fake, &wanted));
}

#[tokio::test]
async fn a_chain_that_an_old_kernel_took_with_its_device_is_no_repair() {
    let fake = fake();
    let two = judging(&pods(&["10.64.0.5", "10.64.0.6"]));
    let mut keeper = Keeper::new(fake, NETDEV);
    compare(&mut keeper, &two, true).await;
    let mut table = fake.lock().unwrap().table.clone().unwrap();
    table.chains.pop_first();
    fake.lock().unwrap().table = Some(table);
    let mut left = two.clone();
    left.chains.pop_first();
    let outcome = compare(&mut keeper, &left, true).await;
    assert!(outcome.verified && outcome.repairs == 0, "{outcome:?}");
    // The same, told by nobody.
    let outcome = compare(
        &mut keeper,
        &Ruleset {
            chains: BTreeMap::new(),
            ..two
        },
        false,
    )
    .await;
    assert!(
        outcome.verified && outcome.problems.is_empty(),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn a_device_that_dies_within_the_transaction_is_left_out_of_the_next() {
    let fake = fake();
    let two = judging(&pods(&["10.64.0.5", "10.64.0.6"]));
    let link: &'static str = two.chains.keys().next().unwrap().clone().leak();
    fake.lock().unwrap().lacks = Some(link);
    for look in [true, false] {
        let mut keeper = Keeper::new(fake, NETDEV);
        if !look {
            let none = judging(&pods(&[]));
            assert!(compare(&mut keeper, &none, true).await.verified);
        }
        let mut asked = 0;
        let wanted = || {
            asked += 1;
            let mut wanted = two.clone();
            if asked > 1 {
                wanted.chains.remove(link);
            }
            Some(wanted)
        };
        let outcome = keeper.run(wanted, look).await;
        assert!(
            outcome.verified && outcome.problems.is_empty(),
            "{outcome:?}"
        );
        let chains = fake.lock().unwrap().table.as_ref().unwrap().chains.len();
        assert_eq!(chains, 1);
    }
}

#[tokio::test]
async fn a_pod_that_comes_while_the_table_vanishes_is_there_when_it_is_back() {
    let fake = fake();
    let one = judging(&pods(&["10.64.0.5"]));
    let mut keeper = Keeper::new(fake, NETDEV);
    compare(&mut keeper, &one, true).await;
    fake.lock().unwrap().table = None;
    let two = judging(&pods(&["10.64.0.5", "10.64.0.6"]));
    let outcome = compare(&mut keeper, &two, false).await;
    assert!(
        outcome.verified && outcome.problems.is_empty(),
        "{outcome:?}"
    );
    assert_eq!((outcome.writes, outcome.repairs), (1, 1));
    assert!(holds(fake, &two));
}

#[tokio::test]
async fn another_releases_spelling_is_learnt_once_and_foreign_rules_never() {
    let tables = [
        (INET, wanted(&cluster(), &options())),
        (NETDEV, judging(&pods(&["10.64.0.5", "10.64.0.6"]))),
    ];
    for (family, wanted) in tables {
        let fake = fake();
        fake.lock().unwrap().accent = true;
        let mut keeper = Keeper::new(fake, family);
        let outcome = compare(&mut keeper, &wanted, true).await;
        assert!(outcome.verified && outcome.writes == 1, "{outcome:?}");
        let outcome = compare(&mut keeper, &wanted, true).await;
        assert!(outcome.verified && outcome.writes == 0, "{outcome:?}");
        let mut table = fake.lock().unwrap().table.clone().unwrap();
        let chain = table.chains.values_mut().next().unwrap();
        chain.rules.pop();
        fake.lock().unwrap().table = Some(table);
        let outcome = compare(&mut keeper, &wanted, true).await;
        assert!(outcome.verified && outcome.writes == 1, "{outcome:?}");
    }
}

#[tokio::test]
async fn a_missing_nft_is_a_problem_only_where_masquerading_needs_it() {
    let fake = fake();
    fake.lock().unwrap().broken = Some(ToolError::Missing);
    let masquerading = wanted(&cluster(), &options());
    let outcome = compare(&mut Keeper::new(fake, INET), &masquerading, true).await;
    assert!(!outcome.verified);
    assert!(
        outcome.problems[0].contains("install nftables"),
        "{outcome:?}"
    );
    let outcome = Keeper::new(fake, INET).run(|| None, true).await;
    assert!(
        outcome.verified && outcome.warnings.is_empty(),
        "{outcome:?}"
    );
    let judging = judging(&pods(&[]));
    let outcome = compare(&mut Keeper::new(fake, NETDEV), &judging, true).await;
    assert!(outcome.verified && outcome.problems.is_empty());
    assert!(outcome.warnings[0].contains("rp_filter"), "{outcome:?}");
    fake.lock().unwrap().broken = Some(ToolError::Refused("no".into()));
    for family in [INET, NETDEV] {
        let outcome = compare(&mut Keeper::new(fake, family), &judging, true).await;
        assert!(!outcome.verified, "{outcome:?}");
    }
}

#[tokio::test]
async fn what_the_kernel_lacks_is_named_with_how_to_load_it() {
    for (lacks, family, module) in [
        ("postrouting", INET, "`modprobe nft_chain_nat`"),
        ("masquerade", INET, "`modprobe nft_masq`"),
        ("ingress", NETDEV, "CONFIG_NETFILTER_INGRESS"),
        ("\"counter\":\"spoofed\"", NETDEV, "`modprobe nft_objref`"),
    ] {
        let fake = fake();
        fake.lock().unwrap().lacks = Some(lacks);
        let wanted = match family {
            INET => wanted(&cluster(), &options()),
            NETDEV => judging(&pods(&["10.64.0.5"])),
        };
        let outcome = compare(&mut Keeper::new(fake, family), &wanted, true).await;
        let told = [outcome.problems, outcome.warnings].concat();
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].contains(module), "{told:?}");
        assert_eq!(outcome.verified, family == NETDEV, "{told:?}");
    }
}

#[tokio::test]
async fn a_table_that_nft_cannot_list_is_made_anew_once() {
    let fake = fake();
    let wanted = wanted(&cluster(), &options());
    let mut keeper = Keeper::new(fake, INET);
    compare(&mut keeper, &wanted, true).await;
    let dormant = || {
        let mut table = wanted.clone();
        table.unknown.push("table viaduct".into());
        Some(table)
    };
    {
        let mut fake = fake.lock().unwrap();
        (fake.table, fake.rubbish) = (dormant(), true);
    }
    let outcome = compare(&mut keeper, &wanted, true).await;
    assert!(outcome.verified && outcome.repairs == 1, "{outcome:?}");
    fake.lock().unwrap().broken = Some(ToolError::Unreadable("no JSON".into()));
    let broken = compare(&mut Keeper::new(fake, INET), &wanted, true).await;
    assert!(!broken.verified && broken.writes == 0, "{broken:?}");
}

proptest! {
    #[test]
    fn from_any_table_one_transaction_leads_to_any_other(
        (from, to) in prop_oneof![
            (masquerading(), masquerading()).prop_map(|(a, b)| ((INET, a), b)),
            (checking(), checking()).prop_map(|(a, b)| ((NETDEV, Some(a)), Some(b))),
        ]
    ) {
        let (family, from) = from;
        let is = from.as_ref().map(|from| made(family, from).1);
        prop_assert_eq!(change(from.as_ref(), is.as_ref()), None);
        let Some(difference) = change(to.as_ref(), is.as_ref()) else {
            return Ok(());
        };
        let then = applied(is, &transaction(family, to.as_ref(), &difference));
        prop_assert_eq!(change(to.as_ref(), then.as_ref()), None);
    }
}

/// Any pods.
fn checking() -> impl Strategy<Value = Ruleset> {
    prop::collection::btree_set(0u8..64, 0..6).prop_map(|addresses| {
        let addresses: Vec<String> = addresses.iter().map(|n| format!("10.64.0.{n}")).collect();
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        judging(&pods(&addresses))
    })
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
