//! An agent: the real tenure, address manager and demand, with the keeping of them as
//! the agent's tasks do it, one message at a time.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use viaduct_datastore::{StoreError, Update, Version, records};
use viaduct_model::addresses::{Surplus, asks_for};
use viaduct_model::record::Extra;
use viaduct_model::{
    AddressManager, AttachmentId, Block, BlockService, BlockState, Cidr, Claim, Endpoint, Family,
    Kind, Node, NodeName, PerFamily, Tenure,
};

use crate::rng::Rng;
use crate::store::{Follower, SimStore};

/// How long a claim lives without being renewed, in milliseconds.
pub const TTL: u64 = 5_000;

/// How long a block has to be a surplus one.
const GIVE_BACK_AFTER: Duration = Duration::from_secs(30);

/// How long a released address rests.
const COOL_DOWN: Duration = Duration::from_secs(3);

/// A read of a block's record on its way.
#[derive(Debug, Clone)]
struct Read {
    asked_ms: u64,
    /// World time and epoch of the question.
    asked_at: (u64, u64),
    /// What the store said, once it was asked.
    found: Option<Option<Block>>,
}

/// A node and its agent.
#[derive(Debug)]
pub struct Agent {
    /// The node's name.
    pub name: NodeName,
    /// The hold on the blocks, as it is published.
    pub tenure: Tenure,
    /// As it is written down.
    disk: Tenure,
    manager: AddressManager,
    /// The blocks as the watch told of them; `None` before the first list.
    pub view: Option<BTreeMap<Cidr, Block>>,
    follower: Follower,
    surplus: Surplus,
    reads: BTreeMap<Cidr, Read>,
    /// World time and epoch of the read that proved a block.
    pub proofs: BTreeMap<Cidr, (u64, u64)>,
    /// The pods that stand in the kernel, with their addresses.
    pub pods: BTreeMap<u32, IpAddr>,
    next_pod: u32,
    hungry: u32,
    /// The version of our claim as we know it.
    claim: Option<Version>,
    /// A write of the claim on its way.
    sent: Option<(Vec<u8>, Option<Version>)>,
    /// Whether the process runs.
    pub up: bool,
    /// Until when it is stopped or the machine sleeps, in world time.
    pub asleep_until: u64,
    /// Whether it reaches the store.
    pub connected: bool,
    booted_at: u64,
    rate: u64,
}

/// An address that was handed out just now.
#[derive(Debug, Clone, Copy)]
pub struct HandedOut {
    /// The address.
    pub address: IpAddr,
    /// Whether it had not cooled down.
    pub early: bool,
}

fn node_record() -> Node {
    Node {
        incarnation: "i".into(),
        underlay: viaduct_model::record::Underlay {
            v4: Some([192, 0, 2, 1].into()),
            v6: None,
        },
        underlay_networks: Vec::new(),
        backend: viaduct_model::Backend::HostGw,
        overlay: Default::default(),
        mtu: 1450,
        labels: BTreeMap::new(),
        extra: Extra::new(),
    }
}

fn id(pod: u32) -> Option<AttachmentId> {
    AttachmentId::new(&format!("c{pod}"), "eth0").ok()
}

impl Agent {
    /// A node that has just booted. Its clock runs at `rate` percent of the world's.
    pub fn boot(name: NodeName, now: u64, rate: u64) -> Self {
        Self {
            tenure: Tenure::new(name.clone()),
            disk: Tenure::new(name.clone()),
            name,
            manager: AddressManager::new(COOL_DOWN),
            view: None,
            follower: Follower::new(Kind::Block),
            surplus: Surplus::new(GIVE_BACK_AFTER),
            reads: BTreeMap::new(),
            proofs: BTreeMap::new(),
            pods: BTreeMap::new(),
            next_pod: 0,
            hungry: 0,
            claim: None,
            sent: None,
            up: true,
            asleep_until: 0,
            connected: true,
            booted_at: now,
            rate,
        }
    }

    /// The machine restarts: its pods are gone, and what stood on the tmpfs.
    pub fn reboot(&mut self, now: u64) {
        let next_pod = self.next_pod;
        *self = Self::boot(self.name.clone(), now, self.rate);
        self.next_pod = next_pod;
    }

