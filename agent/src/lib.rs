//! viaduct-agent: one per node. Keeps the kernel as the cluster wants it, and
//! wires pods when the CNI plugin asks.
//!
//! ```text
//! datastore watch ─┐                        ┌─ links, addresses, routes, neighbours, FDB
//!                  ├─> NodeState ─backend─> Desired ──diff──> Plan ──apply──> kernel
//! CNI ADD/DEL ─────┘  (`state`)  (`backend`)        (`dataplane`)      (`kernel`)
//! ```

pub mod adopt;
pub mod announcer;
pub mod backend;
pub mod claims;
pub mod cleanup;
pub mod clock;
pub mod cni;
pub mod dataplane;
pub mod egress;
pub mod flags;
pub mod health;
pub mod heap;
pub mod http;
pub mod inventory;
pub mod isolation;
pub mod kernel;
pub mod lookout;
pub mod memory;
pub mod mtu;
pub mod node;
pub mod registrar;
pub mod run;
pub mod run_dir;
pub mod service;
pub mod spoofed;
pub mod state;
pub mod steward;
pub mod subnet_env;
pub mod tenure;
pub mod underlay;
pub mod view;
