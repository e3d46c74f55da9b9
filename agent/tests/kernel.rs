//! The dataplane against the real kernel. Each test runs in network, user and mount
//! namespaces of its own: the test program starts itself again under `unshare`, so
//! that nothing outside is ever touched.

#[path = "kernel/egress.rs"]
mod egress;
#[path = "kernel/scene.rs"]
mod scene;
#[path = "kernel/source_check.rs"]
mod source_check;
#[path = "../src/dataplane/testing.rs"]
#[allow(dead_code)] // the unit tests use all of it
mod testing;

// The builders of the unit tests speak of the agent's own modules as `crate::...`.
use viaduct_agent::{backend, state};

use std::time::{Duration, Instant};

use scene::{Scene, in_namespace, ip, ok, run};
use testing::Cluster;
use testing::endpoint;
use viaduct_agent::backend::vxlan::BACKEND;
use viaduct_agent::backend::{Backend, host_gw, ipip};
use viaduct_agent::dataplane::diff::diff;
use viaduct_agent::dataplane::hints::Hint;
use viaduct_agent::dataplane::host::suit;
use viaduct_agent::dataplane::kernel::Kernel;
use viaduct_agent::dataplane::objects::Desired;
use viaduct_agent::kernel::survey::on_link;
use viaduct_agent::kernel::{LinkType, Monitor, NetlinkKernel, NetlinkSocket};

/// Applies until nothing differs; says how often.
fn converge(kernel: &mut NetlinkKernel, desired: &Desired) -> usize {
    for pass in 0..4 {
        let plan = diff(desired, &kernel.dump().expect("a dump"));
        if plan.is_empty() {
            return pass;
        }
        for (op, answer) in plan.iter().zip(kernel.apply(&plan)) {
            answer.unwrap_or_else(|error| panic!("{op}: {error}"));
        }
    }
    panic!(
        "still differs: {:?}",
        diff(desired, &kernel.dump().expect("a dump"))
    );
}

#[test]
fn an_empty_namespace_becomes_as_desired_and_a_second_look_changes_nothing() {
    in_namespace(|| {
        let cluster = scene::cluster();
        let desired = BACKEND.desired(&cluster.state(), &Default::default());
        let mut kernel = NetlinkKernel::open().unwrap();
        assert_eq!(converge(&mut kernel, &desired), 1, "one pass must do");
        let link = ip("-d -j link show via.vx4");
        for part in [
            "\"id\":1,",
            "\"port\":8472",
            "\"learning\":false",
            "\"mtu\":1450",
        ] {
            assert!(link.contains(part), "{part} in {link}");
        }
        let route = ip("route show 10.64.1.0/26");
        assert!(
            route.contains("via 10.64.1.0 dev via.vx4 proto 87 src 10.64.0.0 onlink"),
            "{route}"
        );
        assert!(ip("route show 10.64.0.0/26").contains("blackhole"));
        assert!(ip("-6 addr show dev via.vx4").is_empty());
    });
}

