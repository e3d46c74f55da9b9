//! `viaductctl lab demo`: a lab, the proof that it works, and an end.

use std::process::ExitCode;
use std::time::Instant;

use viaduct_lab::{Control, Lab, LabOptions, Matrix};

use super::report;

/// Lines of each daemon's log that a failure shows.
const LOG_LINES: usize = 20;

/// Runs the demo inside the lab's namespaces.
pub(crate) fn run(options: LabOptions, control: Control) -> ExitCode {
    let start = Instant::now();
    let progress = |what: &str| eprintln!("[{:6.2} s] {what}", start.elapsed().as_secs_f64());
    let lab = match Lab::up_with(options, control, &progress) {
        Ok(lab) => lab,
        Err(error) => {
            eprintln!("the lab does not come up: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    if prove(&lab, &progress) {
        progress("done");
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Tries everything and shows the table; says whether all of it worked.
fn prove(lab: &Lab, progress: &dyn Fn(&str)) -> bool {
    progress("trying every pod and node to every pod: ping, MTU, 1 MB over TCP both ways");
    let matrix = match Matrix::run(lab) {
        Ok(matrix) => matrix,
        Err(error) => {
            eprintln!(
                "the network cannot be tried: {error:#}\n{}",
                lab.log_tails(LOG_LINES)
            );
            return false;
        }
    };
    print!("{}", report::tables(&matrix));
    let failures = matrix.failures();
    if !failures.is_empty() {
        eprintln!("\n{}", lab.log_tails(LOG_LINES));
        for failure in &failures {
            eprintln!("FAILED: {failure}");
        }
    }
    failures.is_empty()
}
