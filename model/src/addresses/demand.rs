//! How many blocks a node wants, which it can spare, and its own address.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::{BlockUsage, Cidr, Family};

/// How many blocks of `family` a node wants: one at least, and one more than it
/// has while fewer than `watermark` of its addresses are free. `serving` are the
/// blocks that it owns and hands out from.
pub fn wants_blocks(serving: &BTreeMap<Cidr, BlockUsage>, family: Family, watermark: u32) -> u32 {
    let of_family = || serving.iter().filter(|(block, _)| block.family() == family);
    let owned = u32::try_from(of_family().count()).unwrap_or(u32::MAX);
    let free: u64 = of_family().map(|(_, usage)| u64::from(usage.free)).sum();
    if owned == 0 || free < u64::from(watermark) {
        owned.saturating_add(1)
    } else {
        owned
    }
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
