//! Calling a CNI plugin as a runtime does, and timing it: the same way for
//! Viaduct's and for the reference's.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use viaduct_lab::cni::IFNAME;

/// A pod's namespace, waiting to be wired.
#[derive(Debug, Clone)]
pub(crate) struct Sandbox {
    /// The container id.
    pub id: String,
    /// The namespace's path.
    pub netns: PathBuf,
}

/// A plugin with its configuration.
#[derive(Debug, Clone)]
pub(crate) struct Plugin {
    /// For messages.
    pub name: &'static str,
    /// The binary.
    pub program: PathBuf,
    /// Where it finds others (`CNI_PATH`).
    pub path: PathBuf,
    /// The configuration, as a runtime passes it.
    pub config: Value,
}

/// A call that succeeded.
#[derive(Debug)]
pub(crate) struct Called {
    /// From before the process was started until after it had ended.
    pub took: Duration,
    /// The result of ADD.
    pub result: Value,
}

impl Plugin {
    /// Wires a pod. To be called in the node's namespace.
    ///
    /// # Errors
    /// What the plugin said.
    pub(crate) fn add(&self, sandbox: &Sandbox) -> Result<Called> {
        self.call("ADD", sandbox, &serde_json::to_vec(&self.config)?)
    }

    /// Unwires a pod; `result` is what ADD returned, which runtimes hand back.
    ///
    /// # Errors
    /// What the plugin said.
    pub(crate) fn del(&self, sandbox: &Sandbox, result: &Value) -> Result<Called> {
        let mut config = self.config.clone();
        config["prevResult"] = result.clone();
        self.call("DEL", sandbox, &serde_json::to_vec(&config)?)
    }

    fn call(&self, verb: &str, sandbox: &Sandbox, config: &[u8]) -> Result<Called> {
        let mut command = Command::new(&self.program);
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &sandbox.id)
            .env("CNI_NETNS", &sandbox.netns)
            .env("CNI_IFNAME", IFNAME)
            .env("CNI_PATH", &self.path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let start = Instant::now();
        let mut child = command
            .spawn()
            .with_context(|| format!("{} cannot be started", self.program.display()))?;
        if let Some(mut stdin) = child.stdin.take() {
            // Fits the pipe; that it may end without reading is its right.
            let _ = stdin.write_all(config);
        }
        let output = child.wait_with_output()?;
        let took = start.elapsed();
        if !output.status.success() {
            bail!(
                "{verb} of {} by {}: {}: {}{}",
                sandbox.id,
                self.name,
                output.status,
                String::from_utf8_lossy(&output.stdout).trim(),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        let result = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        Ok(Called { took, result })
    }
}
