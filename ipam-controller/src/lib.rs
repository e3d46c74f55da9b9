//! viaduct-controller: gives every node its blocks of pod addresses.
//!
//! Creates the first pool, gives each node a block and further ones on request,
//! takes back what is given back or left behind, and says in a pool's status when
//! it is full. It is the only writer of blocks. Any number of controllers may run:
//! one is elected, and even two that both act do no harm.
//!
//! [`decide`] holds the rules as a pure function over [`view`] and [`memory`];
//! [`control`] is the loop around it, [`act`] the writes; [`status`], [`metrics`],
//! [`notes`], [`marks`] and [`http`] tell how it fares;
//! [`publish`] writes pod CIDRs of Nodes. The controller touches nothing but the store.

pub mod act;
pub mod control;
pub mod decide;
pub mod flags;
pub mod http;
pub mod marks;
pub mod memory;
pub mod metrics;
pub mod notes;
pub mod publish;
pub mod status;
pub mod view;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use clap::Parser;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;
use viaduct_datastore::flags::one_line;
use viaduct_datastore::{StoreError, StoreOptions};
use viaduct_model::Invalid;

use control::Control;
use decide::Policy;
use flags::Flags;
use metrics::Metrics;
use status::Status;

/// Wrong usage.
const USAGE: u8 = 2;

/// The whole program: reads the command line, runs until a signal asks to stop.
pub fn main() -> ExitCode {
    let flags = match Flags::try_parse() {
        Ok(flags) => flags,
        // --help and --version.
        Err(told) if !told.use_stderr() => {
            print!("{told}");
            return ExitCode::SUCCESS;
        }
        Err(error) => return refuse(&one_line(&error)),
    };
    let (store, policy) = match flags.store().and_then(|s| Ok((s, flags.policy()?))) {
        Ok(checked) => checked,
        Err(invalid) => return refuse(&format!("error: {invalid}")),
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("cannot start the async runtime: {error}")),
    };
    match runtime.block_on(run(&flags, &store, policy)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<Usage>() => refuse(&format!("error: {error}")),
        Err(error) => fail(&format!("{error:#}")),
    }
}

/// A refusal that only opening the store could find.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct Usage(#[from] Invalid);

fn refuse(line: &str) -> ExitCode {
    eprintln!("{line}");
    ExitCode::from(USAGE)
}

fn fail(line: &str) -> ExitCode {
    eprintln!("error: {line}");
    ExitCode::FAILURE
}

async fn run(flags: &Flags, options: &StoreOptions, policy: Policy) -> anyhow::Result<()> {
    let stop = stop_signal()?;
    let store = match viaduct_datastore::open(options).await {
        Ok(store) => store,
        Err(StoreError::Invalid(invalid)) => return Err(Usage(invalid).into()),
        Err(error) => return Err(error.into()),
    };
    let listener = http::bind(flags.http).await?;
    let identity = flags.leader_elect.then(identity);
    tracing::info!(
        store = %store.describe(),
        http = %listener.local_addr()?,
        identity = identity.as_deref().unwrap_or("unelected"),
        version = env!("CARGO_PKG_VERSION"),
        "viaduct-controller runs"
    );
    let (status, told) = watch::channel(Status::default());
    let metrics = Arc::new(Metrics::new());
    let started = Instant::now();
    let pages = http::Pages {
        status: told,
        connectivity: store.connectivity(),
        metrics: metrics.clone(),
        started,
    };
    let control = Control {
        store,
        policy,
        identity,
        status,
        metrics,
        started,
    };
    // Leading or not: who stands by does what it is there for.
    notify(&[NotifyState::Ready]);
    tokio::select! {
        () = control.run(stop) => {
            tracing::info!("stopped");
            Ok(())
        }
        served = http::serve(listener, pages) => served.context("the HTTP server failed"),
    }
}

/// Tells a service manager how the controller fares; without `NOTIFY_SOCKET` nobody.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}

/// Turns true at SIGTERM or SIGINT.
fn stop_signal() -> anyhow::Result<watch::Receiver<bool>> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        notify(&[NotifyState::Stopping]);
        sender.send_replace(true);
        // A receiver sees a dropped sender as an end too, but keeping it is clearer.
        std::future::pending::<()>().await;
    });
    Ok(receiver)
}

/// Who we are in the election, for people: a number that nobody else draws, and
/// the process on its machine.
fn identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!(
        "{}-{}-{:08x}",
        host.trim(),
        std::process::id(),
        rand::random::<u32>()
    )
}
