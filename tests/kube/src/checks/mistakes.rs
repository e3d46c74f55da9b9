//! What people do wrong in a cluster that runs: it is said where it is looked for, and
//! packets flow.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::WEB;
use super::node_cidrs::blocks;
use super::permissions::elsewhere;
use super::rollout::{self, AGENTS, NAMESPACE};
use crate::cluster::{Cluster, NODES};
use crate::{pods, wait};

/// How long something that must be said may take.
const SOON: Duration = Duration::from_secs(60);

/// What is said where these checks do not apply.
const ELSEWHERE: &str = "the records are not in the Kubernetes API";

pub(super) fn wrong_blocks(cluster: &Cluster) -> Result<String> {
    if elsewhere() {
        return Ok(ELSEWHERE.into());
    }
    let web = pods::all_ready(cluster, "web", WEB)?;
    let streams = rollout::streams(cluster, &web)?;
    let of = |node: &str| {
        let all = blocks(cluster)?;
        let found = all
            .into_iter()
            .find(|block| block["spec"]["node"] == node && block["spec"]["state"] == "active");
        found.with_context(|| format!("{node} has no block"))
    };
    let block = of(NODES[0])?;
    let name = text(&block["metadata"]["name"]);
    // Its node: the API server knows that blocks do not change hands like that.
    // Nor do they as if it were a new grant: its owner would isolate the pods on it.
    let generation = block["spec"]["generation"].as_u64().unwrap_or_default();
    let to = NODES[1];
    let by_hand = [
        (
            format!(r#"{{"spec":{{"node":"{to}"}}}}"#),
            "by a new grant only",
        ),
        (
            format!(
                r#"{{"spec":{{"node":"{to}","generation":{}}}}}"#,
                generation + 1
            ),
            "granted by viaduct-controller only",
        ),
    ];
    for (patch, says) in by_hand {
        let edited =
            cluster.kubectl(&["patch", "addressblock", &name, "--type=merge", "-p", &patch]);
        let Err(refused) = edited else {
            anyhow::bail!("{name} was given to {to} by hand: {patch}");
        };
        ensure!(format!("{refused:#}").contains(says), "{refused:#}");
    }
    // Half of a block of another node's, and one outside of every pool.
    let theirs = text(&block["spec"]["cidr"]);
    let (address, length) = theirs.split_once('/').context("no CIDR")?;
    let half = format!("{address}/{}", length.parse::<u8>()? + 1);
    let wrong = [
        (half, "Overlaps"),
        ("192.0.2.0/26".to_owned(), "OutsidePool"),
    ];
    for (cidr, _) in &wrong {
        let made = format!(
            r#"{{"apiVersion":"viaduct.dev/v1alpha1","kind":"AddressBlock",
            "metadata":{{"name":"{}"}},"spec":{{"cidr":"{cidr}","pool":"default",
            "node":"{}","generation":1,"state":"active"}}}}"#,
            cidr.replace('/', "-"),
            NODES[1]
        );
        cluster.kubectl_with(&["create", "-f", "-"], &made)?;
    }
    for (cidr, reason) in &wrong {
        let name = cidr.replace('/', "-");
        wait::until(SOON, || {
            let block = cluster.get(&["addressblock", &name])?;
            let valid = condition(&block, "Valid");
            ensure!(
                valid["status"] == "False" && valid["reason"] == *reason,
                "{name}: Valid is {valid}"
            );
            let events = cluster.get(&["events.events.k8s.io", "-A"])?;
            let told = events["items"].as_array().is_some_and(|all| {
                let about = |event: &Value| event["regarding"]["name"] == name.as_str();
                all.iter().any(|e| about(e) && e["reason"] == "Conflict")
            });
            ensure!(told, "no event tells of {name}");
            Ok(())
        })?;
    }
    pods::everybody_reaches_everybody(cluster, &web)?;
    for node in NODES {
        let routes = cluster.on(node, &["ip", "route", "show", "192.0.2.0/26"])?;
        ensure!(routes.is_empty(), "{node}: {routes}");
    }
    for (cidr, _) in &wrong {
        cluster.kubectl(&["delete", "addressblock", &cidr.replace('/', "-")])?;
    }
    rollout::settle();
    let packets = rollout::lost_none(streams)?;
    Ok(format!("{packets} packets"))
}

pub(super) fn missing_verb(cluster: &Cluster) -> Result<String> {
    if elsewhere() {
        return Ok(ELSEWHERE.into());
    }
    let web = pods::all_ready(cluster, "web", WEB)?;
    let streams = rollout::streams(cluster, &web)?;
    let role = cluster.get(&["clusterrole", "viaduct-agent"])?;
    let mut less = role.clone();
    for rule in less["rules"].as_array_mut().into_iter().flatten() {
        let lists = rule["verbs"]
            .as_array()
            .is_some_and(|all| all.contains(&"list".into()));
        if lists && let Some(resources) = rule["resources"].as_array_mut() {
            resources.retain(|resource| resource != "nodenetworks");
        }
    }
    replace_rules(cluster, &less)?;
    let agent = restart_one(cluster)?;
    let said = wait::until(SOON, || {
        let log = agent_log(cluster, &agent)?;
        let lines: Vec<&str> = log
            .lines()
            .filter(|line| line.contains("list") && line.contains("nodenetworks"))
            .collect();
        let line = lines.first().context("the log does not name it")?;
        Ok((*line).to_owned())
    })?;
    // It goes on like that: no other line for each try, no other process.
    std::thread::sleep(Duration::from_secs(15));
    let log = agent_log(cluster, &agent)?;
    let times = log.lines().filter(|l| l.contains("nodenetworks")).count();
    let (ready, restarts) = state(cluster, &agent)?;
    replace_rules(cluster, &role)?;
    ensure!(!ready, "{agent} is ready: {said}");
    ensure!(restarts == 0, "{agent} was started again {restarts} times");
    ensure!(times == 1, "{times} lines, the first of them: {said}");
    rollout::rolled_out(cluster, AGENTS)?;
    let packets = rollout::lost_none(streams)?;
    Ok(format!("{packets} packets; {said:?}"))
}

