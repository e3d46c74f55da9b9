//! The CNI project's own runtime library, by `cnitool`, and its own plugins: what a
//! container runtime makes of a configuration list is theirs to say.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use serde_json::Value;
use viaduct_lab::{Node, binaries, command, netns};

use crate::Run;

/// Builds `cnitool` and the plugins, once on a machine, and says where they are. To be
/// called outside of a lab as well, where modules can be fetched.
///
/// # Errors
/// What the build said.
pub fn programs() -> Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cni/build.sh");
    let output = Command::new(&script)
        .output()
        .with_context(|| script.display().to_string())?;
    if !output.status.success() {
        bail!(
            "{}: {}",
            script.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(PathBuf::from(
        String::from_utf8_lossy(&output.stdout).trim(),
    ))
}

/// `cnitool` on a node of a lab, with configuration lists of its own.
pub struct Libcni<'a> {
    node: &'a Node,
    programs: PathBuf,
    lists: PathBuf,
}

impl<'a> Libcni<'a> {
    /// On this node.
    ///
    /// # Errors
    /// When the programs or a directory cannot be had.
    pub fn on(node: &'a Node) -> Result<Self> {
        let programs = programs()?;
        // What libcni remembers of attachments lies below; here it must be the lab's.
        let state = Path::new("/run/lab/var-lib");
        if !state.exists() {
            std::fs::create_dir_all(state)?;
            mount(
                Some(state),
                "/var/lib",
                None::<&str>,
                MsFlags::MS_BIND,
                None::<&str>,
            )
            .context("a /var/lib of the lab's own")?;
        }
        let lists = PathBuf::from(format!("/run/lab/lists-{}", node.name()));
        std::fs::create_dir_all(&lists)?;
        Ok(Self {
            node,
            programs,
            lists,
        })
    }

    /// Writes a configuration list.
    ///
    /// # Errors
    /// As the file system's.
    pub fn list(&self, list: &Value) -> Result<()> {
        let name = list["name"].as_str().context("a list without a name")?;
        let path = self.lists.join(format!("{name}.conflist"));
        Ok(std::fs::write(path, serde_json::to_vec_pretty(list)?)?)
    }

    /// Runs a verb of `cnitool` about a network and a container.
    ///
    /// # Errors
    /// When it cannot be started; failure of the verb is an outcome.
    pub fn run(
        &self,
        verb: &str,
        network: &str,
        container: &Path,
        env: &[(&str, &str)],
    ) -> Result<Run> {
        let mut tool = command::command(self.programs.join("cnitool"));
        let path = format!("{}:{}", binaries::DIR, self.programs.display());
        tool.args([verb, network])
            .arg(container)
            .env("PATH", binaries::search_path())
            .env("CNI_PATH", path)
            .env("NETCONFPATH", &self.lists)
            .envs(env.iter().copied());
        let output = netns::within(self.node.netns(), || Ok(tool.output()?))?;
        Ok(Run {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}
