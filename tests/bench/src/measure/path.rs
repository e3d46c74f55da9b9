//! Pod to pod over two nodes: one TCP stream, eight, and the round trip of an echo,
//! with Viaduct, beside the same tunnel or route made by hand, and beside what the
//! nodes themselves reach between each other.
//!
//! The two sides have everything in common but whose work they are: nodes of the same
//! kind on the same bridge, pods with the same kind of veth, MTU, addresses, permanent
//! neighbours and offloads ([`alike`] asserts what can be asked for), the same program
//! with its threads on the same CPUs. How they are compared is [`Turns`]' rule; both
//! have their turns in each of the rounds.
//!
//! Viaduct masquerades what pods send to the outside unless told otherwise, and that
//! makes the kernel track connections, whoever programs it. So there are two contests:
//! without masquerading on either side, and with it on both.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use viaduct_lab::{Backend, Echo, Lab, LabOptions, Node, binaries, command, netns, node, probe};

use super::Setting;
use crate::icmp::Pinger;
use crate::reference::network::{ByHand, Way};
use crate::row::{Limit, Row, Unit};
use crate::stats::median;
use crate::streams;
use crate::turns::Turns;

/// How much of the hand-made path's throughput there must be, and of its round trips
/// in the same time.
const SHARE: f64 = 0.97;

/// How long a stream's turn counts.
const STREAM: Duration = Duration::from_millis(500);
/// The stream's turns of each side in each round.
const STREAM_TURNS: usize = 12;
/// How long a turn of eight streams counts. Sixteen threads share two CPUs, and in half
/// a second some of them have hardly had theirs.
const EIGHT: Duration = Duration::from_secs(1);
/// The turns of eight streams.
const EIGHT_TURNS: usize = 8;
/// Echoes of a turn, one after the other.
const ECHOES: u16 = 500;
/// The echoes' turns of each side in each round.
const ECHO_TURNS: usize = 60;

/// The flag that says whether pods are masqueraded, and the one that says no.
const MASQUERADE: &str = "--masquerade";

/// Over VXLAN.
pub(super) fn vxlan(setting: Setting) -> Result<Vec<Row>> {
    run(setting, Backend::Vxlan, Way::Vxlan)
}

/// Over plain routes.
pub(super) fn host_gw(setting: Setting) -> Result<Vec<Row>> {
    run(setting, Backend::HostGw, Way::Routes)
}

/// From one namespace to an address in another, two nodes apart.
#[derive(Debug)]
struct Side {
    name: &'static str,
    from: PathBuf,
    to: PathBuf,
    ip: Ipv4Addr,
    /// The sender's node, for its devices.
    node: PathBuf,
}

/// Viaduct's side and another, and whether that is one of which a share is due.
struct Contest<'a> {
    what: &'static str,
    ours: &'a Side,
    theirs: &'a Side,
    limited: bool,
}

