//! Agents that are killed by SIGKILL at each step of ADD, DEL and replay, and what the
//! next agent makes of what they left.

use std::collections::BTreeSet;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use viaduct_agent::dataplane::diff::diff;
use viaduct_agent::dataplane::endpoints::desire;
use viaduct_agent::dataplane::kernel::Kernel;
use viaduct_agent::dataplane::objects::Desired;
use viaduct_agent::kernel::NetlinkKernel;
use viaduct_cni::protocol::{Reply, Verb};
use viaduct_cni::{fault, spool};

use crate::harness::*;
use crate::interfaces::interface;

/// Every step of ADD, in order.
const ADD: [&str; 11] = [
    "add.begun",
    "add.allocated",
    "ledger.half",
    "add.recorded",
    "add.clean",
    "wire.created",
    "wire.pod_end",
    "wire.host_end",
    "add.wired",
    "add.recorded_wired",
    "add.answered",
];

/// Every step of DEL, in order.
const DEL: [&str; 10] = [
    "del.begun",
    "del.published",
    "cut_off.begun",
    "cut_off.half",
    "cut_off.done",
    "del.cut_off",
    "del.removed",
    "del.spool_cleared",
    "del.answered",
    "del.deleted",
];

/// Every step of giving a second interface its way out, in order.
const SECOND: [&str; 3] = ["secondary.begun", "secondary.routed", "secondary.ruled"];

/// Every step of forgetting an address's connections, for which its next ADD waits.
const FORGETTING: [&str; 2] = ["forgetting.begun", "forgetting.done"];

const RUN_DIR: &str = "VIADUCT_TEST_AGENT";

/// Not a test: the process that the tests here start and kill.
#[test]
fn an_agent_for_the_others_to_kill() {
    if let Some(run_dir) = std::env::var_os(RUN_DIR) {
        block_on(async {
            let _node = Node::at(Path::new(&run_dir)).await;
            std::future::pending::<()>().await;
        });
    }
}

/// An agent that is a process of its own.
struct Agent(Child);

