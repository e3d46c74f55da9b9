//! `viaductctl ipam`: what contradicts is found, named, and put right by the command that is
//! printed with it; who has an address is said; nothing that is in use is given back.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use viaduct_e2e::{Raw, Run, eventually, everybody_pings, run};
use viaduct_lab::{Lab, LabOptions, Node, Pod, Signal, binaries, command, in_lab, netns};
use viaduct_model::{AttachmentId, Kind};

/// How a command gets to a node of the lab.
const REACH: &str = "VIADUCT_RUN_DIR=/run/viaduct-{node} nsenter --net=/run/netns/{node}";

fn two_nodes() -> LabOptions {
    LabOptions {
        nodes: 2,
        pods: 2,
        ..LabOptions::default()
    }
}

fn environment(lab: &Lab) -> Vec<(String, String)> {
    let mut env = lab.environment();
    env.push(("PATH".to_owned(), binaries::search_path()));
    env.push(("VIADUCT_REACH".to_owned(), REACH.to_owned()));
    env
}

fn ipam(lab: &Lab, args: &[&str]) -> Result<Run> {
    run("viaductctl", &[&["ipam"], args].concat(), &environment(lab))
}

/// On a node, as its administrator.
fn ipam_on(lab: &Lab, node: &Node, args: &[&str]) -> Result<(bool, String)> {
    shell(lab, &REACH.replace("{node}", node.name()), &{
        let mut line = vec!["viaductctl", "ipam"];
        line.extend(args);
        line.join(" ")
    })
}

fn shell(lab: &Lab, way: &str, line: &str) -> Result<(bool, String)> {
    let mut sh = command::command("sh");
    sh.args(["-c", &format!("{way} {line}")])
        .envs(environment(lab));
    let done = sh.output()?;
    let said = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
    Ok((done.status.success(), said))
}

fn is_clean(lab: &Lab) -> Result<()> {
    eventually(|| {
        let check = ipam(lab, &["check"])?.worked()?;
        ensure!(check.starts_with("clean: "), "{check}");
        Ok(())
    })
}

/// Something is found, as a program reads it, with the commands that put it right.
fn found(lab: &Lab, kind: &str, text: &str) -> Result<Vec<String>> {
    eventually(|| {
        let check = ipam(lab, &["check", "-o", "json"])?;
        ensure!(check.code == Some(1), "{check:?}");
        let told: Value = serde_json::from_str(&check.stdout)?;
        let findings = told["findings"].as_array().context("no findings")?;
        let finding = findings
            .iter()
            .find(|f| f["kind"] == kind && f["text"].as_str().is_some_and(|t| t.contains(text)));
        let finding = finding.with_context(|| format!("no {kind} about {text}: {check:?}"))?;
        let repair = finding["repair"].as_array().context("no repair")?;
        Ok(repair
            .iter()
            .filter_map(|line| Some(line.as_str()?.to_owned()))
            .collect())
    })
}

/// The printed commands work, and nothing is found any more.
fn put_right(lab: &Lab, repair: &[String]) -> Result<()> {
    ensure!(!repair.is_empty(), "no command");
    for line in repair {
        let (worked, said) = shell(lab, "", line)?;
        ensure!(worked, "`{line}`: {said}");
    }
    is_clean(lab)
}

fn link(pod: &Pod) -> Result<String> {
    Ok(AttachmentId::new(&pod.container_id, "eth0")?.link_name())
}

#[test]
fn a_network_that_agrees_is_clean_and_a_node_that_was_not_looked_at_is_not() {
    in_lab(two_nodes(), |lab| {
        is_clean(lab)?;
        let text = ipam(lab, &["check"])?.worked()?;
        ensure!(
            text.contains("2 of 2 nodes, 4 attachments compared"),
            "{text}"
        );
        let env: Vec<_> = environment(lab)
            .into_iter()
            .filter(|(name, _)| name != "VIADUCT_REACH")
            .collect();
        let blind = run("viaductctl", &["ipam", "check"], &env)?;
        ensure!(
            blind.code == Some(1)
                && blind.stdout.contains("node n1 was not looked at")
                && blind.stdout.contains("0 of 2 nodes"),
            "{blind:?}"
        );
        // Of this node alone something can be said from here.
        lab.node("n2")?.kill_agent(Signal::SIGKILL)?;
        let one = ipam(lab, &["check", "--nodes", "n1"])?.worked()?;
        ensure!(one.contains("1 of 1 nodes, 2 attachments"), "{one}");
        Ok(())
    });
}

#[test]
fn a_leaked_address_is_found_and_released_by_proof() {
    in_lab(two_nodes(), |lab| {
        let node = lab.node("n1")?;
        let [gone, broken] = &node.pods()[..] else {
            anyhow::bail!("{:?}", node.pods());
        };
        // In use: nothing gives it back.
        let address = gone.ip.to_string();
        let by = ["release", &address, "--container", &gone.container_id];
        let (worked, said) = ipam_on(lab, &node, &[&by[..], &["--yes"]].concat())?;
        ensure!(!worked && said.contains("so it is in use"), "{said}");
        let wrong = ["release", &address, "--container", "other", "--yes"];
        let (worked, said) = ipam_on(lab, &node, &wrong)?;
        ensure!(!worked && said.contains("belongs to"), "{said}");
        everybody_pings(&lab.pods())?;

        // The container went without a DEL.
        netns::remove(&gone.container_id)?;
        let repair = found(lab, "leak", &address)?;
        let (worked, said) = ipam_on(lab, &node, &by)?;
        ensure!(!worked && said.contains("confirm with --yes"), "{said}");
        ensure!(!repair[0].contains("--detach"), "{repair:?}");
        put_right(lab, &repair)?;

        // The container is there, its device is not.
        node.ip(&format!("link delete {}", link(broken)?))?;
        let repair = found(lab, "leak", &broken.ip.to_string())?;
        ensure!(repair[0].contains("--detach"), "{repair:?}");
        put_right(lab, &repair)
    });
}