fn run(setting: Setting, backend: Backend, way: Way) -> Result<Vec<Row>> {
    let options = LabOptions {
        nodes: 0,
        pods: 0,
        backend,
        ..LabOptions::default()
    };
    let lab = Lab::up(options, setting.control)?;
    let by_hand = |masquerade, number| ByHand {
        way,
        masquerade,
        number,
    };
    let masquerades = agent_knows(MASQUERADE)?;
    let off: &[&str] = if masquerades {
        &["--masquerade=false"]
    } else {
        &[]
    };
    let ours = viaduct(&lab, "Viaduct", off)?;
    let (theirs, nodes) = made_by_hand(&lab, "by hand", by_hand(false, 97))?;
    let plain = Side {
        name: "node to node",
        from: nodes[0].netns().to_owned(),
        to: nodes[1].netns().to_owned(),
        ip: nodes[1].address(),
        node: nodes[0].netns().to_owned(),
    };
    let mut contests = vec![
        Contest {
            what: "",
            ours: &ours,
            theirs: &theirs,
            limited: true,
        },
        Contest {
            what: "",
            ours: &ours,
            theirs: &plain,
            limited: false,
        },
    ];
    let masquerading = if masquerades {
        Some((
            viaduct(&lab, "Viaduct, masquerading", &[])?,
            made_by_hand(&lab, "by hand, masquerading", by_hand(true, 98))?.0,
        ))
    } else {
        None
    };
    if let Some((ours, theirs)) = &masquerading {
        let contest = Contest {
            what: ", masquerading",
            ours,
            theirs,
            limited: true,
        };
        contests.insert(1, contest);
    }
    for contest in &contests {
        for side in [contest.ours, contest.theirs] {
            let echo = Echo::whole(way.mtu());
            probe::ping(&side.from, side.ip.into(), echo)
                .with_context(|| format!("{}: a packet of {} bytes", side.name, way.mtu()))?;
        }
        if contest.limited {
            alike(contest.ours, contest.theirs)?;
        }
    }
    measure(&contests, backend, setting.rounds)
}

