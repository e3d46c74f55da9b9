//! What a measurement hands back: rows of numbers with their limits.

use serde::{Deserialize, Serialize};

use crate::stats::median;

/// The unit of a row's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Unit {
    Milliseconds,
    Microseconds,
    Mebibytes,
    GigabitsPerSecond,
    PodsPerSecond,
    PercentOfACore,
    PerSecond,
    PerMinute,
    Bytes,
    Kibibytes,
    Each,
}

impl Unit {
    /// A number with its unit.
    pub(crate) fn show(self, value: f64) -> String {
        match self {
            Unit::Milliseconds if value < 10.0 => format!("{value:.2} ms"),
            Unit::Milliseconds => format!("{value:.0} ms"),
            Unit::Microseconds => format!("{value:.1} us"),
            Unit::Mebibytes => format!("{value:.1} MiB"),
            Unit::GigabitsPerSecond => format!("{value:.2} Gbit/s"),
            Unit::PodsPerSecond => format!("{value:.0} pods/s"),
            Unit::Kibibytes => format!("{value:.1} KiB"),
            Unit::Each => format!("{value:.3}"),
            Unit::PercentOfACore => format!("{value:.3}% core"),
            Unit::PerSecond => format!("{value:.2}/s"),
            Unit::PerMinute => format!("{value:.1}/min"),
            Unit::Bytes => format!("{value:.0} bytes"),
        }
    }
}

/// What must hold.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Limit {
    /// Viaduct's number divided by the alternative's is at most this.
    RatioAtMost(f64),
    /// Viaduct's number divided by the alternative's is at least this.
    RatioAtLeast(f64),
    /// Viaduct's number is at most this.
    AtMost(f64),
}

/// The other side of a row, measured in the same rounds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Alternative {
    /// What it is.
    pub name: String,
    /// One number a round.
    pub rounds: Vec<f64>,
}

/// One measure: a number a round, maybe beside an alternative, maybe with a limit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    /// What was measured.
    pub measure: String,
    /// In what.
    pub unit: Unit,
    /// Viaduct's numbers, one a round.
    pub viaduct: Vec<f64>,
    /// The other side.
    pub alternative: Option<Alternative>,
    /// What must hold, if anything.
    pub limit: Option<Limit>,
    /// Lines to print under the table: where the time goes and the like.
    pub notes: Vec<String>,
}

impl Row {
    /// A row of Viaduct's numbers alone.
    pub(crate) fn alone(measure: &str, unit: Unit, viaduct: Vec<f64>) -> Self {
        Self {
            measure: measure.to_owned(),
            unit,
            viaduct,
            alternative: None,
            limit: None,
            notes: Vec::new(),
        }
    }

    /// With the other side's numbers.
    pub(crate) fn beside(mut self, name: &str, rounds: Vec<f64>) -> Self {
        self.alternative = Some(Alternative {
            name: name.to_owned(),
            rounds,
        });
        self
    }

    /// With a limit.
    pub(crate) fn limited(mut self, limit: Limit) -> Self {
        self.limit = Some(limit);
        self
    }

    /// With lines to print under the table.
    pub(crate) fn noted(mut self, notes: Vec<String>) -> Self {
        self.notes = notes;
        self
    }

    /// The median of the rounds' ratios: what disturbs one round disturbs both
    /// its sides.
    pub(crate) fn ratio(&self) -> Option<f64> {
        let alternative = self.alternative.as_ref()?;
        let ratios: Vec<f64> = self
            .viaduct
            .iter()
            .zip(&alternative.rounds)
            .filter(|(_, other)| **other > 0.0)
            .map(|(ours, other)| ours / other)
            .collect();
        (!ratios.is_empty()).then(|| median(&ratios))
    }

    /// Whether the limit holds; `None` when there is none. A limit on a ratio
    /// that could not be formed does not hold.
    pub(crate) fn holds(&self) -> Option<bool> {
        Some(match self.limit? {
            Limit::RatioAtMost(limit) => self.ratio().is_some_and(|r| r <= limit),
            Limit::RatioAtLeast(limit) => self.ratio().is_some_and(|r| r >= limit),
            Limit::AtMost(limit) => !self.viaduct.is_empty() && median(&self.viaduct) <= limit,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(ours: &[f64], other: &[f64]) -> Row {
        Row::alone("x", Unit::Milliseconds, ours.to_vec()).beside("y", other.to_vec())
    }

    #[test]
    fn ratios_are_formed_within_rounds() {
        // Both sides are ten times slower in the last two rounds.
        let row = row(&[1.0, 10.0, 11.0], &[2.0, 20.0, 22.0]);
        assert_eq!(row.ratio(), Some(0.5));
    }

    #[test]
    fn limits_hold_or_are_missed_and_nothing_measured_is_missed() {
        let half = row(&[1.0], &[2.0]);
        assert_eq!(half.holds(), None);
        for (limit, holds) in [
            (Limit::RatioAtMost(0.5), true),
            (Limit::RatioAtMost(0.4), false),
            (Limit::RatioAtLeast(0.5), true),
            (Limit::RatioAtLeast(0.6), false),
            (Limit::AtMost(1.0), true),
            (Limit::AtMost(0.9), false),
        ] {
            assert_eq!(
                half.clone().limited(limit).holds(),
                Some(holds),
                "{limit:?}"
            );
        }
        let empty = row(&[], &[]);
        for limit in [
            Limit::RatioAtMost(1.0),
            Limit::RatioAtLeast(0.0),
            Limit::AtMost(1.0),
        ] {
            assert_eq!(empty.clone().limited(limit).holds(), Some(false));
        }
    }
}
