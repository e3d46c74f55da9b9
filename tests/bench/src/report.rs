//! The table, the lines under it, and the JSON file.

use std::path::Path;

use anyhow::{Context, Result};
use comfy_table::{Cell, CellAlignment, Table, presets};
use serde_json::json;

use crate::machine::Machine;
use crate::row::{Limit, Row};
use crate::stats::{median, percentile};

/// What became of one measurement.
#[derive(Debug)]
pub(crate) struct Measured {
    /// Its name.
    pub name: &'static str,
    /// Its rows, or why there are none.
    pub rows: Result<Vec<Row>>,
    /// The machine's load average when it had ended.
    pub load_after: String,
}

/// The whole report as text.
pub(crate) fn text(machine: &Machine, rounds: u32, all: &[Measured]) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header([
        "measure",
        "Viaduct",
        "spread",
        "alternative",
        "",
        "spread",
        "ratio",
        "limit",
        "verdict",
    ]);
    for row in rows(all) {
        table.add_row(line(row));
    }
    for column in [1, 4, 6, 7] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut out = format!(
        "kernel {}, {} CPUs, load before {}; medians of {rounds} rounds, both sides in each; \
         spread: quartiles (least-most)\n\n{table}\n",
        machine.kernel, machine.cpus, machine.load_before
    );
    for row in rows(all).filter(|row| !row.notes.is_empty()) {
        out.push_str(&format!("\n{}:\n", row.measure));
        for note in &row.notes {
            out.push_str(&format!("  {note}\n"));
        }
    }
    for measured in all {
        if let Err(error) = &measured.rows {
            out.push_str(&format!(
                "\n{} could not be measured: {error:#}\n",
                measured.name
            ));
        }
    }
    out
}

fn rows(all: &[Measured]) -> impl Iterator<Item = &Row> {
    all.iter().filter_map(|m| m.rows.as_ref().ok()).flatten()
}

fn line(row: &Row) -> Vec<Cell> {
    let alternative = row.alternative.as_ref();
    let verdict = match row.holds() {
        None => "",
        Some(true) => "PASS",
        Some(false) => "FAIL",
    };
    vec![
        Cell::new(&row.measure),
        Cell::new(row.unit.show(median(&row.viaduct))),
        Cell::new(spread(&row.viaduct)),
        Cell::new(alternative.map_or("", |a| &a.name)),
        Cell::new(alternative.map_or(String::new(), |a| row.unit.show(median(&a.rounds)))),
        Cell::new(alternative.map_or(String::new(), |a| spread(&a.rounds))),
        Cell::new(row.ratio().map_or(String::new(), |r| format!("{r:.3}"))),
        Cell::new(match row.limit {
            None => String::new(),
            Some(Limit::RatioAtMost(limit)) => format!("<= {limit:.2}"),
            Some(Limit::RatioAtLeast(limit)) => format!(">= {limit:.2}"),
            Some(Limit::AtMost(limit)) => format!("<= {}", row.unit.show(limit)),
        }),
        Cell::new(verdict),
    ]
}

/// The quartiles of what the median is of, and the least and the most.
fn spread(values: &[f64]) -> String {
    if values.len() < 2 {
        return String::new();
    }
    let at = |share| percentile(values, share);
    let decimals = if at(0.5) < 10.0 { 2 } else { 1 };
    format!(
        "{:.decimals$}-{:.decimals$} ({:.decimals$}-{:.decimals$})",
        at(0.25),
        at(0.75),
        at(0.0),
        at(1.0)
    )
}

/// How many limits were missed.
pub(crate) fn missed(all: &[Measured]) -> usize {
    rows(all).filter(|row| row.holds() == Some(false)).count()
}

/// Writes the numbers of all rounds as JSON.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn write_json(
    path: &Path,
    machine: &Machine,
    rounds: u32,
    all: &[Measured],
) -> Result<()> {
    let measurements: Vec<_> = all
        .iter()
        .map(|measured| {
            json!({
                "name": measured.name,
                "loadAfter": measured.load_after,
                "error": measured.rows.as_ref().err().map(|e| format!("{e:#}")),
                "rows": measured.rows.as_ref().ok().map(|rows| rows.iter().map(|row| json!({
                    "row": row,
                    "median": median(&row.viaduct),
                    "ratio": row.ratio(),
                    "holds": row.holds(),
                })).collect::<Vec<_>>()),
            })
        })
        .collect();
    let report = json!({"machine": machine, "rounds": rounds, "measurements": measurements});
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    }
    std::fs::write(path, serde_json::to_vec_pretty(&report)?)
        .with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::Unit;

    #[test]
    fn a_missed_limit_cannot_be_overlooked() {
        let row = Row::alone("ADD, p50", Unit::Milliseconds, vec![3.0])
            .beside("ptp", vec![4.0])
            .limited(Limit::RatioAtMost(0.35));
        let all = [
            Measured {
                name: "cni",
                rows: Ok(vec![row]),
                load_after: "0.1".to_owned(),
            },
            Measured {
                name: "join",
                rows: Err(anyhow::anyhow!("no etcd")),
                load_after: "0.1".to_owned(),
            },
        ];
        let text = text(&Machine::now(), 5, &all);
        for needle in [
            "FAIL",
            "0.750",
            "<= 0.35",
            "join could not be measured: no etcd",
        ] {
            assert!(text.contains(needle), "{needle} is not in\n{text}");
        }
        assert_eq!(missed(&all), 1);
    }
}
