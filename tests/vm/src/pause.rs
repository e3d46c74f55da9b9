//! `viaduct-vm pause`: a machine is paused for longer than its blocks are kept for it, and
//! goes on. Its clocks have stood still, so that nothing in it knows; what it hears first
//! from the datastore has to cut its pods off.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use viaduct_lab::eventually;

use crate::ClusterArgs;
use crate::clock::Clock;
use crate::port::Request;
use crate::scene::{Host, Scene, refuse_any};

/// A controller that soon gives up on a node.
const LIMITS: [&str; 4] = ["--reclaim-after", "5s", "--quarantine", "20s"];

/// How long it may take until a block is free: the lease of its node has to run out, too.
const FREE: Duration = Duration::from_secs(180);

/// How long the node that goes on may take to hear what has become of its blocks.
const HEARD: Duration = Duration::from_secs(30);

/// Plays it.
pub(crate) fn run(args: &ClusterArgs) -> Result<()> {
    let clock = Clock::start();
    let scene = Scene::on(args, &LIMITS)?;
    let outcome = play(&scene, &clock);
    if outcome.is_err() {
        eprintln!("{}", scene.logs());
    }
    outcome?;
    scene.down()
}

fn play(scene: &Scene, clock: &Clock) -> Result<()> {
    let (n1, n2, n3) = (scene.host(1)?, scene.host(2)?, scene.host(3)?);
    scene.join(n1)?;
    scene.join(n2)?;
    reach(n1, n2)?;
    let block = block_of(scene, n1)?.context("n1 has no block")?;
    n1.pause(true)?;
    clock.tell(&format!("n1 is paused, and had the block {block}"));
    eventually(FREE, || {
        let of = scene.blocks()?.get(&block).cloned();
        ensure!(of.is_none(), "{block} still belongs to {of:?}");
        Ok(())
    })?;
    clock.tell(&format!("{block} is free; n3 begins"));
    scene.join(n3)?;
    ensure!(
        block_of(scene, n3)?.as_ref() == Some(&block),
        "n3 was not given {block}, the lowest that is free: {:?}",
        scene.blocks()?
    );
    reach(n2, n3)?;
    n1.pause(false)?;
    clock.tell(&format!("n3 has {block} and its pods; n1 goes on"));
    eventually(HEARD, || {
        let nodes = scene.nodes()?;
        ensure!(
            nodes.contains("AddressesOwned=False(OwnedByAnother)"),
            "{nodes}"
        );
        let lost: Vec<String> = n1.ask(&Request::Ping(n2.targets()))?;
        let tried = n1.targets().len() * n2.targets().len();
        ensure!(lost.len() == tried, "pods of n1 still reach n2: {lost:?}");
        Ok(())
    })?;
    clock.tell("n1 has cut its pods off and says so");
    reach(n2, n3)?;
    let before = addresses(&[n1, n2, n3]);
    n1.add_pods(&["late"])?;
    let late = n1.targets().pop().context("no pod")?.pod.ip;
    ensure!(
        !before.contains(&late),
        "a new pod of n1 was given {late}, which another has"
    );
    let targets = n1.targets().split_off(n1.targets().len() - 1);
    refuse_any(
        "the new pod of n1",
        &n2.ask::<Vec<String>>(&Request::Ping(targets))?,
    )?;
    clock.tell(&format!("a new pod of n1 has {late}, and n2 reaches it"));
    Ok(())
}

/// A block of this node.
fn block_of(scene: &Scene, host: &Host) -> Result<Option<String>> {
    let blocks = scene.blocks()?;
    let own = blocks.into_iter().find(|(_, node)| node == host.name());
    Ok(own.map(|(cidr, _)| cidr))
}

/// Waits until the pods of one reach those of the other.
fn reach(from: &Host, to: &Host) -> Result<()> {
    eventually(HEARD, || {
        let lost: Vec<String> = from.ask(&Request::Ping(to.targets()))?;
        refuse_any("not reached", &lost)
    })
}

fn addresses(hosts: &[&Host]) -> BTreeSet<IpAddr> {
    let targets = hosts.iter().flat_map(|host| host.targets());
    targets.map(|target| target.pod.ip).collect()
}
