//! What the kernel remembers of a released address.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use viaduct_agent::cni::CniOptions;
use viaduct_cni::protocol::Request;
use viaduct_cni::protocol::Verb;

use crate::harness::*;

fn connections(of: &str) -> usize {
    let output = Command::new("conntrack").arg("-L").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .filter(|line| {
            line.split_whitespace()
                .any(|word| word.ends_with(&format!("={of}")))
        })
        .count()
}

#[test]
fn the_connections_of_a_released_address_are_forgotten_and_no_others() {
    if !inside("forgetting::the_connections_of_a_released_address_are_forgotten_and_no_others") {
        return;
    }
    block_on(async {
        // From now on connections are tracked; one address is another's in front.
        let rules = "table ip t {
            chain in { type filter hook input priority 0; ct state invalid drop; }
            chain nat { type nat hook output priority -100; ip daddr 198.18.0.1 dnat to 10.64.0.2; }
        }";
        run("nft", &[rules]);
        run("ip", &["route", "add", "198.18.0.1", "dev", "lo"]);
        let node = Node::new().await;
        let pods: Vec<Pod> = (0..10).map(|i| Pod::new(&format!("c{i}"))).collect();
        let mut addresses = Vec::new();
        for pod in &pods {
            let address = wired(node.add(pod).await).addresses[0];
            ping(address);
            addresses.push(address.to_string());
        }
        ping("198.18.0.1".parse().unwrap());
        assert_eq!(addresses[1], "10.64.0.2");
        assert!(addresses.iter().all(|address| connections(address) > 0));
        assert_eq!(connections("198.18.0.1"), 1);

        // A few are looked for by the kernel.
        node.del("c0").await;
        node.del("c1").await;
        eventually("they are forgotten", || {
            connections(&addresses[0]) == 0 && connections(&addresses[1]) == 0
        })
        .await;
        assert_eq!(
            connections("198.18.0.1"),
            0,
            "also where the address was translated"
        );
        assert!(
            addresses[2..]
                .iter()
                .all(|address| connections(address) > 0)
        );
        // Many are picked from all that there are.
        for i in 2..9 {
            node.del(&format!("c{i}")).await;
        }
        eventually("they are forgotten", || {
            addresses[2..9]
                .iter()
                .all(|address| connections(address) == 0)
        })
        .await;
        assert!(connections(&addresses[9]) > 0);
        node.del("c9").await;
        node.is_clean().await;
    });
}

#[test]
fn the_address_that_rests_longest_is_used_early_and_counted_when_no_other_is_free() {
    if !inside(
        "forgetting::the_address_that_rests_longest_is_used_early_and_counted_when_no_other_is_free",
    ) {
        return;
    }
    block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let mut options = CniOptions::new(directory.path());
        options.cool_down = Duration::from_secs(3600);
        let metrics = options.metrics.clone();
        let node = Node::with(options).await;
        let mut small = node_state();
        let view = Arc::make_mut(&mut small.view);
        let (_, mut block) = view.blocks.pop_first().unwrap();
        Arc::make_mut(&mut block).cidr = "10.64.0.0/29".parse().unwrap();
        view.blocks.insert(block.cidr, block);
        node.state.send_replace(Some(small));
        let early = || metrics.early_reuses.get();
        // All addresses of the block, its own excepted, are used once.
        let pod = Pod::new("c");
        let mut first = None;
        for i in 1..8 {
            let request = Request {
                id: id(&format!("c{i}")),
                ..request(Verb::Add, "c", &pod.netns())
            };
            let made = wired(node.ask(request, pod.descriptors()).await);
            first.get_or_insert(made.addresses[0]);
            node.del(&format!("c{i}")).await;
            eventually("the interface is gone", || host_links().is_empty()).await;
        }
        assert_eq!(early(), 0);
        let made = wired(node.add(&pod).await);
        assert_eq!(Some(made.addresses[0]), first);
        eventually("it is counted", || early() == 1).await;
        node.handle.stop().await;
    });
}
