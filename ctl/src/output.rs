//! How results are shown: tables without borders for people, JSON for programs.

use clap::ValueEnum;
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use serde::Serialize;
use serde_json::Value;
use viaduct_datastore::Named;

/// How results are shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A table for people
    #[default]
    Table,
    /// JSON for programs
    Json,
}

/// A table: its headings and its rows, each row as long as the headings.
pub(crate) fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(headings.iter().map(|heading| (*heading).to_owned()));
    for row in rows {
        table.add_row(row.iter().map(|cell| {
            if cell.is_empty() {
                "-".to_owned()
            } else {
                cell.clone()
            }
        }));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt() + "\n"
}

/// A value as JSON for programs, with a line's end.
pub(crate) fn json(value: &impl Serialize) -> String {
    // Our own types have string keys and no way to fail.
    let text = serde_json::to_string_pretty(value).unwrap_or_default();
    text + "\n"
}

/// A record as JSON: its fields, its name and its version.
pub(crate) fn record_json<T: Serialize>(named: &Named<T>) -> Value {
    let mut value = serde_json::to_value(&named.record).unwrap_or_default();
    value["name"] = Value::from(named.name.clone());
    value["version"] = Value::from(named.version.to_string());
    value
}
