//! From a change of a node's underlay until its pods are reached again: another
//! address, a link that was down, a link that was deleted and is back.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use viaduct_lab::{Lab, LabOptions, Node, Pod, eventually, underlay};

use super::Setting;
use crate::icmp::Pinger;
use crate::row::{Row, Unit};

/// An address of the underlay that no node has.
const ELSEWHERE: &str = "172.29.0.251";

/// Between two echoes.
const PACE: Duration = Duration::from_millis(2);

/// When there is no way back any more.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a link stays away.
const AWAY: Duration = Duration::from_millis(500);

pub(super) fn run(setting: Setting) -> Result<Vec<Row>> {
    let lab = Lab::up(LabOptions::default(), setting.control)?;
    let node = lab.node("n2")?;
    let pods = lab.pods();
    let own = node.address().to_string();
    let (mut moved, mut up, mut back) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..setting.rounds {
        let (from, to) = if round % 2 == 0 {
            (own.as_str(), ELSEWHERE)
        } else {
            (ELSEWHERE, own.as_str())
        };
        moved.push(until_traffic(&pods, || {
            sh(
                &node,
                &format!(
                    "ip addr del {from}/24 dev eth0; ip addr add {to}/24 dev eth0; \
                     ip route replace default via {} dev eth0",
                    underlay::BRIDGE_ADDRESS
                ),
            )
        })?);
        settled(&lab)?;
        node.ip("link set eth0 down")?;
        std::thread::sleep(AWAY);
        up.push(until_traffic(&pods, || {
            sh(
                &node,
                &format!(
                    "ip link set eth0 up; ip route replace default via {} dev eth0",
                    underlay::BRIDGE_ADDRESS
                ),
            )
        })?);
        settled(&lab)?;
        node.ip("link del eth0")?;
        std::thread::sleep(AWAY);
        let address = to.parse()?;
        back.push(until_traffic(&pods, || {
            underlay::attach(node.name(), node.name(), address)
        })?);
        settled(&lab)?;
    }
    let row = |what: &str, times| {
        let what = format!("underlay {what} until traffic");
        Row::alone(&what, Unit::Milliseconds, times)
    };
    Ok(vec![
        row("has another address:", moved),
        row("is up again:", up),
        row("was deleted and is back:", back),
    ])
}

/// Does the change; how long from its beginning until an echo between the pods is
/// answered that was sent after it.
fn until_traffic(pods: &[Pod], change: impl FnOnce() -> Result<()>) -> Result<f64> {
    let [from, to] = pods else {
        bail!("{} pods instead of two", pods.len());
    };
    let IpAddr::V4(ip) = to.ip else {
        bail!("{} has the address {}", to.name, to.ip);
    };
    let pinger = Pinger::open(&from.netns, 0x5643)?;
    let begun = Instant::now();
    change()?;
    let reply = pinger.first_reply(ip, PACE, PATIENCE)?;
    Ok(reply.duration_since(begun).as_secs_f64() * 1e3)
}

fn sh(node: &Node, script: &str) -> Result<()> {
    node.run("sh", &["-ec", script])
        .map(drop)
        .with_context(|| script.to_owned())
}

/// Waits until every agent says that all is as it should be.
fn settled(lab: &Lab) -> Result<()> {
    eventually(PATIENCE, || {
        for node in lab.nodes() {
            let ready = node.readyz()?;
            ensure!(ready.body.trim() == "ok", "{}: {ready:?}", node.name());
        }
        Ok(())
    })?;
    // What came late has been looked at.
    std::thread::sleep(Duration::from_millis(300));
    Ok(())
}
