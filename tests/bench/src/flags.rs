//! The command line.

use std::path::PathBuf;

use clap::Parser;

/// Measures Viaduct beside the alternatives, in namespaces of its own, and prints ratios.
#[derive(Debug, Parser)]
#[command(name = "viaduct-bench", version)]
pub(crate) struct Flags {
    /// Measure only this; may be repeated
    #[arg(long, value_name = "NAME", value_parser = clap::builder::PossibleValuesParser::new(crate::measure::names()))]
    pub only: Vec<String>,

    /// How often both sides are measured; the medians are shown
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=99))]
    pub rounds: u32,

    /// How long an agent with nothing to do is watched for each round, in seconds
    #[arg(long, default_value_t = 24, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub idle: u64,

    /// Exit with 1 when a limit is missed, not only when something cannot be measured
    #[arg(long)]
    pub strict: bool,

    /// Where the numbers go as JSON
    #[arg(long, default_value = "target/bench.json", value_name = "FILE")]
    pub json: PathBuf,

    /// Also print the daemons' logs of measurements that show where time goes
    #[arg(long, short)]
    pub verbose: bool,

    /// Internal: run this measurement inside its lab and write its rows to --rows.
    #[arg(long, hide = true, requires = "rows")]
    pub measure: Option<String>,

    /// Internal: where the rows of --measure go.
    #[arg(long, hide = true)]
    pub rows: Option<PathBuf>,
}
