//! Two controllers that both believe they lead, each with a picture of the store
//! that is old in its own way, acting in any order: no block ever goes to two
//! nodes, no node gets two for one wish, and nothing is taken from a node that
//! lives.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use proptest::prelude::*;
use tokio::sync::watch;
use viaduct_controller::act::perform;
use viaduct_controller::decide::{Now, Policy, decide};
use viaduct_controller::memory::Memory;
use viaduct_controller::view::View;
use viaduct_datastore::records::{self, encode};
use viaduct_datastore::store::SharedStore;
use viaduct_datastore::{
    Change, Connectivity, Cursor, Entry, Leadership, LeaseId, List, Store, StoreError, Update,
    Version,
};
use viaduct_model::{Block, BlockState, Claim, Kind, Node, PerFamily, Pool};

/// A store in memory that remembers its history by kind, so that each controller
/// can be told of it at its own pace.
#[derive(Debug, Default)]
struct Memories {
    records: BTreeMap<(Kind, String), Entry>,
    history: BTreeMap<Kind, Vec<Update>>,
    revision: u64,
}

#[derive(Debug, Default)]
struct MemoryStore(Mutex<Memories>);

impl Memories {
    fn put(&mut self, kind: Kind, name: &str, value: &[u8]) -> Version {
        self.revision += 1;
        let entry = Entry {
            name: name.to_owned(),
            value: value.to_vec(),
            version: Version(self.revision.to_string()),
        };
        self.history
            .entry(kind)
            .or_default()
            .push(Update::Put(entry.clone()));
        let version = entry.version.clone();
        self.records.insert((kind, name.to_owned()), entry);
        version
    }

    fn delete(&mut self, kind: Kind, name: &str) {
        if self.records.remove(&(kind, name.to_owned())).is_some() {
            self.history
                .entry(kind)
                .or_default()
                .push(Update::Delete(name.to_owned()));
        }
    }

    fn version(&self, kind: Kind, name: &str) -> Option<&Version> {
        self.records
            .get(&(kind, name.to_owned()))
            .map(|e| &e.version)
    }

    fn all<T: viaduct_model::Record>(&self) -> Vec<T> {
        self.records
            .iter()
            .filter(|((kind, _), _)| *kind == T::KIND)
            .map(|(_, entry)| records::decode::<T>(entry).unwrap().record)
            .collect()
    }

    fn claim(&self, node: &str) -> Option<Claim> {
        let entry = self.records.get(&(Kind::Claim, node.to_owned()))?;
        Some(records::decode::<Claim>(entry).unwrap().record)
    }
}

fn conflict(kind: Kind, name: &str) -> StoreError {
    StoreError::Conflict {
        kind,
        name: name.into(),
    }
}

fn unused() -> StoreError {
    StoreError::Unavailable {
        store: "memory".into(),
        reason: "not part of this test".into(),
    }
}

#[async_trait]
impl Store for MemoryStore {
    fn describe(&self) -> String {
        "memory".into()
    }
    fn connectivity(&self) -> watch::Receiver<Connectivity> {
        watch::channel(Connectivity::Connected).1
    }
    async fn get(&self, kind: Kind, name: &str) -> Result<Option<Entry>, StoreError> {
        let memories = self.0.lock().unwrap();
        Ok(memories.records.get(&(kind, name.to_owned())).cloned())
    }
    async fn list(&self, _: Kind) -> Result<List, StoreError> {
        Err(unused())
    }
    async fn create(
        &self,
        kind: Kind,
        name: &str,
        value: &[u8],
        _: Option<&LeaseId>,
    ) -> Result<Version, StoreError> {
        let mut memories = self.0.lock().unwrap();
        if memories.version(kind, name).is_some() {
            return Err(StoreError::AlreadyExists {
                kind,
                name: name.into(),
            });
        }
        Ok(memories.put(kind, name, value))
    }
    async fn update(
        &self,
        kind: Kind,
        name: &str,
        value: &[u8],
        expected: &Version,
        _: Option<&LeaseId>,
    ) -> Result<Version, StoreError> {
        let mut memories = self.0.lock().unwrap();
        if memories.version(kind, name) != Some(expected) {
            return Err(conflict(kind, name));
        }
        Ok(memories.put(kind, name, value))
    }
    async fn delete(&self, kind: Kind, name: &str, expected: &Version) -> Result<(), StoreError> {
        let mut memories = self.0.lock().unwrap();
        if memories.version(kind, name) != Some(expected) {
            return Err(conflict(kind, name));
        }
        memories.delete(kind, name);
        Ok(())
    }
    async fn watch(
        &self,
        _: Kind,
        _: Cursor,
    ) -> Result<BoxStream<'static, Result<Change, StoreError>>, StoreError> {
        Err(unused())
    }
    async fn grant_lease(&self, _: Duration) -> Result<LeaseId, StoreError> {
        Err(unused())
    }
    async fn keep_alive(&self, _: &LeaseId) -> Result<(), StoreError> {
        Err(unused())
    }
    async fn revoke_lease(&self, _: &LeaseId) -> Result<(), StoreError> {
        Err(unused())
    }
    async fn lease_remaining(&self, _: Kind, _: &str) -> Result<Option<Duration>, StoreError> {
        Err(unused())
    }
    async fn campaign(&self, _: &str, _: &str) -> Result<Leadership, StoreError> {
        Err(unused())
    }
}

