//! What a container runtime may do to us: repeat itself, come all at once, come
//! while the agent is away, say nonsense.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use viaduct_e2e::{eventually, everybody_pings, leaks, ours};
use viaduct_lab::node::READY_TIMEOUT;
use viaduct_lab::{LabOptions, Node, Pod, Signal, in_lab, in_parallel, netns};

fn one_node(pods: usize) -> LabOptions {
    LabOptions {
        nodes: 1,
        pods,
        ..LabOptions::default()
    }
}

fn only_node(lab: &viaduct_lab::Lab) -> Result<std::sync::Arc<Node>> {
    lab.node("n1")
}

#[test]
fn a_repeated_add_gives_the_same_result_and_a_repeated_del_succeeds() {
    in_lab(one_node(1), |lab| {
        let node = only_node(lab)?;
        let pod = node.pods().first().cloned().context("no pod")?;
        let before = ours(&node)?;
        let again = node
            .cni("ADD", &pod.container_id, &pod.netns)?
            .check("ADD")?;
        ensure!(
            again.json == pod.result,
            "{} is not {}",
            again.json,
            pod.result
        );
        ensure!(before == ours(&node)?, "the second ADD changed something");
        leaks(&node)?;
        node.cni("DEL", &pod.container_id, &pod.netns)?
            .check("DEL")?;
        node.cni("DEL", &pod.container_id, &pod.netns)?
            .check("second DEL")?;
        // Of a container that never was, whose namespace is gone or not told.
        node.cni("DEL", "never-seen", Path::new("/run/netns/gone"))?
            .check("DEL")?;
        node.cni("DEL", "never-seen", Path::new(""))?.check("DEL")?;
        node.del_pod(&pod)?;
        eventually(|| leaks(&node))
    });
}

#[test]
fn a_namespace_that_is_gone_already_is_no_hindrance_to_del() {
    in_lab(one_node(2), |lab| {
        let node = only_node(lab)?;
        let pod = node.pods().first().cloned().context("no pod")?;
        netns::remove(&pod.container_id)?;
        node.del_pod(&pod)?;
        eventually(|| leaks(&node))
    });
}

#[test]
fn thirty_two_pods_at_once_all_get_an_address_of_their_own() {
    in_lab(one_node(0), |lab| {
        let node = only_node(lab)?;
        let names: Vec<String> = (0..32).map(|n| format!("q{n}")).collect();
        let pods = in_parallel(32, &names, |name| node.add_pod(name))
            .into_iter()
            .collect::<Result<Vec<Pod>>>()?;
        let addresses: BTreeSet<IpAddr> = pods.iter().map(|pod| pod.ip).collect();
        ensure!(addresses.len() == 32, "{addresses:?}");
        leaks(&node)?;
        for pod in &pods {
            pods[0].ping(pod.ip, Default::default())?;
        }
        in_parallel(32, &pods, |pod| node.del_pod(pod))
            .into_iter()
            .collect::<Result<()>>()?;
        eventually(|| leaks(&node))
    });
}

#[test]
fn with_the_agent_away_add_is_told_to_try_again_and_del_is_done_at_its_start() {
    in_lab(one_node(2), |lab| {
        let node = only_node(lab)?;
        let pod = node.pods().first().cloned().context("no pod")?;
        node.kill_agent(Signal::SIGKILL)?;
        let netns = netns::add("later")?;
        let refused = node.cni("ADD", "later", &netns)?;
        ensure!(refused.error_code() == Some(11), "{refused:?}");
        ensure!(
            refused.json["msg"]
                .as_str()
                .is_some_and(|msg| !msg.is_empty()),
            "{refused:?}"
        );
        // Twice, as runtimes do, and one of something unknown.
        node.cni("DEL", &pod.container_id, &pod.netns)?
            .check("DEL")?;
        node.cni("DEL", "never-seen", Path::new(""))?.check("DEL")?;
        let spool = node.run_dir().join("pending");
        ensure!(std::fs::read_dir(&spool)?.count() == 2, "not spooled");
        node.del_pod(&pod)?;
        ensure!(
            std::fs::read_dir(&spool)?.count() == 2,
            "a repeated DEL is one"
        );
        ensure!(leaks(&node).is_err(), "who did the DEL?");
        node.start_agent()?;
        node.await_ready(READY_TIMEOUT)?;
        eventually(|| leaks(&node))?;
        // And the one that was told to try again does.
        node.cni("ADD", "later", &netns)?.check("ADD")?;
        node.cni("DEL", "later", &netns)?.check("DEL")?;
        eventually(|| leaks(&node))
    });
}

