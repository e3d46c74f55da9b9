//! `viaductctl cleanup`: takes away what an agent left on this host.
//!
//! What is ours and how it goes is decided by the agent's own code; this file says
//! what became of it.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;
use viaduct_agent::cleanup::{self, Cleaned};

use crate::cli::{print, refuse};
use crate::output::{self, Format};
use crate::places::RunDir;

/// What is said of the run directory here.
const RUN_DIR: &str =
    "The agent's run directory: its lock tells whether an agent runs, and its state there goes too";

#[derive(Debug, Args)]
#[command(mut_arg("run_dir", |arg| arg.help(RUN_DIR)))]
pub(crate) struct CleanupArgs {
    #[command(flatten)]
    at: RunDir,
    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,
}

/// Cleans up and says what was removed.
pub(crate) fn run(args: &CleanupArgs, format: Format) -> ExitCode {
    let outcome = if args.dry_run {
        cleanup::plan(&args.at.run_dir)
    } else {
        cleanup::remove(&args.at.run_dir)
    };
    let cleaned = match outcome {
        Ok(cleaned) => cleaned,
        Err(error) => return refuse(&error, 1),
    };
    let said = print(render(&cleaned, args.dry_run, format).as_bytes());
    for why in &cleaned.failed {
        refuse(why, 1);
    }
    if cleaned.failed.is_empty() {
        said
    } else {
        ExitCode::from(1)
    }
}

fn render(cleaned: &Cleaned, dry_run: bool, format: Format) -> String {
    if format == Format::Json {
        return output::json(&json!({
            "dryRun": dry_run,
            "removed": cleaned.removed,
            "failed": cleaned.failed,
        }));
    }
    let verb = if dry_run { "would remove" } else { "removed" };
    if cleaned.removed.is_empty() && cleaned.failed.is_empty() {
        return "nothing of Viaduct's is here\n".to_owned();
    }
    cleaned
        .removed
        .iter()
        .map(|object| format!("{verb} {object}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_object_has_its_line_and_nothing_is_said_too() {
        let cleaned = Cleaned {
            removed: vec!["link via.vx4".into(), "/run/viaduct/subnet.env".into()],
            failed: Vec::new(),
        };
        assert_eq!(
            render(&cleaned, true, Format::Table),
            "would remove link via.vx4\nwould remove /run/viaduct/subnet.env\n"
        );
        assert!(render(&Cleaned::default(), false, Format::Table).starts_with("nothing"));
        assert!(render(&cleaned, false, Format::Json).contains("\"dryRun\": false"));
    }
}
