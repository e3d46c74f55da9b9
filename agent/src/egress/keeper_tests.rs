//! The keeper against a firewall in memory: what it writes, lists and tells.

use std::sync::Mutex;

use super::change::change;
use super::fake::FakeFirewall;
use super::keeper::{Keeper, Look, Outcome};
use super::ruleset::Ruleset;
use super::tests::with_nodes;
use super::tool::ToolError;

fn fake() -> &'static Mutex<FakeFirewall> {
    Box::leak(Box::default())
}

type Kept = Keeper<&'static Mutex<FakeFirewall>>;

async fn compare(keeper: &mut Kept, wanted: &Ruleset, look: Look) -> Outcome {
    keeper.run(Some(wanted.clone()), look).await
}

/// Whether this is what is in the fake's table.
fn holds(fake: &Mutex<FakeFirewall>, wanted: &Ruleset) -> bool {
    let fake = fake.lock().unwrap();
    change(Some(wanted), fake.table.as_ref()).is_none()
}

#[tokio::test]
async fn a_table_that_is_right_is_not_written_and_a_change_costs_no_listing() {
    let fake = fake();
    let two = with_nodes(2);
    let mut keeper = Keeper::new(fake);
    assert!(compare(&mut keeper, &two, Look::Yes).await.verified);
    let asked = |fake: &FakeFirewall| (fake.transactions.len(), fake.lists);
    assert_eq!(asked(&fake.lock().unwrap()), (1, 2));
    // Another life of the agent.
    let mut keeper = Keeper::new(fake);
    let outcome = compare(&mut keeper, &two, Look::Yes).await;
    assert!(outcome.verified && outcome.writes == 0);
    let lists = fake.lock().unwrap().lists;
    let three = with_nodes(3);
    let outcome = compare(&mut keeper, &three, Look::No).await;
    assert!(outcome.verified && outcome.writes == 1 && outcome.repairs == 0);
    assert_eq!(fake.lock().unwrap().lists, lists);
    assert!(holds(fake, &three));
    let outcome = compare(&mut keeper, &three, Look::Yes).await;
    assert!(outcome.verified && outcome.writes == 0, "{outcome:?}");
}

#[tokio::test]
async fn what_somebody_else_did_is_undone_and_counted() {
    let fake = fake();
    let wanted = with_nodes(2);
    let mut keeper = Keeper::new(fake);
    compare(&mut keeper, &wanted, Look::Yes).await;
    fake.lock().unwrap().table = None;
    let outcome = compare(&mut keeper, &wanted, Look::Yes).await;
    assert!(outcome.verified && outcome.repairs == 1);
    let mut table = fake.lock().unwrap().table.clone().unwrap();
    table.chains.clear();
    fake.lock().unwrap().table = Some(table);
    let outcome = compare(&mut keeper, &wanted, Look::Yes).await;
    assert!(outcome.verified && outcome.repairs == 1);
    assert!(holds(fake, &wanted));
}

#[tokio::test]
async fn a_node_that_comes_while_the_table_vanishes_is_there_when_it_is_back() {
    let fake = fake();
    let mut keeper = Keeper::new(fake);
    compare(&mut keeper, &with_nodes(2), Look::Yes).await;
    fake.lock().unwrap().table = None;
    let three = with_nodes(3);
    let outcome = compare(&mut keeper, &three, Look::No).await;
    assert!(
        outcome.verified && outcome.problems.is_empty(),
        "{outcome:?}"
    );
    assert_eq!((outcome.writes, outcome.repairs), (1, 1));
    assert!(holds(fake, &three));
}

#[tokio::test]
async fn another_releases_spelling_is_learnt_once_and_foreign_rules_never() {
    let wanted = with_nodes(2);
    let fake = fake();
    fake.lock().unwrap().accent = true;
    let mut keeper = Keeper::new(fake);
    let outcome = compare(&mut keeper, &wanted, Look::Yes).await;
    assert!(outcome.verified && outcome.writes == 1, "{outcome:?}");
    let outcome = compare(&mut keeper, &wanted, Look::Yes).await;
    assert!(outcome.verified && outcome.writes == 0, "{outcome:?}");
    let mut table = fake.lock().unwrap().table.clone().unwrap();
    let chain = table.chains.values_mut().next().unwrap();
    chain.rules.pop();
    fake.lock().unwrap().table = Some(table);
    let outcome = compare(&mut keeper, &wanted, Look::Yes).await;
    assert!(outcome.verified && outcome.writes == 1, "{outcome:?}");
}

