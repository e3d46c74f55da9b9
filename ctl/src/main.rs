//! viaductctl: inspects a Viaduct network and runs it in a lab.
//!
//! Exit codes: 0 it worked, 1 it failed, 2 the command line is wrong.

mod blocks;
mod cleanup;
mod cli;
#[cfg(test)]
mod fixture;
mod install;
mod ipam;
mod lab;
mod nodes;
mod output;
mod places;
mod pools;
mod snapshot;
mod status;
mod uninstall;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches};
use viaduct_datastore::flags::one_line;

fn main() -> ExitCode {
    let parsed = cli::Cli::command()
        .try_get_matches()
        .and_then(|matches| Ok((cli::Cli::from_arg_matches(&matches)?, matches)));
    match parsed {
        Ok((cli, matches)) => cli::run(cli, &matches),
        // --help, --version, and no command at all: more than a line is of use.
        Err(told)
            if !told.use_stderr()
                || told.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand =>
        {
            told.exit()
        }
        Err(error) => {
            eprintln!("{}", one_line(&error));
            ExitCode::from(2)
        }
    }
}
