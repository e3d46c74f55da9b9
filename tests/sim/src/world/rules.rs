//! What must always be so.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use viaduct_model::{BlockState, Cidr};

use super::World;
use crate::agent::HandedOut;

impl World {
    /// Nobody else may hand out addresses from a block that this node may hand them out
    /// from.
    pub(super) fn exclusive(&self, n: usize) -> Result<(), String> {
        let Some(agent) = self.agents.get(n) else {
            return Ok(());
        };
        let clock = agent.clock(self.now);
        for (cidr, until) in agent.tenure.terms() {
            if until.is_none_or(|until| until <= clock) {
                continue;
            }
            for (m, other) in self.agents.iter().enumerate() {
                if m != n && other.tenure.serves(&cidr, other.clock(self.now)) {
                    return Err(format!(
                        "nodes {} and {} both hand out addresses of block {cidr}",
                        agent.name, other.name
                    ));
                }
            }
        }
        Ok(())
    }

    /// An address was handed out: nobody else has it who could know better, and the
    /// block is the node's.
    pub(super) fn handed_out(&mut self, n: usize, handed: HandedOut) -> Result<(), String> {
        self.tally.handed_out += 1;
        let Some(agent) = self.agents.get(n) else {
            return Ok(());
        };
        let address = handed.address;
        if agent.pods.values().filter(|a| **a == address).count() != 1 {
            return Err(format!("node {} has two pods with {address}", agent.name));
        }
        for (m, other) in self.agents.iter().enumerate() {
            let has = m != n && other.pods.values().any(|a| *a == address);
            if has
                && other.is_awake(self.now)
                && other.is_current(&self.store)
                && !other.is_foreign(address, self.now)
            {
                return Err(format!(
                    "node {} hands out {address}, which a pod on node {} has and keeps",
                    agent.name, other.name
                ));
            }
        }
        let inner = self.store.lock();
        let block = agent
            .tenure
            .terms()
            .into_keys()
            .find(|c| c.contains(address));
        let Some((cidr, &(proved_at, epoch))) =
            block.and_then(|cidr| Some((cidr, agent.proofs.get(&cidr)?)))
        else {
            return Err(format!("node {} hands out {address} unproved", agent.name));
        };
        let held = agent.tenure.holds(|_| true, agent.clock(self.now));
        let held = held.get(&cidr.record_name());
        if let Some(given) = agent.given.get(&cidr)
            && held.is_none_or(|generation| generation <= given)
        {
            return Err(format!(
                "node {} hands out {address} of block {cidr}, which it has given back",
                agent.name
            ));
        }
        if epoch != inner.epoch {
            // The store was put back since; what it says is no measure.
            return Ok(());
        }
        let Some(record) = inner.blocks.get(&cidr) else {
            return Err(format!(
                "node {} hands out {address}, and block {cidr} is free",
                agent.name
            ));
        };
        if record.node != agent.name || record.state == BlockState::Releasing {
            return Err(format!(
                "node {} hands out {address}, and block {cidr} is {} of {}",
                agent.name, record.state, record.node
            ));
        }
        let quarantined_at = inner.quarantined_at.get(&cidr).copied().unwrap_or(0);
        if record.state == BlockState::Quarantined && proved_at > quarantined_at {
            return Err(format!(
                "node {} hands out {address} of block {cidr}, which it read as quarantined",
                agent.name
            ));
        }
        Ok(())
    }

    /// Whether everything has come right.
    pub(super) fn settled(&self) -> Result<(), String> {
        let inner = self.store.lock();
        let mut served: BTreeMap<&str, BTreeSet<Cidr>> = BTreeMap::new();
        for (cidr, block) in &inner.blocks {
            let owner = self.agents.iter().find(|a| a.name == block.node);
            let serves = owner.is_some_and(|a| a.tenure.serves(cidr, a.clock(self.now)));
            if !serves {
                return Err(format!(
                    "block {cidr} is lost: {} of {} (generation {}), who does not serve it: {}",
                    block.state,
                    block.node,
                    block.generation,
                    owner.map_or_else(String::new, |a| a.describe(cidr, self.now))
                ));
            }
            served.entry(block.node.as_str()).or_default().insert(*cidr);
        }
        for agent in &self.agents {
            let blocks = served.remove(agent.name.as_str()).unwrap_or_default();
            if blocks.is_empty() {
                return Err(format!("node {} has no block", agent.name));
            }
            let within = |a: &&IpAddr| !blocks.iter().any(|cidr| cidr.contains(**a));
            if let Some(address) = agent.pods.values().find(within) {
                return Err(format!(
                    "a pod of node {} has {address}, which is in no block of it",
                    agent.name
                ));
            }
        }
        Ok(())
    }
}
