//! Egress: how pods' packets leave the node for what is not a pod, and the check
//! that a pod sends from no address but its own.
//!
//! Both are one nftables table, `inet viaduct`. Like the dataplane it is decided
//! over plain data ([`desired`]), compared with what the kernel lists ([`listing`],
//! [`change`]) and changed in one atomic transaction ([`tool`]). One task owns it
//! ([`task`]), started by `run`; it tells how it goes by an [`EgressReport`]. Nobody
//! else's table is ever read or touched, and nothing of it is on the way of an ADD.

pub mod change;
pub mod desired;
pub mod listing;
pub mod prefixes;
pub mod ruleset;
pub mod task;
pub mod tool;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;

use viaduct_model::Cidr;

/// What the user decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Whether pods' packets to the outside get an address of the node
    /// (`--masquerade`). Pools can still say no, each for its own pods.
    pub masquerade: bool,
    /// Destinations that see pods' own addresses (`--no-masquerade-to`).
    pub exempt: Vec<Cidr>,
    /// Whether the nodes' underlay addresses are outside as well
    /// (`--masquerade-to-nodes`).
    pub to_nodes: bool,
    /// Whether source ports are drawn at random (`--masquerade-random-fully`), so
    /// that two connections never race for one.
    pub random_fully: bool,
}

/// How the table compares with what it should be. Owned by the egress task.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EgressReport {
    /// Whether the table was found, or made, as it should be.
    pub verified: bool,
    /// What differs or does not succeed, one sentence each.
    pub problems: Vec<String>,
    /// What is worth knowing but keeps nobody from being ready.
    pub warnings: Vec<String>,
    /// Transactions that undid what somebody else had done to the table.
    pub repairs: u64,
    /// Packets dropped because their source was not the pod's own address.
    pub spoofed_packets: u64,
}