#[test]
fn the_reconciler_heals_every_object_and_leaves_others_alone() {
    in_namespace(|| {
        let scene = Scene::start(scene::cluster());
        scene.pod("pod", "10.64.0.5");
        scene.settled();
        let pod = endpoint("pod", "10.64.0.5", true).link;
        ok("ip route add 10.9.0.0/24 dev eth0");
        ok("ip route add 10.9.1.0/24 dev eth0 proto 88");
        ok("ip neigh add 192.168.64.77 lladdr 02:00:00:00:00:77 dev eth0");
        let damages = [
            "ip route del 10.64.1.0/26".to_owned(),
            "ip route del blackhole 10.64.0.0/26".into(),
            "ip route replace 10.64.1.0/26 via 10.64.1.9 dev via.vx4 onlink proto 87".into(),
            "ip route replace 10.64.1.0/26 via 192.168.64.9 dev eth0".into(),
            "ip neigh del 10.64.1.0 dev via.vx4".into(),
            "ip neigh replace 10.64.1.0 lladdr 02:00:00:00:00:01 dev via.vx4 nud permanent".into(),
            "ip neigh replace 10.64.1.0 lladdr 02:00:00:00:00:01 dev via.vx4 nud reachable".into(),
            format!(
                "bridge fdb del {} dev via.vx4 dst 192.168.65.1",
                scene.peer_mac
            ),
            format!(
                "bridge fdb replace {} dev via.vx4 dst 192.168.65.99 self permanent",
                scene.peer_mac
            ),
            format!(
                "bridge fdb replace {} dev via.vx4 dst 192.168.65.1 port 9999 self permanent",
                scene.peer_mac
            ),
            "bridge fdb append 00:00:00:00:00:00 dev via.vx4 dst 192.168.65.98".into(),
            "ip addr del 10.64.0.0/32 dev via.vx4".into(),
            "ip addr add 10.77.0.1/24 dev via.vx4".into(),
            "ip link set via.vx4 down".into(),
            "ip link set via.vx4 mtu 1400".into(),
            "ip link set via.vx4 address 02:00:00:00:00:02".into(),
            "ip link del via.vx4".into(),
            "printf 'link set via.vx4 down\\nlink set via.vx4 name gone\\nlink del gone\\n' | ip -batch -".into(),
            "ip link add via0000deadbeef type veth peer name other".into(),
            "sysctl -qw net.ipv4.ip_forward=0".into(),
            "sysctl -qw net/ipv4/conf/via.vx4/rp_filter=1".into(),
            "sysctl -qw net/ipv4/conf/via.vx4/forwarding=0".into(),
            format!("sysctl -qw net/ipv4/conf/{pod}/rp_filter=0"),
            format!("sysctl -qw net/ipv4/conf/{pod}/proxy_arp=1"),
            "ip route del 10.64.0.5/32".into(),
            format!("ip neigh del 10.64.0.5 dev {pod}"),
            format!("ip link set {pod} down"),
            format!("ip link set {pod} address 02:00:00:00:00:03"),
        ];
        let mut slowest = (Duration::ZERO, String::new());
        for damage in &damages {
            let begun = Instant::now();
            ok(damage);
            let took = scene.healed(damage, begun);
            println!("{:>7.1} ms  {damage}", took.as_secs_f64() * 1e3);
            if took > slowest.0 {
                slowest = (took, damage.clone());
            }
        }
        println!("slowest: {slowest:?}");
        for foreign in ["10.9.0.0/24", "10.9.1.0/24", "10.64.1.0/26 proto boot"] {
            assert!(
                !ip(&format!("route show {foreign}")).is_empty(),
                "{foreign}"
            );
        }
        assert!(ip("neigh show 192.168.64.77").contains("PERMANENT"));
        let report = scene.report();
        assert!(report.verified && report.can_wire, "{report:?}");
        assert!(report.repairs >= damages.len() as u64, "{report:?}");
    });
}

#[test]
fn a_tunnel_checks_sources_only_where_the_host_does_and_follows_it() {
    in_namespace(|| {
        ok("sysctl -qw net.ipv4.conf.all.rp_filter=0");
        let scene = Scene::start(scene::cluster());
        scene.settled();
        let file = "/proc/sys/net/ipv4/conf/via.vx4/rp_filter";
        let is = || std::fs::read_to_string(file).unwrap().trim().to_owned();
        assert_eq!(is(), "0");
        for (all, wanted) in [(1, "2"), (0, "0"), (2, "2"), (1, "2"), (0, "0")] {
            let begun = Instant::now();
            ok(&format!("sysctl -qw net.ipv4.conf.all.rp_filter={all}"));
            let took = scene.healed("the host's change", begun);
            println!("{:>7.1} ms  all.rp_filter={all}", took.as_secs_f64() * 1e3);
            assert_eq!(is(), wanted, "all.rp_filter={all}");
        }
    });
}

#[test]
fn others_churn_wakes_nobody_and_a_storm_of_damage_ends_healed() {
    in_namespace(|| {
        let scene = Scene::start(scene::cluster());
        scene.settled();
        // The echoes of the beginning have been judged.
        std::thread::sleep(Duration::from_millis(300));
        let before = scene.report().reconciles;
        ok(
            "for i in $(seq 2000); do echo route add 10.9.0.0/24 dev eth0; \
            echo neigh replace 192.168.64.77 lladdr 02:00:00:00:00:77 dev eth0; \
            echo route del 10.9.0.0/24 dev eth0; done | ip -batch -",
        );
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(scene.report().reconciles, before);
        ok(
            "for i in $(seq 3000); do echo route replace 10.64.1.0/26 dev eth0 proto 87; \
            echo route del 10.64.1.0/26 proto 87; done | ip -force -batch - 2>/dev/null || true",
        );
        let took = scene.healed("the storm", Instant::now());
        let reconciles = scene.report().reconciles - before;
        println!("healed {took:?} after 6,000 damages, in {reconciles} reconciles");
        assert!(reconciles < 600, "{reconciles}");
    });
}

