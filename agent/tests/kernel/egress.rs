//! The nft tables against the real nftables, with the egress task at work.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::sync::watch;
use viaduct_agent::egress::keeper::Keeper;
use viaduct_agent::egress::ruleset::{Ruleset, TableFamily};
use viaduct_agent::egress::task::Egress;
use viaduct_agent::egress::tool::NftTool;
use viaduct_agent::egress::{EgressReport, Options, masquerade, source_check};
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
        Self::start_with(cluster, options, Endpoints::default())
    }

    fn start_with(cluster: &Cluster, options: Options, ledger: Endpoints) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let (state, state_seen) = watch::channel(Some(cluster.state()));
        let (endpoints, endpoints_seen) = watch::channel(ledger);
        let (report, report_seen) = watch::channel(EgressReport::default());
        let guard = runtime.enter();
        let egress = Egress {
            options,
            state: state_seen,
            endpoints: endpoints_seen,
            report,
        };
        runtime.spawn(egress.run(NftTool));
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

    /// A pod's device, wired by the ledger's word.
    fn pod(&self, container: &str, address: &str) -> String {
        let link = endpoint(container, address, true).link;
        ok(&format!(
            "ip link add {link} type veth peer name {}",
            peer(&link)
        ));
        self.know(container, address);
        link
    }

    fn know(&self, container: &str, address: &str) {
        let endpoint = endpoint(container, address, true);
        let mut all = BTreeMap::clone(&self.endpoints.borrow());
        all.insert(endpoint.link.clone(), endpoint);
        self.endpoints.send_replace(Arc::new(all));
    }

    /// Until both tables are right and nothing is under way any more: the echo and the
    /// look afterwards are over.
    fn settle(&self) {
        until("verified", || self.report().verified());
        std::thread::sleep(Duration::from_millis(1500));
        until("verified", || self.report().verified());
    }
}

