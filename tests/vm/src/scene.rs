//! The scene: one machine with the datastore and the controller, and nodes that are
//! a machine each, all on one wire.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::Ipv4Addr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::de::DeserializeOwned;
use serde_json::Value;
use viaduct_lab::environment::scaled;
use viaduct_lab::matrix::{Matrix, NodeToPod, PodPair};
use viaduct_lab::{Seen, in_parallel, underlay};

use crate::ClusterArgs;
use crate::image::Hardware;
use crate::machine::Machine;
use crate::port::{Port, Request, Target};
use crate::script::script;
use crate::wire::{Wire, plug};

/// How many nodes there are.
pub(crate) const NODES: u8 = 3;

/// The plug of the machine with the datastore.
const CONTROL: u8 = NODES + 1;

/// How long a machine may take to end what it does and go off.
const GOING_OFF: Duration = Duration::from_secs(30);

/// The pods that a node is given when it comes up.
const PODS: [&str; 2] = ["p1", "p2"];

/// A machine that is on and does what it is asked for.
#[derive(Debug)]
struct On {
    machine: Machine,
    port: Port,
}

/// A machine's place on the wire; it may be off.
#[derive(Debug)]
pub(crate) struct Host {
    name: String,
    number: u8,
    on: Mutex<Option<On>>,
    /// The pods that it has, or had before it went off.
    targets: Mutex<Vec<Target>>,
}

impl Host {
    fn new(name: String, number: u8) -> Self {
        Self {
            name,
            number,
            on: Mutex::default(),
            targets: Mutex::default(),
        }
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Asks the guest.
    pub(crate) fn ask<T: DeserializeOwned>(&self, request: &Request) -> Result<T> {
        let mut on = locked(&self.on);
        let on = on
            .as_mut()
            .with_context(|| format!("{} is off", self.name))?;
        on.port
            .ask(request)
            .with_context(|| on.machine.told("could not do what it was asked for"))
    }

    /// Runs a program in the machine.
    pub(crate) fn run(&self, line: &str) -> Result<String> {
        let words = line.split_whitespace().map(str::to_owned).collect();
        self.ask(&Request::Run(words))
    }

    /// Runs a shell script in the machine, up to the first thing that fails.
    pub(crate) fn shell(&self, script: &str) -> Result<String> {
        let words = ["sh", "-ec", script].map(str::to_owned);
        self.ask(&Request::Run(words.into()))
    }

    /// Wires more pods.
    pub(crate) fn add_pods(&self, names: &[&str]) -> Result<()> {
        let names = names.iter().map(|&name| name.to_owned()).collect();
        let added: Vec<Target> = self.ask(&Request::AddPods(names))?;
        locked(&self.targets).extend(added);
        Ok(())
    }

    /// Its pods.
    pub(crate) fn targets(&self) -> Vec<Target> {
        locked(&self.targets).clone()
    }

    /// Pulls the network cable, or puts it back.
    pub(crate) fn cable(&self, plugged: bool) -> Result<()> {
        let on = locked(&self.on);
        let on = on
            .as_ref()
            .with_context(|| format!("{} is off", self.name))?;
        on.machine.cable(plugged)
    }

    /// Stops the machine where it is, its clocks too, as a host does with a machine that
    /// it suspends or moves; or lets it go on.
    pub(crate) fn pause(&self, paused: bool) -> Result<()> {
        let on = locked(&self.on);
        let on = on
            .as_ref()
            .with_context(|| format!("{} is off", self.name))?;
        on.machine.pause(paused)
    }

    /// Cuts the power.
    pub(crate) fn cut(&self) -> Result<()> {
        let on = locked(&self.on).take();
        locked(&self.targets).clear();
        on.with_context(|| format!("{} is off", self.name))?
            .machine
            .cut()
    }

    fn boot(&self, args: &ClusterArgs) -> Result<()> {
        let hardware = Hardware {
            name: self.name.clone(),
            memory: 512,
            plug: Some(plug(self.number)),
        };
        let this = std::env::current_exe().context("the path of this program")?;
        let guest = script(&[this.display().to_string(), "guest".to_owned()]);
        let mut machine = Machine::on(&args.image, &hardware, &guest, false)?;
        let port = machine.port()?;
        *locked(&self.on) = Some(On { machine, port });
        Ok(())
    }

    /// Has it end cleanly, and checks that it did.
    fn stop(&self) -> Result<()> {
        self.ask::<()>(&Request::Stop)?;
        let on = locked(&self.on).take();
        let on = on.with_context(|| format!("{} is off", self.name))?;
        let result = on.machine.result(scaled(GOING_OFF))?;
        ensure!(result == 0, "machine {} ended with {result}", self.name);
        Ok(())
    }
}

/// All of it.
#[derive(Debug)]
pub(crate) struct Scene {
    args: ClusterArgs,
    wire: Wire,
    control: Host,
    datastore: String,
    hosts: Vec<Host>,
}

impl Scene {
    /// Switches everything on and waits until all pods are wired.
    pub(crate) fn up(args: &ClusterArgs) -> Result<Self> {
        let scene = Self::on(args, &[])?;
        scene.each(|host| scene.join(host))?;
        Ok(scene)
    }

    /// Switches everything on, and starts etcd and the controller with these arguments
    /// beside its own. No machine is a node yet.
    pub(crate) fn on(args: &ClusterArgs, controller: &[&str]) -> Result<Self> {
        let wire = Wire::lay(CONTROL)?;
        let control = Host::new("control".to_owned(), CONTROL);
        let hosts: Vec<Host> = (1..=NODES)
            .map(|number| Host::new(format!("n{number}"), number))
            .collect();
        let all: Vec<&Host> = hosts.iter().chain([&control]).collect();
        collect(in_parallel(all.len(), &all, |host| host.boot(args)))?;
        let controller = controller.iter().map(|&arg| arg.to_owned()).collect();
        let datastore = control.ask(&Request::Control(controller))?;
        Ok(Self {
            args: args.clone(),
            wire,
            control,
            datastore,
            hosts,
        })
    }