    /// The process restarts; pods, ledger and tenure file are still there.
    pub fn restart(&mut self, now: u64) {
        self.tenure = self.disk.clone();
        // What was not given yet is forgotten.
        for cidr in self.tenure.withheld().into_keys() {
            self.tenure.withhold(&cidr, false);
        }
        self.view = None;
        self.cut();
        self.reads.clear();
        self.surplus = Surplus::new(GIVE_BACK_AFTER);
        self.hungry = 0;
        self.claim = None;
        self.up = true;
        let ledger: Vec<Endpoint> = self.pods.iter().filter_map(endpoint).collect();
        self.manager = AddressManager::new(COOL_DOWN);
        self.manager.restore(&ledger);
        self.adopt(self.clock(now));
    }

    /// The watch breaks.
    pub fn cut(&mut self) {
        self.follower.cut();
    }

    /// The boot-time clock.
    pub fn clock(&self, now: u64) -> u64 {
        (now - self.booted_at) * self.rate / 100
    }

    /// Whether it can do anything now.
    pub fn is_awake(&self, now: u64) -> bool {
        self.up && self.asleep_until <= now
    }

    /// Whether it has been told everything that happened to blocks.
    pub fn is_current(&self, store: &SimStore) -> bool {
        self.connected && self.follower.is_current(&store.lock())
    }

    /// Whether it counts the pod at this address as cut off.
    pub fn is_foreign(&self, address: IpAddr, now: u64) -> bool {
        let disputed = self.tenure.disputed(self.clock(now));
        let Some(view) = &self.view else { return false };
        let ours = |(cidr, block): (&Cidr, &Block)| {
            cidr.contains(address) && (block.node == self.name || disputed.contains(cidr))
        };
        let lost = self.tenure.lost();
        let gone = view.keys().chain(&lost).any(|cidr| cidr.contains(address));
        gone && !view.iter().any(ours)
    }

    /// Takes in what the watch tells; returns blocks that it was told to be another's
    /// while nobody else may have had them.
    pub fn hear(&mut self, store: &SimStore, now: u64, at_most: usize) -> Vec<Cidr> {
        let mut told = false;
        {
            let inner = store.lock();
            for _ in 0..at_most {
                let Some(update) = self.follower.next(&inner) else {
                    break;
                };
                told = true;
                let view = self.view.get_or_insert_default();
                match update {
                    Update::Reset(entries) => {
                        *view = entries
                            .iter()
                            .filter_map(|e| records::decode::<Block>(e).ok())
                            .map(|named| (named.record.cidr, named.record))
                            .collect();
                    }
                    Update::Put(entry) => {
                        if let Ok(named) = records::decode::<Block>(&entry) {
                            view.insert(named.record.cidr, named.record);
                        }
                    }
                    Update::Delete(name) => {
                        Cidr::from_record_name(&name).map(|cidr| view.remove(&cidr));
                    }
                }
            }
        }
        if !told {
            return Vec::new();
        }
        let clock = self.clock(now);
        let view = self.view.take().unwrap_or_default();
        let trusted: Vec<Cidr> = view
            .iter()
            .filter(|(cidr, block)| block.node != self.name && self.tenure.is_trusted(cidr, clock))
            .map(|(cidr, _)| *cidr)
            .collect();
        self.tenure.told(&view, clock);
        self.view = Some(view);
        self.keep(clock);
        let disputed = self.tenure.disputed(clock);
        trusted
            .into_iter()
            .filter(|cidr| !disputed.contains(cidr))
            .collect()
    }

    /// Moves reads of records on: one is asked, served, answered or lost.
    pub fn read(&mut self, store: &SimStore, now: u64, rng: &mut Rng, faults: bool) {
        let clock = self.clock(now);
        let mut answered = Vec::new();
        for (cidr, read) in &mut self.reads {
            if faults && rng.one_in(15) {
                answered.push((*cidr, None));
            } else if read.found.is_none() && self.connected {
                read.found = Some(store.lock().blocks.get(cidr).cloned());
            } else if read.found.is_some() && self.connected {
                answered.push((*cidr, Some(read.clone())));
            }
        }
        for (cidr, read) in answered {
            self.reads.remove(&cidr);
            if let Some(Read {
                found: Some(found),
                asked_ms,
                asked_at,
            }) = read
            {
                let before = self.tenure.serves_until(&cidr);
                self.tenure.read(cidr, found.as_ref(), asked_ms);
                if self.tenure.serves_until(&cidr) > before {
                    self.proofs.insert(cidr, asked_at);
                }
                self.keep(clock);
            }
        }
        let epoch = store.lock().epoch;
        for (cidr, due) in self.tenure.reads_due() {
            let over = self
                .tenure
                .serves_until(&cidr)
                .is_some_and(|until| until <= clock);
            if due <= clock && !over {
                self.reads.entry(cidr).or_insert(Read {
                    asked_ms: clock,
                    asked_at: (now, epoch),
                    found: None,
                });
            }
        }
    }

