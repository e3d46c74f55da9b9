//! The files of a sqlite store and their modes.
//!
//! Several uids may share a store through the group of its (setgid) directory,
//! so what we create is 0660 whatever the umask; sqlite gives its `-wal` and
//! `-shm` the mode of the database file. Files that exist keep their mode.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::store::StoreError;

const MODE: u32 = 0o660;

/// Which file a path led to: device and inode.
pub(super) type Identity = (u64, u64);

/// The path with something added to its last component.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// Opens a file for reading and writing, creating it for the group.
pub(super) fn open_shared(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    match options.clone().create_new(true).mode(MODE).open(path) {
        Ok(file) => {
            // The umask took the group's bits away.
            file.set_permissions(Permissions::from_mode(MODE))?;
            Ok(file)
        }
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => options.open(path),
        Err(e) => Err(e),
    }
}

/// Creates the database file for the group, empty, unless there is one.
///
/// Never opens the path itself: closing any descriptor of a file drops all POSIX
/// locks that the process has on it, those of another connection's sqlite too.
pub(super) fn create_database(path: &Path) -> io::Result<()> {
    if path.try_exists()? {
        return Ok(());
    }
    let unique: u64 = rand::random();
    let draft = beside(path, &format!("-new-{unique:016x}"));
    drop(open_shared(&draft)?);
    let linked = std::fs::hard_link(&draft, path);
    std::fs::remove_file(&draft)?;
    match linked {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => Ok(()),
    }
}

/// Which file the path leads to now.
pub(super) fn identity(path: &Path) -> io::Result<Identity> {
    std::fs::metadata(path).map(|m| (m.dev(), m.ino()))
}

/// Which file is open here.
pub(super) fn identity_of(file: &File) -> io::Result<Identity> {
    file.metadata().map(|m| (m.dev(), m.ino()))
}

/// Says in a sentence why one of the store's files could not be used.
pub(super) fn explain(store: &str, path: &Path, e: &io::Error) -> StoreError {
    let path_shown = path.display();
    let store = store.to_owned();
    match e.kind() {
        io::ErrorKind::NotFound => StoreError::Unavailable {
            store,
            reason: format!(
                "the directory {} does not exist",
                path.parent().unwrap_or(path).display()
            ),
        },
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            StoreError::Refused {
                store,
                reason: format!("{path_shown} cannot be written: {e}; {}", who_needs_what()),
            }
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::Unavailable {
            store,
            reason: format!("the disk under {path_shown} is full"),
        },
        _ => StoreError::Unavailable {
            store,
            reason: format!("{path_shown}: {e}"),
        },
    }
}

/// What this process would need to use the store.
pub(super) fn who_needs_what() -> String {
    format!(
        "uid {} (group {}) needs to read and write the store's files and its directory",
        nix::unistd::geteuid(),
        nix::unistd::getegid()
    )
}
