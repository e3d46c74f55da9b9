//! The CNI server: attaches, detaches and checks pods when the plugin asks.
//!
//! ```text
//! plugin ──frame──> server ──Job──> owner ──> ledger, addresses
//!                                    │  ▲
//!                                    ▼  └─ outcome
//!                                   wiring ──> kernel (veth)
//! ```
//!
//! The owner is the one task that holds the ledger and the addresses; it publishes
//! the endpoints, which the reconciler keeps as they are, and how addresses are
//! used, which the claim tells the controller. An ADD needs neither datastore nor
//! controller, a DEL not even a ready node.

mod add;
mod addresses;
mod check;
mod del;
mod descriptors;
mod forgetting;
mod gc;
mod hunger;
mod inquiry;
mod ledger;
mod metrics;
mod owner;
mod recovery;
mod server;
mod silent;
mod status;
mod wiring;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use viaduct_model::{Endpoint, MacAddr, Tenure};

pub use metrics::CniMetrics;

use self::addresses::Addresses;
use self::forgetting::Forgetting;
use self::ledger::Ledger;
use self::owner::{Event, Owner};
use self::wiring::Wiring;
use crate::kernel::NetlinkSocket;
use crate::kernel::veth::Pair;
use crate::memory::Memory;
use crate::state::{AddressUsage, DataplaneReport, Endpoints, NodeState};

/// The next hop of every pod: an address that no pod can have, behind which the
/// host end answers by a permanent neighbour entry.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// Messages that may wait for the owner.
const QUEUE: usize = 256;

/// What the server needs to know.
#[derive(Debug, Clone)]
pub struct CniOptions {
    /// The run directory, locked by the caller; holds socket, ledger and spool.
    pub run_dir: PathBuf,
    /// How long a released address rests.
    pub cool_down: Duration,
    /// What it counts.
    pub metrics: CniMetrics,
    /// What an earlier agent of this node knew of its blocks, to go by until the
    /// datastore has been read.
    pub memory: Option<Memory>,
    /// This node's hold on its blocks. Without it the records alone decide what is
    /// handed out, which is enough where nobody else could get a block.
    pub tenure: Option<watch::Receiver<Arc<Tenure>>>,
}

impl CniOptions {
    /// The usual options for a run directory.
    pub fn new(run_dir: impl Into<PathBuf>) -> Self {
        Self {
            run_dir: run_dir.into(),
            cool_down: viaduct_model::addresses::COOL_DOWN,
            metrics: CniMetrics::default(),
            memory: None,
            tenure: None,
        }
    }
}

