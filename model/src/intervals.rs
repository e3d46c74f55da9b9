//! Sets of numbers kept as merged intervals, so that a set of millions of
//! addresses costs what its number of runs costs.
//!
//! Used by the carver for block ordinals and by the address manager for reserved
//! addresses. Knows nothing of addresses itself.

use std::collections::BTreeMap;

/// A set of `u128` as disjoint closed intervals that never touch: neighbours are
/// merged, so the lowest number that is *not* in the set is found in O(log n).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Intervals {
    /// First to last, both inside.
    runs: BTreeMap<u128, u128>,
}

impl Intervals {
    /// Adds `first..=last`.
    pub(crate) fn insert(&mut self, first: u128, last: u128) {
        if first > last {
            return;
        }
        let (mut first, mut last) = (first, last);
        // The one run that begins before and reaches or touches us.
        if let Some((&start, &end)) = self.runs.range(..=first).next_back()
            && end.saturating_add(1) >= first
        {
            first = start;
            last = last.max(end);
        }
        // Every run that begins inside or right behind us.
        while let Some((&start, &end)) = self.runs.range(first..=last.saturating_add(1)).next() {
            self.runs.remove(&start);
            last = last.max(end);
        }
        self.runs.insert(first, last);
    }

    /// Takes `first..=last` out.
    pub(crate) fn remove(&mut self, first: u128, last: u128) {
        if first > last {
            return;
        }
        if let Some((&start, &end)) = self.runs.range(..first).next_back()
            && end >= first
        {
            // `first` is above `start`, so it is above zero.
            self.runs.insert(start, first - 1);
            if end > last {
                self.runs.insert(last + 1, end);
                return;
            }
        }
        while let Some((&start, &end)) = self.runs.range(first..=last).next() {
            self.runs.remove(&start);
            if end > last {
                self.runs.insert(last + 1, end);
            }
        }
    }

    /// The last number of the run that `value` is in; `None` when it is in none.
    pub(crate) fn end_of_run(&self, value: u128) -> Option<u128> {
        let (_, &end) = self.runs.range(..=value).next_back()?;
        (end >= value).then_some(end)
    }

    /// The lowest number from `from` on that is not in the set; `None` when all
    /// up to the greatest are.
    pub(crate) fn lowest_gap(&self, from: u128) -> Option<u128> {
        match self.end_of_run(from) {
            None => Some(from),
            // Runs never touch, so the number behind a run is in none.
            Some(end) => end.checked_add(1),
        }
    }

    /// How many of `first..=last` are in the set; saturates.
    pub(crate) fn count_within(&self, first: u128, last: u128) -> u128 {
        let before = self
            .end_of_run(first)
            .map_or(0, |end| (end.min(last) - first).saturating_add(1));
        // The run that holds `first` is counted above; those that begin later here.
        let Some(next) = first.checked_add(1).filter(|next| *next <= last) else {
            return before;
        };
        self.runs
            .range(next..=last)
            .fold(before, |sum, (&start, &end)| {
                sum.saturating_add((end.min(last) - start).saturating_add(1))
            })
    }

    /// The runs, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u128, u128)> + '_ {
        self.runs.iter().map(|(&first, &last)| (first, last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_ends_of_the_number_range_hold() {
        let mut set = Intervals::default();
        set.insert(0, u128::MAX);
        assert_eq!(set.lowest_gap(0), None);
        assert_eq!(set.count_within(0, u128::MAX), u128::MAX);
        set.remove(u128::MAX, u128::MAX);
        assert_eq!(set.lowest_gap(7), Some(u128::MAX));
        set.remove(0, 0);
        assert_eq!(set.lowest_gap(0), Some(0));
        assert_eq!(set.end_of_run(1), Some(u128::MAX - 1));
    }

    proptest! {
        #[test]
        fn they_behave_as_a_plain_set(
            ops in proptest::collection::vec((any::<bool>(), 0u128..200, 0u128..30), 0..60),
            from in 0u128..240,
        ) {
            let mut set = Intervals::default();
            let mut plain = BTreeSet::new();
            for (add, first, len) in ops {
                let last = first + len;
                if add {
                    set.insert(first, last);
                    plain.extend(first..=last);
                } else {
                    set.remove(first, last);
                    plain.retain(|n| !(first..=last).contains(n));
                }
                let all: BTreeSet<u128> = set.iter().flat_map(|(a, b)| a..=b).collect();
                prop_assert_eq!(&all, &plain);
                // Merged: no two runs touch.
                let runs: Vec<_> = set.iter().collect();
                prop_assert!(runs.windows(2).all(|w| w[0].1 + 1 < w[1].0));
            }
            prop_assert_eq!(set.lowest_gap(from), (from..).find(|n| !plain.contains(n)));
            prop_assert_eq!(
                set.count_within(from / 2, from),
                plain.range(from / 2..=from).count() as u128
            );
        }
    }
}