#[test]
fn lost_notifications_lead_to_a_full_look() {
    in_namespace(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let guard = runtime.enter();
        let mut monitor = Monitor::open().unwrap();
        drop(guard);
        // Nobody reads meanwhile, and more comes than the socket holds. What is damaged
        // last is told by no notification of its own.
        ok(
            "for i in $(seq 20000); do echo route add 10.9.0.0/24 dev eth0; \
            echo route del 10.9.0.0/24 dev eth0; done | ip -batch -",
        );
        ok("ip link add told-by-nobody type veth peer name neither");
        let mut lost = false;
        runtime.block_on(async {
            while let Ok(hints) =
                tokio::time::timeout(Duration::from_millis(300), monitor.next()).await
            {
                for hint in hints.unwrap() {
                    lost |= hint == Hint::Resync;
                    if let Hint::Link { name, .. } = hint {
                        assert_ne!(&*name, "told-by-nobody", "nothing was lost");
                    }
                }
            }
        });
        assert!(lost, "the monitor did not say that notifications were lost");
    });
}

#[test]
fn a_link_of_the_tunnels_name_that_is_something_else_is_replaced() {
    in_namespace(|| {
        let desired = BACKEND.desired(&scene::cluster().state(), &Default::default());
        for other in [
            "bridge",
            "vxlan id 9 dstport 8472 dev eth0",
            "vxlan id 1 dstport 4789 dev eth0",
            "vxlan id 1 dstport 8472 local 192.168.64.1 dev eth0 learning",
            "vxlan id 1 dstport 8472 nolearning",
        ] {
            ok(&format!(
                "ip link add via.vx4 type {other}; ip link set via.vx4 up"
            ));
            let mut kernel = NetlinkKernel::open().unwrap();
            assert_eq!(converge(&mut kernel, &desired), 1, "{other}");
            ok("ip link del via.vx4");
        }
    });
}

#[test]
fn a_restart_changes_nothing_and_a_stale_peer_and_pod_are_swept() {
    in_namespace(|| {
        let mut cluster = scene::cluster();
        cluster.peer("stale", 7);
        let mut kernel = NetlinkKernel::open().unwrap();
        let old = BACKEND.desired(&cluster.state(), &Default::default());
        converge(&mut kernel, &old);
        ok("ip link add via0000deadbeef type veth peer name other");
        drop(kernel);
        let scene = Scene::start(scene::cluster());
        scene.settled();
        assert!(ip("route show 10.64.7.0/26").is_empty());
        assert!(!run("ip link show via0000deadbeef").0);
        let before = scene.monitor_lines(|| {
            let mut kernel = NetlinkKernel::open().unwrap();
            let mut desired = BACKEND.desired(&scene::cluster().state(), &Default::default());
            let actual = kernel.dump().unwrap();
            suit(&mut desired, actual.host);
            assert_eq!(diff(&desired, &actual), []);
        });
        assert_eq!(before, "", "a second agent's look made changes");
    });
}

#[test]
fn two_thousand_peers_from_cold_beside_batches_of_iproute2() {
    in_namespace(|| {
        let mut cluster = scene::cluster();
        for n in 2..=2000 {
            cluster.peer(&format!("peer-{n}"), n);
        }
        let desired = BACKEND.desired(&cluster.state(), &Default::default());
        assert_eq!(desired.fdb.len(), 2000);
        let mut kernel = NetlinkKernel::open().unwrap();
        let begun = Instant::now();
        let plan = diff(&desired, &kernel.dump().unwrap());
        let planned = begun.elapsed();
        let answers = kernel.apply(&plan);
        let applied = begun.elapsed();
        assert!(answers.iter().all(Result::is_ok));
        assert_eq!(diff(&desired, &kernel.dump().unwrap()), []);
        let verified = begun.elapsed();
        println!(
            "{} changes: planned {planned:?}, applied {applied:?}, verified {verified:?}",
            plan.len()
        );
        println!("iproute2 for the same: {:?}", scene::by_iproute2(&desired));
    });
}

