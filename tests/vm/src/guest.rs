//! What runs inside a machine: does what the host asks for over the serial port.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::Value;
use viaduct_lab::matrix::{PAYLOAD, node_to_pod, pod_pair};
use viaduct_lab::probe::{Echo, Payload, Server};
use viaduct_lab::{
    Control, Datastore, Lab, LabOptions, Node, Pod, Signal, binaries, command, in_parallel,
    machine, privilege, underlay,
};

use crate::port::{DEVICE, Request, Target};

/// What the payload is drawn from, in every machine.
const SEED: u64 = 87;

/// How long a reply may take, times what an emulated machine is granted.
const PATIENCE: Duration = Duration::from_secs(1);

/// Pairs that are tried at the same time in one machine.
const WIDTH: usize = 2;

/// How long an agent may take to get ready: emulated, and after a power cut not
/// before the lease of the agent that it follows has run out.
const READY: Duration = Duration::from_secs(75);

/// Serves until it is told to stop.
pub(crate) fn run() -> Result<ExitCode> {
    command::run("stty", ["-F", DEVICE, "raw", "-echo"])?;
    let mut device = OpenOptions::new()
        .read(true)
        .write(true)
        .open(DEVICE)
        .context(DEVICE)?;
    let requests = BufReader::new(device.try_clone()?);
    let mut guest = Guest {
        control: Some(machine::take()?),
        payload: Payload::of_seed(SEED, PAYLOAD),
        lab: None,
        node: None,
        servers: Vec::new(),
    };
    writeln!(device, "here")?;
    for line in requests.lines() {
        let request: Request = serde_json::from_str(&line?).context("a request")?;
        let answer = guest.answer(&request).map_err(|error| format!("{error:#}"));
        let mut line = serde_json::to_vec(&answer)?;
        line.push(b'\n');
        device.write_all(&line)?;
        if matches!(request, Request::Stop) {
            return Ok(match answer {
                Ok(_) => ExitCode::SUCCESS,
                Err(_) => ExitCode::FAILURE,
            });
        }
    }
    bail!("the serial port was closed")
}

struct Guest {
    control: Option<Control>,
    payload: Payload,
    lab: Option<Lab>,
    node: Option<Node>,
    servers: Vec<(Target, Server)>,
}

impl Guest {
    fn answer(&mut self, request: &Request) -> Result<Value> {
        match request {
            Request::Address(address) => json(address_card(*address)?),
            Request::Control(controller) => json(self.control(controller)?),
            Request::Node { address, agent } => {
                let name = std::fs::read_to_string("/proc/sys/kernel/hostname")?;
                let node = Node::of_this_machine(name.trim(), *address, agent)?;
                node.start_agent()?;
                node.await_ready(READY)?;
                self.node = Some(node);
                json(())
            }
            Request::Ready => json(self.node()?.await_ready(READY)?),
            Request::DirectRouting(on) => json(self.direct_routing(*on)?),
            Request::AddPods(names) => json(self.add_pods(names)?),
            Request::Mtus => {
                let mtus = self.servers.iter().map(|(target, _)| target.pod.mtu());
                json(mtus.collect::<Result<Vec<u32>>>()?)
            }
            Request::Logs(lines) => {
                let node = self.node.iter().map(|node| {
                    let agent = node.agent();
                    format!("--- {}\n{}\n", agent.name(), agent.log_tail(*lines))
                });
                let lab = self.lab.iter().map(|lab| lab.log_tails(*lines));
                json(node.chain(lab).collect::<String>())
            }
            Request::Capabilities => {
                let pid = self.node()?.agent_pid().context("no agent runs")?;
                json(privilege::holds_only_net_admin(pid)?)
            }
            Request::TryPods { targets, mtu } => {
                let found = in_parallel(WIDTH, &self.pairs(targets), |(from, to)| {
                    pod_pair(from, &to.pod, to.server, *mtu, &self.payload)
                });
                json(found)
            }
            Request::TryNode(targets) => {
                let node = self.node()?;
                let found = in_parallel(WIDTH, targets, |to| {
                    node_to_pod(node.name(), node.netns(), &to.pod, to.server, &self.payload)
                });
                json(found)
            }
            Request::Ping(targets) => {
                json(self.failures(targets, |from, to| from.ping(to.pod.ip, patient())))
            }
            Request::Transfer(targets) => json(self.failures(targets, |from, to| {
                from.transfer(to.server, &self.payload).map(drop)
            })),
            Request::Run(words) => json(self.run_program(words)?),
            Request::Stop => json(self.stop()?),
        }
    }

