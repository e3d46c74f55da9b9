//! The command line, and which verb does what.

use std::process::ExitCode;

use clap::parser::ValueSource;
use clap::{ArgMatches, Parser, Subcommand};
use viaduct_datastore::StoreArgs;

use crate::lab;

/// Inspects a Viaduct network and runs it in a lab
#[derive(Debug, Parser)]
#[command(name = "viaductctl", version, about, propagate_version = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Run a whole network on this machine: nodes and pods as network namespaces
    #[command(subcommand)]
    Lab(lab::Verb),
}

/// Runs what the command line asks for.
pub(crate) fn run(cli: Cli, matches: &ArgMatches) -> ExitCode {
    match cli.verb {
        Verb::Lab(verb) => {
            let given = given_datastore(&cli.store, matches);
            lab::run(verb, given, &cli.store.etcd_prefix)
        }
    }
}

/// The value of `--datastore` where it stands on the command line. The lab must
/// not take it from the environment: that names the network at work.
fn given_datastore<'a>(store: &'a StoreArgs, matches: &ArgMatches) -> Option<&'a str> {
    let mut level = matches;
    loop {
        if level.value_source("datastore") == Some(ValueSource::CommandLine) {
            return store.datastore.as_deref();
        }
        level = level.subcommand()?.1;
    }
}
