//! `viaductctl lab`: a whole network on one machine.

mod background;
mod demo;
mod down;
mod exec;
mod report;
mod state;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use viaduct_lab::{Backend, Datastore, LabOptions};

/// What `--datastore` means to the lab, for its help.
const DATASTORE_HELP: &str = "\
--datastore sqlite (as when it is absent) keeps the records in a file of the lab's own, etcd \
starts one on the lab's underlay, etcd://host:port uses one that runs already. The lab never \
takes it from VIADUCT_DATASTORE.";

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Bring a lab up, prove that every pod reaches every other, take it down
    #[command(after_help = DATASTORE_HELP)]
    Demo(DemoArgs),
    /// Bring a lab up and leave it running in the background
    #[command(after_help = DATASTORE_HELP)]
    Up(LabArgs),
    /// Run a program in a node or a pod of the lab that is up
    Exec(ExecArgs),
    /// Take down the lab that is up
    Down,
}

/// How large the lab is, and how its nodes carry pod traffic.
#[derive(Debug, Clone, Args)]
pub(crate) struct LabArgs {
    /// Nodes in the lab
    #[arg(long, value_name = "N", default_value_t = 3,
          value_parser = clap::value_parser!(u16).range(1..=200))]
    nodes: u16,
    /// Pods on each node
    #[arg(long, value_name = "M", default_value_t = 2,
          value_parser = clap::value_parser!(u16).range(0..=100))]
    pods: u16,
    /// How pod traffic crosses the underlay: vxlan, ipip or host-gw
    #[arg(long, value_name = "BACKEND", default_value = "vxlan", value_parser = parse_backend)]
    backend: Backend,
    /// With vxlan and ipip: nodes on one network, as all of a lab are, use plain routes
    #[arg(long)]
    direct_routing: bool,
}

fn parse_backend(text: &str) -> Result<Backend, String> {
    text.parse()
        .map_err(|error: viaduct_model::Invalid| format!("allowed: {}", error.allowed))
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    #[command(flatten)]
    lab: LabArgs,
    /// Leave the lab running in the background
    #[arg(long)]
    keep: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    /// Where: NODE or NODE/POD, such as n1 or n1/p1
    #[arg(value_name = "NODE[/POD]")]
    place: String,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    program: Vec<OsString>,
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
    let options = |lab: &LabArgs| LabOptions {
        nodes: lab.nodes.into(),
        pods: lab.pods.into(),
        backend: lab.backend,
        direct_routing: lab.direct_routing,
        datastore,
        etcd_prefix: etcd_prefix.to_owned(),
        ..LabOptions::default()
    };
    let outcome = match verb {
        Verb::Demo(args) => {
            let options = options(&args.lab);
            let work = |control| demo::run(options, control, args.keep);
            return if args.keep {
                background::start(work)
            } else {
                viaduct_lab::enter(work)
            };
        }
        Verb::Up(args) => {
            let options = options(&args);
            return background::start(|control| demo::up(options, control));
        }
        Verb::Exec(args) => exec::run(&args.place, &args.program),
        Verb::Down => down::run(),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("{error:#}");
        ExitCode::FAILURE
    })
}
