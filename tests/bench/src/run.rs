//! One measurement after the other, each in a process and a lab of its own.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use viaduct_lab::Control;

use crate::flags::Flags;
use crate::machine::{self, Machine};
use crate::measure::{self, Measurement, Setting};
use crate::report::{self, Measured};
use crate::row::Row;

/// Runs what was asked for and prints the report.
pub(crate) fn all(flags: &Flags) -> ExitCode {
    let machine = Machine::now();
    let (wanted, skipped): (Vec<&'static Measurement>, Vec<_>) = measure::ALL
        .iter()
        .filter(|m| flags.only.is_empty() || flags.only.iter().any(|n| n == m.name))
        .partition(|m| m.needs.is_none_or(|name| std::env::var_os(name).is_some()));
    let done: Vec<Measured> = wanted
        .chunk_by(|one, next| one.mostly_waits && next.mostly_waits)
        .flat_map(|together| measured(together, flags))
        .collect();
    println!("{}", report::text(&machine, flags.rounds, &done));
    for measurement in skipped {
        let needs = measurement.needs.unwrap_or_default();
        println!(
            "SKIPPED: {} ({}): {needs} is not set; `make kube-bins` builds the programs and says where",
            measurement.name, measurement.about
        );
    }
    if let Err(error) = report::write_json(&flags.json, &machine, flags.rounds, &done) {
        eprintln!("the numbers cannot be written: {error:#}");
        return ExitCode::FAILURE;
    }
    println!("all rounds are in {}", flags.json.display());
    let missed = report::missed(&done);
    if missed > 0 {
        println!("FAIL: {missed} of the limits above are missed");
    }
    if done.iter().any(|m| m.rows.is_err()) || (missed > 0 && flags.strict) {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Takes some measurements at the same time, each in a lab of its own.
fn measured(together: &[&'static Measurement], flags: &Flags) -> Vec<Measured> {
    let rows: Vec<Result<Vec<Row>>> = std::thread::scope(|scope| {
        let threads: Vec<_> = together
            .iter()
            .map(|measurement| {
                eprintln!("measuring {}: {}", measurement.name, measurement.about);
                scope.spawn(move || in_own_lab(measurement, flags))
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                let panicked = |_| Err(anyhow::anyhow!("a thread of this program panicked"));
                thread.join().unwrap_or_else(panicked)
            })
            .collect()
    });
    together
        .iter()
        .zip(rows)
        .map(|(measurement, rows)| Measured {
            name: measurement.name,
            rows,
            load_after: machine::load(),
        })
        .collect()
}

/// Starts this program again for one measurement and reads back its rows.
fn in_own_lab(measurement: &Measurement, flags: &Flags) -> Result<Vec<Row>> {
    let rows = std::env::temp_dir().join(format!(
        "viaduct-bench-{}-{}.json",
        std::process::id(),
        measurement.name
    ));
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["--measure", measurement.name])
        .args(["--rounds", &flags.rounds.to_string()])
        .args(["--idle", &flags.idle.to_string()])
        .arg("--rows")
        .arg(&rows);
    if flags.verbose {
        command.arg("--verbose");
    }
    let outcome = run_and_read(command, &rows);
    let _ = std::fs::remove_file(&rows);
    outcome
}

fn run_and_read(mut command: Command, rows: &Path) -> Result<Vec<Row>> {
    let status = command.status().context("starting this program again")?;
    if !status.success() {
        bail!("it ended with {status}; what it said stands above");
    }
    serde_json::from_slice(&std::fs::read(rows)?).context("the rows of a measurement")
}

/// Measures, inside the lab's namespaces.
pub(crate) fn inside(name: &str, flags: &Flags, control: Control) -> ExitCode {
    match try_inside(name, flags, control) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn try_inside(name: &str, flags: &Flags, control: Control) -> Result<()> {
    let measurement = measure::ALL
        .iter()
        .find(|m| m.name == name)
        .with_context(|| format!("there is no measurement {name}"))?;
    let setting = Setting {
        control,
        rounds: usize::try_from(flags.rounds)?,
        idle: std::time::Duration::from_secs(flags.idle),
        verbose: flags.verbose,
    };
    let rows = (measurement.run)(setting)?;
    let path = flags.rows.as_ref().context("--rows is missing")?;
    std::fs::write(path, serde_json::to_vec(&rows)?).with_context(|| path.display().to_string())
}
