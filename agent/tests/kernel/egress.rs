//! The nft table against the real nftables, with the egress task at work.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::sync::watch;
use viaduct_agent::egress::ruleset::TABLE;
use viaduct_agent::egress::task::{Egress, Keeper};
use viaduct_agent::egress::tool::NftTool;
use viaduct_agent::egress::{EgressReport, Options, desired::desired};
use viaduct_agent::kernel::nftables::TableMonitor;
use viaduct_agent::state::{Endpoints, NodeState};

use crate::scene::{self, in_namespace, ok, run};
use crate::testing::{Cluster, endpoint};

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

/// The egress task at work in this namespace.
struct Keeping {
    state: watch::Sender<Option<NodeState>>,
    endpoints: watch::Sender<Endpoints>,
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
        let (endpoints, endpoints_seen) = watch::channel(Endpoints::default());
        let (report, report_seen) = watch::channel(EgressReport::default());
        let guard = runtime.enter();
        let egress = Egress {
            options,
            state: state_seen,
            endpoints: endpoints_seen,
            report,
        };
        let monitor = TableMonitor::open(TABLE).expect("a monitor");
        runtime.spawn(egress.run(NftTool, Some(monitor)));
        drop(guard);
        Self {
            state,
            endpoints,
            report: report_seen,
            _runtime: runtime,
        }
    }

    fn report(&self) -> EgressReport {
        self.report.borrow().clone()
    }

    fn pod(&self, container: &str, address: &str) -> String {
        let endpoint = endpoint(container, address, true);
        let link = endpoint.link.clone();
        let mut all = BTreeMap::clone(&self.endpoints.borrow());
        all.insert(link.clone(), endpoint);
        self.endpoints.send_replace(Arc::new(all));
        link
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

/// What `nft monitor` sees; read by [`Listener::lines`].
struct Listener(Child);

impl Listener {
    fn start() -> Self {
        let child = Command::new("sh")
            .args(["-c", "PATH=$PATH:/usr/sbin exec nft monitor"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("nft monitor");
        std::thread::sleep(Duration::from_millis(300));
        Self(child)
    }

    fn lines(mut self) -> String {
        std::thread::sleep(Duration::from_millis(200));
        let _ = self.0.kill();
        let output = self.0.wait_with_output().expect("its output");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

#[test]
fn the_table_comes_to_be_heals_whatever_is_done_to_it_and_leaves_others_alone() {
    in_namespace(|| {
        nft("'add table inet other; add chain inet other c; add table ip viaduct'");
        let keeping = Keeping::start(&cluster(), options());
        keeping.pod("one", "10.64.0.5");
        until("the beginning", || {
            keeping.report().verified && table().contains("10.64.0.5")
        });
        let right = table();
        for part in [
            "fully-random",
            "192.0.2.0/24",
            "10.64.0.0/16",
            "192.168.65.1",
        ] {
            assert!(right.contains(part), "{part} in {right}");
        }
        // The echo and the look afterwards are over.
        std::thread::sleep(Duration::from_millis(1500));
        let mut repairs = keeping.report().repairs;
        for damage in [
            "delete table inet viaduct",
            "flush table inet viaduct",
            "flush chain inet viaduct egress",
            "flush set inet viaduct pod_sources4",
            "flush set inet viaduct pods4",
            "add element inet viaduct pods4 { 172.16.0.0/12 }",
            "add element inet viaduct exempt4 { 198.51.100.0/24 }",
            "delete element inet viaduct nodes4 { 192.168.65.1 }",
            "add rule inet viaduct source_check accept",
            "insert rule inet viaduct egress accept",
            "add chain inet viaduct mine",
            "add set inet viaduct mine { type ipv4_addr; }",
            "add table inet viaduct { flags dormant; }",
            "chain inet viaduct source_check { policy drop; }",
            "flush ruleset; add table inet other; add chain inet other c; add table ip viaduct",
        ] {
            nft(&format!("'{damage}'"));
            let took = until(damage, || {
                keeping.report().repairs > repairs && table() == right
            });
            println!("{:>7.1} ms  {damage}", took.as_secs_f64() * 1e3);
            until(damage, || keeping.report().verified);
            repairs = keeping.report().repairs;
            std::thread::sleep(Duration::from_millis(1200));
        }
        let tables = run("PATH=$PATH:/usr/sbin nft list tables").1;
        for other in ["inet other", "ip viaduct"] {
            assert!(tables.contains(other), "{tables}");
        }
    });
}

#[test]
fn pods_come_and_go_as_elements_and_others_transactions_wake_nobody() {
    in_namespace(|| {
        let keeping = Keeping::start(&cluster(), options());
        keeping.pod("one", "10.64.0.5");
        until("the beginning", || {
            keeping.report().verified && table().contains("10.64.0.5")
        });
        std::thread::sleep(Duration::from_millis(1500));
        let listener = Listener::start();
        let mut links = Vec::new();
        for n in 6..26 {
            links.push(keeping.pod(&format!("pod-{n}"), &format!("10.64.0.{n}")));
        }
        until("twenty pods", || links.iter().all(|l| table().contains(l)));
        keeping.endpoints.send_replace(Endpoints::default());
        until("no pods", || !table().contains("10.64.0.5"));
        let seen = listener.lines();
        assert!(
            seen.contains("add element") && seen.contains("delete element"),
            "{seen}"
        );
        for whole in ["table", "chain", "rule"] {
            assert!(!seen.contains(&format!("add {whole} ")), "{seen}");
        }
        let transactions = seen.matches("# new generation").count();
        assert!((2..=6).contains(&transactions), "{transactions}: {seen}");
        let repairs = keeping.report().repairs;
        ok(
            "for i in $(seq 50); do echo add table inet other; echo delete table inet other; done | PATH=$PATH:/usr/sbin nft -f -",
        );
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(keeping.report().repairs, repairs);
    });
}

#[test]
fn a_restart_in_which_nothing_changed_writes_nothing() {
    in_namespace(|| {
        let mut cluster = cluster();
        for n in 2..=500 {
            cluster.peer(&format!("peer-{n}"), n);
        }
        let first = Keeping::start(&cluster, options());
        first.pod("one", "10.64.0.5");
        until("the beginning", || {
            first.report().verified && table().contains("10.64.0.5")
        });
        let endpoints = first.endpoints.borrow().clone();
        drop(first);
        let before = run("PATH=$PATH:/usr/sbin nft -a list ruleset").1;
        let wanted = desired(&cluster.state(), &endpoints, &options());
        let listener = Listener::start();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let begun = Instant::now();
        let outcome = runtime.block_on(Keeper::new(NftTool, options()).run(&wanted, true));
        println!("a look at a table with 500 nodes: {:?}", begun.elapsed());
        assert!(outcome.verified && outcome.writes == 0, "{outcome:?}");
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
fn every_combination_of_options_is_listed_as_it_was_written() {
    in_namespace(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
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
            let wanted = desired(&cluster().state(), &Endpoints::default(), &options);
            let mut keeper = Keeper::new(NftTool, options.clone());
            let outcome = runtime.block_on(keeper.run(&wanted, true));
            assert!(outcome.verified, "{options:?}: {outcome:?}");
            // A life that has learnt no other spelling finds it right.
            let outcome = runtime.block_on(Keeper::new(NftTool, options).run(&wanted, true));
            assert!(outcome.verified && outcome.writes == 0, "{outcome:?}");
        }
    });
}

#[test]
fn a_packet_from_a_foreign_address_is_dropped_and_counted_whatever_rp_filter_says() {
    in_namespace(|| {
        let keeping = Keeping::start(&cluster(), options());
        let link = keeping.pod("one", "10.64.0.5");
        ok("mount -t tmpfs run /run; ip netns add pod");
        ok(&format!(
            "ip link add {link} type veth peer name eth0 netns pod; ip link set {link} up; \
             ip route add 10.64.0.5 dev {link}; sysctl -qw net.ipv4.ip_forward=1"
        ));
        inside("link set eth0 up");
        inside("addr add 10.64.0.5/32 dev eth0");
        inside("addr add 10.64.0.77/32 dev eth0");
        inside("route add 192.168.64.1 dev eth0");
        // A neighbour of its own, lest ARP hide what is sent.
        ok(&format!(
            "sysctl -qw net.ipv4.conf.{link}.proxy_arp=1 net.ipv4.neigh.{link}.proxy_delay=0"
        ));
        until("the pod", || table().contains(&link));
        let ping = |from: &str, count: u32| {
            run(&format!(
                "ip netns exec pod ping -c {count} -i 0.1 -W 1 -I {from} 192.168.64.1"
            ))
        };
        for rp_filter in [0, 1, 2] {
            ok(&format!(
                "sysctl -qw net.ipv4.conf.all.rp_filter={rp_filter} net.ipv4.conf.{link}.rp_filter={rp_filter}"
            ));
            let (own, text) = ping("10.64.0.5", 2);
            assert!(own, "{text}");
            let before = keeping.report().spoofed_packets;
            let (foreign, _) = ping("10.64.0.77", 3);
            assert!(!foreign);
            until("the count", || {
                keeping.report().spoofed_packets == before + 3
            });
        }
        // A table that is made anew takes nothing off the sum.
        nft("delete table inet viaduct");
        until("healing", || keeping.report().repairs == 1);
        std::thread::sleep(Duration::from_millis(2500));
        assert_eq!(keeping.report().spoofed_packets, 9);
        drop(keeping.state);
    });
}

fn inside(arguments: &str) {
    ok(&format!("ip -n pod {arguments}"));
}
