//! The datastore: one trait, and the stores behind it.
//!
//! Stores hold opaque bytes by [`Kind`](viaduct_model::Kind) and name; typed
//! reading and writing is [`records`], following a kind for ever is [`follow()`].
//! No type of etcd-client, kube or rusqlite ever leaves this crate.

pub mod backoff;
mod connectivity;
pub mod etcd;
pub mod flags;
pub mod follow;
pub mod kube;
pub mod liveness;
pub mod node_cidrs;
mod ownership;
pub mod records;
pub mod sqlite;
pub mod store;
mod tenure;
pub mod url;

pub use backoff::Backoff;
pub use flags::StoreArgs;
pub use follow::{Update, follow};
pub use liveness::{HoldError, HoldState, Holding, hold};
pub use node_cidrs::{NodeCidrs, NodeCidrsArgs};
pub use records::{Named, Records};
pub use store::{
    Change, Connectivity, Cursor, Entry, Leadership, LeaseId, List, Mark, Note, PodRef, Presence,
    Store, StoreError, Version,
};
pub use url::{StoreOptions, open};
