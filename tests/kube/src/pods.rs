//! Pods as the API has them, and the probe in them.

use std::io::{BufRead, BufReader};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cluster::{Background, Cluster, NODES, Place};
use crate::probe::{self, Answer, Loss};
use crate::wait;

/// A pod that is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pod {
    /// Its name.
    pub(crate) name: String,
    /// The node that it runs on.
    pub(crate) node: String,
    /// Its address as the API says.
    pub(crate) ip: String,
    /// How often its containers were started again.
    pub(crate) restarts: u64,
}

impl Pod {
    /// Its network.
    fn place(&self) -> Place<'_> {
        Place::Pod {
            node: &self.node,
            name: &self.name,
        }
    }
}

/// The pods of an app that are ready and stay: sorted by node.
///
/// # Errors
/// As kubectl's.
pub(crate) fn ready(cluster: &Cluster, namespace: &str, label: &str) -> Result<Vec<Pod>> {
    let listed = cluster.get(&["pods", "-n", namespace, "-l", label])?;
    let items = listed["items"].as_array().context("no list of pods")?;
    let mut pods: Vec<Pod> = items
        .iter()
        .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null() && is_ready(pod))
        .map(|pod| Pod {
            name: text(&pod["metadata"]["name"]),
            node: text(&pod["spec"]["nodeName"]),
            ip: text(&pod["status"]["podIP"]),
            restarts: pod["status"]["containerStatuses"]
                .as_array()
                .map_or(0, |all| {
                    all.iter().filter_map(|c| c["restartCount"].as_u64()).sum()
                }),
        })
        .collect();
    pods.sort_by(|a, b| (&a.node, &a.name).cmp(&(&b.node, &b.name)));
    Ok(pods)
}

/// Whether a pod or a node says that it is ready.
pub(crate) fn is_ready(object: &Value) -> bool {
    object["status"]["conditions"]
        .as_array()
        .is_some_and(|all| {
            all.iter()
                .any(|c| c["type"] == "Ready" && c["status"] == "True")
        })
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The pods of an app in the default namespace, once exactly so many are ready.
///
/// # Errors
/// When that takes too long.
pub(crate) fn all_ready(cluster: &Cluster, app: &str, count: usize) -> Result<Vec<Pod>> {
    wait::until(Duration::from_secs(120), || {
        let pods = ready(cluster, "default", &format!("app={app}"))?;
        ensure!(
            pods.len() == count,
            "{} of {count} pods of {app} are ready",
            pods.len()
        );
        Ok(pods)
    })
}

/// What the pod gets when it asks these URLs, all at the same time.
///
/// # Errors
/// Names the pod and the URL that did not answer.
pub(crate) fn ask(cluster: &Cluster, pod: &Pod, urls: &[String]) -> Result<Vec<Answer>> {
    run(cluster, pod, "ask", urls)
}

/// What the pod gets when it looks names up.
///
/// # Errors
/// Names the pod and the name that has no address.
pub(crate) fn lookup(cluster: &Cluster, pod: &Pod, names: &[String]) -> Result<Vec<Answer>> {
    run(cluster, pod, "lookup", names)
}

fn run(cluster: &Cluster, pod: &Pod, verb: &str, questions: &[String]) -> Result<Vec<Answer>> {
    let mut arguments = vec!["exec", &pod.name, "--", "/probe", verb];
    arguments.extend(questions.iter().map(String::as_str));
    let printed = cluster.kubectl(&arguments)?;
    let answers =
        probe::answers(&printed).with_context(|| format!("{} on {}", pod.name, pod.node))?;
    ensure!(answers.len() == questions.len(), "answers are missing");
    Ok(answers)
}

/// Everybody asks everybody: each answer comes from the pod that was meant, at the
/// address that the API says it has, and it saw the asker's own address.
///
/// # Errors
/// Names the first pair for which that is not so.
pub(crate) fn everybody_reaches_everybody(cluster: &Cluster, pods: &[Pod]) -> Result<usize> {
    let urls: Vec<String> = pods
        .iter()
        .map(|p| format!("http://{}:8080/", p.ip))
        .collect();
    for from in pods {
        for (to, answer) in pods.iter().zip(ask(cluster, from, &urls)?) {
            let pair = format!("{} ({}) to {} ({})", from.name, from.node, to.name, to.node);
            ensure!(answer.pod == to.name, "{pair}: {} answered", answer.pod);
            ensure!(answer.at == to.ip, "{pair}: it was asked at {}", answer.at);
            ensure!(answer.saw == from.ip, "{pair}: it saw {}", answer.saw);
        }
    }
    Ok(pods.len() * pods.len())
}

/// 200 packets a second from pod to pod while something happens, which may be the end of
/// kubelet and API server.
#[derive(Debug)]
pub(crate) struct Stream {
    name: String,
    probe: Background,
    /// Who echoes; ends with the stream.
    _server: Background,
}

/// Where it echoes. Not the pod's own server: a pod without requests is the last that a
/// busy machine runs, and what its socket cannot hold meanwhile is no loss of the network's.
const ECHO: u16 = 9090;

impl Stream {
    /// Starts one that goes on until it is told to end.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn start(cluster: &Cluster, from: &Pod, to: &Pod) -> Result<Self> {
        let probe = cluster.probe();
        // A pod that hears two streams has two servers.
        let from_where = NODES.iter().position(|node| *node == from.node);
        let port = (usize::from(ECHO) + from_where.unwrap_or_default()).to_string();
        let mut server = cluster.background(to.place(), &[&probe, "serve", &port])?;
        // It says so when it listens.
        let mut line = String::new();
        let stdout = server.stdout().context("no output")?;
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(!line.is_empty(), "no echo server starts in {}", to.name);
        let target = format!("{}:{port}", to.ip);
        let arguments = [probe.as_str(), "stream", &target];
        Ok(Self {
            name: format!("the stream from {} to {}", from.node, to.node),
            probe: cluster.background(from.place(), &arguments)?,
            _server: server,
        })
    }

    /// Tells it to end: for three seconds more it waits for echoes.
    ///
    /// # Errors
    /// When that cannot be done.
    pub(crate) fn stop(&self) -> Result<()> {
        self.probe.stop()
    }

    /// Ends it; a single packet that did not come back is an error.
    ///
    /// # Errors
    /// Says how many were lost.
    pub(crate) fn lost_none(self) -> Result<u64> {
        let printed = self.probe.end(&self.name)?;
        let loss: Loss = serde_json::from_str(&printed)?;
        ensure!(
            loss.received == loss.sent,
            "{} lost {} of {} packets, longest gap {}",
            self.name,
            loss.sent - loss.received,
            loss.sent,
            loss.gap
        );
        Ok(loss.sent)
    }
}
