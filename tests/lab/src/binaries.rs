//! Finding the programs under test.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};

/// Where the lab shows the programs to everybody inside it. The directories that
/// they were built in may be closed to the daemons' uids; this one is not.
pub const DIR: &str = "/run/lab/bin";

/// The programs that a lab runs, with the package that builds each.
const PROGRAMS: [(&str, &str); 4] = [
    ("viaduct-agent", "viaduct-agent"),
    ("viaduct-controller", "viaduct-controller"),
    ("viaduct", "viaduct-cni"),
    ("viaductctl", "viaductctl"),
];

/// The directories that programs are looked up in: `VIADUCT_BIN_DIR` alone where
/// it is set, else where this program is and, for a test in `deps/`, one up.
fn candidates(exe: &Path, variable: Option<PathBuf>) -> Vec<PathBuf> {
    if let Some(dir) = variable {
        return vec![dir];
    }
    let mut dirs: Vec<PathBuf> = exe.parent().map(Path::to_owned).into_iter().collect();
    if let Some(dir) = dirs.first()
        && dir.file_name().is_some_and(|name| name == "deps")
        && let Some(up) = dir.parent()
    {
        dirs.insert(0, up.to_owned());
    }
    dirs
}

fn find(dirs: &[PathBuf], name: &str, package: &str) -> Result<PathBuf> {
    for dir in dirs {
        let path = dir.join(name);
        if path.is_file() {
            return Ok(path);
        }
    }
    let release = dirs.iter().any(|d| d.ends_with("release"));
    let looked: Vec<String> = dirs.iter().map(|d| d.display().to_string()).collect();
    bail!(
        "the program {name} is not in {}: build it with `cargo build {}-p {package}`, or name its \
         directory in VIADUCT_BIN_DIR",
        looked.join(" or "),
        if release { "--release " } else { "" }
    )
}

/// Makes the programs appear in [`DIR`]; those that do already stay.
///
/// # Errors
/// Names a program that is missing and the command that builds it.
pub(crate) fn install() -> Result<()> {
    let exe = std::env::current_exe().context("the path of this program")?;
    let dirs = candidates(&exe, std::env::var_os("VIADUCT_BIN_DIR").map(PathBuf::from));
    std::fs::create_dir_all(DIR)?;
    for (name, package) in PROGRAMS {
        let source = match find(&dirs, name, package) {
            // Only people need it inside.
            Err(_) if name == "viaductctl" => continue,
            found => found?,
        };
        let target = Path::new(DIR).join(name);
        // Never opened for writing where it is: that would be the program itself.
        match std::fs::File::create_new(&target) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => continue,
            made => made.with_context(|| target.display().to_string())?,
        };
        mount(
            Some(&source),
            &target,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
        .with_context(|| format!("showing {} inside the lab", source.display()))?;
    }
    Ok(())
}

/// The path of a program inside the lab.
pub fn program(name: &str) -> PathBuf {
    Path::new(DIR).join(name)
}

/// The search path of everything that runs in the lab.
pub fn search_path() -> String {
    let inherited = std::env::var("PATH").unwrap_or_default();
    format!("{DIR}:{inherited}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_look_beside_their_directory_and_a_variable_wins() {
        assert_eq!(
            candidates(Path::new("/t/debug/deps/e2e-1"), None),
            [PathBuf::from("/t/debug"), PathBuf::from("/t/debug/deps")]
        );
        assert_eq!(
            candidates(Path::new("/t/debug/viaductctl"), None),
            [PathBuf::from("/t/debug")]
        );
        assert_eq!(
            candidates(Path::new("/t/debug/x"), Some("/b".into())),
            [PathBuf::from("/b")]
        );
    }

    #[test]
    fn a_missing_program_is_named_with_the_command_that_builds_it() {
        let error = find(&["/nowhere/release".into()], "viaduct", "viaduct-cni")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("cargo build --release -p viaduct-cni"),
            "{error}"
        );
    }
}
