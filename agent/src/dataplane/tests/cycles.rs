//! Single reconciles, with faults.

use tokio::sync::watch;

use super::*;
use crate::dataplane::cycle::{Cycle, Outcome};
use crate::dataplane::host::Host;
use crate::dataplane::objects::{Route, VXLAN_LINK};
use crate::state::NodeState;

struct Bench {
    kernel: FakeKernel,
    state: watch::Sender<Option<NodeState>>,
    endpoints: watch::Sender<Endpoints>,
    cycle: Cycle<FakeKernel>,
}

impl Bench {
    fn new(kernel: FakeKernel) -> Self {
        let (state, state_seen) = watch::channel(None);
        let (endpoints, endpoints_seen) = watch::channel(Endpoints::default());
        let cycle = Cycle::new(kernel.clone(), &BACKEND, state_seen, endpoints_seen);
        Self {
            kernel,
            state,
            endpoints,
            cycle,
        }
    }

    fn set(&self, cluster: &Cluster) {
        self.state.send_replace(Some(cluster.state()));
    }

    fn run(&mut self) -> Outcome {
        self.cycle.run().expect("a state of the node")
    }
}

#[test]
fn before_the_first_state_nothing_is_touched() {
    let (_, pod) = one_pod(true);
    let mut bench = Bench::new(with_pod(&pod));
    assert_eq!(bench.cycle.run(), None);
    assert_eq!(bench.kernel.take_log(), [""; 0]);
    bench.set(&Cluster::new());
    assert!(bench.run().verified);
    assert!(
        !bench.kernel.world().links.contains_key(&pod),
        "swept only now"
    );
}

#[test]
fn a_restart_over_an_unchanged_kernel_changes_nothing() {
    let (endpoints, pod) = one_pod(true);
    let kernel = with_pod(&pod);
    for expected in [true, false] {
        let mut bench = Bench::new(kernel.clone());
        bench.endpoints.send_replace(endpoints.clone());
        bench.set(&Cluster::new());
        let outcome = bench.run();
        assert!(outcome.verified, "{outcome:?}");
        assert_eq!(outcome.overlay, Some(true));
        assert_eq!(outcome.applied > 0, expected);
        assert_eq!(!kernel.take_log().is_empty(), expected);
    }
}

#[test]
fn one_route_that_fails_stops_no_other_and_is_told() {
    let mut cluster = Cluster::new();
    cluster.peer("c", 2);
    cluster.peer("d", 3);
    let mut bench = Bench::new(FakeKernel::default());
    bench
        .kernel
        .faults(|f| f.refuse = vec!["route 10.64.2.0/26".into()]);
    bench.set(&cluster);
    let outcome = bench.run();
    assert!(!outcome.verified);
    assert_eq!(
        outcome.overlay,
        Some(true),
        "pods can be wired all the same"
    );
    assert_eq!(
        outcome.problems,
        ["route 10.64.2.0/26 via 10.64.2.0 dev via.vx4 src 10.64.0.0 to be added: told to fail"]
    );
    // The blackhole and both other peers.
    assert_eq!(bench.kernel.world().routes.len(), 3);
    bench.kernel.faults(|f| f.refuse.clear());
    let outcome = bench.run();
    assert!(
        outcome.verified && outcome.problems.is_empty(),
        "{outcome:?}"
    );
    assert_eq!(outcome.repaired, 0, "a late success is no repair");
}

#[test]
fn whichever_change_fails_once_the_same_reconcile_makes_up_for_it() {
    for nth in 0..9 {
        let mut bench = Bench::new(FakeKernel::default());
        bench.kernel.faults(|f| f.refuse_nth = Some(nth));
        bench.set(&Cluster::new());
        let outcome = bench.run();
        // One pass may fail as a whole when nothing else was left to do.
        let outcome = if outcome.verified {
            outcome
        } else {
            bench.run()
        };
        assert!(outcome.verified, "{nth}: {outcome:?}");
    }
}

#[test]
fn without_the_tunnel_one_sentence_stands_for_all_that_waits() {
    let mut cluster = Cluster::new();
    for n in 2..200 {
        cluster.peer(&format!("peer-{n}"), n);
    }
    let mut bench = Bench::new(FakeKernel::default());
    bench
        .kernel
        .faults(|f| f.refuse = vec!["to be created".into()]);
    bench.set(&cluster);
    let outcome = bench.run();
    assert_eq!(outcome.overlay, Some(false));
    assert_eq!(outcome.problems.len(), 2, "{:?}", outcome.problems);
    assert!(outcome.problems[1].starts_with("link via.vx4 is missing: "));
}

