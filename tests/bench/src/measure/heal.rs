//! From damage to repair: an operator's hand on each kind of object that is ours,
//! many times, and what damage without end costs.
//!
//! The damage is done with the tools that an operator has; the repair is seen by the
//! kernel's own notifications (`ip monitor`, `bridge monitor`, `nft monitor`), so that
//! looking on costs the agent nothing. The clock runs from before the tool is started.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use viaduct_lab::{Lab, LabOptions, Node, command, eventually, netns};

use super::Setting;
use crate::process;
use crate::row::{Limit, Row, Unit};
use crate::stats::{median, percentile};

/// How often each damage is done over all rounds.
const REPETITIONS: usize = 200;

/// What must hold for the slowest but one in a hundred, in milliseconds.
const LIMIT: f64 = 100.0;

/// When a repair counts as none.
const PATIENCE: Duration = Duration::from_secs(5);

/// Between two damages, so that each meets an agent at rest.
const PAUSE: Duration = Duration::from_millis(30);

/// Damage without end: a hundred times a second, for so long in each round.
const STORM: Duration = Duration::from_secs(3);
const STORM_PACE: Duration = Duration::from_millis(10);

/// A kind of damage, and the line by which its repair is seen.
struct Case {
    name: &'static str,
    program: &'static str,
    damage: String,
    repaired: Box<dyn Fn(&str) -> bool>,
}

/// What of a node the damage is done to.
struct Target {
    block: String,
    next_hop: String,
    overlay: String,
    peer_mac: String,
    peer: String,
    pod: String,
    pod_link: String,
}

pub(super) fn run(setting: Setting) -> Result<Vec<Row>> {
    let lab = Lab::up(LabOptions::default(), setting.control)?;
    let node = lab.node("n1")?;
    let target = Target::of(&node)?;
    let watch = Watch::start(&node)?;
    let mut rows = Vec::new();
    for case in cases(&target) {
        let mut times = Vec::new();
        for _ in 0..REPETITIONS {
            std::thread::sleep(PAUSE);
            times.push(watch.repair(&node, &case)?.as_secs_f64() * 1e3);
        }
        settled(&node)?;
        let note = format!(
            "median {:.1} ms, most {:.1} ms of {REPETITIONS}",
            median(&times),
            percentile(&times, 1.0)
        );
        rows.push(
            Row::alone(
                &format!("{}: damage to repair, p99", case.name),
                Unit::Milliseconds,
                vec![percentile(&times, 0.99)],
            )
            .limited(Limit::AtMost(LIMIT))
            .noted(vec![note]),
        );
    }
    drop(watch);
    const IP: (&str, &[&str]) = ("ip", &["-force", "-batch", "-"]);
    const NFT: (&str, &[&str]) = ("nft", &["-i"]);
    for (name, tool, line) in [
        ("route deleted", IP, format!("route del {}", target.block)),
        ("tunnel set down", IP, "link set via.vx4 down".to_owned()),
        ("tunnel deleted", IP, "link del via.vx4".to_owned()),
        (
            "nft table deleted",
            NFT,
            "delete table inet viaduct".to_owned(),
        ),
    ] {
        let costs = (0..setting.rounds)
            .map(|_| storm(&node, tool, &line))
            .collect::<Result<Vec<_>>>()?;
        rows.push(
            Row::alone(
                &format!("{name} 100 times a second: agent's CPU time"),
                Unit::PercentOfACore,
                costs,
            )
            .limited(Limit::AtMost(10.0)),
        );
        settled(&node)?;
    }
    Ok(rows)
}

