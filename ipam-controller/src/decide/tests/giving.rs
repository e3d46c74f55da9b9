//! Pools, and which node gets which block.

use super::*;

#[test]
fn nothing_is_decided_before_everything_was_listed() {
    let mut scene = Scene::new(&[]);
    scene.policy.bootstrap = vec![(
        "default".parse().unwrap(),
        Pool::new("10.0.0.0/8".parse().unwrap(), None),
    )];
    assert_eq!(scene.actions(), ["pool default 10.0.0.0/8"]);
    scene.view = View::default();
    scene
        .view
        .update(Kind::Pool, Update::Reset(vec![]), scene.mono);
    assert!(scene.actions().is_empty());
}

#[test]
fn the_default_pool_is_made_only_when_there_is_no_pool_at_all() {
    let mut scene = Scene::new(&[("other", "10.9.0.0/16", 26)]);
    scene.policy.bootstrap = vec![(
        "default".parse().unwrap(),
        Pool::new("10.0.0.0/8".parse().unwrap(), None),
    )];
    assert!(scene.actions().is_empty());
    scene.delete(Kind::Pool, "other");
    assert_eq!(scene.actions().len(), 1);
    // One that cannot be read is one all the same.
    scene.put_bytes(Kind::Pool, "other", b"{".to_vec());
    assert!(scene.actions().is_empty());
}

#[test]
fn the_lowest_free_block_of_the_first_pool_goes_to_the_neediest_first() {
    let mut scene = Scene::new(&[("p", "10.0.0.0/25", 26), ("q", "10.1.0.0/24", 26)]);
    scene.block(A, "a", BlockState::Active);
    scene.node("a");
    scene.claim("a", 2, 0, &[], &[A]);
    scene.node("b");
    scene.node("c");
    assert_eq!(
        scene.actions(),
        [
            "10.0.0.64/26 p for b",
            "10.1.0.0/26 q for c",
            "10.1.0.64/26 q for a"
        ]
    );
}

#[test]
fn both_families_are_served_each_from_its_own_pool() {
    let mut scene = Scene::new(&[("p", "10.0.0.0/24", 26), ("p6", "fd00::/48", 122)]);
    scene.put("a", &node(&[], &[]));
    scene.claim("a", 1, 1, &[], &[]);
    assert_eq!(
        scene.actions(),
        ["10.0.0.0/26 p for a", "fd00::/122 p6 for a"]
    );
}

#[test]
fn disabled_pools_give_nothing_and_selectors_are_heeded() {
    let mut scene = Scene::new(&[]);
    let pool = |cidr: &str, zone: Option<&str>, disabled| Pool {
        disabled,
        node_selector: zone
            .map(|z| ("zone".into(), z.into()))
            .into_iter()
            .collect(),
        ..Pool::new(cidr.parse().unwrap(), Some(26))
    };
    scene.put("a-off", &pool("10.0.0.0/24", None, true));
    scene.put("b-east", &pool("10.1.0.0/24", Some("east"), false));
    scene.put("c-all", &pool("10.2.0.0/24", None, false));
    scene.put("e", &node(&[("zone", "east")], &[]));
    scene.claim("e", 1, 0, &[], &[]);
    scene.put("w", &node(&[("zone", "west")], &[]));
    scene.claim("w", 1, 0, &[], &[]);
    // Its labels are not known yet.
    scene.claim("x", 1, 0, &[], &[]);
    assert_eq!(
        scene.actions(),
        ["10.1.0.0/26 b-east for e", "10.2.0.0/26 c-all for w"]
    );
}

#[test]
fn a_full_pool_is_told_and_resolves_by_itself() {
    let mut scene = Scene::new(&[("p", "10.0.0.0/26", 26)]);
    scene.block(A, "a", BlockState::Active);
    scene.node("a");
    scene.node("b");
    let status = |decision: &Decision| {
        decision.actions.iter().find_map(|action| match action {
            Action::SetPoolStatus { pool, .. } => pool.status.clone(),
            _ => None,
        })
    };
    let decision = scene.decide();
    let told = status(&decision).unwrap();
    assert_eq!((told.blocks_total, told.blocks_free), (1, 0));
    assert!(told.exhausted_since.is_some());
    let why = sentence(&decision.waiting[0]);
    assert!(why.contains("\"b\"") && why.contains("p;"), "{why}");
    // Told once: nothing more to write while it stays so.
    let pool = Pool {
        status: Some(told),
        ..Pool::new(A.parse().unwrap(), Some(26))
    };
    scene.put("p", &pool);
    assert!(scene.decide().actions.is_empty());
    // Another pool serves the node, and the full one is told to be well again.
    scene.put("q", &Pool::new("10.1.0.0/24".parse().unwrap(), None));
    let decision = scene.decide();
    assert!(decision.waiting.is_empty());
    assert_eq!(short(&decision.actions[0]).unwrap(), "10.1.0.0/26 q for b");
    assert_eq!(status(&decision).unwrap().exhausted_since, None);
}

