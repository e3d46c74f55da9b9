//! How long something may be amiss that is normal for a moment: a peer's record is told of
//! before the block that its address is in. Decides over sentences and times; used by the
//! reconciler alone.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// How long news may be on their way, when the datastore answers at all.
const LONG_ENOUGH: Duration = Duration::from_secs(10);

/// What is awaited, with since when.
#[derive(Debug, Default)]
pub struct Patience {
    since: BTreeMap<String, Instant>,
}

impl Patience {
    /// Takes in what is awaited now; returns what has been for too long, and after which
    /// time to look again.
    pub fn judge(&mut self, awaited: Vec<String>, now: Instant) -> (Vec<String>, Option<Duration>) {
        self.since = awaited
            .into_iter()
            .map(|sentence| {
                let since = self.since.get(&sentence).copied().unwrap_or(now);
                (sentence, since)
            })
            .collect();
        let left = |since: &Instant| LONG_ENOUGH.saturating_sub(now.duration_since(*since));
        let again = self.since.values().map(left).filter(|left| !left.is_zero());
        let again = again.min();
        let overdue = self.since.iter().filter(|(_, since)| left(since).is_zero());
        (
            overdue.map(|(sentence, _)| sentence.clone()).collect(),
            again,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_normal_for_a_moment_is_told_when_it_stays() {
        let mut patience = Patience::default();
        let start = Instant::now();
        let awaited = || vec!["node b".to_owned()];
        assert_eq!(
            patience.judge(awaited(), start),
            (vec![], Some(LONG_ENOUGH))
        );
        let half = start + LONG_ENOUGH / 2;
        assert_eq!(
            patience.judge(awaited(), half),
            (vec![], Some(LONG_ENOUGH / 2))
        );
        let late = start + LONG_ENOUGH;
        assert_eq!(patience.judge(awaited(), late), (awaited(), None));
        // It was right in between.
        assert_eq!(patience.judge(vec![], late), (vec![], None));
        assert_eq!(patience.judge(awaited(), late).0, [""; 0]);
    }
}
