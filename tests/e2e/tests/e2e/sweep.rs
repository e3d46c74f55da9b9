//! What is no longer wanted goes; what is not ours stays.

use anyhow::ensure;
use viaduct_e2e::{Raw, entries, eventually, everybody_pings, ours};
use viaduct_lab::node::READY_TIMEOUT;
use viaduct_lab::{Backend, LabOptions, Signal, in_lab};
use viaduct_model::Kind;

#[test]
fn a_peer_that_was_removed_while_the_agent_was_down_is_swept_at_its_start() {
    let options = LabOptions {
        nodes: 3,
        ..LabOptions::default()
    };
    in_lab(options, |lab| {
        let (node, gone) = (lab.node("n1")?, lab.node("n3")?);
        let each = entries(lab.options().backend);
        let way = format!("dev {} ", lab.options().way());
        let via = |lines: &[String]| {
            let tunnelled = |line: &&String| !line.starts_with("setting") && line.contains(&way);
            lines.iter().filter(tunnelled).count()
        };
        let before = ours(&node)?;
        ensure!(
            via(&before) == 2 * each,
            "two peers of {each} entries: {before:#?}"
        );
        node.kill_agent(Signal::SIGKILL)?;
        gone.agent().stop()?;
        let raw = Raw::open(lab)?;
        raw.delete(Kind::Node, "n3")?;
        for block in raw.blocks_by_node()?.remove("n3").unwrap_or_default() {
            raw.delete(Kind::Block, &block.replace('/', "-"))?;
        }
        ensure!(ours(&node)? == before, "who changed that?");
        node.start_agent()?;
        node.await_ready(READY_TIMEOUT)?;
        eventually(|| {
            let now = ours(&node)?;
            ensure!(via(&now) == each, "one peer of {each} entries: {now:#?}");
            ensure!(
                !now.iter().any(|line| line.contains("172.29.0.13")),
                "still there: {now:#?}"
            );
            Ok(())
        })?;
        let pods: Vec<_> = lab.pods().into_iter().filter(|p| p.node != "n3").collect();
        everybody_pings(&pods)
    });
}

#[test]
fn what_looks_like_ours_but_is_wanted_by_nobody_goes_and_what_is_foreign_stays() {
    in_lab(LabOptions::default(), |lab| {
        let node = lab.node("n1")?;
        let before = ours(&node)?;
        node.kill_agent(Signal::SIGKILL)?;
        // Left by an agent of a former life.
        let way = lab.options().way();
        node.ip(&format!(
            "route add 10.64.200.0/26 via 172.29.0.99 dev {way} onlink proto 87"
        ))?;
        if let Some(tunnel) = lab.options().backend.tunnel() {
            node.ip(&format!("addr add 10.64.200.0/32 dev {tunnel}"))?;
        }
        if lab.options().backend == Backend::Vxlan {
            node.ip("neigh add 10.64.200.0 lladdr 02:00:00:00:00:01 dev via.vx4 nud permanent")?;
            let entry = "fdb add 02:00:00:00:00:01 dev via.vx4 dst 172.29.0.99";
            node.run("bridge", &entry.split(' ').collect::<Vec<_>>())?;
        }
        node.ip("link add via0123456789ab type veth peer name leftover")?;
        // Somebody else's.
        node.ip("route add 10.64.201.0/26 via 172.29.0.1 proto static")?;
        node.ip("route add 198.18.5.0/24 via 172.29.0.1 table 77 proto 87")?;
        node.ip("link add foreign type veth peer name foreign-peer")?;
        node.ip("addr add 198.18.6.1/24 dev foreign")?;
        node.ip("neigh add 172.29.0.77 lladdr 02:00:00:00:00:02 dev eth0 nud permanent")?;
        ensure!(ours(&node)?.len() > before.len());
        node.start_agent()?;
        node.await_ready(READY_TIMEOUT)?;
        eventually(|| {
            let after = ours(&node)?;
            ensure!(before == after, "{before:#?} became {after:#?}");
            Ok(())
        })?;
        for (list, part) in [
            ("route show", "10.64.201.0/26"),
            ("route show table 77", "198.18.5.0/24"),
            ("addr show dev foreign", "198.18.6.1/24"),
            ("neigh show dev eth0", "172.29.0.77"),
        ] {
            ensure!(node.ip(list)?.contains(part), "{part} is gone");
        }
        Ok(())
    });
}
