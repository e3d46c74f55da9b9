//! GC and STATUS, and several networks on one node.

use std::sync::Arc;

use viaduct_agent::state::DataplaneReport;
use viaduct_cni::protocol::{Reply, Request, Verb};

use crate::harness::*;

#[test]
fn gc_removes_what_the_runtime_does_not_know_and_nothing_else() {
    if !inside("network::gc_removes_what_the_runtime_does_not_know_and_nothing_else") {
        return;
    }
    block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let node = Node::at(directory.path()).await;
        let names = ["kept", "stale", "gone", "other", "damaged"];
        let mut pods: Vec<Pod> = names.iter().map(|name| Pod::new(name)).collect();
        for pod in &pods {
            let request = Request {
                network: if pod.name() == "other" {
                    "second"
                } else {
                    "viaduct"
                }
                .into(),
                ..request(Verb::Add, pod.name(), &pod.netns())
            };
            wired(node.ask(request, pod.descriptors()).await);
        }
        node.handle.stop().await;
        let record = format!("endpoints/{}.json", id("damaged").link_name());
        std::fs::write(directory.path().join(record), "{").unwrap();
        let node = Node::at(directory.path()).await;
        // Its namespace is no more, as the specification lets us expect.
        drop(pods.remove(2));
        assert_eq!(node.gc("viaduct", &["kept"]).await, Reply::Fine);
        let mut left = [id("kept"), id("other"), id("damaged")].map(|id| id.link_name());
        left.sort();
        eventually("the links are gone", || host_links().len() == 3).await;
        let mut links = host_links();
        links.sort();
        assert_eq!(links, left);
        assert_eq!((node.used(), node.records()), (3, 3));
        assert_eq!(node.gc("viaduct", &["kept"]).await, Reply::Fine);
        assert_eq!(node.gc("second", &[]).await, Reply::Fine);
        assert_eq!(node.gc("viaduct", &[]).await, Reply::Fine);
        node.del("damaged").await;
        node.is_clean().await;
    });
}

#[test]
fn status_says_whether_an_add_would_succeed() {
    if !inside("network::status_says_whether_an_add_would_succeed") {
        return;
    }
    block_on(async {
        let node = Node::new().await;
        assert_eq!(node.status().await, Reply::Fine);
        let problems = vec!["link via.vx4: no such luck".to_owned()];
        // ADD works still: it is ready.
        node.report.send_modify(|r| r.problems = problems.clone());
        assert_eq!(node.status().await, Reply::Fine);
        node.report.send_modify(|r| r.can_wire = false);
        let why = refusal(node.status().await, 51);
        assert!(why.contains("no such luck"), "{why}");
        node.report.send_replace(DataplaneReport::default());
        refusal(node.status().await, 50);
        node.state.send_replace(None);
        let why = refusal(node.status().await, 50);
        assert!(why.contains("datastore"), "{why}");
        node.report.send_modify(|r| r.can_wire = true);

        let mut homeless = node_state();
        homeless.local.overlay = None;
        node.state.send_replace(Some(homeless));
        refusal(node.status().await, 50);
        // Two addresses, one of which is the node's own.
        let mut small = node_state();
        let view = Arc::make_mut(&mut small.view);
        let (_, mut block) = view.blocks.pop_first().unwrap();
        Arc::make_mut(&mut block).cidr = "10.64.0.0/31".parse().unwrap();
        view.blocks.insert(block.cidr, block);
        node.state.send_replace(Some(small));
        eventually("the block is there", || node.used() == 0).await;
        assert_eq!(node.status().await, Reply::Fine);
        let pod = Pod::new("c1");
        wired(node.add(&pod).await);
        let why = refusal(node.status().await, 50);
        assert!(why.contains("no address is free"), "{why}");
        refusal(node.add(&Pod::new("c2")).await, 11);
        node.del("c1").await;
        assert_eq!(node.status().await, Reply::Fine);
        node.handle.stop().await;
    });
}
