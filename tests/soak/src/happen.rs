//! Makes an event happen, puts right what is not to heal by itself, and waits until all
//! is well again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use viaduct_lab::{Node, Signal, command, eventually, underlay};

use crate::event::{Event, Kind};
use crate::scene::{PATIENCE, Scene};

/// How all became well again.
pub(crate) struct Recovery {
    /// How long it took from the moment that its cause was gone (with damage, that it was
    /// done).
    pub took: Duration,
    /// What was waited for last.
    pub last: Option<String>,
}

/// Makes it happen, and waits until all is well again.
///
/// # Errors
/// What did not go on meanwhile, or is not well afterwards.
pub(crate) fn happen(scene: &Scene, event: &Event) -> Result<Recovery> {
    let node = scene.nodes.get(event.node).context("no such node")?;
    let from = match event.kind {
        Kind::AgentKilled => agent(scene, node, event, Signal::SIGKILL)?,
        Kind::AgentStopped => agent(scene, node, event, Signal::SIGTERM)?,
        Kind::AgentHalted => {
            node.agent().signal(Signal::SIGSTOP)?;
            undisturbed(scene, event.lasts)?;
            node.agent().signal(Signal::SIGCONT)?;
            Instant::now()
        }
        Kind::AgentsKilled => agents(scene, event)?,
        Kind::AgentKilledWithoutStore => {
            scene.lab.store().kill()?;
            node.kill_agent(Signal::SIGKILL)?;
            node.start_agent()?;
            undisturbed(scene, event.lasts)?;
            scene.lab.store().restart()?;
            Instant::now()
        }
        Kind::LeaderKilled => leader(scene, event)?,
        Kind::ControllersKilled => {
            for controller in scene.controllers() {
                controller.kill(Signal::SIGKILL)?;
            }
            undisturbed(scene, event.lasts)?;
            for controller in scene.controllers() {
                controller.start()?;
            }
            Instant::now()
        }
        Kind::StoreKilled => {
            scene.lab.store().kill()?;
            undisturbed(scene, event.lasts)?;
            scene.lab.store().restart()?;
            Instant::now()
        }
        Kind::StoreHalted => {
            scene.etcd()?.signal(Signal::SIGSTOP)?;
            undisturbed(scene, event.lasts)?;
            scene.etcd()?.signal(Signal::SIGCONT)?;
            Instant::now()
        }
        Kind::UnderlayCut => {
            let port = underlay::port(node.name());
            command::ip_batch(&format!("link set {port} down\n"))?;
            std::thread::sleep(event.lasts);
            command::ip_batch(&format!("link set {port} up\n"))?;
            Instant::now()
        }
        Kind::RouteDeleted => route(scene, node, event, |number| number != event.node)?,
        Kind::PodRouteDeleted => route(scene, node, event, |number| number == event.node)?,
        Kind::RulesFlushed => healed(node, rules, "nft flush table inet viaduct")?,
        Kind::TunnelDown => {
            let tunnel = scene.lab.options().backend.tunnel();
            let tunnel = tunnel.context("there is no tunnel")?;
            let show = |node: &Node| is_up(&node.ip(&format!("-o link show {tunnel}"))?);
            healed(node, show, &format!("ip link set {tunnel} down"))?
        }
    };
    let last = scene.well()?;
    Ok(Recovery {
        took: from.elapsed(),
        last,
    })
}

/// What happens must not be noticed by pods: all reach each other at once, without a
/// second attempt. Returns when `lasts` is over.
fn undisturbed(scene: &Scene, lasts: Duration) -> Result<()> {
    let begun = Instant::now();
    scene.reached().context("meanwhile")?;
    std::thread::sleep(lasts.saturating_sub(begun.elapsed()));
    Ok(())
}

fn agent(scene: &Scene, node: &Node, event: &Event, signal: Signal) -> Result<Instant> {
    let status = node.kill_agent(signal)?;
    ensure!(
        signal == Signal::SIGKILL || status.success(),
        "agent {} ended with {status} after {signal}",
        node.name()
    );
    undisturbed(scene, event.lasts)?;
    node.start_agent()?;
    Ok(Instant::now())
}

