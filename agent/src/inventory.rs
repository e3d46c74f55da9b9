//! What this host holds of pods: its ledger and its kernel, side by side and unjudged.
//!
//! Called by `viaductctl ipam report`, which may run beside an agent or without one;
//! `viaductctl ipam check` compares the inventories of all nodes. Read only: it needs the
//! uid of the agent or root for the ledger, and no capability for the kernel.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use viaduct_cni::spool;
use viaduct_model::{Cidr, Endpoint};

use crate::dataplane::kernel::{Kernel, KernelError};
use crate::dataplane::objects::is_host_end;
use crate::kernel::{NetlinkError, NetlinkKernel};
use crate::run_dir::{self, RunDirError};
use crate::{clock, cni};

/// The form of an [`Inventory`]; another one is not compared.
pub const FORM: u32 = 1;

/// The most routes of others that are listed: a router's whole table is nobody's help.
const FOREIGN: usize = 5000;

/// What a host holds of pods.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Inventory {
    /// [`FORM`].
    pub form: u32,
    /// Whether an agent runs on the run directory.
    pub agent_runs: bool,
    /// The agent's run directory.
    pub run_dir: PathBuf,
    /// The clock that the ledger's times are of, now, in milliseconds.
    pub now_ms: u64,
    /// The ledger's records.
    pub attachments: Vec<Recorded>,
    /// Records that cannot be read: the name without `.json`, and why.
    pub damaged: BTreeMap<String, String>,
    /// Links of attachments whose DEL is in the spool.
    pub spooled: Vec<String>,
    /// Host ends in the kernel.
    pub links: Vec<String>,
    /// Our routes through host ends.
    pub routes: Vec<PodRoute>,
    /// Routes of the main table that are not ours, but for default routes.
    pub foreign: Vec<PodRoute>,
}

/// A record of the ledger.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Recorded {
    /// What it says.
    #[serde(flatten)]
    pub endpoint: Endpoint,
    /// Whether the namespace that it names is seen from here. In a container it may be
    /// there and not be seen.
    pub namespace_seen: bool,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodRoute {
    /// Where it leads.
    pub destination: Cidr,
    /// Through which link, if any.
    pub link: Option<String>,
}

/// Why there is no inventory.
#[derive(Debug, Error)]
pub enum InventoryError {
    /// No agent ever ran on the run directory.
    #[error("--run-dir {0}: no agent has ever run on it; name the one of this node's agent")]
    NoAgent(PathBuf),
    /// The run directory cannot be read.
    #[error("--run-dir {run_dir}: cannot read {what}: {source}")]
    RunDir {
        /// The run directory.
        run_dir: PathBuf,
        /// Which part of it.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Its lock cannot be looked at.
    #[error(transparent)]
    Lock(#[from] RunDirError),
    /// The kernel cannot be asked.
    #[error("the kernel cannot be listed: {0}")]
    Netlink(#[from] NetlinkError),
    /// The kernel cannot be listed.
    #[error("the kernel cannot be listed: {0}")]
    Kernel(#[from] KernelError),
}

/// Takes the inventory of this network namespace and of a run directory.
///
/// # Errors
/// When either cannot be read: half an inventory would only make wrong findings.
pub fn take(run_dir: &Path) -> Result<Inventory, InventoryError> {
    let failed = |what| {
        let run_dir = run_dir.to_owned();
        move |source| InventoryError::RunDir {
            run_dir,
            what,
            source,
        }
    };
    let agent_runs = match run_dir::lock_unused(run_dir) {
        Ok(Some(_)) => false,
        Ok(None) => return Err(InventoryError::NoAgent(run_dir.to_owned())),
        Err(RunDirError::Working { .. }) => true,
        Err(error) => return Err(error.into()),
    };
    let (endpoints, damaged) = cni::look_at_ledger(run_dir).map_err(failed("the ledger"))?;
    let spooled = spool::read(run_dir).map_err(failed("the spool"))?;
    let mut kernel = NetlinkKernel::open()?;
    let actual = kernel.dump()?;
    let host_end = |link: &&str| is_host_end(link);
    let links = actual.links.keys().map(|name| &**name).filter(host_end);
    let routes = actual.routes.iter().filter_map(|route| {
        let link = route.link.as_deref().filter(host_end)?;
        Some(PodRoute {
            destination: route.destination,
            link: Some(link.to_owned()),
        })
    });
    let mut foreign: Vec<PodRoute> = kernel
        .foreign_routes()?
        .into_iter()
        .filter(|rival| rival.route.destination.prefix_len() > 0)
        .map(|rival| PodRoute {
            destination: rival.route.destination,
            link: rival.route.link.as_deref().map(str::to_owned),
        })
        .collect();
    foreign.truncate(FOREIGN);
    Ok(Inventory {
        form: FORM,
        agent_runs,
        run_dir: run_dir.to_owned(),
        now_ms: clock::now_ms(),
        attachments: endpoints
            .into_values()
            .map(|endpoint| Recorded {
                namespace_seen: is_seen(&endpoint),
                endpoint,
            })
            .collect(),
        damaged,
        spooled: spooled
            .iter()
            .filter_map(|entry| Some(entry.request.as_ref().ok()?.id.link_name()))
            .collect(),
        links: links.map(str::to_owned).collect(),
        routes: routes.collect(),
        foreign,
    })
}

/// Whether the namespace is still the one that the record means.
fn is_seen(endpoint: &Endpoint) -> bool {
    std::fs::metadata(&endpoint.netns)
        .is_ok_and(|found| (found.dev(), found.ino()) == endpoint.netns_id)
}

impl Inventory {
    /// The record of a link.
    pub fn record(&self, link: &str) -> Option<&Recorded> {
        self.attachments
            .iter()
            .find(|recorded| recorded.endpoint.link == link)
    }

    /// Whether the kernel has the host end of that name.
    pub fn has_link(&self, link: &str) -> bool {
        self.links.iter().any(|there| there == link)
    }

    /// The host ends that our routes to an address lead to.
    pub fn routes_to(&self, address: IpAddr) -> impl Iterator<Item = &PodRoute> {
        let host = Cidr::host(address);
        self.routes
            .iter()
            .filter(move |route| route.destination == host)
    }
}