#[test]
fn a_route_of_somebody_else_is_named_as_long_as_it_is_there_and_never_touched() {
    in_namespace(|| {
        let scene = Scene::start(scene::cluster());
        scene.settled();
        for (damage, route, said) in [
            (
                "ip route prepend 10.64.1.0/26 dev eth0",
                "10.64.1.0/26 proto boot",
                "takes all that goes there",
            ),
            (
                "ip route add 10.64.1.0/26 dev eth0 proto static metric 50",
                "10.64.1.0/26 proto static",
                "is not used",
            ),
            (
                "ip route add 10.64.1.7/32 dev eth0 proto 188",
                "10.64.1.7/32 proto 188",
                "that part of it",
            ),
        ] {
            ok(damage);
            let report = scene.reported(|report| !report.conflicts.is_empty());
            assert!(report.verified, "{report:?}");
            assert!(report.conflicts[0].contains(said), "{report:?}");
            assert!(!ip(&format!("route show {route}")).is_empty(), "{route}");
            ok(&format!("ip route del {route}"));
            scene.reported(|report| report.conflicts.is_empty());
        }
    });
}

#[test]
fn hundreds_of_links_without_a_pod_are_swept_at_once() {
    in_namespace(|| {
        ok(
            "for i in $(seq 300); do printf 'link add via0000%08x type veth peer name p%d\\n' $i $i; done | ip -batch -",
        );
        let begun = Instant::now();
        let scene = Scene::start(scene::cluster());
        let took = scene.healed("the start", begun);
        println!("300 links and all the rest: {took:?}");
        assert!(!ip("-o link").contains("via0000"));
    });
}

/// This node with one adjacent peer, 192.168.64.9.
fn neighbours(backend: &Backend) -> Cluster {
    let mut cluster = scene::placed(Cluster::of(backend));
    cluster.adjoin("b", 9);
    cluster
}

#[test]
fn host_gw_heals_its_routes_and_the_forwarding_of_the_underlays_device() {
    in_namespace(|| {
        ok("sysctl -qw net.ipv4.ip_forward=0");
        let scene = Scene::with(&host_gw::BACKEND, neighbours(&host_gw::BACKEND));
        scene.settled();
        assert!(
            ip("route show 10.64.1.0/26").contains("via 192.168.64.9 dev eth0 proto 87"),
            "{}",
            ip("route")
        );
        assert!(!run("ip -o link show | grep via").0, "a link was made");
        assert!(scene.report().can_wire);
        for damage in [
            "ip route del 10.64.1.0/26",
            "ip route del blackhole 10.64.0.0/26",
            "ip route replace 10.64.1.0/26 via 192.168.64.77 dev eth0 proto 87",
            "sysctl -qw net.ipv4.ip_forward=0",
            "sysctl -qw net.ipv4.conf.eth0.forwarding=0",
            "ip link set eth0 down; ip link set eth0 up",
            "ip addr flush dev eth0; ip addr add 192.168.64.1/24 dev eth0",
        ] {
            let begun = Instant::now();
            ok(damage);
            let took = scene.healed(damage, begun);
            println!("{:>7.1} ms  {damage}", took.as_secs_f64() * 1e3);
        }
        // Nothing else about the device is anybody's business but its owner's.
        ok("sysctl -qw net.ipv4.conf.eth0.rp_filter=1 net.ipv4.conf.eth0.proxy_arp=1");
        ok("sysctl -qw net.ipv4.conf.eth0.forwarding=0");
        scene.healed("forwarding again", Instant::now());
        let conf = "/proc/sys/net/ipv4/conf/eth0";
        let (_, left) = run(&format!("cat {conf}/rp_filter {conf}/proxy_arp"));
        assert_eq!(left, "1\n1\n");
    });
}

