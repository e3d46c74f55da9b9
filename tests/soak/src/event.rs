//! What can happen, and which of it happens next.

use std::time::Duration;

use viaduct_sim::rng::Rng;

/// What can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// SIGKILL to an agent, which is started again after a while.
    AgentKilled,
    /// SIGTERM to an agent, which is started again after a while.
    AgentStopped,
    /// SIGSTOP to an agent, and SIGCONT after a while.
    AgentHalted,
    /// SIGKILL to all agents but the last node's, at one moment.
    AgentsKilled,
    /// SIGKILL to an agent and to etcd; the agent starts while etcd is away.
    AgentKilledWithoutStore,
    /// SIGKILL to the controller that leads.
    LeaderKilled,
    /// SIGKILL to both controllers.
    ControllersKilled,
    /// SIGKILL to etcd, which is started again after a while.
    StoreKilled,
    /// SIGSTOP to etcd: it neither answers nor refuses.
    StoreHalted,
    /// The node's way into the underlay is down.
    UnderlayCut,
    /// The route to another node's pods is deleted.
    RouteDeleted,
    /// The route to a pod of the node's own is deleted.
    PodRouteDeleted,
    /// The rules for packets to the outside are flushed.
    RulesFlushed,
    /// The tunnel is set down.
    TunnelDown,
}

use Kind::*;

impl Kind {
    /// All of them.
    pub(crate) const ALL: [Kind; 14] = [
        AgentKilled,
        AgentStopped,
        AgentHalted,
        AgentsKilled,
        AgentKilledWithoutStore,
        LeaderKilled,
        ControllersKilled,
        StoreKilled,
        StoreHalted,
        UnderlayCut,
        RouteDeleted,
        PodRouteDeleted,
        RulesFlushed,
        TunnelDown,
    ];

    /// For people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            AgentKilled => "agent killed",
            AgentStopped => "agent stopped by SIGTERM",
            AgentHalted => "agent halted by SIGSTOP",
            AgentsKilled => "agents killed at once",
            AgentKilledWithoutStore => "agent killed while etcd is away",
            LeaderKilled => "leading controller killed",
            ControllersKilled => "both controllers killed",
            StoreKilled => "etcd killed",
            StoreHalted => "etcd halted by SIGSTOP",
            UnderlayCut => "underlay down",
            RouteDeleted => "route to a peer deleted",
            PodRouteDeleted => "route to a pod deleted",
            RulesFlushed => "nftables rules flushed",
            TunnelDown => "tunnel set down",
        }
    }

    /// How long it lasts before it is put right, at least and at most, in milliseconds.
    fn lasts(self) -> (u64, u64) {
        match self {
            AgentKilled | AgentStopped | AgentsKilled => (0, 3_000),
            AgentHalted | AgentKilledWithoutStore => (1_000, 10_000),
            LeaderKilled => (0, 5_000),
            ControllersKilled | StoreKilled => (0, 20_000),
            StoreHalted => (5_000, 60_000),
            UnderlayCut => (500, 5_000),
            // To be healed by the agents, at once.
            RouteDeleted | PodRouteDeleted | RulesFlushed | TunnelDown => (0, 0),
        }
    }

    /// Whether it happens on one node.
    fn has_place(self) -> bool {
        !matches!(
            self,
            AgentsKilled | LeaderKilled | ControllersKilled | StoreKilled | StoreHalted
        )
    }

    /// Whether an agent dies of it.
    fn kills_agent(self) -> bool {
        matches!(self, AgentKilled | AgentStopped | AgentKilledWithoutStore)
    }
}

/// Something that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Event {
    /// What.
    pub kind: Kind,
    /// On which node, for what happens on one.
    pub node: usize,
    /// Chance for whatever else there is to choose.
    pub other: u64,
    /// How long until it is put right.
    pub lasts: Duration,
}

impl std::fmt::Display for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.kind.name())?;
        if self.kind.has_place() {
            write!(f, " on n{}", self.node + 1)?;
        }
        Ok(())
    }
}

impl Event {
    /// Whether it may cost packets from a node to another, or the same.
    pub(crate) fn may_cut(&self, from: usize, to: usize) -> bool {
        let touches = from == self.node || to == self.node;
        match self.kind {
            UnderlayCut | RouteDeleted | TunnelDown => touches && from != to,
            PodRouteDeleted => touches,
            _ => false,
        }
    }
}