#[test]
fn an_add_overtakes_a_spooled_del_of_the_same_attachment() {
    in_lab(one_node(1), |lab| {
        let node = only_node(lab)?;
        let pod = node.pods().first().cloned().context("no pod")?;
        node.kill_agent(Signal::SIGKILL)?;
        // Its namespace lives on: what is found gone is gone by the spooled DEL alone.
        node.cni("DEL", &pod.container_id, &pod.netns)?
            .check("DEL")?;
        let files = |directory: &str| {
            anyhow::Ok(std::fs::read_dir(node.run_dir().join(directory))?.count())
        };
        let both = || -> Result<_> { Ok((files("pending")?, files("endpoints")?)) };
        ensure!(both()? == (1, 1), "not spooled");
        pod.exec("ip", &["link", "show", "eth0"])?;
        node.start_agent()?;
        node.await_ready(READY_TIMEOUT)?;
        eventually(|| {
            ensure!(
                both()? == (0, 0),
                "the spooled DEL is not done: {:?}",
                both()?
            );
            let link = pod.exec("ip", &["link", "show", "eth0"]);
            ensure!(link.is_err(), "the interface is there still: {link:?}");
            Ok(())
        })?;
        let again = node
            .cni("ADD", &pod.container_id, &pod.netns)?
            .check("ADD")?;
        let ip = again.address()?;
        ensure!(ip != pod.ip, "the address did not rest");
        node.restart_agent()?;
        leaks(&node)?;
        node.run("ping", &["-c", "1", "-W", "1", &ip.to_string()])?;
        Ok(())
    });
}

#[test]
fn the_connections_of_a_pod_are_forgotten_with_it() {
    in_lab(one_node(2), |lab| {
        let node = only_node(lab)?;
        let rules = "table ip tracking { chain in { type filter hook input priority 0; ct state invalid drop; }; }";
        node.run("nft", &[rules])?;
        let pods = node.pods();
        let known = |pod: &Pod| -> Result<bool> {
            let list = node.run("conntrack", &["-L"])?;
            Ok(list.contains(&format!("={} ", pod.ip)))
        };
        for pod in &pods {
            node.run("ping", &["-c", "1", "-W", "1", &pod.ip.to_string()])?;
            ensure!(known(pod)?, "nothing is tracked");
        }
        node.del_pod(&pods[0])?;
        eventually(|| {
            ensure!(!known(&pods[0])?, "remembered still");
            Ok(())
        })?;
        ensure!(known(&pods[1])?, "another's was forgotten");
        Ok(())
    });
}

#[test]
fn only_root_and_the_agent_itself_are_heard_on_the_socket() {
    in_lab(one_node(0), |lab| {
        let node = only_node(lab)?;
        let socket = node.run_dir().join("cni.sock");
        let config = serde_json::to_string(&node.cni_config())?;
        let ask = || {
            let script = format!(
                "echo '{config}' | CNI_COMMAND=STATUS {}/viaduct; true",
                viaduct_lab::binaries::DIR
            );
            let stranger = [
                "--reuid",
                "54321",
                "--regid",
                "54321",
                "--clear-groups",
                "sh",
                "-c",
            ];
            node.run("setpriv", &[&stranger[..], &[&script]].concat())
        };
        let said = ask()?;
        ensure!(said.contains("Permission denied"), "{said}");
        // Whoever opens the file to all has not opened the agent.
        let path = socket.display().to_string();
        node.run("chmod", &["0666", &path])?;
        let said = ask()?;
        ensure!(said.contains("uid 54321 may not ask"), "{said}");
        Ok(())
    });
}

