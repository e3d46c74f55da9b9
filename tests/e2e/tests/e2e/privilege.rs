//! An agent has one capability and an ordinary uid; the others have none.

use anyhow::{Context, Result, ensure};
use viaduct_lab::privilege::{CAP_NET_ADMIN, capability_sets, has_uids, holds_only_net_admin};
use viaduct_lab::{Daemon, Datastore, LabOptions, in_lab};

fn status(daemon: &Daemon) -> Result<String> {
    let pid = daemon.pid().context("does not run")?;
    Ok(std::fs::read_to_string(format!("/proc/{pid}/status"))?)
}

fn field<'a>(status: &'a str, name: &str) -> Result<Vec<&'a str>> {
    status
        .lines()
        .find_map(|line| Some(line.strip_prefix(name)?.split_whitespace().collect()))
        .with_context(|| format!("no {name} in {status}"))
}

#[test]
fn an_agent_wires_pods_with_net_admin_alone_under_an_ordinary_uid() {
    let options = LabOptions {
        datastore: Datastore::Etcd,
        ..LabOptions::default()
    };
    in_lab(options, |lab| {
        for node in lab.nodes() {
            let pid = node.agent_pid().context("no agent")?;
            holds_only_net_admin(pid)?;
            let status = status(node.agent())?;
            ensure!(field(&status, "NoNewPrivs:")? == ["1"], "{status}");
            for (set, bits) in capability_sets(&status) {
                ensure!(bits & !CAP_NET_ADMIN == 0, "{set} is {bits:x}");
            }
            // Where the lab has uids to give.
            if has_uids()? {
                let uids = field(&status, "Uid:")?;
                ensure!(uids.iter().all(|uid| *uid != "0"), "{uids:?}");
            }
            // It did its work with that: nothing below was done by anybody else.
            ensure!(node.pods().len() == 1);
        }
        // The uid's own threads hold no more than the first one.
        let pid = lab.node("n1")?.agent_pid().context("no agent")?;
        for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            let status = std::fs::read_to_string(task?.path().join("status"))?;
            for (set, bits) in capability_sets(&status) {
                ensure!(bits & !CAP_NET_ADMIN == 0, "a thread's {set} is {bits:x}");
            }
        }
        Ok(())
    });
}

#[test]
fn the_controller_has_no_capability_at_all() {
    let options = LabOptions {
        nodes: 0,
        ..LabOptions::default()
    };
    in_lab(options, |lab| {
        let status = status(lab.controller())?;
        let sets = capability_sets(&status);
        ensure!(
            sets.len() == 5 && sets.iter().all(|(_, bits)| *bits == 0),
            "{sets:?}"
        );
        ensure!(field(&status, "NoNewPrivs:")? == ["1"], "{status}");
        Ok(())
    });
}
