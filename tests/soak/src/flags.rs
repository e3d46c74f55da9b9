//! The command line.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Parser;

use crate::plant::Plant;

/// The longest soak, in minutes: a week.
const LONGEST: f64 = 7.0 * 24.0 * 60.0;

/// Three nodes under churn, kills, damage and outages of the store; then all must be well.
///
/// Exits with 0 when all was well and with 1 when anything was not; the logs are kept then.
#[derive(Debug, Parser)]
#[command(name = "viaduct-soak", version)]
pub(crate) struct Flags {
    /// For how long pods come and go and things happen, in minutes; also as a fraction
    #[arg(long, env = "SOAK_MINUTES", default_value = "10", value_name = "MINUTES", value_parser = parse_minutes)]
    pub minutes: Duration,

    /// What happens is drawn from this number; another each time when it is not given
    #[arg(long, env = "SOAK_SEED", value_name = "NUMBER")]
    pub seed: Option<u64>,

    /// Where logs, ledgers and kernels are kept, also when all was well [default: in the
    /// system's directory for temporary files, and only when something was wrong]
    #[arg(long, env = "SOAK_LOGS", value_name = "DIR")]
    pub logs: Option<PathBuf>,

    /// Do a damage that this program has to find: whoever runs it sees that it can fail
    #[arg(long, env = "SOAK_PLANT", value_enum, value_name = "FAULT")]
    pub plant: Option<Plant>,
}

impl Flags {
    /// The seed that was given, or one of this moment.
    pub(crate) fn seed(&self) -> u64 {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH);
        self.seed
            .unwrap_or_else(|| now().map_or(1, |since| since.as_secs()))
    }

    /// Where logs are kept.
    pub(crate) fn logs(&self, seed: u64) -> PathBuf {
        let named = || std::env::temp_dir().join(format!("viaduct-soak-{seed}"));
        self.logs.clone().unwrap_or_else(named)
    }
}

fn parse_minutes(text: &str) -> Result<Duration, String> {
    let minutes = text.parse::<f64>().ok();
    let minutes = minutes.filter(|minutes| *minutes > 0.0 && *minutes <= LONGEST);
    minutes
        .map(|minutes| Duration::from_secs_f64(minutes * 60.0))
        .ok_or_else(|| format!("a number of minutes above 0, up to {LONGEST}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minutes_may_be_a_fraction_and_must_be_some() {
        assert_eq!(parse_minutes("10"), Ok(Duration::from_secs(600)));
        assert_eq!(parse_minutes("0.5"), Ok(Duration::from_secs(30)));
        for bad in ["", "0", "-1", "ten", "inf", "NaN", "10081"] {
            let refused = parse_minutes(bad).unwrap_err();
            assert!(refused.contains("above 0"), "{bad}");
        }
    }
}
