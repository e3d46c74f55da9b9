//! A node that is away for longer than its blocks are kept for it: it stops handing out
//! addresses before they are anybody else's, its pods go on until then, and when it
//! returns they are cut off and reported.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use viaduct_e2e::{Raw, eventually, everybody_pings, viaductctl};
use viaduct_lab::cni::Outcome;
use viaduct_lab::node::READY_TIMEOUT;
use viaduct_lab::{Datastore, Echo, Lab, LabOptions, Node, Pod, Signal, in_lab, netns};
use viaduct_model::Kind;

/// Short limits: what a node reads is trusted for four seconds.
const LIMITS: [&str; 4] = ["--reclaim-after", "2s", "--quarantine", "5s"];

/// Where the lab's etcd has its files.
const DIR: &str = "/run/lab/store";

fn empty() -> LabOptions {
    LabOptions {
        nodes: 0,
        pods: 0,
        datastore: Datastore::Etcd,
        ..LabOptions::default()
    }
}

/// Two nodes with a pod each, and a controller that soon gives up on a node.
fn short_lived(lab: &Lab) -> Result<()> {
    let controller = lab.controller();
    controller.kill(Signal::SIGKILL)?;
    let mut args = controller.args();
    args.extend(LIMITS.map(str::to_owned));
    controller.set_args(args);
    lab.start_controller()?;
    for _ in 0..2 {
        lab.add_node()?.add_pod("p1")?;
    }
    lab.await_ready(READY_TIMEOUT)?;
    eventually(|| everybody_pings(&lab.pods()))
}

/// Drops everything between the node and the store.
fn cut(node: &Node) -> Result<()> {
    node.run("nft", &["add", "table", "inet", "cut"])?;
    for (hook, port) in [("output", "dport"), ("input", "sport")] {
        let chain = format!("{{ type filter hook {hook} priority 0; }}");
        node.run("nft", &["add", "chain", "inet", "cut", hook, &chain])?;
        let rule = [
            "add", "rule", "inet", "cut", hook, "tcp", port, "2379", "drop",
        ];
        node.run("nft", &rule)?;
    }
    Ok(())
}

fn heal(node: &Node) -> Result<()> {
    node.run("nft", &["delete", "table", "inet", "cut"])
        .map(drop)
}

/// Who owns the block of the first node, if anybody does.
fn owner(lab: &Lab) -> Result<Option<String>> {
    let all = Raw::open(lab)?.all(Kind::Block)?;
    let block = all.get("10.64.0.0-26");
    Ok(block.and_then(|block| Some(block["node"].as_str()?.to_owned())))
}