fn measure(contests: &[Contest<'_>], backend: Backend, rounds: usize) -> Result<Vec<Row>> {
    let mut all = vec![<[Turns; 3]>::default(); contests.len()];
    for contest in contests {
        // Only so that no side's first turn is its first packet.
        for side in [contest.ours, contest.theirs] {
            side.stream(1)?;
            side.echo()?;
        }
    }
    for _ in 0..rounds {
        for (contest, [one, eight, echo]) in contests.iter().zip(&mut all) {
            let Contest { ours, theirs, .. } = contest;
            // What is only reported needs no fine ratio.
            let part = if contest.limited { 1 } else { 3 };
            one.take(STREAM_TURNS / part, || ours.stream(1), || theirs.stream(1))?;
            eight.take(EIGHT_TURNS / part, || ours.stream(8), || theirs.stream(8))?;
            echo.take(ECHO_TURNS / part, || ours.echo(), || theirs.echo())?;
        }
    }
    let rows = contests.iter().zip(all).flat_map(|(contest, turns)| {
        let [one, eight, echo] = turns;
        let row = |measure: &str, unit, turns: Turns, limit| {
            let what = format!("pod to pod, {}{}: {measure}", backend.name(), contest.what);
            let row = Row::alone(&what, unit, turns.ours).beside(contest.theirs.name, turns.theirs);
            if contest.limited {
                row.limited(limit)
            } else {
                row
            }
        };
        let (least, most) = (Limit::RatioAtLeast(SHARE), Limit::RatioAtMost(1.0 / SHARE));
        let gigabits = Unit::GigabitsPerSecond;
        [
            row("one TCP stream", gigabits, one, least),
            row("8 TCP streams", gigabits, eight, least),
            row("echo round trip", Unit::Microseconds, echo, most),
        ]
    });
    Ok(rows.collect())
}

impl Side {
    fn stream(&self, count: usize) -> Result<f64> {
        let time = if count == 1 { STREAM } else { EIGHT };
        streams::gigabits(&self.from, &self.to, self.ip, count, time)
            .with_context(|| format!("{}: {count} streams", self.name))
    }

    /// The median round trip in microseconds.
    fn echo(&self) -> Result<f64> {
        let times = std::thread::scope(|scope| {
            let echoes = scope.spawn(|| {
                streams::pin(0)?;
                Pinger::open(&self.from, 0x5642)?.round_trips(self.ip, ECHOES)
            });
            echoes
                .join()
                .unwrap_or_else(|_| Err(anyhow::anyhow!("the echoes' thread panicked")))
        })
        .with_context(|| format!("{}: echoes", self.name))?;
        let times: Vec<f64> = times.iter().map(|t| t.as_secs_f64() * 1e6).collect();
        Ok(median(&times))
    }

    /// What the kernel says of the devices that a packet leaves by: the pod's own, its
    /// other end, and the one that the node sends it on by.
    fn devices(&self) -> Result<Vec<String>> {
        let node = |to: &str| -> Result<String> {
            let route = ip(&self.node, &format!("route get {to}"))?;
            let mut words = route.split(' ').skip_while(|word| *word != "dev");
            let link = words.nth(1).context("a route without a device")?;
            features(&self.node, link)
        };
        let own = ip(&self.from, "-o -4 addr show dev eth0")?;
        let own = own.split_whitespace().nth(3).unwrap_or_default();
        let own = own.split('/').next().unwrap_or_default();
        Ok(vec![
            features(&self.from, "eth0")?,
            node(own)?,
            node(&self.ip.to_string())?,
        ])
    }
}

/// Asserts that both sides' devices have the same MTU, queues and offloads.
fn alike(ours: &Side, theirs: &Side) -> Result<()> {
    for (ours, theirs) in ours.devices()?.iter().zip(theirs.devices()?) {
        ensure!(
            *ours == theirs,
            "the sides' devices differ in more than their names:\n{ours}\nand\n{theirs}"
        );
    }
    Ok(())
}

fn ip(netns: &Path, args: &str) -> Result<String> {
    let mut command = command::command("ip");
    command.args(args.split(' '));
    netns::run(netns, command)
}

/// A link's MTU, queues and offloads.
fn features(netns: &Path, link: &str) -> Result<String> {
    let mut ethtool = command::command("ethtool");
    ethtool.args(["-k", link]);
    let offloads = netns::run(netns, ethtool)?;
    let (_, offloads) = offloads.split_once('\n').unwrap_or_default();
    let shown = ip(netns, &format!("-o -d link show dev {link}"))?;
    let mut words = shown.split_whitespace();
    let mut kept = String::new();
    while let Some(word) = words.next() {
        if [
            "mtu",
            "qdisc",
            "qlen",
            "numtxqueues",
            "gso_max_size",
            "gro_max_size",
        ]
        .contains(&word)
        {
            kept.push_str(&format!("{word} {}\n", words.next().unwrap_or_default()));
        }
    }
    Ok(kept + offloads)
}

/// Two nodes with an agent and a pod each.
fn viaduct(lab: &Lab, name: &'static str, flags: &[&str]) -> Result<Side> {
    let nodes = [lab.new_node()?, lab.new_node()?];
    for node in &nodes {
        let mut args = node.agent().args();
        args.extend(flags.iter().map(|flag| (*flag).to_owned()));
        node.agent().set_args(args);
        node.start_agent()?;
    }
    // Also with those that were there before: all know of each other then.
    for node in &nodes {
        node.await_ready(node::READY_TIMEOUT)?;
    }
    let pods = [nodes[0].add_pod("path")?, nodes[1].add_pod("path")?];
    let IpAddr::V4(ip) = pods[1].ip else {
        anyhow::bail!("{} has the address {}", pods[1].name, pods[1].ip);
    };
    Ok(Side {
        name,
        from: pods[0].netns.clone(),
        to: pods[1].netns.clone(),
        ip,
        node: nodes[0].netns().to_owned(),
    })
}

fn made_by_hand(lab: &Lab, name: &'static str, plan: ByHand) -> Result<(Side, [Arc<Node>; 2])> {
    let nodes = [lab.new_node()?, lab.new_node()?];
    let pods = plan.lay([&nodes[0], &nodes[1]])?;
    let side = Side {
        name,
        from: pods[0].netns.clone(),
        to: pods[1].netns.clone(),
        ip: pods[1].ip,
        node: nodes[0].netns().to_owned(),
    };
    Ok((side, nodes))
}

/// Whether the agent under test has a flag.
fn agent_knows(flag: &str) -> Result<bool> {
    let program = binaries::program("viaduct-agent");
    let help = command::run(&program.display().to_string(), ["--help"])?;
    Ok(help.contains(flag))
}
