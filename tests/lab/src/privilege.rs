//! As whom the lab's daemons run: never as root where there is a choice, and
//! never with a capability more than they are promised to need.

use std::path::Path;

use anyhow::{Context, Result};

/// The uid and gid of the agents.
pub const AGENT_UID: u32 = 64087;
/// The uid and gid of the controllers and of etcd.
pub const PLAIN_UID: u32 = 64086;
/// The group that may write the embedded store.
pub const STORE_GID: u32 = 64080;

/// As whom a daemon runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Privilege {
    /// An agent: `CAP_NET_ADMIN` and nothing else.
    NetAdmin,
    /// An ordinary uid without any capability.
    Plain,
}

/// Whether this user namespace has the uids above.
pub fn has_uids() -> Result<bool> {
    let map = std::fs::read_to_string("/proc/self/uid_map").context("/proc/self/uid_map")?;
    Ok(crate::isolate::maps_many_uids(&map))
}

impl Privilege {
    /// The `setpriv` command line (without the program) that drops to this.
    /// Without uids of their own, daemons are root in the lab's user namespace,
    /// less the capabilities.
    pub fn setpriv(self, has_uids: bool) -> Vec<String> {
        let caps = match self {
            Privilege::NetAdmin => "-all,+net_admin",
            Privilege::Plain => "-all",
        };
        let mut args = vec!["setpriv".to_owned()];
        if has_uids {
            let uid = self.uid();
            args.extend([
                format!("--reuid={uid}"),
                format!("--regid={uid}"),
                format!("--groups={STORE_GID}"),
                format!("--ambient-caps={caps}"),
            ]);
        }
        args.extend([
            format!("--bounding-set={caps}"),
            format!("--inh-caps={caps}"),
            "--no-new-privs".to_owned(),
            "--".to_owned(),
        ]);
        args
    }

    fn uid(self) -> u32 {
        match self {
            Privilege::NetAdmin => AGENT_UID,
            Privilege::Plain => PLAIN_UID,
        }
    }

    /// Makes a directory that belongs to whoever runs with this.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn own_dir(self, path: &Path, mode: u32) -> Result<()> {
        make_dir(path, mode)?;
        if has_uids()? {
            let uid = Some(self.uid());
            std::os::unix::fs::chown(path, uid, uid).with_context(|| path.display().to_string())?;
        }
        Ok(())
    }
}

/// Makes a directory with exactly this mode.
pub(crate) fn make_dir(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir_all(path)
        .and_then(|()| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)))
        .with_context(|| path.display().to_string())
}

/// The capability sets of a process from the text of its `/proc/<pid>/status`,
/// as `(name, bits)`: inheritable, permitted, effective, bounding, ambient.
pub fn capability_sets(status: &str) -> Vec<(String, u64)> {
    status
        .lines()
        .filter_map(|line| line.split_once(":\t"))
        .filter(|(name, _)| name.starts_with("Cap"))
        .filter_map(|(name, bits)| {
            Some((name.to_owned(), u64::from_str_radix(bits.trim(), 16).ok()?))
        })
        .collect()
}

/// `CAP_NET_ADMIN` as a bit.
pub const CAP_NET_ADMIN: u64 = 1 << 12;

/// Checks that a process holds `CAP_NET_ADMIN` and can never hold anything else.
///
/// # Errors
/// Names the set that holds more or less.
pub fn holds_only_net_admin(pid: u32) -> Result<()> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let sets = capability_sets(&status);
    anyhow::ensure!(
        sets.len() == 5,
        "{path} shows {} capability sets",
        sets.len()
    );
    for (name, bits) in sets {
        let exact = matches!(name.as_str(), "CapPrm" | "CapEff");
        anyhow::ensure!(
            bits & !CAP_NET_ADMIN == 0 && (!exact || bits == CAP_NET_ADMIN),
            "process {pid}: {name} is {bits:016x}, not CAP_NET_ADMIN alone ({CAP_NET_ADMIN:016x})"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capability_sets_are_read_from_status() {
        let sets = capability_sets(
            "Name:\tx\nCapInh:\t0000000000000000\nCapPrm:\t0000000000001000\nSeccomp:\t0\n",
        );
        assert_eq!(
            sets,
            [
                ("CapInh".to_owned(), 0),
                ("CapPrm".to_owned(), CAP_NET_ADMIN)
            ]
        );
    }

    #[test]
    fn a_daemon_never_keeps_roots_uid_where_there_is_another() {
        assert!(
            Privilege::Plain
                .setpriv(true)
                .contains(&"--reuid=64086".to_owned())
        );
        assert!(
            !Privilege::Plain
                .setpriv(false)
                .iter()
                .any(|a| a.contains("uid"))
        );
    }
}
