//! `viaduct-soak`: three nodes under churn, kills, damage and outages of the store, for as
//! long as was asked for; then everything has to be as if nothing had happened.
//!
//! It runs in a lab of its own ([`viaduct_lab::enter`]) with the real programs. Pods that
//! stay send each other numbered datagrams all the time ([`streams`]), others come and go
//! on every node through the CNI plugin ([`churn`]), and one event after the other happens
//! to agents, controllers, etcd, underlay and kernels ([`event`], [`happen`]). What comes
//! is drawn from a seed. Run by `make soak`. It must never touch anything outside of the
//! lab but the directory that it keeps logs in.

mod book;
mod churn;
mod event;
mod finish;
mod flags;
mod happen;
mod keep;
mod losses;
mod plant;
mod plugin;
mod run;
mod scene;
mod streams;
mod summary;
mod tally;
mod vitals;

use std::process::ExitCode;

use clap::Parser;

use crate::flags::Flags;

fn main() -> ExitCode {
    let flags = Flags::parse();
    viaduct_lab::enter(|control| run::all(&flags, control))
}
