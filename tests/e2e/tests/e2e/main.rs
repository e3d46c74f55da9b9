//! The end-to-end tests, one module per theme.

mod agent;
mod backends;
mod cleanup;
mod cni;
mod conflicts;
mod demo;
mod drift;
mod egress;
mod growth;
mod ipam;
mod libcni;
mod memory;
mod names;
mod ownership;
mod pools;
mod privilege;
mod reach;
mod refusals;
mod restarts;
mod service;
mod stage;
mod store;
mod sweep;
mod underlay;
mod uninstall;
mod zero_loss;
