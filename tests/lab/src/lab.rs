//! The lab itself: an underlay, a datastore, a controller, nodes.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::control::Control;
use crate::daemon::Daemon;
use crate::http::{self, Answer};
use crate::node::{Node, READY_TIMEOUT};
use crate::options::LabOptions;
use crate::pod::Pod;
use crate::privilege::{Privilege, make_dir};
use crate::store::StoreServer;
use crate::wait::{eventually, in_parallel};
use crate::{binaries, underlay};

/// Where the lab keeps its files, in its own `/run`.
pub const DIR: &str = "/run/lab";
/// Where the daemons' logs are.
pub const LOGS: &str = "/run/lab/logs";
/// Where the controller serves health, readiness and metrics.
pub const CONTROLLER_HTTP: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9871);

/// How many things are set up at the same time.
const WIDTH: usize = 8;

/// A running lab. Dropping it does nothing: its namespaces end with the process.
#[derive(Debug)]
pub struct Lab {
    options: LabOptions,
    control: Arc<Control>,
    store: StoreServer,
    controller: Daemon,
    nodes: Mutex<Vec<Arc<Node>>>,
}

impl Lab {
    /// Brings up everything that the options ask for and waits until it is ready,
    /// telling each step to `progress`. Must run inside, see
    /// [`enter`](crate::enter).
    ///
    /// # Errors
    /// The first thing that does not come up.
    pub fn up_with(options: LabOptions, control: Control, progress: &dyn Fn(&str)) -> Result<Self> {
        let lab = Self::base(options, control, progress)?;
        let (nodes, pods) = (lab.options.nodes, lab.options.pods);
        if lab.options.controller {
            lab.start_controller()?;
        }
        if nodes > 0 {
            progress(&format!("starting {nodes} nodes"));
            lab.add_nodes(nodes)?;
        }
        if pods > 0 {
            progress(&format!(
                "adding {} pods through the CNI plugin",
                nodes * pods
            ));
            lab.add_pods(pods)?;
        }
        Ok(lab)
    }

    /// As [`Lab::up_with`], silently.
    ///
    /// # Errors
    /// As [`Lab::up_with`].
    pub fn up(options: LabOptions, control: Control) -> Result<Self> {
        Self::up_with(options, control, &|_| ())
    }

    /// Underlay and datastore; everything else is described but not started.
    fn base(options: LabOptions, control: Control, progress: &dyn Fn(&str)) -> Result<Self> {
        options.check()?;
        prepare()?;
        progress("laying the underlay 172.29.0.0/24");
        underlay::up()?;
        progress("opening the datastore");
        let control = Arc::new(control);
        let store = StoreServer::start(&options.datastore, &control)?;
        let mut args = store_flags(&store, &options);
        args.extend(["--http".to_owned(), CONTROLLER_HTTP.to_string()]);
        if let Some(pool) = &options.pool {
            args.extend(["--pool".to_owned(), pool.clone()]);
        }
        args.extend_from_slice(&options.controller_args);
        let controller = Daemon::new(
            "controller",
            binaries::program("viaduct-controller"),
            args,
            None,
            Privilege::Plain,
        )
        .with_env(&options.env);
        Ok(Self {
            options,
            control,
            store,
            controller,
            nodes: Mutex::default(),
        })
    }

    /// What the lab was asked to be.
    pub fn options(&self) -> &LabOptions {
        &self.options
    }

    /// The way out of the lab, to the process that started it.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// The datastore.
    pub fn store(&self) -> &StoreServer {
        &self.store
    }

    /// The datastore's URL inside the lab.
    pub fn datastore_url(&self) -> &str {
        self.store.url()
    }

    /// The datastore as the programs' flags name it.
    pub fn store_options(&self) -> viaduct_datastore::StoreOptions {
        viaduct_datastore::StoreOptions {
            url: self.store.url().to_owned(),
            kubeconfig: self.store.kubeconfig(),
            etcd_prefix: Some(self.options.etcd_prefix.clone()),
            ..Default::default()
        }
    }

    /// What everything that runs in the lab finds in its environment.
    pub fn environment(&self) -> Vec<(String, String)> {
        let mut env = vec![
            ("PATH".to_owned(), binaries::search_path()),
            ("VIADUCT_DATASTORE".to_owned(), self.store.url().to_owned()),
            (
                "VIADUCT_ETCD_PREFIX".to_owned(),
                self.options.etcd_prefix.clone(),
            ),
        ];
        if let Some(endpoints) = self.store.etcd_endpoints() {
            env.push(("ETCDCTL_ENDPOINTS".to_owned(), endpoints.to_owned()));
            env.push(("ETCDCTL_API".to_owned(), "3".to_owned()));
        }
        env
    }

    /// The controller's process.
    pub fn controller(&self) -> &Daemon {
        &self.controller
    }

    /// Starts the controller and waits until it answers.
    ///
    /// # Errors
    /// How it ended, or that it does not answer.
    pub fn start_controller(&self) -> Result<()> {
        self.controller.start()?;
        let mut ended = None;
        eventually(READY_TIMEOUT, || {
            if let Err(error) = self.controller.still_runs() {
                ended = Some(error);
                return Ok(());
            }
            self.controller_http("/healthz").map(drop)
        })
        .with_context(|| {
            format!(
                "the controller; its log ends:\n{}",
                self.controller.log_tail(10)
            )
        })?;
        ended.map_or(Ok(()), Err)
    }

