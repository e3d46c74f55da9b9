//! `viaductctl uninstall`: takes Viaduct off a host, run by `deploy/uninstall` on every node.
//!
//! In this order: the CNI configuration, so that no pod is given to us any more; what the
//! agent left in kernel and run directory, as `viaductctl cleanup` does; the CNI plugin last,
//! because a runtime wants it to take pods down. Done twice it does nothing the second time.

use std::fs;
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use viaduct_agent::cleanup;

use crate::cli::refuse;
use crate::places::{Conflist, PluginDir, RunDir};

/// How often it is tried again with `--stay`.
const AGAIN: Duration = Duration::from_secs(2);

#[derive(Debug, Args)]
pub(crate) struct UninstallArgs {
    #[command(flatten)]
    run: RunDir,
    #[command(flatten)]
    plugin: PluginDir,
    #[command(flatten)]
    conflist: Conflist,
    /// Also while pods of this network run: they lose their connection, and a runtime
    /// cannot take them down properly without the plugin
    #[arg(long)]
    cut_off_pods: bool,
    /// Try until it is done, then stay until told to stop: for a DaemonSet
    #[arg(long)]
    stay: bool,
}

/// Takes everything away and says so.
pub(crate) fn run(args: &UninstallArgs) -> ExitCode {
    let outcome = if args.stay {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the runtime")
            .and_then(|runtime| runtime.block_on(stay(args)))
    } else {
        once(args)
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => refuse(&format!("{error:#}"), 1),
    }
}

/// Until it is done, and then until a signal comes.
async fn stay(args: &UninstallArgs) -> Result<()> {
    // As a container's first process it would not be ended by a signal it does not take.
    let mut term = signal(SignalKind::terminate()).context("cannot listen for signals")?;
    let (mut done, mut told) = (false, String::new());
    loop {
        if !done {
            match once(args) {
                Ok(()) => done = true,
                // A line for each reason, not for each try.
                Err(error) => {
                    let why = format!("{error:#}");
                    if why != told {
                        println!("not yet: {why}");
                        told = why;
                    }
                }
            }
        }
        tokio::select! {
            _ = term.recv() => return Ok(()),
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

fn once(args: &UninstallArgs) -> Result<()> {
    cleanup::idle(&args.run.run_dir)?;
    let pods = cleanup::attached()?;
    if pods > 0 && !args.cut_off_pods {
        bail!(
            "{pods} pods of this host have addresses of Viaduct: delete them first, or cut them \
             off with --cut-off-pods"
        );
    }
    take(&args.conflist.path())?;
    let cleaned = cleanup::remove(&args.run.run_dir)?;
    for object in &cleaned.removed {
        println!("removed {object}");
    }
    if !cleaned.failed.is_empty() {
        bail!("{}", cleaned.failed.join("; "));
    }
    take(&args.plugin.plugin_dir.join("viaduct"))?;
    println!("nothing of Viaduct's is left here");
    Ok(())
}

/// Removes a file that `viaductctl install` wrote, and what a write that was broken off left
/// beside it.
fn take(path: &Path) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    for path in [path, &path.with_file_name(format!(".{name}.new"))] {
        match fs::remove_file(path) {
            Ok(()) => println!("removed {}", path.display()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(error).context(format!("{} cannot be removed", path.display()));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_goes_with_what_a_broken_write_left_and_others_stay() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        for name in ["viaduct", ".viaduct.new", "portmap"] {
            fs::write(path(name), "").unwrap();
        }
        for _ in 0..2 {
            take(&path("viaduct")).unwrap();
            let left: Vec<_> = fs::read_dir(root.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            assert_eq!(left, ["portmap"]);
        }
        fs::create_dir(path("viaduct")).unwrap();
        let error = format!("{:#}", take(&path("viaduct")).unwrap_err());
        assert!(error.contains("viaduct cannot be removed"), "{error}");
    }
}
