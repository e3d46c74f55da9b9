//! A claim: what a node asks of the controller, and how it fares.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Extra, Kind, Record};
use crate::{Block, Family, Invalid, NodeName};

/// What a node wants and how it fares. Written by that node's agent only; hangs
/// on the agent's liveness lease, so that it is gone when the agent is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    /// The incarnation of the agent that writes it.
    pub incarnation: String,
    /// Where that agent runs, for people: the machine's host name.
    pub host: String,
    /// The agent's release.
    pub agent_version: String,
    /// How many blocks the node wants to own.
    pub wants: PerFamily,
    /// Blocks that the node gives back, by record name, each with the generation that
    /// it gives: it has no address of them in use and hands none out ever again.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub gives: BTreeMap<String, u64>,
    /// Blocks that the node holds, by record name, with the generation that it was
    /// granted: its proof of ownership where the store has forgotten.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub holds: BTreeMap<String, u64>,
    /// Blocks of whose ownership the node was cut off for too long, with the
    /// generation: it hands out nothing from them until they are granted anew.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub renews: BTreeMap<String, u64>,
    /// The greatest generation of a grant of this node that is over: what is granted from
    /// now on has a greater one, also where the store was put back to before it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub ended: u64,
    /// Addresses in use and free, for each block by its record name.
    #[serde(default)]
    pub blocks: BTreeMap<String, BlockUsage>,
    /// What is the matter with the node, if anything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Unknown fields, kept.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A count for each address family.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PerFamily {
    /// IPv4.
    #[serde(default)]
    pub v4: u32,
    /// IPv6.
    #[serde(default)]
    pub v6: u32,
}

impl PerFamily {
    /// The count of one family.
    pub fn of(&self, family: Family) -> u32 {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }
}

/// How many addresses of a block are in use and free.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockUsage {
    /// In use by pods.
    pub used: u32,
    /// Free, cooling ones included.
    pub free: u32,
}

/// A condition of the standard Kubernetes form (`metav1.Condition`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What it is about, such as `Ready` or `BlocksAvailable`.
    pub r#type: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// One word, CamelCase.
    pub reason: String,
    /// A sentence for people.
    #[serde(default)]
    pub message: String,
    /// When `status` last changed (RFC 3339).
    pub last_transition_time: String,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Claim {
    /// Whether the node gives this very grant of the block back.
    pub fn gives(&self, block: &Block) -> bool {
        self.gives.get(&block.cidr.record_name()) == Some(&block.generation)
    }

    /// Whether the node wants this very grant of the block renewed.
    pub fn renews(&self, block: &Block) -> bool {
        self.renews.get(&block.cidr.record_name()) == Some(&block.generation)
    }

    /// The generation at which the node holds the block of this record name.
    pub fn holds(&self, record_name: &str) -> Option<u64> {
        self.holds.get(record_name).copied()
    }
}

impl Record for Claim {
    const KIND: Kind = Kind::Claim;

    fn validate(&self, name: &str) -> Result<(), Invalid> {
        name.parse::<NodeName>().map(drop)
    }
}
