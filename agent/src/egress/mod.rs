//! Egress: how pods' packets leave the node for what is not a pod, and the check
//! that a pod sends from no address but its own.
//!
//! The first is the nftables table `inet viaduct` ([`masquerade`]), the second
//! `netdev viaduct` ([`source_check`]): one that only packets from pods' devices meet.
//! Like the dataplane they are decided over plain data ([`ruleset`]), compared with
//! what the kernel lists ([`listing`], [`change`]) and changed in one atomic transaction
//! each ([`tool`]). A [`keeper`] for each does that when the [`task`] says so, which is
//! started by `run` and tells how it goes by an [`EgressReport`]. Nobody else's table is
//! ever read or touched, and nothing of it is on the way of an ADD.

pub mod change;
mod features;
pub mod keeper;
pub mod listing;
pub mod masquerade;
mod parts;
pub mod prefixes;
pub mod ruleset;
pub mod source_check;
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

/// How the tables compare with what they should be. Owned by the egress task.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EgressReport {
    /// The table `inet viaduct`.
    pub masquerade: TableReport,
    /// The table `netdev viaduct`.
    pub source_check: TableReport,
}

/// How one table compares.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TableReport {
    /// Whether the table was found, or made, as it should be.
    pub verified: bool,
    /// What differs or does not succeed, one sentence each.
    pub problems: Vec<String>,
    /// What is worth knowing but keeps nobody from being ready.
    pub warnings: Vec<String>,
    /// Transactions that undid what somebody else had done to the table.
    pub repairs: u64,
    /// Packets that the table has dropped.
    pub dropped: u64,
}

impl EgressReport {
    fn tables(&self) -> [&TableReport; 2] {
        [&self.masquerade, &self.source_check]
    }

    /// Whether both tables are as they should be.
    pub fn verified(&self) -> bool {
        self.tables().iter().all(|table| table.verified)
    }

    /// What keeps the node from being ready.
    pub fn problems(&self) -> impl Iterator<Item = &String> {
        let tables = self.tables().into_iter();
        tables.flat_map(|table| &table.problems)
    }

    /// What is worth knowing.
    pub fn warnings(&self) -> impl Iterator<Item = &String> {
        let tables = self.tables().into_iter();
        tables.flat_map(|table| &table.warnings)
    }

    /// Transactions that undid what somebody else had done.
    pub fn repairs(&self) -> u64 {
        self.tables().iter().map(|table| table.repairs).sum()
    }
}
