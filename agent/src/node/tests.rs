use super::*;
use viaduct_model::{Pool, PoolStatus};

fn name() -> NodeName {
    "n1".parse().unwrap()
}

fn identity() -> Identity {
    Identity {
        name: name(),
        incarnation: "i".into(),
        host: "h".into(),
        labels: BTreeMap::new(),
    }
}

fn view(blocks: &[&str]) -> ClusterView {
    let mut view = ClusterView::default();
    view.pools.insert(
        "default".parse().unwrap(),
        Pool::new("10.64.0.0/16".parse().unwrap(), None),
    );
    for block in blocks {
        let cidr: Cidr = block.parse().unwrap();
        view.blocks.insert(
            cidr,
            Block::new(cidr, "default".parse().unwrap(), name(), 1).into(),
        );
    }
    view
}

fn usage(blocks: &[(&str, u32, u32)]) -> AddressUsage {
    AddressUsage {
        blocks: blocks
            .iter()
            .map(|(c, used, free)| {
                (
                    c.parse().unwrap(),
                    BlockUsage {
                        used: *used,
                        free: *free,
                    },
                )
            })
            .collect(),
        ..AddressUsage::default()
    }
}

#[test]
fn the_overlay_address_stays_while_its_block_is_owned() {
    let overlay = |blocks: &[&str], current: Option<&str>| {
        overlay(&view(blocks), &name(), current.map(|c| c.parse().unwrap()))
            .map(|ip| ip.to_string())
    };
    assert_eq!(overlay(&[], None), None);
    assert_eq!(
        overlay(&["10.64.1.0/26"], None).as_deref(),
        Some("10.64.1.0")
    );
    // A lower block came later: the address stays.
    assert_eq!(
        overlay(&["10.64.0.0/26", "10.64.1.0/26"], Some("10.64.1.0")).as_deref(),
        Some("10.64.1.0")
    );
    assert_eq!(
        overlay(&["10.64.0.0/26"], Some("10.64.1.0")).as_deref(),
        Some("10.64.0.0")
    );
}

#[test]
fn a_block_is_wanted_at_once_and_the_next_one_at_the_watermark() {
    let wanted = |owned: &[&str], usage: &AddressUsage| {
        let owned = owned.iter().map(|c| c.parse().unwrap()).collect();
        wanted_blocks(&owned, usage)
    };
    let (large, small) = ("10.64.0.0/26", "10.64.0.0/28");
    assert_eq!(wanted(&[], &usage(&[])), 1);
    // Not counted yet.
    assert_eq!(wanted(&[large], &usage(&[])), 1);
    assert_eq!(wanted(&[large], &usage(&[(large, 40, 23)])), 1);
    assert_eq!(wanted(&[large], &usage(&[(large, 50, 13)])), 2);
    let hungry = AddressUsage {
        waiting: 95,
        ..usage(&[(small, 15, 0)])
    };
    assert_eq!(wanted(&[small], &hungry), 8);
    // Some have come, and one of them is counted.
    let half = ["10.64.0.16/28", "10.64.0.32/28"];
    let coming = AddressUsage {
        waiting: 95,
        draining: BTreeSet::from([half[0].parse().unwrap()]),
        ..usage(&[(small, 15, 0), (half[0], 0, 16)])
    };
    assert_eq!(wanted(&[small, half[0], half[1]], &coming), 8);
    // What is held and not ours by the records does not count.
    assert_eq!(
        wanted(&[small], &usage(&[(small, 15, 0), (half[0], 0, 16)])),
        2
    );
    let starved = AddressUsage {
        starved: true,
        ..usage(&[(large, 0, 63)])
    };
    assert_eq!(wanted(&[large], &starved), 2);
}

#[test]
fn a_full_pool_is_named_in_the_waiting_nodes_condition() {
    let mut view = view(&[]);
    for pool in view.pools.values_mut() {
        pool.status = Some(PoolStatus {
            exhausted_since: Some("2026-01-01T00:00:00Z".into()),
            blocks_total: 1,
            blocks_free: 0,
            generation: 0,
        });
    }
    let claim = claimed(&view, &DataplaneReport::default(), None, "now");
    let condition = &claim.conditions[0];
    assert_eq!(
        (condition.status.as_str(), condition.reason.as_str()),
        ("False", "PoolExhausted")
    );
    assert!(
        condition.message.contains("default"),
        "{}",
        condition.message
    );
}

#[test]
fn a_transition_time_changes_with_the_status_only() {
    let good = DataplaneReport::default();
    let first = claimed(&view(&[]), &good, None, "t1");
    let same = claimed(&view(&[]), &good, Some(&first), "t2");
    assert_eq!(first.conditions, same.conditions);
    let owned = claimed(&view(&["10.64.0.0/26"]), &good, Some(&same), "t3");
    let held = |c: &Condition| c.r#type == "PeersReachable";
    assert!(
        owned
            .conditions
            .iter()
            .all(|c| c.status == "True" && (held(c) || c.last_transition_time == "t3"))
    );
}

#[test]
fn a_route_of_others_is_a_condition_only_while_it_is_there() {
    let view = view(&["10.64.0.0/26"]);
    let mut report = DataplaneReport::default();
    let quiet = claimed(&view, &report, None, "t");
    report.conflicts = vec!["route X conflicts".into(), "another".into()];
    let loud = claimed(&view, &report, None, "t");
    assert_eq!(loud.conditions.len(), quiet.conditions.len() + 1);
    let condition = loud.conditions.last().unwrap();
    assert_eq!(condition.status, "False");
    assert_eq!(condition.message, "route X conflicts (and 1 more)");
}

#[test]
fn peers_that_cannot_be_reached_are_a_condition_that_names_them() {
    let condition = |not_adjacent: &[&str], refusals: &[&str]| {
        let report = DataplaneReport {
            not_adjacent: not_adjacent.iter().map(|s| (*s).to_owned()).collect(),
            refusals: refusals.iter().map(|s| (*s).to_owned()).collect(),
            ..DataplaneReport::default()
        };
        let claim = claimed(&view(&[]), &report, None, "t");
        let found = claim
            .conditions
            .into_iter()
            .find(|c| c.r#type == "PeersReachable");
        let found = found.unwrap();
        format!("{} {}: {}", found.status, found.reason, found.message)
    };
    assert!(condition(&[], &[]).starts_with("True AllRouted"));
    assert_eq!(
        condition(&["node \"b\" is far", "node \"c\" is far"], &["x"]),
        "False NotAdjacent: node \"b\" is far (and 1 more)"
    );
    assert_eq!(condition(&[], &["x"]), "False Refused: x");
}

fn claimed(
    view: &ClusterView,
    report: &DataplaneReport,
    previous: Option<&Claim>,
    now: &str,
) -> Claim {
    claim(
        &identity(),
        Some(view),
        &usage(&[]),
        Hold {
            tenure: &Tenure::new(name()),
            now_ms: 0,
        },
        Findings {
            report,
            trouble: &UnderlayTrouble::default(),
        },
        previous,
        now,
    )
}
