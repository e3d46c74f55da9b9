//! viaduct-cni: what the plugin binary `viaduct` and the agent share, and the
//! pure part of the CNI specification.
//!
//! - [`config`], [`invocation`], [`result`], [`error`], [`version`]: the CNI
//!   specification, versions 0.3.1 to 1.1.0, as plain data in and out.
//! - [`wishes`], [`previous`]: what a configuration says about one attachment.
//! - [`protocol`], [`frame`]: how the plugin asks the agent, descriptors included.
//! - [`fault`]: where tests have the programs killed.
//! - [`spool`]: how a DEL survives the agent being away.
//!
//! The binary is started once per pod and verb as root, so this crate stays
//! small: no async runtime, few crates, nothing that runs before `main`. The agent
//! uses the same types. Nothing here knows what wiring a pod means.

pub mod config;
pub mod error;
pub mod fault;
pub mod frame;
pub mod invocation;
pub mod previous;
pub mod protocol;
pub mod result;
pub mod spool;
pub mod version;
pub mod wishes;

pub use error::CniError;