#[tokio::test]
async fn a_missing_nft_is_a_problem_only_where_masquerading_needs_it() {
    let fake = fake();
    fake.lock().unwrap().broken = Some(ToolError::Missing);
    let masquerading = with_nodes(2);
    let outcome = compare(&mut Keeper::new(fake), &masquerading, Look::Yes).await;
    assert!(!outcome.verified);
    assert!(
        outcome.problems[0].contains("install nftables"),
        "{outcome:?}"
    );
    let outcome = Keeper::new(fake).run(None, Look::Yes).await;
    assert!(
        outcome.verified && outcome.problems.is_empty(),
        "{outcome:?}"
    );
    fake.lock().unwrap().broken = Some(ToolError::Refused("no".into()));
    let outcome = compare(&mut Keeper::new(fake), &masquerading, Look::Yes).await;
    assert!(!outcome.verified, "{outcome:?}");
}

#[tokio::test]
async fn what_the_kernel_lacks_is_named_with_how_to_load_it() {
    for (lacks, module) in [
        ("\"table\"", "`modprobe nf_tables`"),
        ("postrouting", "`modprobe nft_chain_nat`"),
        ("masquerade", "`modprobe nft_masq`"),
    ] {
        let fake = fake();
        fake.lock().unwrap().lacks = Some(lacks);
        let outcome = compare(&mut Keeper::new(fake), &with_nodes(2), Look::Yes).await;
        let told = &outcome.problems;
        assert!(!outcome.verified && told.len() == 1, "{told:?}");
        assert!(told[0].contains(module), "{told:?}");
    }
}

#[tokio::test]
async fn a_table_that_nft_cannot_list_is_made_anew_once() {
    let fake = fake();
    let wanted = with_nodes(2);
    let mut keeper = Keeper::new(fake);
    compare(&mut keeper, &wanted, Look::Yes).await;
    let dormant = || {
        let mut table = wanted.clone();
        table.unknown.push("table viaduct".into());
        Some(table)
    };
    {
        let mut fake = fake.lock().unwrap();
        (fake.table, fake.rubbish) = (dormant(), true);
    }
    let outcome = compare(&mut keeper, &wanted, Look::Yes).await;
    assert!(outcome.verified && outcome.repairs == 1, "{outcome:?}");
    fake.lock().unwrap().broken = Some(ToolError::Unreadable("no JSON".into()));
    let broken = compare(&mut Keeper::new(fake), &wanted, Look::Yes).await;
    assert!(!broken.verified && broken.writes == 0, "{broken:?}");
}

#[tokio::test]
async fn an_audit_lists_nothing_unless_somebody_has_changed_something() {
    let fake = fake();
    let wanted = with_nodes(2);
    let mut keeper = Keeper::new(fake);
    compare(&mut keeper, &wanted, Look::Yes).await;
    let lists = || fake.lock().unwrap().lists;
    let before = lists();
    for _ in 0..3 {
        let outcome = compare(&mut keeper, &wanted, Look::IfChanged).await;
        assert!(outcome.verified && outcome.writes == 0, "{outcome:?}");
    }
    assert_eq!(lists(), before);
    // Somebody else's table.
    fake.lock().unwrap().generation += 1;
    for _ in 0..3 {
        compare(&mut keeper, &wanted, Look::IfChanged).await;
    }
    assert_eq!(lists(), before + 1);
    // Ours, and nobody has told.
    {
        let mut fake = fake.lock().unwrap();
        fake.table = None;
        fake.generation += 1;
    }
    let outcome = compare(&mut keeper, &wanted, Look::IfChanged).await;
    assert!(outcome.verified && outcome.repairs == 1, "{outcome:?}");
    // What was written without a listing is not taken for seen.
    let before = lists();
    compare(&mut keeper, &wanted, Look::IfChanged).await;
    assert_eq!(lists(), before + 1);
}

#[tokio::test]
async fn a_deletion_that_was_told_is_undone_without_a_listing_and_counted() {
    let fake = fake();
    let wanted = with_nodes(2);
    let mut keeper = Keeper::new(fake);
    compare(&mut keeper, &wanted, Look::Yes).await;
    for look in [Look::No, Look::Yes] {
        fake.lock().unwrap().table = None;
        let lists = fake.lock().unwrap().lists;
        keeper.deleted();
        let outcome = compare(&mut keeper, &wanted, look).await;
        assert!(outcome.verified && outcome.repairs == 1, "{outcome:?}");
        let listed = fake.lock().unwrap().lists - lists;
        assert_eq!(listed > 0, look == Look::Yes);
        assert!(holds(fake, &wanted));
    }
    // Told late: it is there again, and made anew at one moment.
    keeper.deleted();
    let outcome = compare(&mut keeper, &wanted, Look::No).await;
    assert!(outcome.verified && holds(fake, &wanted), "{outcome:?}");
}
