//! The nft table against the real nftables, with the egress task at work.

use std::io::Read as _;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::sync::watch;
use viaduct_agent::egress::keeper::{Keeper, Look};
use viaduct_agent::egress::ruleset::{Ruleset, TableFamily};
use viaduct_agent::egress::task::Egress;
use viaduct_agent::egress::tool::{Firewall, NftTool, ToolError};
use viaduct_agent::egress::{EgressReport, Options, masquerade};
use viaduct_agent::state::NodeState;

use crate::scene::{self, in_namespace, ok, run};
use crate::testing::Cluster;

fn options() -> Options {
    Options {
        masquerade: true,
        exempt: vec!["192.0.2.0/24".parse().expect("a CIDR")],
        to_nodes: false,
        random_fully: true,
    }
}

fn cluster() -> Cluster {
    let mut cluster = scene::cluster();
    cluster.pool("default", "10.64.0.0/16");
    cluster
}

/// The cluster with so many nodes beside its first two.
fn of(peers: u16) -> Cluster {
    let mut cluster = cluster();
    for n in 2..2 + peers {
        cluster.peer(&format!("peer-{n}"), n);
    }
    cluster
}

/// The egress task at work in this namespace.
struct Keeping {
    state: watch::Sender<Option<NodeState>>,
    report: watch::Receiver<EgressReport>,
    _runtime: Runtime,
}

impl Keeping {
    fn start(cluster: &Cluster, options: Options) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let (state, state_seen) = watch::channel(Some(cluster.state()));
        let (report, report_seen) = watch::channel(EgressReport::default());
        let guard = runtime.enter();
        let egress = Egress {
            options,
            state: state_seen,
            report,
        };
        runtime.spawn(egress.run(NftTool));
        drop(guard);
        Self {
            state,
            report: report_seen,
            _runtime: runtime,
        }
    }

    fn report(&self) -> EgressReport {
        self.report.borrow().clone()
    }

    /// Until the table is right and nothing is under way any more: the echo and the
    /// look afterwards are over.
    fn settle(&self) {
        until("verified", || self.report().verified);
        std::thread::sleep(Duration::from_millis(1500));
        until("verified", || self.report().verified);
    }
}