    /// What the controller answers to a path such as `/metrics`.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn controller_http(&self, path: &str) -> Result<Answer> {
        http::get_here(CONTROLLER_HTTP, path)
    }

    /// Another controller, not yet started, with its health at `port`.
    pub fn another_controller(&self, name: &str, port: u16) -> Daemon {
        let mut args = self.controller.args();
        if let Some(at) = args.iter().position(|a| a == "--http") {
            args[at + 1] = format!("127.0.0.1:{port}");
        }
        Daemon::new(
            name,
            binaries::program("viaduct-controller"),
            args,
            None,
            Privilege::Plain,
        )
        .with_env(&self.options.env)
    }

    /// The next node, with its namespace but without a running agent.
    ///
    /// # Errors
    /// When its namespace cannot be made.
    pub fn new_node(&self) -> Result<Arc<Node>> {
        let number = self.nodes().len() + 1;
        self.store.register(&format!("n{number}"))?;
        let mut args = store_flags(&self.store, &self.options);
        args.extend(self.options.backend_flags());
        args.extend_from_slice(&self.options.agent_args);
        let node = Arc::new(Node::create(
            &format!("n{number}"),
            number,
            &args,
            &self.options.env,
        )?);
        self.nodes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Arc::clone(&node));
        Ok(node)
    }

    /// Adds a node and waits until its agent is ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn add_node(&self) -> Result<Arc<Node>> {
        let node = self.new_node()?;
        node.start_agent()?;
        node.await_ready(READY_TIMEOUT)?;
        Ok(node)
    }

    /// Adds several nodes at the same time.
    ///
    /// # Errors
    /// When one of them does not become ready.
    pub fn add_nodes(&self, count: usize) -> Result<()> {
        let mut new = Vec::new();
        for _ in 0..count {
            new.push(self.new_node()?);
        }
        for node in &new {
            node.start_agent()?;
        }
        in_parallel(WIDTH, &new, |node| node.await_ready(READY_TIMEOUT))
            .into_iter()
            .collect()
    }

    /// Adds pods `p1`, `p2`, ... to every node.
    ///
    /// # Errors
    /// When one of them cannot be wired.
    pub fn add_pods(&self, per_node: usize) -> Result<()> {
        in_parallel(WIDTH, &self.nodes(), |node| {
            (1..=per_node).try_for_each(|p| node.add_pod(&format!("p{p}")).map(drop))
        })
        .into_iter()
        .collect()
    }

    /// The nodes, in the order in which they were made.
    pub fn nodes(&self) -> Vec<Arc<Node>> {
        self.nodes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// A node by its name.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn node(&self, name: &str) -> Result<Arc<Node>> {
        self.nodes()
            .into_iter()
            .find(|node| node.name() == name)
            .with_context(|| format!("the lab has no node {name}"))
    }

    /// All pods of all nodes.
    pub fn pods(&self) -> Vec<Pod> {
        self.nodes().iter().flat_map(|node| node.pods()).collect()
    }

    /// Waits until every agent is ready.
    ///
    /// # Errors
    /// The first that does not become ready.
    pub fn await_ready(&self, timeout: Duration) -> Result<()> {
        in_parallel(WIDTH, &self.nodes(), |node| node.await_ready(timeout))
            .into_iter()
            .collect()
    }

    /// Stops everything cleanly, agents first, so that a datastore outside the lab
    /// is left without anybody's lease.
    ///
    /// # Errors
    /// The first that did not stop cleanly.
    pub fn stop(&self) -> Result<()> {
        in_parallel(WIDTH, &self.nodes(), |node| node.agent().stop())
            .into_iter()
            .chain([self.controller.stop()])
            .collect()
    }

    /// The end of every daemon's log, for people.
    pub fn log_tails(&self, lines: usize) -> String {
        let nodes = self.nodes();
        let daemons = self
            .store
            .daemon()
            .into_iter()
            .chain([&self.controller])
            .chain(nodes.iter().map(|node| node.agent()));
        daemons
            .map(|daemon| format!("--- {}\n{}\n", daemon.name(), daemon.log_tail(lines)))
            .collect()
    }
}

/// Makes the lab's directories and shows the programs under test in one of them.
///
/// # Errors
/// Names a program that is missing.
pub(crate) fn prepare() -> Result<()> {
    make_dir(Path::new(DIR), 0o755)?;
    make_dir(Path::new(LOGS), 0o755)?;
    binaries::install()
}

fn store_flags(store: &StoreServer, options: &LabOptions) -> Vec<String> {
    let mut flags = vec!["--datastore".to_owned(), store.url().to_owned()];
    flags.extend(["--etcd-prefix".to_owned(), options.etcd_prefix.clone()]);
    if let Some(file) = store.kubeconfig() {
        flags.extend(["--kubeconfig".to_owned(), file.display().to_string()]);
    }
    flags
}