/// Why the server cannot start.
#[derive(Debug, Error)]
pub enum StartError {
    /// A directory, the ledger or the spool cannot be used.
    #[error("CNI server: cannot {what} in --run-dir {run_dir}: {source}")]
    RunDir {
        /// What was tried.
        what: &'static str,
        /// The run directory.
        run_dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel cannot be asked.
    #[error("CNI server: {0}")]
    Kernel(#[from] crate::kernel::NetlinkError),
}

/// The running server.
#[derive(Debug)]
pub struct CniHandle {
    /// The attachments of this node.
    pub endpoints: watch::Receiver<Endpoints>,
    /// How addresses are used.
    pub usage: watch::Receiver<AddressUsage>,
    stop: watch::Sender<bool>,
    owner_events: mpsc::Sender<Event>,
    owner: JoinHandle<()>,
}

impl CniHandle {
    /// Takes no more requests, and waits until those under way are finished. The
    /// socket stays where it is: the plugin finds nobody behind it.
    pub async fn stop(self) {
        let _ = self.stop.send(true);
        let _ = self.owner_events.send(Event::Stop).await;
        let _ = self.owner.await;
    }
}

/// Recovers what an earlier agent left, and begins to serve.
///
/// Endpoints and addresses come from the ledger, so that both watches hold the
/// truth when this returns, whether the datastore can be reached or not.
///
/// # Errors
/// When the run directory or the kernel cannot be used.
pub async fn start(
    options: CniOptions,
    node: watch::Receiver<Option<NodeState>>,
    report: watch::Receiver<DataplaneReport>,
) -> Result<CniHandle, StartError> {
    let run_dir = options.run_dir;
    let failed = |what| {
        let run_dir = run_dir.clone();
        move |source| StartError::RunDir {
            what,
            run_dir,
            source,
        }
    };
    let ledger = Ledger::open(&run_dir).map_err(failed("make the ledger"))?;
    // The plugin relies on this order: who spools a DEL and then finds nobody
    // listening still, was in time for the replay.
    let (listener, _) = server::listen(&run_dir).map_err(failed("listen on cni.sock"))?;
    let recovering = run_dir.clone();
    let remembered = options.memory;
    let (ledger, recovered, memory) =
        tokio::task::spawn_blocking(move || recover(&recovering, ledger, remembered))
            .await
            .map_err(io::Error::other)
            .map_err(failed("recover"))?
            .map_err(failed("recover"))?;

    let metrics = options.metrics;
    metrics
        .damaged
        .set(i64::try_from(recovered.damaged).unwrap_or(i64::MAX));
    metrics
        .spooled
        .set(i64::try_from(recovered.spooled).unwrap_or(i64::MAX));
    let mut addresses = Addresses::restored(
        recovered.endpoints.values().chain(&recovered.released),
        options.cool_down,
    );
    let forgetting = Forgetting::begin(metrics.clone());
    for endpoint in &recovered.released {
        for address in addresses.release(&endpoint.id) {
            forgetting.released(address);
        }
    }

    if let Some(tenure) = &options.tenure {
        addresses.hold(&tenure.borrow());
    }
    if let Some(memory) = memory.as_deref() {
        addresses.remember(memory);
    }
    let endpoints: Endpoints = Arc::new(recovered.endpoints);
    let (endpoints_out, endpoints_in) = watch::channel(endpoints.clone());
    let (usage_out, usage_in) = watch::channel(AddressUsage::default());
    let (own, events) = mpsc::channel(QUEUE);
    let (stop, stopped) = watch::channel(false);
    let mut owner = Owner {
        run_dir,
        ledger,
        addresses,
        endpoints,
        stand_ins: recovered.stand_ins,
        busy: HashMap::new(),
        doomed: Vec::new(),
        dying: Vec::new(),
        failed_deletions: 0,
        forgetting,
        wiring: Wiring::new(),
        metrics: metrics.clone(),
        node: node.clone(),
        memory: memory.clone(),
        endpoints_out,
        usage_out,
        events,
        own: own.clone(),
        starved: false,
        tenure: options.tenure,
        foreign: BTreeMap::new(),
        hungry: VecDeque::new(),
        fresh: HashSet::new(),
    };
    owner.adopt_node();
    let context = server::Context {
        owner: own.clone(),
        node,
        memory,
        report,
        usage: usage_in.clone(),
        metrics,
    };
    tokio::spawn(server::serve(listener, context, stopped));
    Ok(CniHandle {
        endpoints: endpoints_in,
        usage: usage_in,
        stop,
        owner_events: own,
        owner: tokio::spawn(owner.run()),
    })
}

/// What the ledger of a run directory holds, read without changing anything: the
/// endpoints by link, and by its file's name what cannot be read, with the reason.
///
/// # Errors
/// When the directory cannot be read.
pub fn look_at_ledger(
    run_dir: &Path,
) -> io::Result<(BTreeMap<String, Endpoint>, BTreeMap<String, String>)> {
    let loaded = ledger::look(run_dir)?;
    Ok((loaded.endpoints, loaded.damaged))
}

fn recover(
    run_dir: &Path,
    ledger: Ledger,
    memory: Option<Memory>,
) -> io::Result<(Ledger, recovery::Recovered, Option<Arc<Memory>>)> {
    let mut host = NetlinkSocket::open().map_err(io::Error::other)?;
    let recovered = recovery::recover(run_dir, &ledger, &mut host)?;
    let memory = memory.filter(recovery::still_stands).map(Arc::new);
    Ok((ledger, recovered, memory))
}

/// The veth pair of an endpoint; `None` when it has no IPv4 address.
fn pair_of(endpoint: &Endpoint) -> Option<Pair> {
    let address = endpoint
        .addresses
        .iter()
        .find_map(|address| match address {
            IpAddr::V4(v4) => Some(*v4),
            IpAddr::V6(_) => None,
        })?;
    Some(Pair {
        link: endpoint.link.clone(),
        host_mac: MacAddr::HOST_END,
        ifname: endpoint.id.ifname.clone(),
        pod_mac: endpoint.pod_mac,
        mtu: endpoint.mtu,
        address,
        gateway: GATEWAY,
    })
}
