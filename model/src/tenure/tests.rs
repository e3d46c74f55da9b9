//! The life of a hold, case by case.

use super::*;

const A: &str = "10.0.0.0/26";
const TRUST: u64 = 1000;

fn cidr() -> Cidr {
    A.parse().unwrap()
}

fn block(node: &str, generation: u64, state: BlockState) -> Block {
    Block {
        state,
        trust_ms: Some(TRUST),
        ..Block::new(
            cidr(),
            "p".parse().unwrap(),
            node.parse().unwrap(),
            generation,
        )
    }
}

fn told(tenure: &mut Tenure, blocks: &[Block], now: u64) {
    let blocks: BTreeMap<Cidr, Block> = blocks.iter().map(|b| (b.cidr, b.clone())).collect();
    tenure.told(&blocks, now);
}

fn ours(generation: u64) -> Block {
    block("a", generation, BlockState::Active)
}

/// A node that read its block of generation 5 at 100.
fn proved() -> Tenure {
    let mut tenure = Tenure::new("a".parse().unwrap());
    told(&mut tenure, &[ours(5)], 90);
    tenure.read(cidr(), Some(&ours(5)), 100);
    tenure
}

#[test]
fn a_block_serves_from_its_first_read_for_its_trust_and_no_longer() {
    let mut tenure = Tenure::new("a".parse().unwrap());
    told(&mut tenure, &[ours(5)], 90);
    assert!(
        !tenure.serves(&cidr(), 90),
        "the watch alone proves nothing"
    );
    assert_eq!(tenure.reads_due(), BTreeMap::from([(cidr(), 0)]));
    tenure.read(cidr(), Some(&ours(5)), 100);
    assert!(tenure.serves(&cidr(), 100) && tenure.serves(&cidr(), 100 + TRUST - 1));
    assert!(!tenure.serves(&cidr(), 100 + TRUST));
    assert_eq!(tenure.reads_due(), BTreeMap::from([(cidr(), 350)]));
}

#[test]
fn a_trust_that_ran_out_is_renewed_by_a_new_grant_only() {
    let mut tenure = proved();
    let late = 100 + TRUST;
    tenure.read(cidr(), Some(&ours(5)), late);
    assert!(!tenure.serves(&cidr(), late));
    assert_eq!(tenure.renews(late).len(), 1);
    // Nobody knows of another owner, so what runs goes on.
    assert_eq!(tenure.holds(|_| false, late).len(), 1);
    told(&mut tenure, &[ours(6)], late);
    assert!(tenure.renews(late).is_empty());
    tenure.read(cidr(), Some(&ours(6)), late + 1);
    assert!(tenure.serves(&cidr(), late + 1));
}

#[test]
fn a_read_that_was_begun_in_time_counts_however_late_its_answer() {
    let mut tenure = proved();
    tenure.read(cidr(), Some(&ours(5)), 99 + TRUST);
    assert!(tenure.serves(&cidr(), 98 + 2 * TRUST));
    // An older answer takes nothing back.
    tenure.read(cidr(), Some(&ours(5)), 200);
    assert!(tenure.serves(&cidr(), 98 + 2 * TRUST));
}

#[test]
fn a_quarantined_block_serves_nothing_at_once() {
    for state in [BlockState::Quarantined, BlockState::Releasing] {
        let mut tenure = proved();
        told(&mut tenure, &[block("a", 5, state)], 200);
        assert!(!tenure.serves(&cidr(), 200));
        tenure.read(cidr(), Some(&block("a", 5, state)), 300);
        assert!(!tenure.serves(&cidr(), 300));
    }
}

#[test]
fn a_block_with_another_owner_is_over_and_does_not_come_back_by_itself() {
    let mut tenure = proved();
    told(&mut tenure, &[block("b", 6, BlockState::Active)], 200);
    assert!(!tenure.is_held(&cidr()) && tenure.disputed(200).is_empty());
    assert_eq!(tenure.ended(), 5);
    // A store that was put back names us once more.
    told(&mut tenure, &[ours(5)], 300);
    assert!(!tenure.is_held(&cidr()));
    assert_eq!(
        tenure.gives(),
        BTreeMap::from([("10.0.0.0-26".to_owned(), 5)])
    );
    // A real grant counts.
    told(&mut tenure, &[ours(7)], 400);
    assert!(tenure.is_held(&cidr()) && tenure.gives().is_empty());
}

