//! The life of addresses, simulated: two controllers, twenty agents, a store, clocks that
//! run at different speeds, lost messages, crashes, partitions, sleep, and a store that
//! is put back to a snapshot.
//!
//! The decisions are the real ones: the controller's view, memory, decisions and writes,
//! the agents' tenure, address manager and demand. There are no sockets and no threads;
//! chance comes from a seed, so that each run can be repeated. What must always be so is
//! looked at after each step ([`world`]).

pub mod agent;
pub mod controller;
pub mod rng;
pub mod store;
pub mod trace;
pub mod world;

pub use world::{Tally, Violation, World};
