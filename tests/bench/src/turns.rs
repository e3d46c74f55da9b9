//! The rule by which two sides are compared that differ by less than the machine's
//! own noise: both have short turns close to each other, who begins alternates
//! (A B B A), and **every** turn counts. A turn's number is divided by that of the
//! turn beside it, and the median of these ratios is the result: what disturbs the
//! machine longer than a turn hits both alike, and what is shorter is an outlier that
//! a median does not see. No turn is chosen for being good.

use anyhow::Result;

/// Both sides' numbers; the n-th of each were measured one after the other.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Turns {
    /// The first side's.
    pub ours: Vec<f64>,
    /// The other's.
    pub theirs: Vec<f64>,
}

impl Turns {
    /// Has both sides take `count` more turns.
    ///
    /// # Errors
    /// The first that a side has.
    pub(crate) fn take(
        &mut self,
        count: usize,
        ours: impl Fn() -> Result<f64>,
        theirs: impl Fn() -> Result<f64>,
    ) -> Result<()> {
        for turn in 0..count {
            let (one, other) = if turn % 2 == 0 {
                let one = ours()?;
                (one, theirs()?)
            } else {
                let other = theirs()?;
                (ours()?, other)
            };
            self.ours.push(one);
            self.theirs.push(other);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn who_begins_alternates_and_every_turn_counts() {
        let order = RefCell::new(String::new());
        let side = |name: char, number: f64| {
            let order = &order;
            move || {
                order.borrow_mut().push(name);
                Ok(number + order.borrow().len() as f64)
            }
        };
        let mut turns = Turns::default();
        turns.take(4, side('a', 0.0), side('b', 100.0)).unwrap();
        assert_eq!(*order.borrow(), "abbaabba");
        assert_eq!(turns.ours, [1.0, 4.0, 5.0, 8.0]);
        assert_eq!(turns.theirs, [102.0, 103.0, 106.0, 107.0]);
    }

    #[test]
    fn a_side_that_fails_ends_it() {
        let mut turns = Turns::default();
        let fails = || anyhow::bail!("broken");
        assert!(turns.take(2, || Ok(1.0), fails).is_err());
        assert_eq!(turns, Turns::default());
    }
}
