//! Pod to pod over two nodes, beside a VXLAN made by hand with routed pods on two
//! nodes of the same kind on the same underlay.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use viaduct_lab::{Echo, Lab, LabOptions, netns, probe};

use super::Setting;
use crate::icmp::Pinger;
use crate::reference::vxlan;
use crate::row::{Limit, Row, Unit};
use crate::stats::median;

/// How often both sides have their turn within a round. Short turns, many of
/// them: what disturbs the machine lasts seconds.
const TURNS: usize = 4;
const STREAM_SECONDS: &str = "2";
const ECHOES: u16 = 4000;

/// From one pod to another on another node.
#[derive(Debug)]
struct Route {
    name: &'static str,
    from: PathBuf,
    to: PathBuf,
    ip: Ipv4Addr,
}

pub(super) fn run(setting: Setting) -> Result<Vec<Row>> {
    let lab = Lab::up(LabOptions::default(), setting.control)?;
    let pods = lab.pods();
    let [from, to] = &pods[..] else {
        bail!("{} pods instead of two", pods.len());
    };
    let IpAddr::V4(ip) = to.ip else {
        bail!("{} has the address {}", to.name, to.ip);
    };
    let ours = Route {
        name: "Viaduct",
        from: from.netns.clone(),
        to: to.netns.clone(),
        ip,
    };
    let nodes = [lab.new_node()?, lab.new_node()?];
    let pods = vxlan::two_nodes([&nodes[0], &nodes[1]])?;
    let theirs = Route {
        name: "by hand",
        from: pods[0].netns.clone(),
        to: pods[1].netns.clone(),
        ip: pods[1].ip,
    };
    for route in [&ours, &theirs] {
        probe::ping(&route.from, route.ip.into(), Echo::whole(1450))
            .with_context(|| format!("{}: a packet of 1450 bytes", route.name))?;
        stream(route)?;
    }
    let mut streams = [Vec::new(), Vec::new()];
    let mut pings = [Vec::new(), Vec::new()];
    for _ in 0..setting.rounds {
        let turns = take_turns([&ours, &theirs], stream)?;
        push_best(&mut streams, &turns, f64::max);
        let turns = take_turns([&ours, &theirs], round_trip)?;
        push_best(&mut pings, &turns, f64::min);
    }
    let [our_streams, their_streams] = streams;
    let [our_pings, their_pings] = pings;
    let row = |measure: &str, unit, ours, theirs| {
        Row::alone(measure, unit, ours).beside("VXLAN by hand, routed pods", theirs)
    };
    Ok(vec![
        row(
            "pod to pod, one TCP stream",
            Unit::GigabitsPerSecond,
            our_streams,
            their_streams,
        )
        .limited(Limit::RatioAtLeast(0.95))
        .noted(vec![format!(
            "the best of {TURNS} turns of {STREAM_SECONDS} s of each side in each round"
        )]),
        // At least 0.95 of the echoes in the same time.
        row(
            "pod to pod, echo round trip",
            Unit::Microseconds,
            our_pings,
            their_pings,
        )
        .limited(Limit::RatioAtMost(1.0 / 0.95)),
    ])
}

/// Both sides' numbers, in turn, who begins alternating.
fn take_turns(
    routes: [&Route; 2],
    measure: impl Fn(&Route) -> Result<f64>,
) -> Result<[Vec<f64>; 2]> {
    let mut numbers = [Vec::new(), Vec::new()];
    for turn in 0..TURNS {
        for side in [turn % 2, 1 - turn % 2] {
            let number = measure(routes[side])
                .with_context(|| format!("{} to {}", routes[side].name, routes[side].ip))?;
            numbers[side].push(number);
        }
    }
    Ok(numbers)
}

/// The best turn of each side stands for the round: what else runs on the machine
/// only ever takes from a stream, and it takes at random.
fn push_best(all: &mut [Vec<f64>; 2], turns: &[Vec<f64>; 2], better: fn(f64, f64) -> f64) {
    for (all, turns) in all.iter_mut().zip(turns) {
        all.extend(turns.iter().copied().reduce(better));
    }
}

/// The median round trip in microseconds.
fn round_trip(route: &Route) -> Result<f64> {
    let times = Pinger::open(&route.from, 0x5642)?.round_trips(route.ip, ECHOES)?;
    let times: Vec<f64> = times.iter().map(|t| t.as_secs_f64() * 1e6).collect();
    Ok(median(&times))
}

/// What one TCP stream brings over, in Gbit/s as the receiver counts it. Sender and
/// receiver stay on a CPU each, so that both sides are dealt the same.
fn stream(route: &Route) -> Result<f64> {
    let server = Server::start(&route.to, route.ip)?;
    let mut client = Command::new("iperf3");
    client
        .args(["-c", &route.ip.to_string(), "-t", STREAM_SECONDS, "-J"])
        .args(affinity());
    let text = netns::run(&route.from, client)?;
    drop(server);
    let report: Value = serde_json::from_str(&text).context("iperf3's report")?;
    report["end"]["sum_received"]["bits_per_second"]
        .as_f64()
        .map(|bits| bits / 1e9)
        .with_context(|| format!("iperf3 reports no stream: {text}"))
}

/// The client on CPU 0, its server on CPU 1, where there are two.
fn affinity() -> &'static [&'static str] {
    if std::thread::available_parallelism().map_or(1, usize::from) > 1 {
        &["-A", "0,1"]
    } else {
        &[]
    }
}

/// An iperf3 server for one client.
#[derive(Debug)]
struct Server(Child);

impl Server {
    fn start(path: &Path, ip: Ipv4Addr) -> Result<Self> {
        let mut command = Command::new("iperf3");
        command
            .args(["-s", "-1", "--forceflush", "-B", &ip.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = netns::within(path, move || command.spawn().context("iperf3 -s"))?;
        // It says that it listens.
        let mut said = Vec::new();
        let mut buffer = [0; 512];
        let stdout = child.stdout.as_mut().context("iperf3's output")?;
        while !String::from_utf8_lossy(&said).contains("listening") {
            match stdout.read(&mut buffer)? {
                0 => bail!("iperf3 -s ended at once"),
                length => said.extend_from_slice(&buffer[..length]),
            }
        }
        std::thread::sleep(Duration::from_millis(20));
        Ok(Self(child))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