    /// The node with this number, counted from 1.
    pub(crate) fn host(&self, number: u8) -> Result<&Host> {
        let found = self.hosts.iter().find(|host| host.number == number);
        found.with_context(|| format!("there is no node {number}"))
    }

    /// Does something with every node at the same time.
    pub(crate) fn each<T: Send>(&self, work: impl Fn(&Host) -> Result<T> + Sync) -> Result<Vec<T>> {
        collect(in_parallel(self.hosts.len(), &self.hosts, work))
    }

    /// Switches a machine on that is off, and has it be the node that it was.
    pub(crate) fn boot(&self, host: &Host) -> Result<()> {
        host.boot(&self.args)?;
        self.join(host)
    }

    /// Makes a machine a node with its pods.
    pub(crate) fn join(&self, host: &Host) -> Result<()> {
        let address = self.address(host)?;
        host.ask::<()>(&Request::Address(address))?;
        let agent = [
            "--datastore",
            &self.datastore,
            "--backend",
            self.args.backend.name(),
        ];
        host.ask::<()>(&Request::Node {
            address,
            agent: agent.map(str::to_owned).into(),
        })?;
        host.add_pods(&PODS)
    }

    /// All pods of the nodes that are on.
    pub(crate) fn targets(&self) -> Vec<Target> {
        self.hosts.iter().flat_map(Host::targets).collect()
    }

    /// A node's address on the wire.
    pub(crate) fn address(&self, host: &Host) -> Result<Ipv4Addr> {
        underlay::address(host.number.into())
    }

    /// What was on the wire since this was asked before.
    pub(crate) fn seen(&self) -> Seen {
        self.wire.seen()
    }

    /// Tries everything between all pods, and from all nodes to them.
    pub(crate) fn matrix(&self) -> Result<Matrix> {
        let targets = self.targets();
        let mtus = self.each(|host| host.ask::<Vec<u32>>(&Request::Mtus))?;
        let mtus: Vec<u32> = mtus.into_iter().flatten().collect();
        let mtu = *mtus.first().context("there are no pods")?;
        ensure!(
            mtus.iter().all(|m| *m == mtu),
            "the pods' MTUs differ: {mtus:?}"
        );
        self.wire.seen();
        let found = self.each(|host| {
            let pods: Vec<PodPair> = host.ask(&Request::TryPods {
                targets: targets.clone(),
                mtu,
            })?;
            let nodes: Vec<NodeToPod> = host.ask(&Request::TryNode(targets.clone()))?;
            let capabilities = host.ask::<()>(&Request::Capabilities);
            Ok((pods, nodes, capabilities))
        })?;
        let seen = self.wire.seen();
        let (mut pods, mut nodes, mut capabilities) = (Vec::new(), Vec::new(), Ok(()));
        for (some, others, holds) in found {
            pods.extend(some);
            nodes.extend(others);
            capabilities = capabilities.and(holds.map_err(|error| format!("{error:#}")));
        }
        Ok(Matrix::of(
            mtu,
            self.args.backend.carriage(),
            pods,
            nodes,
            seen,
            capabilities,
        ))
    }

    /// The nodes and what is said of each, as viaductctl tells people.
    pub(crate) fn nodes(&self) -> Result<String> {
        self.control.run("viaductctl nodes")
    }

    /// The blocks and whose they are, as viaductctl tells them.
    pub(crate) fn blocks(&self) -> Result<BTreeMap<String, String>> {
        let text = self.control.run("viaductctl blocks -o json")?;
        let value: Value = serde_json::from_str(&text).context("viaductctl blocks -o json")?;
        let blocks = value
            .as_array()
            .context("viaductctl shows no list of blocks")?;
        let field = |block: &Value, name: &str| -> Result<String> {
            let text = block[name].as_str().map(str::to_owned);
            text.with_context(|| format!("a block without {name}: {block}"))
        };
        blocks
            .iter()
            .map(|block| Ok((field(block, "cidr")?, field(block, "node")?)))
            .collect()
    }

    /// Ends everything cleanly, the nodes first.
    pub(crate) fn down(&self) -> Result<()> {
        self.each(Host::stop)?;
        self.control.stop()
    }

    /// The ends of all logs, for people; of what can still be asked.
    pub(crate) fn logs(&self) -> String {
        let hosts = self.hosts.iter().chain([&self.control]);
        hosts
            .map(|host| {
                let log = host.ask::<String>(&Request::Logs(20));
                log.unwrap_or_else(|error| format!("--- {}: {error:#}\n", host.name))
            })
            .collect()
    }
}

/// Fails with everything that failed.
fn collect<T>(outcomes: Vec<Result<T>>) -> Result<Vec<T>> {
    let (good, bad): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    let bad: Vec<String> = bad
        .into_iter()
        .filter_map(|outcome| Some(format!("{:#}", outcome.err()?)))
        .collect();
    refuse_any("", &bad)?;
    Ok(good.into_iter().flatten().collect())
}

/// Fails when there are any failures, with all of them.
pub(crate) fn refuse_any(what: &str, failures: &[impl Display]) -> Result<()> {
    if failures.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = failures
        .iter()
        .map(|failure| format!("\n{failure}"))
        .collect();
    bail!("{what}{}", lines.concat())
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
