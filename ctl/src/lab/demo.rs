//! What the worker does inside: bring the lab up, prove that it works, and end it
//! or leave it to whoever wants to look around.

use std::process::ExitCode;
use std::time::Instant;

use viaduct_lab::{Control, Lab, LabOptions, Matrix};

use super::{background, report};

/// Lines of each daemon's log that a failure shows.
const LOG_LINES: usize = 20;

/// Tells what is being done, and how long after the start.
struct Progress(Instant);

impl Progress {
    fn tell(&self, what: &str) {
        eprintln!("[{:6.2} s] {what}", self.0.elapsed().as_secs_f64());
    }
}

/// `lab demo`, inside the lab's namespaces.
pub(crate) fn run(options: LabOptions, control: Control, keep: bool) -> ExitCode {
    let progress = Progress(Instant::now());
    let Some(lab) = bring_up(options, control, &progress) else {
        return ExitCode::FAILURE;
    };
    let proved = prove(&lab, &progress);
    if keep {
        return background::stay(&lab, proved);
    }
    progress.tell("stopping");
    // Cleanly, so that a datastore outside the lab keeps nobody's lease.
    let stopped = lab.stop();
    if let Err(error) = &stopped {
        eprintln!("FAILED: stopping: {error:#}\n{}", lab.log_tails(LOG_LINES));
    }
    if proved && stopped.is_ok() {
        progress.tell("everything works");
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// `lab up`, inside the lab's namespaces.
pub(crate) fn up(options: LabOptions, control: Control) -> ExitCode {
    let progress = Progress(Instant::now());
    match bring_up(options, control, &progress) {
        Some(lab) => {
            progress.tell("up");
            background::stay(&lab, true)
        }
        None => ExitCode::FAILURE,
    }
}

fn bring_up(options: LabOptions, control: Control, progress: &Progress) -> Option<Lab> {
    match Lab::up_with(options, control, &|what| progress.tell(what)) {
        Ok(lab) => Some(lab),
        Err(error) => {
            eprintln!("FAILED: the lab does not come up: {error:#}");
            None
        }
    }
}

/// Tries everything and shows the tables; says whether all of it worked.
fn prove(lab: &Lab, progress: &Progress) -> bool {
    progress.tell("trying everybody to every pod: ping, MTU, 1 MB over TCP both ways");
    let matrix = match Matrix::run(lab) {
        Ok(matrix) => matrix,
        Err(error) => {
            eprintln!(
                "FAILED: the network cannot be tried: {error:#}\n{}",
                lab.log_tails(LOG_LINES)
            );
            return false;
        }
    };
    print!("{}", report::tables(&matrix));
    let failures = matrix.failures();
    if !failures.is_empty() {
        eprintln!("{}", lab.log_tails(LOG_LINES));
        for failure in &failures {
            eprintln!("FAILED: {failure}");
        }
    }
    failures.is_empty()
}
