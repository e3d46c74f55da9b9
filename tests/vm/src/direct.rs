//! Direct routing between machines: agents go over to it, a node leaves the others' network
//! and comes back, and the agents go back. Packets of pods are judged by what the wire saw.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use viaduct_lab::{Backend, Carriage, eventually};

use crate::clock::Clock;
use crate::port::Request;
use crate::scene::{Host, Scene, refuse_any};

/// How long a switch of all packets may take.
const SWITCHED: Duration = Duration::from_secs(30);

/// Plays it; with a backend that has no tunnel there is nothing to go without.
/// Whether it was played.
pub(crate) fn direct_routing(scene: &Scene, clock: &Clock, backend: Backend) -> Result<bool> {
    if backend.tunnel().is_none() {
        return Ok(false);
    }
    let tunnel = backend.carriage();
    let far = scene.host(3)?;
    clock.tell("starting the agents again with --direct-routing");
    scene.each(|host| host.ask::<()>(&Request::DirectRouting(true)))?;
    carried(scene, |_, _| Carriage::Plain)?;
    let (ip, net, gateway) = (
        scene.address(far)?,
        viaduct_lab::underlay::NETWORK,
        viaduct_lab::underlay::BRIDGE_ADDRESS,
    );
    // The same address, but no network around it any more.
    clock.tell("no tunnel between any two; n3 leaves the network of the others");
    far.shell(&format!(
        "ip addr add {ip}/32 dev eth0; ip addr del {ip}/24 dev eth0; \
         ip route add {net} dev eth0 src {ip}; ip route replace default via {gateway} dev eth0"
    ))?;
    carried(scene, |from, to| {
        if [from, to].contains(&far.name()) {
            tunnel
        } else {
            Carriage::Plain
        }
    })?;
    clock.tell("the tunnel to and from n3, none between n1 and n2; n3 comes back");
    far.shell(&format!(
        "ip route del {net}; ip addr add {ip}/24 dev eth0; ip addr del {ip}/32 dev eth0; \
         ip route replace default via {gateway} dev eth0"
    ))?;
    carried(scene, |_, _| Carriage::Plain)?;
    clock.tell("no tunnel between any two; starting the agents again without it");
    scene.each(|host| host.ask::<()>(&Request::DirectRouting(false)))?;
    carried(scene, |_, _| tunnel)?;
    Ok(true)
}

/// Waits until all pods reach each other, and pods of different nodes in the way that is
/// wanted of these nodes and in no other.
fn carried(scene: &Scene, wanted: impl Fn(&str, &str) -> Carriage) -> Result<()> {
    eventually(SWITCHED, || {
        let targets = scene.targets();
        scene.seen();
        let failures =
            scene.each(|host: &Host| host.ask::<Vec<String>>(&Request::Ping(targets.clone())))?;
        refuse_any("not reached", &failures.concat())?;
        let seen = scene.seen();
        for from in targets.iter().map(|target| &target.pod) {
            let others = targets.iter().map(|target| &target.pod);
            for to in others.filter(|to| to.node != from.node) {
                let wanted = wanted(&from.node, &to.node);
                let (IpAddr::V4(source), IpAddr::V4(destination)) = (from.ip, to.ip) else {
                    bail!("{} -> {}: no IPv4 addresses", from.name, to.name);
                };
                for way in [Carriage::Vxlan, Carriage::Ipip, Carriage::Plain] {
                    let is = seen.carried(way).contains_key(&(source, destination));
                    ensure!(
                        is == (way == wanted),
                        "{} -> {}: {} is wanted, and {} {}",
                        from.name,
                        to.name,
                        wanted.name(),
                        way.name(),
                        if is { "was seen" } else { "was not seen" }
                    );
                }
            }
        }
        Ok(())
    })
}
