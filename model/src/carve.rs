//! Carving blocks out of a pool without enumerating it.
//!
//! A [`Carver`] is the index of one pool's taken blocks. The controller owns one
//! per pool and asks it for the lowest free block. It never looks at more than
//! what is taken, so a /8 and an IPv6 /48 answer alike. It decides nothing about
//! nodes and never writes anywhere.
//!
//! Blocks are counted by their *ordinal*, their place in the pool in units of the
//! pool's block size. A block that lies wholly inside reserved ranges is never
//! carved; one that is reserved in part is usable as long as a single address of
//! it is, because the address manager skips the reserved ones.

use std::collections::BTreeSet;

use crate::intervals::Intervals;
use crate::{Cidr, Family, Pool};

/// Which blocks of one pool are taken, and which is the lowest free one.
#[derive(Debug, Clone)]
pub struct Carver {
    cidr: Cidr,
    block_len: u8,
    /// The greatest ordinal; `None` when no block fits into the pool.
    last: Option<u128>,
    /// Ordinals that are reserved as a whole.
    reserved: Intervals,
    /// Ordinals that are reserved or touched by a taken block.
    busy: Intervals,
    /// How many ordinals are busy; saturates.
    busy_count: u128,
    /// First and last address of the taken blocks, whatever their size.
    taken: BTreeSet<(u128, u128)>,
}

impl Carver {
    /// An index of `pool` with nothing taken.
    pub fn new(pool: &Pool) -> Self {
        let (cidr, block_len) = (pool.cidr, pool.block_len());
        let fits = cidr.prefix_len() <= block_len && block_len <= cidr.family().bits();
        let mut carver = Self {
            cidr,
            block_len,
            last: None,
            reserved: Intervals::default(),
            busy: Intervals::default(),
            busy_count: 0,
            taken: BTreeSet::new(),
        };
        if !fits {
            return carver;
        }
        let last = carver.ordinal(cidr.last_bits());
        carver.last = Some(last);
        carver.reserved = carver.wholly_inside(&merged(&cidr, &pool.reserved));
        carver.busy = carver.reserved.clone();
        carver.busy_count = carver.busy.count_within(0, last);
        carver
    }

    /// Marks a block as taken, whatever its size; every block of the pool's own
    /// size that it touches is then no longer free. Blocks outside the pool are
    /// ignored. Says whether it is news.
    pub fn take(&mut self, block: &Cidr) -> bool {
        let Some((first, last)) = self.ordinals_of(block) else {
            return false;
        };
        if !self.taken.insert((block.first_bits(), block.last_bits())) {
            return false;
        }
        self.occupy(first, last);
        true
    }

    /// Marks a block as no longer taken. Says whether it was.
    pub fn free(&mut self, block: &Cidr) -> bool {
        let Some((first, last)) = self.ordinals_of(block) else {
            return false;
        };
        if !self.taken.remove(&(block.first_bits(), block.last_bits())) {
            return false;
        }
        self.busy_count = self
            .busy_count
            .saturating_sub(self.busy.count_within(first, last));
        self.busy.remove(first, last);
        // Whatever else holds these ordinals holds them still.
        for (from, to) in self.held_within(first, last) {
            self.occupy(from, to);
        }
        true
    }

    /// The lowest free block.
    pub fn next_free(&self) -> Option<Cidr> {
        let ordinal = self.busy.lowest_gap(0)?;
        if ordinal > self.last? {
            return None;
        }
        Cidr::new(
            self.family().address(self.start_of(ordinal)),
            self.block_len,
        )
        .ok()
    }

    /// How many blocks the pool can hold, those reserved as a whole left out;
    /// saturates.
    pub fn total(&self) -> u128 {
        self.last.map_or(0, |last| {
            last.saturating_add(1)
                .saturating_sub(self.reserved.count_within(0, last))
        })
    }

    /// How many blocks are free; saturates.
    pub fn free_count(&self) -> u128 {
        self.last.map_or(0, |last| {
            last.saturating_add(1).saturating_sub(self.busy_count)
        })
    }

    fn family(&self) -> Family {
        self.cidr.family()
    }

    fn shift(&self) -> u32 {
        u32::from(self.family().bits().saturating_sub(self.block_len))
    }

