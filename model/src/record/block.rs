//! A block: a piece of a pool that belongs to one node.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::pool::{MAX_BLOCK_SIZE, is_unicast};
use super::{Extra, Kind, Record};
use crate::{Cidr, Invalid, NodeName, PoolName};

/// A block of pod addresses and its owner. Written by the controller only.
///
/// Created by create-if-absent on a key that is its CIDR, so that no two
/// controllers can give one block to two nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Block {
    /// The addresses.
    pub cidr: Cidr,
    /// The pool that it was carved from.
    pub pool: PoolName,
    /// The node that owns it.
    pub node: NodeName,
    /// Greater than that of every earlier grant of this CIDR, so that a reader can
    /// tell a block that came back from one that never left, and an owner of today
    /// from one of the past.
    pub generation: u64,
    /// Where it is in its life.
    pub state: BlockState,
    /// For how long after it last read this very record as active the owner may hand
    /// out addresses, in milliseconds of its own clock. What stands here is a promise
    /// that the controller keeps, whatever its flags say later: a block rests for at
    /// least [`Block::rest`] before anybody else gets it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust_ms: Option<u64>,
    /// Unknown fields, kept.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Where a block is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BlockState {
    /// The node hands out addresses from it.
    Active,
    /// The node gives it back and hands out nothing from it any more.
    Releasing,
    /// The node is gone; nobody hands out addresses from it until it is free again.
    Quarantined,
}

impl std::fmt::Display for BlockState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            BlockState::Active => "active",
            BlockState::Releasing => "releasing",
            BlockState::Quarantined => "quarantined",
        })
    }
}

/// The trust that a record without the field stands for: what agents went by before
/// there was one.
const DEFAULT_TRUST: Duration = Duration::from_secs(240);

impl Block {
    /// The trust that goes with a quarantine: a fifth less, so that clocks which run
    /// at different speeds change nothing.
    pub fn trust_for(quarantine: Duration) -> u64 {
        // The API server's integers are signed.
        const MOST: u64 = i64::MAX as u64;
        let trust = quarantine.as_millis() * 4 / 5;
        u64::try_from(trust).unwrap_or(MOST).min(MOST)
    }

    /// For how long the owner may hand out addresses after it read this record.
    pub fn trust(&self) -> Duration {
        self.trust_ms.map_or(DEFAULT_TRUST, Duration::from_millis)
    }

    /// How long the block must have rested before anybody else may have it.
    pub fn rest(&self) -> Duration {
        let trust = self.trust();
        trust.saturating_add(trust / 4)
    }

    /// A new, active block.
    pub fn new(cidr: Cidr, pool: PoolName, node: NodeName, generation: u64) -> Self {
        Self {
            cidr,
            pool,
            node,
            generation,
            state: BlockState::Active,
            trust_ms: None,
            extra: Extra::new(),
        }
    }
}

impl Record for Block {
    const KIND: Kind = Kind::Block;

    fn validate(&self, name: &str) -> Result<(), Invalid> {
        let refuse = |allowed: String| {
            Err(Invalid::new(
                format!("block {name:?}"),
                "cidr",
                self.cidr,
                allowed,
            ))
        };
        if self.cidr.record_name() != name {
            return refuse(format!(
                "the record of this CIDR is named {:?}",
                self.cidr.record_name()
            ));
        }
        // Every node routes it to its owner: a slip of the hand must not take the
        // default route or the machine's own loopback away.
        if self.cidr.size() > MAX_BLOCK_SIZE {
            return refuse(format!("a block holds at most {MAX_BLOCK_SIZE} addresses"));
        }
        if !is_unicast(&self.cidr) {
            return refuse(
                "unicast addresses that may be routed: not loopback, link-local, multicast or \
                 unspecified"
                    .into(),
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_that_would_draw_foreign_traffic_are_refused() {
        let check = |cidr: &str| {
            let cidr: Cidr = cidr.parse().unwrap();
            let block = Block::new(cidr, "p".parse().unwrap(), "n".parse().unwrap(), 1);
            block.validate(&cidr.record_name())
        };
        for good in ["10.0.0.0/26", "10.0.0.0/16", "fd00::/122", "10.0.0.1/32"] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in [
            "0.0.0.0/0",
            "10.0.0.0/8",
            "127.0.0.0/24",
            "ff02::/122",
            "fd00::/64",
        ] {
            assert_eq!(check(bad).unwrap_err().field, "cidr", "{bad}");
        }
    }
}
