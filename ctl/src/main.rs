//! viaductctl: inspects a Viaduct network and runs it in a lab.
//!
//! Exit codes: 0 it worked, 1 it failed, 2 the command line is wrong.

mod cli;
mod lab;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

fn main() -> ExitCode {
    let matches = cli::Cli::command().get_matches();
    let cli = match cli::Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    cli::run(cli, &matches)
}
