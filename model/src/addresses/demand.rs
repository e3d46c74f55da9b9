//! How many blocks a node wants, which it can spare, and its own address.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::{BlockUsage, Cidr, Family};

/// How many blocks of `family` a node wants: one at least, and so many more than it has
/// that `watermark` addresses are free. A new one is taken to be as large as those that
/// it owns on average.
pub fn wants_blocks(owned: &BTreeMap<Cidr, BlockUsage>, family: Family, watermark: u32) -> u32 {
    let of_family = || owned.iter().filter(|(block, _)| block.family() == family);
    let count = u64::try_from(of_family().count()).unwrap_or(u64::MAX);
    let free: u64 = of_family().map(|(_, usage)| u64::from(usage.free)).sum();
    let used: u64 = of_family().map(|(_, usage)| u64::from(usage.used)).sum();
    let size = (free + used).checked_div(count).unwrap_or(0).max(1);
    let missing = u64::from(watermark).saturating_sub(free);
    let more = if count == 0 {
        1
    } else {
        missing.div_ceil(size)
    };
    u32::try_from(count.saturating_add(more)).unwrap_or(u32::MAX)
}

/// How many blocks of `family` a node asks for that owns `owned`, those that it gives
/// back left out, while `waiting` pods wait for an address. What it owns and does not
/// serve now it will serve soon: a grant that is to be proved, or to be renewed. Its
/// addresses count, or a burst would ask for the same blocks again while they come.
pub fn asks_for(owned: &BTreeMap<Cidr, BlockUsage>, family: Family, waiting: u32) -> u32 {
    let of_family = owned.iter().filter(|(cidr, _)| cidr.family() == family);
    let watermark = watermark(of_family.map(|(_, usage)| usage), waiting);
    wants_blocks(owned, family, watermark)
}

/// A block of `family` that the node can give back: empty, not the one that holds
/// its own address `keep`, and leaving twice `watermark` free without it, so that
/// it is not asked for again at once. The last one in address order.
pub fn surplus_block(
    serving: &BTreeMap<Cidr, BlockUsage>,
    family: Family,
    keep: Option<IpAddr>,
    watermark: u32,
) -> Option<Cidr> {
    let of_family = || serving.iter().filter(|(block, _)| block.family() == family);
    let free: u64 = of_family().map(|(_, usage)| u64::from(usage.free)).sum();
    // The last one is never given back, whether or not the own address is known.
    if of_family().count() < 2 {
        return None;
    }
    of_family()
        .rev()
        .find(|(block, usage)| {
            usage.used == 0
                && !keep.is_some_and(|address| block.contains(address))
                && free.saturating_sub(u64::from(usage.free)) >= 2 * u64::from(watermark)
        })
        .map(|(&block, _)| block)
}

/// Finds blocks that a node can spare, once they could be spared for long enough.
#[derive(Debug, Clone)]
pub struct Surplus {
    after_ms: u64,
    since: BTreeMap<Cidr, u64>,
}

impl Surplus {
    /// A block counts as surplus when it was one for this long.
    pub fn new(after: Duration) -> Self {
        Self {
            after_ms: u64::try_from(after.as_millis()).unwrap_or(u64::MAX),
            since: BTreeMap::new(),
        }
    }

    /// The next block to be given back, if its time has come. `serving` are the blocks
    /// that the node hands out from; one that holds an address of `keep` stays.
    pub fn due(
        &mut self,
        serving: &BTreeMap<Cidr, BlockUsage>,
        keep: Option<IpAddr>,
        now_ms: u64,
    ) -> Option<Cidr> {
        let mut rest = serving.clone();
        let mut since = BTreeMap::new();
        let mut due = None;
        for family in Family::ALL {
            while let Some(block) = surplus_block(&rest, family, keep, watermark(rest.values(), 0))
            {
                rest.remove(&block);
                let at = self.since.get(&block).copied().unwrap_or(now_ms);
                since.insert(block, at);
                if due.is_none() && now_ms.saturating_sub(at) >= self.after_ms {
                    due = Some(block);
                }
            }
        }
        self.since = since;
        due
    }

    /// When the next block's time comes, if it can be spared for as long.
    pub fn due_at(&self) -> Option<u64> {
        let since = self.since.values().min()?;
        Some(since.saturating_add(self.after_ms))
    }
}

/// How many addresses a node keeps free: a quarter of those that it owns, at most 16,
/// and one for each pod that waits for one.
pub fn watermark<'a>(usage: impl IntoIterator<Item = &'a BlockUsage>, waiting: u32) -> u32 {
    let owned: u64 = usage
        .into_iter()
        .map(|block| u64::from(block.free) + u64::from(block.used))
        .sum();
    let quarter = u32::try_from((owned / 4).min(16)).unwrap_or(16);
    quarter.saturating_add(waiting)
}

