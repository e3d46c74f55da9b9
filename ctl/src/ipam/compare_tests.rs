//! Each contradiction planted alone into facts that agree.

use viaduct_agent::inventory::PodRoute;
use viaduct_datastore::Named;
use viaduct_model::{Invalid, Pool};

use super::*;
use crate::fixture::{inventory, named, node, recorded, snapshot};

/// Two nodes with a block and a pod each, in agreement.
fn facts() -> Facts {
    let mut snapshot = snapshot();
    snapshot.unreadable.clear();
    snapshot.pools = vec![named(
        "default",
        Pool::new("10.64.0.0/24".parse().unwrap(), None),
    )];
    snapshot.blocks.push(block("10.64.0.64/26", "n2", 2));
    let nodes = [
        ("n1", inventory(&[("c1", "10.64.0.5")])),
        ("n2", inventory(&[("c2", "10.64.0.70")])),
    ];
    Facts {
        snapshot,
        nodes: nodes.map(|(name, i)| (name.to_owned(), Ok(i))).into(),
        pods: None,
    }
}

fn block(cidr: &str, node: &str, generation: u64) -> Named<Block> {
    let cidr: Cidr = cidr.parse().unwrap();
    let (pool, node) = ("default".parse().unwrap(), node.parse().unwrap());
    named(
        &cidr.record_name(),
        Block::new(cidr, pool, node, generation),
    )
}

fn on<'a>(facts: &'a mut Facts, node: &str) -> &'a mut Inventory {
    facts.nodes.get_mut(node).unwrap().as_mut().unwrap()
}

fn pod(name: &str, node: &str, address: &str) -> PodRef {
    PodRef {
        name: name.into(),
        node: node.into(),
        addresses: vec![address.parse().unwrap()],
    }
}

/// The one finding: its kind, its sentence and the commands.
fn only(facts: &Facts) -> (Sort, String, Vec<String>) {
    let findings = compare(facts);
    let [finding] = &findings[..] else {
        panic!("{findings:#?}");
    };
    let commands = finding.repair.iter().map(|repair| match repair {
        Repair::On(node, command) => format!("{node}: {command}"),
        Repair::Here(command) => command.clone(),
        Repair::Record(kind, name) => format!("forget {kind} {name}"),
    });
    (finding.sort, finding.text.clone(), commands.collect())
}

#[test]
fn what_agrees_has_no_finding() {
    assert_eq!(compare(&facts()), []);
}

#[test]
fn an_address_with_two_owners_is_a_duplicate_and_the_blocks_node_keeps_it() {
    let mut facts = facts();
    let theirs = inventory(&[("c9", "10.64.0.5")]);
    let n2 = on(&mut facts, "n2");
    n2.attachments.extend(theirs.attachments);
    n2.links.extend(theirs.links);
    n2.routes.extend(theirs.routes);
    let (sort, text, repair) = only(&facts);
    assert_eq!(sort, Sort::Duplicate);
    assert!(text.contains("c1/eth0 on node n1") && text.contains("c9/eth0 on node n2"));
    assert_eq!(
        repair,
        ["n2: viaductctl ipam release 10.64.0.5 --container c9 --ifname eth0 --detach --yes"]
    );
}

#[test]
fn of_two_owners_on_one_node_the_one_that_the_kernel_routes_to_keeps_it() {
    let mut facts = facts();
    let mut second = recorded("a0", "10.64.0.5");
    second.endpoint.allocated_at = 1;
    let link = second.endpoint.link.clone();
    let n1 = on(&mut facts, "n1");
    n1.attachments.insert(0, second);
    n1.links.push(link);
    let (sort, _, repair) = only(&facts);
    assert_eq!((sort, repair.len()), (Sort::Duplicate, 1));
    assert!(repair[0].contains("--container a0"), "{repair:?}");
}

#[test]
fn an_address_whose_device_is_gone_is_a_leak_and_proof_decides_how_it_is_released() {
    let mut facts = facts();
    let n1 = on(&mut facts, "n1");
    n1.links.clear();
    n1.routes.clear();
    let (sort, text, repair) = only(&facts);
    assert_eq!(sort, Sort::Leak);
    assert!(text.contains("10.64.0.5 of c1/eth0 on node n1"), "{text}");
    assert_eq!(
        repair,
        ["n1: viaductctl ipam release 10.64.0.5 --container c1 --ifname eth0 --yes"]
    );
    on(&mut facts, "n1").attachments[0].namespace_seen = true;
    assert!(only(&facts).2[0].ends_with("--detach --yes"));
}

