//! CHECK: everything that can be wrong with an attachment is named.

use std::net::IpAddr;
use std::sync::Arc;

use viaduct_cni::protocol::Reply;

use crate::harness::*;

#[test]
fn check_is_content_with_what_add_made_and_names_what_differs() {
    if !inside("check::check_is_content_with_what_add_made_and_names_what_differs") {
        return;
    }
    block_on(async {
        let node = Node::new().await;
        let pod = Pod::new("c1");
        let told = wired(node.add(&pod).await);
        assert_eq!(node.check(&pod, "eth0", &told).await, Reply::Fine);
        let link = told.host_link.as_str();
        let setting = |value| {
            let path = format!("/proc/sys/net/ipv4/conf/{link}/rp_filter");
            std::fs::write(path, value).unwrap();
        };
        let ip = |args: &str| {
            run("ip", &args.split(' ').collect::<Vec<_>>());
        };
        let inside = |args: &str| {
            let args: Vec<_> = std::iter::once("ip").chain(args.split(' ')).collect();
            pod.run(&args);
        };
        let route = format!("10.64.0.1 dev {link} scope link");
        let neighbour = format!("10.64.0.1 lladdr {} dev {link} nud permanent", told.pod_mac);
        // No reconciler runs here, so that nothing is repaired meanwhile.
        type Change<'a> = Box<dyn Fn() + 'a>;
        let damages: Vec<(&str, Change<'_>, Change<'_>)> = vec![
            (
                "route 10.64.0.1/32",
                Box::new(|| ip(&format!("route del {route} proto 87"))),
                Box::new(|| ip(&format!("route add {route} proto 87"))),
            ),
            (
                "neighbour 10.64.0.1",
                Box::new(|| ip(&format!("neigh del {neighbour}"))),
                Box::new(|| ip(&format!("neigh add {neighbour}"))),
            ),
            (
                "rp_filter",
                Box::new(|| setting("0")),
                Box::new(|| setting("1")),
            ),
            (
                "accept_ra",
                Box::new(|| {
                    let path = format!("/proc/sys/net/ipv6/conf/{link}/accept_ra");
                    std::fs::write(path, "1").unwrap();
                }),
                Box::new(|| {
                    let path = format!("/proc/sys/net/ipv6/conf/{link}/accept_ra");
                    std::fs::write(path, "0").unwrap();
                }),
            ),
            (
                "MTU 1450",
                Box::new(|| ip(&format!("link set {link} mtu 1300"))),
                Box::new(|| ip(&format!("link set {link} mtu 1450"))),
            ),
            (
                "the MTU of eth0",
                Box::new(|| inside("link set eth0 mtu 1300")),
                Box::new(|| inside("link set eth0 mtu 1450")),
            ),
            (
                "the default route",
                Box::new(|| inside("route del default")),
                Box::new(|| inside("route add default via 169.254.1.1 dev eth0 onlink")),
            ),
            (
                "neighbour 169.254.1.1",
                Box::new(|| inside("neigh del 169.254.1.1 dev eth0")),
                Box::new(|| {
                    inside("neigh add 169.254.1.1 lladdr ee:76:69:61:00:01 dev eth0 nud permanent")
                }),
            ),
        ];
        for (named, damage, repair) in damages {
            damage();
            let why = refusal(node.check(&pod, "eth0", &told).await, 103);
            assert!(why.contains(named), "without {named:?}: {why}");
            assert_eq!(why.matches(';').count(), 0, "more than that: {why}");
            repair();
            assert_eq!(
                node.check(&pod, "eth0", &told).await,
                Reply::Fine,
                "{named}"
            );
        }
        inside("addr del 10.64.0.1/32 dev eth0");
        let why = refusal(node.check(&pod, "eth0", &told).await, 103);
        assert!(
            why.contains("address 10.64.0.1 is missing on eth0"),
            "{why}"
        );
        inside("link set eth0 down");
        let why = refusal(node.check(&pod, "eth0", &told).await, 103);
        assert!(why.contains("eth0 is down"), "{why}");
        inside("link del eth0");
        let why = refusal(node.check(&pod, "eth0", &told).await, 103);
        assert!(why.contains("has no interface eth0"), "{why}");
        assert!(why.contains(&format!("link {link} is not there")), "{why}");
        node.del("c1").await;
        let why = refusal(node.check(&pod, "eth0", &told).await, 3);
        assert!(why.contains("c1/eth0"), "{why}");
        node.is_clean().await;
    });
}

#[test]
fn check_compares_the_ledger_with_what_the_runtime_was_told() {
    if !inside("check::check_compares_the_ledger_with_what_the_runtime_was_told") {
        return;
    }
    block_on(async {
        let node = Node::new().await;
        let pod = Pod::new("c1");
        let told = wired(node.add(&pod).await);
        let mut other = told.clone();
        other.addresses = vec!["10.64.0.9".parse::<IpAddr>().unwrap()];
        let why = refusal(node.check(&pod, "eth0", &other).await, 103);
        assert!(
            why.contains("10.64.0.9") && why.contains("10.64.0.1"),
            "{why}"
        );
        let mut other = told.clone();
        other.pod_mac = "02:00:5e:00:53:01".parse().unwrap();
        other.mtu = 9000;
        let why = refusal(node.check(&pod, "eth0", &other).await, 103);
        assert!(
            why.contains("02:00:5e:00:53:01") && why.contains("9000"),
            "{why}"
        );
        // The container was made anew under its old name, and nobody told us.
        let moved = Pod::new("c1");
        let why = refusal(node.check(&moved, "eth0", &told).await, 103);
        assert!(why.contains("another network namespace"), "{why}");
        // The block went to another node.
        let mut state = node_state();
        Arc::make_mut(&mut state.view).blocks.clear();
        node.state.send_replace(Some(state));
        eventually("the block is gone", || {
            node.handle.usage.borrow().blocks.is_empty()
        })
        .await;
        let why = refusal(node.check(&pod, "eth0", &told).await, 103);
        assert!(why.contains("in no block of this node"), "{why}");
        node.handle.stop().await;
    });
}
