//! The four records, as every store holds them. Each has one writer.
//!
//! What all agents watch (pools, blocks, nodes) changes only when the network
//! changes: no heartbeat, no counter, no timestamp that ticks. What ticks is in
//! the claim, which only the controller and `viaductctl` read.

mod block;
mod claim;
mod node;
mod pool;

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fmt;

pub use block::{Block, BlockState};
pub use claim::{BlockUsage, Claim, Condition, PerFamily};
pub use node::{Backend, Node, Overlay, Underlay};
pub use pool::{Pool, PoolStatus};

/// Fields that this release does not know, kept as they were read so that an
/// older writer does not destroy what a newer one wrote.
pub type Extra = BTreeMap<String, serde_json::Value>;

/// Which of the four records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// [`Pool`].
    Pool,
    /// [`Block`].
    Block,
    /// [`Node`].
    Node,
    /// [`Claim`].
    Claim,
}

impl Kind {
    /// All four.
    pub const ALL: [Kind; 4] = [Kind::Pool, Kind::Block, Kind::Node, Kind::Claim];

    /// The plural that stands in keys and tables: `pools`, `blocks`, `nodes`, `claims`.
    pub fn plural(self) -> &'static str {
        match self {
            Kind::Pool => "pools",
            Kind::Block => "blocks",
            Kind::Node => "nodes",
            Kind::Claim => "claims",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Pool => "pool",
            Kind::Block => "block",
            Kind::Node => "node",
            Kind::Claim => "claim",
        })
    }
}

/// A record that a store can hold.
pub trait Record:
    Serialize + DeserializeOwned + Clone + PartialEq + fmt::Debug + Send + Sync + 'static
{
    /// Which record this is.
    const KIND: Kind;

    /// Checks what the type alone cannot: that `name` fits the content, and the
    /// relations between fields. Called on everything that is read or written.
    ///
    /// # Errors
    /// The first thing that is wrong.
    fn validate(&self, name: &str) -> Result<(), crate::Invalid>;
}
