//! `viaductctl lab exec`: a program inside a node or a pod of the lab.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use super::state::State;

/// Replaces this process by the program, entered through the lab's first process.
pub(crate) fn run(place: &str, program: &[OsString]) -> Result<ExitCode> {
    let state = State::required()?;
    let netns = netns(place, &state.ready.nodes)?;
    let mut command = Command::new("nsenter");
    command.arg("--target").arg(state.init.pid.to_string());
    if state.rootless {
        command.args(["--user", "--preserve-credentials"]);
    }
    command.args(["--mount", "--net", "--pid", "--"]);
    command.args(["nsenter", &format!("--net={netns}"), "--"]);
    command.args(program);
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"VIADUCT_") {
            command.env_remove(name);
        }
    }
    command.envs(state.ready.environment);
    Err(command.exec()).context("nsenter cannot be started (Debian: util-linux)")
}

/// The namespace's path inside the lab of a `NODE` or `NODE/POD`.
fn netns(place: &str, nodes: &[(String, Vec<String>)]) -> Result<String> {
    let (node, pod) = match place.split_once('/') {
        Some((node, pod)) => (node, Some(pod)),
        None => (place, None),
    };
    let Some((_, pods)) = nodes.iter().find(|(name, _)| name == node) else {
        let names: Vec<&str> = nodes.iter().map(|(name, _)| name.as_str()).collect();
        bail!("the lab has no node {node:?}: {}", names.join(", "));
    };
    match pod {
        None => Ok(format!("/run/netns/{node}")),
        Some(pod) if pods.iter().any(|name| name == pod) => Ok(format!("/run/netns/{node}-{pod}")),
        Some(pod) => bail!("node {node} has no pod {pod:?}: {}", pods.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_checked_against_what_is_there() {
        let nodes = [("n1".to_owned(), vec!["p1".to_owned()])];
        assert_eq!(netns("n1", &nodes).unwrap(), "/run/netns/n1");
        assert_eq!(netns("n1/p1", &nodes).unwrap(), "/run/netns/n1-p1");
        for (bad, told) in [("n2", "n1"), ("n1/p9", "p1"), ("../x", "n1"), ("n1/", "p1")] {
            let error = netns(bad, &nodes).unwrap_err().to_string();
            assert!(error.ends_with(told), "{error}");
        }
    }
}
