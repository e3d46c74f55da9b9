//! What is not ours stays, and is named where it is in our way.

use anyhow::ensure;
use viaduct_e2e::{eventually, viaductctl};
use viaduct_lab::{LabOptions, in_lab};

#[test]
fn a_foreign_route_to_a_peers_block_is_named_everywhere_and_never_deleted() {
    in_lab(LabOptions::default(), |lab| {
        let node = lab.node("n1")?;
        let block = node
            .ip(&format!("route show proto 87 dev {}", lab.options().way()))?
            .split_whitespace()
            .next()
            .map(str::to_owned)
            .unwrap_or_default();
        let route = format!("{block} via 172.29.0.1 dev eth0 proto static metric 50");
        node.ip(&format!("route add {route}"))?;
        eventually(|| {
            let ready = node.readyz()?;
            ensure!(ready.status == 200, "{ready:?}");
            ensure!(
                ready
                    .body
                    .contains(&format!("conflicts with block {block}")),
                "{ready:?}"
            );
            ensure!(node.metric("viaduct_foreign_route_conflicts ")? > 0.5);
            let status = viaductctl(lab, &["status"])?.worked()?;
            ensure!(status.contains("NoRouteConflict"), "{status}");
            Ok(())
        })?;
        // A restart sweeps what is ours and stale; this is neither.
        node.restart_agent()?;
        ensure!(node.ip("route show proto static")?.contains(&block));
        node.ip(&format!("route del {route}"))?;
        eventually(|| {
            let ready = node.readyz()?;
            ensure!(ready.body.trim() == "ok", "{ready:?}");
            Ok(())
        })
    });
}
