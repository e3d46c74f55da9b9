//! `viaduct-vm`: Viaduct on kernels of its own.
//!
//! `script` runs a program in one virtual machine; `cluster` runs a node in each of
//! three; `guest` is what runs inside those. Called by `tests/vm/run.sh`; all
//! processes, files and sockets live in the lab's namespaces ([`viaduct_lab::enter`])
//! and end with them, however this program ends.

mod clock;
mod cluster;
mod direct;
mod guest;
mod image;
mod machine;
mod pause;
mod port;
mod scene;
mod script;
mod table;
mod wire;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use viaduct_lab::Backend;

/// Runs Viaduct in virtual machines: emulated, on loopback, gone afterwards.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a program in a virtual machine; its exit code is ours
    Script(ScriptArgs),
    /// Three nodes with a kernel each on one wire, and what can happen to them
    Cluster(ClusterArgs),
    /// A node that is paused until its blocks are another's, and goes on
    Pause(ClusterArgs),
    /// Inside a virtual machine: do what the serial port says
    #[command(hide = true)]
    Guest,
}

/// What the machines boot.
#[derive(Debug, Clone, Args)]
struct ImageArgs {
    /// A directory with vmlinuz, as kernel.sh makes it
    #[arg(long, value_name = "DIR")]
    kernel: PathBuf,
    /// An initramfs for that kernel, as initramfs.sh makes it
    #[arg(long, value_name = "FILE")]
    initramfs: PathBuf,
}

#[derive(Debug, Args)]
struct ScriptArgs {
    #[command(flatten)]
    image: ImageArgs,
    /// How long it may take, in seconds
    #[arg(long, default_value_t = 240)]
    seconds: u64,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

#[derive(Debug, Clone, Args)]
struct ClusterArgs {
    #[command(flatten)]
    image: ImageArgs,
    /// What the agents are given as --backend
    #[arg(long, value_parser = parse_backend)]
    backend: Backend,
}

fn parse_backend(text: &str) -> Result<Backend, String> {
    text.parse()
        .map_err(|_| "allowed: vxlan, ipip, host-gw".to_owned())
}

fn main() -> ExitCode {
    match Cli::parse().verb {
        Verb::Script(args) => viaduct_lab::enter(|_| told(script::run(&args))),
        Verb::Cluster(args) => {
            viaduct_lab::enter(|_| told(cluster::run(&args).map(|()| ExitCode::SUCCESS)))
        }
        Verb::Pause(args) => {
            viaduct_lab::enter(|_| told(pause::run(&args).map(|()| ExitCode::SUCCESS)))
        }
        Verb::Guest => told(guest::run()),
    }
}

fn told(outcome: anyhow::Result<ExitCode>) -> ExitCode {
    outcome.unwrap_or_else(|error| {
        eprintln!("FAILED: {error:#}");
        ExitCode::FAILURE
    })
}