    fn node(&self) -> Result<&Node> {
        self.node.as_ref().context("this machine is no node")
    }

    /// A lab without nodes: its bridge is the gateway of the wire.
    fn control(&mut self, controller: &[String]) -> Result<String> {
        let options = LabOptions {
            nodes: 0,
            pods: 0,
            datastore: Datastore::Etcd,
            controller_args: controller.to_owned(),
            ..LabOptions::default()
        };
        let control = self.control.take().context("this machine is taken")?;
        let lab = Lab::up(options, control)?;
        command::ip_batch(&format!("link set eth0 master {} up\n", underlay::BRIDGE))?;
        let url = lab.datastore_url().to_owned();
        self.lab = Some(lab);
        Ok(url)
    }

    fn direct_routing(&self, on: bool) -> Result<()> {
        const FLAG: &str = "--direct-routing";
        let node = self.node()?;
        let mut args = node.agent().args();
        args.retain(|arg| arg != FLAG);
        args.extend(on.then(|| FLAG.to_owned()));
        node.agent().set_args(args);
        node.kill_agent(Signal::SIGKILL)?;
        node.start_agent()?;
        node.await_ready(READY)
    }

    fn add_pods(&mut self, names: &[String]) -> Result<Vec<Target>> {
        let mut added = Vec::new();
        for name in names {
            let pod = self.node()?.add_pod(name)?;
            let server = pod.serve(&self.payload)?;
            let target = Target {
                pod,
                server: server.address(),
            };
            added.push(target.clone());
            self.servers.push((target, server));
        }
        Ok(added)
    }

    /// Every pod here with every target that is not itself.
    fn pairs<'a>(&'a self, targets: &'a [Target]) -> Vec<(&'a Pod, &'a Target)> {
        self.servers
            .iter()
            .flat_map(|(from, _)| targets.iter().map(move |to| (&from.pod, to)))
            .filter(|(from, to)| from.name != to.pod.name)
            .collect()
    }

    fn failures(
        &self,
        targets: &[Target],
        attempt: impl Fn(&Pod, &Target) -> Result<()> + Sync,
    ) -> Vec<String> {
        let outcomes = in_parallel(WIDTH * 2, &self.pairs(targets), |(from, to)| {
            attempt(from, to).map_err(|e| format!("{} -> {}: {e:#}", from.name, to.pod.name))
        });
        outcomes.into_iter().filter_map(Result::err).collect()
    }

    fn run_program(&self, words: &[String]) -> Result<String> {
        let (program, args) = words.split_first().context("no program is named")?;
        let mut command = command::command(program);
        command.args(args).env("PATH", binaries::search_path());
        if let Some(lab) = &self.lab {
            command.envs(lab.environment());
        }
        command::output_of(&mut command)
    }

    fn stop(&self) -> Result<()> {
        if let Some(node) = &self.node {
            node.agent().stop()?;
        }
        self.lab.as_ref().map_or(Ok(()), Lab::stop)
    }
}

fn address_card(address: Ipv4Addr) -> Result<()> {
    command::ip_batch(&format!(
        "addr add {address}/24 dev eth0\n\
         link set eth0 up\n\
         route add default via {} dev eth0\n",
        underlay::BRIDGE_ADDRESS
    ))
}

fn patient() -> Echo {
    Echo {
        wait: PATIENCE,
        ..Echo::default()
    }
}

fn json(value: impl Serialize) -> Result<Value> {
    Ok(serde_json::to_value(value)?)
}
