//! ADD and DEL, alone, again, at once and in odd order.

use std::collections::BTreeSet;
use std::sync::Arc;

use viaduct_agent::state::DataplaneReport;
use viaduct_cni::protocol::{Reply, Verb};
use viaduct_model::MacAddr;

use crate::harness::*;

#[test]
fn an_add_wires_a_pod_and_a_del_takes_all_of_it_away() {
    if !inside("verbs::an_add_wires_a_pod_and_a_del_takes_all_of_it_away") {
        return;
    }
    block_on(async {
        let node = Node::new().await;
        let pod = Pod::new("c1");
        let first = wired(node.add(&pod).await);
        assert_eq!(
            first.addresses,
            ["10.64.0.1".parse::<std::net::IpAddr>().unwrap()]
        );
        assert_eq!(first.host_mac, MacAddr::HOST_END);
        assert_eq!(first.pod_mac, id("c1").pod_mac());
        // At once: ADD returns when the path works.
        ping(first.addresses[0]);

        assert_eq!(
            pod.run(&["ip", "route"]),
            "default via 169.254.1.1 dev eth0 onlink \n169.254.1.1 dev eth0 scope link \n"
        );
        let neighbours = pod.run(&["ip", "neighbour"]);
        assert!(neighbours.contains("169.254.1.1 dev eth0 lladdr ee:76:69:61:00:01 PERMANENT"));
        assert!(
            pod.run(&["ip", "link", "show", "eth0"])
                .contains("mtu 1450")
        );
        let link = &first.host_link;
        assert_eq!(
            run("ip", &["route", "show", "proto", "87"]),
            format!("10.64.0.1 dev {link} scope link \n")
        );
        for (setting, value) in [
            ("ipv4/conf/{}/rp_filter", "1"),
            ("ipv4/conf/{}/forwarding", "1"),
            ("ipv6/conf/{}/addr_gen_mode", "1"),
            ("ipv6/conf/{}/accept_ra", "0"),
        ] {
            let path = format!("/proc/sys/net/{}", setting.replace("{}", link));
            assert_eq!(
                std::fs::read_to_string(&path).unwrap().trim(),
                value,
                "{path}"
            );
        }
        assert!(!run("ip", &["-6", "address", "show", "dev", link]).contains("fe80"));
        assert!(node.handle.endpoints.borrow()[link].wired);
        node.is_as_desired();
        assert_eq!((node.used(), node.records()), (1, 1));

        // Again: the same answer, nothing new.
        assert_eq!(wired(node.add(&pod).await), first);
        assert_eq!((host_links().len(), node.used()), (1, 1));

        node.del("c1").await;
        node.del("c1").await;
        node.del("never-added").await;
        node.is_clean().await;

        // The address rests: the next pod gets another.
        let next = wired(node.add(&pod).await);
        assert_ne!(next.addresses, first.addresses);
        node.handle.stop().await;
    });
}

#[test]
fn an_add_heals_what_was_broken_and_follows_the_pod_to_another_namespace() {
    if !inside("verbs::an_add_heals_what_was_broken_and_follows_the_pod_to_another_namespace") {
        return;
    }
    block_on(async {
        let node = Node::new().await;
        let pod = Pod::new("c1");
        let first = wired(node.add(&pod).await);
        run("ip", &["link", "delete", &first.host_link]);
        assert_eq!(wired(node.add(&pod).await), first);
        ping(first.addresses[0]);

        let moved = Pod::new("c1");
        assert_eq!(wired(node.add(&moved).await), first);
        ping(first.addresses[0]);
        assert!(!pod.run(&["ip", "-o", "link"]).contains("eth0"));
        assert_eq!((host_links().len(), node.used()), (1, 1));

        // The runtime removes the namespace before it calls DEL.
        drop(moved);
        eventually("the link goes with its namespace", || {
            host_links().is_empty()
        })
        .await;
        node.del("c1").await;
        node.is_clean().await;
    });
}

#[test]
fn a_failed_add_leaves_nothing() {
    if !inside("verbs::a_failed_add_leaves_nothing") {
        return;
    }
    block_on(async {
        let node = Node::new().await;
        let pod = Pod::new("c1");
        pod.run(&["ip", "link", "add", "eth0", "type", "bridge"]);
        let reply = node.add(&pod).await;
        assert_eq!(code(&reply), 4);
        assert!(format!("{reply:?}").contains("CNI_IFNAME"));
        node.is_clean().await;

        // A socket of another namespace than the one that is passed.
        let other = Pod::new("c2");
        let mut descriptors = other.descriptors();
        descriptors[1] = rtnetlink();
        let request = request(Verb::Add, "c2", &other.netns());
        assert_eq!(code(&node.ask(request, descriptors).await), 101);
        node.is_clean().await;

        // A link left behind under our name is no obstacle.
        let link = id("c2").link_name();
        run("ip", &["link", "add", &link, "type", "bridge"]);
        ping(wired(node.add(&other).await).addresses[0]);
    });
}

