//! The proof: everybody reaches everybody, whole, unchanged and in the way that the
//! backend is to carry it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::lab::Lab;
use crate::options::Carriage;
use crate::pod::Pod;
use crate::privilege;
use crate::probe::{self, Capture, Echo, Payload, Seen};
use crate::wait::in_parallel;

/// The payload of each TCP exchange, in bytes.
pub const PAYLOAD: usize = 1_000_000;

/// How many pairs are tried at the same time.
const WIDTH: usize = 6;

/// How long a reply may take: the machine may be busy, or emulated.
const PATIENCE: Duration = Duration::from_secs(3);

/// What one check came to: how it failed, if it did.
pub type Verdict = Result<(), String>;

/// What was found between two pods, in one direction.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PodPair {
    /// From where.
    pub from: Pod,
    /// To where.
    pub to: Pod,
    /// An echo.
    pub ping: Verdict,
    /// An echo that fills the pod's MTU exactly and must not be fragmented.
    pub whole: Verdict,
    /// That one byte more is refused.
    pub too_long: Verdict,
    /// A payload there and back, by hash.
    pub tcp: Verdict,
    /// That the server saw the pod's own address.
    pub source: Verdict,
    /// Packets of this direction on the underlay in the backend's way; `None` when both
    /// pods are on one node, and none are due.
    pub on_wire: Option<u64>,
}

/// What was found from a node to a pod.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeToPod {
    /// From which node.
    pub from: String,
    /// To which pod.
    pub to: Pod,
    /// An echo.
    pub ping: Verdict,
    /// A payload there and back, by hash.
    pub tcp: Verdict,
}

/// Everything that was found.
#[derive(Debug, Clone)]
pub struct Matrix {
    /// The MTU of pods, in bytes.
    pub mtu: u32,
    /// Every pod to every other.
    pub pods: Vec<PodPair>,
    /// Every node to every pod.
    pub nodes: Vec<NodeToPod>,
    /// What was on the underlay meanwhile.
    pub seen: Seen,
    /// How pods' packets are to cross the underlay.
    pub carriage: Carriage,
    /// That they crossed it that way, and never in another.
    pub wire: Verdict,
    /// That every agent holds `CAP_NET_ADMIN` and nothing else.
    pub capabilities: Verdict,
}

impl Matrix {
    /// Tries everything in a running lab.
    ///
    /// # Errors
    /// When it cannot be tried; what fails is in the matrix.
    pub fn run(lab: &Lab) -> Result<Self> {
        let pods = lab.pods();
        let nodes = lab.nodes();
        let payload = Payload::random(PAYLOAD);
        let servers = pods
            .iter()
            .map(|pod| pod.serve(&payload))
            .collect::<Result<Vec<_>>>()?;
        let mtus = in_parallel(WIDTH, &pods, Pod::mtu)
            .into_iter()
            .collect::<Result<Vec<u32>>>()?;
        let mtu = mtus.iter().copied().min().unwrap_or_default();
        ensure!(
            mtus.iter().all(|m| *m == mtu),
            "the pods' MTUs differ: {mtus:?}"
        );
        let capture = Capture::start()?;
        let pairs: Vec<(usize, usize)> = (0..pods.len())
            .flat_map(|from| (0..pods.len()).map(move |to| (from, to)))
            .filter(|(from, to)| from != to)
            .collect();
        let found = in_parallel(WIDTH, &pairs, |(from, to)| {
            let server = servers[*to].address();
            pod_pair(&pods[*from], &pods[*to], server, mtu, &payload)
        });
        let downs: Vec<(usize, usize)> = (0..nodes.len())
            .flat_map(|node| (0..pods.len()).map(move |pod| (node, pod)))
            .collect();
        let from_nodes = in_parallel(WIDTH, &downs, |(node, pod)| {
            let (node, server) = (&nodes[*node], servers[*pod].address());
            node_to_pod(node.name(), node.netns(), &pods[*pod], server, &payload)
        });
        let seen = capture.stop()?;
        let carriage = lab.options().carriage();
        let capabilities = verdict(capabilities(lab));
        Ok(Self::of(
            mtu,
            carriage,
            found,
            from_nodes,
            seen,
            capabilities,
        ))
    }

    /// Puts together what was tried, here or elsewhere, while `seen` was on the
    /// underlay.
    pub fn of(
        mtu: u32,
        carriage: Carriage,
        mut pods: Vec<PodPair>,
        nodes: Vec<NodeToPod>,
        seen: Seen,
        capabilities: Verdict,
    ) -> Self {
        for pair in &mut pods {
            pair.on_wire = on_wire(&seen, carriage, &pair.from, &pair.to);
        }
        Self {
            mtu,
            carriage,
            wire: verdict(check_wire(&seen, carriage, &pods)),
            pods,
            nodes,
            seen,
            capabilities,
        }
    }

    /// Pods' packets that crossed the underlay in the backend's way.
    pub fn carried(&self) -> u64 {
        let pods: Vec<IpAddr> = self.pods.iter().map(|pair| pair.to.ip).collect();
        let of_pods = |ip: &Ipv4Addr| pods.contains(&IpAddr::V4(*ip));
        self.seen
            .carried(self.carriage)
            .iter()
            .filter(|((source, destination), _)| of_pods(source) || of_pods(destination))
            .map(|(_, packets)| packets)
            .sum()
    }

