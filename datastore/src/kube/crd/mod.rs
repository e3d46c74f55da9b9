//! The four custom resources of `viaduct.dev/v1alpha1`: what the API server checks and
//! shows of them.
//!
//! The types here are made into `deploy/crds/*.yaml` by the `crdgen` binary and are else
//! used by tests alone: the store itself hands the records on as JSON, so that one object
//! that somebody bent out of shape stops no list. Each kind's file also says how its
//! record is laid out as an object (`SHAPE`), and a test beside it that no field of the
//! record is unknown here: the API server drops what the schema does not name.

#![allow(
    unreachable_pub,
    clippy::duplicated_attributes,
    reason = "what kube's derive macros add is said to be the one, their columns the other"
)]

mod block;
mod claim;
mod node;
mod pool;
mod shared;
#[cfg(test)]
mod tests;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

pub use block::{AddressBlock, AddressBlockSpec, AddressBlockStatus, BlockStateText};
pub use claim::{BlockClaim, BlockClaimSpec, BlockClaimStatus, BlockUsageStatus, WantedBlocks};
pub use node::{
    BackendSpec, BackendType, NodeAddresses, NodeNetwork, NodeNetworkSpec, NodeNetworkStatus,
};
pub use pool::{AddressPool, AddressPoolSpec, AddressPoolStatus};
pub use shared::{CidrText, ConditionStatus, Ipv4Text, Ipv6Text, StatusCondition};

pub(super) use block::SHAPE as BLOCK;
pub(super) use claim::SHAPE as CLAIM;
pub(super) use node::SHAPE as NODE;
pub(super) use pool::SHAPE as POOL;

/// All definitions, in the order of their names.
pub fn all() -> [CustomResourceDefinition; 4] {
    [
        AddressBlock::crd(),
        AddressPool::crd(),
        BlockClaim::crd(),
        NodeNetwork::crd(),
    ]
}

/// The files of `deploy/crds`, by name.
///
/// # Errors
/// When a definition cannot be written as YAML.
pub fn files() -> Result<Vec<(String, String)>, serde_saphyr::ser_error::Error> {
    all()
        .iter()
        .map(|crd| {
            let name = format!("{}.yaml", crd.spec.names.plural);
            let head = "# Made by `cargo run -p viaduct-datastore --bin crdgen -- deploy/crds`: do not edit.\n";
            Ok((name, format!("{head}{}", serde_saphyr::to_string(crd)?)))
        })
        .collect()
}
