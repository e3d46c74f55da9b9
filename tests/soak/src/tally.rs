//! How much runtimes did.

use std::time::Duration;

/// What was done, over all nodes.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Pods that came and went.
    pub pods: u64,
    /// Calls that worked, by verb.
    pub add: u64,
    /// See `add`.
    pub check: u64,
    /// See `add`.
    pub del: u64,
    /// See `add`.
    pub gc: u64,
    /// Plugins that were killed.
    pub killed: u64,
    /// The longest that a runtime had to wait and retry for an ADD.
    pub longest_add: Duration,
    /// And for a DEL.
    pub longest_del: Duration,
}
