//! How blocks leave their nodes: given, quarantined, freed, or granted anew.

use super::*;

#[test]
fn a_given_block_is_freed_in_two_steps() {
    let mut scene = Scene::new(&[("p", "10.0.0.0/24", 26)]);
    scene.node("a");
    scene.block(A, "a", BlockState::Active);
    scene.block(B, "a", BlockState::Active);
    scene.claim("a", 1, 0, &[B], &[A, B]);
    assert_eq!(scene.actions(), ["10.0.0.64/26 releasing None"]);
    scene.block(B, "a", BlockState::Releasing);
    assert!(scene.actions().is_empty());
    scene.claim("a", 1, 0, &[B], &[A]);
    // First its generation is written down where it outlives the record.
    assert!(scene.actions().is_empty());
    assert!(matches!(
        &scene.decide().actions[..],
        [Action::SetPoolStatus { pool, .. }] if pool.status.as_ref().unwrap().generation == 1
    ));
    scene.remembers("p", 1);
    assert_eq!(scene.actions(), ["10.0.0.64/26 freed Given"]);
    // An agent that starts anew knows nothing of the gift and counts the block as its own.
    scene.claim("a", 1, 0, &[], &[A, B]);
    assert_eq!(scene.actions(), ["10.0.0.64/26 active None"]);
    // It has said nothing yet.
    scene.claim("a", 1, 0, &[], &[]);
    assert!(scene.actions().is_empty());
    // Somebody else's block is not its to give.
    scene.block(B, "b", BlockState::Active);
    scene.node("b");
    scene.claim("a", 1, 0, &[B], &[A]);
    assert!(scene.actions().is_empty());
}

#[test]
fn a_vanished_node_keeps_its_blocks_for_the_reclaim_time() {
    let mut scene = Scene::new(&[("p", "10.0.0.0/24", 26)]);
    scene.node("a");
    scene.block(A, "a", BlockState::Active);
    assert!(scene.actions().is_empty());
    scene.delete(Kind::Claim, "a");
    let gone = scene.mono;
    assert_eq!(scene.decide().recheck_at, Some(gone + 24 * HOUR));
    // It comes back in time: the clock starts anew.
    scene.mono += 23 * HOUR;
    scene.claim("a", 1, 0, &[], &[A]);
    assert!(scene.actions().is_empty());
    scene.delete(Kind::Claim, "a");
    assert!(scene.actions().is_empty());
    scene.mono += 23 * HOUR;
    assert!(scene.actions().is_empty());
    scene.mono += HOUR;
    assert_eq!(scene.actions(), ["10.0.0.0/26 quarantined NodeGone"]);
    scene.block(A, "a", BlockState::Quarantined);
    assert_eq!(scene.decide().recheck_at, Some(scene.mono + HOUR));
    scene.mono += HOUR;
    scene.remembers("p", 1);
    assert_eq!(scene.actions(), ["10.0.0.0/26 freed NodeGone"]);
    // Back at the last moment.
    scene.claim("a", 1, 0, &[], &[]);
    assert_eq!(scene.actions(), ["10.0.0.0/26 active None"]);
}

#[test]
fn a_removed_node_is_quarantined_at_once() {
    let mut scene = Scene::new(&[("p", "10.0.0.0/24", 26)]);
    scene.node("a");
    scene.block(A, "a", BlockState::Active);
    scene.delete(Kind::Node, "a");
    // Its agent runs, so it was deleted by accident.
    assert!(scene.actions().is_empty());
    scene.delete(Kind::Claim, "a");
    assert_eq!(scene.actions(), ["10.0.0.0/26 quarantined NodeRemoved"]);
}

#[test]
fn a_node_that_the_cluster_says_stands_keeps_its_blocks_without_any_record() {
    let mut scene = Scene::new(&[("p", "10.0.0.0/24", 26)]);
    scene.block(A, "a", BlockState::Active);
    assert_eq!(scene.actions(), ["10.0.0.0/26 quarantined NodeRemoved"]);
    let node = "a".parse().unwrap();
    scene.view.stands(&node, scene.mono);
    assert!(scene.actions().is_empty());
    let again = scene.view.stands_until(&node);
    assert_eq!(scene.decide().recheck_at, again);
    // Its word is good for a while only.
    scene.mono = again.unwrap();
    assert_eq!(scene.actions(), ["10.0.0.0/26 quarantined NodeRemoved"]);
}

#[test]
fn records_that_cannot_be_read_prove_that_their_object_exists() {
    let mut scene = Scene::new(&[("p", "10.0.0.0/24", 26)]);
    scene.put_bytes(Kind::Block, "10.0.0.0-26", b"rubbish".to_vec());
    scene.put_bytes(Kind::Claim, "b", b"[]".to_vec());
    scene.put_bytes(Kind::Node, "c", br#"{"mtu":"many"}"#.to_vec());
    scene.block(B, "b", BlockState::Active);
    scene.block("10.0.0.128/26", "c", BlockState::Active);
    scene.node("a");
    let decision = scene.decide();
    assert_eq!(decision.problems.len(), 3);
    // The first block is taken by its name, and nothing is reclaimed.
    assert_eq!(scene.actions(), ["10.0.0.192/26 p for a"]);
    scene.mono += 100 * HOUR;
    let reclaimed = scene.actions();
    assert_eq!(reclaimed[0], "10.0.0.128/26 quarantined NodeGone");
    assert!(!reclaimed.iter().any(|a| a.contains(B)), "{reclaimed:?}");
}

#[test]
fn what_a_block_promises_its_owner_holds_whatever_the_flag_says() {
    let mut scene = Scene::new(&[("p", "10.0.0.0/24", 26)]);
    scene.remembers("p", 1);
    scene.policy.quarantine = Duration::from_secs(10);
    let mut block = Block::new(
        A.parse().unwrap(),
        "p".parse().unwrap(),
        "a".parse().unwrap(),
        1,
    );
    block.state = BlockState::Quarantined;
    block.trust_ms = Some(80_000);
    scene.put(&key(A), &block);
    assert_eq!(
        scene.decide().recheck_at,
        Some(scene.mono + Duration::from_secs(100))
    );
    scene.mono += Duration::from_secs(100);
    assert_eq!(scene.actions(), ["10.0.0.0/26 freed NodeGone"]);
}

#[test]
fn two_quarantines_are_not_one() {
    let mut scene = Scene::new(&[("p", "10.0.0.0/24", 26)]);
    scene.remembers("p", 1);
    scene.block(A, "a", BlockState::Quarantined);
    scene.decide();
    scene.mono += HOUR;
    // Its node came and went meanwhile, and nobody told us.
    scene.block(A, "a", BlockState::Quarantined);
    assert!(scene.actions().is_empty());
    scene.mono += HOUR;
    assert_eq!(scene.actions(), ["10.0.0.0/26 freed NodeGone"]);
}

#[test]
fn a_grant_that_its_owner_does_not_trust_any_more_is_granted_anew() {
    let mut scene = Scene::new(&[("p", "10.0.0.0/24", 26)]);
    scene.node("a");
    scene.block(A, "a", BlockState::Active);
    scene.says("a", |c| _ = c.renews.insert(key(A), 1));
    let decision = scene.decide();
    assert!(
        matches!(&decision.actions[0], Action::SetBlockState { block, .. }
            if block.generation == 2 && block.node.as_str() == "a"),
        "{:?}",
        decision.actions
    );
    // Not what it says of an earlier grant.
    scene.says("a", |c| _ = c.renews.insert(key(A), 0));
    assert!(scene.actions().is_empty());
}
