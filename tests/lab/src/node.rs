//! A node of the lab: a network namespace on the underlay, with its own agent,
//! run directory and CNI configuration.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::cni::{self, Outcome};
use crate::daemon::{Daemon, Signal};
use crate::http::{self, Answer};
use crate::pod::Pod;
use crate::privilege::Privilege;
use crate::wait::eventually;
use crate::{binaries, command, netns, underlay};

/// Where the agent serves health, readiness and metrics, in its node's namespace.
pub const AGENT_HTTP: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9870);

/// How long an agent may take to get ready.
pub const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// A node of the lab.
#[derive(Debug)]
pub struct Node {
    name: String,
    address: Ipv4Addr,
    netns: PathBuf,
    run_dir: PathBuf,
    conflist: Value,
    agent: Daemon,
    pods: Mutex<Vec<Pod>>,
}

impl Node {
    /// Makes the namespace and everything in it, but starts no agent.
    pub(crate) fn create(
        name: &str,
        number: usize,
        agent_args: &[String],
        env: &[(String, String)],
    ) -> Result<Self> {
        let address = underlay::address(number)?;
        let netns = netns::add(name)?;
        underlay::attach(name, name, address)
            .with_context(|| format!("node {name} on the underlay"))?;
        Self::within(name, address, netns, agent_args, env)
    }

    /// A node that is this whole machine, which is on an underlay of its own already:
    /// for virtual machines, see [`machine`](crate::machine).
    ///
    /// # Errors
    /// When its directories cannot be made.
    pub fn of_this_machine(name: &str, address: Ipv4Addr, agent_args: &[String]) -> Result<Self> {
        // The first process never leaves the namespace that the kernel started with.
        let netns = PathBuf::from("/proc/1/ns/net");
        Self::within(name, address, netns, agent_args, &[])
    }

    fn within(
        name: &str,
        address: Ipv4Addr,
        netns: PathBuf,
        agent_args: &[String],
        env: &[(String, String)],
    ) -> Result<Self> {
        let run_dir = PathBuf::from(format!("/run/viaduct-{name}"));
        Privilege::NetAdmin.own_dir(&run_dir, 0o755)?;
        let conflist = cni::conflist(&run_dir.join("cni.sock"));
        let net_d = Path::new(crate::lab::DIR)
            .join("nodes")
            .join(name)
            .join("net.d");
        std::fs::create_dir_all(&net_d)?;
        std::fs::write(
            net_d.join("10-viaduct.conflist"),
            serde_json::to_vec_pretty(&conflist)?,
        )?;
        let mut args = vec![
            "--node-name".to_owned(),
            name.to_owned(),
            "--run-dir".to_owned(),
            run_dir.display().to_string(),
            "--http".to_owned(),
            AGENT_HTTP.to_string(),
        ];
        args.extend_from_slice(agent_args);
        let agent = Daemon::new(
            &format!("agent-{name}"),
            binaries::program("viaduct-agent"),
            args,
            Some(netns.clone()),
            Privilege::NetAdmin,
        )
        .with_env(env);
        Ok(Self {
            name: name.to_owned(),
            address,
            netns,
            run_dir,
            conflist,
            agent,
            pods: Mutex::default(),
        })
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address on the underlay.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// The path of its network namespace.
    pub fn netns(&self) -> &Path {
        &self.netns
    }

    /// The agent's run directory.
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// The agent's process.
    pub fn agent(&self) -> &Daemon {
        &self.agent
    }

    /// The agent's process id inside the lab, while it runs.
    pub fn agent_pid(&self) -> Option<u32> {
        self.agent.pid()
    }

    /// Starts the agent and does not wait.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_agent(&self) -> Result<()> {
        self.agent.start()
    }

    /// Kills the agent with a signal and waits until it has ended.
    ///
    /// # Errors
    /// When it does not run or does not end.
    pub fn kill_agent(&self, signal: Signal) -> Result<ExitStatus> {
        self.agent.kill(signal)
    }