fn peer(link: &str) -> String {
    link.replace("via", "p")
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
    run("PATH=$PATH:/usr/sbin nft -s list table inet viaduct; \
         PATH=$PATH:/usr/sbin nft -s list table netdev viaduct")
    .1
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
fn the_tables_come_to_be_heal_whatever_is_done_to_them_and_leave_others_alone() {
    in_namespace(|| {
        nft("'add table inet other; add chain inet other c; add table ip viaduct'");
        let keeping = Keeping::start(&cluster(), options());
        let link = keeping.pod("one", "10.64.0.5");
        until("the beginning", || {
            keeping.report().verified() && table().contains("10.64.0.5")
        });
        let right = table();
        for part in [
            "fully-random",
            "192.0.2.0/24",
            "10.64.0.0/16",
            "192.168.65.1",
            "hook ingress device",
        ] {
            assert!(right.contains(part), "{part} in {right}");
        }
        keeping.settle();
        let mut repairs = keeping.report().repairs();
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
            "delete table netdev viaduct",
            "flush table netdev viaduct",
            "flush chain netdev viaduct LINK",
            "flush chain netdev viaduct LINK; delete chain netdev viaduct LINK",
            "insert rule netdev viaduct LINK accept",
            "add rule netdev viaduct LINK drop",
            "chain netdev viaduct LINK { policy drop; }",
            "add chain netdev viaduct mine",
            "add counter netdev viaduct mine",
            "flush chain netdev viaduct LINK; delete chain netdev viaduct LINK; add chain netdev viaduct LINK",
            "flush ruleset; add table inet other; add chain inet other c; add table ip viaduct",
        ] {
            nft(&format!("'{}'", damage.replace("LINK", &link)));
            let took = until(damage, || {
                let report = keeping.report();
                assert_eq!(report.problems().next(), None, "{damage}");
                report.repairs() > repairs && table() == right
            });
            println!("{:>7.1} ms  {damage}", took.as_secs_f64() * 1e3);
            keeping.settle();
            repairs = keeping.report().repairs();
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
        keeping.pod("one", "10.64.0.5");
        until("the beginning", || table().contains("10.64.0.5"));
        keeping.settle();
        let right = table();
        for (family, rule) in [("inet", "masquerade fully-random"), ("netdev", "10.64.0.5")] {
            let repairs = keeping.report().repairs();
            let listing = run(&format!(
                "PATH=$PATH:/usr/sbin nft -a list table {family} viaduct"
            ))
            .1;
            let (mut chain, mut handle) = ("", "");
            for line in listing.lines().map(str::trim) {
                if let Some(name) = line.strip_prefix("chain ") {
                    chain = name.split(' ').next().expect("a name");
                } else if line.contains(rule) && handle.is_empty() {
                    handle = line.rsplit(' ').next().expect("a handle");
                }
                if !handle.is_empty() {
                    break;
                }
            }
            nft(&format!(
                "delete rule {family} viaduct {chain} handle {handle}"
            ));
            until(rule, || {
                keeping.report().repairs() > repairs && table() == right
            });
            keeping.settle();
        }
    });
}

#[test]
fn pods_come_and_go_as_chains_in_few_transactions_and_others_wake_nobody() {
    in_namespace(|| {
        let keeping = Keeping::start(&cluster(), options());
        keeping.pod("one", "10.64.0.5");
        until("the beginning", || table().contains("10.64.0.5"));
        keeping.settle();
        let listener = Listener::start();
        let devices: String = (6..116)
            .map(|n| {
                let link = endpoint(&format!("pod-{n}"), &format!("10.64.0.{n}"), true).link;
                format!("link add {link} type veth peer name {}\n", peer(&link))
            })
            .collect();
        ok(&format!("ip -batch - <<'END'\n{devices}END"));
        for n in 6..116 {
            keeping.know(&format!("pod-{n}"), &format!("10.64.0.{n}"));
        }
        let known = || table().matches("hook ingress").count();
        let took = until("110 pods", || known() == 111);
        println!("110 pods are known after {took:?}");
        // As DEL does it: the ledger and the devices, in either order.
        let gone = devices
            .replace("add", "del")
            .replace("type veth peer name", "#");
        let mut left = BTreeMap::clone(&keeping.endpoints.borrow());
        left.retain(|_, endpoint| endpoint.addresses[0].to_string() == "10.64.0.5");
        keeping.endpoints.send_replace(Arc::new(left));
        let gone: String = gone
            .lines()
            .map(|line| format!("{}\n", line.split(" #").next().expect("a line")))
            .collect();
        ok(&format!("ip -batch - <<'END'\n{gone}END"));
        until("one pod", || known() == 1);
        keeping.settle();
        let seen = listener.lines();
        assert!(seen.contains("add chain netdev viaduct via"), "{seen}");
        for part in ["inet", "table", "counter"] {
            assert!(!seen.contains(&format!("add {part} ")), "{seen}");
        }
        assert!(!seen.contains(" inet viaduct"), "{seen}");
        let transactions = seen.matches("# new generation").count();
        assert!((2..=8).contains(&transactions), "{transactions}");
        let report = keeping.report();
        assert_eq!((report.repairs(), report.problems().count()), (0, 0));
        ok(
            "for i in $(seq 50); do echo add table inet other; echo delete table inet other; done | PATH=$PATH:/usr/sbin nft -f -",
        );
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(keeping.report().repairs(), 0);
    });
}

#[test]
fn a_pods_device_that_vanishes_and_comes_back_is_judged_again() {
    in_namespace(|| {
        let keeping = Keeping::start(&cluster(), options());
        let link = keeping.pod("one", "10.64.0.5");
        until("the beginning", || table().contains(&link));
        ok(&format!("ip link del {link}"));
        // Another pod comes meanwhile; the one without a device stops nothing.
        let second = keeping.pod("two", "10.64.0.6");
        until("the second", || {
            let table = table();
            table.contains(&second) && !table.contains(&link)
        });
        let report = keeping.report();
        assert!(report.source_check.problems.is_empty(), "{report:?}");
        ok(&format!(
            "ip link add {link} type veth peer name {}",
            peer(&link)
        ));
        until("the first again", || table().contains(&link));
        // Within the time that changes are gathered in, and by another device.
        ok(&format!(
            "ip link del {link}; ip link add {link} type veth peer name {}",
            peer(&link)
        ));
        keeping.know("one", "10.64.0.5");
        keeping.settle();
        assert!(table().contains(&link), "{}", table());
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
            first.report().verified() && table().contains("10.64.0.5")
        });
        let endpoints = first.endpoints.borrow().clone();
        drop(first);
        let before = run("PATH=$PATH:/usr/sbin nft -a list ruleset").1;
        let listener = Listener::start();
        let second = Keeping::start_with(&cluster, options(), endpoints);
        until("verified", || second.report().verified());
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(second.report().repairs(), 0);
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
        let run_once = |family, wanted: &Option<Ruleset>| {
            runtime.block_on(Keeper::new(NftTool, family).run(|| wanted.clone(), true))
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
            let outcome = run_once(TableFamily::Inet, &wanted);
            assert!(outcome.verified, "{options:?}: {outcome:?}");
            // A life that has learnt no other spelling finds it right.
            let outcome = run_once(TableFamily::Inet, &wanted);
            assert!(outcome.verified && outcome.writes == 0, "{outcome:?}");
            assert_eq!(wanted.is_some(), table().contains("hook postrouting"));
        }
        let mut endpoint = endpoint("one", "10.64.0.5", true);
        endpoint
            .addresses
            .push("10.64.0.4".parse().expect("an address"));
        endpoint
            .addresses
            .push("fd00::4".parse().expect("an address"));
        ok(&format!("ip link add {} type veth", endpoint.link));
        let indices = BTreeMap::from([(endpoint.link.clone(), 2)]);
        let endpoints = BTreeMap::from([(endpoint.link.clone(), endpoint)]);
        let wanted = Some(source_check::desired(&endpoints, &indices));
        for writes in [1, 0] {
            let outcome = run_once(TableFamily::Netdev, &wanted);
            assert!(outcome.verified, "{outcome:?}");
            assert_eq!(outcome.writes, writes, "{outcome:?}");
        }
    });
}

#[test]
fn a_packet_from_a_foreign_address_is_dropped_and_counted_whatever_rp_filter_says() {
    in_namespace(|| {
        let keeping = Keeping::start(&cluster(), options());
        let link = endpoint("one", "10.64.0.5", true).link;
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
        keeping.know("one", "10.64.0.5");
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
            let before = keeping.report().source_check.dropped;
            let (foreign, _) = ping("10.64.0.77", 3);
            assert!(!foreign);
            until("the count", || {
                keeping.report().source_check.dropped == before + 3
            });
        }
        // A table that is made anew takes nothing off the sum.
        nft("delete table netdev viaduct");
        until("healing", || keeping.report().repairs() == 1);
        std::thread::sleep(Duration::from_millis(2500));
        assert_eq!(keeping.report().source_check.dropped, 9);
        drop(keeping.state);
    });
}

fn inside(arguments: &str) {
    ok(&format!("ip -n pod {arguments}"));
}
