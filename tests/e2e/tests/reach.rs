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