/// A controller that hears of each kind at its own pace.
struct Believer {
    view: View,
    memory: Memory,
    heard: BTreeMap<Kind, usize>,
}

impl Believer {
    fn new() -> Self {
        let mut view = View::default();
        for kind in Kind::ALL {
            view.update(kind, Update::Reset(vec![]), Duration::ZERO);
        }
        Self {
            view,
            memory: Memory::default(),
            heard: BTreeMap::new(),
        }
    }

    fn hear(&mut self, world: &World, kind: Kind, at_most: usize) {
        let memories = world.store.0.lock().unwrap();
        let history = memories.history.get(&kind).map_or(&[][..], Vec::as_slice);
        let heard = self.heard.entry(kind).or_default();
        for update in history.iter().skip(*heard).take(at_most) {
            self.view.update(kind, update.clone(), world.now);
            *heard += 1;
        }
        self.memory.observe(&self.view, world.now);
    }

    /// Decides and carries out up to `at_most` actions; says whether any was there.
    fn act(&mut self, world: &World, at_most: usize) -> bool {
        let store: SharedStore = world.store.clone();
        self.memory.observe(&self.view, world.now);
        let now = Now {
            mono: world.now,
            wall: "2026-01-01T00:00:00Z".into(),
        };
        let decision = decide(&self.view, &self.memory, &world.policy, &now);
        let any = !decision.actions.is_empty();
        for action in decision.actions.iter().take(at_most) {
            let done = world
                .runtime
                .block_on(perform(&store, action, &mut self.view, world.now));
            if done.is_err() {
                break;
            }
        }
        any
    }
}

struct World {
    store: Arc<MemoryStore>,
    runtime: tokio::runtime::Runtime,
    policy: Policy,
    now: Duration,
}

impl World {
    fn new() -> Self {
        let world = Self {
            store: Arc::new(MemoryStore::default()),
            runtime: tokio::runtime::Builder::new_current_thread()
                .build()
                .unwrap(),
            policy: Policy {
                bootstrap: Vec::new(),
                reclaim_after: Duration::from_secs(100),
                quarantine: Duration::from_secs(10),
                listen: Duration::ZERO,
                restored: false,
                refresh: Duration::from_secs(60),
                node_cidrs: viaduct_datastore::NodeCidrs::Off,
            },
            now: Duration::ZERO,
        };
        let pool = Pool::new("10.0.0.0/24".parse().unwrap(), Some(28));
        world.put("p", &pool);
        world
    }

    fn put<T: viaduct_model::Record>(&self, name: &str, record: &T) {
        let value = encode(name, record).unwrap();
        self.store.0.lock().unwrap().put(T::KIND, name, &value);
    }

    /// A node's agent writes its claim as it would: it counts its active blocks,
    /// and gives the last one when told to.
    fn claim(&self, n: u8, wants: u32, give: bool) {
        let name = format!("n{n}");
        let mine: Vec<Block> = self
            .blocks()
            .into_iter()
            .filter(|block| block.node.as_str() == name)
            .collect();
        let gives: BTreeMap<_, _> = mine
            .iter()
            .filter(|b| b.state == BlockState::Releasing)
            .chain(mine.last().filter(|_| give))
            .map(|b| (b.cidr.record_name(), b.generation))
            .collect();
        let claim = Claim {
            incarnation: "i".into(),
            host: "h".into(),
            agent_version: "0".into(),
            wants: PerFamily { v4: wants, v6: 0 },
            blocks: mine
                .iter()
                .filter(|b| b.state == BlockState::Active)
                .map(|b| (b.cidr.record_name(), Default::default()))
                .collect(),
            gives,
            holds: BTreeMap::new(),
            renews: BTreeMap::new(),
            ended: 0,
            conditions: Vec::new(),
            extra: BTreeMap::new(),
        };
        self.put(&name, &claim);
    }