    /// The ordinal of the block that holds an address of the pool.
    fn ordinal(&self, bits: u128) -> u128 {
        // A /0 of IPv6 in one block would shift by 128, which is 0 blocks on.
        (bits - self.cidr.first_bits())
            .checked_shr(self.shift())
            .unwrap_or(0)
    }

    /// The first address of the block with this ordinal.
    fn start_of(&self, ordinal: u128) -> u128 {
        self.cidr.first_bits() + ordinal.checked_shl(self.shift()).unwrap_or(0)
    }

    /// First and last ordinal that `block` touches.
    fn ordinals_of(&self, block: &Cidr) -> Option<(u128, u128)> {
        self.last?;
        if !self.cidr.overlaps(block) {
            return None;
        }
        let first = block.first_bits().max(self.cidr.first_bits());
        let last = block.last_bits().min(self.cidr.last_bits());
        Some((self.ordinal(first), self.ordinal(last)))
    }

    fn occupy(&mut self, first: u128, last: u128) {
        let before = self.busy.count_within(first, last);
        self.busy.insert(first, last);
        self.busy_count = self
            .busy_count
            .saturating_add((last - first).saturating_add(1))
            .saturating_sub(before);
    }

    /// The ordinal ranges, cut to `first..=last`, that are reserved or touched by
    /// blocks still taken.
    fn held_within(&self, first: u128, last: u128) -> Vec<(u128, u128)> {
        let from = self.start_of(first);
        let to = self.start_of(last) + self.host_mask();
        let mut held: Vec<(u128, u128)> = self
            .taken
            .range((from, 0)..=(to, u128::MAX))
            .copied()
            .collect();
        // Blocks are CIDRs, so one that begins before `from` and reaches it covers
        // it: one look-up for each length that such a block can have.
        for len in 0..self.block_len {
            if let Ok(outer) = Cidr::new(self.family().address(from), len) {
                let span = (outer.first_bits(), outer.last_bits());
                if self.taken.contains(&span) {
                    held.push(span);
                }
            }
        }
        let cut = |bits: u128| self.ordinal(bits.clamp(from, to));
        let blocks = held.iter().map(|&(a, b)| (cut(a), cut(b)));
        let reserved = self
            .reserved
            .iter()
            .filter(|&(a, b)| a <= last && b >= first)
            .map(|(a, b)| (a.max(first), b.min(last)));
        blocks.chain(reserved).collect()
    }

    fn host_mask(&self) -> u128 {
        1u128
            .checked_shl(self.shift())
            .map_or(u128::MAX, |size| size - 1)
    }

    /// The ordinals of blocks that lie wholly inside `ranges` (of addresses).
    fn wholly_inside(&self, ranges: &Intervals) -> Intervals {
        let mut inside = Intervals::default();
        for (first, last) in ranges.iter() {
            // Round up to the first block that begins here, down to the last that ends here.
            let mask = self.host_mask();
            let Some(from) = first.checked_add(mask).map(|bits| bits & !mask) else {
                continue;
            };
            let to = if last & mask == mask {
                last
            } else if let Some(to) = (last & !mask).checked_sub(1) {
                to
            } else {
                continue;
            };
            if from <= to {
                inside.insert(self.ordinal(from), self.ordinal(to));
            }
        }
        inside
    }
}

