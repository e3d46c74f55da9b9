//! The ledger: one file per attachment in `<run-dir>/endpoints/`.
//!
//! It decides nothing. Its directory lies on a tmpfs, so that it needs no syncing:
//! what survives a crash of the agent is enough, since no pod survives a crash of
//! the machine.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use viaduct_model::Endpoint;

use crate::run_dir::write_atomically;

/// The directory inside the run directory.
const DIRECTORY: &str = "endpoints";

/// Where records go that cannot be read and whose link is gone.
const DAMAGED: &str = "damaged";

/// The ledger's directory.
#[derive(Debug)]
pub(super) struct Ledger {
    directory: PathBuf,
    damaged: PathBuf,
}

/// What the ledger held at start.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    /// Endpoints by the name of their link.
    pub(super) endpoints: BTreeMap<String, Endpoint>,
    /// What cannot be read: the file's name without its extension, and why.
    pub(super) damaged: BTreeMap<String, String>,
}

impl Loaded {
    fn take_in(&mut self, path: &Path) {
        let Some(stem) = stem(path) else { return };
        match read(path, &stem) {
            Ok(endpoint) => {
                self.endpoints.insert(stem, endpoint);
            }
            // Somebody's attachment went while we looked.
            Err(_) if !path.exists() => {}
            Err(why) => {
                self.damaged.insert(stem, why);
            }
        }
    }
}

/// Reads the records of a run directory and changes nothing there; none where no agent
/// has ever kept any.
///
/// # Errors
/// When the directory cannot be read.
pub(super) fn look(run_dir: &Path) -> io::Result<Loaded> {
    let mut loaded = Loaded::default();
    let listing = match fs::read_dir(run_dir.join(DIRECTORY)) {
        Ok(listing) => listing,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(loaded),
        Err(e) => return Err(e),
    };
    for file in listing {
        loaded.take_in(&file?.path());
    }
    Ok(loaded)
}

impl Ledger {
    /// Makes the directory if need be.
    ///
    /// # Errors
    /// As the file system's.
    pub(super) fn open(run_dir: &Path) -> io::Result<Self> {
        let directory = run_dir.join(DIRECTORY);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)?;
        Ok(Self {
            directory,
            damaged: run_dir.join(DAMAGED),
        })
    }

    /// Reads every record.
    ///
    /// # Errors
    /// When the directory itself cannot be read.
    pub(super) fn load(&self) -> io::Result<Loaded> {
        let mut loaded = Loaded::default();
        for file in fs::read_dir(&self.directory)? {
            let path = file?.path();
            if path.extension().is_some_and(|extension| extension == "tmp") {
                // Of a write that was cut off; nobody else writes here.
                if let Err(error) = fs::remove_file(&path) {
                    tracing::warn!(path = %path.display(), %error, "half a record cannot be removed");
                }
                continue;
            }
            loaded.take_in(&path);
        }
        Ok(loaded)
    }

    /// Writes a record, whole or not at all.
    ///
    /// # Errors
    /// As the file system's.
    pub(super) fn write(&self, endpoint: &Endpoint) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(endpoint)?;
        write_atomically(&self.path(&endpoint.link), &text)
    }

    /// Removes a record; that there is none is no error.
    ///
    /// # Errors
    /// As the file system's.
    pub(super) fn remove(&self, link: &str) -> io::Result<()> {
        match fs::remove_file(self.path(link)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// Moves a record that cannot be read out of the way, for people to look at.
    ///
    /// # Errors
    /// As the file system's.
    pub(super) fn set_aside(&self, stem: &str) -> io::Result<PathBuf> {
        set_aside(&self.path(stem), &self.damaged)
    }

    fn path(&self, link: &str) -> PathBuf {
        self.directory.join(format!("{link}.json"))
    }
}

/// Moves a file into a directory for damaged ones, which is made if need be.
///
/// # Errors
/// As the file system's.
pub(super) fn set_aside(path: &Path, directory: &Path) -> io::Result<PathBuf> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    let target = directory.join(path.file_name().unwrap_or_default());
    fs::rename(path, &target)?;
    Ok(target)
}

/// Where damaged files of a run directory are set aside.
pub(super) fn damaged_directory(run_dir: &Path) -> PathBuf {
    run_dir.join(DAMAGED)
}

fn stem(path: &Path) -> Option<String> {
    if path.extension()? != "json" {
        return None;
    }
    Some(path.file_stem()?.to_string_lossy().into_owned())
}

fn read(path: &Path, stem: &str) -> Result<Endpoint, String> {
    Endpoint::parse(&fs::read(path).map_err(|e| e.to_string())?, stem)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(container: &str) -> Endpoint {
        crate::dataplane::testing::endpoint(container, "10.64.0.5", true)
    }

    #[test]
    fn records_survive_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        ledger.write(&endpoint("a")).unwrap();
        ledger.write(&endpoint("b")).unwrap();
        let loaded = Ledger::open(dir.path()).unwrap().load().unwrap();
        assert_eq!(loaded.endpoints.len(), 2);
        assert_eq!(loaded.endpoints[&endpoint("a").link], endpoint("a"));
        ledger.remove(&endpoint("a").link).unwrap();
        ledger.remove(&endpoint("a").link).unwrap();
        assert_eq!(ledger.load().unwrap().endpoints.len(), 1);
    }

    #[test]
    fn a_damaged_record_is_told_and_the_others_count() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        ledger.write(&endpoint("a")).unwrap();
        let put = |name: &str, text: &str| {
            fs::write(dir.path().join(DIRECTORY).join(name), text).unwrap();
        };
        put("via0.json", "{");
        put("via1.json", &serde_json::to_string(&endpoint("b")).unwrap());
        put("via2.json.tmp", "cut off");
        let loaded = ledger.load().unwrap();
        assert_eq!(loaded.endpoints.len(), 1);
        assert_eq!(loaded.damaged.keys().collect::<Vec<_>>(), ["via0", "via1"]);
        assert!(ledger.set_aside("via0").unwrap().exists());
        assert_eq!(ledger.load().unwrap().damaged.len(), 1);
    }
}
