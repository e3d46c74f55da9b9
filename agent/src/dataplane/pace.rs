//! When the next reconcile may begin: a pure rule.

use std::time::Duration;

use tokio::time::Instant;

/// What excess of ours waits for, since it is mostly a pod that is being wired.
pub const SOON: Duration = Duration::from_millis(50);

/// The longest pause between two reconciles, so that damage is repaired within 100 ms
/// even in the midst of a storm.
const LONGEST_PAUSE: Duration = Duration::from_millis(80);

/// Of how many seconds reconciles may take one, in the long run. A storm of triggers
/// costs a tenth of a core then, with what hearing of it costs beside.
const SHARE: u32 = 17;

/// The CPU time that reconciles may take at once, without a pause: that of some ten
/// repairs in a small cluster.
const BURST: Duration = Duration::from_millis(30);

/// The first wait after a failure.
const FIRST_RETRY: Duration = Duration::from_millis(100);

/// The longest wait after a failure.
const LAST_RETRY: Duration = Duration::from_secs(10);

/// The CPU time that reconciles may take: a bucket that holds [`BURST`] and fills at
/// the rate of [`SHARE`]. While there is something in it, whatever is damaged is looked
/// at at once; only a storm that has emptied it waits.
#[derive(Debug)]
pub struct Allowance {
    /// When the bucket is full again.
    full_at: Instant,
}

impl Allowance {
    /// A full bucket.
    pub fn new(now: Instant) -> Self {
        Self { full_at: now }
    }

    /// Takes what a reconcile that ended `now` has `cost`; the answer is when the next
    /// may begin.
    pub fn spend(&mut self, now: Instant, cost: Duration) -> Instant {
        let capacity = BURST * SHARE;
        let full_at = self.full_at.max(now) + cost.saturating_mul(SHARE);
        // A pause that is cut short leaves no debt, lest damage long after the storm
        // still wait for it.
        self.full_at = full_at.min(now + capacity + LONGEST_PAUSE);
        let pause = (self.full_at - now).saturating_sub(capacity);
        now + pause
    }
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

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn several_repairs_in_a_row_wait_for_nothing() {
        let begun = Instant::now();
        let mut allowance = Allowance::new(begun);
        for n in 0..10 {
            let now = begun + 30 * MS * n;
            assert_eq!(allowance.spend(now, 3 * MS), now, "{n}");
        }
    }

    /// Reconciles that cost `cost` each, as often as they may begin; how many there
    /// were in `time`.
    fn storm(allowance: &mut Allowance, begun: Instant, cost: Duration, time: Duration) -> u32 {
        let (mut now, mut count) = (begun, 0);
        while now < begun + time {
            now = allowance.spend(now + cost, cost);
            count += 1;
        }
        count
    }

    #[test]
    fn a_storm_costs_less_than_a_tenth_of_a_core() {
        let second = Duration::from_secs(1);
        for cost in [MS / 10, MS, 2 * MS, 5 * MS] {
            let begun = Instant::now();
            let mut allowance = Allowance::new(begun);
            let cost_in = |count: u32| cost * count;
            // The first seconds have the bucket beside.
            let first = cost_in(storm(&mut allowance, begun, cost, 3 * second));
            assert!(first < 3 * second * 9 / 100, "{cost:?}: {first:?}");
            let later = begun + 3 * second;
            let lasting = cost_in(storm(&mut allowance, later, cost, 60 * second));
            assert!(lasting < 60 * second * 75 / 1000, "{cost:?}: {lasting:?}");
        }
    }

    #[test]
    fn no_pause_exceeds_its_limit_and_a_storm_is_forgotten_after_half_a_second() {
        let begun = Instant::now();
        let mut allowance = Allowance::new(begun);
        for n in 0..1000 {
            let now = begun + Duration::from_secs(n);
            let next = allowance.spend(now, Duration::from_secs(1));
            assert_eq!(next, now + LONGEST_PAUSE);
        }
        let after = begun + Duration::from_secs(1000);
        assert_eq!(allowance.spend(after, 10 * MS), after);
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