/// `ranges` as merged addresses, cut to `cidr`.
fn merged(cidr: &Cidr, ranges: &[Cidr]) -> Intervals {
    let mut merged = Intervals::default();
    for range in ranges.iter().filter(|range| range.overlaps(cidr)) {
        merged.insert(
            range.first_bits().max(cidr.first_bits()),
            range.last_bits().min(cidr.last_bits()),
        );
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(s: &str) -> Cidr {
        s.parse().unwrap()
    }

    fn carver(pool: &str, block: u8, reserved: &[&str]) -> Carver {
        Carver::new(&Pool {
            reserved: reserved.iter().map(|r| cidr(r)).collect(),
            ..Pool::new(cidr(pool), Some(block))
        })
    }

    fn drain(carver: &mut Carver) -> Vec<String> {
        let mut out = Vec::new();
        while let Some(block) = carver.next_free() {
            assert!(carver.take(&block));
            out.push(block.to_string());
        }
        out
    }

    #[test]
    fn the_lowest_free_block_comes_first_and_again_once_freed() {
        let mut carver = carver("10.0.0.0/24", 26, &[]);
        assert_eq!(carver.total(), 4);
        assert_eq!(
            drain(&mut carver),
            [
                "10.0.0.0/26",
                "10.0.0.64/26",
                "10.0.0.128/26",
                "10.0.0.192/26"
            ]
        );
        assert_eq!((carver.free_count(), carver.next_free()), (0, None));
        assert!(carver.free(&cidr("10.0.0.128/26")));
        assert!(!carver.free(&cidr("10.0.0.128/26")));
        assert!(carver.free(&cidr("10.0.0.64/26")));
        assert_eq!(carver.free_count(), 2);
        assert_eq!(carver.next_free(), Some(cidr("10.0.0.64/26")));
    }

    #[test]
    fn blocks_wholly_reserved_are_skipped_and_partly_reserved_ones_are_not() {
        // Two halves reserve one block together; .64/26 is reserved but for one address.
        let mut carver = carver(
            "10.0.0.0/24",
            26,
            &[
                "10.0.0.0/27",
                "10.0.0.32/27",
                "10.0.0.64/27",
                "10.0.0.96/28",
            ],
        );
        assert_eq!((carver.total(), carver.free_count()), (3, 3));
        assert_eq!(carver.next_free(), Some(cidr("10.0.0.64/26")));
        // Freeing a foreign block does not free what is reserved.
        assert!(carver.take(&cidr("10.0.0.0/25")));
        assert_eq!(carver.next_free(), Some(cidr("10.0.0.128/26")));
        assert!(carver.free(&cidr("10.0.0.0/25")));
        assert_eq!(
            drain(&mut carver),
            ["10.0.0.64/26", "10.0.0.128/26", "10.0.0.192/26"]
        );
    }

    #[test]
    fn blocks_of_another_size_are_respected() {
        let mut carver = carver("10.0.0.0/24", 26, &[]);
        for block in [
            "10.0.0.0/28",
            "10.0.0.16/28",
            "10.0.0.64/25",
            "10.0.0.128/25",
        ] {
            assert!(carver.take(&cidr(block)), "{block}");
        }
        // "10.0.0.64/25" is normalised to 10.0.0.0/25.
        assert_eq!(carver.free_count(), 0);
        assert!(carver.free(&cidr("10.0.0.0/25")));
        assert_eq!(carver.next_free(), Some(cidr("10.0.0.64/26")));
        assert!(carver.free(&cidr("10.0.0.0/28")));
        assert_eq!(carver.next_free(), Some(cidr("10.0.0.64/26")));
        assert!(carver.free(&cidr("10.0.0.16/28")));
        assert_eq!(carver.next_free(), Some(cidr("10.0.0.0/26")));
        // One that is larger than the pool, and one that has nothing to do with it.
        assert!(carver.take(&cidr("10.0.0.0/8")));
        assert_eq!(carver.next_free(), None);
        assert!(!carver.take(&cidr("10.0.1.0/26")) || carver.next_free().is_none());
        assert!(!carver.take(&cidr("fd00::/122")));
        assert!(carver.free(&cidr("10.0.0.0/8")));
        assert_eq!(carver.free_count(), 2);
    }

    #[test]
    fn the_greatest_pools_neither_overflow_nor_take_time() {
        let huge = carver("4000::/2", 128, &[]);
        assert_eq!(huge.total(), 1 << 126);
        assert_eq!(huge.next_free(), Some(cidr("4000::/128")));
        let all = carver("::/0", 128, &["::/1"]);
        assert_eq!(all.next_free(), Some(cidr("8000::/128")));
        assert_eq!(carver("::/0", 0, &[]).next_free(), Some(cidr("::/0")));
        assert_eq!(carver("::/0", 0, &["::/0"]).next_free(), None);
        assert_eq!(
            carver("255.255.255.0/24", 32, &["255.255.255.0/25"]).next_free(),
            Some(cidr("255.255.255.128/32"))
        );
    }

    #[test]
    fn a_pool_that_no_block_fits_into_has_none() {
        let none = carver("10.0.0.0/24", 16, &[]);
        assert_eq!((none.total(), none.next_free()), (0, None));
    }
}
