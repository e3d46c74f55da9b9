//! Agents that were killed, pods that went meanwhile, files that cannot be read.

use std::path::Path;

use viaduct_agent::state::DataplaneReport;
use viaduct_cni::protocol::Verb;
use viaduct_cni::spool;

use crate::harness::*;

fn record(run_dir: &Path, container: &str) -> std::path::PathBuf {
    run_dir
        .join("endpoints")
        .join(format!("{}.json", id(container).link_name()))
}

#[test]
fn a_restarted_agent_keeps_what_stands_and_undoes_what_does_not() {
    if !inside("damage::a_restarted_agent_keeps_what_stands_and_undoes_what_does_not") {
        return;
    }
    block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let run_dir = directory.path();
        let node = Node::at(run_dir).await;
        let names = ["stands", "halfway", "vanished", "spooled", "damaged"];
        let mut pods: Vec<Pod> = names.iter().map(|name| Pod::new(name)).collect();
        let mut addresses = Vec::new();
        for pod in &pods {
            addresses.push(wired(node.add(pod).await).addresses[0]);
        }
        node.handle.stop().await;

        // Killed in the middle of an ADD: the record says "not wired".
        let halfway = std::fs::read_to_string(record(run_dir, "halfway")).unwrap();
        let halfway = halfway.replace("\"wired\": true", "\"wired\": false");
        std::fs::write(record(run_dir, "halfway"), halfway).unwrap();
        // Gone without a DEL.
        drop(pods.remove(2));
        // Gone with a DEL that the plugin spooled.
        spool::write(run_dir, &request(Verb::Del, "spooled", "")).unwrap();
        std::fs::write(run_dir.join("pending/torn.json"), "{").unwrap();
        std::fs::write(record(run_dir, "damaged"), "{").unwrap();
        std::fs::write(run_dir.join("endpoints/nobody.json"), "{").unwrap();
        std::fs::write(run_dir.join("endpoints/x.json.tmp"), "{").unwrap();
        eventually("the vanished pod's link is gone", || {
            host_links().len() == 4
        })
        .await;

        let node = Node::at(run_dir).await;
        let mut expected = [id("stands").link_name(), id("damaged").link_name()];
        expected.sort();
        let mut links = host_links();
        links.sort();
        assert_eq!(links, expected);
        assert_eq!(
            node.handle.endpoints.borrow().keys().collect::<Vec<_>>(),
            expected.iter().collect::<Vec<_>>()
        );
        assert_eq!(node.used(), 2);
        ping(addresses[0]);
        ping(addresses[4]);
        assert!(spool::read(run_dir).unwrap().is_empty());
        for aside in ["torn.json", "nobody.json"] {
            assert!(run_dir.join("damaged").join(aside).exists(), "{aside}");
        }

        // What stood is known; nobody gets an address that is taken.
        let again = wired(node.add(&pods[0]).await);
        assert_eq!(again.addresses, [addresses[0]]);
        let fresh = wired(node.add(&Pod::new("fresh")).await);
        assert!(!addresses.contains(&fresh.addresses[0]));
        for name in ["stands", "damaged", "fresh", "halfway"] {
            node.del(name).await;
        }
        assert!(!run_dir.join("endpoints/x.json.tmp").exists());
        node.is_clean().await;
    });
}

#[test]
fn a_full_disk_refuses_add_and_does_not_hinder_del() {
    if !inside("damage::a_full_disk_refuses_add_and_does_not_hinder_del") {
        return;
    }
    block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_str().unwrap();
        run("mount", &["-t", "tmpfs", "-o", "size=64k", "tmpfs", path]);
        let node = Node::at(directory.path()).await;
        let pods = [Pod::new("c1"), Pod::new("c2")];
        wired(node.add(&pods[0]).await);
        let ballast = directory.path().join("ballast");
        let fill = || std::fs::write(&ballast, vec![0; 1 << 20]).unwrap_err();
        assert_eq!(fill().kind(), std::io::ErrorKind::StorageFull);
        let why = refusal(node.add(&pods[1]).await, 5);
        assert!(why.contains("cannot write its record"), "{why}");
        assert_eq!((node.used(), node.records(), host_links().len()), (1, 1, 1));
        node.del("c1").await;
        node.is_clean().await;
        std::fs::remove_file(&ballast).unwrap();
        ping(wired(node.add(&pods[1]).await).addresses[0]);
        node.del("c2").await;
        node.is_clean().await;
        node.handle.stop().await;
        run("umount", &["-l", path]);
    });
}

