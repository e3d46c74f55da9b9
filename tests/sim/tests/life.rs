//! Runs of the simulation. `VIADUCT_SIM_SEED` and `VIADUCT_SIM_STEPS` choose another one.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use viaduct_sim::World;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn steps() -> u64 {
    variable("VIADUCT_SIM_STEPS").unwrap_or(1_000_000)
}

fn live(seed: u64, steps: u64) -> viaduct_sim::Tally {
    match World::new(seed).run(steps) {
        Ok(tally) => {
            println!("seed {seed}: {tally:?}");
            tally
        }
        Err(violation) => panic!(
            "seed {seed}, {violation}\nagain: VIADUCT_SIM_SEED={seed} VIADUCT_SIM_STEPS={steps} \
             cargo test -p viaduct-sim --test life"
        ),
    }
}

#[test]
fn no_address_has_two_owners_and_none_is_lost_in_a_million_steps() {
    let seed = variable("VIADUCT_SIM_SEED").unwrap_or(1);
    let tally = live(seed, steps());
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
}

#[test]
fn a_seed_is_the_same_run_each_time() {
    assert_eq!(live(7, 20_000), live(7, 20_000));
}
