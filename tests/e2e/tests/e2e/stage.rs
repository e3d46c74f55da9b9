//! Running `viaductctl lab` inside a lab, as root and as an ordinary user, and
//! seeing what it leaves behind.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};
use viaduct_e2e::{Run, eventually};
use viaduct_lab::privilege::has_uids;
use viaduct_lab::{binaries, command};

/// An ordinary user: `nobody`.
const NOBODY: &str = "65534";

/// Who runs the demo.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum User {
    Root,
    Ordinary,
}

/// The programs where a lab inside the lab still sees them.
pub(crate) struct Stage {
    dir: tempfile::TempDir,
}

impl Stage {
    pub(crate) fn set() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("viaduct-e2e-").tempdir()?;
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755))?;
        for program in [
            "viaduct-agent",
            "viaduct-controller",
            "viaduct",
            "viaductctl",
        ] {
            let target = dir.path().join(program);
            File::create(&target)?;
            let from = binaries::program(program);
            command::run("mount", [Path::new("--bind"), &from, &target])?;
        }
        let runtime = dir.path().join("runtime");
        std::fs::create_dir(&runtime)?;
        std::fs::set_permissions(&runtime, std::fs::Permissions::from_mode(0o1777))?;
        Ok(Self { dir })
    }

    /// A call of viaductctl by somebody.
    pub(crate) fn viaductctl(&self, user: User, args: &[&str]) -> Result<Command> {
        let program = self.dir.path().join("viaductctl");
        let mut command = match user {
            // A rootless lab has one user only, who is ordinary outside.
            User::Ordinary if has_uids()? => {
                let mut command = command::command("setpriv");
                let ids = [format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")];
                command.args(ids).arg("--clear-groups").arg(program);
                command
            }
            _ => command::command(program),
        };
        let runtime = self.dir.path().join("runtime").join(format!("{user:?}"));
        std::fs::create_dir_all(&runtime)?;
        std::fs::set_permissions(&runtime, std::fs::Permissions::from_mode(0o1777))?;
        command.args(args).env("XDG_RUNTIME_DIR", runtime);
        command.env_remove("RUST_LOG").current_dir("/");
        Ok(command)
    }

    pub(crate) fn run(&self, user: User, args: &[&str]) -> Result<Run> {
        // By way of files: a lab that stays up must not keep us waiting.
        let (out, err) = (self.file("out"), self.file("err"));
        let status = self
            .viaductctl(user, args)?
            .stdout(File::create(&out)?)
            .stderr(File::create(&err)?)
            .status()?;
        Ok(Run {
            code: status.code(),
            stdout: std::fs::read_to_string(out)?,
            stderr: std::fs::read_to_string(err)?,
        })
    }

    /// A file for the test's own use.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for program in [
            "viaduct-agent",
            "viaduct-controller",
            "viaduct",
            "viaductctl",
        ] {
            let _ = command::run("umount", [self.dir.path().join(program)]);
        }
    }
}

/// Everything that a lab could leave behind: processes, namespaces, mounts, links
/// and files.
pub(crate) fn traces() -> Result<BTreeSet<String>> {
    let mut traces = BTreeSet::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.parse::<u32>().is_err() {
            continue;
        }
        // A process may end while we look.
        let read = |file: &str| std::fs::read(entry.path().join(file)).unwrap_or_default();
        let line = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
        if !line.is_empty() {
            traces.insert(format!("process {name} {line}"));
        }
        if let Ok(netns) = std::fs::read_link(entry.path().join("ns/net")) {
            traces.insert(format!("namespace {}", netns.display()));
        }
    }
    for line in std::fs::read_to_string("/proc/self/mounts")?.lines() {
        traces.insert(format!("mount {line}"));
    }
    for line in command::run("ip", ["-o", "link"])?.lines() {
        let name = line.split(": ").nth(1).unwrap_or_default();
        traces.insert(format!("link {name}"));
    }
    for directory in ["/run", "/run/lab", "/run/netns"] {
        for entry in std::fs::read_dir(directory)?.flatten() {
            traces.insert(format!("file {}", entry.path().display()));
        }
    }
    for entry in std::fs::read_dir("/tmp")?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        // Other tests have directories there too.
        if name.contains("viaduct") && !name.starts_with("viaduct-e2e-") {
            traces.insert(format!("file /tmp/{name}"));
        }
    }
    Ok(traces)
}

/// Waits until there is nothing that was not there before.
pub(crate) fn nothing_is_left(before: &BTreeSet<String>) -> Result<()> {
    eventually(|| {
        let now = traces()?;
        let left: Vec<_> = now.difference(before).collect();
        ensure!(left.is_empty(), "left behind: {left:#?}");
        Ok(())
    })
}
