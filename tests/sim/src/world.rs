//! The world: who acts next. What goes wrong is in [`faults`], what must always be so in
//! [`rules`].

mod faults;
mod rules;

use std::time::Duration;

use viaduct_controller::decide::Policy;
use viaduct_controller::memory::LISTEN;
use viaduct_datastore::NodeCidrs;
use viaduct_model::{Cidr, Pool};

use crate::agent::Agent;
use crate::controller::Controller;
use crate::rng::Rng;
use crate::store::{Content, SimStore};

/// Nodes.
const NODES: usize = 20;

/// How long a node that vanished keeps its blocks, in milliseconds.
const RECLAIM: u64 = 60_000;

/// The same where somebody wants them back soon: less than a block is trusted.
const HASTY: u64 = 1_000;

/// How long a block rests, in milliseconds.
pub(crate) const QUARANTINE: u64 = 20_000;

/// Pods that a node has at most.
const PODS: usize = 60;

/// How often all faults end and everything must come right.
const PEACE_EVERY: u64 = 150_000;

/// What a run did, so that one that did nothing can be told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Steps.
    pub steps: u64,
    /// Addresses that were handed out.
    pub handed_out: u64,
    /// Times that the store was put back to a snapshot.
    pub put_back: u64,
    /// Times that it was not, because a node had lost its memory of a block.
    pub not_put_back: u64,
    /// Pods that were found to be cut off.
    pub cut_off: u64,
    /// Crashes of agents and controllers.
    pub crashes: u64,
    /// Machines that restarted.
    pub reboots: u64,
    /// Partitions.
    pub partitions: u64,
    /// Nodes that were deleted.
    pub deleted: u64,
    /// Times that everything had come right without faults.
    pub peaces: u64,
}

/// A violation, with the step that it happened at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The step.
    pub step: u64,
    /// What is wrong.
    pub what: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "step {}: {}", self.step, self.what)
    }
}

/// Everything.
#[derive(Debug)]
pub struct World {
    rng: Rng,
    now: u64,
    store: SimStore,
    controllers: Vec<Controller>,
    agents: Vec<Agent>,
    snapshots: Vec<Content>,
    put_back_at: Option<u64>,
    /// How long a node that vanished keeps its blocks, in milliseconds.
    reclaim: u64,
    tally: Tally,
}