    /// An ADD.
    pub fn add(&mut self, now: u64) -> Option<HandedOut> {
        let clock = self.clock(now);
        self.adopt(clock);
        self.next_pod += 1;
        let pod = self.next_pod;
        match self.manager.allocate(&id(pod)?, Family::V4, clock) {
            Ok(allocation) => {
                self.hungry = self.hungry.saturating_sub(1);
                self.pods.insert(pod, allocation.address);
                Some(HandedOut {
                    address: allocation.address,
                    early: allocation.early,
                })
            }
            Err(_) => {
                self.hungry = (self.hungry + 1).min(20);
                None
            }
        }
    }

    /// A DEL of some pod; of one that is cut off if there is any.
    pub fn del(&mut self, now: u64, rng: &mut Rng) -> Option<IpAddr> {
        let foreign = self.pods.iter().find(|(_, a)| self.is_foreign(**a, now));
        let pod = match foreign {
            Some((pod, _)) => *pod,
            None => *self.pods.keys().nth(rng.index(self.pods.len()))?,
        };
        self.manager.release(&id(pod)?, self.clock(now));
        self.pods.remove(&pod)
    }

    /// Forgets the ADDs that wait.
    pub fn sate(&mut self) {
        self.hungry = 0;
    }

    /// Keeps the lease alive, and the claim and the node's record as they should be.
    pub fn claim(&mut self, store: &SimStore, now: u64, rng: &mut Rng, faults: bool) {
        if faults && rng.one_in(10) {
            // The request is lost, or somebody's patience is.
            if rng.one_in(2) {
                self.sent = None;
            }
            return;
        }
        let name = self.name.as_str().to_owned();
        if let Some((value, expected)) = self.sent.take() {
            if !self.connected {
                return;
            }
            let mut inner = store.lock();
            match inner.put(Kind::Claim, &name, &value, expected.as_ref()) {
                Ok(version) => {
                    inner.content.leases.insert(name, now + TTL);
                    if !(faults && rng.one_in(10)) {
                        self.claim = Some(version);
                    }
                }
                Err(StoreError::Conflict { .. } | StoreError::AlreadyExists { .. }) => {
                    self.claim = inner.get(Kind::Claim, &name).map(|e| e.version.clone());
                }
                Err(_) => {}
            }
            return;
        }
        let wanted = self.wanted_claim(now);
        let Ok(value) = records::encode(&name, &wanted) else {
            return;
        };
        if self.connected {
            let mut inner = store.lock();
            if inner.get(Kind::Node, &name).is_none()
                && let Ok(node) = records::encode(&name, &node_record())
            {
                // It is there at the next look.
                let _ = inner.put(Kind::Node, &name, &node, None);
            }
            let there = inner.get(Kind::Claim, &name).cloned();
            if let Some(lease) = inner.content.leases.get_mut(&name) {
                *lease = now + TTL;
            }
            match there {
                Some(entry) if entry.value == value => {
                    self.claim = Some(entry.version);
                    return;
                }
                Some(entry) => self.claim = Some(entry.version),
                None => self.claim = None,
            }
        }
        self.sent = Some((value, self.claim.clone()));
    }

    /// Gives surplus blocks back, in the keeper's two steps.
    pub fn give(&mut self, now: u64) {
        let clock = self.clock(now);
        for cidr in self.tenure.withheld().into_keys() {
            let usage = self.manager.usage();
            if usage.get(&cidr).is_some_and(|block| block.used == 0) {
                self.tenure.give(cidr);
            }
            self.tenure.withhold(&cidr, false);
        }
        let serving = self.serving(clock);
        let keep = self
            .view
            .iter()
            .flatten()
            .find(|(_, b)| b.node == self.name);
        let keep = keep.map(|(cidr, _)| cidr.first());
        if self.hungry == 0
            && let Some(spare) = self.surplus.due(&serving, keep, clock)
        {
            self.tenure.withhold(&spare, true);
        }
        self.keep(clock);
    }

