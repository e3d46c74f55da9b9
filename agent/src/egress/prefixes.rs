//! Sets of addresses as prefixes, in one spelling only.
//!
//! An interval set has no order and takes no overlaps, and `nft` may spell what it
//! was given differently (two halves as a whole, a range as prefixes). Both sides of
//! a comparison are therefore brought to the fewest prefixes. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

use viaduct_model::cidr::to_bits;
use viaduct_model::{Cidr, Family};

/// The fewest prefixes that hold the same addresses.
pub fn fewest(prefixes: impl IntoIterator<Item = Cidr>) -> BTreeSet<Cidr> {
    let mut ranges: Vec<(Family, u128, u128)> = prefixes
        .into_iter()
        .map(|p| (p.family(), p.first_bits(), p.last_bits()))
        .collect();
    ranges.sort_unstable();
    let mut result = BTreeSet::new();
    let mut ranges = ranges.into_iter();
    let Some(mut run) = ranges.next() else {
        return result;
    };
    for (family, first, last) in ranges {
        if family == run.0 && first <= run.2.saturating_add(1) {
            run.2 = run.2.max(last);
        } else {
            split(run.0, run.1, run.2, &mut result);
            run = (family, first, last);
        }
    }
    split(run.0, run.1, run.2, &mut result);
    result
}

/// The prefixes that a range of addresses, both ends inside, consists of; `None`
/// when the ends are of two families or in the wrong order.
pub fn of_range(first: IpAddr, last: IpAddr) -> Option<BTreeSet<Cidr>> {
    let family = Family::of(first);
    let (first_bits, last_bits) = (to_bits(first), to_bits(last));
    if family != Family::of(last) || first_bits > last_bits {
        return None;
    }
    let mut result = BTreeSet::new();
    split(family, first_bits, last_bits, &mut result);
    Some(result)
}

/// Cuts `first..=last` into prefixes, the widest possible each time.
fn split(family: Family, mut first: u128, last: u128, into: &mut BTreeSet<Cidr>) {
    let width = u32::from(family.bits());
    loop {
        // As wide as the start is aligned for and the end allows.
        let mut free = first.trailing_zeros().min(width);
        while free > 0 && first | low_ones(free) > last {
            free -= 1;
        }
        let len = u8::try_from(width - free).unwrap_or(family.bits());
        into.extend(Cidr::new(family.address(first), len));
        match (first | low_ones(free)).checked_add(1) {
            Some(next) if next <= last => first = next,
            _ => return,
        }
    }
}

/// A number whose lowest `count` bits are ones, for 0 to 128.
fn low_ones(count: u32) -> u128 {
    u128::MAX.checked_shr(128 - count).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(prefixes: &[&str]) -> BTreeSet<Cidr> {
        prefixes.iter().map(|p| p.parse().unwrap()).collect()
    }

    #[test]
    fn covered_prefixes_go_and_halves_become_a_whole() {
        assert_eq!(
            fewest(set(&["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32"])),
            set(&["10.0.0.0/8"])
        );
        assert_eq!(
            fewest(set(&["10.0.0.0/25", "10.0.0.128/25", "10.0.1.0/24"])),
            set(&["10.0.0.0/23"])
        );
        assert_eq!(
            fewest(set(&["10.0.1.0/24", "10.0.2.0/24"])),
            set(&["10.0.1.0/24", "10.0.2.0/24"])
        );
        assert_eq!(
            fewest(set(&["0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"])),
            set(&["0.0.0.0/0", "::/0"])
        );
    }

    #[test]
    fn ranges_become_prefixes() {
        let range = |a: &str, b: &str| of_range(a.parse().unwrap(), b.parse().unwrap());
        assert_eq!(
            range("10.0.0.1", "10.0.0.4"),
            Some(set(&["10.0.0.1/32", "10.0.0.2/31", "10.0.0.4/32"]))
        );
        assert_eq!(
            range("0.0.0.0", "255.255.255.255"),
            Some(set(&["0.0.0.0/0"]))
        );
        assert_eq!(range("10.0.0.2", "10.0.0.1"), None);
        assert_eq!(range("10.0.0.2", "::1"), None);
    }

    proptest! {
        #[test]
        fn the_same_addresses_have_one_spelling(
            given in prop::collection::vec((0u32..512, 23u8..=32), 0..12),
            probe in 0u32..512,
        ) {
            let prefixes: Vec<Cidr> = given
                .iter()
                .map(|(low, len)| Cidr::new(std::net::Ipv4Addr::from_bits(0x0a00_0000 + low).into(), *len).unwrap())
                .collect();
            let few = fewest(prefixes.iter().copied());
            let address: IpAddr = std::net::Ipv4Addr::from_bits(0x0a00_0000 + probe).into();
            prop_assert_eq!(
                prefixes.iter().any(|p| p.contains(address)),
                few.iter().any(|p| p.contains(address))
            );
            for (a, b) in few.iter().flat_map(|a| few.iter().map(move |b| (a, b))) {
                prop_assert!(a == b || !a.overlaps(b));
            }
            // Cut into single addresses and put together again, it is the same.
            let singles = few.iter().flat_map(|p| {
                (p.first_bits()..=p.last_bits()).map(|bits| Cidr::host(Family::V4.address(bits)))
            });
            prop_assert_eq!(fewest(singles), few.clone());
        }
    }
}
