//! Pods and nodes talk to pods, by their addresses.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::WEB;
use crate::cluster::{Cluster, NODES, Place, address};
use crate::pods::{self, Pod};
use crate::{probe, wait};

pub(super) fn spread(cluster: &Cluster) -> Result<String> {
    cluster.apply("tests/kube/manifests/web.yaml")?;
    let mut on: BTreeMap<String, usize> = BTreeMap::new();
    for pod in pods::all_ready(cluster, "web", WEB)? {
        *on.entry(pod.node).or_default() += 1;
    }
    ensure!(
        NODES
            .iter()
            .all(|node| on.get(*node) == Some(&(WEB / NODES.len()))),
        "{on:?}"
    );
    pods::all_ready(cluster, "alone", 1)?;
    Ok(String::new())
}

pub(super) fn mesh(cluster: &Cluster) -> Result<String> {
    let web = pods::all_ready(cluster, "web", WEB)?;
    let pairs = pods::everybody_reaches_everybody(cluster, &web)?;
    Ok(format!("{pairs} pairs"))
}

pub(super) fn from_nodes(cluster: &Cluster) -> Result<String> {
    let web = pods::all_ready(cluster, "web", WEB)?;
    let program = cluster.probe();
    let urls: Vec<String> = web
        .iter()
        .map(|p| format!("http://{}:8080/", p.ip))
        .collect();
    for node in NODES {
        let mut arguments = vec![program.as_str(), "ask"];
        arguments.extend(urls.iter().map(String::as_str));
        let answers = probe::answers(&cluster.on(node, &arguments)?)?;
        for (pod, answer) in web.iter().zip(answers) {
            ensure!(answer.pod == pod.name, "{node} to {}: {answer:?}", pod.name);
        }
    }
    Ok(String::new())
}

pub(super) fn outside(cluster: &Cluster) -> Result<String> {
    let web = pods::all_ready(cluster, "web", WEB)?;
    let program = cluster.probe();
    let _there = cluster.background(Place::Outside, &[&program, "serve", "9090"])?;
    for pod in &web {
        seen_as(cluster, pod, "http://172.30.0.1:9090/", &address(&pod.node))?;
    }
    Ok(String::new())
}

fn seen_as(cluster: &Cluster, pod: &Pod, url: &str, wanted: &str) -> Result<()> {
    // The server may still be starting.
    let answer = wait::until(Duration::from_secs(10), || {
        probe::only(pods::ask(cluster, pod, &[url.to_owned()])?)
    })?;
    ensure!(
        answer.saw == wanted,
        "{} on {} was seen as {} at {url}",
        pod.name,
        pod.node,
        answer.saw
    );
    Ok(())
}
