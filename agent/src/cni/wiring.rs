//! The steps that wire a pod, look it over and cut it off: blocking netlink calls,
//! run beside each other on the runtime's blocking threads.
//!
//! Called by the owner of the ledger, which sees to it that only one step at a time
//! works on an attachment. Nothing here knows addresses, blocks or files.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use tokio::sync::Semaphore;
use viaduct_cni::{CniError, fault};
use viaduct_model::{Endpoint, MacAddr};

use super::descriptors::Namespace;
use crate::dataplane;
use crate::dataplane::diff::diff;
use crate::dataplane::objects::{Actual, ActualLink, Desired, LinkKind, Settings6};
use crate::dataplane::plan::Plan;
use crate::kernel::veth::{self, Pair};
use crate::kernel::{NetlinkError, NetlinkSocket, secondary};

/// How many steps run at once. The kernel does most of it under one lock, so more
/// would only wait there.
const PARALLEL: usize = 4;

/// How long the kernel may take until a new pair carries packets.
const CARRIER_LIMIT: Duration = Duration::from_secs(2);

/// Runs the blocking steps, each with a netlink socket of this namespace.
#[derive(Debug, Clone)]
pub(super) struct Wiring {
    idle: Arc<Mutex<Vec<NetlinkSocket>>>,
    places: Arc<Semaphore>,
}

/// What a pod that is wired has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wired {
    /// Whether the default route is another interface's.
    pub(super) secondary: bool,
}

/// Why a pod is not wired.
#[derive(Debug)]
pub(super) struct Failure {
    /// For the runtime.
    pub(super) error: CniError,
    /// Whether something may be left in the kernel, so that the address must
    /// stay taken.
    pub(super) leftover: bool,
}

impl Wiring {
    /// Starts without any socket; they are opened when they are needed first.
    pub(super) fn new() -> Self {
        Self {
            idle: Arc::default(),
            places: Arc::new(Semaphore::new(PARALLEL)),
        }
    }

    /// Runs `step` on a blocking thread, at most [`PARALLEL`] at once.
    ///
    /// # Errors
    /// When there is no socket or the step did not finish; else as the step's.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        step: impl FnOnce(&mut NetlinkSocket) -> T + Send + 'static,
    ) -> Result<T, NetlinkError> {
        // The semaphore is never closed.
        let place = self.places.clone().acquire_owned().await;
        let idle = self.idle.clone();
        let done = tokio::task::spawn_blocking(move || {
            let kept = idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let mut socket = match kept {
                Some(socket) => socket,
                None => NetlinkSocket::open()?,
            };
            let result = step(&mut socket);
            idle.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(socket);
            Ok(result)
        })
        .await;
        drop(place);
        done.unwrap_or_else(|e| Err(NetlinkError::Malformed(format!("a step was cut off: {e}"))))
    }
}

/// Wires a pod, or leaves the kernel as it was. With `replace`, what there is
/// of the link is removed first.
pub(super) fn wire(
    host: &mut NetlinkSocket,
    endpoint: &Endpoint,
    pair: &Pair,
    target: Namespace,
    replace: bool,
) -> Result<Wired, Failure> {
    if replace {
        veth::delete(host, &pair.link).map_err(|e| Failure {
            error: refused(pair, "delete the link that is to be replaced", &e),
            leftover: true,
        })?;
    }
    let mut pod = NetlinkSocket::from_fd(target.rtnetlink).map_err(|e| Failure {
        error: CniError::new(
            CniError::PROTOCOL,
            format!("the rtnetlink socket of the plugin cannot be used: {e}"),
        ),
        leftover: false,
    })?;
    let clean = |error| Failure {
        error,
        leftover: false,
    };
    let index = match veth::create(host, pair, std::os::fd::AsFd::as_fd(&target.namespace)) {
        Err(e) if e.already_there() => {
            make_room(host, &mut pod, pair).map_err(clean)?;
            veth::create(host, pair, std::os::fd::AsFd::as_fd(&target.namespace))
        }
        other => other,
    }
    .map_err(|e| clean(refused(pair, "create the veth pair", &e)))?;

    fault::point("wire.created");
    connect(host, &mut pod, endpoint, pair, index).map_err(|error| {
        let undone = veth::delete(host, &pair.link);
        if let Err(e) = &undone {
            tracing::error!(link = %pair.link, error = %e, "a link that was not wired stays behind");
        }
        Failure {
            error,
            leftover: undone.is_err(),
        }
    })
}

/// Finds out which end's name is taken. A host end left behind is ours to remove;
/// the pod's own interfaces are not.
fn make_room(
    host: &mut NetlinkSocket,
    pod: &mut NetlinkSocket,
    pair: &Pair,
) -> Result<(), CniError> {
    match veth::find(pod, &pair.ifname) {
        Ok(None) => {}
        Ok(Some(_)) => {
            return Err(CniError::new(
                CniError::INVALID_ENVIRONMENT,
                format!(
                    "CNI_IFNAME {:?} is not allowed: the container has an interface of that name already",
                    pair.ifname
                ),
            ));
        }
        Err(e) => return Err(refused(pair, "look for the pod's interface", &e)),
    }
    tracing::warn!(link = %pair.link, "a link of that name was left behind and is removed");
    veth::delete(host, &pair.link).map_err(|e| refused(pair, "delete a link left behind", &e))
}

