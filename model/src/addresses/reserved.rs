//! What is never handed out: the reserved ranges of pools, and single addresses such as the
//! node's own.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::intervals::Intervals;
use crate::{Cidr, Family, cidr};

/// Reserved addresses of both families.
#[derive(Debug, Clone, Default)]
pub(super) struct Reserved {
    ranges: BTreeSet<Cidr>,
    v4: Intervals,
    v6: Intervals,
}

impl Reserved {
    /// Replaces what is reserved; whether that changed anything.
    pub(super) fn replace(&mut self, ranges: BTreeSet<Cidr>) -> bool {
        if ranges == self.ranges {
            return false;
        }
        let (mut v4, mut v6) = (Intervals::default(), Intervals::default());
        for range in &ranges {
            match range.family() {
                Family::V4 => &mut v4,
                Family::V6 => &mut v6,
            }
            .insert(range.first_bits(), range.last_bits());
        }
        *self = Self { ranges, v4, v6 };
        true
    }

    /// Those of one family.
    pub(super) fn of(&self, family: Family) -> &Intervals {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// Whether this address is among them.
    pub(super) fn holds(&self, address: IpAddr) -> bool {
        self.of(Family::of(address))
            .end_of_run(cidr::to_bits(address))
            .is_some()
    }
}
