//! `viaductctl lab`: a whole network on one machine.

mod demo;
mod report;

use std::process::ExitCode;

use clap::{Args, Subcommand};
use viaduct_lab::{Datastore, LabOptions};

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Bring a lab up, prove that every pod reaches every other, take it down
    Demo(DemoArgs),
}

/// How large the lab is.
#[derive(Debug, Clone, Args)]
pub(crate) struct SizeArgs {
    /// Nodes in the lab
    #[arg(long, value_name = "N", default_value_t = 3,
          value_parser = clap::value_parser!(u16).range(1..=200))]
    nodes: u16,
    /// Pods on each node
    #[arg(long, value_name = "M", default_value_t = 2,
          value_parser = clap::value_parser!(u16).range(0..=100))]
    pods: u16,
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    #[command(flatten)]
    size: SizeArgs,
}

/// Runs a verb; `datastore` is `--datastore` as given, which here may be `sqlite`
/// or `etcd` too.
pub(crate) fn run(verb: Verb, datastore: Option<&str>, etcd_prefix: &str) -> ExitCode {
    let datastore = match datastore.unwrap_or("sqlite").parse::<Datastore>() {
        Ok(datastore) => datastore,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    let options = |size: &SizeArgs| LabOptions {
        nodes: size.nodes.into(),
        pods: size.pods.into(),
        datastore,
        etcd_prefix: etcd_prefix.to_owned(),
        ..LabOptions::default()
    };
    match verb {
        Verb::Demo(args) => {
            let options = options(&args.size);
            viaduct_lab::enter(|control| demo::run(options, control))
        }
    }
}