fn connect(
    host: &mut NetlinkSocket,
    pod: &mut NetlinkSocket,
    endpoint: &Endpoint,
    pair: &Pair,
    host_index: u32,
) -> Result<Wired, CniError> {
    // Also proves that the socket belongs to the namespace that was passed with it.
    let pod_index = match veth::find(pod, &pair.ifname) {
        Ok(Some(found)) if found.mac == Some(pair.pod_mac) => found.index,
        Ok(_) => {
            return Err(CniError::new(
                CniError::PROTOCOL,
                "the rtnetlink socket of the plugin belongs to another network namespace than CNI_NETNS",
            ));
        }
        Err(e) => return Err(refused(pair, "look at the pod's interface", &e)),
    };
    let (requests, fine): (Vec<_>, Vec<_>) =
        veth::pod_requests(pair, pod_index).into_iter().unzip();
    let results = pod.execute(&requests);
    // The last request is the default route.
    let secondary = matches!(results.last(), Some(Err(e)) if e.already_there());
    for (result, already_there_is_fine) in results.into_iter().zip(fine) {
        match result {
            Err(e) if !(already_there_is_fine && e.already_there()) => {
                return Err(refused(pair, "set up the pod's end", &e));
            }
            _ => {}
        }
    }
    if secondary {
        secondary::provide(pod, pair, pod_index)
            .map_err(|e| refused(pair, "give the pod's second interface its way out", &e))?;
    }
    fault::point("wire.pod_end");
    veth::finish_host_end(
        host,
        &pair.link,
        host_index,
        &host_plan(endpoint, host_index),
    )
    .map_err(|e| {
        CniError::new(
            CniError::KERNEL_REFUSED,
            format!(
                "link {} ({}): cannot set up the host's end: {e}",
                pair.link, pair.address
            ),
        )
    })?;
    fault::point("wire.host_end");
    wait_for_carrier(pod, pair)?;
    Ok(Wired { secondary })
}

/// What makes a new host end as it should be: decided by the very functions that
/// keep it so afterwards, so that the reconciler finds nothing to repair.
fn host_plan(endpoint: &Endpoint, index: u32) -> Plan {
    let wired = Endpoint {
        wired: true,
        ..endpoint.clone()
    };
    let endpoints = Arc::new(BTreeMap::from([(endpoint.link.clone(), wired)]));
    let mut desired = Desired::default();
    dataplane::endpoints::desire(&endpoints, &mut desired);
    let mut actual = Actual::default();
    actual.links.insert(
        endpoint.link.as_str().into(),
        ActualLink {
            index,
            kind: LinkKind::Veth,
            mac: Some(MacAddr::HOST_END),
            mtu: endpoint.mtu,
            up: false,
            settings: None,
            settings6: Some(Settings6 {
                accept_ra: true,
                generates_addresses: true,
            }),
        },
    );
    diff(&desired, &actual)
}

/// The end that came up first, the pod's, is activated by the kernel's link watch
/// a moment later; until then it drops what it should send.
fn wait_for_carrier(pod: &mut NetlinkSocket, pair: &Pair) -> Result<(), CniError> {
    let begun = Instant::now();
    let mut pause = Duration::from_micros(50);
    loop {
        match veth::find(pod, &pair.ifname) {
            Ok(Some(found)) if found.carries => return Ok(()),
            Ok(Some(_)) if begun.elapsed() < CARRIER_LIMIT => {}
            Ok(_) => {
                return Err(CniError::new(
                    CniError::KERNEL_REFUSED,
                    format!(
                        "attachment {}: the pod's end does not come up within {CARRIER_LIMIT:?}",
                        pair.link
                    ),
                ));
            }
            Err(e) => return Err(refused(pair, "look at the pod's end", &e)),
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(5));
    }
}

/// Whether both ends of a wired attachment are there still.
pub(super) fn stands(host: &mut NetlinkSocket, pair: &Pair, target: &mut NetlinkSocket) -> bool {
    let carries =
        |found: Option<veth::Found>, mac| found.is_some_and(|f| f.carries && f.mac == Some(mac));
    veth::find(host, &pair.link).is_ok_and(|f| carries(f, pair.host_mac))
        && veth::find(target, &pair.ifname).is_ok_and(|f| carries(f, pair.pod_mac))
}

/// Cuts a pod off; see [`veth::cut_off`].
pub(super) fn cut_off(host: &mut NetlinkSocket, endpoint: &Endpoint) -> Result<(), NetlinkError> {
    veth::cut_off(host, &endpoint.link, &endpoint.addresses)
}

fn refused(pair: &Pair, what: &str, error: &NetlinkError) -> CniError {
    let code = match error.refusal() {
        // The kernel is short of something that may come back.
        Some(Errno::ENOBUFS | Errno::ENOMEM | Errno::EBUSY | Errno::EAGAIN) => {
            CniError::TRY_AGAIN_LATER
        }
        _ => CniError::KERNEL_REFUSED,
    };
    CniError::new(
        code,
        format!(
            "link {} ({}): cannot {what}: {error}",
            pair.link, pair.address
        ),
    )
}
