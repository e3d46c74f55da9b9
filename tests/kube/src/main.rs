//! viaduct-kube: what is checked on a real Kubernetes of three nodes.
//!
//! Runs against the cluster that `tests/kube/cluster.sh` has started, and changes nothing
//! outside of it. Ends with a summary that a test runner would print; exit code 1 when a
//! check failed.

mod checks;
mod cluster;
mod pods;
mod probe;
mod wait;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;

use checks::{ALL, When};
use cluster::{Cluster, Deployed};

/// Checks Viaduct on the Kubernetes cluster that tests/kube/cluster.sh has started.
#[derive(Debug, Parser)]
struct Args {
    /// The cluster's directory
    #[arg(
        long,
        env = "VIADUCT_KUBE_RUN",
        default_value = "/tmp/viaduct-kube",
        value_name = "DIR"
    )]
    run: PathBuf,
    /// This repository
    #[arg(long, default_value = ".", value_name = "DIR")]
    repository: PathBuf,
    /// Where Viaduct's own programs are
    #[arg(
        long,
        env = "VIADUCT_BIN_DIR",
        default_value = "target/release",
        value_name = "DIR"
    )]
    binaries: PathBuf,
    /// Only the checks that are there for every mode of kube-proxy
    #[arg(long)]
    short: bool,
    /// With --short: also those few others that are quick and matter most
    #[arg(long)]
    brief: bool,
    /// Also those at the end that take Viaduct away and bring it back by its chart
    #[arg(long)]
    leave: bool,
    /// Name the checks and run none
    #[arg(long)]
    list: bool,
    /// Only the checks whose names contain one of these
    filter: Vec<String>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let chosen: Vec<_> = ALL
        .iter()
        .filter(|check| match check.when {
            When::Always => true,
            When::Once => !args.short,
            When::Brief => !args.short || args.brief,
            When::Adopting => Deployed::chosen() == Deployed::Adopt,
            When::Leaving => args.leave,
        })
        .filter(|check| {
            args.filter.is_empty() || args.filter.iter().any(|part| check.name.contains(part))
        })
        .collect();
    if args.list {
        for check in chosen {
            println!("{}", check.name);
        }
        return ExitCode::SUCCESS;
    }
    let cluster = match Cluster::open(&args.run, &args.repository, &args.binaries) {
        Ok(cluster) => cluster,
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::from(2);
        }
    };
    let (mut passed, mut failed) = (0, 0);
    for check in chosen {
        let since = Instant::now();
        let outcome = (check.run)(&cluster);
        let seconds = since.elapsed().as_secs_f64();
        match outcome {
            Ok(told) => {
                passed += 1;
                let told = if told.is_empty() {
                    told
                } else {
                    format!(": {told}")
                };
                println!("ok    {} ({seconds:.1} s){told}", check.name);
            }
            Err(error) => {
                failed += 1;
                println!("FAIL  {} ({seconds:.1} s): {error:#}", check.name);
            }
        }
    }
    println!("\n{passed} passed, {failed} failed");
    if failed == 0 && passed > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