/// Sends one datagram from `source`, whether the pod has that address or not, and
/// says whether it arrived.
fn arrives(from: &Pod, source: IpAddr, to: &Pod) -> Result<bool> {
    let receiver = netns::within(&to.netns, || Ok(UdpSocket::bind((to.ip, 0))?))?;
    receiver.set_read_timeout(Some(Duration::from_millis(400)))?;
    let target = receiver.local_addr()?;
    let sender = netns::within(&from.netns, || {
        Ok(UdpSocket::bind(SocketAddr::new(source, 0))?)
    })?;
    sender.send_to(b"from whom?", target)?;
    let mut bytes = [0; 32];
    match receiver.recv_from(&mut bytes) {
        Ok((_, seen)) => {
            ensure!(seen.ip() == source, "{seen} is not {source}");
            Ok(true)
        }
        Err(_) => Ok(false),
    }
}

#[test]
fn a_pod_that_lies_about_its_address_is_not_heard() {
    let options = LabOptions {
        pods: 2,
        ..LabOptions::default()
    };
    in_lab(options, |lab| {
        let pods = lab.pods();
        let [liar, neighbour, remote] = [&pods[0], &pods[1], &pods[2]];
        ensure!(liar.node == neighbour.node && liar.node != remote.node);
        let foreign = "198.18.44.1";
        for lie in [foreign.to_owned(), pods[3].ip.to_string()] {
            liar.exec("ip", &["addr", "add", &format!("{lie}/32"), "dev", "eth0"])?;
            let lie: IpAddr = lie.parse()?;
            for listener in [neighbour, remote] {
                ensure!(arrives(liar, liar.ip, listener)?, "honest, but not heard");
                ensure!(!arrives(liar, lie, listener)?, "{lie} was believed");
            }
        }
        // The lie would have been heard, had nobody looked.
        let node = lab.node(&liar.node)?;
        node.kill_agent(Signal::SIGKILL)?;
        let script = "for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $f; done";
        node.run("sh", &["-ec", script])?;
        ensure!(
            arrives(liar, foreign.parse()?, neighbour)?,
            "this test hears no lies at all"
        );
        Ok(())
    });
}

#[test]
fn nonsense_is_refused_with_the_specs_codes_and_leaves_nothing() {
    in_lab(one_node(1), |lab| {
        let node = only_node(lab)?;
        let netns = netns::add("odd")?.display().to_string();
        let good = serde_json::to_vec(&node.cni_config())?;
        let huge = vec![b' '; 10 << 20];
        let long = "i".repeat(16);
        let call = |netns: &str, ifname: &str, stdin: &[u8]| {
            let env = [
                ("CNI_COMMAND", "ADD"),
                ("CNI_CONTAINERID", "odd"),
                ("CNI_NETNS", netns),
                ("CNI_IFNAME", ifname),
                ("CNI_PATH", "/opt/cni/bin"),
            ];
            node.cni_raw(&env, stdin)
        };
        for (what, code, outcome) in [
            ("empty input", 6, call(&netns, "eth0", b"")?),
            ("10 MB", 6, call(&netns, "eth0", &huge)?),
            (
                "not UTF-8",
                6,
                call(&netns, "eth0", b"{\"name\":\"\xff\xfe\"}")?,
            ),
            ("no JSON", 6, call(&netns, "eth0", b"hello")?),
            ("no netns", 4, call("/run/netns/gone", "eth0", &good)?),
            ("no namespace", 4, call("/run/lab", "eth0", &good)?),
            ("long name", 4, call(&netns, &long, &good)?),
            ("slash in name", 4, call(&netns, "a/b", &good)?),
            (
                "no name",
                7,
                call(
                    &netns,
                    "eth0",
                    br#"{"cniVersion":"1.1.0","type":"viaduct"}"#,
                )?,
            ),
            (
                "a version to come",
                1,
                call(&netns, "eth0", br#"{"cniVersion":"9.0.0","name":"n"}"#)?,
            ),
        ] {
            ensure!(
                outcome.error_code() == Some(code),
                "{what}: not {code}: {outcome:?}"
            );
            ensure!(
                outcome.json["msg"]
                    .as_str()
                    .is_some_and(|msg| msg.len() > 10),
                "{what}: no message: {outcome:?}"
            );
        }
        everybody_pings(&lab.pods())?;
        eventually(|| leaks(&node))
    });
}
