//! viaduct-agent: one per node. Keeps the kernel as the cluster wants it, and
//! wires pods when the CNI plugin asks.
//!
//! ```text
//! datastore watch ─┐                        ┌─ links, addresses, routes, neighbours, FDB
//!                  ├─> NodeState ─backend─> Desired ──diff──> Plan ──apply──> kernel
//! CNI ADD/DEL ─────┘  (`state`)  (`backend`)        (`dataplane`)      (`kernel`)
//! ```

pub mod kernel;
pub mod state;
