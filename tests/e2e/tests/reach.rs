//! Pods reach each other, in a lab of the test's own.

use viaduct_lab::{LabOptions, Matrix, in_lab};

#[test]
fn every_pod_reaches_every_other_over_vxlan() {
    in_lab(LabOptions::default(), |lab| {
        let failures = Matrix::run(lab)?.failures();
        anyhow::ensure!(failures.is_empty(), "{}", failures.join("\n"));
        Ok(())
    });
}

#[test]
fn a_network_that_does_not_carry_is_told_from_one_that_does() {
    in_lab(LabOptions::default(), |lab| {
        let node = lab.node("n1")?;
        node.kill_agent(viaduct_lab::Signal::SIGKILL)?;
        node.ip("link del via.vx4")?;
        let matrix = Matrix::run(lab)?;
        let broken = matrix
            .pods
            .iter()
            .all(|pair| pair.ping.is_err() && pair.tcp.is_err());
        anyhow::ensure!(broken, "{:?}", matrix.pods);
        anyhow::ensure!(matrix.wire.is_err() && matrix.capabilities.is_err());
        Ok(())
    });
}