impl World {
    /// A new network, from a seed.
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let agents = (0..NODES)
            .filter_map(|n| {
                let name = format!("n{n:02}").parse().ok()?;
                // Clocks run at different speeds.
                Some(Agent::boot(name, 0, 95 + rng.under(11)))
            })
            .collect();
        let mut world = Self {
            rng,
            now: 0,
            store: SimStore::default(),
            controllers: Vec::new(),
            agents,
            snapshots: Vec::new(),
            put_back_at: None,
            reclaim: if seed.is_multiple_of(2) {
                HASTY
            } else {
                RECLAIM
            },
            tally: Tally::default(),
        };
        for _ in 0..2 {
            let controller = world.controller();
            world.controllers.push(controller);
        }
        world
    }

    /// Runs `steps` steps.
    ///
    /// # Errors
    /// The first violation.
    pub fn run(mut self, steps: u64) -> Result<Tally, Violation> {
        let mut peace_at = PEACE_EVERY;
        while self.tally.steps < steps {
            self.step().map_err(|what| self.violation(what))?;
            if self.tally.steps >= peace_at {
                self.peace().map_err(|what| self.violation(what))?;
                peace_at = self.tally.steps + PEACE_EVERY;
            }
        }
        self.peace().map_err(|what| self.violation(what))?;
        Ok(self.tally)
    }

    fn violation(&self, what: String) -> Violation {
        Violation {
            step: self.tally.steps,
            what,
        }
    }

    fn controller(&mut self) -> Controller {
        // Whoever starts a controller on a store that was put back says so to it.
        let restored = self
            .put_back_at
            .is_some_and(|at| self.now < at + QUARANTINE);
        let quarantine = Duration::from_millis(QUARANTINE);
        let policy = Policy {
            bootstrap: pool().into_iter().collect(),
            reclaim_after: Duration::from_millis(self.reclaim),
            quarantine,
            node_cidrs: NodeCidrs::Off,
            listen: if restored { quarantine } else { LISTEN },
            restored,
            refresh: Duration::from_secs(60),
        };
        Controller::start(policy, self.now, &mut self.rng)
    }

    fn step(&mut self) -> Result<(), String> {
        self.tally.steps += 1;
        self.now += self.rng.under(30);
        if self.rng.one_in(4_000) {
            // Nothing happens for a while, nowhere.
            self.now += self.rng.under(2 * QUARANTINE);
        }
        {
            let mut inner = self.store.lock();
            inner.now = self.now;
            inner.expire();
        }
        match self.rng.under(1000) {
            0..300 => {
                let n = self.rng.index(self.controllers.len());
                self.control(n, true)
            }
            300..985 => {
                let n = self.rng.index(self.agents.len());
                let act = self.rng.under(12);
                self.act(n, act, true)
            }
            _ => {
                self.fault();
                Ok(())
            }
        }
    }

    /// One turn of one controller.
    fn control(&mut self, n: usize, faults: bool) -> Result<(), String> {
        let Some(controller) = self.controllers.get_mut(n) else {
            return Ok(());
        };
        if controller.asleep_until > self.now {
            return Ok(());
        }
        let taken = controller.step(&self.store, self.now, &mut self.rng, faults);
        if let Some((cidr, lasted)) = self.store.lock().hasty.take() {
            return Err(format!(
                "block {cidr} was freed after a quarantine of {lasted} ms"
            ));
        }
        match taken {
            Some((cidr, node)) => Err(format!(
                "block {cidr} was taken from node {node}, whose claim was there to be seen"
            )),
            None => Ok(()),
        }
    }

    /// One thing that one agent does.
    fn act(&mut self, n: usize, act: u64, faults: bool) -> Result<(), String> {
        let (now, store) = (self.now, self.store.clone());
        let Some(agent) = self.agents.get_mut(n) else {
            return Ok(());
        };
        if !agent.is_awake(now) {
            return Ok(());
        }
        match act {
            0..3 if agent.connected => {
                let at_most = if faults {
                    1 + self.rng.index(6)
                } else {
                    usize::MAX
                };
                let taken = agent.hear(&store, now, at_most);
                let lost = agent.pods.values().filter(|a| agent.is_foreign(**a, now));
                self.tally.cut_off += lost.count() as u64;
                if let Some(cidr) = taken.first() {
                    return Err(format!(
                        "node {} was told that its block {cidr} is another's while it was trusted",
                        agent.name
                    ));
                }
                self.exclusive(n)
            }
            3..6 => {
                if let Some(cidr) = agent.read(&store, now, &mut self.rng, faults) {
                    return Err(format!(
                        "node {} trusts block {cidr} again without a new grant",
                        agent.name
                    ));
                }
                self.exclusive(n)
            }
            6..8 if agent.pods.len() < PODS => match agent.add(now) {
                Some(handed) => self.handed_out(n, handed),
                None => Ok(()),
            },
            8 => {
                agent.del(now, &mut self.rng);
                if self.rng.one_in(20) {
                    agent.sate();
                }
                if self.rng.one_in(60) {
                    // A whole deployment ends.
                    while agent.del(now, &mut self.rng).is_some() {}
                }
                Ok(())
            }
            9..11 => {
                agent.claim(&store, now, &mut self.rng, faults);
                Ok(())
            }
            11 => match agent.give(now) {
                Some(cidr) => Err(format!(
                    "node {} gives block {cidr} back, in which a pod has an address",
                    agent.name
                )),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// Without faults everything comes right: every block is free or served by its owner,
    /// and every node has one as long as the pool has.
    fn peace(&mut self) -> Result<(), String> {
        for agent in &mut self.agents {
            agent.asleep_until = 0;
            agent.connected = true;
            if !agent.up {
                agent.restart(self.now);
            }
        }
        for (n, controller) in self.controllers.iter_mut().enumerate() {
            controller.connected = true;
            controller.asleep_until = 0;
            controller.leads = n == 0;
        }
        let until = self.now + RECLAIM + 4 * QUARANTINE;
        while self.now < until {
            self.now += 500;
            {
                let mut inner = self.store.lock();
                inner.now = self.now;
                inner.expire();
            }
            for n in 0..self.agents.len() {
                for act in [0, 3, 3, 3, 9, 9, 11] {
                    self.tally.steps += 1;
                    self.act(n, act, false)?;
                }
                if let Some(agent) = self.agents.get_mut(n) {
                    agent.sate();
                    let foreign = |a: &std::net::IpAddr| agent.is_foreign(*a, self.now);
                    if agent.pods.values().any(foreign) {
                        agent.del(self.now, &mut self.rng);
                    }
                }
            }
            for _ in 0..20 {
                for n in 0..self.controllers.len() {
                    self.tally.steps += 1;
                    self.control(n, false)?;
                }
            }
        }
        self.settled()?;
        self.tally.peaces += 1;
        Ok(())
    }
}

fn pool() -> Option<(viaduct_model::PoolName, Pool)> {
    let cidr: Cidr = "10.0.0.0/21".parse().ok()?;
    Some(("default".parse().ok()?, Pool::new(cidr, Some(28))))
}
