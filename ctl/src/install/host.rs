//! `viaductctl install host`: before an agent starts.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, lchown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;

use super::replace;
use crate::places::{PluginDir, RunDir};

#[derive(Debug, Args)]
pub(crate) struct HostArgs {
    /// The CNI plugin to copy
    #[arg(
        long,
        env = "VIADUCT_PLUGIN",
        default_value = "/usr/lib/viaduct/viaduct",
        value_name = "FILE"
    )]
    plugin: PathBuf,
    #[command(flatten)]
    plugins: PluginDir,
    #[command(flatten)]
    run: RunDir,
    /// The user that the agent runs as, by its number
    #[arg(long, env = "VIADUCT_OWNER", value_name = "UID")]
    owner: u32,
}

pub(super) fn run(args: &HostArgs) -> Result<()> {
    give(&args.run.run_dir, args.owner)
        .with_context(|| format!("--run-dir {}", args.run.run_dir.display()))?;
    let plugin = fs::read(&args.plugin)
        .with_context(|| format!("--plugin: cannot read {}", args.plugin.display()))?;
    let target = args.plugins.plugin_dir.join("viaduct");
    // It runs for every pod: a copy that would change nothing is not made.
    if fs::read(&target).is_ok_and(|installed| installed == plugin) {
        println!("{} is up to date", target.display());
        return Ok(());
    }
    replace(&target, &plugin, 0o755)
        .with_context(|| format!("--plugin-dir: cannot write {}", target.display()))?;
    println!("{} is written", target.display());
    Ok(())
}

/// Makes the directory and gives it to the agent, with what an agent under another user
/// has left in it. Once it is the agent's it is not looked into: what is in there then
/// could lead root anywhere.
fn give(directory: &Path, owner: u32) -> std::io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(directory)?;
    if fs::metadata(directory)?.uid() == owner {
        return Ok(());
    }
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            give(&entry.path(), owner)?;
        } else {
            lchown(entry.path(), Some(owner), Some(owner))?;
        }
    }
    lchown(directory, Some(owner), Some(owner))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plugin_and_the_run_directory_are_there_after_one_run_and_after_two() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        fs::write(path("plugin"), "static").unwrap();
        fs::create_dir(path("bin")).unwrap();
        fs::create_dir_all(path("run/endpoints")).unwrap();
        let args = HostArgs {
            plugin: path("plugin"),
            plugins: PluginDir {
                plugin_dir: path("bin"),
            },
            run: RunDir {
                run_dir: path("run"),
            },
            // Whoever runs the test: giving to oneself needs no privilege.
            owner: fs::metadata(root.path()).unwrap().uid(),
        };
        for _ in 0..2 {
            run(&args).unwrap();
            assert_eq!(fs::read_to_string(path("bin/viaduct")).unwrap(), "static");
            assert_eq!(fs::metadata(path("run")).unwrap().uid(), args.owner);
        }
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let root = tempfile::tempdir().unwrap();
        let args = HostArgs {
            plugin: root.path().join("absent"),
            plugins: PluginDir {
                plugin_dir: root.path().into(),
            },
            run: RunDir {
                run_dir: root.path().into(),
            },
            owner: fs::metadata(root.path()).unwrap().uid(),
        };
        let error = format!("{:#}", run(&args).unwrap_err());
        assert!(
            error.contains("--plugin") && error.contains("absent"),
            "{error}"
        );
    }
}
