//! The file beside a store that a writer touches once its commit is visible,
//! and that watchers wait on.
//!
//! The write-ahead log itself will not do: it is written before the commit can
//! be seen, so a watcher would look too early and then sleep.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use futures_util::StreamExt;
use inotify::{EventMask, EventStream, Inotify, WatchMask};

use super::files;

/// Where the wake file of a store is.
pub(super) fn path(store: &Path) -> PathBuf {
    files::beside(store, "-wake")
}

/// A writer's handle.
pub(super) struct Wake {
    file: File,
}

impl Wake {
    /// Opens the wake file, creating it if need be.
    pub(super) fn open(store: &Path) -> io::Result<Self> {
        files::open_shared(&path(store)).map(|file| Self { file })
    }

    /// Whether the file that watchers would wait on is another one by now.
    pub(super) fn removed(&self, store: &Path) -> bool {
        let ours = files::identity_of(&self.file).ok();
        ours.is_none() || files::identity(&path(store)).ok() != ours
    }

    /// Wakes all watchers. A failure costs them a second at most: they poll.
    pub(super) fn touch(&self) {
        if let Err(e) = self.file.write_all_at(b"\n", 0) {
            tracing::debug!("touching the wake file failed: {e}");
        }
    }
}

/// A watcher's handle.
pub(super) struct Waker {
    events: EventStream<[u8; 1024]>,
}

impl Waker {
    /// Begins to wait on the wake file of a store.
    pub(super) fn new(store: &Path) -> io::Result<Self> {
        let path = path(store);
        drop(files::open_shared(&path)?);
        let inotify = Inotify::init()?;
        inotify.watches().add(
            &path,
            WatchMask::MODIFY | WatchMask::DELETE_SELF | WatchMask::MOVE_SELF,
        )?;
        Ok(Self {
            events: inotify.into_event_stream([0; 1024])?,
        })
    }

    /// Waits until somebody wrote.
    ///
    /// # Errors
    /// The wake file is gone: make another waker.
    pub(super) async fn woken(&mut self) -> io::Result<()> {
        let gone = || io::Error::new(io::ErrorKind::NotFound, "the wake file was removed");
        match self.events.next().await {
            None => Err(gone()),
            Some(event) => {
                if event?
                    .mask
                    .intersects(EventMask::IGNORED | EventMask::DELETE_SELF | EventMask::MOVE_SELF)
                {
                    return Err(gone());
                }
                Ok(())
            }
        }
    }
}