/// All but the last node's.
fn agents(scene: &Scene, event: &Event) -> Result<Instant> {
    let (_, mortal) = scene.nodes.split_last().context("no nodes")?;
    for node in mortal {
        node.agent().signal(Signal::SIGKILL)?;
    }
    eventually(PATIENCE, || {
        let alive = mortal.iter().find(|node| node.agent().is_running());
        ensure!(alive.is_none(), "an agent lives on after SIGKILL");
        Ok(())
    })?;
    undisturbed(scene, event.lasts)?;
    for node in mortal {
        node.start_agent()?;
    }
    Ok(Instant::now())
}

/// The other has to lead before the one that was killed is there again.
fn leader(scene: &Scene, event: &Event) -> Result<Instant> {
    let number = eventually(PATIENCE, || scene.leader())?;
    let leader = scene.controllers()[number];
    leader.kill(Signal::SIGKILL)?;
    let killed = Instant::now();
    eventually(PATIENCE, || {
        let now = scene.leader()?;
        ensure!(now != number, "the one that was killed leads");
        Ok(())
    })
    .with_context(|| format!("nobody leads after {} was killed", leader.name()))?;
    undisturbed(scene, event.lasts.saturating_sub(killed.elapsed()))?;
    leader.start()?;
    Ok(killed)
}

/// Deletes the route from a node to one of the pods that stay, on a node that `wanted`
/// names.
fn route(
    scene: &Scene,
    node: &Node,
    event: &Event,
    wanted: impl Fn(usize) -> bool,
) -> Result<Instant> {
    let there = scene.stays.iter().filter(|(number, _)| wanted(*number));
    let there: Vec<_> = there.map(|(_, pod)| pod.ip).collect();
    let choice = usize::try_from(event.other % there.len().max(1) as u64)?;
    let pod = there.get(choice).context("no pod to choose from")?;
    let show = |node: &Node| node.ip(&format!("route get fibmatch {pod}"));
    let shown = show(node)?;
    let prefix = shown.split_whitespace().next().context("no route")?;
    healed(node, show, &format!("ip route del {prefix}"))
}

/// Does a damage, and waits until what is shown is as it was. Returns when the damage was
/// done.
fn healed<T: PartialEq + std::fmt::Debug>(
    node: &Node,
    show: impl Fn(&Node) -> Result<T>,
    damage: &str,
) -> Result<Instant> {
    let before = show(node)?;
    node.run("sh", &["-ec", damage])?;
    let done = Instant::now();
    eventually(PATIENCE, || {
        let now = show(node)?;
        ensure!(now == before, "{before:?} is {now:?}");
        Ok(())
    })
    .with_context(|| format!("{}: `{damage}` is not healed", node.name()))?;
    Ok(done)
}

/// The rules of our table, without the sets, which change with the pods.
fn rules(node: &Node) -> Result<Vec<String>> {
    let text = node.run("nft", &["-s", "list", "table", "inet", "viaduct"])?;
    let rules = rules_of(&text);
    ensure!(!rules.is_empty(), "no rules in {text}");
    Ok(rules)
}

fn rules_of(text: &str) -> Vec<String> {
    let mut rules = Vec::new();
    let mut chain = false;
    for line in text.lines().map(str::trim) {
        match line.split_whitespace().next() {
            Some("chain") => chain = true,
            Some("}") => chain = false,
            Some(_) if chain => rules.push(line.to_owned()),
            _ => {}
        }
    }
    rules
}

fn is_up(link: &str) -> Result<bool> {
    let flags = link.split(['<', '>']).nth(1).context("no flags")?;
    Ok(flags.split(',').any(|flag| flag == "UP"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_what_stands_in_chains() {
        let text = "table inet viaduct {\n\tset pods {\n\t\ttype ipv4_addr\n\t}\n\n\tchain post {\n\t\t\
                    type nat hook postrouting priority srcnat; policy accept;\n\t\tmasquerade\n\t}\n}\n";
        let rules = rules_of(text);
        assert_eq!(rules.len(), 2, "{rules:?}");
        assert_eq!(rules[1], "masquerade");
    }

    #[test]
    fn a_link_is_up_by_its_flag() {
        assert!(is_up("4: via.vx4: <BROADCAST,UP,LOWER_UP> mtu 1450").unwrap());
        assert!(!is_up("4: via.vx4: <BROADCAST,LOWER_UP> mtu 1450 state UP").unwrap());
        assert!(is_up("nothing").is_err());
    }
}
