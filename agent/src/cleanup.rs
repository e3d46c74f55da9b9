//! Taking away what an agent left: exactly what is ours, and nothing else.
//!
//! Called by `viaductctl cleanup` and `uninstall`, never by the agent itself, which leaves the
//! dataplane in place when it stops. Needs no datastore and no agent: what is ours is
//! known by its marks (docs/adr/0022), so that "nothing is wanted" compared with the
//! kernel is the list of what to remove.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use thiserror::Error;

use crate::dataplane::diff::diff;
use crate::dataplane::kernel::{Kernel, KernelError};
use crate::dataplane::objects::{Desired, is_host_end};
use crate::egress::ruleset::{TABLE, TableFamily};
use crate::kernel::{NetlinkError, NetlinkKernel};
use crate::run_dir::{self, RunDirError};

/// How often the kernel is looked at: once more than removing should take.
const PASSES: usize = 3;

/// The nftables tables that are ours, or were of former releases.
const TABLES: [TableFamily; 2] = [TableFamily::Inet, TableFamily::Netdev];

/// What agent, CNI server and plugin keep in the run directory. The lock is not among
/// it: it stays, so that nobody ever holds a lock on a file that is gone.
const FILES: [&str; 12] = [
    "endpoints",
    "pending",
    "damaged",
    "blocks.json",
    "blocks.json.tmp",
    // An agent of another installation would take it for a hold on blocks.
    "tenure.json",
    "tenure.json.tmp",
    "subnet.env.tmp",
    "subnet.env",
    "incarnation",
    "cni.sock",
    "cni.sock.new",
];

/// Why nothing could be removed at all.
#[derive(Debug, Error)]
pub enum CleanupError {
    /// An agent is at work, or the run directory cannot be looked at.
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    /// The kernel cannot be asked.
    #[error("cleanup: {0}")]
    Netlink(#[from] NetlinkError),
    /// The kernel cannot be listed.
    #[error("cleanup: {0}")]
    Kernel(#[from] KernelError),
}

/// What was found and what became of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// What is gone, or would be, one object each.
    pub removed: Vec<String>,
    /// What could not be removed, one sentence each.
    pub failed: Vec<String>,
}

/// Says what [`remove`] would remove, and changes nothing. An agent may run.
///
/// # Errors
/// When the kernel cannot be listed.
pub fn plan(directory: &Path) -> Result<Cleaned, CleanupError> {
    let mut cleaned = Cleaned::default();
    let plan = diff(&Desired::default(), &NetlinkKernel::open()?.dump()?);
    cleaned
        .removed
        .extend(plan.iter().map(|op| object(&op.to_string())));
    for family in TABLES {
        match table_stands(family) {
            Ok(true) => cleaned.removed.push(table(family)),
            Ok(false) => {}
            Err(why) => cleaned.failed.push(why),
        }
    }
    let files = files(directory);
    cleaned
        .removed
        .extend(files.iter().map(|path| path.display().to_string()));
    Ok(cleaned)
}

/// Makes sure that no agent runs that uses this run directory.
///
/// # Errors
/// When one does.
pub fn idle(directory: &Path) -> Result<(), CleanupError> {
    run_dir::lock_unused(directory)?;
    Ok(())
}

/// How many pods of this host still have a link of ours.
///
/// # Errors
/// When the kernel cannot be listed.
pub fn attached() -> Result<usize, CleanupError> {
    let links = NetlinkKernel::open()?.dump()?.links;
    Ok(links.keys().filter(|name| is_host_end(name)).count())
}

/// Removes everything of ours from this network namespace, and the state of the agent
/// whose run directory is `directory`. What fails stops nothing else.
///
/// # Errors
/// When an agent runs, or the kernel cannot be listed; then nothing was changed.
pub fn remove(directory: &Path) -> Result<Cleaned, CleanupError> {
    // Held to the end: no agent starts meanwhile.
    let _lock = run_dir::lock_unused(directory)?;
    let mut cleaned = Cleaned::default();
    let mut kernel = NetlinkKernel::open()?;
    for _ in 0..PASSES {
        let plan = diff(&Desired::default(), &kernel.dump()?);
        if plan.is_empty() {
            cleaned.failed.clear();
            break;
        }
        cleaned.failed.clear();
        for (op, answer) in plan.iter().zip(kernel.apply(&plan)) {
            match answer {
                Ok(()) => cleaned.removed.push(object(&op.to_string())),
                Err(error) => cleaned.failed.push(format!("{op}: {error}")),
            }
        }
    }
    for family in TABLES {
        match remove_table(family) {
            Ok(true) => cleaned.removed.push(table(family)),
            Ok(false) => {}
            Err(why) => cleaned.failed.push(why),
        }
    }
    // Without the links the ledger says nothing; with them it is all there is to say.
    if cleaned.failed.is_empty() {
        for path in files(directory) {
            match remove_path(&path) {
                Ok(()) => cleaned.removed.push(path.display().to_string()),
                Err(error) => cleaned
                    .failed
                    .push(format!("{} cannot be removed: {error}", path.display())),
            }
        }
    }
    Ok(cleaned)
}

/// The object of a removal, without what is done to it.
fn object(op: &str) -> String {
    op.replacen(" to be removed", "", 1)
}

fn table(family: TableFamily) -> String {
    format!("nftables table {} {TABLE}", family.name())
}

fn files(directory: &Path) -> Vec<PathBuf> {
    FILES
        .iter()
        .map(|name| directory.join(name))
        // A symbolic link is looked at, not followed.
        .filter(|path| path.symlink_metadata().is_ok())
        .collect()
}

fn remove_path(path: &Path) -> io::Result<()> {
    if path.symlink_metadata()?.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    }
}

/// Runs `nft`; `None` where it is not installed, so that no table can be ours.
fn nft(args: &[&str]) -> Result<Option<Output>, String> {
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new("nft")
        .args(args)
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .output();
    match output {
        Ok(output) => Ok(Some(output)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("nft cannot be started: {error}")),
    }
}

fn table_stands(family: TableFamily) -> Result<bool, String> {
    let Some(output) = nft(&["list", "tables"])? else {
        return Ok(false);
    };
    if !output.status.success() {
        return Err(refusal(family, "looked for", &output));
    }
    let wanted = format!("table {} {TABLE}", family.name());
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .any(|line| line.trim() == wanted))
}

fn remove_table(family: TableFamily) -> Result<bool, String> {
    if !table_stands(family)? {
        return Ok(false);
    }
    match nft(&["delete", "table", family.name(), TABLE])? {
        Some(output) if !output.status.success() => Err(refusal(family, "removed", &output)),
        _ => Ok(true),
    }
}

fn refusal(family: TableFamily, what: &str, output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().next().unwrap_or("nft gives no reason");
    format!("{} cannot be {what}: {said}", table(family))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_agent_keeps_is_listed_for_removal() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["subnet.env", "agent.lock", "somebody.else"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        fs::create_dir(dir.path().join("endpoints")).unwrap();
        std::os::unix::fs::symlink("/nonexistent", dir.path().join("cni.sock")).unwrap();
        let names = ["endpoints", "subnet.env", "cni.sock"].map(|n| dir.path().join(n));
        assert_eq!(files(dir.path()), names);
        for path in files(dir.path()) {
            remove_path(&path).unwrap();
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn an_object_is_named_without_the_verb() {
        assert_eq!(object("link via.vx4 to be removed"), "link via.vx4");
        assert_eq!(
            object("address 10.0.0.1/32 to be removed from link via.vx4"),
            "address 10.0.0.1/32 from link via.vx4"
        );
    }
}
