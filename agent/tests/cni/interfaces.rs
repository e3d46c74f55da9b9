//! Several interfaces of one container, of one network or of several.

use viaduct_cni::protocol::{Reply, Request, Verb};
use viaduct_model::AttachmentId;

use crate::harness::*;

pub(crate) fn interface(pod: &Pod, ifname: &str, network: &str, verb: Verb) -> Request {
    Request {
        id: AttachmentId::new(pod.name(), ifname).unwrap(),
        network: network.into(),
        ..request(verb, pod.name(), &pod.netns())
    }
}

#[test]
fn every_interface_of_a_container_is_reached_at_its_own_address() {
    if !inside("interfaces::every_interface_of_a_container_is_reached_at_its_own_address") {
        return;
    }
    block_on(async {
        let node = Node::new().await;
        let pod = Pod::new("c1");
        let mut told = Vec::new();
        for (ifname, network) in [("eth0", "viaduct"), ("eth1", "viaduct"), ("net1", "second")] {
            let add = interface(&pod, ifname, network, Verb::Add);
            let made = wired(node.ask(add, pod.descriptors()).await);
            assert_eq!(made.secondary, ifname != "eth0");
            // The reply leaves by the interface that it was asked at: the strict
            // source check of the others would drop it.
            ping(made.addresses[0]);
            told.push((ifname, network, made));
        }
        assert_eq!((host_links().len(), node.used(), node.records()), (3, 3, 3));
        node.is_as_desired();
        // Again is the same.
        let add = interface(&pod, "eth1", "viaduct", Verb::Add);
        let again = wired(node.ask(add, pod.descriptors()).await);
        assert_eq!(again, told[1].2);
        assert_eq!(node.check(&pod, "eth0", &told[0].2).await, Reply::Fine);
        assert_eq!(node.check(&pod, "eth1", &told[1].2).await, Reply::Fine);
        pod.run(&["ip", "rule", "del", "from", "10.64.0.2"]);
        let why = refusal(node.check(&pod, "eth1", &told[1].2).await, 103);
        assert!(why.contains("packets from 10.64.0.2"), "{why}");
        // Made anew after its link was lost, it has its way out again, once.
        run("ip", &["link", "delete", &told[1].2.host_link]);
        let add = interface(&pod, "eth1", "viaduct", Verb::Add);
        wired(node.ask(add, pod.descriptors()).await);
        assert_eq!(node.check(&pod, "eth1", &told[1].2).await, Reply::Fine);
        ping(told[1].2.addresses[0]);
        assert_eq!(pod.run(&["ip", "rule"]).matches("lookup 87").count(), 2);

        // GC of one network leaves the other's interface of the same container.
        let kept = AttachmentId::new("c1", "eth1").unwrap().link_name();
        let gc = viaduct_cni::protocol::NetworkRequest {
            protocol: viaduct_cni::protocol::PROTOCOL,
            verb: viaduct_cni::protocol::NetworkVerb::Gc,
            network: "viaduct".into(),
            keep: vec![kept.clone()],
        };
        assert_eq!(node.ask(gc, Vec::new()).await, Reply::Fine);
        eventually("eth0 is gone", || host_links().len() == 2).await;
        ping(told[1].2.addresses[0]);
        ping(told[2].2.addresses[0]);
        for (ifname, network, _) in told {
            let del = interface(&pod, ifname, network, Verb::Del);
            assert_eq!(node.ask(del, Vec::new()).await, Reply::Gone);
        }
        node.is_clean().await;
    });
}