impl Target {
    fn of(node: &Node) -> Result<Self> {
        let word = |text: &str, after: &str| -> Result<String> {
            let mut words = text.split_whitespace().skip_while(|word| *word != after);
            let found = words.nth(1).map(str::to_owned);
            found.with_context(|| format!("no {after} in {text}"))
        };
        let route = node.ip("route show proto 87 dev via.vx4")?;
        let block = route.split(' ').next().unwrap_or_default().to_owned();
        let next_hop = word(&route, "via")?;
        let neighbour = node.ip(&format!("neigh show {next_hop} dev via.vx4"))?;
        let peer_mac = word(&neighbour, "lladdr")?;
        let fdb = node.run("bridge", &["fdb", "show", "dev", "via.vx4"])?;
        let entry = fdb
            .lines()
            .find(|line| line.starts_with(&peer_mac))
            .with_context(|| format!("no FDB entry of {peer_mac} in {fdb}"))?;
        let pod = node.pods().first().cloned().context("no pod")?;
        let pod_route = node.ip(&format!("route show {}", pod.ip))?;
        Ok(Self {
            peer: word(entry, "dst")?,
            overlay: word(&node.ip("-4 addr show dev via.vx4")?, "inet")?,
            pod_link: word(&pod_route, "dev")?,
            pod: pod.ip.to_string(),
            block,
            next_hop,
            peer_mac,
        })
    }
}

fn cases(target: &Target) -> Vec<Case> {
    let Target {
        block,
        next_hop,
        overlay,
        peer_mac,
        peer,
        pod,
        pod_link,
    } = target;
    let case = |name, program, damage: String, begins: String, holds: &'static str| Case {
        name,
        program,
        damage,
        repaired: Box::new(move |line| line.starts_with(&begins) && line.contains(holds)),
    };
    let ip = |name, damage: String, begins: String, holds| case(name, "ip", damage, begins, holds);
    // The kernel tells of a setting that a file changed, and only of the link when a
    // message did.
    let setting = |name, link: &str, value: &str| Case {
        name,
        program: "sysctl",
        damage: format!("-qw net/ipv4/conf/{link}/{value}"),
        repaired: {
            let link = link.to_owned();
            Box::new(move |line| line.starts_with("[LINK]") && line.contains(&link))
        },
    };
    // Routes are put back last, when all that they stand on stands.
    let routed = || format!("[ROUTE]{block} via {next_hop} ");
    let known = || format!("[NEIGH]{next_hop} dev via.vx4 lladdr {peer_mac}");
    let mut cases = vec![
        ip(
            "route deleted",
            format!("route del {block}"),
            routed(),
            "proto 87",
        ),
        ip(
            "route changed",
            format!("route replace {block} via {peer} dev eth0 proto 87"),
            routed(),
            "proto 87",
        ),
        ip(
            "neighbour deleted",
            format!("neigh del {next_hop} dev via.vx4"),
            known(),
            "PERMANENT",
        ),
        ip(
            "neighbour changed",
            format!("neigh replace {next_hop} lladdr 02:00:00:00:00:01 dev via.vx4 nud permanent"),
            known(),
            "PERMANENT",
        ),
        case(
            "FDB entry deleted",
            "bridge",
            format!("fdb del {peer_mac} dev via.vx4 dst {peer} self"),
            format!("{peer_mac} dev via.vx4 dst {peer}"),
            "permanent",
        ),
        case(
            "FDB entry changed",
            "bridge",
            format!("fdb replace {peer_mac} dev via.vx4 dst 172.29.0.99 self permanent"),
            format!("{peer_mac} dev via.vx4 dst {peer}"),
            "permanent",
        ),
        ip(
            "tunnel deleted",
            "link del via.vx4".to_owned(),
            routed(),
            "proto 87",
        ),
        ip(
            "tunnel set down",
            "link set via.vx4 down".to_owned(),
            routed(),
            "proto 87",
        ),
        ip(
            "tunnel's MAC changed",
            "link set via.vx4 address 02:00:00:00:00:02".to_owned(),
            known(),
            "PERMANENT",
        ),
        ip(
            "tunnel's address deleted",
            format!("addr del {overlay} dev via.vx4"),
            routed(),
            "proto 87",
        ),
        Case {
            name: "tunnel's MTU changed",
            program: "ip",
            damage: "link set via.vx4 mtu 1400".to_owned(),
            repaired: Box::new(|line| line.contains("via.vx4: <") && line.contains("mtu 1450")),
        },
        setting("sysctl changed", "via.vx4", "forwarding=0"),
        setting("source check switched off", pod_link, "rp_filter=0"),
        ip(
            "pod's route deleted",
            format!("route del {pod}"),
            format!("[ROUTE]{pod} dev {pod_link}"),
            "proto 87",
        ),
        ip(
            "pod's neighbour deleted",
            format!("neigh del {pod} dev {pod_link}"),
            format!("[NEIGH]{pod} dev {pod_link} lladdr"),
            "PERMANENT",
        ),
    ];
    for (name, damage) in [
        ("nft table deleted", "delete table inet viaduct"),
        ("nft ruleset flushed", "flush ruleset"),
    ] {
        let begins = "add table inet viaduct".to_owned();
        cases.push(case(name, "nft", damage.to_owned(), begins, ""));
    }
    cases
}

