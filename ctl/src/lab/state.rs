//! Where a lab that stays up can be found: a file of the user's own that names its
//! processes. A process id alone proves nothing, since ids are used again; with
//! the time at which the process started it does.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

/// A process, and since when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    /// Its id.
    pub(crate) pid: u32,
    /// When it started, in clock ticks since boot.
    pub(crate) started: u64,
}

impl Process {
    /// The process that has this id now.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/stat");
        let stat = fs::read_to_string(&path).with_context(|| path.clone())?;
        let started = started(&stat).with_context(|| format!("{path} is not as proc(5) says"))?;
        Ok(Self { pid, started })
    }

    /// Whether this very process still runs.
    pub(crate) fn is_alive(&self) -> bool {
        Self::of(self.pid).is_ok_and(|now| now == *self)
    }
}

/// The start time from the text of `/proc/<pid>/stat`; `None` for a zombie. The
/// command's name in it may hold anything, so what follows its last bracket counts.
fn started(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// What the worker tells about a lab that is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ready {
    /// The environment of everything that runs in it.
    pub(crate) environment: Vec<(String, String)>,
    /// The nodes with the names of their pods.
    pub(crate) nodes: Vec<(String, Vec<String>)>,
    /// Whether everything that was tried worked.
    pub(crate) proved: bool,
}

/// A lab that stays up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    /// The outer process; the lab ends with it.
    pub(crate) supervisor: Process,
    /// Process 1 inside, through which one enters.
    pub(crate) init: Process,
    /// Whether it has a user namespace of its own.
    pub(crate) rootless: bool,
    /// What is in it.
    pub(crate) ready: Ready,
}

impl State {
    /// The lab that is up, if there is one. What a lab left that was killed is
    /// swept away.
    pub(crate) fn current() -> Result<Option<Self>> {
        let path = path()?;
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        let state: Option<Self> = serde_json::from_slice(&text).ok();
        match state {
            Some(state) if state.supervisor.is_alive() && state.init.is_alive() => Ok(Some(state)),
            _ => {
                Self::forget()?;
                Ok(None)
            }
        }
    }

    /// The lab that is up.
    pub(crate) fn required() -> Result<Self> {
        Self::current()?
            .context("no lab is up: start one with `viaductctl lab up` or `lab demo --keep`")
    }

    /// Refuses to go on while a lab is up: there is one per user.
    pub(crate) fn none_may_be_up() -> Result<()> {
        if let Some(state) = Self::current()? {
            bail!(
                "a lab is up already (process {}): end it with `viaductctl lab down`",
                state.supervisor.pid
            );
        }
        Ok(())
    }

    /// Writes it down.
    pub(crate) fn save(&self) -> Result<()> {
        let path = path()?;
        let temporary = path.with_extension("new");
        fs::write(&temporary, serde_json::to_vec_pretty(self)?)
            .and_then(|()| fs::rename(&temporary, &path))
            .with_context(|| path.display().to_string())
    }

    /// Removes the file.
    pub(crate) fn forget() -> Result<()> {
        let path = path()?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| path.display().to_string())
            }
            _ => Ok(()),
        }
    }
}

/// The state's file, in a directory that is this user's alone.
fn path() -> Result<PathBuf> {
    let uid = nix::unistd::geteuid();
    let dir = match std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()) {
        Some(dir) => PathBuf::from(dir).join("viaduct-lab"),
        None if uid.is_root() => PathBuf::from("/run/viaduct-lab"),
        None => PathBuf::from(format!("/tmp/viaduct-lab-{uid}")),
    };
    match fs::DirBuilder::new().mode(0o700).create(&dir) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(error).with_context(|| dir.display().to_string());
        }
        _ => {}
    }
    // Anybody may have made a directory of this name in /tmp.
    let found = fs::symlink_metadata(&dir).with_context(|| dir.display().to_string())?;
    ensure!(
        found.is_dir() && found.uid() == uid.as_raw() && found.mode() & 0o022 == 0,
        "{} is not a directory that only you can write: remove it",
        dir.display()
    );
    Ok(dir.join("state.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_command_name_does_not_shift_the_fields() {
        let tail = "S 1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 0 0";
        assert_eq!(started(&format!("7 (x) S 9 9) {tail}")), Some(4711));
        assert_eq!(started(&format!("7 (sh) {tail}")), Some(4711));
        assert_eq!(started(&format!("7 (sh) {}", tail.replace('S', "Z"))), None);
        assert_eq!(started("7 (sh) S 1"), None);
    }

    #[test]
    fn a_process_is_itself_and_no_other() {
        let me = Process::of(std::process::id()).unwrap();
        assert!(me.is_alive());
        let before = Process {
            started: me.started - 1,
            ..me
        };
        assert!(!before.is_alive());
    }
}
