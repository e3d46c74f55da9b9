//! `viaductctl lab down`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::state::State;

const PATIENCE: Duration = Duration::from_secs(10);

/// Ends the lab that is up. None being up is no failure.
pub(crate) fn run() -> Result<ExitCode> {
    let Some(state) = State::current()? else {
        println!("no lab is up");
        return Ok(ExitCode::SUCCESS);
    };
    // Checked just now to be the very process; init inside follows it by itself.
    kill(
        Pid::from_raw(i32::try_from(state.supervisor.pid)?),
        Signal::SIGTERM,
    )
    .with_context(|| format!("process {}", state.supervisor.pid))?;
    let start = Instant::now();
    while state.init.is_alive() || state.supervisor.is_alive() {
        ensure!(
            start.elapsed() < PATIENCE,
            "the lab is still there after {PATIENCE:?}: processes {} and {}",
            state.supervisor.pid,
            state.init.pid
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    State::forget()?;
    println!("the lab is down");
    Ok(ExitCode::SUCCESS)
}
