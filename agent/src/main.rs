//! viaduct-agent: reads the flags, runs the agent, turns its end into an exit code.

use std::process::ExitCode;

use clap::Parser;
use viaduct_agent::flags::Flags;
use viaduct_agent::run::run;
use viaduct_datastore::StoreError;
use viaduct_datastore::flags::one_line;
use viaduct_model::Invalid;

/// Wrong usage.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    viaduct_agent::heap::keep_small();
    begin()
}

/// Two threads: one for the reconcile loop's neighbours, one for the CNI server; the
/// kernel's answers are awaited on threads of their own.
#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn begin() -> ExitCode {
    let flags = match Flags::try_parse() {
        Ok(flags) => flags,
        // --help and --version.
        Err(told) if !told.use_stderr() => told.exit(),
        Err(error) => {
            eprintln!("{}", one_line(&error));
            return ExitCode::from(USAGE);
        }
    };
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()),
        )
        .init();
    match run(flags).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::from(if is_usage(&error) { USAGE } else { 1 })
        }
    }
}

/// Whether the user has to change the command line.
fn is_usage(error: &anyhow::Error) -> bool {
    error.is::<Invalid>() || matches!(error.downcast_ref(), Some(StoreError::Invalid(_)))
}
