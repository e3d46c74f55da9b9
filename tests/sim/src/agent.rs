//! An agent: the real tenure, address manager and demand, with the keeping of them as
//! the agent's tasks do it, one message at a time.

mod claim;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use viaduct_datastore::{Update, Version, records};
use viaduct_model::addresses::Surplus;
use viaduct_model::{
    AddressManager, AttachmentId, Block, BlockService, BlockState, Cidr, Endpoint, Family, Kind,
    NodeName, Tenure,
};

use crate::rng::Rng;
use crate::store::{Follower, SimStore};

/// How long a claim lives without being renewed, in milliseconds.
pub const TTL: u64 = 5_000;

/// How long a block has to be a surplus one.
const GIVE_BACK_AFTER: Duration = Duration::from_secs(30);

/// How long an answer of the store may be on its way, in milliseconds.
const SLOWEST: u64 = 15_000;

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
    /// When the answer is there, in world time.
    answer_at: u64,
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
    /// The generation of each block that it gave back last, which the tenure must know, too.
    pub given: BTreeMap<Cidr, u64>,
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
            given: BTreeMap::new(),
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

    /// Moves reads of records on: one is asked, served, answered or lost. Returns a block
    /// that was trusted no more when its record was asked for, and is again, by that alone.
    pub fn read(
        &mut self,
        store: &SimStore,
        now: u64,
        rng: &mut Rng,
        faults: bool,
    ) -> Option<Cidr> {
        let clock = self.clock(now);
        let mut renewed = None;
        let mut answered = Vec::new();
        for (cidr, read) in &mut self.reads {
            if faults && rng.one_in(15) {
                answered.push((*cidr, None));
            } else if read.found.is_none() && self.connected {
                read.found = Some(store.lock().blocks.get(cidr).cloned());
                // Now and then the answer is stuck on its way for long.
                if faults && rng.one_in(10) {
                    read.answer_at = now + rng.under(SLOWEST);
                }
            } else if read.found.is_some() && self.connected && now >= read.answer_at {
                answered.push((*cidr, Some(read.clone())));
            }
        }
        for (cidr, read) in answered {
            self.reads.remove(&cidr);
            if let Some(Read {
                found: Some(found),
                asked_ms,
                asked_at,
                ..
            }) = read
            {
                let before = self.tenure.serves_until(&cidr);
                let grant = self.tenure.next_generation(&cidr);
                self.tenure.read(cidr, found.as_ref(), asked_ms);
                if self.tenure.serves_until(&cidr) > before {
                    let lapsed = before.is_some_and(|until| until <= asked_ms);
                    if lapsed && self.tenure.next_generation(&cidr) == grant {
                        renewed = Some(cidr);
                    }
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
                    answer_at: 0,
                });
            }
        }
        renewed
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
}

fn endpoint((pod, address): (&u32, &IpAddr)) -> Option<Endpoint> {
    Some(Endpoint {
        addresses: vec![*address],
        wired: true,
        ..Endpoint::bare(id(*pod)?)
    })
}
