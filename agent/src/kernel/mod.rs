//! The kernel's side of the agent: the only place where netlink messages live.
//!
//! Everything outside speaks in plain data (`crate::dataplane::objects`); this
//! module turns it into messages and the kernel's answers back. It must never
//! decide what should be there.

mod apply;
pub mod arp;
pub mod closeup;
pub mod conntrack;
mod decode;
mod encode;
pub mod error;
pub mod link_type;
pub mod monitor;
mod netfilter;
pub mod nftables;
pub mod offload;
pub mod options;
mod read;
pub mod secondary;
pub mod socket;
pub mod survey;
pub mod veth;

pub use error::NetlinkError;
pub use link_type::LinkType;
pub use monitor::Monitor;
pub use socket::{NetlinkSocket, Request};

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::dataplane::host::Host;
use crate::dataplane::kernel::{Kernel, KernelError};
use crate::dataplane::objects::{Actual, LinkKind};
use crate::dataplane::plan::Op;
use crate::dataplane::rivals::ForeignRoute;

/// Where the kernel's settings are, unless somebody says otherwise.
pub const SETTINGS: &str = "/proc/sys";

/// The kernel of the network namespace that this process runs in.
#[derive(Debug)]
pub struct NetlinkKernel {
    socket: NetlinkSocket,
    indices: apply::Indices,
    /// Tunnels, by index, whose checksum offload was turned off; `None` where the
    /// kernel does not need that.
    without_offload: Option<BTreeSet<u32>>,
    /// `/proc/sys`, or where it can be written.
    settings: PathBuf,
}

impl NetlinkKernel {
    /// Opens it.
    ///
    /// # Errors
    /// When the kernel gives no netlink socket.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self {
            socket: NetlinkSocket::open()?,
            indices: apply::Indices::new(),
            without_offload: None,
            settings: SETTINGS.into(),
        })
    }

    /// With `/proc/sys` mounted elsewhere: a container that is not privileged can only
    /// read its own.
    ///
    /// # Errors
    /// When it is not there.
    pub fn with_settings_at(mut self, directory: &Path) -> Result<Self, KernelError> {
        // Without this a wrong directory would look like a kernel without IPv6.
        let ipv4 = directory.join("net/ipv4");
        if !ipv4.is_dir() {
            return Err(KernelError::Refused(format!(
                "--proc-sys {}: there is no directory {}; the kernel's settings are allowed, /proc/sys or where it is mounted",
                directory.display(),
                ipv4.display()
            )));
        }
        self.settings = directory.to_owned();
        Ok(self)
    }

    /// With what this kernel's release (`uname -r`) needs beside what is asked for.
    pub fn for_release(mut self, release: &str) -> Self {
        self.without_offload = offload::is_needed(release).then(BTreeSet::new);
        self
    }
}

/// What the host has chosen for all links. Read from a file: the crates at hand know no
/// netlink message that asks for it.
fn host(settings: &Path) -> Host {
    let file = settings.join("net/ipv4/conf/all/rp_filter");
    let text = std::fs::read_to_string(file).ok();
    Host {
        rp_filter: text.and_then(|text| text.trim().parse().ok()),
    }
}

impl Kernel for NetlinkKernel {
    fn dump(&mut self) -> Result<Actual, KernelError> {
        let (mut actual, names) = read::dump(&mut self.socket).map_err(|error| {
            KernelError::Refused(format!("the kernel's objects cannot be listed: {error}"))
        })?;
        actual.host = host(&self.settings);
        self.indices = names
            .into_iter()
            .map(|(index, name)| (name, index))
            .collect();
        if let Some(done) = &mut self.without_offload {
            for (name, link) in &actual.links {
                if matches!(link.kind, LinkKind::Vxlan(_)) && done.insert(link.index) {
                    offload::turn_off(name);
                }
            }
        }
        Ok(actual)
    }

    fn foreign_routes(&mut self) -> Result<Vec<ForeignRoute>, KernelError> {
        let names = self
            .indices
            .iter()
            .map(|(name, index)| (*index, name.clone()))
            .collect();
        read::foreign_routes(&mut self.socket, &names).map_err(|error| {
            KernelError::Refused(format!("the routes of others cannot be listed: {error}"))
        })
    }

    fn apply(&mut self, plan: &[Op]) -> Vec<Result<(), KernelError>> {
        apply::apply(&mut self.socket, &mut self.indices, &self.settings, plan)
    }
}
