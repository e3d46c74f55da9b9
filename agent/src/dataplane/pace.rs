//! When the next reconcile may begin: a pure rule.

use std::time::Duration;

/// What excess of ours waits for, since it is mostly a pod that is being wired.
pub const SOON: Duration = Duration::from_millis(50);

/// The longest pause between two reconciles, so that damage is repaired within 100 ms
/// however long a reconcile takes.
const LONGEST_PAUSE: Duration = Duration::from_millis(80);

/// The first wait after a failure.
const FIRST_RETRY: Duration = Duration::from_millis(100);

/// The longest wait after a failure.
const LAST_RETRY: Duration = Duration::from_secs(10);

/// The pause after a reconcile that took `last`: twelve times as long, so that a storm
/// of triggers costs at most a tenth of a core, with what hearing of it costs beside.
pub fn pause_after(last: Duration) -> Duration {
    last.saturating_mul(12).min(LONGEST_PAUSE)
}

/// Waits that double with each failure in a row.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// How long to wait after another failure.
    pub fn failed(&mut self) -> Duration {
        let wait = FIRST_RETRY.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        wait.min(LAST_RETRY)
    }

    /// Begins anew.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_costs_at_most_a_tenth_of_a_core_while_reconciles_are_short() {
        let last = Duration::from_millis(5);
        assert_eq!(pause_after(last), Duration::from_millis(60));
        assert_eq!(pause_after(Duration::ZERO), Duration::ZERO);
        assert_eq!(pause_after(Duration::from_secs(1)), LONGEST_PAUSE);
    }

    #[test]
    fn retries_double_up_to_ten_seconds_and_begin_anew_after_success() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..9).map(|_| backoff.failed().as_millis()).collect();
        assert_eq!(
            waits,
            [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]
        );
        backoff.succeeded();
        assert_eq!(backoff.failed(), FIRST_RETRY);
        for _ in 0..1000 {
            assert!(backoff.failed() <= LAST_RETRY);
        }
    }
}
