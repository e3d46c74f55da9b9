//! What is kept of a soak that went wrong, for whoever looks into it: the lab is gone then.

use std::ffi::OsStr;
use std::path::Path;

use anyhow::{Context, Result};
use viaduct_e2e::ours;
use viaduct_lab::{command, lab};

use crate::scene::Scene;
use crate::summary::Summary;

/// Copies logs, ledgers and what else lies in run directories out of the lab, with what
/// the nodes' kernels hold and all that was wrong in full.
///
/// # Errors
/// When the directory cannot be written.
pub(crate) fn everything(target: &Path, scene: Option<&Scene>, summary: &Summary) -> Result<()> {
    let write = |name: &str, text: String| {
        let path = target.join(name);
        std::fs::write(&path, text).with_context(|| path.display().to_string())
    };
    std::fs::create_dir_all(target).with_context(|| target.display().to_string())?;
    write("summary.txt", format!("{}\n", summary.text()))?;
    write("wrong.txt", format!("{}\n", summary.faults.join("\n\n")))?;
    for node in scene.into_iter().flat_map(|scene| &scene.nodes) {
        let kernel = ours(node).unwrap_or_else(|error| vec![format!("{error:#}")]);
        write(&format!("kernel-{}.txt", node.name()), kernel.join("\n"))?;
    }
    let mut sources = vec![Path::new(lab::LOGS).to_owned()];
    for entry in std::fs::read_dir("/run")?.flatten() {
        if entry.file_name().to_string_lossy().starts_with("viaduct-") {
            sources.push(entry.path());
        }
    }
    for source in sources.iter().filter(|source| source.exists()) {
        let flags = ["-r", "--no-preserve=all"].map(OsStr::new);
        let paths = [source.as_os_str(), target.as_os_str()];
        command::run("cp", flags.into_iter().chain(paths))?;
    }
    Ok(())
}