/// Waits until the first block belongs to another node than `n1`.
fn until_reassigned(lab: &Lab) -> Result<()> {
    for _ in 0..600 {
        if owner(lab)?.is_none() {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    ensure!(owner(lab)?.is_none(), "the block is never free");
    lab.add_node()?;
    eventually(|| {
        let owner = owner(lab)?;
        ensure!(owner.as_deref() == Some("n3"), "it belongs to {owner:?}");
        Ok(())
    })
}

fn refuses(node: &Node) -> Result<()> {
    let netns = netns::add("late")?;
    let add = node.cni("ADD", "late", &netns)?;
    let code = add.error_code();
    node.cni("DEL", "late", &netns)?.check("DEL")?;
    netns::remove("late")?;
    ensure!(code == Some(11), "{add:?}");
    Ok(())
}

/// CHECK as a runtime calls it.
fn check(node: &Node, pod: &Pod) -> Result<Outcome> {
    let mut config = node.cni_config();
    config["prevResult"] = pod.result.clone();
    let netns = pod.netns.display().to_string();
    let env = [
        ("CNI_COMMAND", "CHECK"),
        ("CNI_CONTAINERID", pod.container_id.as_str()),
        ("CNI_NETNS", &netns),
        ("CNI_IFNAME", viaduct_lab::cni::IFNAME),
        ("CNI_PATH", "/nowhere"),
    ];
    node.cni_raw(&env, &serde_json::to_vec(&config)?)
}

/// Its old pod is cut off and reported, and new ones start from a block of its own.
fn is_cut_off(lab: &Lab, node: &Node) -> Result<()> {
    eventually(|| {
        let cut = node.metric("viaduct_pods_cut_off ")?;
        ensure!((cut - 1.0).abs() < 0.1, "{cut} pods are cut off");
        let ready = node.readyz()?;
        ensure!(
            ready.body.contains("is cut off: its address 10.64.0."),
            "{ready:?}"
        );
        let log = node.agent().log();
        ensure!(log.contains("is cut off"), "{log}");
        let status = viaductctl(lab, &["nodes"])?.worked()?;
        ensure!(
            status.contains("AddressesOwned=False(OwnedByAnother)"),
            "{status}"
        );
        Ok(())
    })?;
    let pods = lab.pods();
    let [old, peer] = &pods[..] else {
        anyhow::bail!("{} pods", pods.len());
    };
    ensure!(
        old.ping(peer.ip, Echo::default()).is_err(),
        "its packets still arrive"
    );
    let check = check(node, old)?;
    ensure!(
        !check.succeeded() && check.stdout.contains("is cut off"),
        "{check:?}"
    );
    let netns = netns::add("new")?;
    eventually(|| node.cni("ADD", "new", &netns)?.check("ADD").map(drop))?;
    Ok(())
}

#[test]
fn a_node_that_is_cut_off_stops_handing_out_addresses_and_is_isolated_when_it_returns() {
    in_lab(empty(), |lab| {
        short_lived(lab)?;
        let node = lab.node("n1")?;
        cut(&node)?;
        // Before the block can be anybody else's.
        let mut refused = false;
        for _ in 0..60 {
            refused = refuses(&node).is_ok();
            if refused {
                break;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        ensure!(refused, "it goes on handing out addresses");
        let owner = owner(lab)?;
        ensure!(
            owner.as_deref() == Some("n1"),
            "it stopped too late: {owner:?}"
        );
        everybody_pings(&lab.pods()).context("its pods must go on")?;
        until_reassigned(lab)?;
        refuses(&node)?;
        heal(&node)?;
        is_cut_off(lab, &node)
    });
}

#[test]
fn an_agent_that_was_stopped_for_longer_than_the_limits_hands_out_nothing_of_the_past() {
    in_lab(empty(), |lab| {
        short_lived(lab)?;
        let node = lab.node("n1")?;
        node.agent().signal(Signal::SIGSTOP)?;
        until_reassigned(lab)?;
        node.agent().signal(Signal::SIGCONT)?;
        let netns = netns::add("first")?;
        let add = node.cni("ADD", "first", &netns)?;
        let text = format!("{add:?}");
        ensure!(
            !text.contains("10.64.0.1/") && !text.contains("10.64.0.2/"),
            "{text}"
        );
        node.cni("DEL", "first", &netns)?.check("DEL")?;
        is_cut_off(lab, &node)
    });
}

/// A pod starts and goes.
fn serves(node: &Node, name: &str) -> Result<()> {
    let netns = netns::add(name)?;
    let add = node.cni("ADD", name, &netns)?;
    node.cni("DEL", name, &netns)?.check("DEL")?;
    netns::remove(name)?;
    add.check("ADD").map(drop)
}

/// The agent ends and starts anew with a boot-time clock that is so far ahead.
fn starts_anew(node: &Node, ahead: Duration) -> Result<()> {
    node.kill_agent(Signal::SIGKILL)?;
    node.agent().set_ahead(ahead);
    node.start_agent()?;
    // Ready it is not while the store is away; that it answers is enough.
    eventually(|| node.readyz().map(drop))
}

#[test]
fn a_clock_that_jumped_ahead_ends_all_trust_and_one_that_went_back_proves_nothing() {
    let options = LabOptions {
        nodes: 1,
        pods: 1,
        datastore: Datastore::Etcd,
        ..LabOptions::default()
    };
    in_lab(options, |lab| {
        let node = lab.node("n1")?;
        serves(&node, "before")?;
        // With the store away, a restart alone changes nothing.
        cut(&node)?;
        starts_anew(&node, Duration::ZERO)?;
        serves(&node, "restarted")?;
        // As if the machine had slept for longer than blocks are trusted.
        let slept = Duration::from_secs(600);
        starts_anew(&node, slept)?;
        refuses(&node).context("after a jump ahead")?;
        heal(&node)?;
        eventually(|| serves(&node, "granted-anew"))?;
        // What was written down is of a time that is still to come.
        cut(&node)?;
        starts_anew(&node, Duration::ZERO)?;
        refuses(&node).context("after a jump back")?;
        heal(&node)?;
        eventually(|| serves(&node, "read-anew"))
    });
}

#[test]
fn the_blocks_of_a_deleted_node_are_free_after_the_quarantine() {
    in_lab(empty(), |lab| {
        short_lived(lab)?;
        let refused = viaductctl(lab, &["nodes", "delete", "n1"])?;
        ensure!(
            refused.code == Some(1) && refused.stderr.contains("an agent runs for it"),
            "{refused:?}"
        );
        let node = lab.node("n1")?;
        node.kill_agent(Signal::SIGTERM)?;
        let said = viaductctl(lab, &["nodes", "delete", "n1"])?.worked()?;
        ensure!(said.contains("10.64.0.0/26"), "{said}");
        until_reassigned(lab)
    });
}

/// The lab's etcd, put back to `snapshot`, which is taken by [`snapshot`].
fn put_back(lab: &Lab, snapshot: &str) -> Result<()> {
    lab.store().kill()?;
    let script = format!(
        "set -e; cd {DIR}; rm -rf restored; \
         etcdctl snapshot restore {snapshot} --data-dir restored --name lab \
           --initial-cluster lab=$PEER --initial-advertise-peer-urls $PEER; \
         chown -R --reference=etcd restored; rm -rf etcd; mv restored etcd"
    );
    let done = Command::new("sh")
        .args(["-c", &script])
        .env("ETCDCTL_API", "3")
        .env("PEER", peer(lab)?)
        .output()?;
    ensure!(done.status.success(), "{done:?}");
    lab.store().restart()
}

fn snapshot(lab: &Lab, file: &str) -> Result<()> {
    let endpoints = lab.store().etcd_endpoints().context("no etcd")?;
    let done = Command::new("etcdctl")
        .args(["snapshot", "save", &format!("{DIR}/{file}")])
        .env("ETCDCTL_API", "3")
        .env("ETCDCTL_ENDPOINTS", endpoints)
        .output()?;
    ensure!(done.status.success(), "{done:?}");
    Ok(())
}

/// Where the lab's etcd listens for others of its kind.
fn peer(lab: &Lab) -> Result<String> {
    let daemon = lab.store().daemon().context("no etcd")?;
    let args = daemon.args();
    let at = args.iter().position(|a| a == "--listen-peer-urls");
    let url = at.and_then(|at| args.get(at + 1)).context("no peer URL")?;
    Ok(url.clone())
}

/// The generation and owner of a block.
fn grant(lab: &Lab, cidr: &str) -> Result<(u64, String)> {
    let all = Raw::open(lab)?.all(Kind::Block)?;
    let block = all.values().find(|block| block["cidr"] == cidr);
    let block = block.with_context(|| format!("block {cidr} has no record"))?;
    let owner = block["node"].as_str().unwrap_or_default().to_owned();
    Ok((block["generation"].as_u64().unwrap_or(0), owner))
}

#[test]
fn blocks_that_a_restored_etcd_does_not_know_go_back_to_the_agents_that_hold_them() {
    in_lab(empty(), |lab| {
        short_lived(lab)?;
        snapshot(lab, "old")?;
        let third = lab.add_node()?;
        third.add_pod("p1")?;
        let held = "10.64.0.128/26";
        let (before, owner) = grant(lab, held)?;
        ensure!(owner == "n3", "{owner}");

        let controller = lab.controller();
        controller.kill(Signal::SIGTERM)?;
        put_back(lab, "old")?;
        ensure!(
            grant(lab, held).is_err(),
            "the snapshot knows what came after it"
        );
        // Somebody who wants a block is there before anything is put right.
        lab.new_node()?.start_agent()?;
        let mut args = controller.args();
        args.push("--restored".to_owned());
        controller.set_args(args);
        lab.start_controller()?;

        eventually(|| {
            let (now, owner) = grant(lab, held)?;
            ensure!(owner == "n3", "it was given to {owner}");
            ensure!(now > before, "generation {now} after {before}");
            Ok(())
        })?;
        // Nobody lost a block, and the new node gets another.
        lab.await_ready(READY_TIMEOUT)?;
        let mut owners: Vec<String> = Raw::open(lab)?.blocks_by_node()?.into_keys().collect();
        owners.sort();
        ensure!(owners == ["n1", "n2", "n3", "n4"], "{owners:?}");
        eventually(|| everybody_pings(&lab.pods()))?;
        for node in lab.nodes() {
            let cut = node.metric("viaduct_pods_cut_off ")?;
            ensure!(cut < 0.1, "{cut} pods of {} are cut off", node.name());
            eventually(|| node.add_pod("late").map(drop))?;
        }
        eventually(|| everybody_pings(&lab.pods()))
    });
}
