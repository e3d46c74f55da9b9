//! Running the programs for what they say and exit with.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use viaduct_lab::environment::scaled;
use viaduct_lab::{Lab, binaries, command};

/// What a run of a program came to.
#[derive(Debug, Clone)]
pub struct Run {
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// How long a program may run that is to refuse its input.
const REFUSES_WITHIN: Duration = Duration::from_secs(10);

/// Runs a program of the lab to its end, in the lab's own namespace. One that does
/// not end is ended after ten seconds (more on a slow machine), with code 124.
///
/// # Errors
/// When it cannot be started.
pub fn run(program: &str, args: &[&str], env: &[(String, String)]) -> Result<Run> {
    let mut command = command::command("timeout");
    command
        .arg(scaled(REFUSES_WITHIN).as_secs().to_string())
        .arg(binaries::program(program))
        .args(args)
        .envs(env.iter().cloned());
    let output = command
        .output()
        .with_context(|| format!("{program} {args:?}"))?;
    Ok(Run {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Runs `viaductctl` against the lab's datastore.
///
/// # Errors
/// When it cannot be started.
pub fn viaductctl(lab: &Lab, args: &[&str]) -> Result<Run> {
    run("viaductctl", args, &lab.environment())
}

impl Run {
    /// Standard output of a run that worked.
    ///
    /// # Errors
    /// What the program said instead.
    pub fn worked(self) -> Result<String> {
        ensure!(
            self.code == Some(0),
            "exit code {:?}: {}{}",
            self.code,
            self.stdout,
            self.stderr
        );
        Ok(self.stdout)
    }
}

/// Checks that a program refuses its input at once, as a user wants to be refused:
/// exit code 2, and one line that holds all of `parts`.
///
/// # Errors
/// What it did instead.
pub fn refused(
    program: &str,
    args: &[&str],
    env: &[(String, String)],
    parts: &[&str],
) -> Result<()> {
    let run = run(program, args, env)?;
    let shown = format!("{program} {}: {run:?}", args.join(" "));
    ensure!(run.code == Some(2), "not exit code 2: {shown}");
    ensure!(
        run.stderr.trim_end().lines().count() == 1 && run.stdout.is_empty(),
        "not one line: {shown}"
    );
    for part in parts {
        ensure!(run.stderr.contains(part), "without {part:?}: {shown}");
    }
    Ok(())
}
