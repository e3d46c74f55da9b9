//! The lab that it happens in: three nodes on etcd, two controllers, pods that stay.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use viaduct_e2e::Run;
use viaduct_lab::{
    Control, Daemon, Datastore, Echo, Lab, LabOptions, Node, Pod, binaries, eventually, http,
    in_parallel, lab::CONTROLLER_HTTP,
};

use crate::book::Book;

/// How many nodes there are.
pub(crate) const NODES: usize = 3;
/// How many pods stay on each of them.
const STAY: usize = 2;
/// How long anything may take to be well again once its cause is gone.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How long a block has to be empty and dispensable until it goes back.
const GIVE_BACK_AFTER: &str = "1s";
/// How a command gets to a node of the lab.
const REACH: &str = "VIADUCT_RUN_DIR=/run/viaduct-{node} nsenter --net=/run/netns/{node}";
/// Where the second controller serves its metrics.
const SPARE_HTTP: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9872);
/// Pings at the same time.
const WIDTH: usize = 6;

/// The lab, with what is known of it.
#[derive(Debug)]
pub(crate) struct Scene {
    /// The lab.
    pub lab: Lab,
    /// Its nodes.
    pub nodes: Vec<Arc<Node>>,
    /// The pods that stay, with the number of their node.
    pub stays: Vec<(usize, Pod)>,
    spare: Daemon,
    book: Mutex<Book>,
    given_up: AtomicBool,
}

impl Scene {
    /// Brings all of it up.
    ///
    /// # Errors
    /// What does not come up.
    pub(crate) fn up(control: Control) -> Result<Self> {
        let options = LabOptions {
            nodes: NODES,
            pods: STAY,
            datastore: Datastore::Etcd,
            // Blocks of 16 addresses, so that nodes need more of them now and then and
            // give them back soon.
            controller_args: ["--block-size", "28"].map(str::to_owned).to_vec(),
            agent_args: ["--give-back-after", GIVE_BACK_AFTER]
                .map(str::to_owned)
                .to_vec(),
            ..LabOptions::default()
        };
        let lab = Lab::up_with(options, control, &|step| println!("  {step}"))?;
        let spare = lab.another_controller("controller-2", SPARE_HTTP.port());
        spare.start()?;
        let nodes = lab.nodes();
        let mut stays = Vec::new();
        let mut book = Book::default();
        for (number, node) in nodes.iter().enumerate() {
            for pod in node.pods() {
                book.given(pod.ip, &pod.container_id)?;
                stays.push((number, pod));
            }
        }
        let scene = Self {
            lab,
            nodes,
            stays,
            spare,
            book: Mutex::new(book),
            given_up: AtomicBool::new(false),
        };
        scene.well()?;
        Ok(scene)
    }

    /// Who has which address.
    pub(crate) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether something is so wrong that waiting for anything is in vain.
    pub(crate) fn given_up(&self) -> &AtomicBool {
        &self.given_up
    }

    /// Both controllers.
    pub(crate) fn controllers(&self) -> [&Daemon; 2] {
        [self.lab.controller(), &self.spare]
    }

    /// etcd's process.
    pub(crate) fn etcd(&self) -> Result<&Daemon> {
        self.lab.store().daemon().context("the lab has no etcd")
    }

    /// The number of the controller that leads.
    ///
    /// # Errors
    /// When none does, or both do.
    pub(crate) fn leader(&self) -> Result<usize> {
        let leads = |address| -> bool {
            let answer = http::get_here(address, "/metrics");
            answer.is_ok_and(|answer| leads(&answer.body))
        };
        match [leads(CONTROLLER_HTTP), leads(SPARE_HTTP)] {
            [true, false] => Ok(0),
            [false, true] => Ok(1),
            [false, false] => anyhow::bail!("no controller leads"),
            [true, true] => anyhow::bail!("both controllers say that they lead"),
        }
    }

    /// Every pod that stays reaches every other, now.
    ///
    /// # Errors
    /// The first that does not.
    pub(crate) fn reached(&self) -> Result<()> {
        let pairs: Vec<(&Pod, &Pod)> = self
            .stays
            .iter()
            .flat_map(|(_, from)| self.stays.iter().map(move |(_, to)| (from, to)))
            .filter(|(from, to)| from.name != to.name)
            .collect();
        in_parallel(WIDTH, &pairs, |(from, to)| {
            from.ping(to.ip, Echo::default())
        })
        .into_iter()
        .collect()
    }

    /// Waits until everything runs, every agent is content, one controller leads and all
    /// pods that stay reach each other. Says what had to be waited for last.
    ///
    /// # Errors
    /// What is not well.
    pub(crate) fn well(&self) -> Result<Option<String>> {
        for daemon in self.daemons()? {
            daemon.still_runs()?;
            ensure!(daemon.is_running(), "{} does not run", daemon.name());
        }
        let mut last = None;
        eventually(PATIENCE, || {
            let now = self.is_well();
            if let Err(error) = &now {
                last = Some(format!("{error:#}"));
            }
            now
        })?;
        Ok(last)
    }

    fn is_well(&self) -> Result<()> {
        in_parallel(NODES, &self.nodes, |node| {
            let ready = node.readyz()?;
            let content = ready.status == 200 && ready.body.trim() == "ok";
            ensure!(content, "agent {}: {}", node.name(), ready.body.trim());
            Ok(())
        })
        .into_iter()
        .collect::<Result<()>>()?;
        self.leader()?;
        self.reached()
    }

    /// All programs that are to run.
    pub(crate) fn daemons(&self) -> Result<Vec<&Daemon>> {
        let agents = self.nodes.iter().map(|node| node.agent());
        Ok([self.etcd()?]
            .into_iter()
            .chain(self.controllers())
            .chain(agents)
            .collect())
    }

    /// `viaductctl ipam check` over all nodes.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn ipam_check(&self) -> Result<Run> {
        let mut env = self.lab.environment();
        env.push(("PATH".to_owned(), binaries::search_path()));
        env.push(("VIADUCT_REACH".to_owned(), REACH.to_owned()));
        viaduct_e2e::run("viaductctl", &["ipam", "check"], &env)
    }
}

/// Whether metrics say that a controller leads.
fn leads(metrics: &str) -> bool {
    let sample = |line: &str| {
        line.strip_prefix("viaduct_controller_leader ")
            .map(str::trim)
            == Some("1")
    };
    metrics.lines().any(sample)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_is_known_by_its_metric() {
        assert!(leads("# HELP x\nviaduct_controller_leader 1\n"));
        assert!(!leads("viaduct_controller_leader 0\n"));
        assert!(!leads(""));
    }
}
