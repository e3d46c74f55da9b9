//! What goes from the API server over a kubelet into a pod.

use std::io::{BufRead, BufReader};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::WEB;
use crate::cluster::Cluster;
use crate::{pods, probe, wait};

pub(super) fn logs_and_exec(cluster: &Cluster) -> Result<String> {
    for pod in pods::all_ready(cluster, "web", WEB)? {
        let logged = cluster.kubectl(&["logs", &pod.name])?;
        ensure!(
            logged.contains(&format!("serving as {}", pod.name)),
            "{}: {logged}",
            pod.name
        );
        let answer = probe::only(pods::ask(
            cluster,
            &pod,
            &["http://127.0.0.1:8080/".to_owned()],
        )?)?;
        ensure!(answer.pod == pod.name, "exec in {}: {answer:?}", pod.name);
    }
    Ok(String::new())
}

pub(super) fn port_forward(cluster: &Cluster) -> Result<String> {
    let web = pods::all_ready(cluster, "web", WEB)?;
    let pod = web.last().context("no pod")?;
    let target = format!("pod/{}", pod.name);
    let mut forward = cluster.kubectl_background(&["port-forward", &target, ":8080"])?;
    // "Forwarding from 127.0.0.1:40123 -> 8080"
    let mut line = String::new();
    // Held until the end: kubectl ends when nobody reads what it says.
    let mut said = BufReader::new(forward.stdout().context("no output")?);
    said.read_line(&mut line)?;
    let port = line
        .split("127.0.0.1:")
        .nth(1)
        .and_then(|rest| rest.split_whitespace().next())
        .with_context(|| format!("kubectl port-forward: {line:?}"))?;
    let url = format!("http://127.0.0.1:{port}/");
    let answer = wait::until(Duration::from_secs(10), || {
        let printed = cluster.outside(&[&cluster.probe(), "ask", &url])?;
        probe::only(probe::answers(&printed)?)
    })?;
    ensure!(answer.pod == pod.name, "{answer:?}");
    Ok(String::new())
}
