//! Calls of the CNI plugin as a runtime makes them, with a runtime's patience; and calls
//! that end by SIGKILL in the middle.

use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use viaduct_lab::cni::{IFNAME, Outcome};
use viaduct_lab::{Node, binaries, command, eventually, netns};

/// How long a runtime tries: longer than any outage, and its recovery.
const RUNTIME: Duration = Duration::from_secs(150);

/// A pod's sandbox on a node.
#[derive(Debug, Clone)]
pub(crate) struct Sandbox<'a> {
    node: &'a Node,
    /// Whether there is no use in trying on.
    given_up: &'a AtomicBool,
    /// The container id; the namespace bears the same name.
    pub id: String,
}

impl<'a> Sandbox<'a> {
    /// Makes the namespace.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn new(node: &'a Node, given_up: &'a AtomicBool, id: String) -> Result<Self> {
        netns::add(&id)?;
        Ok(Self { node, given_up, id })
    }

    /// Calls a verb until it works; with the result of ADD, where there is one.
    ///
    /// # Errors
    /// What the plugin said last; how long it was tried is in the message.
    pub(crate) fn call(&self, verb: &str, previous: Option<&Value>) -> Result<(Outcome, Duration)> {
        let begun = Instant::now();
        let outcome = patiently(self.given_up, || {
            let env = environment(verb, &self.id);
            let env: Vec<(&str, &str)> = env.iter().map(|(k, v)| (*k, v.as_str())).collect();
            let outcome = self.node.cni_raw(&env, &self.config(previous)?)?;
            outcome.check(&format!("{verb} of {}", self.id))
        })?;
        Ok((outcome, begun.elapsed()))
    }

    /// Calls a verb and kills the plugin after a while, if it has not ended by then.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn call_and_kill(&self, verb: &str, after: Duration) -> Result<()> {
        let mut plugin = command::command(binaries::program("viaduct"));
        plugin
            .env_clear()
            .env("PATH", binaries::search_path())
            .envs(environment(verb, &self.id))
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut child = netns::within(self.node.netns(), move || {
            plugin.spawn().context("the CNI plugin")
        })?;
        if let Some(mut stdin) = child.stdin.take() {
            // It may be dead already.
            let _ = stdin.write_all(&self.config(None)?);
        }
        std::thread::sleep(after);
        // One that has ended is fine.
        let _ = child.kill();
        child.wait()?;
        Ok(())
    }

    /// Removes the namespace; one that is gone is fine.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn remove(&self) -> Result<()> {
        netns::remove(&self.id)
    }

    fn config(&self, previous: Option<&Value>) -> Result<Vec<u8>> {
        let mut config = self.node.cni_config();
        if let Some(result) = previous {
            config["prevResult"] = result.clone();
        }
        Ok(serde_json::to_vec(&config)?)
    }
}

/// GC of a node: only the containers of these names are there.
///
/// # Errors
/// What the plugin said last.
pub(crate) fn collect(node: &Node, given_up: &AtomicBool, keep: &[&str]) -> Result<()> {
    let valid: Vec<Value> = keep
        .iter()
        .map(|id| json!({"containerID": id, "ifname": IFNAME}))
        .collect();
    let mut config = node.cni_config();
    config["cni.dev/valid-attachments"] = valid.into();
    let config = serde_json::to_vec(&config)?;
    patiently(given_up, || {
        let env = [("CNI_COMMAND", "GC"), ("CNI_PATH", binaries::DIR)];
        node.cni_raw(&env, &config)?.check("GC")
    })
    .map(drop)
}

/// Tries until it works, as long as a runtime would and somebody wants it.
fn patiently<T>(given_up: &AtomicBool, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let tried = eventually(RUNTIME, || match attempt() {
        Err(error) if given_up.load(Ordering::Relaxed) => Ok(Err(error)),
        Err(error) => Err(error),
        Ok(value) => Ok(Ok(value)),
    })?;
    match tried {
        Err(error) => bail!("tried until the soak was given up: {error:#}"),
        Ok(value) => Ok(value),
    }
}

fn environment(verb: &str, id: &str) -> [(&'static str, String); 5] {
    let netns: &Path = &netns::path(id);
    [
        ("CNI_COMMAND", verb.to_owned()),
        ("CNI_CONTAINERID", id.to_owned()),
        ("CNI_NETNS", netns.display().to_string()),
        ("CNI_IFNAME", IFNAME.to_owned()),
        ("CNI_PATH", binaries::DIR.to_owned()),
    ]
}