#[test]
fn del_works_before_the_datastore_was_ever_reached() {
    if !inside("damage::del_works_before_the_datastore_was_ever_reached") {
        return;
    }
    block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let node = Node::at(directory.path()).await;
        let pod = Pod::new("c1");
        wired(node.add(&pod).await);
        node.handle.stop().await;

        let (_state, state) = tokio::sync::watch::channel(None);
        let (_report, report) = tokio::sync::watch::channel(DataplaneReport::default());
        let options = viaduct_agent::cni::CniOptions::new(directory.path());
        let handle = viaduct_agent::cni::start(options, state, report)
            .await
            .unwrap();
        assert_eq!(handle.endpoints.borrow().len(), 1);
        let stream =
            std::os::unix::net::UnixStream::connect(directory.path().join("cni.sock")).unwrap();
        let frame = viaduct_cni::frame::encode(&request(Verb::Del, "c1", "")).unwrap();
        send(&stream, &frame, &[]);
        let answered = tokio::task::spawn_blocking(move || reply(stream))
            .await
            .unwrap();
        assert_eq!(answered, Some(viaduct_cni::protocol::Reply::Gone));
        eventually("the link is gone", || host_links().is_empty()).await;
        handle.stop().await;
    });
}

#[test]
fn a_spooled_del_of_an_earlier_life_does_not_strike_the_next() {
    if !inside("damage::a_spooled_del_of_an_earlier_life_does_not_strike_the_next") {
        return;
    }
    block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let node = Node::at(directory.path()).await;
        spool::write(directory.path(), &request(Verb::Del, "c1", "")).unwrap();
        let pod = Pod::new("c1");
        let address = wired(node.add(&pod).await).addresses[0];
        node.handle.stop().await;
        let node = Node::at(directory.path()).await;
        ping(address);
        node.handle.stop().await;
    });
}

/// Pods whose records are damaged at once, each at another place.
const AT_ONCE: usize = 24;

#[test]
fn a_record_cut_off_at_any_byte_is_reported_and_its_address_stays_taken_while_its_device_lives() {
    if !inside(
        "damage::a_record_cut_off_at_any_byte_is_reported_and_its_address_stays_taken_while_its_device_lives",
    ) {
        return;
    }
    block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let run_dir = directory.path();
        let node = Node::at(run_dir).await;
        let names: Vec<String> = (0..AT_ONCE).map(|i| format!("c{i:02}")).collect();
        let pods: Vec<Pod> = names.iter().map(|name| Pod::new(name)).collect();
        let witness = Pod::new("witness");
        let whole = wired(node.add(&witness).await).addresses[0];
        let mut taken = std::collections::BTreeSet::from([whole]);
        for pod in &pods {
            taken.extend(wired(node.add(pod).await).addresses);
        }
        assert_eq!(taken.len(), AT_ONCE + 1);
        node.handle.stop().await;
        let kept = |name: &str| std::fs::read(record(run_dir, name)).unwrap();
        let texts: Vec<Vec<u8>> = names.iter().map(|name| kept(name)).collect();
        let longest = texts.iter().map(Vec::len).max().unwrap();

        for first in (0..longest).step_by(AT_ONCE) {
            let mut damaged = 0;
            for (i, (name, text)) in names.iter().zip(&texts).enumerate() {
                let end = (first + i).min(text.len());
                // The last byte is the closing brace.
                damaged += i64::from(end < text.len());
                std::fs::write(record(run_dir, name), &text[..end]).unwrap();
            }
            let metrics = viaduct_agent::cni::CniMetrics::default();
            let options = viaduct_agent::cni::CniOptions {
                metrics: metrics.clone(),
                ..viaduct_agent::cni::CniOptions::new(run_dir)
            };
            let node = Node::with(options).await;
            assert_eq!(metrics.damaged.get(), damaged, "from byte {first}");
            let endpoints = node.handle.endpoints.borrow().clone();
            assert_eq!(endpoints.len(), AT_ONCE + 1, "from byte {first}");
            assert_eq!(endpoints[&id("witness").link_name()].addresses, [whole]);
            assert_eq!(node.used() as usize, AT_ONCE + 1, "from byte {first}");
            let fresh = Pod::new("fresh");
            let given = wired(node.add(&fresh).await).addresses[0];
            assert!(
                !taken.contains(&given),
                "{given} has an owner: byte {first}"
            );
            node.del("fresh").await;
            node.handle.stop().await;
        }

        // Nothing of it was torn down, and DEL takes each away.
        ping(whole);
        for (name, text) in names.iter().zip(&texts) {
            std::fs::write(record(run_dir, name), &text[..text.len() / 2]).unwrap();
        }
        let node = Node::at(run_dir).await;
        for name in names.iter().map(String::as_str).chain(["witness"]) {
            node.del(name).await;
        }
        node.is_clean().await;
        node.handle.stop().await;
    });
}
