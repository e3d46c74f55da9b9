//! What the host asks a guest, and the answers: JSON, a line each, over the second
//! serial port, which works whatever happens to the network.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use viaduct_lab::environment::scaled;
use viaduct_lab::{Pod, eventually};

/// The serial port as the guest sees it.
pub(crate) const DEVICE: &str = "/dev/ttyS1";

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(90);

/// What a guest can be asked to do. The type of the answer stands behind each.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Give the network card an address, and a way to everywhere else: `()`.
    Address(Ipv4Addr),
    /// Be the machine with the datastore and the controller, which has these arguments
    /// beside its own: the datastore's URL, `String`.
    Control(Vec<String>),
    /// Be a node, and wait until its agent is ready: `()`.
    Node {
        /// Its address on the wire.
        address: Ipv4Addr,
        /// The agent's arguments.
        agent: Vec<String>,
    },
    /// Wait until the agent is ready: `()`.
    Ready,
    /// Kill the agent, start it with or without `--direct-routing` and wait until it is
    /// ready: `()`.
    DirectRouting(bool),
    /// Wire pods of these names: `Vec<Target>`.
    AddPods(Vec<String>),
    /// The MTUs of the pods: `Vec<u32>`.
    Mtus,
    /// Whether the agent holds CAP_NET_ADMIN and nothing else: `()`.
    Capabilities,
    /// Try everything from every pod here to others: `Vec<PodPair>`.
    TryPods {
        /// To where.
        targets: Vec<Target>,
        /// The MTU that pods are to have.
        mtu: u32,
    },
    /// Try everything from this node to pods: `Vec<NodeToPod>`.
    TryNode(Vec<Target>),
    /// Ping from every pod here to the others, once each: `Vec<String>`, a line for
    /// each that did not answer.
    Ping(Vec<Target>),
    /// Exchange the payload from every pod here with the others: `Vec<String>`, a line
    /// for each that failed.
    Transfer(Vec<Target>),
    /// Run a program: its standard output, `String`.
    Run(Vec<String>),
    /// The last lines of each daemon's log: `String`.
    Logs(usize),
    /// End the daemons cleanly, and the guest: `()`.
    Stop,
}

/// A pod, and where in it the payload is served.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Target {
    /// The pod.
    pub(crate) pod: Pod,
    /// The server in it.
    pub(crate) server: SocketAddr,
}

/// The host's end of a guest's serial port.
#[derive(Debug)]
pub(crate) struct Port {
    reader: BufReader<UnixStream>,
}

impl Port {
    /// Connects once QEMU listens.
    pub(crate) fn connect(path: &Path) -> Result<Self> {
        let stream = eventually(Duration::from_secs(20), || {
            UnixStream::connect(path).with_context(|| path.display().to_string())
        })?;
        stream.set_read_timeout(Some(scaled(PATIENCE)))?;
        Ok(Self {
            reader: BufReader::new(stream),
        })
    }

    /// Waits for the line with which a guest begins.
    pub(crate) fn greeted(&mut self) -> Result<()> {
        let line = self.line()?;
        ensure!(line == "here", "the guest begins with {line:?}");
        Ok(())
    }

    /// Asks and waits for the answer.
    pub(crate) fn ask<T: DeserializeOwned>(&mut self, request: &Request) -> Result<T> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.reader.get_mut().write_all(&line)?;
        let line = self.line()?;
        let answer: Result<Value, String> =
            serde_json::from_str(&line).with_context(|| format!("no answer: {line:?}"))?;
        let value = answer.map_err(anyhow::Error::msg)?;
        serde_json::from_value(value).context("an answer of another kind")
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        let length = self
            .reader
            .read_line(&mut line)
            .with_context(|| format!("no answer within {:?}", scaled(PATIENCE)))?;
        ensure!(length > 0, "the machine is off");
        Ok(line.trim_end().to_owned())
    }
}
