//! What an agent says in its claim, and what it gives back.

use std::collections::BTreeMap;

use viaduct_datastore::{StoreError, records};
use viaduct_model::addresses::asks_for;
use viaduct_model::record::Extra;
use viaduct_model::{BlockState, Cidr, Claim, Family, Kind, Node, PerFamily};

use super::{Agent, TTL};
use crate::rng::Rng;
use crate::store::SimStore;

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

impl Agent {
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

    /// Gives surplus blocks back, in the keeper's two steps. Returns one in which a pod has
    /// an address.
    pub fn give(&mut self, now: u64) -> Option<Cidr> {
        let mut wrong = None;
        let clock = self.clock(now);
        for cidr in self.tenure.withheld().into_keys() {
            let usage = self.manager.usage();
            if usage.get(&cidr).is_some_and(|block| block.used == 0) {
                let holds = self.tenure.holds(|_| true, clock);
                if let Some(generation) = holds.get(&cidr.record_name()) {
                    self.given.insert(cidr, *generation);
                }
                self.tenure.give(cidr);
                if self.pods.values().any(|address| cidr.contains(*address)) {
                    wrong = Some(cidr);
                }
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
        wrong
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