/// The first address of `block` that no reserved range holds: a node's own
/// address when this is its first block.
pub fn first_usable<'a>(
    block: &Cidr,
    reserved: impl IntoIterator<Item = &'a Cidr>,
) -> Option<IpAddr> {
    let mut intervals = crate::intervals::Intervals::default();
    for range in reserved {
        if range.overlaps(block) {
            intervals.insert(range.first_bits(), range.last_bits());
        }
    }
    let bits = intervals.lowest_gap(block.first_bits())?;
    (bits <= block.last_bits()).then(|| block.family().address(bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(usage: &[(&str, u32, u32)]) -> BTreeMap<Cidr, BlockUsage> {
        usage
            .iter()
            .map(|&(block, used, free)| (block.parse().unwrap(), BlockUsage { used, free }))
            .collect()
    }

    #[test]
    fn one_block_at_least_and_the_next_under_the_watermark() {
        assert_eq!(wants_blocks(&blocks(&[]), Family::V4, 16), 1);
        let one = blocks(&[("10.0.0.0/26", 47, 16)]);
        assert_eq!(wants_blocks(&one, Family::V4, 16), 1);
        assert_eq!(wants_blocks(&one, Family::V4, 17), 2);
        assert_eq!(wants_blocks(&one, Family::V6, 0), 1);
    }

    #[test]
    fn all_blocks_that_are_missing_are_asked_for_at_once() {
        let small = blocks(&[("10.0.0.0/28", 15, 0)]);
        let watermark = watermark(small.values(), 95);
        // 95 that wait and 3 to spare, from blocks of 15 addresses.
        assert_eq!(wants_blocks(&small, Family::V4, watermark), 8);
    }

    #[test]
    fn blocks_that_are_only_to_be_proved_are_not_asked_for_again() {
        let mut owned = blocks(&[("10.0.0.0/28", 15, 0)]);
        assert_eq!(asks_for(&owned, Family::V4, 95), 8);
        // They are there, and 95 pods wait still, until the first of them is proved.
        for third in 1..8u8 {
            let block = format!("10.0.0.{}/28", third * 16);
            owned.extend(blocks(&[(block.as_str(), 0, 16)]));
        }
        assert_eq!(asks_for(&owned, Family::V4, 95), 8);
        assert_eq!(asks_for(&blocks(&[]), Family::V4, 95), 1);
    }

    #[test]
    fn a_block_is_spared_when_it_was_dispensable_all_the_time() {
        let mut surplus = Surplus::new(Duration::from_secs(600));
        let keep = Some("10.0.0.0".parse().unwrap());
        let two = |used| blocks(&[("10.0.0.0/26", 9, 54), ("10.0.0.64/26", used, 64 - used)]);
        assert_eq!(surplus.due(&two(0), keep, 1000), None);
        assert!(surplus.due_at().is_some());
        assert_eq!(surplus.due(&two(1), keep, 300_000), None);
        assert!(surplus.due_at().is_none());
        assert_eq!(surplus.due(&two(0), keep, 400_000), None);
        assert_eq!(surplus.due(&two(0), keep, 999_999), None);
        let due = surplus.due(&two(0), keep, 1_000_000);
        assert_eq!(due.map(|b| b.to_string()).as_deref(), Some("10.0.0.64/26"));
    }

    #[test]
    fn only_an_empty_surplus_block_is_given_back() {
        let keep = Some("10.0.0.0".parse().unwrap());
        let spare = |usage: &[(&str, u32, u32)]| {
            surplus_block(&blocks(usage), Family::V4, keep, 16).map(|b| b.to_string())
        };
        let (a, b, c) = ("10.0.0.0/26", "10.0.0.64/26", "10.0.0.128/26");
        assert_eq!(spare(&[(a, 0, 63)]), None);
        assert_eq!(spare(&[(a, 0, 63), (b, 0, 64)]).as_deref(), Some(b));
        assert_eq!(spare(&[(a, 0, 63), (b, 1, 63)]), None);
        assert_eq!(spare(&[(a, 40, 23), (b, 0, 64)]), None);
        assert_eq!(
            spare(&[(a, 9, 54), (b, 0, 64), (c, 0, 64)]).as_deref(),
            Some(c)
        );
    }

    #[test]
    fn the_own_address_is_the_first_that_is_not_reserved() {
        let block: Cidr = "10.0.0.0/30".parse().unwrap();
        let reserved: Vec<Cidr> = ["10.0.0.0/32", "10.0.0.1/32", "fd00::/64"]
            .map(|r| r.parse().unwrap())
            .to_vec();
        assert_eq!(first_usable(&block, []), Some(block.first()));
        assert_eq!(
            first_usable(&block, &reserved),
            Some("10.0.0.2".parse().unwrap())
        );
        assert_eq!(first_usable(&block, [&block]), None);
    }
}
