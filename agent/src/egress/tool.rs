//! The way to nftables: the `nft` program, as every other program in this field does
//! it. Its language is stable, its netlink messages are not documented.
//!
//! Called by the tables' keepers only, through one trait that the tests replace. `nft`
//! inherits the agent's one capability and nothing else that it does not need.

use std::ffi::OsString;
use std::future::Future;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

use rustix::thread::{
    CapabilitySet, capabilities, configure_capability_in_ambient_set, set_capabilities,
};
use thiserror::Error;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::listing;
use super::ruleset::{Ruleset, TABLE, TableFamily};
use crate::kernel::nftables;

/// Where `nft` is, beside `PATH`: an ordinary user's `PATH` often lacks these.
const SYSTEM_DIRECTORIES: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];

/// The longest wait. A transaction of 10,000 elements takes 0.13 s.
const LIMIT: Duration = Duration::from_secs(10);

/// The longest message of `nft` that is repeated.
const MESSAGE: usize = 300;

/// Why the table could not be listed or changed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ToolError {
    /// The program is not there.
    #[error("nft is neither in PATH nor in /usr/sbin, /sbin or /usr/local/sbin; install nftables")]
    Missing,
    /// The program could not be run.
    #[error("nft cannot be run: {0}")]
    Run(String),
    /// It said no.
    #[error("nft refused it: {0}")]
    Refused(String),
    /// The kernel cannot do it.
    #[error("this kernel {what}: {remedy} ({said})")]
    Lacks {
        /// What it cannot do.
        what: &'static str,
        /// What has to be there, and how.
        remedy: String,
        /// What `nft` said to it.
        said: String,
    },
    /// What it printed is not understood.
    #[error("what nft lists cannot be read: {0}")]
    Unreadable(String),
}

/// Something that lists and changes tables, real or not.
pub trait Firewall: Send + 'static {
    /// The table as it is; `None` when there is none.
    fn list(
        &mut self,
        family: TableFamily,
    ) -> impl Future<Output = Result<Option<Ruleset>, ToolError>> + Send;

    /// A number that each change of any table raises, and that costs little to ask for;
    /// `None` where it cannot be had.
    fn generation(&mut self) -> Option<u32>;

    /// Carries out one transaction: all of it or nothing.
    fn apply(&mut self, transaction: String) -> impl Future<Output = Result<(), ToolError>> + Send;

    /// Says whether the kernel would carry it out, and leaves everything as it is.
    fn check(&mut self, transaction: String) -> impl Future<Output = Result<(), ToolError>> + Send;
}

/// The `nft` program.
#[derive(Debug, Clone, Copy, Default)]
pub struct NftTool;

impl Firewall for NftTool {
    async fn list(&mut self, family: TableFamily) -> Result<Option<Ruleset>, ToolError> {
        let arguments = ["-j", "list", "table", family.name(), TABLE];
        let output = run(&arguments, String::new()).await?;
        if output.status.success() {
            let text = String::from_utf8_lossy(&output.stdout);
            return listing::parse(&text)
                .map(Some)
                .map_err(ToolError::Unreadable);
        }
        let said = String::from_utf8_lossy(&output.stderr);
        if said.contains("No such file or directory") {
            return Ok(None);
        }
        Err(ToolError::Refused(first_line(&said)))
    }

    fn generation(&mut self) -> Option<u32> {
        nftables::generation()
            .inspect_err(|error| tracing::debug!(%error, "nftables' generation is not known"))
            .ok()
    }

    async fn apply(&mut self, transaction: String) -> Result<(), ToolError> {
        carried_out(&run(&["-j", "-f", "-"], transaction).await?)
    }

    async fn check(&mut self, transaction: String) -> Result<(), ToolError> {
        carried_out(&run(&["-c", "-j", "-f", "-"], transaction).await?)
    }
}

fn carried_out(output: &Output) -> Result<(), ToolError> {
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(ToolError::Refused(first_line(&said)))
}

/// Where the program is, looked up each time: it may be installed while we run.
fn find() -> Result<PathBuf, ToolError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(SYSTEM_DIRECTORIES.map(PathBuf::from))
        .map(|directory| directory.join("nft"))
        .find(|program| program.is_file())
        .ok_or(ToolError::Missing)
}

async fn run(arguments: &[&str], input: String) -> Result<Output, ToolError> {
    let failed = |error: std::io::Error| ToolError::Run(error.to_string());
    let mut command = Command::new(find()?);
    command
        .args(arguments)
        .env_clear()
        // Its messages are compared with what they are in English.
        .envs([("LC_ALL", OsString::from("C"))])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    pass_capability_on();
    let mut child = command.spawn().map_err(failed)?;
    let stdin = child.stdin.take();
    let work = async {
        let write = async {
            if let Some(mut stdin) = stdin {
                // That it did not read to the end shows in how it ended.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
        };
        let ((), output) = tokio::join!(write, child.wait_with_output());
        output
    };
    match tokio::time::timeout(LIMIT, work).await {
        Ok(output) => output.map_err(failed),
        Err(_) => Err(ToolError::Run(format!("it did not end within {LIMIT:?}"))),
    }
}

/// Lets the program that this thread is about to start have `CAP_NET_ADMIN`. The
/// service manager has mostly seen to it; an agent that got its capability from its
/// file has not. Where it is not allowed, `nft` will say what it lacks.
fn pass_capability_on() {
    let Ok(mut sets) = capabilities(None) else {
        return;
    };
    if !sets.effective.contains(CapabilitySet::NET_ADMIN) {
        return;
    }
    if !sets.inheritable.contains(CapabilitySet::NET_ADMIN) {
        sets.inheritable |= CapabilitySet::NET_ADMIN;
        let _ = set_capabilities(None, sets);
    }
    let _ = configure_capability_in_ambient_set(CapabilitySet::NET_ADMIN, true);
}

fn first_line(said: &str) -> String {
    let line = said
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty())
        .unwrap_or("it gave no reason");
    line.chars().take(MESSAGE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_one_line() {
        assert_eq!(
            first_line("\nError: Could not process rule: No such file\nadd rule\n^^^\n"),
            "Error: Could not process rule: No such file"
        );
        assert_eq!(first_line(""), "it gave no reason");
    }
}