    /// Kills the agent without warning, if it runs, starts it again and waits until
    /// it is ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn restart_agent(&self) -> Result<()> {
        if self.agent.is_running() {
            self.agent.kill(Signal::SIGKILL)?;
        }
        self.start_agent()?;
        self.await_ready(READY_TIMEOUT)
    }

    /// Waits until the agent says that the kernel is as it should be.
    ///
    /// # Errors
    /// What is not ready, or how the agent ended, with the end of its log.
    pub fn await_ready(&self, timeout: Duration) -> Result<()> {
        let mut ended = None;
        let waited = eventually(timeout, || {
            if let Err(error) = self.agent.still_runs() {
                ended = Some(error);
                return Ok(());
            }
            let answer = self.readyz()?;
            anyhow::ensure!(answer.status == 200, "not ready: {}", answer.body.trim());
            Ok(())
        });
        match ended {
            Some(error) => Err(error),
            None => waited.with_context(|| {
                format!(
                    "agent {}; its log ends:\n{}",
                    self.name,
                    self.agent.log_tail(10)
                )
            }),
        }
    }

    /// What the agent's `/readyz` answers.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn readyz(&self) -> Result<Answer> {
        http::get(&self.netns, AGENT_HTTP, "/readyz")
    }

    /// The agent's metrics as text.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn metrics(&self) -> Result<String> {
        Ok(http::get(&self.netns, AGENT_HTTP, "/metrics")?.body)
    }

    /// One sample of the agent's metrics, by its name and labels as they stand in
    /// the text.
    ///
    /// # Errors
    /// When there is no such sample.
    pub fn metric(&self, sample: &str) -> Result<f64> {
        let text = self.metrics()?;
        text.lines()
            .find_map(|line| line.strip_prefix(sample)?.trim().parse().ok())
            .with_context(|| format!("agent {} has no metric {sample}", self.name))
    }

    /// Makes a pod: a namespace, wired by the CNI plugin. Its name is
    /// `<node>/<name>`.
    ///
    /// # Errors
    /// What the plugin said; the namespace is removed again then.
    pub fn add_pod(&self, name: &str) -> Result<Pod> {
        let full = format!("{}-{name}", self.name);
        let netns = netns::add(&full)?;
        let wired = self
            .cni("ADD", &full, &netns)
            .and_then(|outcome| outcome.check(&format!("ADD of {}/{name}", self.name)))
            .and_then(|outcome| Ok((outcome.address()?, outcome)));
        let (ip, outcome) = match wired {
            Ok(wired) => wired,
            Err(error) => {
                let _ = netns::remove(&full);
                return Err(error);
            }
        };
        let pod = Pod {
            name: format!("{}/{name}", self.name),
            node: self.name.clone(),
            container_id: full,
            netns,
            ip,
            result: outcome.json,
        };
        self.pods
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(pod.clone());
        Ok(pod)
    }

    /// Unwires a pod and removes its namespace.
    ///
    /// # Errors
    /// What the plugin said.
    pub fn del_pod(&self, pod: &Pod) -> Result<()> {
        self.cni("DEL", &pod.container_id, &pod.netns)?
            .check(&format!("DEL of {}", pod.name))?;
        netns::remove(&pod.container_id)?;
        self.pods
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|p| p.container_id != pod.container_id);
        Ok(())
    }

    /// The pods that are there, in the order in which they were made.
    pub fn pods(&self) -> Vec<Pod> {
        self.pods
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Calls the plugin with a verb as a runtime would.
    ///
    /// # Errors
    /// When it cannot be started; failure of the verb is an outcome.
    pub fn cni(&self, verb: &str, container_id: &str, netns: &Path) -> Result<Outcome> {
        let netns = netns.display().to_string();
        let env = [
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", container_id),
            ("CNI_NETNS", &netns),
            ("CNI_IFNAME", cni::IFNAME),
            ("CNI_PATH", binaries::DIR),
        ];
        self.cni_raw(&env, &serde_json::to_vec(&self.cni_config())?)
    }

    /// Calls the plugin with any environment and standard input.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn cni_raw(&self, env: &[(&str, &str)], stdin: &[u8]) -> Result<Outcome> {
        cni::call(&self.netns, env, stdin)
    }

    /// The plugin's configuration as a runtime passes it on standard input.
    pub fn cni_config(&self) -> Value {
        cni::plugin_config(&self.conflist)
    }

    /// Runs a program in the node's namespace and returns its standard output.
    ///
    /// # Errors
    /// When it cannot be started or fails.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let mut command = command::command(program);
        command.args(args).env("PATH", binaries::search_path());
        netns::run(&self.netns, command)
    }

    /// As [`Node::run`], for a command line without quoting: `node.ip("route")`.
    ///
    /// # Errors
    /// As [`Node::run`].
    pub fn ip(&self, args: &str) -> Result<String> {
        self.run("ip", &args.split_whitespace().collect::<Vec<_>>())
    }

    /// Runs a prepared command in the node's namespace.
    ///
    /// # Errors
    /// As [`Node::run`].
    pub fn run_command(&self, command: Command) -> Result<String> {
        netns::run(&self.netns, command)
    }
}
