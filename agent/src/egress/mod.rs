//! Egress: how pods' packets leave the node for what is not a pod.
//!
//! That is the nftables table `inet viaduct` ([`masquerade`]). Like the dataplane it is
//! decided over plain data ([`ruleset`]), compared with what the kernel lists ([`listing`],
//! [`change`]) and changed in one atomic transaction ([`tool`]). A [`keeper`] does that
//! when the [`task`] says so, which is started by `run` and tells how it goes by an
//! [`EgressReport`]. Nobody else's table is ever read or touched, and nothing of it is on
//! the way of an ADD. That a pod sends from its own address is no business of this module:
//! see `crate::spoofed`.

pub mod change;
mod features;
pub mod keeper;
pub mod listing;
pub mod masquerade;
pub mod prefixes;
pub mod ruleset;
pub mod task;
pub mod tool;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod keeper_tests;
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
    /// Whether it was found, or made, as it should be.
    pub verified: bool,
    /// What differs or does not succeed, one sentence each.
    pub problems: Vec<String>,
    /// Transactions that undid what somebody else had done.
    pub repairs: u64,
}