#[test]
fn a_node_that_is_not_ready_says_try_again_and_why() {
    if !inside("verbs::a_node_that_is_not_ready_says_try_again_and_why") {
        return;
    }
    block_on(async {
        let node = Node::new().await;
        let pod = Pod::new("c1");
        wired(node.add(&pod).await);
        node.report.send_replace(DataplaneReport {
            problems: vec!["link via.vx4: no such luck".into()],
            ..DataplaneReport::default()
        });
        let reply = node.add(&Pod::new("c2")).await;
        assert_eq!(code(&reply), 11);
        assert!(format!("{reply:?}").contains("no such luck"));

        let mut full = node_state();
        let view = Arc::make_mut(&mut full.view);
        view.blocks.clear();
        node.state.send_replace(Some(full));
        node.report.send_modify(|r| r.can_wire = true);
        assert_eq!(code(&node.add(&Pod::new("c3")).await), 11);
        assert!(node.handle.usage.borrow().starved);
        node.state.send_replace(Some(node_state()));
        eventually("a new block ends the want", || {
            !node.handle.usage.borrow().starved
        })
        .await;

        // DEL needs no readiness at all.
        node.state.send_replace(None);
        node.report.send_replace(DataplaneReport::default());
        node.del("c1").await;
        eventually("the link is gone", || host_links().is_empty()).await;
    });
}

#[test]
fn two_hundred_pods_at_once_get_two_hundred_addresses_and_leave_none() {
    if !inside("verbs::two_hundred_pods_at_once_get_two_hundred_addresses_and_leave_none") {
        return;
    }
    block_on(async {
        let node = Arc::new(Node::new().await);
        let pods: Arc<Vec<Pod>> = Arc::new((0..200).map(|i| Pod::new(&format!("c{i}"))).collect());
        let each = |verb: Verb| {
            let tasks: Vec<_> = (0..pods.len())
                .map(|i| {
                    let (node, pods) = (node.clone(), pods.clone());
                    tokio::spawn(async move {
                        match verb {
                            Verb::Add => Some(wired(node.add(&pods[i]).await)),
                            _ => {
                                node.del(pods[i].name()).await;
                                None
                            }
                        }
                    })
                })
                .collect();
            async move {
                let mut results = Vec::new();
                for task in tasks {
                    results.push(task.await.unwrap());
                }
                results
            }
        };
        let added = each(Verb::Add).await;
        let addresses: BTreeSet<_> = added
            .into_iter()
            .flat_map(|wired| wired.unwrap().addresses)
            .collect();
        assert_eq!(addresses.len(), 200);
        assert_eq!((node.used(), node.records()), (200, 200));
        for address in addresses.iter().step_by(23) {
            ping(*address);
        }
        each(Verb::Del).await;
        node.is_clean().await;
    });
}

#[test]
fn add_and_del_of_one_pod_at_once_end_in_one_state() {
    if !inside("verbs::add_and_del_of_one_pod_at_once_end_in_one_state") {
        return;
    }
    block_on(async {
        let node = Arc::new(Node::new().await);
        let pod = Arc::new(Pod::new("c1"));
        let mut tasks = Vec::new();
        for i in 0..40 {
            let (node, pod) = (node.clone(), pod.clone());
            tasks.push(tokio::spawn(async move {
                if i % 2 == 0 {
                    let reply = node.add(&pod).await;
                    assert!(matches!(reply, Reply::Wired(_)), "{reply:?}");
                } else {
                    node.del("c1").await;
                }
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        node.del("c1").await;
        node.is_clean().await;
    });
}

#[test]
fn a_client_that_goes_away_leaves_ledger_and_kernel_agreed() {
    if !inside("verbs::a_client_that_goes_away_leaves_ledger_and_kernel_agreed") {
        return;
    }
    block_on(async {
        let node = Node::new().await;
        let pod = Pod::new("c1");
        let stream =
            std::os::unix::net::UnixStream::connect(node.run_dir.join("cni.sock")).unwrap();
        let descriptors = pod.descriptors();
        let fds: Vec<_> = descriptors.iter().map(std::os::fd::AsFd::as_fd).collect();
        let frame = viaduct_cni::frame::encode(&request(Verb::Add, "c1", &pod.netns())).unwrap();
        send(&stream, &frame, &fds);
        drop(stream);
        eventually("the pod is wired all the same", || {
            node.handle.endpoints.borrow().values().any(|e| e.wired)
        })
        .await;
        node.del("c1").await;
        node.is_clean().await;
    });
}