    /// Everything that failed, one line each.
    pub fn failures(&self) -> Vec<String> {
        let pods = self.pods.iter().flat_map(|pair| {
            let checks = [
                ("ping", &pair.ping),
                ("ping at the MTU", &pair.whole),
                ("ping beyond the MTU", &pair.too_long),
                ("TCP", &pair.tcp),
                ("source address", &pair.source),
            ];
            let (from, to) = (pair.from.name.clone(), pair.to.name.clone());
            checks
                .into_iter()
                .filter_map(move |(what, verdict)| Some((what, verdict.as_ref().err()?)))
                .map(move |(what, why)| format!("{from} -> {to}: {what}: {why}"))
        });
        let nodes = self.nodes.iter().flat_map(|pair| {
            [("ping", &pair.ping), ("TCP", &pair.tcp)]
                .into_iter()
                .filter_map(|(what, verdict)| Some((what, verdict.as_ref().err()?)))
                .map(|(what, why)| format!("node {} -> {}: {what}: {why}", pair.from, pair.to.name))
        });
        let others = [
            ("underlay", &self.wire),
            ("capabilities", &self.capabilities),
        ]
        .into_iter()
        .filter_map(|(what, verdict)| Some(format!("{what}: {}", verdict.as_ref().err()?)));
        pods.chain(nodes).chain(others).collect()
    }
}

fn verdict(result: Result<()>) -> Verdict {
    result.map_err(|error| format!("{error:#}"))
}

fn patient(echo: Echo) -> Echo {
    Echo {
        wait: PATIENCE,
        ..echo
    }
}

/// Tries a node's own way to a pod: `netns` is the node's namespace, `server`
/// serves `payload` in the pod.
pub fn node_to_pod(
    from: &str,
    netns: &Path,
    to: &Pod,
    server: SocketAddr,
    payload: &Payload,
) -> NodeToPod {
    NodeToPod {
        from: from.to_owned(),
        to: to.clone(),
        ping: verdict(probe::ping(netns, to.ip, patient(Echo::default()))),
        tcp: verdict(probe::transfer(netns, server, payload).map(drop)),
    }
}

/// Tries everything from one pod to another, in whose namespace `server` serves
/// `payload`. What was on the wire is for the caller to fill in.
pub fn pod_pair(from: &Pod, to: &Pod, server: SocketAddr, mtu: u32, payload: &Payload) -> PodPair {
    let ping = from.ping(to.ip, patient(Echo::default()));
    let whole = from.ping(to.ip, patient(Echo::whole(mtu)));
    let beyond = Echo {
        wait: Duration::from_millis(200),
        ..Echo::whole(mtu + 1)
    };
    let too_long = match from.ping(to.ip, beyond) {
        Ok(()) => Err(format!("a packet of {} bytes came through", mtu + 1)),
        Err(_) => Ok(()),
    };
    let transfer = from.transfer(server, payload);
    let source = match &transfer {
        Ok(transfer) if transfer.seen == from.ip => Ok(()),
        Ok(transfer) => Err(format!("the server saw {}, not {}", transfer.seen, from.ip)),
        Err(_) => Err("nothing arrived".to_owned()),
    };
    PodPair {
        from: from.clone(),
        to: to.clone(),
        ping: verdict(ping),
        whole: verdict(whole),
        too_long,
        tcp: verdict(transfer.map(drop)),
        source,
        on_wire: None,
    }
}

/// Packets of one direction; `None` between pods of one node.
fn on_wire(seen: &Seen, carriage: Carriage, from: &Pod, to: &Pod) -> Option<u64> {
    let (IpAddr::V4(source), IpAddr::V4(destination)) = (from.ip, to.ip) else {
        return None;
    };
    (from.node != to.node).then(|| {
        seen.carried(carriage)
            .get(&(source, destination))
            .copied()
            .unwrap_or_default()
    })
}

fn check_wire(seen: &Seen, carriage: Carriage, pairs: &[PodPair]) -> Result<()> {
    if let Some(pair) = pairs.iter().find(|pair| pair.on_wire == Some(0)) {
        anyhow::bail!(
            "no packet from {} to {} was seen ({})",
            pair.from.name,
            pair.to.name,
            carriage.name()
        );
    }
    let is_pod = |ip: &Ipv4Addr| pairs.iter().any(|pair| pair.from.ip == IpAddr::V4(*ip));
    for other in [Carriage::Vxlan, Carriage::Ipip, Carriage::Plain] {
        if other == carriage {
            continue;
        }
        let mut seen = seen.carried(other).keys();
        if let Some((source, destination)) =
            seen.find(|(source, destination)| is_pod(source) || is_pod(destination))
        {
            anyhow::bail!(
                "a packet {source} -> {destination} crossed the underlay {}, not {}",
                other.name(),
                carriage.name()
            );
        }
    }
    Ok(())
}

fn capabilities(lab: &Lab) -> Result<()> {
    for node in lab.nodes() {
        let pid = node
            .agent_pid()
            .with_context(|| format!("agent {} does not run", node.name()))?;
        privilege::holds_only_net_admin(pid).with_context(|| format!("agent {}", node.name()))?;
    }
    Ok(())
}
