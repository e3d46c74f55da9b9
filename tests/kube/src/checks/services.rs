//! Services, as kube-proxy makes them on top of the network.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::WEB;
use crate::cluster::{Cluster, NODES, address};
use crate::pods::{self, Pod};
use crate::{probe, wait};

fn cluster_ip_of(cluster: &Cluster, service: &str) -> Result<String> {
    let found = cluster.get(&["service", service])?;
    let ip = found["spec"]["clusterIP"]
        .as_str()
        .context("no clusterIP")?;
    Ok(ip.to_owned())
}

/// One pod of the app on each node.
fn one_on_each(cluster: &Cluster) -> Result<Vec<Pod>> {
    let web = pods::all_ready(cluster, "web", WEB)?;
    let mut seen = BTreeSet::new();
    Ok(web
        .into_iter()
        .filter(|pod| seen.insert(pod.node.clone()))
        .collect())
}

pub(super) fn cluster_ip(cluster: &Cluster) -> Result<String> {
    let ip = cluster_ip_of(cluster, "web")?;
    let urls = vec![format!("http://{ip}/"); 100];
    for pod in one_on_each(cluster)? {
        let answers = pods::ask(cluster, &pod, &urls)?;
        let backends: BTreeSet<String> = answers.into_iter().map(|a| a.pod).collect();
        // Random choice: the odds that 100 tries miss even two of twelve are one in a million.
        ensure!(
            backends.len() >= WEB - 1,
            "from {}: only {} of {WEB} answered",
            pod.node,
            backends.len()
        );
    }
    let program = cluster.probe();
    for node in NODES {
        let printed = cluster.on(node, &[&program, "ask", &urls[0]])?;
        probe::answers(&printed).with_context(|| format!("from {node} itself"))?;
    }
    Ok(String::new())
}

pub(super) fn node_port(cluster: &Cluster) -> Result<String> {
    // Twenty times each, so that pods on every node are hit, through every node.
    let urls: Vec<String> = NODES
        .iter()
        .flat_map(|node| vec![format!("http://{}:30080/", address(node)); 20])
        .collect();
    for pod in one_on_each(cluster)? {
        pods::ask(cluster, &pod, &urls)?;
    }
    let program = cluster.probe();
    let mut arguments = vec![program.as_str(), "ask"];
    arguments.extend(urls.iter().map(String::as_str));
    for node in NODES {
        probe::answers(&cluster.on(node, &arguments)?).with_context(|| format!("from {node}"))?;
    }
    probe::answers(&cluster.outside(&arguments)?).context("from outside of the cluster")?;
    Ok(String::new())
}

pub(super) fn hairpin(cluster: &Cluster) -> Result<String> {
    let pod = probe_pod(cluster)?;
    let urls = vec![
        format!("http://{}/", cluster_ip_of(cluster, "alone")?),
        format!("http://{}:30081/", address(&pod.node)),
        format!("http://{}:31080/", address(&pod.node)),
    ];
    for answer in pods::ask(cluster, &pod, &urls)? {
        ensure!(answer.pod == pod.name, "{answer:?}");
    }
    Ok(String::new())
}

fn probe_pod(cluster: &Cluster) -> Result<Pod> {
    let alone = pods::all_ready(cluster, "alone", 1)?;
    alone.into_iter().next().context("no pod")
}

pub(super) fn host_port(cluster: &Cluster) -> Result<String> {
    let pod = probe_pod(cluster)?;
    let url = format!("http://{}:31080/", address(&pod.node));
    let is_it = |answers: Result<Vec<probe::Answer>>, from: &str| -> Result<()> {
        let answer = probe::only(answers?).with_context(|| format!("from {from}"))?;
        ensure!(answer.pod == pod.name, "from {from}: {answer:?}");
        Ok(())
    };
    for other in one_on_each(cluster)? {
        let answers = pods::ask(cluster, &other, std::slice::from_ref(&url));
        is_it(answers, &format!("a pod on {}", other.node))?;
    }
    let program = cluster.probe();
    for node in NODES {
        let printed = cluster.on(node, &[&program, "ask", &url])?;
        is_it(probe::answers(&printed), node)?;
    }
    let printed = cluster.outside(&[&program, "ask", &url])?;
    is_it(probe::answers(&printed), "outside of the cluster")?;
    Ok(String::new())
}

pub(super) fn api_server(cluster: &Cluster) -> Result<String> {
    let url = format!("https://{}/version", cluster_ip_of(cluster, "kubernetes")?);
    for pod in one_on_each(cluster)? {
        let answer = probe::only(pods::ask(cluster, &pod, std::slice::from_ref(&url))?)?;
        ensure!(
            answer.status == 200,
            "on {}: status {}",
            pod.node,
            answer.status
        );
    }
    Ok(String::new())
}

pub(super) fn names(cluster: &Cluster) -> Result<String> {
    cluster.apply("tests/kube/manifests/coredns.yaml")?;
    let service = cluster_ip_of(cluster, "web")?;
    let names: Vec<String> = ["web", "web.default", "web.default.svc.cluster.local"]
        .map(str::to_owned)
        .into();
    for pod in one_on_each(cluster)? {
        let answers = wait::until(Duration::from_secs(60), || {
            pods::lookup(cluster, &pod, &names)
        })?;
        for answer in answers {
            ensure!(
                answer.addresses == [service.clone()],
                "{} on {}: {:?}",
                answer.to,
                pod.node,
                answer.addresses
            );
        }
        let urls = [
            "http://web/".to_owned(),
            "https://kubernetes/version".to_owned(),
        ];
        pods::ask(cluster, &pod, &urls)?;
    }
    Ok(String::new())
}
