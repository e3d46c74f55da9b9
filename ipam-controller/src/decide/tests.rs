use std::time::Duration;

use viaduct_datastore::{Entry, Update, records};
use viaduct_model::{Claim, Kind, Node, PerFamily, Record};

use super::*;
use crate::status::sentence;

const HOUR: Duration = Duration::from_secs(3600);

/// A cluster as a test writes it down.
struct Scene {
    view: View,
    memory: Memory,
    policy: Policy,
    mono: Duration,
    revision: u64,
}

impl Scene {
    fn new(pools: &[(&str, &str, u8)]) -> Self {
        let mut scene = Self {
            view: View::default(),
            memory: Memory::default(),
            policy: Policy {
                bootstrap: Vec::new(),
                reclaim_after: 24 * HOUR,
                quarantine: HOUR,
                listen: Duration::ZERO,
                restored: false,
                refresh: Duration::from_secs(60),
                node_cidrs: NodeCidrs::Off,
            },
            mono: HOUR,
            revision: 0,
        };
        for kind in Kind::ALL {
            scene.view.update(kind, Update::Reset(vec![]), scene.mono);
        }
        for (name, cidr, size) in pools {
            scene.put(name, &Pool::new(cidr.parse().unwrap(), Some(*size)));
        }
        scene
    }

    fn put<T: Record>(&mut self, name: &str, record: &T) {
        let value = records::encode(name, record).unwrap();
        self.put_bytes(T::KIND, name, value);
    }

    fn put_bytes(&mut self, kind: Kind, name: &str, value: Vec<u8>) {
        self.revision += 1;
        let entry = Entry {
            name: name.into(),
            value,
            version: Version(self.revision.to_string()),
        };
        self.view.update(kind, Update::Put(entry), self.mono);
    }

    fn delete(&mut self, kind: Kind, name: &str) {
        self.view
            .update(kind, Update::Delete(name.into()), self.mono);
    }

    fn node(&mut self, name: &str) {
        self.put(name, &node(&[], &[]));
        self.claim(name, 1, 0, &[], &[]);
    }

    /// The pool's status remembers the generation of freed blocks.
    fn remembers(&mut self, name: &str, generation: u64) {
        let mut pool = self.view.pools[&name.parse().unwrap()].record.clone();
        pool.status = Some(viaduct_model::PoolStatus {
            exhausted_since: None,
            blocks_total: 0,
            blocks_free: 0,
            generation,
        });
        self.put(name, &pool);
    }

    /// A claim of a node that wants one block.
    fn says(&mut self, name: &str, change: impl FnOnce(&mut Claim)) {
        self.claim(name, 1, 0, &[], &[]);
        let mut claim = self.view.claims[&name.parse().unwrap()].record.clone();
        change(&mut claim);
        self.put(name, &claim);
    }

    fn claim(&mut self, name: &str, v4: u32, v6: u32, gives: &[&str], reports: &[&str]) {
        let claim = Claim {
            incarnation: "i".into(),
            host: "h".into(),
            agent_version: "0".into(),
            wants: PerFamily { v4, v6 },
            gives: gives
                .iter()
                .map(|c| (c.parse::<Cidr>().unwrap().record_name(), 1))
                .collect(),
            holds: BTreeMap::new(),
            renews: BTreeMap::new(),
            ended: 0,
            blocks: reports
                .iter()
                .map(|c| (c.parse::<Cidr>().unwrap().record_name(), Default::default()))
                .collect(),
            conditions: Vec::new(),
            extra: BTreeMap::new(),
        };
        self.put(name, &claim);
    }

    fn block(&mut self, cidr: &str, node: &str, state: BlockState) {
        let cidr: Cidr = cidr.parse().unwrap();
        let block = Block {
            state,
            ..Block::new(cidr, "p".parse().unwrap(), node.parse().unwrap(), 1)
        };
        self.put(&cidr.record_name(), &block);
    }

    fn decide(&mut self) -> Decision {
        self.memory.observe(&self.view, self.mono);
        let now = Now {
            mono: self.mono,
            wall: "2026-01-01T00:00:00Z".into(),
        };
        decide(&self.view, &self.memory, &self.policy, &now)
    }

    /// What is decided, in short, pool statuses left out.
    fn actions(&mut self) -> Vec<String> {
        self.decide().actions.iter().filter_map(short).collect()
    }
}

fn node(labels: &[(&str, &str)], networks: &[&str]) -> Node {
    let mut node: Node = serde_json::from_str(
        r#"{"incarnation":"i","underlay":{"v4":"192.0.2.5"},"mtu":1450,
            "backend":{"type":"vxlan","vni":1,"port":8472,"vtepMac":"02:00:5e:00:53:01"}}"#,
    )
    .unwrap();
    node.labels = labels
        .iter()
        .map(|(k, v)| ((*k).into(), (*v).into()))
        .collect();
    node.underlay_networks = networks.iter().map(|n| n.parse().unwrap()).collect();
    node
}

fn short(action: &Action) -> Option<String> {
    match action {
        Action::CreatePool(name, pool) => Some(format!("pool {name} {}", pool.cidr)),
        Action::CreateBlock(b) => Some(format!("{} {} for {}", b.cidr, b.pool, b.node)),
        Action::SetBlockState {
            block: b, guard, ..
        } => Some(format!("{} {} {guard:?}", b.cidr, b.state)),
        Action::DeleteBlock {
            block: b, guard, ..
        } => Some(format!("{} freed {guard:?}", b.cidr)),
        Action::RestoreBlock { block: b, .. } => Some(format!(
            "{} restored to {} as {}",
            b.cidr, b.node, b.generation
        )),
        Action::SetPoolStatus { .. } => None,
    }
}

const A: &str = "10.0.0.0/26";
const B: &str = "10.0.0.64/26";

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

fn key(cidr: &str) -> String {
    cidr.parse::<Cidr>().unwrap().record_name()
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