#[test]
fn a_tunnel_gives_way_to_plain_routes_and_comes_back_without_a_gap_in_the_routing() {
    in_namespace(|| {
        let mut kernel = NetlinkKernel::open().unwrap();
        let mut vxlan = neighbours(&BACKEND);
        let tunnelled = BACKEND.desired(&vxlan.state(), &Default::default());
        converge(&mut kernel, &tunnelled);
        // Whatever the order of changes, the kernel always has one of the two routes.
        let mut watched = scene::watch_for_gaps("10.64.1.0/26");
        let cluster = neighbours(&host_gw::BACKEND);
        let plain = host_gw::BACKEND.desired(&cluster.state(), &Default::default());
        converge(&mut kernel, &plain);
        assert!(
            !run("ip link show via.vx4").0,
            "the old tunnel was not swept"
        );
        converge(&mut kernel, &tunnelled);
        vxlan.local.direct_routing = true;
        let direct = BACKEND.desired(&vxlan.state(), &Default::default());
        converge(&mut kernel, &direct);
        assert!(ip("route show 10.64.1.0/26").contains("dev eth0"));
        converge(&mut kernel, &tunnelled);
        assert!(ip("route show 10.64.1.0/26").contains("dev via.vx4"));
        // The peer's MTU shrinks, and grows again.
        vxlan.local.direct_routing = false;
        for mtu in [1350, 1300, 1450] {
            vxlan.node("b").mtu = mtu;
            converge(
                &mut kernel,
                &BACKEND.desired(&vxlan.state(), &Default::default()),
            );
            let route = ip("route show 10.64.1.0/26");
            assert_eq!(route.contains(&format!("mtu {mtu}")), mtu < 1450, "{route}");
            assert_eq!(route.lines().count(), 1, "{route}");
        }
        assert_eq!(watched.gaps(), 0);
    });
}

#[test]
fn the_kernel_says_who_is_on_link() {
    in_namespace(|| {
        let mut socket = NetlinkSocket::open().unwrap();
        let index = scene::cluster().local.underlay.index;
        let address = |last| std::net::Ipv4Addr::new(192, 168, 64, last);
        let mut ask = || {
            let found = on_link(&mut socket, index, [1, 9, 10, 11, 12].map(address)).unwrap();
            found.iter().map(|ip| ip.octets()[3]).collect::<Vec<_>>()
        };
        // Not oneself.
        assert_eq!(ask(), [9, 10, 11, 12]);
        ok("ip route add 192.168.64.10/32 via 192.168.64.2");
        ok("ip route add blackhole 192.168.64.11/32");
        ok("ip route add 192.168.64.12/32 dev wire");
        assert_eq!(ask(), [9]);
        ok("ip addr del 192.168.64.1/24 dev eth0");
        assert_eq!(ask(), [0u8; 0]);
    });
}

#[test]
fn a_kernel_without_ipip_is_told_from_one_with_it() {
    in_namespace(|| {
        let mut socket = NetlinkSocket::open().unwrap();
        assert!(LinkType::Vxlan.is_known(&mut socket).unwrap());
        let known = LinkType::Ipip.is_known(&mut socket).unwrap();
        assert_eq!(known, run("ip link add x type ipip local 192.168.64.1").0);
        assert!(!run("ip link show via.probe").0, "the question made a link");
        if known {
            ok("ip link del x");
            let desired =
                ipip::BACKEND.desired(&neighbours(&ipip::BACKEND).state(), &Default::default());
            let mut kernel = NetlinkKernel::open().unwrap();
            assert_eq!(converge(&mut kernel, &desired), 1, "one pass must do");
        }
    });
}

#[test]
fn old_kernels_get_a_tunnel_without_checksum_offload_and_new_ones_keep_it() {
    in_namespace(|| {
        let desired = BACKEND.desired(&scene::cluster().state(), &Default::default());
        for (release, shown) in [("6.1.0-13-cloud-amd64", "on"), ("5.4.0-200-generic", "off")] {
            // The second finds the tunnel of the first, as after an upgrade of the agent.
            let mut kernel = NetlinkKernel::open().unwrap().for_release(release);
            converge(&mut kernel, &desired);
            let features = run("ethtool -k via.vx4").1;
            assert!(
                features.contains(&format!("tx-checksum-ip-generic: {shown}")),
                "{release}: {features}"
            );
        }
    });
}