    /// Writes the tenure down and has the address manager go by it.
    fn keep(&mut self, clock: u64) {
        if self.disk != self.tenure {
            self.disk = self.tenure.clone();
        }
        self.adopt(clock);
    }

    fn adopt(&mut self, clock: u64) {
        let mut blocks: BTreeMap<Cidr, BlockService> = BTreeMap::new();
        let service = |cidr: &Cidr| {
            if self.tenure.serves(cidr, clock) {
                BlockService::Serving
            } else {
                BlockService::Draining
            }
        };
        match &self.view {
            Some(view) => {
                for (cidr, block) in view.iter().filter(|(_, b)| b.node == self.name) {
                    let service = match block.state {
                        BlockState::Active => service(cidr),
                        BlockState::Releasing | BlockState::Quarantined => BlockService::Draining,
                    };
                    blocks.insert(*cidr, service);
                }
                for cidr in self.tenure.terms().keys() {
                    blocks.entry(*cidr).or_insert(BlockService::Draining);
                }
            }
            // By what was remembered.
            None => {
                for cidr in self.tenure.terms().keys() {
                    blocks.insert(*cidr, service(cidr));
                }
            }
        }
        self.manager.set_blocks(&blocks, clock);
    }

    fn serving(&self, clock: u64) -> BTreeMap<Cidr, viaduct_model::BlockUsage> {
        let usage = self.manager.usage().into_iter();
        usage
            .filter(|(cidr, _)| self.tenure.serves(cidr, clock))
            .collect()
    }

    fn wanted_claim(&self, now: u64) -> Claim {
        let clock = self.clock(now);
        let usage = self.manager.usage();
        let gives = self.tenure.gives();
        let owned = self.view.iter().flatten();
        let owned = owned
            .filter(|(_, b)| b.node == self.name && b.state == BlockState::Active)
            .filter(|(cidr, _)| !gives.contains_key(&cidr.record_name()))
            .map(|(cidr, _)| (*cidr, usage.get(cidr).copied().unwrap_or_default()))
            .collect();
        let wants = asks_for(&owned, Family::V4, self.hungry);
        let used = |cidr: &Cidr| usage.get(cidr).is_some_and(|block| block.used > 0);
        Claim {
            incarnation: "i".into(),
            host: String::new(),
            agent_version: String::new(),
            wants: PerFamily { v4: wants, v6: 0 },
            holds: self.tenure.holds(used, clock),
            renews: self.tenure.renews(clock),
            ended: self.tenure.ended(),
            blocks: usage
                .keys()
                .map(|cidr| (cidr.record_name(), Default::default()))
                .filter(|(name, _)| !gives.contains_key(name))
                .collect(),
            gives,
            conditions: Vec::new(),
            extra: Extra::new(),
        }
    }

    /// How it stands to a block, for people.
    pub fn describe(&self, cidr: &Cidr, now: u64) -> String {
        let seen = self.view.iter().flatten().find(|(of, _)| *of == cidr);
        format!(
            "at {} it sees {:?}, serves until {:?}, holds {:?}, gives {:?}, withholds {:?}, renews \
             {:?}, waits for {:?}; its claim was sent as {:?}",
            self.clock(now),
            seen.map(|(_, block)| (block.state, block.node.as_str(), block.generation)),
            self.tenure.serves_until(cidr),
            self.tenure.holds(|_| true, self.clock(now)),
            self.tenure.gives(),
            self.tenure.withheld(),
            self.tenure.renews(self.clock(now)),
            self.reads,
            self.sent.is_some(),
        )
    }
}

fn endpoint((pod, address): (&u32, &IpAddr)) -> Option<Endpoint> {
    let id = id(*pod)?;
    Some(Endpoint {
        network: String::new(),
        netns: String::new(),
        netns_id: (0, 0),
        link: id.link_name(),
        pod_mac: id.pod_mac(),
        id,
        addresses: vec![*address],
        mtu: 1450,
        allocated_at: 0,
        wired: true,
        secondary: false,
        pod: None,
    })
}