#[test]
fn counts_alone_are_written_once_a_minute() {
    let mut scene = Scene::new(&[("p", "10.0.0.0/24", 26)]);
    let pool = Pool {
        status: Some(viaduct_model::PoolStatus {
            exhausted_since: None,
            blocks_total: 4,
            blocks_free: 4,
            generation: 0,
        }),
        ..Pool::new("10.0.0.0/24".parse().unwrap(), Some(26))
    };
    scene.put("p", &pool);
    scene
        .memory
        .status_at
        .insert("p".parse().unwrap(), scene.mono);
    scene.block(A, "a", BlockState::Active);
    scene.node("a");
    let decision = scene.decide();
    assert!(decision.actions.is_empty());
    let due = scene.mono + Duration::from_secs(60);
    assert_eq!(decision.recheck_at, Some(due));
    scene.mono = due;
    assert_eq!(scene.decide().actions.len(), 1);
}

#[test]
fn a_pool_that_overlaps_an_earlier_one_gives_nothing_and_both_are_named() {
    let mut scene = Scene::new(&[("x", "10.0.0.0/24", 26), ("b", "10.0.0.0/16", 26)]);
    scene.node("a");
    let decision = scene.decide();
    assert_eq!(decision.problems.len(), 1);
    let problem = &decision.problems[0];
    assert!(
        problem.contains("\"x\"") && problem.contains("\"b\""),
        "{problem}"
    );
    assert_eq!(scene.actions(), ["10.0.0.0/26 b for a"]);
}

#[test]
fn a_node_gets_nothing_from_a_pool_inside_its_underlay() {
    let mut scene = Scene::new(&[("p", "10.0.0.0/16", 26)]);
    scene.put("a", &node(&[], &["10.0.3.0/24"]));
    scene.claim("a", 1, 0, &[], &[]);
    scene.node("b");
    let decision = scene.decide();
    assert!(
        decision.problems[0].contains("10.0.3.0/24"),
        "{:?}",
        decision.problems
    );
    assert!(decision.waiting[0].full.is_empty());
    assert_eq!(scene.actions(), ["10.0.0.0/26 p for b"]);
}

#[test]
fn a_node_gets_nothing_before_its_underlay_is_known() {
    let mut scene = Scene::new(&[("p", "10.0.0.0/16", 26)]);
    scene.claim("a", 1, 0, &[], &[]);
    assert!(scene.decide().waiting.is_empty());
    assert!(scene.actions().is_empty());
    scene.put("a", &node(&[], &["192.0.2.0/24"]));
    assert_eq!(scene.actions(), ["10.0.0.0/26 p for a"]);
}

#[test]
fn a_bootstrap_that_was_cut_off_is_finished_and_a_deleted_pool_stays_deleted() {
    let mut scene = Scene::new(&[("default", "10.0.0.0/16", 26)]);
    let pool = |cidr: &str| Pool::new(cidr.parse().unwrap(), None);
    scene.policy.bootstrap = vec![
        ("default".parse().unwrap(), pool("10.0.0.0/16")),
        ("default-v6".parse().unwrap(), pool("fd00::/48")),
    ];
    let decision = scene.decide();
    let actions: Vec<_> = decision.actions.iter().map(short).collect();
    assert_eq!(actions, [Some("pool default-v6 fd00::/48".to_owned())]);
    // Its status was written when both were there.
    scene.remembers("default", 0);
    assert!(scene.actions().is_empty());
}

#[test]
fn what_a_node_wants_comes_at_once_and_each_in_turn() {
    let mut scene = Scene::new(&[("p", "10.0.0.0/24", 27)]);
    scene.put("a", &node(&[], &[]));
    scene.claim("a", 7, 0, &[], &[]);
    scene.node("b");
    let actions = scene.actions();
    assert_eq!(actions.len(), 8);
    assert_eq!(actions[1], "10.0.0.32/27 p for b");
    assert!(scene.decide().waiting.is_empty());
    scene.claim("a", 9, 0, &[], &[]);
    let decision = scene.decide();
    assert_eq!(decision.waiting.len(), 1);
}