/// What the kernel tells, as lines.
struct Watch {
    monitors: Vec<Child>,
    lines: Receiver<(Instant, String)>,
}

impl Watch {
    fn start(node: &Node) -> Result<Self> {
        let (sender, lines) = channel();
        let mut watch = Self {
            monitors: Vec::new(),
            lines,
        };
        for (program, args) in [
            ("ip", ["monitor", "all"]),
            ("bridge", ["monitor", "fdb"]),
            ("nft", ["monitor", "tables"]),
        ] {
            let mut command = command::command(program);
            command
                .args(args)
                .stdout(Stdio::piped())
                .stderr(Stdio::null());
            let mut child = netns::within(node.netns(), move || Ok(command.spawn()?))?;
            let output = child.stdout.take().context("no pipe")?;
            let sender = sender.clone();
            std::thread::spawn(move || read(BufReader::new(output), &sender));
            watch.monitors.push(child);
        }
        // They say nothing when they are ready.
        std::thread::sleep(Duration::from_millis(500));
        Ok(watch)
    }

    /// Does the damage once and says how long it took until it was repaired.
    fn repair(&self, node: &Node, case: &Case) -> Result<Duration> {
        while self.lines.try_recv().is_ok() {}
        let begun = Instant::now();
        let args: Vec<&str> = case.damage.split(' ').collect();
        node.run(case.program, &args)?;
        loop {
            let left = PATIENCE.saturating_sub(begun.elapsed());
            match self.lines.recv_timeout(left) {
                Ok((at, line)) if (case.repaired)(&line) => return Ok(at.duration_since(begun)),
                Ok(_) => {}
                Err(_) => bail!("{} was not repaired within {PATIENCE:?}", case.name),
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        for monitor in &mut self.monitors {
            let _ = monitor.kill();
            let _ = monitor.wait();
        }
    }
}

fn read(output: impl BufRead, sender: &Sender<(Instant, String)>) {
    for line in output.lines().map_while(Result::ok) {
        if sender.send((Instant::now(), line)).is_err() {
            return;
        }
    }
}

/// Waits until the agent says that all is as it should be.
fn settled(node: &Node) -> Result<()> {
    eventually(PATIENCE, || {
        let ready = node.readyz()?;
        ensure!(ready.status == 200, "{ready:?}");
        Ok(())
    })
}

/// Does a damage a hundred times a second; the CPU time of the agent and of what it starts
/// meanwhile, in percent of a core.
fn storm(node: &Node, (program, args): (&'static str, &[&str]), line: &str) -> Result<f64> {
    let pid = node.agent_pid().context("the agent has ended")?;
    let mut command = command::command(program);
    // What is broken still cannot be broken again: that is no failure.
    command
        .args(args)
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .stdout(Stdio::null());
    let mut tool = netns::within(node.netns(), move || Ok(command.spawn()?))?;
    let mut input = tool.stdin.take().context("no pipe")?;
    let spent =
        || -> Result<Duration> { Ok(process::cpu_time(pid)? + process::childrens_cpu_time(pid)?) };
    let (begun, before) = (Instant::now(), spent()?);
    while begun.elapsed() < STORM {
        writeln!(input, "{line}")?;
        std::thread::sleep(STORM_PACE);
    }
    let cost = spent()?.saturating_sub(before);
    let took = begun.elapsed();
    drop(input);
    tool.wait()?;
    Ok(cost.as_secs_f64() / took.as_secs_f64() * 100.0)
}