    fn register(&self, n: u8) {
        let node: Node = serde_json::from_str(
            r#"{"incarnation":"i","underlay":{"v4":"192.0.2.5"},"mtu":1450,
                "backend":{"type":"vxlan","vni":1,"port":8472,"vtepMac":"02:00:5e:00:53:01"}}"#,
        )
        .unwrap();
        self.put(&format!("n{n}"), &node);
    }

    fn delete(&self, kind: Kind, n: u8) {
        self.store.0.lock().unwrap().delete(kind, &format!("n{n}"));
    }

    fn blocks(&self) -> Vec<Block> {
        self.store.0.lock().unwrap().all()
    }

    fn check(&self, before: &[Block]) -> Result<(), TestCaseError> {
        let blocks = self.blocks();
        for (i, one) in blocks.iter().enumerate() {
            for two in &blocks[i + 1..] {
                prop_assert!(!one.cidr.overlaps(&two.cidr), "{:?} {:?}", one, two);
            }
        }
        let memories = self.store.0.lock().unwrap();
        for old in before {
            let Some(claim) = memories.claim(old.node.as_str()) else {
                continue;
            };
            let now = blocks.iter().find(|b| b.cidr == old.cidr);
            match now {
                Some(block) if block.node == old.node => prop_assert!(
                    block.state != BlockState::Quarantined || old.state == BlockState::Quarantined,
                    "quarantined though its node lives: {:?}",
                    block
                ),
                _ => prop_assert!(
                    claim.gives.contains_key(&old.cidr.record_name())
                        && !claim.blocks.contains_key(&old.cidr.record_name()),
                    "taken from a node that lives: {:?}",
                    old
                ),
            }
        }
        Ok(())
    }
}

#[derive(Debug, Clone)]
enum Op {
    Register(u8),
    Claim(u8, u32, bool),
    Vanish(u8),
    Remove(u8),
    Hear(bool, usize, usize),
    Act(bool, usize),
    Wait(u64),
}

fn hear_or_act() -> impl Strategy<Value = Op> {
    prop_oneof![
        (any::<bool>(), 0..4usize, 1..6usize).prop_map(|(who, kind, n)| Op::Hear(who, kind, n)),
        (any::<bool>(), 1..4usize).prop_map(|(who, n)| Op::Act(who, n)),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => (0..6u8).prop_map(Op::Register),
        3 => (0..6u8, 1..4u32, prop::bool::weighted(0.3)).prop_map(|(n, w, g)| Op::Claim(n, w, g)),
        1 => (0..6u8).prop_map(Op::Vanish),
        1 => (0..6u8).prop_map(Op::Remove),
        10 => hear_or_act(),
        2 => (1..60u64).prop_map(Op::Wait),
    ]
}

fn play(world: &mut World, pair: &mut [Believer; 2], op: &Op) {
    match *op {
        Op::Register(n) => {
            world.register(n);
            world.claim(n, 1, false);
        }
        Op::Claim(n, wants, give) => world.claim(n, wants, give),
        Op::Vanish(n) => world.delete(Kind::Claim, n),
        Op::Remove(n) => {
            world.delete(Kind::Claim, n);
            world.delete(Kind::Node, n);
        }
        Op::Hear(who, kind, n) => pair[usize::from(who)].hear(world, Kind::ALL[kind], n),
        Op::Act(who, n) => drop(pair[usize::from(who)].act(world, n)),
        Op::Wait(seconds) => world.now += Duration::from_secs(seconds),
    }
}

/// Lets both hear everything and act until there is nothing left to do.
fn settle(world: &World, pair: &mut [Believer; 2]) -> bool {
    (0..200).any(|_| {
        let mut busy = false;
        for believer in &mut *pair {
            for kind in Kind::ALL {
                believer.hear(world, kind, usize::MAX);
            }
            busy |= believer.act(world, usize::MAX);
        }
        !busy
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn every_wish_is_granted_once(
        nodes in 1..16u8,
        ops in prop::collection::vec(hear_or_act(), 0..120),
    ) {
        let mut world = World::new();
        let mut pair = [Believer::new(), Believer::new()];
        for n in 0..nodes {
            world.register(n);
            world.claim(n, 1, false);
        }
        for op in &ops {
            play(&mut world, &mut pair, op);
            let mut owners: Vec<_> = world.blocks().into_iter().map(|b| b.node).collect();
            let all = owners.len();
            owners.sort();
            owners.dedup();
            prop_assert_eq!(owners.len(), all, "a node has two blocks");
        }
        prop_assert!(settle(&world, &mut pair), "they never come to rest");
        prop_assert_eq!(world.blocks().len(), usize::from(nodes));
    }

    #[test]
    fn nothing_overlaps_and_nothing_is_taken_from_the_living(
        ops in prop::collection::vec(op(), 1..200),
    ) {
        let mut world = World::new();
        let mut pair = [Believer::new(), Believer::new()];
        for op in &ops {
            let before = world.blocks();
            play(&mut world, &mut pair, op);
            if matches!(op, Op::Act(..)) {
                world.check(&before)?;
            }
        }
    }
}
