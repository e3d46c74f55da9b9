//! The run directory: who may use it, and which incarnation of the node it is.
//!
//! It lies on a tmpfs, so that a reboot, which no sandbox survives, makes a new
//! incarnation with an empty ledger.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use thiserror::Error;

/// The run directory, locked for this process.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    incarnation: String,
    // Released by the kernel when the process ends, however it ends.
    _lock: Flock<File>,
}

/// Why the run directory cannot be used.
#[derive(Debug, Error)]
pub enum RunDirError {
    /// Another agent runs on it.
    #[error(
        "another agent (pid {pid}) runs on --run-dir {path}; stop it, or give this one a directory of its own"
    )]
    InUse {
        /// The directory.
        path: PathBuf,
        /// The process that holds the lock, as it wrote it down.
        pid: String,
    },
    /// An agent runs on it, which would put back what is taken away.
    #[error("an agent (pid {pid}) runs on --run-dir {path}; stop it first, or name another")]
    Working {
        /// The directory.
        path: PathBuf,
        /// The process that holds the lock, as it wrote it down.
        pid: String,
    },
    /// A file or directory cannot be made, read or written.
    #[error("--run-dir: cannot {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl RunDir {
    /// Makes the directory if need be, locks it, and reads or draws the incarnation.
    ///
    /// # Errors
    /// When another agent holds it, or it cannot be written.
    pub fn open(path: &Path) -> Result<Self, RunDirError> {
        let failed = |what, path: &Path| {
            let path = path.to_owned();
            move |source| RunDirError::Io { what, path, source }
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(path)
            .map_err(failed("create", path))?;
        let lock_path = path.join("agent.lock");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .open(&lock_path)
            .map_err(failed("open", &lock_path))?;
        let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
                let mut pid = String::new();
                let _ = file.read_to_string(&mut pid);
                let pid = pid.trim().to_owned();
                return Err(RunDirError::InUse {
                    path: path.to_owned(),
                    pid,
                });
            }
            Err((_, errno)) => return Err(failed("lock", &lock_path)(errno.into())),
        };
        (|| {
            lock.set_len(0)?;
            lock.seek(SeekFrom::Start(0))?;
            writeln!(lock, "{}", std::process::id())
        })()
        .map_err(failed("write", &lock_path))?;
        let incarnation = incarnation(path)?;
        Ok(Self {
            path: path.to_owned(),
            incarnation,
            _lock: lock,
        })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tells this life of the node from every other.
    pub fn incarnation(&self) -> &str {
        &self.incarnation
    }
}

/// Locks a run directory that no agent uses, and changes nothing in it. `None` where
/// no agent has ever used it.
///
/// # Errors
/// When an agent runs on it, or the lock cannot be opened.
pub fn lock_unused(path: &Path) -> Result<Option<Flock<File>>, RunDirError> {
    let lock_path = path.join("agent.lock");
    let failed = |what| {
        let path = lock_path.clone();
        move |source| RunDirError::Io { what, path, source }
    };
    let file = match File::open(&lock_path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("open")(error)),
    };
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            Err(RunDirError::Working {
                path: path.to_owned(),
                pid: pid.trim().to_owned(),
            })
        }
        Err((_, errno)) => Err(failed("lock")(errno.into())),
    }
}

fn incarnation(dir: &Path) -> Result<String, RunDirError> {
    let path = dir.join("incarnation");
    match fs::read_to_string(&path) {
        Ok(text) if text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit()) => {
            return Ok(text);
        }
        // Cut off in the write below, or damaged: a new one only costs a takeover.
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(source) => {
            return Err(RunDirError::Io {
                what: "read",
                path,
                source,
            });
        }
    }
    let drawn = format!("{:032x}", rand::random::<u128>());
    write_atomically(&path, drawn.as_bytes()).map_err(|source| RunDirError::Io {
        what: "write",
        path,
        source,
    })?;
    Ok(drawn)
}

/// Replaces a file's content so that a reader sees the old or the new, never a part.
///
/// # Errors
/// What the system says.
pub fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(&temporary)?;
    let written = file.write_all(content);
    viaduct_cni::fault::point("ledger.half");
    let done = written.and_then(|()| fs::rename(&temporary, path));
    if done.is_err() {
        // Half a file on a full disk would only keep others from being written.
        let _ = fs::remove_file(&temporary);
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_agent_per_directory_and_the_incarnation_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run");
        let first = RunDir::open(&path).unwrap();
        let error = RunDir::open(&path).unwrap_err().to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        let incarnation = first.incarnation().to_owned();
        let error = lock_unused(&path).unwrap_err().to_string();
        assert!(error.contains("stop it first"), "{error}");
        drop(first);
        assert!(lock_unused(&path).unwrap().is_some());
        assert!(lock_unused(dir.path()).unwrap().is_none());
        assert_eq!(RunDir::open(&path).unwrap().incarnation(), incarnation);
    }

    #[test]
    fn a_damaged_incarnation_is_drawn_anew() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("incarnation"), "half").unwrap();
        assert_eq!(RunDir::open(dir.path()).unwrap().incarnation().len(), 32);
    }
}
