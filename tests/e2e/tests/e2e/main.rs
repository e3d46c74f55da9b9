//! The end-to-end tests, one module per theme.

mod agent;
mod cni;
mod demo;
mod drift;
mod names;
mod pools;
mod privilege;
mod reach;
mod refusals;
mod restarts;
mod store;
mod sweep;
