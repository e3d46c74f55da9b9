//! The lab: Viaduct nodes as network namespaces on one machine.
//!
//! A library that `viaductctl lab`, the end-to-end tests and the benches share.
//! A lab lives in namespaces of its own ([`isolate`]): a bridge is the underlay
//! ([`underlay`]), every [`Node`] is a network namespace on it with the real agent
//! under the one capability that it may have ([`privilege`]), every [`Pod`] is a
//! namespace that the real plugin has wired ([`cni`]). Blocking code throughout:
//! what it waits for are processes, and those who use it are tests.
//!
//! It must never touch a link, a namespace or a process that it did not make, and
//! never leave anything behind, not even when it is killed.

pub mod binaries;
pub mod cni;
pub mod command;
pub mod control;
pub mod daemon;
pub mod environment;
pub mod http;
pub mod isolate;
mod kube;
pub mod lab;
pub mod machine;
pub mod matrix;
pub mod netns;
pub mod node;
pub mod options;
pub mod pod;
pub mod privilege;
pub mod probe;
pub mod store;
pub mod test;
pub mod underlay;
pub mod wait;

pub use control::Control;
pub use daemon::{Daemon, Signal};
pub use isolate::{Stage, enter, enter_as};
pub use lab::Lab;
pub use matrix::Matrix;
pub use node::Node;
pub use options::{Backend, Carriage, Datastore, LabOptions};
pub use pod::Pod;
pub use probe::{Capture, Echo, Payload, Seen, Transfer};
pub use store::StoreServer;
pub use test::in_lab;
pub use wait::{eventually, in_parallel};
