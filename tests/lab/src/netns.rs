//! Network namespaces by name, and doing things inside one.
//!
//! A namespace is entered by a thread of its own that ends afterwards, so that no
//! other code ever finds itself in the wrong one; sockets and processes that the
//! closure makes stay where they were made.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

/// Where `ip netns` and everybody else looks for named network namespaces.
pub const DIR: &str = "/run/netns";

/// The path of a named namespace.
pub fn path(name: &str) -> PathBuf {
    Path::new(DIR).join(name)
}

/// Creates a named network namespace with its loopback up.
///
/// # Errors
/// When the name is taken or the kernel refuses.
pub fn add(name: &str) -> Result<PathBuf> {
    let path = path(name);
    File::create_new(&path).with_context(|| format!("network namespace {name}"))?;
    let target = path.clone();
    on_thread(move || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        mount(
            Some("/proc/thread-self/ns/net"),
            &target,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )?;
        crate::command::run("ip", ["link", "set", "lo", "up"])?;
        Ok(())
    })
    .with_context(|| format!("creating network namespace {name}"))?;
    Ok(path)
}

/// Removes a named network namespace; one that is not there is fine.
///
/// # Errors
/// When the kernel refuses.
pub fn remove(name: &str) -> Result<()> {
    let path = path(name);
    if !path.exists() {
        return Ok(());
    }
    umount2(&path, MntFlags::MNT_DETACH)
        .with_context(|| format!("removing network namespace {name}"))?;
    std::fs::remove_file(&path).with_context(|| path.display().to_string())
}

/// Runs `work` inside the namespace at `path`.
///
/// # Errors
/// When the namespace cannot be entered, or what `work` says.
pub fn within<T: Send>(path: &Path, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let namespace = File::open(path).with_context(|| path.display().to_string())?;
    on_thread(move || {
        setns(&namespace, CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("entering {}", path.display()))?;
        work()
    })
}

/// Runs a program to its end inside the namespace at `path` and returns its
/// standard output.
///
/// # Errors
/// When it cannot be started or fails.
pub fn run(path: &Path, mut command: Command) -> Result<String> {
    within(path, move || crate::command::output_of(&mut command))
}

fn on_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        scope
            .spawn(work)
            .join()
            .unwrap_or_else(|_| Err(anyhow::anyhow!("a thread of the lab panicked")))
    })
}
