//! The quickest way to program peers without a daemon: `bridge -batch` and
//! `ip -batch`, one object a line, everything known in advance.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use viaduct_lab::{Node, command, netns};

use super::vxlan::DEVICE;
use crate::simulated::Peer;

/// The batch files of some peers.
#[derive(Debug)]
pub(crate) struct Batches {
    bridge: PathBuf,
    ip: PathBuf,
}

impl Batches {
    /// Writes the files: for each peer a forwarding entry, a neighbour and a route.
    ///
    /// # Errors
    /// When they cannot be written.
    pub(crate) fn write(peers: &[Peer]) -> Result<Self> {
        let (mut fdb, mut ip) = (String::new(), String::new());
        for peer in peers {
            fdb += &format!(
                "fdb append {} dev {DEVICE} dst {} self permanent\n",
                peer.mac, peer.underlay
            );
            ip += &format!(
                "neigh add {} lladdr {} dev {DEVICE} nud permanent\n",
                peer.overlay, peer.mac
            );
        }
        for peer in peers {
            ip += &format!(
                "route add {} via {} dev {DEVICE} onlink proto 87\n",
                peer.block, peer.overlay
            );
        }
        let batches = Self {
            bridge: PathBuf::from("/run/lab/peers.bridge"),
            ip: PathBuf::from("/run/lab/peers.ip"),
        };
        for (path, text) in [(&batches.bridge, fdb), (&batches.ip, ip)] {
            std::fs::write(path, text).with_context(|| path.display().to_string())?;
        }
        Ok(batches)
    }

    /// Runs both on a node that has the device, and says how long it took.
    ///
    /// # Errors
    /// What the programs said.
    pub(crate) fn run(&self, node: &Node) -> Result<Duration> {
        netns::within(node.netns(), || {
            let start = Instant::now();
            command::run("bridge", ["-batch".as_ref(), self.bridge.as_os_str()])?;
            command::run("ip", ["-batch".as_ref(), self.ip.as_os_str()])?;
            Ok(start.elapsed())
        })
    }
}
