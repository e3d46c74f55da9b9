//! `viaductctl pools`: the ranges that blocks are carved from. Their specs are
//! written here and nowhere else.

pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod list;
pub(crate) mod switch;

use clap::{Args, Subcommand};
use viaduct_model::PoolName;

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Create a pool
    Create(create::CreateArgs),
    /// List the pools, as when no verb is given
    List,
    /// Delete a pool that has no blocks
    Delete(NameArgs),
    /// Carve no new blocks from a pool; nodes keep those they have
    Disable(NameArgs),
    /// Carve blocks from a pool again
    Enable(NameArgs),
}

#[derive(Debug, Args)]
pub(crate) struct NameArgs {
    /// The pool's name
    pub(crate) name: PoolName,
}
