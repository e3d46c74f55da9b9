//! viaductctl: inspects a Viaduct network and runs it in a lab.
//!
//! Exit codes: 0 it worked, 1 it failed, 2 the command line is wrong.

mod blocks;
mod cleanup;
mod cli;
#[cfg(test)]
mod fixture;
mod lab;
mod nodes;
mod output;
mod pools;
mod snapshot;
mod status;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

fn main() -> ExitCode {
    let matches = cli::Cli::command().get_matches();
    match cli::Cli::from_arg_matches(&matches) {
        Ok(cli) => cli::run(cli, &matches),
        Err(error) => error.exit(),
    }
}
