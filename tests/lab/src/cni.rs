//! Calling the CNI plugin the way a container runtime does: environment and
//! standard input (CNI spec, section 2).

use std::net::IpAddr;
use std::path::Path;
use std::process::Output;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::{binaries, command, netns};

/// The name of the lab's network.
pub const NETWORK: &str = "viaduct";
/// The interface that pods are given.
pub const IFNAME: &str = "eth0";

/// What a call of the plugin came to.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output as JSON; `Null` when it is empty or is none.
    pub json: Value,
    /// Standard output as it came.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Outcome {
    /// Whether the plugin exited with zero.
    pub fn succeeded(&self) -> bool {
        self.code == Some(0)
    }

    /// The error code of the spec's error result, if that is what it printed.
    pub fn error_code(&self) -> Option<u64> {
        (!self.succeeded()).then(|| self.json["code"].as_u64())?
    }

    /// Refuses an outcome that is not success.
    ///
    /// # Errors
    /// What the plugin said.
    pub fn check(self, what: &str) -> Result<Self> {
        if self.succeeded() {
            return Ok(self);
        }
        bail!(
            "CNI {what} failed with {:?}: {} {}",
            self.code,
            self.stdout.trim(),
            self.stderr.trim()
        )
    }

    /// The first address of an ADD's result.
    ///
    /// # Errors
    /// When the result has none.
    pub fn address(&self) -> Result<IpAddr> {
        self.json["ips"][0]["address"]
            .as_str()
            .and_then(|cidr| cidr.split('/').next())
            .and_then(|address| address.parse().ok())
            .with_context(|| format!("a CNI result without an address: {}", self.stdout.trim()))
    }
}

/// The configuration list of a node, as it stands in its `net.d`.
pub fn conflist(socket: &Path) -> Value {
    json!({
        "cniVersion": "1.1.0",
        "name": NETWORK,
        "plugins": [{"type": "viaduct", "socket": socket}],
    })
}

/// What a runtime makes of a configuration list for its first plugin
/// (CNI spec, section 4).
pub fn plugin_config(conflist: &Value) -> Value {
    let mut config = conflist["plugins"][0].clone();
    config["cniVersion"] = conflist["cniVersion"].clone();
    config["name"] = conflist["name"].clone();
    config
}

/// Runs the plugin in the namespace of a node, with exactly this environment
/// (and `PATH`) and standard input.
///
/// # Errors
/// When it cannot be started.
pub fn call(node_netns: &Path, env: &[(&str, &str)], stdin: &[u8]) -> Result<Outcome> {
    let mut plugin = command::command(binaries::program("viaduct"));
    plugin
        .env_clear()
        .env("PATH", binaries::search_path())
        .envs(env.iter().copied())
        .current_dir("/");
    let output = netns::within(node_netns, move || command::with_input(&mut plugin, stdin))?;
    Ok(outcome(&output))
}

fn outcome(output: &Output) -> Outcome {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    Outcome {
        code: output.status.code(),
        json: serde_json::from_str(&stdout).unwrap_or(Value::Null),
        stdout,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_is_given_the_lists_name_and_version() {
        let config = plugin_config(&conflist(Path::new("/run/x/cni.sock")));
        assert_eq!(
            config,
            json!({"cniVersion": "1.1.0", "name": "viaduct", "type": "viaduct",
                   "socket": "/run/x/cni.sock"})
        );
    }
}