#[test]
fn a_spooled_del_is_the_next_agents_and_a_leak_only_beside_a_running_one() {
    let mut facts = facts();
    let n1 = on(&mut facts, "n1");
    n1.spooled = std::mem::take(&mut n1.links);
    n1.routes.clear();
    n1.agent_runs = false;
    assert_eq!(compare(&facts), []);
    on(&mut facts, "n1").agent_runs = true;
    assert_eq!(only(&facts).0, Sort::Leak);
}

#[test]
fn devices_and_routes_of_nobody_are_orphans() {
    let mut with_device = facts();
    let n1 = on(&mut with_device, "n1");
    n1.links.push("via0123456789ab".into());
    // It goes with its device.
    n1.routes.push(PodRoute {
        destination: "10.64.0.9/32".parse().unwrap(),
        link: Some("via0123456789ab".into()),
    });
    let (sort, _, repair) = only(&with_device);
    assert_eq!(sort, Sort::Orphan);
    assert_eq!(repair, ["n1: ip link delete dev via0123456789ab"]);

    let mut with_route = facts();
    let n1 = on(&mut with_route, "n1");
    let link = n1.links[0].clone();
    n1.routes.push(PodRoute {
        destination: "10.64.0.9/32".parse().unwrap(),
        link: Some(link.clone()),
    });
    let (sort, text, repair) = only(&with_route);
    assert_eq!(sort, Sort::Orphan);
    assert!(text.contains("c1/eth0 has not that address"), "{text}");
    assert_eq!(
        repair,
        [format!(
            "n1: ip route delete 10.64.0.9/32 dev {link} proto 87"
        )]
    );
}

#[test]
fn records_that_cannot_be_read_are_orphans() {
    let mut facts = facts();
    let damaged = [("via0".to_owned(), "EOF".to_owned())];
    on(&mut facts, "n1").damaged = damaged.into();
    let (sort, _, repair) = only(&facts);
    assert_eq!(sort, Sort::Orphan);
    assert_eq!(repair, ["n1: rm /run/viaduct/endpoints/via0.json"]);
    on(&mut facts, "n1").links.push("via0".into());
    assert_eq!(only(&facts).2, ["n1: ip link delete dev via0"]);

    let mut facts = self::facts();
    let invalid = Invalid::new("block \"10.64.0.128-26\"", "record", "{", "EOF");
    facts.snapshot.unreadable = vec![invalid];
    assert_eq!(only(&facts).2, ["forget block 10.64.0.128-26"]);
}

#[test]
fn an_address_out_of_the_nodes_blocks_is_a_stranger() {
    for (address, whose) in [
        ("10.64.0.71", "block 10.64.0.64/26 of node n2"),
        ("10.64.0.200", "no block at all"),
    ] {
        let mut facts = facts();
        facts
            .nodes
            .insert("n1".into(), Ok(inventory(&[("c1", address)])));
        let (sort, text, repair) = only(&facts);
        assert_eq!(sort, Sort::Stranger);
        assert!(text.contains(whose), "{text}");
        assert!(repair[0].contains("--detach"), "its device is there");
    }
}

#[test]
fn routes_of_others_into_blocks_are_strangers_and_elsewhere_nobodys_business() {
    let mut facts = facts();
    let foreign = |destination: &str| PodRoute {
        destination: destination.parse().unwrap(),
        link: Some("eth0".into()),
    };
    on(&mut facts, "n1").foreign = vec![foreign("10.64.0.0/16"), foreign("192.0.2.0/24")];
    assert_eq!(compare(&facts), []);
    on(&mut facts, "n1").foreign.push(foreign("10.64.0.66/32"));
    let (sort, _, repair) = only(&facts);
    assert_eq!(sort, Sort::Stranger);
    assert_eq!(repair, ["n1: ip route delete 10.64.0.66/32 dev eth0"]);
}

#[test]
fn blocks_that_overlap_are_duplicates_and_the_newer_goes() {
    let mut facts = facts();
    facts.snapshot.blocks.push(block("10.64.0.64/27", "n1", 9));
    facts.snapshot.blocks.push(block("10.64.0.96/28", "n1", 1));
    facts.nodes.clear();
    let findings = compare(&facts);
    let repairs: Vec<_> = findings.iter().map(|f| &f.repair[0]).collect();
    assert_eq!(
        repairs,
        [
            &Repair::Record(Kind::Block, "10.64.0.64-27".into()),
            &Repair::Record(Kind::Block, "10.64.0.64-26".into())
        ]
    );
    assert!(findings.iter().all(|f| f.sort == Sort::Duplicate));
}

