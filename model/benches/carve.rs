//! "Next free block" with 100,000 blocks taken: under 100 µs by contract.

#![allow(clippy::unwrap_used, reason = "a bench is a test")]
#![allow(
    missing_docs,
    reason = "criterion's macros make undocumented functions"
)]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use viaduct_model::{Carver, Cidr, Pool};

const TAKEN: u128 = 100_000;

fn pool(cidr: &str, block: u8) -> Pool {
    let cidr: Cidr = cidr.parse().unwrap();
    Pool::new(cidr, Some(block))
}

/// A carver with the first 100,000 blocks taken, but for every `hole`th when given.
fn filled(pool: &Pool, hole: Option<u128>) -> Carver {
    let mut carver = Carver::new(pool);
    let family = pool.cidr.family();
    let step = 1u128 << (family.bits() - pool.block_len());
    let (mut place, mut taken) = (0u128, 0u128);
    while taken < TAKEN {
        if hole.is_none_or(|every| place % every != every - 1) {
            let bits = pool.cidr.first_bits() + place * step;
            let block = Cidr::new(family.address(bits), pool.block_len()).unwrap();
            assert!(carver.take(&block));
            taken += 1;
        }
        place += 1;
    }
    carver
}

fn next_free(c: &mut Criterion) {
    for (name, pool) in [
        ("10.0.0.0/8 with /26", pool("10.0.0.0/8", 26)),
        ("fd00:64::/48 with /122", pool("fd00:64::/48", 122)),
    ] {
        let mut group = c.benchmark_group(name);
        let dense = filled(&pool, None);
        group.bench_function("next_free, dense", |b| {
            b.iter(|| black_box(&dense).next_free());
        });
        let scattered = filled(&pool, Some(2));
        group.bench_function("next_free, every second one free", |b| {
            b.iter(|| black_box(&scattered).next_free());
        });
        for (what, mut carver) in [("dense", dense), ("scattered", scattered)] {
            group.bench_function(format!("carve one and free it, {what}"), |b| {
                b.iter(|| {
                    let block = carver.next_free().unwrap();
                    carver.take(&block);
                    carver.free(&block);
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, next_free);
criterion_main!(benches);