/// Deals events: each kind comes once before any comes again.
#[derive(Debug)]
pub(crate) struct Deck {
    rng: Rng,
    kinds: Vec<Kind>,
    left: Vec<Kind>,
    nodes: usize,
}

impl Deck {
    /// Of these kinds, on so many nodes. No agent dies on the last of them, so that what
    /// grows in one can be seen.
    pub(crate) fn new(seed: u64, kinds: Vec<Kind>, nodes: usize) -> Self {
        Self {
            rng: Rng::new(seed),
            kinds,
            left: Vec::new(),
            nodes,
        }
    }

    /// How long nothing happens before the next event.
    pub(crate) fn pause(&mut self) -> Duration {
        Duration::from_millis(1_000 + self.rng.under(4_000))
    }

    /// The next event; it lasts no longer than `most`.
    pub(crate) fn next(&mut self, most: Duration) -> Option<Event> {
        if self.left.is_empty() {
            self.left = self.kinds.clone();
        }
        if self.left.is_empty() {
            return None;
        }
        let kind = self.left.swap_remove(self.rng.index(self.left.len()));
        let (least, longest) = kind.lasts();
        let lasts = Duration::from_millis(least + self.rng.under(longest - least + 1));
        let spared = usize::from(kind.kills_agent());
        Some(Event {
            kind,
            node: self.rng.index(self.nodes.saturating_sub(spared).max(1)),
            other: self.rng.draw(),
            lasts: lasts.min(most),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    fn events(seed: u64, count: usize) -> Vec<Event> {
        let mut deck = Deck::new(seed, Kind::ALL.to_vec(), 3);
        (0..count).filter_map(|_| deck.next(LONG)).collect()
    }

    #[test]
    fn a_seed_gives_the_same_events_and_another_others() {
        assert_eq!(events(7, 100), events(7, 100));
        assert_ne!(events(7, 100), events(8, 100));
    }

    #[test]
    fn every_kind_comes_once_before_any_comes_again() {
        for round in events(1, 10 * Kind::ALL.len()).chunks(Kind::ALL.len()) {
            let kinds: BTreeSet<Kind> = round.iter().map(|event| event.kind).collect();
            assert_eq!(kinds.len(), Kind::ALL.len());
        }
    }

    #[test]
    fn no_agent_dies_on_the_last_node_and_every_node_has_its_events() {
        let all = events(3, 1_000);
        assert!(
            all.iter()
                .all(|event| event.node < 2 || !event.kind.kills_agent())
        );
        let nodes: BTreeSet<usize> = all.iter().map(|event| event.node).collect();
        assert_eq!(nodes.len(), 3);
    }

    #[test]
    fn an_event_ends_before_the_time_is_over() {
        let mut deck = Deck::new(5, vec![StoreHalted], 3);
        let second = Duration::from_secs(1);
        assert!((0..50).all(|_| deck.next(second).is_some_and(|e| e.lasts <= second)));
        assert!(Deck::new(5, Vec::new(), 3).next(LONG).is_none());
    }

    #[test]
    fn what_happens_on_a_node_is_told_with_it() {
        let mut event = events(1, 1)[0];
        (event.kind, event.node) = (TunnelDown, 2);
        assert_eq!(event.to_string(), "tunnel set down on n3");
        event.kind = StoreKilled;
        assert_eq!(event.to_string(), "etcd killed");
    }

    #[test]
    fn packets_may_be_lost_only_where_the_event_is() {
        let event = |kind| Event {
            kind,
            node: 1,
            other: 0,
            lasts: LONG,
        };
        assert!(event(TunnelDown).may_cut(1, 2) && event(TunnelDown).may_cut(0, 1));
        assert!(!event(TunnelDown).may_cut(0, 2) && !event(TunnelDown).may_cut(1, 1));
        assert!(event(PodRouteDeleted).may_cut(1, 1) && !event(PodRouteDeleted).may_cut(0, 2));
        let cut = [UnderlayCut, RouteDeleted, PodRouteDeleted, TunnelDown];
        for kind in Kind::ALL.into_iter().filter(|kind| !cut.contains(kind)) {
            assert!(!event(kind).may_cut(0, 1) && !event(kind).may_cut(1, 1));
        }
    }
}