#[test]
fn an_older_record_of_another_is_disputed_while_we_are_trusted() {
    let mut tenure = proved();
    told(&mut tenure, &[block("b", 4, BlockState::Active)], 200);
    assert!(!tenure.serves(&cidr(), 200));
    assert_eq!(tenure.disputed(200), BTreeSet::from([cidr()]));
    assert_eq!(
        tenure.holds(|_| false, 200).values().collect::<Vec<_>>(),
        [&5]
    );
    // Not once our trust has run out: it may be a real owner by then.
    assert!(tenure.disputed(100 + TRUST).is_empty());
    told(
        &mut tenure,
        &[block("b", 4, BlockState::Active)],
        100 + TRUST,
    );
    assert!(!tenure.is_held(&cidr()));
}

#[test]
fn a_block_that_the_store_forgot_is_held_and_serves_nothing() {
    let mut tenure = proved();
    told(&mut tenure, &[], 200);
    assert!(!tenure.serves(&cidr(), 200));
    assert_eq!(tenure.holds(|_| false, 200).len(), 1);
    let late = 100 + TRUST;
    assert!(tenure.holds(|_| false, late).is_empty(), "nobody needs it");
    assert_eq!(tenure.holds(|_| true, late).len(), 1);
    // A record of ours that is older than our grant is to be put right.
    told(&mut tenure, &[ours(4)], 200);
    assert!(!tenure.serves(&cidr(), 200));
    assert_eq!(tenure.holds(|_| false, late).len(), 1);
    assert_eq!(
        tenure.holds(|_| false, 200).values().collect::<Vec<_>>(),
        [&5]
    );
}

#[test]
fn a_gift_is_never_taken_back() {
    let mut tenure = proved();
    tenure.give(cidr());
    assert!(!tenure.serves(&cidr(), 200) && tenure.holds(|_| true, 200).is_empty());
    assert_eq!(tenure.gives().values().collect::<Vec<_>>(), [&5]);
    // Also over a restart.
    let text = serde_json::to_string(&tenure).unwrap();
    let mut tenure: Tenure = serde_json::from_str(&text).unwrap();
    told(&mut tenure, &[ours(5)], 300);
    assert!(!tenure.serves(&cidr(), 300));
    told(&mut tenure, &[], 400);
    assert!(!tenure.is_held(&cidr()) && tenure.gives().is_empty());
    told(&mut tenure, &[ours(6)], 500);
    tenure.read(cidr(), Some(&ours(6)), 500);
    assert!(tenure.serves(&cidr(), 500));
}

#[test]
fn a_block_is_withheld_in_a_round_of_its_own_each_time() {
    let mut tenure = proved();
    tenure.withhold(&cidr(), true);
    assert!(!tenure.serves(&cidr(), 200));
    assert_eq!(tenure.withheld()[&cidr()], tenure.round());
    tenure.withhold(&cidr(), false);
    assert!(tenure.serves(&cidr(), 200) && tenure.withheld().is_empty());
    let before = tenure.round();
    tenure.withhold(&cidr(), true);
    assert!(
        tenure.withheld()[&cidr()] > before,
        "what was said of the first time does not count for the second"
    );
}

#[test]
fn a_gift_is_given_at_the_grant_that_the_store_knows() {
    let mut tenure = proved();
    tenure.give(cidr());
    told(&mut tenure, &[ours(3)], 200);
    assert_eq!(tenure.gives().values().collect::<Vec<_>>(), [&3]);
    assert!(!tenure.is_held(&cidr()));
}

#[test]
fn what_another_node_or_another_boot_wrote_is_nothing() {
    let tenure = proved();
    assert!(tenure.is_of(&"a".parse().unwrap(), 100));
    assert!(!tenure.is_of(&"b".parse().unwrap(), 100));
    assert!(!tenure.is_of(&"a".parse().unwrap(), 99));
}

#[test]
fn who_never_read_a_grant_claims_nothing_by_it_that_others_would_have_to_believe() {
    let mut tenure = Tenure::new("a".parse().unwrap());
    told(&mut tenure, &[ours(5)], 90);
    assert!(tenure.holds(|_| true, 95).is_empty(), "the record says it");
    // The store was put back: the grant is news to it, and maybe one of long ago.
    told(&mut tenure, &[ours(3)], 100);
    assert_eq!(tenure.holds(|_| false, 100).len(), 1);
    assert_eq!(tenure.renews(100).len(), 1, "all others are heard first");
    // What was proved counts as long as it is trusted, whatever became of the record.
    let mut tenure = proved();
    let quarantined = block("a", 5, BlockState::Quarantined);
    told(&mut tenure, &[quarantined], 200);
    assert_eq!(tenure.holds(|_| false, 200).len(), 1);
    assert!(tenure.renews(200).is_empty());
    assert_eq!(tenure.renews(100 + TRUST).len(), 1);
}