impl Agent {
    /// Starts one that dies at that point, if ever it comes there.
    fn start(run_dir: &Path, point: &str) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args([
                "faults::an_agent_for_the_others_to_kill",
                "--exact",
                "--nocapture",
            ])
            .env(RUN_DIR, run_dir)
            .env(fault::VARIABLE, point)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }

    async fn started(run_dir: &Path, point: &str) -> Self {
        let agent = Self::start(run_dir, point);
        let socket = run_dir.join("cni.sock");
        eventually("the agent listens", || UnixStream::connect(&socket).is_ok()).await;
        agent
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// That it did come there.
    fn was_killed(mut self, point: &str) {
        for _ in 0..1000 {
            if let Some(status) = self.0.try_wait().unwrap() {
                assert_eq!(status.signal(), Some(9), "{point}");
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("nothing ever came to {point}");
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the reconciler, which is not there, would do about what was left.
fn sweep(node: &Node) {
    let mut kernel = NetlinkKernel::open().unwrap();
    let mut desired = Desired::default();
    desire(&node.handle.endpoints.borrow(), &mut desired);
    let plan = diff(&desired, &kernel.dump().unwrap());
    for answer in kernel.apply(&plan) {
        answer.unwrap();
    }
}

/// Ledger, published endpoints, addresses in use and kernel tell the same.
async fn agrees(node: &Node, what: &str) {
    sweep(node);
    node.is_as_desired();
    let endpoints = node.handle.endpoints.borrow().clone();
    let mut links = host_links();
    links.sort();
    assert_eq!(
        links,
        endpoints.keys().cloned().collect::<Vec<_>>(),
        "{what}"
    );
    assert!(endpoints.values().all(|endpoint| endpoint.wired), "{what}");
    assert_eq!(node.records(), endpoints.len(), "{what}");
    assert_eq!(node.used() as usize, endpoints.len(), "{what}");
}

/// What a runtime may do next.
const AFTERWARDS: [&str; 4] = ["retry", "del", "gc", "nothing"];

async fn afterwards(run_dir: &Path, pod: &Pod, point: &str, then: &str) {
    let what = format!("{point}, then {then}");
    let node = Node::at(run_dir).await;
    agrees(&node, &what).await;
    match then {
        "retry" => {
            let made = wired(node.add(pod).await);
            ping(made.addresses[0]);
            assert_eq!(node.check(pod, "eth0", &made).await, Reply::Fine, "{what}");
        }
        "del" => node.del(pod.name()).await,
        "gc" => assert_eq!(node.gc("viaduct", &[]).await, Reply::Fine, "{what}"),
        _ => {}
    }
    if let "del" | "gc" = then {
        eventually("the link and its endpoint are gone", || {
            host_links().is_empty() && node.handle.endpoints.borrow().is_empty()
        })
        .await;
    }
    agrees(&node, &what).await;
    node.del(pod.name()).await;
    node.is_clean().await;
    node.handle.stop().await;
}

fn expected_silence(point: &str, reply: Option<Reply>) {
    match reply {
        None => {}
        Some(_) if matches!(point, "add.answered" | "del.answered" | "del.deleted") => {}
        Some(other) => panic!("{point}: {other:?}"),
    }
}

#[test]
fn an_agent_killed_at_any_step_of_add_leaves_nothing_that_the_next_does_not_put_right() {
    if !inside(
        "faults::an_agent_killed_at_any_step_of_add_leaves_nothing_that_the_next_does_not_put_right",
    ) {
        return;
    }
    block_on(async {
        for point in ADD {
            for then in AFTERWARDS {
                let directory = tempfile::tempdir().unwrap();
                let agent = Agent::started(directory.path(), point).await;
                let pod = Pod::new("c1");
                let add = request(Verb::Add, "c1", &pod.netns());
                let reply = try_ask(directory.path(), &add, pod.descriptors()).await;
                expected_silence(point, reply);
                agent.was_killed(point);
                afterwards(directory.path(), &pod, point, then).await;
            }
        }
    });
}

#[test]
fn an_agent_killed_at_any_step_of_del_leaves_nothing_that_the_next_does_not_put_right() {
    if !inside(
        "faults::an_agent_killed_at_any_step_of_del_leaves_nothing_that_the_next_does_not_put_right",
    ) {
        return;
    }
    block_on(async {
        for point in DEL {
            for then in AFTERWARDS {
                let directory = tempfile::tempdir().unwrap();
                let agent = Agent::started(directory.path(), point).await;
                let pod = Pod::new("c1");
                let add = request(Verb::Add, "c1", &pod.netns());
                let made = try_ask(directory.path(), &add, pod.descriptors()).await;
                wired(made.unwrap());
                let del = request(Verb::Del, "c1", "");
                let reply = try_ask(directory.path(), &del, Vec::new()).await;
                expected_silence(point, reply);
                agent.was_killed(point);
                afterwards(directory.path(), &pod, point, then).await;
            }
        }
    });
}

#[test]
fn an_agent_killed_while_it_gives_a_second_interface_its_way_out_loses_neither() {
    if !inside(
        "faults::an_agent_killed_while_it_gives_a_second_interface_its_way_out_loses_neither",
    ) {
        return;
    }
    block_on(async {
        for point in SECOND {
            for then in AFTERWARDS {
                let what = format!("{point}, then {then}");
                let directory = tempfile::tempdir().unwrap();
                let agent = Agent::started(directory.path(), point).await;
                let pod = Pod::new("c1");
                let ask = |ifname| interface(&pod, ifname, "viaduct", Verb::Add);
                let first = try_ask(directory.path(), &ask("eth0"), pod.descriptors()).await;
                let first = wired(first.unwrap());
                let reply = try_ask(directory.path(), &ask("eth1"), pod.descriptors()).await;
                expected_silence(point, reply);
                agent.was_killed(point);

                let node = Node::at(directory.path()).await;
                agrees(&node, &what).await;
                match then {
                    "retry" => {
                        let made = wired(node.ask(ask("eth1"), pod.descriptors()).await);
                        assert!(made.secondary, "{what}");
                        ping(made.addresses[0]);
                        assert_eq!(node.check(&pod, "eth1", &made).await, Reply::Fine, "{what}");
                        let rules = pod.run(&["ip", "rule"]);
                        assert_eq!(rules.matches("lookup 87").count(), 1, "{what}: {rules}");
                    }
                    "del" => {
                        let del = interface(&pod, "eth1", "viaduct", Verb::Del);
                        assert_eq!(node.ask(del, Vec::new()).await, Reply::Gone, "{what}");
                    }
                    "gc" => {
                        assert_eq!(node.gc("viaduct", &["c1"]).await, Reply::Fine, "{what}");
                    }
                    _ => {}
                }
                let left = if then == "retry" { 2 } else { 1 };
                eventually(&what, || host_links().len() == left).await;
                agrees(&node, &what).await;
                ping(first.addresses[0]);
                assert_eq!(
                    node.check(&pod, "eth0", &first).await,
                    Reply::Fine,
                    "{what}"
                );
                for ifname in ["eth1", "eth0"] {
                    let del = interface(&pod, ifname, "viaduct", Verb::Del);
                    assert_eq!(node.ask(del, Vec::new()).await, Reply::Gone, "{what}");
                }
                node.is_clean().await;
                node.handle.stop().await;
            }
        }
    });
}

#[test]
fn an_agent_killed_while_an_add_waits_for_connections_to_be_forgotten_leaves_nothing_behind() {
    if !inside(
        "faults::an_agent_killed_while_an_add_waits_for_connections_to_be_forgotten_leaves_nothing_behind",
    ) {
        return;
    }
    block_on(async {
        for point in FORGETTING {
            for then in AFTERWARDS {
                let directory = tempfile::tempdir().unwrap();
                let agent = Agent::started(directory.path(), point).await;
                let (last, pod) = (Pod::new("c0"), Pod::new("c1"));
                let add = request(Verb::Add, "c0", &last.netns());
                let had = try_ask(directory.path(), &add, last.descriptors()).await;
                let address = wired(had.unwrap()).addresses[0];
                let del = request(Verb::Del, "c0", "");
                let gone = try_ask(directory.path(), &del, Vec::new()).await;
                assert_eq!(gone, Some(Reply::Gone));
                // By name, so that it is the very address whose connections are there still.
                let mut add = request(Verb::Add, "c1", &pod.netns());
                add.wishes.addresses = vec![address];
                let reply = try_ask(directory.path(), &add, pod.descriptors()).await;
                expected_silence(point, reply);
                agent.was_killed(point);
                afterwards(directory.path(), &pod, point, then).await;
            }
        }
    });
}

#[test]
fn an_agent_killed_while_it_replays_a_spooled_del_leaves_it_to_the_next() {
    if !inside("faults::an_agent_killed_while_it_replays_a_spooled_del_leaves_it_to_the_next") {
        return;
    }
    block_on(async {
        for point in ["recovery.deleted", "replay.done"] {
            let directory = tempfile::tempdir().unwrap();
            let agent = Agent::started(directory.path(), "").await;
            let pod = Pod::new("c1");
            let add = request(Verb::Add, "c1", &pod.netns());
            wired(
                try_ask(directory.path(), &add, pod.descriptors())
                    .await
                    .unwrap(),
            );
            agent.kill();
            spool::write(directory.path(), &request(Verb::Del, "c1", "")).unwrap();
            Agent::start(directory.path(), point).was_killed(point);
            // The container lives on: only the replay can have taken its interface.
            let node = Node::at(directory.path()).await;
            node.is_clean().await;
            assert!(spool::read(directory.path()).unwrap().is_empty(), "{point}");
            assert!(!pod.run(&["ip", "-o", "link"]).contains("eth0"));
            node.handle.stop().await;
        }
    });
}

/// Asks again and again, as runtimes do, until it is done.
async fn insist(run_dir: PathBuf, pods: Arc<Vec<Pod>>, i: usize, verb: Verb) -> Reply {
    let pod = &pods[i];
    for _ in 0..2000 {
        let (asked, descriptors) = match verb {
            Verb::Del => (request(verb, pod.name(), ""), Vec::new()),
            _ => (request(verb, pod.name(), &pod.netns()), pod.descriptors()),
        };
        match try_ask(&run_dir, &asked, descriptors).await {
            Some(Reply::Refused(error)) if error.code != 11 => panic!("{error}"),
            Some(done @ (Reply::Wired(_) | Reply::Gone)) => return done,
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
    panic!("{} never came through", pod.name());
}

#[test]
fn an_agent_killed_in_the_middle_of_two_hundred_adds_and_dels_loses_none() {
    if !inside("faults::an_agent_killed_in_the_middle_of_two_hundred_adds_and_dels_loses_none") {
        return;
    }
    block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let run_dir = directory.path().to_owned();
        let pods: Arc<Vec<Pod>> = Arc::new((0..200).map(|i| Pod::new(&format!("c{i}"))).collect());
        let records = || {
            std::fs::read_dir(run_dir.join("endpoints"))
                .unwrap()
                .count()
        };
        let all = |verb| -> Vec<_> {
            let ask = |i| tokio::spawn(insist(run_dir.clone(), pods.clone(), i, verb));
            (0..pods.len()).map(ask).collect()
        };
        let first = Agent::started(&run_dir, "").await;
        let adds = all(Verb::Add);
        eventually("some are there", || records() > 50).await;
        first.kill();
        assert!(records() < 200, "that was no middle");
        let second = Agent::started(&run_dir, "").await;
        let mut addresses = BTreeSet::new();
        for add in adds {
            addresses.extend(wired(add.await.unwrap()).addresses);
        }
        assert_eq!((addresses.len(), records()), (200, 200));
        for address in addresses.iter().step_by(23) {
            ping(*address);
        }
        let dels = all(Verb::Del);
        eventually("some are gone", || records() < 150).await;
        second.kill();
        assert!(records() > 0, "that was no middle");
        let node = Node::at(&run_dir).await;
        for del in dels {
            assert_eq!(del.await.unwrap(), Reply::Gone);
        }
        sweep(&node);
        node.is_clean().await;
        node.handle.stop().await;
    });
}
