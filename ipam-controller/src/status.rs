//! What the control loop says of itself: for readiness, metrics and logs.

use std::collections::BTreeMap;
use std::time::Duration;

use viaduct_datastore::Connectivity;
use viaduct_model::{BlockState, Kind, PoolName};

use crate::decide::{Decision, Waiting};
use crate::view::View;

/// How the controller stands. Owned by the control loop, published by watch.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// Whether this controller acts.
    pub leads: bool,
    /// Kinds that were not listed yet.
    pub missing: Vec<Kind>,
    /// What failed last, until something works again.
    pub failure: Option<String>,
    /// Why this controller may not stand for election.
    pub election: Option<String>,
    /// Nodes that wait for blocks which no pool has.
    pub waiting: Vec<Waiting>,
    /// What is wrong with records and left alone.
    pub problems: Vec<String>,
    /// Blocks in total and free, by pool.
    pub pools: BTreeMap<PoolName, (u64, u64)>,
    /// How the addresses of each pool's blocks are used, as the agents last said.
    pub addresses: BTreeMap<PoolName, Addresses>,
    /// Blocks by state.
    pub blocks: BTreeMap<BlockState, u64>,
    /// Records that cannot be read, by kind.
    pub unreadable: BTreeMap<Kind, u64>,
    /// Nodes for which an agent runs, and which are registered.
    pub nodes: (u64, u64),
    /// When the loop last went round, by its own clock.
    pub beat: Duration,
}

/// How the addresses in blocks of a pool are used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Addresses {
    /// In use by pods.
    pub used: u64,
    /// Free, cooling ones included.
    pub free: u64,
    /// In blocks and never handed out: reserved, or nodes' own.
    pub reserved: u64,
}

/// The addresses of each pool, from what is told of its blocks. A block whose agent is
/// away is not counted.
fn addresses(view: &View) -> BTreeMap<PoolName, Addresses> {
    let mut pools: BTreeMap<PoolName, Addresses> = view
        .pools
        .keys()
        .map(|name| (name.clone(), Addresses::default()))
        .collect();
    for (cidr, block) in &view.blocks {
        let block = &block.record;
        let claim = view.claims.get(&block.node);
        let usage = claim.and_then(|claim| claim.record.blocks.get(&cidr.record_name()));
        let (Some(usage), Some(pool)) = (usage, pools.get_mut(&block.pool)) else {
            continue;
        };
        let (used, free) = (u64::from(usage.used), u64::from(usage.free));
        let size = u64::try_from(cidr.size()).unwrap_or(u64::MAX);
        pool.used += used;
        pool.free += free;
        pool.reserved += size.saturating_sub(used + free);
    }
    pools
}

impl Status {
    /// Takes over what a decision was made on and what it says.
    pub(crate) fn describe(&mut self, view: &View, decision: &Decision) {
        self.missing = view.missing();
        self.waiting.clone_from(&decision.waiting);
        self.problems.clone_from(&decision.problems);
        self.pools.clone_from(&decision.pools);
        self.addresses = addresses(view);
        self.blocks.clear();
        for block in view.blocks.values() {
            *self.blocks.entry(block.record.state).or_default() += 1;
        }
        self.unreadable.clear();
        for (kind, _) in view.unreadable.keys() {
            *self.unreadable.entry(*kind).or_default() += 1;
        }
        self.nodes = (view.claims.len() as u64, view.nodes.len() as u64);
    }

    /// Why the controller is not ready; empty when it is. Standing by is ready,
    /// and so is a controller that finds fault with single records.
    pub fn unready(&self, connectivity: &Connectivity) -> Vec<String> {
        let mut reasons = Vec::new();
        match connectivity {
            Connectivity::Connected => {}
            Connectivity::Unknown => reasons.push("the datastore has not answered yet".to_owned()),
            Connectivity::Disconnected { reason } => {
                reasons.push(format!("the datastore does not answer: {reason}"));
            }
        }
        if !self.missing.is_empty() {
            let kinds: Vec<&str> = self.missing.iter().map(|kind| kind.plural()).collect();
            reasons.push(format!("not listed yet: {}", kinds.join(", ")));
        }
        reasons.extend(self.election.clone());
        reasons.extend(self.failure.clone());
        reasons
    }

    /// What is worth knowing though the controller is ready.
    pub fn remarks(&self) -> Vec<String> {
        let mut remarks = self.problems.clone();
        remarks.extend(self.waiting.iter().map(sentence));
        remarks
    }
}

/// Why a node waits, as a sentence.
pub fn sentence(waiting: &Waiting) -> String {
    let (node, family) = (waiting.node.as_str(), waiting.family);
    if waiting.full.is_empty() {
        return format!(
            "node {node:?} wants an {family} block, but no pool of that family is meant for it; \
             create one with `viaductctl pools create`"
        );
    }
    let full: Vec<&str> = waiting.full.iter().map(|pool| pool.as_str()).collect();
    format!(
        "node {node:?} waits for an {family} block: full are the pools {}; it gets one as soon as \
         a pool is added or a block is freed",
        full.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use viaduct_datastore::{Entry, Update, Version, records};
    use viaduct_model::{Block, BlockUsage, Claim, Kind, Pool, Record};

    use super::*;

    fn put<T: Record>(view: &mut View, name: &str, record: &T) {
        let entry = Entry {
            name: name.to_owned(),
            value: records::encode(name, record).unwrap(),
            version: Version("1".to_owned()),
        };
        view.update(T::KIND, Update::Put(entry), Duration::ZERO);
    }

    #[test]
    fn a_pools_addresses_are_summed_over_nodes_and_a_block_whose_agent_is_away_is_left_out() {
        let mut view = View::default();
        for kind in Kind::ALL {
            view.update(kind, Update::Reset(Vec::new()), Duration::ZERO);
        }
        for (name, cidr) in [("empty", "10.1.0.0/24"), ("p", "10.0.0.0/24")] {
            put(&mut view, name, &Pool::new(cidr.parse().unwrap(), Some(28)));
        }
        for (node, cidr, used, free) in [
            ("a", "10.0.0.0/28", 3, 12),
            ("b", "10.0.0.16/28", 16, 0),
            ("away", "10.0.0.32/28", 0, 0),
        ] {
            let cidr: viaduct_model::Cidr = cidr.parse().unwrap();
            let block = Block::new(cidr, "p".parse().unwrap(), node.parse().unwrap(), 1);
            put(&mut view, &cidr.record_name(), &block);
            if node == "away" {
                continue;
            }
            let mut claim: Claim = serde_json::from_str(
                r#"{"incarnation":"i","host":"h","agentVersion":"0","wants":{}}"#,
            )
            .unwrap();
            let usage = BlockUsage { used, free };
            claim.blocks.insert(cidr.record_name(), usage);
            put(&mut view, node, &claim);
        }
        let found = addresses(&view);
        let sum = Addresses {
            used: 19,
            free: 12,
            reserved: 1,
        };
        assert_eq!(found[&"p".parse().unwrap()], sum);
        assert_eq!(found[&"empty".parse().unwrap()], Addresses::default());
    }
}
