//! What is no longer wanted goes; what is not ours stays.

use anyhow::ensure;
use viaduct_e2e::{Raw, eventually, everybody_pings, ours};
use viaduct_lab::node::READY_TIMEOUT;
use viaduct_lab::{LabOptions, Signal, in_lab};
use viaduct_model::Kind;

#[test]
fn a_peer_that_was_removed_while_the_agent_was_down_is_swept_at_its_start() {
    let options = LabOptions {
        nodes: 3,
        ..LabOptions::default()
    };
    in_lab(options, |lab| {
        let (node, gone) = (lab.node("n1")?, lab.node("n3")?);
        let via = |lines: &[String]| {
            lines
                .iter()
                .filter(|line| line.contains("dev via.vx4"))
                .count()
        };
        let before = ours(&node)?;
        ensure!(via(&before) == 6, "two peers of three entries: {before:#?}");
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
            ensure!(via(&now) == 3, "one peer of three entries: {now:#?}");
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
        node.ip("route add 10.64.200.0/26 via 10.64.200.0 dev via.vx4 onlink proto 87")?;
        node.ip("neigh add 10.64.200.0 lladdr 02:00:00:00:00:01 dev via.vx4 nud permanent")?;
        node.run(
            "bridge",
            &[
                "fdb",
                "add",
                "02:00:00:00:00:01",
                "dev",
                "via.vx4",
                "dst",
                "172.29.0.99",
            ],
        )?;
        node.ip("addr add 10.64.200.0/32 dev via.vx4")?;
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
