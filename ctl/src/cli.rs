//! The command line, and which verb does what.

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, Parser, Subcommand};
use viaduct_datastore::{Records, StoreArgs, StoreError, StoreOptions};

use crate::output::{self, Format};
use crate::snapshot::Snapshot;
use crate::{blocks, cleanup, install, ipam, lab, nodes, pools, status, uninstall};

/// Inspects a Viaduct network and runs it in a lab
#[derive(Debug, Parser)]
#[command(name = "viaductctl", version, propagate_version = true, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(flatten)]
    store: StoreArgs,
    /// How to show results
    #[arg(
        short,
        long,
        value_enum,
        default_value_t,
        global = true,
        value_name = "FORMAT"
    )]
    output: Format,
    #[command(subcommand)]
    verb: Verb,
}

const EXIT_CODES: &str = "\
Exit codes: 0 it worked, 1 it failed (the datastore does not answer, a request is refused), \
2 the command line is wrong.";

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show the whole network on one screen
    ///
    /// What is wrong with the network is shown and does not change the exit code;
    /// a datastore that does not answer does.
    Status,
    /// List the nodes: alive or not, addresses, blocks, conditions; or remove one
    Nodes {
        #[command(subcommand)]
        verb: Option<nodes::Verb>,
    },
    /// List the blocks: which node owns which addresses
    Blocks,
    /// List the pools, or change them
    Pools {
        #[command(subcommand)]
        verb: Option<pools::Verb>,
    },
    /// Say who has which address, and check that store, ledgers and kernels agree
    #[command(subcommand)]
    Ipam(ipam::Verb),
    /// Take away what an agent left on this host, and nothing else
    ///
    /// Needs no datastore and no agent, but root or CAP_NET_ADMIN. Pods of this
    /// network lose their connection. Refused while the agent runs.
    Cleanup(cleanup::CleanupArgs),
    /// Put on this host what an agent in a container needs there (as root)
    #[command(subcommand)]
    Install(install::Verb),
    /// Take Viaduct off this host: CNI configuration, what an agent left, CNI plugin
    ///
    /// Needs root; no datastore and no agent. Refused while the agent runs, and while
    /// pods of this network do, unless --cut-off-pods says otherwise.
    Uninstall(uninstall::UninstallArgs),
    /// Run a whole network on this machine: nodes and pods as network namespaces
    #[command(subcommand)]
    Lab(lab::Verb),
    /// Print a script that completes commands and flags in a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Runs what the command line asks for.
pub(crate) fn run(cli: Cli, matches: &ArgMatches) -> ExitCode {
    match cli.verb {
        Verb::Lab(verb) => {
            let given = given_datastore(&cli.store, matches);
            lab::run(verb, given, &cli.store.etcd_prefix)
        }
        Verb::Install(verb) => install::run(verb),
        Verb::Cleanup(args) => cleanup::run(&args, cli.output),
        Verb::Uninstall(args) => uninstall::run(&args),
        Verb::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "viaductctl", &mut script);
            print(&script)
        }
        Verb::Ipam(verb) => ipam::without_store(&verb, cli.output)
            .unwrap_or_else(|| with_store(&cli.store, cli.output, &Verb::Ipam(verb))),
        verb => with_store(&cli.store, cli.output, &verb),
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

fn with_store(store: &StoreArgs, format: Format, verb: &Verb) -> ExitCode {
    let options = match store.options() {
        Ok(options) => StoreOptions {
            writer: Some("viaductctl".into()),
            ..options
        },
        Err(error) => return refuse(&error, 2),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime");
    let outcome = runtime.and_then(|runtime| {
        runtime.block_on(async {
            let records = match viaduct_datastore::open(&options).await {
                Ok(store) => Records::new(store),
                Err(StoreError::Invalid(error)) => return Ok(refuse(&error, 2)),
                Err(error) => return Err(error.into()),
            };
            if let Verb::Ipam(verb) = verb {
                let (text, code) = ipam::with_store(&records, format, verb).await?;
                let said = print(text.as_bytes());
                return Ok(if code == 0 {
                    said
                } else {
                    ExitCode::from(code)
                });
            }
            Ok(print(answer(&records, format, verb).await?.as_bytes()))
        })
    });
    outcome.unwrap_or_else(|error| refuse(&format!("{error:#}"), 1))
}

async fn answer(records: &Records, format: Format, verb: &Verb) -> Result<String> {
    if let Verb::Pools { verb: Some(verb) } = verb {
        match verb {
            pools::Verb::Create(args) => return pools::create::run(records, args).await,
            pools::Verb::Delete(args) => return pools::delete::run(records, &args.name).await,
            pools::Verb::Disable(args) => {
                return pools::switch::run(records, &args.name, true).await;
            }
            pools::Verb::Enable(args) => {
                return pools::switch::run(records, &args.name, false).await;
            }
            pools::Verb::List => {}
        }
    }
    if let Verb::Nodes {
        verb: Some(nodes::Verb::Delete { name }),
    } = verb
    {
        return nodes::delete::run(records, name).await;
    }
    let snapshot = Snapshot::read(records).await?;
    let store = records.store().describe();
    // Status tells of unreadable records itself.
    if !matches!(verb, Verb::Status) {
        for unreadable in &snapshot.unreadable {
            eprintln!("left out: {unreadable}");
        }
    }
    Ok(match (verb, format) {
        (Verb::Nodes { .. }, Format::Table) => nodes::render(&snapshot),
        (Verb::Nodes { .. }, Format::Json) => output::json(&nodes::json(&snapshot)),
        (Verb::Blocks, Format::Table) => blocks::render(&snapshot),
        (Verb::Blocks, Format::Json) => output::json(&blocks::json(&snapshot)),
        (Verb::Pools { .. }, Format::Table) => pools::list::render(&snapshot),
        (Verb::Pools { .. }, Format::Json) => output::json(&pools::list::json(&snapshot)),
        (_, Format::Table) => status::render(&store, &snapshot),
        (_, Format::Json) => output::json(&status::json(&store, &snapshot)),
    })
}

pub(crate) fn refuse(why: &impl std::fmt::Display, code: u8) -> ExitCode {
    eprintln!("viaductctl: {why}");
    ExitCode::from(code)
}

/// Writes the answer; a reader that has seen enough (`| head`) is no failure.
pub(crate) fn print(text: &[u8]) -> ExitCode {
    match std::io::stdout().write_all(text) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            refuse(&format!("standard output: {error}"), 1)
        }
        _ => ExitCode::SUCCESS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_lab_sees_only_what_stands_on_the_command_line() {
        for args in [
            ["viaductctl", "--datastore", "etcd", "lab", "demo"],
            ["viaductctl", "lab", "demo", "--datastore", "etcd"],
        ] {
            let matches = Cli::command().get_matches_from(args);
            let cli = <Cli as clap::FromArgMatches>::from_arg_matches(&matches).unwrap();
            assert_eq!(given_datastore(&cli.store, &matches), Some("etcd"));
        }
        let matches = Cli::command().get_matches_from(["viaductctl", "lab", "demo"]);
        let cli = <Cli as clap::FromArgMatches>::from_arg_matches(&matches).unwrap();
        assert_eq!(given_datastore(&cli.store, &matches), None);
    }
}
