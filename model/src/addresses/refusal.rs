//! Why no address was handed out, in words for whoever reads the runtime's log.

use std::net::IpAddr;

use thiserror::Error;

use crate::{Cidr, Family};

/// Why no address could be handed out.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AllocateError {
    /// The node owns no block of that family.
    #[error(
        "this node owns no {family} block yet: the controller gives it one when a pool has a free block"
    )]
    NoBlock {
        /// The family that was asked for.
        family: Family,
    },
    /// All of its blocks are draining.
    #[error(
        "all {blocks} {family} blocks of this node are being given back or cannot be proved to be its own, so nothing is handed out from them"
    )]
    AllDraining {
        /// The family that was asked for.
        family: Family,
        /// How many blocks there are.
        blocks: usize,
    },
    /// An address was asked for by name that is in no block of the node.
    #[error("{address} is in no block of this node: {}", list_of(blocks))]
    NotOurs {
        /// The address.
        address: IpAddr,
        /// The blocks that serve.
        blocks: Vec<Cidr>,
    },
    /// An address was asked for by name that is never handed out.
    #[error("{address} is reserved in its pool, or the node's own")]
    Reserved {
        /// The address.
        address: IpAddr,
    },
    /// An address was asked for by name that somebody has.
    #[error("{address} belongs to attachment {owner} already")]
    Taken {
        /// The address.
        address: IpAddr,
        /// Who has it.
        owner: String,
    },
    /// Every address is in use or reserved.
    #[error(
        "no {family} address is free in the {blocks} blocks of this node: {used} are in use, the others are reserved; the controller gives another block when a pool has one"
    )]
    Full {
        /// The family that was asked for.
        family: Family,
        /// How many blocks serve.
        blocks: usize,
        /// How many of their addresses are in use.
        used: u64,
    },
}

fn list_of(blocks: &[Cidr]) -> String {
    if blocks.is_empty() {
        return "it has none that serves".to_owned();
    }
    let blocks: Vec<String> = blocks.iter().map(Cidr::to_string).collect();
    format!("allowed: a free address of {}", blocks.join(", "))
}
