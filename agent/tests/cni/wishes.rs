//! Addresses and MACs that are asked for by name.

use std::net::IpAddr;

use viaduct_cni::protocol::{Reply, Request, Verb};
use viaduct_cni::wishes::Wishes;

use crate::harness::*;

fn add(pod: &Pod, addresses: &[&str], mac: Option<&str>) -> Request {
    Request {
        wishes: Wishes {
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            mac: mac.map(|mac| mac.parse().unwrap()),
        },
        ..request(Verb::Add, pod.name(), &pod.netns())
    }
}

#[test]
fn a_pod_gets_the_address_and_mac_that_it_asks_for_or_a_clear_refusal() {
    if !inside("wishes::a_pod_gets_the_address_and_mac_that_it_asks_for_or_a_clear_refusal") {
        return;
    }
    block_on(async {
        let node = Node::new().await;
        let pod = Pod::new("c1");
        let ask = add(&pod, &["10.64.0.77"], Some("02:00:5e:00:53:01"));
        let made = wired(node.ask(ask.clone(), pod.descriptors()).await);
        assert_eq!(made.addresses, ["10.64.0.77".parse::<IpAddr>().unwrap()]);
        assert_eq!(made.pod_mac.to_string(), "02:00:5e:00:53:01");
        ping(made.addresses[0]);
        assert!(
            pod.run(&["ip", "link", "show", "eth0"])
                .contains("02:00:5e:00:53:01")
        );
        node.is_as_desired();
        assert_eq!(node.check(&pod, "eth0", &made).await, Reply::Fine);
        // Again, and without a wish: the same attachment.
        assert_eq!(wired(node.ask(ask, pod.descriptors()).await), made);
        assert_eq!(wired(node.add(&pod).await), made);
        let other = add(&pod, &["10.64.0.78"], None);
        let why = refusal(node.ask(other, pod.descriptors()).await, 102);
        assert!(
            why.contains("10.64.0.77") && why.contains("10.64.0.78"),
            "{why}"
        );

        let second = Pod::new("c2");
        for (addresses, code, named) in [
            (&["10.64.0.77"][..], 102, "c1/eth0"),
            (&["10.64.0.0"], 7, "reserved"),
            (&["10.99.0.1"], 7, "10.64.0.0/24"),
            (&["fd00::1"], 7, "one IPv4 address"),
            (&["10.64.0.8", "fd00::1"], 7, "one IPv4 address"),
        ] {
            let ask = add(&second, addresses, None);
            let why = refusal(node.ask(ask, second.descriptors()).await, code);
            assert!(why.contains(named), "{why}");
        }
        assert!(
            !node.handle.usage.borrow().starved,
            "a refusal asks for no block"
        );
        assert_eq!((node.used(), node.records(), host_links().len()), (1, 1, 1));
        // Nobody else was ever given it, and its owner may have it back at once.
        node.del("c1").await;
        let ask = add(&second, &["10.64.0.77"], None);
        let made = wired(node.ask(ask, second.descriptors()).await);
        ping(made.addresses[0]);
        node.del("c2").await;
        node.is_clean().await;
    });
}
