//! The control plane is away.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::WEB;
use super::permissions::elsewhere;
use super::rollout::{self, NAMESPACE, nodes_ready};
use crate::cluster::Cluster;
use crate::{pods, wait};

/// How long it stays away, unless VIADUCT_KUBE_OUTAGE says how many seconds.
const OUTAGE: u64 = 120;

pub(super) fn control_plane(cluster: &Cluster) -> Result<String> {
    let seconds = match std::env::var("VIADUCT_KUBE_OUTAGE") {
        Ok(text) => text
            .parse()
            .context("VIADUCT_KUBE_OUTAGE: seconds are allowed")?,
        Err(_) => OUTAGE,
    };
    let before = pods::all_ready(cluster, "web", WEB)?;
    let streams = rollout::streams(cluster, &before)?;
    cluster.control("kill", &["kube-apiserver", "etcd"])?;
    std::thread::sleep(Duration::from_secs(seconds));
    cluster.control("start", &["etcd", "kube-apiserver"])?;
    rollout::settle();
    nodes_ready(cluster)?;
    if !elsewhere() {
        let found = || cluster.get(&["-n", NAMESPACE, "lease", "viaduct-controller"]);
        let before = found()?;
        wait::until(Duration::from_secs(60), || {
            let renewed = found()?["spec"]["renewTime"] != before["spec"]["renewTime"];
            ensure!(renewed, "no controller leads");
            Ok(())
        })?;
    }
    let packets = rollout::lost_none(streams)?;
    let after = pods::all_ready(cluster, "web", WEB)?;
    ensure!(before == after, "before {before:?}, after {after:?}");
    pods::everybody_reaches_everybody(cluster, &after)?;
    Ok(format!("{packets} packets in {seconds} s"))
}