fn until(what: &str, mut so: impl FnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !so() {
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "{what}: {}",
            table()
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    begun.elapsed()
}

fn nft(arguments: &str) {
    ok(&format!("PATH=$PATH:/usr/sbin nft {arguments}"));
}

fn table() -> String {
    run("PATH=$PATH:/usr/sbin nft -s list table inet viaduct").1
}

fn wanted(cluster: &Cluster, options: &Options) -> Option<Ruleset> {
    masquerade::desired(&cluster.state(), options)
}

/// What `nft monitor` sees; read by [`Listener::lines`].
struct Listener(Child, JoinHandle<String>);

impl Listener {
    fn start() -> Self {
        let mut child = Command::new("sh")
            .args(["-c", "PATH=$PATH:/usr/sbin exec nft monitor"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("nft monitor");
        let mut output = child.stdout.take().expect("its output");
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            output.read_to_string(&mut text).expect("text");
            text
        });
        std::thread::sleep(Duration::from_millis(300));
        Self(child, reader)
    }

    fn lines(mut self) -> String {
        std::thread::sleep(Duration::from_millis(200));
        let _ = self.0.kill();
        let _ = self.0.wait();
        self.1.join().expect("what it read")
    }
}

#[test]
fn the_table_comes_to_be_heals_whatever_is_done_to_it_and_leaves_others_alone() {
    in_namespace(|| {
        nft("'add table inet other; add chain inet other c; add table ip viaduct'");
        let keeping = Keeping::start(&cluster(), options());
        until("the beginning", || keeping.report().verified);
        let right = table();
        for part in [
            "fully-random",
            "192.0.2.0/24",
            "10.64.0.0/16",
            "192.168.65.1",
        ] {
            assert!(right.contains(part), "{part} in {right}");
        }
        keeping.settle();
        let mut repairs = keeping.report().repairs;
        for damage in [
            "delete table inet viaduct",
            "flush table inet viaduct",
            "flush chain inet viaduct egress",
            "flush set inet viaduct pods4",
            "add element inet viaduct pods4 { 172.16.0.0/12 }",
            "add element inet viaduct exempt4 { 198.51.100.0/24 }",
            "delete element inet viaduct nodes4 { 192.168.65.1 }",
            "insert rule inet viaduct egress accept",
            "add chain inet viaduct mine",
            "add set inet viaduct mine { type ipv4_addr; }",
            "add table inet viaduct { flags dormant; }",
            "chain inet viaduct egress { policy drop; }",
            "flush ruleset; add table inet other; add chain inet other c; add table ip viaduct",
        ] {
            nft(&format!("'{damage}'"));
            let took = until(damage, || {
                let report = keeping.report();
                assert_eq!(report.problems, Vec::<String>::new(), "{damage}");
                report.repairs > repairs && table() == right
            });
            println!("{:>7.1} ms  {damage}", took.as_secs_f64() * 1e3);
            keeping.settle();
            repairs = keeping.report().repairs;
        }
        let tables = run("PATH=$PATH:/usr/sbin nft list tables").1;
        for other in ["inet other", "ip viaduct"] {
            assert!(tables.contains(other), "{tables}");
        }
    });
}

#[test]
fn one_rule_that_somebody_deletes_is_back() {
    in_namespace(|| {
        let keeping = Keeping::start(&cluster(), options());
        keeping.settle();
        let right = table();
        let repairs = keeping.report().repairs;
        let listing = run("PATH=$PATH:/usr/sbin nft -a list table inet viaduct").1;
        let rule = listing
            .lines()
            .find(|line| line.contains("masquerade fully-random"));
        let handle = rule.and_then(|rule| rule.rsplit(' ').next());
        let handle = handle.expect("a handle");
        nft(&format!("delete rule inet viaduct egress handle {handle}"));
        until("the rule", || {
            keeping.report().repairs > repairs && table() == right
        });
    });
}

#[test]
fn nodes_come_and_go_as_elements_in_few_transactions_and_others_wake_nobody() {
    in_namespace(|| {
        let keeping = Keeping::start(&cluster(), options());
        keeping.settle();
        let listener = Listener::start();
        let last = "192.168.65.111";
        for peers in 0..=110 {
            keeping.state.send_replace(Some(of(peers).state()));
        }
        until("110 nodes", || table().contains(last));
        keeping.state.send_replace(Some(cluster().state()));
        until("no more nodes", || !table().contains(last));
        keeping.settle();
        let seen = listener.lines();
        assert!(seen.contains("add element inet viaduct nodes4"), "{seen}");
        for part in ["table", "set", "chain"] {
            assert!(!seen.contains(&format!("add {part} ")), "{seen}");
        }
        let transactions = seen.matches("# new generation").count();
        assert!((2..=60).contains(&transactions), "{transactions}");
        let report = keeping.report();
        assert_eq!((report.repairs, report.problems.len()), (0, 0));
        ok(
            "for i in $(seq 50); do echo add table inet other; echo delete table inet other; done | PATH=$PATH:/usr/sbin nft -f -",
        );
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(keeping.report().repairs, 0);
    });
}

#[test]
fn a_restart_in_which_nothing_changed_writes_nothing() {
    in_namespace(|| {
        let cluster = of(498);
        let first = Keeping::start(&cluster, options());
        until("the beginning", || first.report().verified);
        drop(first);
        let before = run("PATH=$PATH:/usr/sbin nft -a list ruleset").1;
        let listener = Listener::start();
        let second = Keeping::start(&cluster, options());
        until("verified", || second.report().verified);
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(second.report().repairs, 0);
        let seen = listener.lines();
        assert_eq!(seen, "", "a second agent's look made changes");
        assert_eq!(
            run("PATH=$PATH:/usr/sbin nft -a list ruleset").1,
            before,
            "handles show what was replaced"
        );
    });
}

#[test]
fn a_former_releases_table_of_pods_devices_goes() {
    in_namespace(|| {
        nft(
            "'add table netdev viaduct; add counter netdev viaduct spoofed; \
             add chain netdev viaduct c { type filter hook ingress device lo priority 0; }; \
             add rule netdev viaduct c counter name spoofed drop; add table netdev other'",
        );
        let keeping = Keeping::start(&cluster(), options());
        until("the beginning", || keeping.report().verified);
        let tables = run("PATH=$PATH:/usr/sbin nft list tables").1;
        assert_eq!(tables, "table netdev other\ntable inet viaduct\n");
    });
}

/// `nft`, and how often it was asked for a list.
#[derive(Clone, Default)]
struct Counted(Arc<AtomicUsize>);

impl Firewall for Counted {
    async fn list(&mut self, family: TableFamily) -> Result<Option<Ruleset>, ToolError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        NftTool.list(family).await
    }

    fn generation(&mut self) -> Option<u32> {
        NftTool.generation()
    }

    async fn apply(&mut self, transaction: String) -> Result<(), ToolError> {
        NftTool.apply(transaction).await
    }

    async fn check(&mut self, transaction: String) -> Result<(), ToolError> {
        NftTool.check(transaction).await
    }
}

#[test]
fn an_audit_lists_the_table_only_when_some_table_has_changed() {
    in_namespace(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let wanted = wanted(&cluster(), &options());
        let counted = Counted::default();
        let mut keeper = Keeper::new(counted.clone());
        let mut lists = |look| {
            let before = counted.0.load(Ordering::Relaxed);
            let outcome = runtime.block_on(keeper.run(wanted.clone(), look));
            assert!(outcome.verified, "{outcome:?}");
            counted.0.load(Ordering::Relaxed) - before
        };
        assert!(lists(Look::Yes) > 0);
        assert_eq!([(); 3].map(|()| lists(Look::IfChanged)), [0, 0, 0]);
        nft("add table inet other");
        assert_eq!([(); 2].map(|()| lists(Look::IfChanged)), [1, 0]);
        let right = table();
        nft("flush chain inet viaduct egress");
        assert!(lists(Look::IfChanged) > 0);
        assert_eq!(table(), right);
    });
}

#[test]
fn every_combination_of_options_is_listed_as_it_was_written() {
    in_namespace(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let run_once = |wanted: &Option<Ruleset>| {
            runtime.block_on(Keeper::new(NftTool).run(wanted.clone(), Look::Yes))
        };
        for bits in 0..16 {
            let options = Options {
                masquerade: bits & 1 != 0,
                exempt: if bits & 2 != 0 {
                    vec!["0.0.0.0/0".parse().expect("a CIDR")]
                } else {
                    Vec::new()
                },
                to_nodes: bits & 4 != 0,
                random_fully: bits & 8 != 0,
            };
            let wanted = wanted(&cluster(), &options);
            let outcome = run_once(&wanted);
            assert!(outcome.verified, "{options:?}: {outcome:?}");
            // A life that has learnt no other spelling finds it right.
            let outcome = run_once(&wanted);
            assert!(outcome.verified && outcome.writes == 0, "{outcome:?}");
            assert_eq!(wanted.is_some(), table().contains("hook postrouting"));
        }
    });
}