pub(super) fn wrong_definitions(cluster: &Cluster) -> Result<String> {
    if elsewhere() {
        return Ok(ELSEWHERE.into());
    }
    let web = pods::all_ready(cluster, "web", WEB)?;
    let streams = rollout::streams(cluster, &web)?;
    // Of our version nothing is served: as if those of another release were installed.
    for kind in [
        "addresspools",
        "addressblocks",
        "nodenetworks",
        "blockclaims",
    ] {
        let definition = format!("{kind}.viaduct.dev");
        let patch = r#"[{"op":"replace","path":"/spec/versions/0/served","value":false}]"#;
        cluster.kubectl(&["patch", "crd", &definition, "--type=json", "-p", patch])?;
    }
    let agent = restart_one(cluster)?;
    let said = wait::until(SOON, || {
        let log = agent_log(cluster, &agent)?;
        let line = log.lines().find(|line| line.contains("deploy/crds"));
        Ok(line.context("the log does not say what to do")?.to_owned())
    });
    std::thread::sleep(Duration::from_secs(15));
    let state = state(cluster, &agent);
    cluster.apply_kustomization("deploy/crds")?;
    let (said, (ready, restarts)) = (said?, state?);
    ensure!(!ready, "{agent} is ready: {said}");
    ensure!(restarts == 0, "{agent} was started again {restarts} times");
    rollout::rolled_out(cluster, AGENTS)?;
    wait::until(SOON, || cluster.get(&["addressblocks"]))?;
    let packets = rollout::lost_none(streams)?;
    Ok(format!("{packets} packets; {said:?}"))
}

pub(super) fn second_installation(cluster: &Cluster) -> Result<String> {
    if elsewhere() {
        return Ok(ELSEWHERE.into());
    }
    let holder = || {
        let lease = cluster.get(&["-n", NAMESPACE, "lease", "viaduct-controller"])?;
        Ok::<_, anyhow::Error>(text(&lease["spec"]["holderIdentity"]))
    };
    let before = holder()?;
    ensure!(!before.is_empty(), "nobody leads");
    cluster.apply("tests/kube/manifests/second.yaml")?;
    let said = wait::until(SOON, || {
        let log = cluster.kubectl(&["-n", "second", "logs", "deployment/viaduct-controller"])?;
        let line = log
            .lines()
            .find(|line| line.contains(NAMESPACE) && line.contains("uninstall one of the two"));
        Ok(line.context("the second says nothing")?.to_owned())
    })?;
    // Before it had looked it stood by, as any other would.
    wait::until(SOON, || {
        let second = pods::ready(cluster, "second", "app.kubernetes.io/component=controller")?;
        ensure!(second.is_empty(), "the second is ready: {second:?}");
        Ok(())
    })?;
    ensure!(holder()? == before, "the first leads no more");
    cluster.kubectl(&["delete", "namespace", "second", "--wait=false"])?;
    cluster.kubectl(&["delete", "clusterrolebinding", "viaduct-second"])?;
    Ok(format!("{said:?}"))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn condition(object: &Value, kind: &str) -> Value {
    let all = object["status"]["conditions"].as_array();
    let found = all.and_then(|all| all.iter().find(|c| c["type"] == kind));
    found.cloned().unwrap_or_default()
}

/// The agents' role with these rules.
fn replace_rules(cluster: &Cluster, role: &Value) -> Result<()> {
    let patch = serde_json::json!({ "rules": role["rules"] }).to_string();
    let arguments = [
        "patch",
        "clusterrole",
        "viaduct-agent",
        "--type=merge",
        "-p",
        &patch,
    ];
    cluster.kubectl(&arguments).map(drop)
}

/// Starts the agent of the first node anew; its new pod.
fn restart_one(cluster: &Cluster) -> Result<String> {
    let its = [
        "-n",
        NAMESPACE,
        "-l",
        "app.kubernetes.io/component=agent",
        "--field-selector=spec.nodeName=n1",
    ];
    cluster.kubectl(&[&["delete", "pod"], &its[..]].concat())?;
    wait::until(SOON, || {
        let listed = cluster.get(&[&["pods"], &its[..]].concat())?;
        let pod = &listed["items"][0];
        let running = pod["status"]["phase"] == "Running";
        ensure!(running, "the agent of n1 does not run");
        Ok(text(&pod["metadata"]["name"]))
    })
}

fn agent_log(cluster: &Cluster, agent: &str) -> Result<String> {
    cluster.kubectl(&["-n", NAMESPACE, "logs", agent, "-c", "agent"])
}

/// Whether the pod is ready, and how often its containers were started again.
fn state(cluster: &Cluster, agent: &str) -> Result<(bool, u64)> {
    let pod = cluster.get(&["-n", NAMESPACE, "pod", agent])?;
    let containers = pod["status"]["containerStatuses"].as_array();
    let restarts = containers
        .into_iter()
        .flatten()
        .filter_map(|c| c["restartCount"].as_u64());
    Ok((pods::is_ready(&pod), restarts.sum()))
}
