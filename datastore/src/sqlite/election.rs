//! Elections on a sqlite store: an advisory lock on a file beside it.
//!
//! The kernel frees the lock when the holder dies, however it dies, so there is
//! no lease to wait for. One machine only, like the store itself.

use std::io::{Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use tokio::sync::watch;

use super::files;
use crate::store::{Leadership, StoreError};

/// How often a candidate tries the lock.
const TRY_EVERY: Duration = Duration::from_millis(200);
/// How often a leader makes sure that the file it locked is still the one that
/// the others would lock.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// Resigns when dropped: the check ends, and with it the lock that it holds.
struct Guard {
    check: tokio::task::JoinHandle<()>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.check.abort();
    }
}

/// Waits until this process leads.
pub(super) async fn campaign(
    store: &str,
    path: &Path,
    election: &str,
    identity: &str,
) -> Result<Leadership, StoreError> {
    let lock_path = files::beside(path, &format!("-leader-{election}"));
    loop {
        let taken =
            take(&lock_path, identity).map_err(|e| files::explain(store, &lock_path, &e))?;
        if let Some(lock) = taken {
            let (tell, lost) = watch::channel(false);
            let check = tokio::spawn(hold(lock, lock_path, tell));
            return Ok(Leadership {
                lost,
                guard: Box::new(Guard { check }),
            });
        }
        tokio::time::sleep(TRY_EVERY).await;
    }
}

/// Tries the lock once.
fn take(path: &Path, identity: &str) -> std::io::Result<Option<Flock<std::fs::File>>> {
    let file = files::open_shared(path)?;
    let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => lock,
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => return Ok(None),
        Err((_, e)) => return Err(e.into()),
    };
    if files::identity_of(&lock)? != files::identity(path)? {
        // Removed between opening and locking: others would lock another file.
        return Ok(None);
    }
    // For people; nothing reads it.
    lock.set_len(0)?;
    lock.rewind()?;
    writeln!(lock, "{identity}")?;
    Ok(Some(lock))
}

async fn hold(lock: Flock<std::fs::File>, path: PathBuf, tell: watch::Sender<bool>) {
    loop {
        tokio::time::sleep(CHECK_EVERY).await;
        let ours = files::identity_of(&lock).ok();
        if ours.is_none() || files::identity(&path).ok() != ours {
            tracing::warn!(lock = %path.display(), "the lock file was removed: leadership lost");
            let _ = tell.send(true);
            return;
        }
    }
}