#[test]
fn blocks_of_no_pool_and_of_no_node_are_named() {
    let mut out = facts();
    out.snapshot.blocks.push(block("10.65.0.0/26", "n1", 3));
    let (sort, text, _) = only(&out);
    assert_eq!(sort, Sort::Stranger);
    assert!(text.contains("not within its pool default"), "{text}");

    let mut nobodys = facts();
    nobodys
        .snapshot
        .blocks
        .push(block("10.64.0.128/26", "n7", 3));
    assert_eq!(only(&nobodys).0, Sort::Leak);
    // What rests until it is free is as it should be.
    let last = nobodys.snapshot.blocks.last_mut().unwrap();
    last.record.state = BlockState::Quarantined;
    assert_eq!(compare(&nobodys), []);
}

#[test]
fn a_node_that_holds_what_another_has_by_the_records_is_a_duplicate() {
    let mut facts = facts();
    facts.snapshot.claims[0].record.holds = [("10.64.0.0-26".to_owned(), 1)].into();
    assert_eq!(compare(&facts), []);
    let holds = &mut facts.snapshot.claims[0].record.holds;
    holds.insert("10.64.0.64-26".into(), 1);
    let (sort, text, _) = only(&facts);
    assert_eq!(sort, Sort::Duplicate);
    assert!(text.contains("gives it to node n2"), "{text}");
}

#[test]
fn pods_are_compared_with_the_ledgers_of_their_nodes() {
    let mut facts = facts();
    on(&mut facts, "n1").attachments[0].endpoint.pod = Some("shop/web".into());
    facts.pods = Some(vec![pod("shop/web", "n1", "10.64.0.5")]);
    assert_eq!(compare(&facts), []);

    // Not of our pools: not ours.
    let mut others = facts.clone();
    others
        .pods
        .as_mut()
        .unwrap()
        .push(pod("a/b", "n1", "192.0.2.7"));
    assert_eq!(compare(&others), []);

    let mut stranger = facts.clone();
    stranger
        .pods
        .as_mut()
        .unwrap()
        .push(pod("a/b", "n2", "10.64.0.9"));
    let (sort, _, repair) = only(&stranger);
    assert_eq!(sort, Sort::Stranger);
    assert_eq!(repair, ["kubectl --namespace a delete pod b"]);

    let mut leak = facts.clone();
    leak.pods = Some(Vec::new());
    let (sort, text, repair) = only(&leak);
    assert_eq!(sort, Sort::Leak);
    assert!(text.contains("(pod shop/web)"), "{text}");
    assert!(repair[0].contains("--detach"), "{repair:?}");

    let mut twice = facts.clone();
    twice
        .pods
        .as_mut()
        .unwrap()
        .push(pod("a/b", "n1", "10.64.0.5"));
    let (sort, _, repair) = only(&twice);
    assert_eq!(sort, Sort::Duplicate);
    assert_eq!(repair, ["kubectl --namespace a delete pod b"]);
}

#[test]
fn a_node_that_was_not_looked_at_is_a_finding_and_blames_nobody_else() {
    let mut facts = facts();
    facts.pods = Some(vec![pod("a/b", "n2", "10.64.0.70")]);
    facts.nodes.insert("n2".into(), Err("no way there".into()));
    let (sort, text, _) = only(&facts);
    assert_eq!(sort, Sort::Unseen);
    assert!(text.contains("no way there"), "{text}");
}

#[test]
fn what_does_not_last_is_no_finding() {
    let mut facts = facts();
    on(&mut facts, "n1").links.push("viaadd".into());
    let first = compare(&facts);
    on(&mut facts, "n1").links[1] = "viaother".into();
    assert_eq!(lasting(&first, compare(&facts)), []);
    assert_eq!(lasting(&first, first.clone()), first);
}

#[test]
fn every_node_that_the_store_names_is_asked() {
    let mut facts = facts();
    facts.snapshot.nodes = vec![node("n3", "172.29.0.13", "172.29.0.0/24")];
    let names = node_names(&facts.snapshot);
    assert_eq!(names.into_iter().collect::<Vec<_>>(), ["n1", "n2", "n3"]);
}
