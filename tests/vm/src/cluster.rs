//! `viaduct-vm cluster`: three nodes with a kernel each, and what can happen to
//! machines: no power, no cable, a bad line; and direct routing ([`crate::direct`]).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use viaduct_lab::{Backend, eventually};

use crate::ClusterArgs;
use crate::clock::Clock;
use crate::direct::direct_routing;
use crate::port::{Request, Target};
use crate::scene::{Host, Scene, refuse_any};
use crate::table::table;

/// How long the cable is out.
const PULLED: Duration = Duration::from_secs(30);

/// How long all pods may take to reach each other again.
const RECOVERY: Duration = Duration::from_secs(30);

/// A bad line: what netem does to every frame that a node sends.
const BAD_LINE: &str = "delay 20ms 5ms loss 2%";

/// Plays all of it.
pub(crate) fn run(args: &ClusterArgs) -> Result<()> {
    let clock = Clock::start();
    clock.tell(&format!(
        "{}: switching on three nodes and a machine for etcd and the controller",
        args.backend.name()
    ));
    let scene = Scene::up(args)?;
    let mut passed = 0;
    let outcome = play(&scene, &clock, args.backend, &mut passed);
    // A line as libtest has it, for whoever counts.
    let (word, failed) = if outcome.is_ok() {
        ("ok", 0)
    } else {
        ("FAILED", 1)
    };
    println!("test result: {word}. {passed} passed; {failed} failed; 0 ignored");
    if outcome.is_err() {
        eprintln!("{}", scene.logs());
    }
    outcome?;
    scene.down()?;
    clock.tell(&format!("{}: everything works", args.backend.name()));
    Ok(())
}

/// All scenes in their order; counts those that passed.
fn play(scene: &Scene, clock: &Clock, backend: Backend, passed: &mut u32) -> Result<()> {
    let kernel = scene.host(1)?.run("uname -r")?;
    clock.tell(&format!("up, on kernel {}", kernel.trim()));
    everything(scene)?;
    *passed += 1;
    let blocks = scene.blocks()?;
    ensure!(blocks.len() == 3, "three nodes have the blocks {blocks:?}");
    *passed += u32::from(direct_routing(scene, clock, backend)?);
    power_cut(scene, clock, &blocks)?;
    *passed += 1;
    pulled_cable(scene, clock, &blocks)?;
    *passed += 1;
    bad_line(scene, clock)?;
    *passed += 1;
    Ok(())
}

/// Everybody to everybody, all that can be tried.
fn everything(scene: &Scene) -> Result<()> {
    let matrix = scene.matrix()?;
    println!("{}", table(&matrix));
    refuse_any("", &matrix.failures())
}

/// A node loses power and comes back: the same blocks, new pods, peers that find it.
fn power_cut(scene: &Scene, clock: &Clock, blocks: &BTreeMap<String, String>) -> Result<()> {
    let (n1, n2, n3) = (scene.host(1)?, scene.host(2)?, scene.host(3)?);
    clock.tell("cutting the power of n2");
    n2.cut()?;
    reach("with n2 off", &[n1, n3])?;
    clock.tell("n1 and n3 reach each other; switching n2 on");
    let start = Instant::now();
    scene.boot(n2)?;
    let up = start.elapsed();
    recovered(scene)?;
    clock.tell(&format!(
        "n2 is back: its pods were wired {:.1} s after power on, everybody reached {:.1} s later",
        up.as_secs_f64(),
        (start.elapsed() - up).as_secs_f64()
    ));
    same_blocks(scene, blocks)
}

