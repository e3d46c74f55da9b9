//! One long-running program of the lab: start, kill, stop, its log.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
pub use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use crate::privilege::{Privilege, has_uids};
use crate::{binaries, command, netns};

/// How long a daemon may take to stop by itself after `SIGTERM`.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// A daemon under the lab's control. Owned by its node or by the lab.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    program: PathBuf,
    args: Mutex<Vec<String>>,
    env: Vec<(String, String)>,
    netns: Option<PathBuf>,
    privilege: Privilege,
    /// How far ahead its boot-time clock is.
    ahead: Mutex<Duration>,
    log: PathBuf,
    child: Mutex<Option<Child>>,
}

impl Daemon {
    /// Describes a daemon; nothing is started yet. Without `netns` it runs in the
    /// lab's own namespace, on the underlay.
    pub fn new(
        name: &str,
        program: impl Into<PathBuf>,
        args: Vec<String>,
        netns: Option<PathBuf>,
        privilege: Privilege,
    ) -> Self {
        Self {
            name: name.to_owned(),
            program: program.into(),
            args: Mutex::new(args),
            env: Vec::new(),
            netns,
            privilege,
            ahead: Mutex::default(),
            log: Path::new(crate::lab::LOGS).join(format!("{name}.log")),
            child: Mutex::new(None),
        }
    }

    /// Adds environment variables.
    pub fn with_env(mut self, env: &[(String, String)]) -> Self {
        self.env.extend_from_slice(env);
        self
    }

    /// The name, as in the log's file name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The arguments that the next start uses.
    pub fn args(&self) -> Vec<String> {
        locked(&self.args).clone()
    }

    /// Replaces the arguments that the next start uses.
    pub fn set_args(&self, args: Vec<String>) {
        *locked(&self.args) = args;
    }

    /// Has the next start see a boot-time clock that is ahead of the machine's by so much.
    pub fn set_ahead(&self, ahead: Duration) {
        *locked(&self.ahead) = ahead;
    }

    /// Starts it; one that runs already is left alone.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self) -> Result<()> {
        if self.is_running() {
            return Ok(());
        }
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| self.log.display().to_string())?;
        let ahead = *locked(&self.ahead);
        let mut words = self.privilege.setpriv(has_uids()?);
        if !ahead.is_zero() {
            let seconds = ahead.as_secs().to_string();
            let unshare = ["unshare", "--time", "--boottime", &seconds].map(str::to_owned);
            words.splice(0..0, unshare);
        }
        let mut command = command::command(&words[0]);
        command
            .args(&words[1..])
            .arg(&self.program)
            .args(self.args())
            .envs(self.env.iter().cloned())
            .env("PATH", binaries::search_path())
            .current_dir("/")
            .stdout(Stdio::from(log.try_clone()?))
            .stderr(Stdio::from(log));
        let mut spawn = move || {
            command
                .spawn()
                .context("setpriv or unshare (Debian: util-linux)")
        };
        let child = match &self.netns {
            Some(path) => netns::within(path, spawn),
            None => spawn(),
        }
        .with_context(|| format!("starting {}", self.name))?;
        *locked(&self.child) = Some(child);
        Ok(())
    }

    /// Its process id inside the lab, while it runs.
    pub fn pid(&self) -> Option<u32> {
        if self.is_running() {
            locked(&self.child).as_ref().map(Child::id)
        } else {
            None
        }
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        let mut child = locked(&self.child);
        matches!(child.as_mut().map(Child::try_wait), Some(Ok(None)))
    }

    /// How it ended, if it was started and has ended.
    pub fn ended(&self) -> Option<ExitStatus> {
        locked(&self.child)
            .as_mut()
            .and_then(|c| c.try_wait().ok().flatten())
    }

    /// Sends a signal and does not wait, but for SIGSTOP until every thread stands:
    /// the one that is to stop the others may get a CPU after them.
    ///
    /// # Errors
    /// When it does not run, or does not stand after ten seconds.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self
            .pid()
            .with_context(|| format!("{} does not run", self.name))?;
        kill(Pid::from_raw(i32::try_from(pid)?), signal)
            .with_context(|| format!("{signal} to {}", self.name))?;
        let start = Instant::now();
        while signal == Signal::SIGSTOP && !stands(pid)? {
            if start.elapsed() > STOP_TIMEOUT {
                bail!("{} runs on {STOP_TIMEOUT:?} after {signal}", self.name);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Sends a signal and waits until the process has ended.
    ///
    /// # Errors
    /// When it does not run, or is still there after ten seconds.
    pub fn kill(&self, signal: Signal) -> Result<ExitStatus> {
        self.signal(signal)?;
        let start = Instant::now();
        let limit = crate::environment::scaled(STOP_TIMEOUT);
        loop {
            if let Some(status) = self.ended() {
                return Ok(status);
            }
            if start.elapsed() > limit {
                bail!("{} still runs {limit:?} after {signal}", self.name);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Stops it cleanly if it runs.
    ///
    /// # Errors
    /// When it does not end, or not with success.
    pub fn stop(&self) -> Result<()> {
        if !self.is_running() {
            return Ok(());
        }
        let status = self.kill(Signal::SIGTERM)?;
        if !status.success() {
            bail!("{} ended with {status} after SIGTERM", self.name);
        }
        Ok(())
    }

    /// Fails with the end of the log when the daemon has ended by itself.
    ///
    /// # Errors
    /// How it ended and what it said.
    pub fn still_runs(&self) -> Result<()> {
        match self.ended() {
            Some(status) => bail!(
                "{} has ended with {status}:\n{}",
                self.name,
                self.log_tail(10)
            ),
            None => Ok(()),
        }
    }

    /// The whole log so far.
    pub fn log(&self) -> String {
        std::fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// The last lines of the log.
    pub fn log_tail(&self, lines: usize) -> String {
        let log = self.log();
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether every thread of a process is stopped.
fn stands(pid: u32) -> Result<bool> {
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        // One that ended meanwhile runs no more.
        let Ok(status) = std::fs::read_to_string(thread?.path().join("status")) else {
            continue;
        };
        if !status.contains("\nState:\tT") {
            return Ok(false);
        }
    }
    Ok(true)
}
