//! Runs of many seeds, or of one that has failed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

/// Seeds that every run of the suite takes.
const FIXED: u64 = 400;

/// Plays one seed; the error is all there is to print.
fn play(seed: u64) -> Result<Tally, String> {
    let played = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(seed);
        world.run();
        world.tally
    }));
    played.map_err(|cause| {
        let cause = cause.downcast_ref::<String>().cloned();
        let cause = cause.unwrap_or_else(|| "a panic without words".into());
        format!(
            "seed {seed}: {cause}\nreplay: RINGWAY_SIM_SEED={seed} cargo test -p ringway --lib \
             every_seed_keeps_names"
        )
    })
}

/// Plays many seeds on two threads; the first that fails.
fn play_all(first: u64, count: u64) -> Tally {
    let next = AtomicU64::new(0);
    let work = || {
        let mut sum = Tally::default();
        while let at = next.fetch_add(1, Ordering::Relaxed)
            && at < count
        {
            match play(first.wrapping_add(at)) {
                Ok(tally) => sum += tally,
                Err(told) => {
                    next.store(count, Ordering::Relaxed);
                    panic!("{told}");
                }
            }
        }
        sum
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(work);
        let mut sum = work();
        sum += other.join().expect("it has said why");
        sum
    })
}

pub(super) fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is not a number")))
}

#[test]
fn every_seed_keeps_names_apart() {
    if let Some(seed) = number("RINGWAY_SIM_SEED") {
        println!("{:?}", play(seed).unwrap_or_else(|told| panic!("{told}")));
        return;
    }
    let fixed = play_all(0, FIXED);
    println!("fixed seeds: {fixed:?}");
    let Tally { entered, dead, live, taken, shared, unreadable, checked } = fixed;
    let all = [entered, dead, live, taken, shared, unreadable, checked];
    assert!(all.iter().all(|count| *count > 0), "they try too little: {fixed:?}");
    if let Some(runs) = number("RINGWAY_SIM_RUNS") {
        let first = getrandom::u64().unwrap() >> 16;
        println!("fresh seeds: {runs} from {first}");
        println!("{:?}", play_all(first, runs));
    }
}
