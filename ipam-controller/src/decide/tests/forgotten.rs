//! Generations, and a store that has forgotten.

use super::*;

#[test]
fn a_block_that_comes_again_has_the_next_generation() {
    let mut scene = Scene::new(&[("p", "10.0.0.0/26", 26)]);
    scene.block(A, "a", BlockState::Active);
    scene.node("a");
    scene.decide();
    scene.delete(Kind::Block, "10.0.0.0-26");
    let decision = scene.decide();
    assert!(
        matches!(&decision.actions[0], Action::CreateBlock(block) if block.generation == 2),
        "{:?}",
        decision.actions
    );
}

#[test]
fn a_generation_outlives_record_and_controller() {
    let mut scene = Scene::new(&[("p", "10.0.0.0/26", 26)]);
    scene.remembers("p", 7);
    scene.node("a");
    let decision = scene.decide();
    assert!(
        matches!(&decision.actions[0], Action::CreateBlock(block) if block.generation == 8),
        "{:?}",
        decision.actions
    );
}

#[test]
fn a_block_that_the_store_forgot_goes_to_who_holds_it_and_to_nobody_else() {
    let mut scene = Scene::new(&[("p", "10.0.0.0/24", 26)]);
    scene.node("a");
    scene.node("b");
    scene.says("b", |c| _ = c.holds.insert(key(A), 5));
    // Who knows what else was forgotten: nobody gets a new block for a while.
    assert_eq!(scene.actions(), ["10.0.0.0/26 restored to b as 6"]);
    scene.mono += HOUR;
    assert_eq!(
        scene.actions(),
        [
            "10.0.0.0/26 restored to b as 6",
            "10.0.0.64/26 p for a",
            "10.0.0.128/26 p for b"
        ]
    );
}

#[test]
fn of_two_that_hold_a_block_the_later_grant_wins_unless_the_records_owner_confirms() {
    let mut scene = Scene::new(&[("p", "10.0.0.0/24", 26)]);
    scene.node("a");
    scene.node("b");
    scene.node("c");
    scene.says("b", |c| _ = c.holds.insert(key(A), 5));
    scene.says("c", |c| _ = c.holds.insert(key(A), 4));
    // The record is of the past: its owner lives and does not hold the block.
    scene.block(A, "a", BlockState::Active);
    assert_eq!(scene.actions(), ["10.0.0.0/26 restored to b as 6"]);
    scene.says("a", |c| _ = c.holds.insert(key(A), 1));
    assert!(!scene.actions().iter().any(|a| a.contains("restored")));
}

#[test]
fn a_grant_is_newer_than_all_that_its_node_knows_to_be_over() {
    let mut scene = Scene::new(&[("p", "10.0.0.0/24", 26)]);
    scene.node("a");
    scene.says("a", |claim| claim.ended = 9);
    let decision = scene.decide();
    let generation = decision.actions.iter().find_map(|action| match action {
        Action::CreateBlock(block) => Some(block.generation),
        _ => None,
    });
    assert_eq!(generation, Some(10));
}

#[test]
fn a_store_that_was_put_back_stops_giving_and_taking_for_a_quarantine() {
    let mut scene = Scene::new(&[("p", "10.0.0.0/24", 26)]);
    scene.node("a");
    scene.block(A, "a", BlockState::Active);
    scene.decide();
    scene.node("b");
    scene
        .view
        .update(Kind::Block, Update::Reset(vec![]), scene.mono);
    let decision = scene.decide();
    assert_eq!(decision.recheck_at, Some(scene.mono + HOUR));
    assert!(scene.actions().is_empty());
    scene.mono += HOUR;
    assert_eq!(scene.actions().len(), 2);
}

#[test]
fn a_controller_that_finds_blocks_at_its_start_listens_first() {
    let mut scene = Scene::new(&[("p", "10.0.0.0/24", 26)]);
    scene.policy.listen = Duration::from_secs(5);
    scene.node("a");
    assert_eq!(scene.actions().len(), 1, "a new network is served at once");
    scene.memory = Memory::default();
    scene.block(A, "a", BlockState::Active);
    scene.node("b");
    assert!(scene.actions().is_empty());
    scene.mono += Duration::from_secs(5);
    assert_eq!(scene.actions(), ["10.0.0.64/26 p for b"]);
}

#[test]
fn who_was_cut_off_for_long_gets_a_forgotten_block_only_after_all_were_heard() {
    let mut scene = Scene::new(&[("p", "10.0.0.0/26", 26)]);
    scene.node("a");
    scene.node("b");
    let cut_off = |claim: &mut Claim| {
        claim.holds.insert(key(A), 5);
        claim.renews.insert(key(A), 5);
    };
    scene.says("a", cut_off);
    assert!(scene.actions().is_empty());
    // Its owner of today comes in time.
    scene.says("b", |claim| _ = claim.holds.insert(key(A), 7));
    assert_eq!(scene.actions(), ["10.0.0.0/26 restored to b as 8"]);
    // Or nobody comes.
    scene.says("b", |_| ());
    assert!(scene.actions().is_empty());
    scene.mono += HOUR;
    assert_eq!(scene.actions(), ["10.0.0.0/26 restored to a as 8"]);
}

#[test]
fn grants_of_two_histories_of_a_store_never_have_one_generation() {
    let mut scene = Scene::new(&[("p", "10.0.0.0/24", 26)]);
    scene.memory = Memory::new(true, 3);
    scene.node("a");
    scene.says("a", |claim| _ = claim.holds.insert(key(A), 5));
    let first = (3 << 20) + 1;
    let restored = format!("10.0.0.0/26 restored to a as {first}");
    assert_eq!(scene.actions(), [restored.as_str()]);
    // The next controller must know of it, too: it stands in the store before any new grant.
    scene.mono += HOUR;
    let decision = scene.decide();
    let [Action::SetPoolStatus { pool, .. }] = &decision.actions[..] else {
        panic!("{:?}", decision.actions);
    };
    let floor = pool.status.as_ref().unwrap().generation;
    assert_eq!(floor, 3 << 20);
    scene.remembers("p", floor);
    scene.memory = Memory::default();
    assert_eq!(scene.actions()[0], restored);
    // It knows as much by a record of the new age.
    scene.remembers("p", 0);
    scene.says("a", |claim| _ = claim.holds.insert(key(B), first));
    scene.memory = Memory::default();
    let restored = format!("10.0.0.64/26 restored to a as {}", first + 1);
    assert_eq!(scene.actions()[0], restored);
}
