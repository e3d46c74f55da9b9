//! A pod of the lab, and trying the network from inside it.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::probe::{self, Echo, Payload, Transfer};
use crate::{binaries, command, netns};

/// A pod: a namespace that the plugin has wired.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pod {
    /// `<node>/<pod>`.
    pub name: String,
    /// The node that it runs on.
    pub node: String,
    /// The container id that the plugin was given.
    pub container_id: String,
    /// The path of its network namespace.
    pub netns: PathBuf,
    /// Its first address.
    pub ip: IpAddr,
    /// The result of ADD.
    pub result: Value,
}

impl Pod {
    /// Runs a program in the pod's namespace and returns its standard output.
    ///
    /// # Errors
    /// When it cannot be started or fails.
    pub fn exec(&self, program: &str, args: &[&str]) -> Result<String> {
        let mut command = command::command(program);
        command.args(args).env("PATH", binaries::search_path());
        netns::run(&self.netns, command)
    }

    /// Pings an address once.
    ///
    /// # Errors
    /// What `ping` said.
    pub fn ping(&self, to: IpAddr, echo: Echo) -> Result<()> {
        probe::ping(&self.netns, to, echo)
            .with_context(|| format!("{} -> {to} ({echo})", self.name))
    }

    /// The MTU of the pod's interface as its kernel has it, in bytes.
    ///
    /// # Errors
    /// When the interface is not there.
    pub fn mtu(&self) -> Result<u32> {
        let text = self.exec("ip", &["-j", "link", "show", crate::cni::IFNAME])?;
        let links: Value = serde_json::from_str(&text)?;
        links[0]["mtu"]
            .as_u64()
            .and_then(|mtu| u32::try_from(mtu).ok())
            .with_context(|| format!("{} shows no MTU: {text}", self.name))
    }

    /// Serves [`Payload`] exchanges from inside the pod until the handle is dropped.
    ///
    /// # Errors
    /// When no port can be listened on.
    pub fn serve(&self, payload: &Payload) -> Result<probe::Server> {
        probe::Server::start(&self.netns, self.ip, payload)
    }

    /// Sends a payload to a server and has one sent back, both checked by hash;
    /// says what address the server saw.
    ///
    /// # Errors
    /// When a byte is missing or another than was sent.
    pub fn transfer(&self, server: SocketAddr, payload: &Payload) -> Result<Transfer> {
        probe::transfer(&self.netns, server, payload)
            .with_context(|| format!("{} <-> {server} (TCP)", self.name))
    }
}
