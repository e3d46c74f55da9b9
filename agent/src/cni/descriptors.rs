//! What the plugin passes: is it what it has to be? A wrong descriptor must be
//! refused before the kernel is asked to do anything with it.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::stat::{fstat, stat};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};
use rustix::net::AddressFamily;
use rustix::net::sockopt::{socket_domain, socket_protocol};
use viaduct_cni::CniError;

/// A pod's network namespace, and a socket that belongs to it.
#[derive(Debug)]
pub(super) struct Namespace {
    /// The namespace.
    pub(super) namespace: OwnedFd,
    /// An rtnetlink socket that was opened inside.
    pub(super) rtnetlink: OwnedFd,
    /// Device and inode of the namespace's file.
    pub(super) id: (u64, u64),
}

impl Namespace {
    /// Checks the descriptors of an ADD.
    ///
    /// # Errors
    /// The refusal for the runtime.
    pub(super) fn check(descriptors: Vec<OwnedFd>) -> Result<Self, CniError> {
        let count = descriptors.len();
        let Ok([namespace, rtnetlink]) = <[OwnedFd; 2]>::try_from(descriptors) else {
            return Err(protocol(format!(
                "ADD came with {count} descriptors instead of 2 (network namespace, rtnetlink socket)"
            )));
        };
        let id = namespace_id(&namespace)?;
        let domain = socket_domain(&rtnetlink)
            .map_err(|e| protocol(format!("the second descriptor is no rtnetlink socket: {e}")))?;
        // Protocol 0 of this family is NETLINK_ROUTE.
        let route = socket_protocol(&rtnetlink).is_ok_and(|p| p.is_none());
        if domain != AddressFamily::NETLINK || !route {
            return Err(protocol(
                "the second descriptor is a socket, but no rtnetlink socket".to_owned(),
            ));
        }
        Ok(Self {
            namespace,
            rtnetlink,
            id,
        })
    }
}

fn namespace_id(fd: &OwnedFd) -> Result<(u64, u64), CniError> {
    let refuse = |why: &str| {
        Err(CniError::new(
            CniError::INVALID_ENVIRONMENT,
            format!("CNI_NETNS {why}"),
        ))
    };
    let is_namespace = fstatfs(fd).is_ok_and(|fs| fs.filesystem_type() == NSFS_MAGIC);
    // The link of a namespace's descriptor names its kind, or the path where it is
    // mounted, as runtimes do; then its kind is what the plugin has entered it as.
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let is_network = std::fs::read_link(link).is_ok_and(|target| {
        let target = target.as_os_str().as_encoded_bytes();
        target.starts_with(b"net:[") || target.starts_with(b"/")
    });
    if !is_namespace || !is_network {
        return refuse("is not a network namespace");
    }
    match (fstat(fd), stat("/proc/self/ns/net")) {
        (Ok(theirs), Ok(ours)) if (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino) => {
            refuse("is the network namespace that viaduct-agent itself runs in")
        }
        (Ok(theirs), Ok(_)) => Ok((theirs.st_dev, theirs.st_ino)),
        (Err(errno), _) | (_, Err(errno)) => {
            refuse(&format!("cannot be examined: {}", errno.desc()))
        }
    }
}

fn protocol(msg: String) -> CniError {
    CniError::new(CniError::PROTOCOL, msg)
        .with_details("plugin and agent are of releases that do not fit together")
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn refusal(descriptors: Vec<OwnedFd>) -> CniError {
        Namespace::check(descriptors).unwrap_err()
    }

    fn file(path: &str) -> OwnedFd {
        File::open(path).unwrap().into()
    }

    #[test]
    fn wrong_descriptors_are_refused_by_what_is_wrong() {
        assert_eq!(refusal(vec![]).code, CniError::PROTOCOL);
        assert_eq!(
            refusal(vec![file("/proc/self/ns/net")]).code,
            CniError::PROTOCOL
        );
        for (path, words) in [
            ("/dev/null", "not a network namespace"),
            ("/proc/self/ns/uts", "not a network namespace"),
            ("/proc/self/ns/net", "itself"),
        ] {
            let error = refusal(vec![file(path), file("/dev/null")]);
            assert_eq!(error.code, CniError::INVALID_ENVIRONMENT, "{path}");
            assert!(error.msg.contains(words), "{error:?}");
        }
    }
}