/// A node is cut off: it keeps its pods and still starts new ones, the others go on,
/// and with the cable back all is as before.
fn pulled_cable(scene: &Scene, clock: &Clock, blocks: &BTreeMap<String, String>) -> Result<()> {
    let (n1, n2, n3) = (scene.host(1)?, scene.host(2)?, scene.host(3)?);
    clock.tell("pulling the cable of n3");
    let start = Instant::now();
    n3.cable(false)?;
    let lost: Vec<String> = n1.ask(&Request::Ping(n3.targets()))?;
    let tried = n1.targets().len() * n3.targets().len();
    ensure!(
        lost.len() == tried,
        "the cable of n3 is out, and {} of {tried} pings from n1 still arrive",
        tried - lost.len()
    );
    reach("with n3 cut off", &[n1, n2])?;
    n3.add_pods(&["p3"])
        .context("a pod on a node that is cut off")?;
    reach("on n3, which is cut off", &[n3])?;
    std::thread::sleep(PULLED.saturating_sub(start.elapsed()));
    clock.tell("n1 and n2 reach each other, n3 has a pod more; putting the cable back");
    let start = Instant::now();
    n3.cable(true)?;
    recovered(scene)?;
    clock.tell(&format!(
        "n3 is back: everybody reached everybody, the new pod too, after {:.1} s",
        start.elapsed().as_secs_f64()
    ));
    scene.each(|host| host.ask::<()>(&Request::Ready))?;
    same_blocks(scene, blocks)
}

/// Loss and delay in both directions: slower, but every byte arrives.
fn bad_line(scene: &Scene, clock: &Clock) -> Result<()> {
    clock.tell(&format!("a bad line: netem {BAD_LINE} on every node"));
    scene.each(|host| host.run(&format!("tc qdisc replace dev eth0 root netem {BAD_LINE}")))?;
    let targets = scene.targets();
    let failures =
        scene.each(|host| host.ask::<Vec<String>>(&Request::Transfer(not_of(host, &targets))))?;
    refuse_any("over a bad line", &failures.concat())?;
    let dropped = scene.each(|host| host.run("tc -s qdisc show dev eth0"))?;
    let dropped: u64 = dropped.iter().map(|text| dropped_in(text)).sum();
    ensure!(dropped > 0, "netem has dropped nothing");
    scene.each(|host| host.run("tc qdisc del dev eth0 root"))?;
    clock.tell(&format!(
        "every byte arrived both ways between all nodes, though netem dropped {dropped} frames"
    ));
    Ok(())
}

/// The packets that a queueing discipline dropped, from what `tc -s` says.
fn dropped_in(text: &str) -> u64 {
    let after = text.split("(dropped ").nth(1);
    let number = after.and_then(|rest| rest.split(',').next());
    number.and_then(|n| n.parse().ok()).unwrap_or_default()
}

fn not_of(host: &Host, targets: &[Target]) -> Vec<Target> {
    let others = targets
        .iter()
        .filter(|target| target.pod.node != host.name());
    others.cloned().collect()
}

/// That all pods of these nodes reach each other.
fn reach(when: &str, hosts: &[&Host]) -> Result<()> {
    let targets: Vec<Target> = hosts.iter().flat_map(|host| host.targets()).collect();
    for host in hosts {
        let failures: Vec<String> = host.ask(&Request::Ping(targets.clone()))?;
        refuse_any(when, &failures)?;
    }
    Ok(())
}

/// Waits until all pods reach each other.
fn recovered(scene: &Scene) -> Result<()> {
    eventually(RECOVERY, || {
        let targets = scene.targets();
        let failures =
            scene.each(|host| host.ask::<Vec<String>>(&Request::Ping(targets.clone())))?;
        refuse_any("not recovered", &failures.concat())
    })
}

fn same_blocks(scene: &Scene, before: &BTreeMap<String, String>) -> Result<()> {
    let now = scene.blocks()?;
    ensure!(
        now == *before,
        "the blocks were {before:?}, now they are {now:?}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_are_read_from_tc() {
        let text = "qdisc netem 8001: root refcnt 2 limit 1000 delay 20ms  5ms loss 2%\n \
                    Sent 71620 bytes 1035 pkt (dropped 21, overlimits 0 requeues 0) \n";
        assert_eq!(dropped_in(text), 21);
        assert_eq!(dropped_in(""), 0);
    }
}
