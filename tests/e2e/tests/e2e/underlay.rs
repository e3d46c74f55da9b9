//! What happens to the underlay is followed: its address, its device, its MTU.

use std::collections::BTreeMap;
use std::process::{Child, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use viaduct_e2e::{backends_of_the_kernel, eventually, everybody_pings, viaductctl};
use viaduct_lab::environment::scaled;
use viaduct_lab::{Backend, Echo, Lab, LabOptions, Node, Pod, command, in_lab, netns, underlay};

/// The blocks and whose they are.
fn blocks(lab: &Lab) -> Result<BTreeMap<String, String>> {
    let text = viaductctl(lab, &["blocks", "-o", "json"])?.worked()?;
    let value: Value = serde_json::from_str(&text)?;
    let of = |block: &Value, key: &str| block[key].as_str().unwrap_or_default().to_owned();
    let all = value.as_array().context("no list of blocks")?;
    Ok(all
        .iter()
        .map(|block| (of(block, "cidr"), of(block, "node")))
        .collect())
}

/// A shell in the node.
fn sh(node: &Node, script: &str) -> Result<()> {
    node.run("sh", &["-ec", script]).map(drop)
}

/// Waits for an echo both ways, and says how long that took since `begun`.
fn traffic_after(what: &str, begun: Instant, pods: &[Pod]) -> Result<()> {
    let echo = Echo {
        wait: Duration::from_millis(100),
        ..Echo::default()
    };
    eventually(|| {
        pods[0].ping(pods[1].ip, echo)?;
        pods[1].ping(pods[0].ip, echo)
    })
    .with_context(|| format!("after {what}"))?;
    println!("{what}: {} ms until traffic", begun.elapsed().as_millis());
    Ok(())
}

fn ready(node: &Node) -> Result<()> {
    eventually(|| {
        let ready = node.readyz()?;
        ensure!(ready.body.trim() == "ok", "{ready:?}");
        Ok(())
    })
}

/// Waits until `node`, which sends nothing, has been told of the MAC that `other` has now.
fn knows_the_mac(node: &Node, other: &Node, address: &str) -> Result<()> {
    let link = other.run("ip", &["-o", "link", "show", "dev", "eth0"])?;
    let mut words = link.split_whitespace();
    words.find(|word| *word == "link/ether");
    let mac = words.next().with_context(|| link.clone())?;
    eventually(|| {
        let known = node.run("ip", &["neigh", "show", address, "dev", "eth0"])?;
        ensure!(known.contains(mac), "{mac} now, and known is: {known}");
        Ok(())
    })
}

fn follows(lab: &Lab) -> Result<()> {
    let (n1, n2) = (lab.node("n1")?, lab.node("n2")?);
    let pods = lab.pods();
    let (before, agent) = (blocks(lab)?, n2.agent_pid());
    let default = "ip route replace default via 172.29.0.1 dev eth0";

    let begun = Instant::now();
    sh(
        &n2,
        &format!("ip addr flush dev eth0; ip addr add 172.29.0.99/24 dev eth0; {default}"),
    )?;
    traffic_after("another address", begun, &pods)?;
    let shown = viaductctl(lab, &["nodes"])?.worked()?;
    ensure!(shown.contains("172.29.0.99"), "{shown}");
    ready(&n2)?;

    sh(&n2, "ip link set eth0 down")?;
    eventually(|| {
        let ready = n2.readyz()?;
        ensure!(
            ready
                .body
                .contains("the underlay stays 172.29.0.99 on eth0"),
            "{ready:?}"
        );
        Ok(())
    })?;
    let begun = Instant::now();
    sh(&n2, &format!("ip link set eth0 up; {default}"))?;
    traffic_after("down and up", begun, &pods)?;
    ready(&n2)?;

    sh(&n2, "ip link del eth0")?;
    eventually(|| {
        let ready = n2.readyz()?;
        ensure!(ready.body.starts_with("not ready"), "{ready:?}");
        Ok(())
    })?;
    let begun = Instant::now();
    underlay::attach("n2", "n2", "172.29.0.99".parse()?)?;
    knows_the_mac(&n1, &n2, "172.29.0.99")?;
    traffic_after("deleted and back with another MAC", begun, &pods)?;
    ready(&n2)?;
    ready(&n1)?;

    ensure!(
        blocks(lab)? == before,
        "blocks moved: {before:?}, {:?}",
        blocks(lab)?
    );
    ensure!(n2.agent_pid() == agent, "the agent was started anew");
    everybody_pings(&pods)
}

#[test]
fn a_node_keeps_its_blocks_while_its_underlay_changes_goes_down_and_comes_back() {
    in_lab(LabOptions::default(), |lab| {
        follows(lab)?;
        Ok(())
    });
}

#[test]
fn a_host_gw_node_keeps_its_blocks_while_its_underlay_changes_goes_down_and_comes_back() {
    let options = LabOptions {
        backend: Backend::HostGw,
        ..LabOptions::default()
    };
    in_lab(options, |lab| {
        follows(lab)?;
        Ok(())
    });
}

/// A TCP stream of 100 Mbit/s, which must carry in every second until its end.
struct Stream {
    server: Child,
    client: JoinHandle<Result<String>>,
}

/// How long a stream runs, in seconds.
const SECONDS: u64 = 6;

impl Stream {
    fn start(from: &Pod, to: &Pod) -> Result<Self> {
        // Packets of the size that a wire sees: a virtual one lets larger ones pass,
        // which the kernel would cut up only where they leave for a real one.
        from.exec("ethtool", &["-K", "eth0", "tso", "off", "gso", "off"])?;
        let mut serve = command::command("iperf3");
        serve.args(["-s", "-1"]).stdout(Stdio::null());
        let server = netns::within(&to.netns, || Ok(serve.spawn()?))?;
        let listening = || {
            let sockets = to.exec("ss", &["-tlnH"])?;
            ensure!(sockets.contains(":5201"), "iperf3 does not listen yet");
            Ok(())
        };
        eventually(listening)?;
        let (from, to) = (from.clone(), to.ip.to_string());
        let seconds = SECONDS.to_string();
        let client = std::thread::spawn(move || {
            from.exec("iperf3", &["-c", &to, "-t", &seconds, "-b", "100M", "-J"])
        });
        Ok(Self { server, client })
    }

    /// The seconds of the stream in which nothing was carried; in the end something
    /// must be, where it is to live.
    fn stalls(mut self, lives: bool) -> Result<usize> {
        let text = self
            .client
            .join()
            .map_err(|_| anyhow::anyhow!("the client panicked"))??;
        self.server.wait()?;
        let report: Value = serde_json::from_str(&text)?;
        let seconds = report["intervals"].as_array().context("no intervals")?;
        let bytes = |second: &Value| second["sum"]["bytes"].as_u64().unwrap_or_default();
        // How fast an emulated machine is says nothing; it is dead when nothing moves.
        let second = Duration::from_secs(1);
        let alive = if scaled(second) > second {
            0
        } else {
            1_000_000
        };
        ensure!(
            !lives || seconds.last().map(bytes) > Some(alive),
            "dead in the end: {text}"
        );
        Ok(seconds.iter().filter(|second| bytes(second) == 0).count())
    }
}

#[test]
fn a_changed_mtu_is_followed_and_running_transfers_survive_it_both_ways() {
    in_lab(LabOptions::default(), |lab| {
        let (n1, n2) = (lab.node("n1")?, lab.node("n2")?);
        let pods = lab.pods();
        let backend = lab.options().backend;
        let (small, large) = (1400 - backend.overhead(), 1500 - backend.overhead());
        let tunnel = |node: &Node, mtu: u32| {
            eventually(|| {
                if let Some(tunnel) = backend.tunnel() {
                    let link = node.ip(&format!("-o link show {tunnel}"))?;
                    ensure!(link.contains(&format!("mtu {mtu} ")), "not {mtu}: {link}");
                }
                ensure!(node.readyz()?.body.trim() == "ok", "{:?}", node.readyz()?);
                Ok(())
            })
        };
        let streams = [
            Stream::start(&pods[0], &pods[1])?,
            Stream::start(&pods[1], &pods[0])?,
        ];
        std::thread::sleep(Duration::from_secs(1));
        // Only one node's own network shrinks: its peer must know it from its record.
        n1.ip("link set eth0 mtu 1400")?;
        tunnel(&n1, small)?;
        tunnel(&n2, large)?;
        eventually(|| {
            let routes = n2.ip("route show proto 87")?;
            ensure!(routes.contains(&format!("mtu {small}")), "{routes}");
            Ok(())
        })?;
        let new = n1.add_pod("small")?;
        ensure!(new.mtu()? == small, "a new pod has {}", new.mtu()?);
        new.ping(pods[1].ip, Echo::whole(small))?;
        pods[1].ping(new.ip, Echo::default())?;
        std::thread::sleep(Duration::from_secs(2));
        n1.ip("link set eth0 mtu 1500")?;
        tunnel(&n1, large)?;
        eventually(|| {
            let routes = n2.ip("route show proto 87")?;
            ensure!(!routes.contains("mtu"), "{routes}");
            Ok(())
        })?;
        let new = n1.add_pod("large")?;
        ensure!(new.mtu()? == large, "a new pod has {}", new.mtu()?);
        new.ping(pods[1].ip, Echo::whole(large))?;
        for (stream, way) in streams.into_iter().zip(["out of", "into"]) {
            let stalls = stream.stalls(true)?;
            println!(
                "TCP {way} the node whose MTU changed: {stalls} of {SECONDS} s without a byte"
            );
            ensure!(stalls < 2, "{stalls} seconds {way}");
        }
        Ok(())
    });
}

#[test]
fn without_agents_a_network_that_shrinks_stalls_a_transfer_into_it() {
    in_lab(LabOptions::default(), |lab| {
        let n1 = lab.node("n1")?;
        let pods = lab.pods();
        for node in lab.nodes() {
            node.agent().signal(viaduct_lab::Signal::SIGSTOP)?;
        }
        let stream = Stream::start(&pods[1], &pods[0])?;
        std::thread::sleep(Duration::from_secs(1));
        n1.ip("link set eth0 mtu 1400")?;
        std::thread::sleep(Duration::from_millis(3500));
        n1.ip("link set eth0 mtu 1500")?;
        let stalls = stream.stalls(false)?;
        for node in lab.nodes() {
            node.agent().signal(viaduct_lab::Signal::SIGCONT)?;
        }
        ensure!(stalls >= 2, "{stalls} seconds: the test above cannot fail");
        Ok(())
    });
}

#[test]
fn an_mtu_that_cannot_work_is_refused_with_the_number_that_can() {
    in_lab(
        LabOptions {
            nodes: 0,
            ..LabOptions::default()
        },
        |lab| {
            let node = lab.new_node()?;
            for backend in backends_of_the_kernel() {
                let (backend, fits) = (backend.name(), 1500 - backend.overhead());
                let asked = (fits + 1).to_string();
                let mut args = node.agent().args();
                let at = args
                    .iter()
                    .position(|a| a == "--backend")
                    .context("no --backend")?;
                args[at + 1] = backend.to_owned();
                args.extend(["--mtu".to_owned(), asked.clone()]);
                let args: Vec<&str> = args.iter().map(String::as_str).collect();
                let program = viaduct_lab::binaries::program("viaduct-agent");
                let mut agent = command::command("timeout");
                let limit = scaled(Duration::from_secs(10)).as_secs().to_string();
                agent.arg(limit).arg(program).args(&args);
                let output = netns::within(node.netns(), || Ok(agent.output()?))?;
                let said = String::from_utf8_lossy(&output.stderr);
                ensure!(
                    output.status.code() == Some(2),
                    "{:?}: {said}",
                    output.status
                );
                let told = format!("at most {fits}");
                ensure!(
                    said.contains("--mtu") && said.contains(&asked) && said.contains(&told),
                    "{said}"
                );
            }
            Ok(())
        },
    );
}
