//! `viaductctl install`: puts on a host what an agent in a container cannot put there
//! itself, because it is no root. Run as root, with no other privilege, by the
//! containers of `deploy/`.
//!
//! Every file appears whole or not at all.

mod conflist;
mod host;
mod ready;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::ExitCode;

use clap::Subcommand;

use crate::cli::refuse;

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Copy the CNI plugin, and make the run directory the agent's
    Host(host::HostArgs),
    /// Tell the container runtime about the network, as soon as the agent is ready
    ///
    /// Writes the CNI configuration when the agent answers that it is ready, and keeps it
    /// as it should be from then on. Stays until it is told to stop, and leaves the
    /// configuration in place then.
    Conflist(conflist::ConflistArgs),
}

/// Runs what the command line asks for.
pub(crate) fn run(verb: Verb) -> ExitCode {
    let outcome = match verb {
        Verb::Host(args) => host::run(&args),
        Verb::Conflist(args) => conflist::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => refuse(&format!("{error:#}"), 1),
    }
}

/// Puts `content` at `path`: who reads it sees the old or the new, never a part, also
/// when the machine loses power.
fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let Some((directory, name)) = path.parent().zip(path.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    // A name that no container runtime takes for a configuration or a plugin.
    let temporary = directory.join(format!(".{}.new", name.to_string_lossy()));
    // It may be a leftover that somebody else made.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_is_replaced_with_its_mode_and_leaves_nothing_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("viaduct");
        fs::write(directory.path().join(".viaduct.new"), "a leftover").unwrap();
        for content in ["one", "two"] {
            replace(&path, content.as_bytes(), 0o755).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o111,
            0o111
        );
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
