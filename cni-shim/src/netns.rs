//! The pod's network namespace: opening it, and an rtnetlink socket inside it.
//!
//! A netlink socket stays in the namespace that it was opened in, so this is the
//! only moment at which anybody has to enter the pod's.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use viaduct_cni::CniError;

/// The magic number of the file system that namespaces live in (`NSFS_MAGIC`).
const NSFS_MAGIC: u64 = 0x6e73_6673;

const OWN: &str = "/proc/self/ns/net";

/// A pod's namespace, and a socket inside it.
pub(crate) struct PodNamespace {
    /// The namespace.
    pub(crate) namespace: OwnedFd,
    /// An rtnetlink socket that was opened inside it.
    pub(crate) rtnetlink: OwnedFd,
}

/// Opens both. The calling thread, the only one of this process, is back in its
/// own namespace afterwards.
///
/// # Errors
/// Code 4 when `path` is no network namespace of a container, 5 when the system
/// refuses.
pub(crate) fn open(path: &str) -> Result<PodNamespace, CniError> {
    let namespace = open_checked(path)?;
    let failed = |what: &str, e: rustix::io::Errno| {
        CniError::new(
            CniError::IO_FAILURE,
            format!("cannot {what} network namespace {path}: {e}"),
        )
        .with_details("the container runtime must start this plugin as root")
    };
    let own = open_file(OWN).map_err(|e| failed("keep the own namespace while entering", e))?;
    let network = Some(LinkNameSpaceType::Network);
    move_into_link_name_space(namespace.as_fd(), network).map_err(|e| failed("enter", e))?;
    let rtnetlink = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        // Protocol 0 is NETLINK_ROUTE.
        None,
    );
    move_into_link_name_space(own.as_fd(), network).map_err(|e| failed("come back from", e))?;
    Ok(PodNamespace {
        namespace,
        rtnetlink: rtnetlink.map_err(|e| failed("open an rtnetlink socket in", e))?,
    })
}

fn open_checked(path: &str) -> Result<OwnedFd, CniError> {
    let refuse = |why: String| {
        CniError::new(
            CniError::INVALID_ENVIRONMENT,
            format!("CNI_NETNS {path:?} {why}"),
        )
        .with_details("CNI_NETNS must be the path of the container's network namespace")
    };
    let namespace = open_file(path).map_err(|e| refuse(format!("cannot be opened: {e}")))?;
    let is_namespace = rustix::fs::fstatfs(&namespace)
        .is_ok_and(|fs| u64::try_from(fs.f_type).is_ok_and(|t| t == NSFS_MAGIC));
    if !is_namespace {
        return Err(refuse("is not a namespace".to_owned()));
    }
    let theirs = rustix::fs::fstat(&namespace);
    let ours = rustix::fs::stat(OWN);
    match (theirs, ours) {
        (Ok(a), Ok(b)) if (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino) => Err(refuse(
            "is the network namespace that the plugin itself runs in, which is the host's"
                .to_owned(),
        )),
        (Ok(_), Ok(_)) => Ok(namespace),
        (Err(e), _) | (_, Err(e)) => Err(refuse(format!("cannot be compared with {OWN}: {e}"))),
    }
}

/// Opens without waiting: a path that names a FIFO must not hang the plugin.
fn open_file(path: &str) -> Result<OwnedFd, rustix::io::Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    rustix::fs::openat(CWD, path, flags, Mode::empty())
}
