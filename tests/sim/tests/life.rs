//! Runs of the simulation: some seeds, or those that `VIADUCT_SIM_SEEDS` names (`5` or
//! `1-40`), each of `VIADUCT_SIM_STEPS` steps. `VIADUCT_SIM_TRACE=10.0.1.0/28` tells what
//! happens to one block.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::ops::RangeInclusive;

use viaduct_sim::{Tally, World};

fn steps(otherwise: u64) -> u64 {
    match std::env::var("VIADUCT_SIM_STEPS") {
        Ok(steps) => steps.parse().unwrap(),
        Err(_) => otherwise,
    }
}

/// The seeds that are asked for.
fn seeds() -> Option<RangeInclusive<u64>> {
    let asked = std::env::var("VIADUCT_SIM_SEEDS").ok()?;
    let (first, last) = asked.split_once('-').unwrap_or((&asked, &asked));
    Some(first.parse().unwrap()..=last.parse().unwrap())
}

fn live(seed: u64, steps: u64) -> Tally {
    match World::new(seed).run(steps) {
        Ok(tally) => {
            println!("seed {seed}: {tally:?}");
            // A run in which nothing happens proves nothing.
            if tally.steps >= 1_000_000 {
                assert!(tally.handed_out > 10_000, "{tally:?}");
                for seen in [
                    tally.put_back,
                    tally.cut_off,
                    tally.reboots,
                    tally.deleted,
                    tally.peaces,
                ] {
                    assert!(seen > 0, "{tally:?}");
                }
            }
            tally
        }
        Err(violation) => panic!(
            "seed {seed}, {violation}\nagain: VIADUCT_SIM_SEEDS={seed} VIADUCT_SIM_STEPS={steps} \
             cargo test -p viaduct-sim --test life no_address -- --nocapture"
        ),
    }
}

#[test]
fn no_address_has_two_owners_and_none_is_lost_in_a_million_steps() {
    match seeds() {
        None => drop(live(1, steps(1_000_000))),
        Some(seeds) => {
            let wrong: Vec<u64> = seeds
                .filter(|seed| {
                    let seed = *seed;
                    std::panic::catch_unwind(|| live(seed, steps(1_000_000))).is_err()
                })
                .collect();
            assert!(wrong.is_empty(), "seeds {wrong:?}");
        }
    }
}

/// Each of them has found a fault once, the last after 220,712 steps; of even ones the nodes
/// that vanished lose their blocks sooner than they stop trusting them.
#[test]
fn what_was_found_once_is_not_there_any_more() {
    for seed in [5, 7, 9, 12, 26] {
        live(seed, steps(250_000));
    }
}

#[test]
fn a_seed_is_the_same_run_each_time() {
    assert_eq!(live(7, 20_000), live(7, 20_000));
}