#[test]
fn a_change_that_the_kernel_swallows_is_noticed() {
    let mut bench = Bench::new(FakeKernel::default());
    bench
        .kernel
        .faults(|f| f.swallow = vec!["neighbour 10.64.1.0".into()]);
    bench.set(&Cluster::new());
    let outcome = bench.run();
    assert!(!outcome.verified);
    assert!(
        outcome.problems[0].contains("neighbour 10.64.1.0"),
        "{outcome:?}"
    );
}

#[test]
fn a_kernel_that_cannot_be_listed_is_not_acted_on() {
    let mut bench = Bench::new(FakeKernel::default());
    bench.kernel.faults(|f| f.blind = 1);
    bench.set(&Cluster::new());
    let outcome = bench.run();
    assert!(!outcome.verified);
    assert_eq!(bench.kernel.take_log(), [""; 0]);
    assert!(bench.run().verified);
}

#[test]
fn repairs_are_counted_and_changes_of_the_cluster_are_not() {
    let mut cluster = Cluster::new();
    let mut bench = Bench::new(FakeKernel::default());
    bench.set(&cluster);
    assert_eq!(bench.run().repaired, 0);
    cluster.peer("c", 2);
    bench.set(&cluster);
    assert_eq!(bench.run().repaired, 0);
    bench.kernel.tamper(|world| world.routes.clear());
    // The blackhole and two peers' routes.
    assert_eq!(bench.run().repaired, 3);
    // A link that was taken down has lost its routes and neighbours too.
    bench.kernel.tamper(|world| world.down(&VXLAN_LINK.into()));
    assert_eq!(bench.run().repaired, 5);
}

#[test]
fn the_tunnels_source_check_follows_the_hosts_and_that_is_no_repair() {
    let mut bench = Bench::new(FakeKernel::default());
    bench.set(&Cluster::new());
    for (all, wanted) in [(None, 2), (Some(0), 0), (Some(1), 2), (Some(0), 0)] {
        bench
            .kernel
            .tamper(|world| world.host = Host { rp_filter: all });
        let outcome = bench.run();
        assert!(outcome.verified && outcome.repaired == 0, "{outcome:?}");
        let world = bench.kernel.world();
        let settings = world.links[VXLAN_LINK].settings.unwrap();
        assert_eq!(settings.rp_filter, wanted, "{all:?}");
        let changes = bench.kernel.take_log().len();
        assert!(all.is_none() || changes == 1, "{changes}");
    }
}

#[test]
fn a_source_address_that_comes_late_or_changes_is_put_into_the_routes() {
    let mut cluster = Cluster::new();
    let overlay = cluster.local.overlay.take();
    let mut bench = Bench::new(FakeKernel::default());
    bench.set(&cluster);
    let outcome = bench.run();
    assert!(outcome.verified && outcome.overlay.is_none());
    cluster.local.overlay = overlay;
    bench.set(&cluster);
    assert_eq!(bench.run().overlay, Some(true));
    cluster.local.overlay = Some("10.64.0.1".parse().unwrap());
    bench.set(&cluster);
    let outcome = bench.run();
    assert!(outcome.verified, "{outcome:?}");
    let sources: Vec<_> = bench
        .kernel
        .world()
        .routes
        .iter()
        .filter_map(|(r, _)| r.source)
        .collect();
    assert_eq!(sources, [cluster.local.overlay.unwrap()]);
}

#[test]
fn routes_of_others_are_named_when_they_come_and_looked_for_only_with_a_reason() {
    let kernel = with_pod(&one_pod(true).1);
    let mut bench = Bench::new(kernel.clone());
    bench.set(&Cluster::new());
    assert!(bench.run().conflicts.is_empty());
    let rival = Route::through("10.64.1.0/26".parse().unwrap(), "eth0".into());
    kernel.tamper(|world| world.routes.insert(0, (rival.clone(), false)));
    assert!(bench.run().conflicts.is_empty(), "nobody called for a look");
    assert_eq!(kernel.surveys(), 1);
    bench.cycle.look_for_rivals();
    let outcome = bench.run();
    assert_eq!(outcome.conflicts.len(), 1, "{:?}", outcome.conflicts);
    assert!(outcome.conflicts[0].contains("takes all that goes there"));
    // Another's route is no fault of this node, and stays.
    assert!(outcome.verified);
    assert!(kernel.world().routes.contains(&(rival, false)));
    // A new block of ours is a reason too; a new pod is none.
    let (endpoints, pod) = one_pod(true);
    kernel.tamper(|world| world.add_link(&pod, LinkKind::Veth).up = true);
    bench.endpoints.send_replace(endpoints);
    bench.run();
    assert_eq!(kernel.surveys(), 2);
    let mut cluster = Cluster::new();
    cluster.block("10.64.2.0/26", "b");
    bench.set(&cluster);
    assert_eq!(bench.run().conflicts.len(), 1);
    assert_eq!(kernel.surveys(), 3);
}
