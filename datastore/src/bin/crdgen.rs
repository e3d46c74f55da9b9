//! Writes the custom resource definitions, made from the Rust types, into a directory:
//! `cargo run -p viaduct-datastore --bin crdgen -- deploy/crds`.
//!
//! With `--check` it writes nothing, and fails when a file there is not what it would
//! write.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use viaduct_datastore::kube::crd;

fn main() -> anyhow::Result<()> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let check = args.iter().position(|arg| arg == "--check");
    let check = check.map(|at| args.remove(at)).is_some();
    let [dir] = &args[..] else {
        bail!("usage: crdgen [--check] DIRECTORY");
    };
    for (name, text) in crd::files()? {
        let path = PathBuf::from(dir).join(name);
        if check {
            compare(&path, &text)?;
        } else {
            std::fs::write(&path, text)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    Ok(())
}

fn compare(path: &Path, text: &str) -> anyhow::Result<()> {
    let there = std::fs::read_to_string(path).unwrap_or_default();
    if there != text {
        bail!(
            "{} is stale: cargo run -p viaduct-datastore --bin crdgen -- {}",
            path.display(),
            path.parent().unwrap_or(Path::new(".")).display()
        );
    }
    Ok(())
}
