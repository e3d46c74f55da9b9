//! Not a test but a look: how long ADD and DEL take without the plugin's own start.
//! `cargo test -p viaduct-agent --test cni -- --ignored --nocapture`

use std::time::{Duration, Instant};

use viaduct_cni::protocol::Verb;

use crate::harness::*;

#[test]
#[ignore = "prints timings, asserts nothing"]
fn add_and_del_one_after_the_other() {
    if !inside("latency::add_and_del_one_after_the_other") {
        return;
    }
    block_on(async {
        let node = Node::new().await;
        let pods: Vec<Pod> = (0..200).map(|i| Pod::new(&format!("c{i}"))).collect();
        let mut adds = Vec::new();
        for pod in &pods {
            let descriptors = pod.descriptors();
            let begun = Instant::now();
            let reply = node
                .ask(request(Verb::Add, pod.name(), &pod.netns()), descriptors)
                .await;
            adds.push(begun.elapsed());
            wired(reply);
        }
        let mut dels = Vec::new();
        for pod in &pods {
            let begun = Instant::now();
            node.del(pod.name()).await;
            dels.push(begun.elapsed());
        }
        node.is_clean().await;
        for (verb, mut times) in [("ADD", adds), ("DEL", dels)] {
            times.sort();
            let at = |share: usize| -> Duration { times[(times.len() - 1) * share / 100] };
            println!(
                "{verb}: p50 {:?} p99 {:?} max {:?}",
                at(50),
                at(99),
                at(100)
            );
        }
    });
}
