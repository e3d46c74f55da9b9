//! `viaduct-bench`: Viaduct beside the alternatives, as ratios in one run.
//!
//! Every measurement runs in a lab of its own ([`viaduct_lab::enter`]): this
//! program starts itself again for each, collects the rows as JSON and prints
//! them as one table. Both sides of a row are measured in turn in every round,
//! because machines are noisy and only their neighbours in time are comparable.
//! Run by `make bench`. It must never touch the host's own network, and never
//! make a reference slower than it is.

mod api;
mod flags;
mod icmp;
mod machine;
mod measure;
mod plugin;
mod process;
mod reference;
mod report;
mod row;
mod run;
mod simulated;
mod stats;
mod streams;
mod turns;

use std::process::ExitCode;

use clap::Parser;

use crate::flags::Flags;

fn main() -> ExitCode {
    let flags = Flags::parse();
    match &flags.measure {
        Some(name) => viaduct_lab::enter(|control| run::inside(name, &flags, control)),
        None => run::all(&flags),
    }
}
