//! `viaductctl cleanup` takes away exactly what is ours.

use anyhow::{Result, ensure};
use viaduct_e2e::{difference, eventually, everything, ours};
use viaduct_lab::{LabOptions, Node, Signal, in_lab};

/// Somebody else's objects beside ours, some of them into our blocks, on a host that
/// forwards, as hosts with pods do.
fn others(node: &Node) -> Result<()> {
    node.run("sysctl", &["-qw", "net.ipv4.ip_forward=1"])?;
    for args in [
        "link add foreign type veth peer name foreign-peer",
        "link set foreign up",
        "addr add 198.18.6.1/24 dev foreign",
        "route add 10.64.201.0/26 via 172.29.0.1 proto static",
        "route add 198.18.5.0/24 via 172.29.0.1 table 77 proto 87",
        "rule add to 198.18.5.0/24 lookup 77",
        "neigh add 172.29.0.77 lladdr 02:00:00:00:00:02 dev eth0 nud permanent",
    ] {
        node.ip(args)?;
    }
    let table = "add table inet viaductless; add chain inet viaductless c; \
                 add rule inet viaductless c counter accept; add table ip viaduct; \
                 add table netdev foreign; \
                 add chain netdev foreign c { type filter hook ingress device foreign priority 0; }";
    node.run("nft", &[table])?;
    Ok(())
}

fn cleanup(node: &Node, more: &[&str]) -> Result<String> {
    let run_dir = node.run_dir().display().to_string();
    let mut args = vec!["cleanup", "--run-dir", &run_dir];
    args.extend_from_slice(more);
    node.run("viaductctl", &args)
}

#[test]
fn cleanup_with_the_agent_dead_leaves_the_host_as_it_was_before() {
    let options = LabOptions {
        nodes: 1,
        pods: 0,
        ..LabOptions::default()
    };
    in_lab(options, |lab| {
        lab.node("n1")?.add_pod("p1")?;
        let node = lab.new_node()?;
        others(&node)?;
        // The kernel is still trying whether anybody else has its IPv6 addresses.
        eventually(|| {
            let addresses = node.ip("-6 -o addr show")?;
            ensure!(!addresses.contains("tentative"), "{addresses}");
            Ok(())
        })?;
        let before = everything(&node)?;
        node.start_agent()?;
        node.await_ready(viaduct_lab::node::READY_TIMEOUT)?;
        for pod in ["a", "b", "c"] {
            node.add_pod(pod)?;
        }
        ensure!(!ours(&node)?.is_empty());

        let working = cleanup(&node, &[]).err().map(|e| format!("{e:#}"));
        ensure!(
            working
                .as_deref()
                .is_some_and(|e| e.contains("stop it first")),
            "cleanup beside a running agent: {working:?}"
        );
        node.kill_agent(Signal::SIGKILL)?;
        // Such a one is of a former release.
        node.run("nft", &["add", "table", "netdev", "viaduct"])?;

        let with_all = everything(&node)?;
        ensure!(!difference(&before, &with_all).is_empty(), "nothing to see");
        let planned = cleanup(&node, &["--dry-run"])?;
        let touched = difference(&with_all, &everything(&node)?);
        ensure!(touched.is_empty(), "--dry-run changed: {touched:#?}");
        let done = cleanup(&node, &[])?;
        ensure!(
            planned.replace("would remove", "removed") == done,
            "planned:\n{planned}\ndone:\n{done}"
        );
        let always = [
            "10.64.",
            "nftables table inet viaduct",
            "nftables table netdev viaduct",
            "endpoints",
        ];
        let tunnel = lab.options().backend.tunnel();
        for part in always.into_iter().chain(tunnel) {
            ensure!(done.contains(part), "{part} is not in\n{done}");
        }
        let left = difference(&before, &everything(&node)?);
        ensure!(left.is_empty(), "not as before: {left:#?}");
        let again = cleanup(&node, &[])?;
        ensure!(again.starts_with("nothing"), "{again}");

        // And the node is a node again as soon as an agent starts.
        node.start_agent()?;
        node.await_ready(viaduct_lab::node::READY_TIMEOUT)?;
        let pod = node.add_pod("d")?;
        let other = &lab.node("n1")?.pods()[0];
        pod.ping(other.ip, viaduct_lab::Echo::default())
    });
}
