//! Properties of the carver over arbitrary histories: blocks never overlap, never
//! leave the pool, never lie in reserved ranges, and the lowest free one is given.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::BTreeSet;

use proptest::prelude::*;
use viaduct_model::{Carver, Cidr, Pool};

#[derive(Debug, Clone)]
enum Op {
    Carve,
    Free(usize),
    /// A block of any size at any place, as another pool setting or hand left it.
    Foreign(u8, u8),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        5 => Just(Op::Carve),
        3 => any::<usize>().prop_map(Op::Free),
        1 => (any::<u8>(), 22u8..=32).prop_map(|(place, len)| Op::Foreign(place, len)),
    ]
}

fn pools() -> impl Strategy<Value = Pool> {
    let v4 = (
        24u8..=26,
        0u8..=4,
        prop::collection::vec((any::<u8>(), 24u8..=32), 0..6),
    )
        .prop_map(|(len, more, reserved)| {
            let pool = Cidr::new("10.9.8.0".parse().unwrap(), len).unwrap();
            let reserved = reserved
                .into_iter()
                .map(|(place, len)| at(&pool, place, len))
                .filter(|r| pool.covers(r))
                .collect();
            Pool {
                reserved,
                ..Pool::new(pool, Some(len + more))
            }
        });
    let v6 = (
        118u8..=122,
        0u8..=5,
        prop::collection::vec((any::<u8>(), 120u8..=128), 0..6),
    )
        .prop_map(|(len, more, reserved)| {
            let pool = Cidr::new("fd00:9::".parse().unwrap(), len).unwrap();
            let reserved = reserved
                .into_iter()
                .map(|(place, len)| at(&pool, place, len))
                .filter(|r| pool.covers(r))
                .collect();
            Pool {
                reserved,
                ..Pool::new(pool, Some(len + more))
            }
        });
    prop_oneof![v4, v6]
}

fn at(pool: &Cidr, place: u8, len: u8) -> Cidr {
    let bits = pool.first_bits() + u128::from(place);
    Cidr::new(pool.family().address(bits), len).unwrap()
}

/// All blocks of the pool that have an address which nothing reserves.
fn usable(pool: &Pool) -> Vec<Cidr> {
    let step = 1u128 << (pool.cidr.family().bits() - pool.block_len());
    (0..pool.cidr.size() / step)
        .map(|n| {
            let bits = pool.cidr.first_bits() + n * step;
            Cidr::new(pool.cidr.family().address(bits), pool.block_len()).unwrap()
        })
        .filter(|block| {
            (block.first_bits()..=block.last_bits()).any(|bits| {
                let address = pool.cidr.family().address(bits);
                !pool.reserved.iter().any(|r| r.contains(address))
            })
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn blocks_stay_apart_inside_and_unreserved(
        pool in pools(),
        ops in prop::collection::vec(op(), 1..80),
    ) {
        let mut carver = Carver::new(&pool);
        let usable = usable(&pool);
        prop_assert_eq!(carver.total(), usable.len() as u128);
        let mut taken: BTreeSet<Cidr> = BTreeSet::new();
        for op in ops {
            match op {
                Op::Carve => if let Some(block) = carver.next_free() {
                    prop_assert!(pool.cidr.covers(&block));
                    prop_assert!(!taken.iter().any(|t| t.overlaps(&block)));
                    prop_assert!(carver.take(&block));
                    taken.insert(block);
                },
                Op::Free(which) => if !taken.is_empty() {
                    let block = *taken.iter().nth(which % taken.len()).unwrap();
                    prop_assert!(carver.free(&block));
                    taken.remove(&block);
                },
                Op::Foreign(place, len) => {
                    let len = if pool.cidr.family().bits() == 32 { len } else { len + 96 };
                    let block = at(&pool.cidr, place, len);
                    if pool.cidr.overlaps(&block) {
                        prop_assert_eq!(carver.take(&block), taken.insert(block));
                    } else {
                        prop_assert!(!carver.take(&block));
                    }
                }
            }
            let free: Vec<&Cidr> = usable
                .iter()
                .filter(|block| !taken.iter().any(|t| t.overlaps(block)))
                .collect();
            prop_assert_eq!(carver.next_free(), free.first().map(|b| **b));
            prop_assert_eq!(carver.free_count(), free.len() as u128);
        }
    }
}
