//! The spool: DELs that came while the agent was away, one file each in
//! `<run-dir>/pending/`, done by the agent when it starts.
//!
//! The plugin writes as root into a directory of the agent's own, unprivileged
//! uid. Therefore nothing here follows a symbolic link below the run directory:
//! an agent that was taken over must not be able to make root write elsewhere.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid};
use viaduct_model::AttachmentId;

use crate::fault;
use crate::frame::MAX_FRAME;
use crate::protocol::Request;

/// The spool's directory inside the run directory.
pub const DIRECTORY: &str = "pending";

/// Far longer than a plugin takes to write its file.
const WRITING: Duration = Duration::from_secs(60);

/// What spooling came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spooled {
    /// The DEL is in the spool.
    Written,
    /// There is no run directory. The ledger lives there too, so since the machine
    /// started no attachment was made that could be taken away.
    NothingEverAttached,
}

/// The name of an attachment's file; a DEL that is repeated replaces its own.
pub fn file_name(id: &AttachmentId) -> String {
    format!("{}.json", id.link_name())
}

/// Puts a DEL into the spool, whole or not at all.
///
/// # Errors
/// As the file system's; nothing of the DEL is left behind then.
pub fn write(run_dir: &Path, request: &Request) -> io::Result<Spooled> {
    let directory = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
    let run = match rustix::fs::openat(CWD, run_dir, directory, Mode::empty()) {
        Ok(run) => run,
        Err(rustix::io::Errno::NOENT) => return Ok(Spooled::NothingEverAttached),
        Err(e) => return Err(e.into()),
    };
    let owner = rustix::fs::fstat(&run)?;
    let (uid, gid) = (Uid::from_raw(owner.st_uid), Gid::from_raw(owner.st_gid));
    let created = match rustix::fs::mkdirat(&run, DIRECTORY, Mode::RWXU) {
        Ok(()) => true,
        Err(rustix::io::Errno::EXIST) => false,
        Err(e) => return Err(e.into()),
    };
    let spool = rustix::fs::openat(&run, DIRECTORY, directory | OFlags::NOFOLLOW, Mode::empty())?;
    if created {
        give_to(&spool, uid, gid)?;
    }

    let text = serde_json::to_vec(request)?;
    let temporary = format!(".{}.{}", file_name(&request.id), std::process::id());
    // A leftover of a plugin that was killed and had our process id.
    let _ = rustix::fs::unlinkat(&spool, &temporary, AtFlags::empty());
    let written = write_file(&spool, &temporary, &text, uid, gid).and_then(|()| {
        fault::point("spool.written");
        let target = file_name(&request.id);
        Ok(rustix::fs::renameat(&spool, &temporary, &spool, &target)?)
    });
    if written.is_err() {
        let _ = rustix::fs::unlinkat(&spool, &temporary, AtFlags::empty());
    }
    fault::point("spool.renamed");
    written.map(|()| Spooled::Written)
}

fn write_file(spool: &OwnedFd, name: &str, text: &[u8], uid: Uid, gid: Gid) -> io::Result<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(spool, name, flags, Mode::RUSR | Mode::WUSR)?;
    give_to(&fd, uid, gid)?;
    let mut file = File::from(fd);
    file.write_all(text)?;
    // On tmpfs this costs nothing; elsewhere a full disk may only now say so.
    file.sync_data()
}

/// Gives a file to the agent's uid; whoever is not root is that uid already.
fn give_to(file: impl AsFd, uid: Uid, gid: Gid) -> io::Result<()> {
    if rustix::process::geteuid() == uid {
        return Ok(());
    }
    Ok(rustix::fs::fchown(file, Some(uid), Some(gid))?)
}

