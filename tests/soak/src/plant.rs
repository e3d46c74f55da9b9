//! Faults on purpose, to see that they are found.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;
use viaduct_lab::{Signal, netns};

use crate::plugin::Sandbox;
use crate::scene::Scene;

/// A fault that has to be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Plant {
    /// A route is away for a second while nothing happens
    Loss,
    /// A route is deleted and the agent that would heal it stands still
    Route,
    /// An address is on two pods, by this program's account
    Duplicate,
    /// A pod is gone without a DEL
    Leak,
}

impl Plant {
    /// Plants what has to be found while pods come and go.
    ///
    /// # Errors
    /// When it cannot be planted.
    pub(crate) fn early(self, scene: &Scene) -> Result<()> {
        let node = scene.nodes.first().context("no nodes")?;
        let pod = node.pods().first().cloned().context("no pods")?;
        let delete = || -> Result<()> {
            node.agent().signal(Signal::SIGSTOP)?;
            node.ip(&format!("route del {}", pod.ip)).map(drop)
        };
        match self {
            Plant::Loss => {
                delete()?;
                std::thread::sleep(Duration::from_secs(1));
                node.agent().signal(Signal::SIGCONT)
            }
            Plant::Route => delete(),
            Plant::Duplicate => {
                let IpAddr::V4(ip) = pod.ip else {
                    anyhow::bail!("{} is not IPv4", pod.ip);
                };
                let mut book = scene.book();
                let [a, b, c, last] = ip.octets();
                // The rest of the node's block, of 16.
                for last in last & 0xf0..=last | 0x0f {
                    // What is taken stays whose it is.
                    let _ = book.given(IpAddr::from([a, b, c, last]), "planted");
                }
                Ok(())
            }
            Plant::Leak => Ok(()),
        }
    }

    /// Plants what has to be found at the end.
    ///
    /// # Errors
    /// When it cannot be planted.
    pub(crate) fn late(self, scene: &Scene) -> Result<()> {
        if self != Plant::Leak {
            return Ok(());
        }
        let node = scene.nodes.first().context("no nodes")?;
        let pod = Sandbox::new(node, scene.given_up(), "planted".to_owned())?;
        pod.call("ADD", None)?;
        netns::remove(&pod.id)
    }
}
