//! Viaduct's records and decisions: pure data and pure functions.
//!
//! This crate owns what the whole project means by a pool, a block, a node and
//! a claim, how blocks are carved out of pools and how pod addresses are taken
//! from blocks. It must never do I/O, know async, the kernel, etcd or kube:
//! everything here is testable with no root, no network and no clock.

pub mod addresses;
pub mod attachment;
pub mod carve;
pub mod cidr;
mod intervals;
pub mod invalid;
pub mod mac;
pub mod name;
pub mod record;
pub mod screen;
pub mod tenure;
pub mod view;

pub use addresses::{AddressManager, AllocateError, BlockService};
pub use attachment::{AttachmentId, Endpoint};
pub use carve::Carver;
pub use cidr::{Cidr, Family};
pub use invalid::Invalid;
pub use mac::MacAddr;
pub use name::{NodeName, PoolName};
pub use record::{
    Backend, Block, BlockState, BlockUsage, Claim, Condition, Kind, Node, PerFamily, Pool,
    PoolStatus, Record,
};
pub use screen::{BlockFault, block_faults};
pub use tenure::Tenure;
pub use view::ClusterView;