/// Takes an attachment's DEL out of the spool, if it is there.
///
/// # Errors
/// As the file system's.
pub fn remove(run_dir: &Path, id: &AttachmentId) -> io::Result<()> {
    let path = run_dir.join(DIRECTORY).join(file_name(id));
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// A file of the spool: the DEL, or why it cannot be read.
#[derive(Debug)]
pub struct Entry {
    /// Where it is.
    pub path: PathBuf,
    /// What it says.
    pub request: Result<Request, String>,
}

/// Removes what plugins left that were killed while they wrote, and no plugin can be
/// writing still.
///
/// # Errors
/// As the file system's.
pub fn remove_unfinished(run_dir: &Path) -> io::Result<()> {
    let listing = match std::fs::read_dir(run_dir.join(DIRECTORY)) {
        Ok(listing) => listing,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    for file in listing {
        let file = file?;
        let unfinished = file.file_name().as_encoded_bytes().starts_with(b".");
        let age = file.metadata()?.modified()?.elapsed();
        if unfinished && age.is_ok_and(|age| age > WRITING) {
            std::fs::remove_file(file.path())?;
        }
    }
    Ok(())
}

/// Everything in the spool, in order of name. Files that begin with a dot are
/// not done yet and left out.
///
/// # Errors
/// When the directory cannot be read; one that is absent is empty.
pub fn read(run_dir: &Path) -> io::Result<Vec<Entry>> {
    let listing = match std::fs::read_dir(run_dir.join(DIRECTORY)) {
        Ok(listing) => listing,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut entries = Vec::new();
    for file in listing {
        let file = file?;
        let name = file.file_name();
        let Some(name) = name.to_str().filter(|n| !n.starts_with('.')) else {
            continue;
        };
        if !name.ends_with(".json") {
            continue;
        }
        entries.push(Entry {
            path: file.path(),
            request: read_file(&file.path(), name),
        });
    }
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(entries)
}

fn read_file(path: &Path, name: &str) -> Result<Request, String> {
    let mut text = Vec::new();
    let flags = OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(|e| e.to_string())?;
    File::from(fd)
        .take(MAX_FRAME as u64 + 1)
        .read_to_end(&mut text)
        .map_err(|e| e.to_string())?;
    if text.len() > MAX_FRAME {
        return Err(format!("it is longer than {MAX_FRAME} bytes"));
    }
    parse(&text, name)
}

/// What a file of that name in the spool says.
///
/// # Errors
/// What is wrong with it.
pub fn parse(text: &[u8], name: &str) -> Result<Request, String> {
    let request: Request = serde_json::from_slice(text).map_err(|e| e.to_string())?;
    AttachmentId::new(&request.id.container_id, &request.id.ifname).map_err(|e| e.to_string())?;
    if file_name(&request.id) != name {
        return Err(format!(
            "it is about {}, whose file would be {}",
            request.id,
            file_name(&request.id)
        ));
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{PROTOCOL, Verb};

    fn del(container: &str) -> Request {
        Request {
            protocol: PROTOCOL,
            verb: Verb::Del,
            id: AttachmentId::new(container, "eth0").unwrap(),
            network: "n".into(),
            netns: String::new(),
            pod: None,
            wishes: Default::default(),
            previous: None,
        }
    }

    #[test]
    fn what_is_written_is_read_and_removed() {
        let run = tempfile::tempdir().unwrap();
        for container in ["a", "b", "a"] {
            assert_eq!(
                write(run.path(), &del(container)).unwrap(),
                Spooled::Written
            );
        }
        let entries = read(run.path()).unwrap();
        assert_eq!(entries.len(), 2, "a repeated DEL is one");
        let mut requests: Vec<_> = entries.into_iter().map(|e| e.request.unwrap()).collect();
        requests.sort_by(|a, b| a.id.cmp(&b.id));
        assert_eq!(requests, [del("a"), del("b")]);
        remove(run.path(), &del("a").id).unwrap();
        remove(run.path(), &del("a").id).unwrap();
        assert_eq!(read(run.path()).unwrap().len(), 1);
    }

    #[test]
    fn what_killed_plugins_left_is_removed_once_nobody_can_be_writing_it() {
        let run = tempfile::tempdir().unwrap();
        write(run.path(), &del("a")).unwrap();
        let spool = run.path().join(DIRECTORY);
        let old = std::time::SystemTime::now() - 2 * WRITING;
        for (name, aged) in [(".old.json.7", true), (".new.json.8", false)] {
            let file = File::create(spool.join(name)).unwrap();
            if aged {
                file.set_modified(old).unwrap();
            }
        }
        let kept = File::options()
            .write(true)
            .open(spool.join(file_name(&del("a").id)));
        kept.unwrap().set_modified(old).unwrap();
        remove_unfinished(run.path()).unwrap();
        assert!(!spool.join(".old.json.7").exists() && spool.join(".new.json.8").exists());
        assert_eq!(read(run.path()).unwrap().len(), 1);
        remove_unfinished(&run.path().join("absent")).unwrap();
    }

    #[test]
    fn without_a_run_directory_nothing_was_ever_attached() {
        let run = tempfile::tempdir().unwrap();
        let absent = run.path().join("absent");
        assert_eq!(
            write(&absent, &del("a")).unwrap(),
            Spooled::NothingEverAttached
        );
        assert!(!absent.exists());
        assert!(read(&absent).unwrap().is_empty());
    }

    #[test]
    fn a_spool_that_is_a_symbolic_link_is_refused() {
        let run = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), run.path().join(DIRECTORY)).unwrap();
        assert!(write(run.path(), &del("a")).is_err());
        assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_cannot_be_read_is_told_and_stops_nothing() {
        let run = tempfile::tempdir().unwrap();
        write(run.path(), &del("a")).unwrap();
        let spool = run.path().join(DIRECTORY);
        std::fs::write(spool.join("torn.json"), "{\"proto").unwrap();
        std::fs::write(spool.join("long.json"), vec![b' '; MAX_FRAME + 1]).unwrap();
        std::fs::write(spool.join(".unfinished.json.7"), "{").unwrap();
        let good = std::fs::read(spool.join(file_name(&del("a").id))).unwrap();
        std::fs::write(spool.join("other.json"), good).unwrap();
        let entries = read(run.path()).unwrap();
        assert_eq!(entries.len(), 4);
        assert_eq!(entries.iter().filter(|e| e.request.is_ok()).count(), 1);
    }
}