/// A record that no ADD of that node made, and a device of its name.
fn plant(node: &Node, container: &str, address: &str, device: bool) -> Result<()> {
    let id = AttachmentId::new(container, "eth0")?;
    let record = serde_json::json!({
        "containerId": container, "ifname": "eth0", "network": "viaduct",
        "netns": "/run/netns/nowhere", "netnsId": [1, 2], "link": id.link_name(),
        "addresses": [address], "podMac": id.pod_mac(), "mtu": 1450, "allocatedAt": 5,
        "wired": true,
    });
    let file = node
        .run_dir()
        .join("endpoints")
        .join(format!("{}.json", id.link_name()));
    std::fs::write(file, record.to_string())?;
    if device {
        node.ip(&format!(
            "link add {} type veth peer name other",
            id.link_name()
        ))?;
    }
    Ok(())
}

#[test]
fn an_address_on_two_nodes_is_found_and_taken_from_the_one_that_does_not_own_it() {
    in_lab(two_nodes(), |lab| {
        let (first, second) = (lab.node("n1")?, lab.node("n2")?);
        let address = first.pods()[0].ip.to_string();
        // Nobody goes by the record: the agent has not read it.
        plant(&second, "cloned", &address, false)?;
        let repair = found(lab, "duplicate", &address)?;
        ensure!(repair.len() == 1 && repair[0].contains("n2"), "{repair:?}");
        put_right(lab, &repair)?;
        // And one that an agent has taken over.
        second.kill_agent(Signal::SIGKILL)?;
        plant(&second, "cloned", &address, true)?;
        second.start_agent()?;
        second.await_ready(Duration::from_secs(30))?;
        let repair = found(lab, "duplicate", &address)?;
        ensure!(repair[0].contains("--detach"), "{repair:?}");
        put_right(lab, &repair)?;
        eventually(|| everybody_pings(&lab.pods()))
    });
}

#[test]
fn a_device_of_nobody_is_an_orphan_and_deleted() {
    in_lab(two_nodes(), |lab| {
        let node = lab.node("n1")?;
        // An agent that runs sweeps it by itself.
        node.kill_agent(Signal::SIGKILL)?;
        node.ip("link add via0123456789ab type veth peer name other")?;
        let repair = found(lab, "orphan", "via0123456789ab")?;
        put_right(lab, &repair)?;
        everybody_pings(&lab.pods())
    });
}

#[test]
fn a_route_of_somebody_else_into_a_block_is_a_stranger_and_so_is_an_address_of_nobodys_block() {
    in_lab(two_nodes(), |lab| {
        let node = lab.node("n1")?;
        let theirs = lab.node("n2")?.pods()[0].ip;
        node.ip(&format!("route add {theirs}/32 dev lo"))?;
        let repair = found(lab, "stranger", &theirs.to_string())?;
        put_right(lab, &repair)?;

        node.kill_agent(Signal::SIGKILL)?;
        plant(&node, "lost", "10.64.9.9", true)?;
        node.restart_agent()?;
        let repair = found(lab, "stranger", "10.64.9.9")?;
        put_right(lab, &repair)
    });
}

#[test]
fn blocks_that_overlap_in_the_store_are_duplicates_and_the_newer_record_is_deleted() {
    in_lab(two_nodes(), |lab| {
        let raw = Raw::open(lab)?;
        let mut block = raw.json(Kind::Block, "10.64.0.0-26")?;
        block["cidr"] = "10.64.0.0/28".into();
        block["node"] = "n2".into();
        block["generation"] = 99.into();
        lab.controller().kill(Signal::SIGKILL)?;
        raw.put(Kind::Block, "10.64.0.0-28", &block.to_string())?;
        let repair = found(lab, "duplicate", "10.64.0.0/28")?;
        ensure!(
            repair[0].contains("ipam forget block 10.64.0.0-28"),
            "{repair:?}"
        );
        put_right(lab, &repair)
    });
}

#[test]
fn show_says_who_has_an_address_and_until_when_it_rests() {
    in_lab(two_nodes(), |lab| {
        let node = lab.node("n1")?;
        let pod = node.pods()[0].clone();
        let address = pod.ip.to_string();
        let show = |address: &str| -> Result<String> { ipam(lab, &["show", address])?.worked() };
        let text = show(&address)?;
        for part in [
            "of node n1",
            &pod.container_id,
            "has it since",
            &link(&pod)?,
        ] {
            ensure!(text.contains(part), "{part}: {text}");
        }
        node.del_pod(&pod)?;
        let text = show(&address)?;
        ensure!(
            text.contains("It was last used until") && text.contains("It cools down until"),
            "{text}"
        );
        let (own, free) = ["10.64.0.0", "10.64.0.64"]
            .map(show)
            .into_iter()
            .collect::<Result<Vec<_>>>()
            .map(|told| (told.concat(), show("10.64.0.60")))?;
        ensure!(own.matches("It is the node's own").count() == 2, "{own}");
        ensure!(free?.contains("Nobody has it, and"), "free");
        ensure!(show("10.64.200.1")?.contains("in no node's block"), "pool");
        ensure!(show("192.0.2.1")?.contains("is in no pool"), "elsewhere");
        Ok(())
    });
}
