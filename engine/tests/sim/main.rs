//! The seeded simulator: real shards, model network and far ends, one seed, one clock.
//! See `README.md` beside this file.

mod body;
mod client;
mod client1;
mod core;
mod h1;
mod h2;
mod journal;
mod judge;
mod kernel;
mod ledger;
mod peer;
mod plan;
mod poll;
mod request;
mod rest;
mod seed;
mod serve;
mod tunnel;
mod wire;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use rest::Tally;
use world::World;

/// Seeds that every run of the suite takes, and fresh ones beside them.
const FIXED: u64 = 2_000;
const FRESH: u64 = 500;

/// What came of one seed.
struct Outcome {
    tally: Tally,
    hash: u64,
    events: u64,
}

/// Plays one seed; the error is all there is to print.
fn play(seed: u64, all_events: bool) -> Result<Outcome, String> {
    journal::begin(all_events);
    let result = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(seed);
        world.run();
        world.check_rest()
    }));
    let (hash, events) = journal::hash();
    match result {
        Ok(tally) => Ok(Outcome { tally, hash, events }),
        Err(cause) => {
            let cause = cause
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| cause.downcast_ref::<&str>().copied())
                .unwrap_or("a panic without words");
            Err(format!(
                "seed {seed}: {cause}\nthe last events:\n{}\nreplay: RINGWAY_SIM_SEED={seed} cargo \
                 test -p ringway --test sim\n",
                journal::text()
            ))
        }
    }
}

/// Plays many seeds on every CPU there is; stops at the first that fails.
fn play_all(first: u64, count: u64) -> Tally {
    let next = AtomicU64::new(0);
    let sum = Mutex::new((Tally::default(), None::<String>));
    let work = || {
        while let at = next.fetch_add(1, Ordering::Relaxed)
            && at < count
        {
            let result = play(first.wrapping_add(at), false);
            let mut sum = sum.lock().expect("no panic holds it");
            match result {
                Ok(outcome) => sum.0.add(&outcome.tally),
                Err(told) => {
                    sum.1 = Some(told);
                    next.store(count, Ordering::Relaxed);
                }
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let (tally, failed) = sum.into_inner().expect("no panic holds it");
    if let Some(told) = failed {
        panic!("{told}");
    }
    tally
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is not a number")))
}

#[test]
fn every_seed_keeps_the_promises() {
    if let Some(seed) = number("RINGWAY_SIM_SEED") {
        match play(seed, true) {
            Ok(outcome) => println!("seed {seed}: {} events, {:?}", outcome.events, outcome.tally),
            Err(told) => panic!("{told}"),
        }
        return;
    }
    let count = number("RINGWAY_SIM_FIXED").unwrap_or(FIXED);
    let fixed = play_all(0, count);
    println!("fixed seeds: {fixed:?}");
    if count == FIXED {
        fixed.expect_variety();
    }
    let mut entropy = [0; 8];
    getrandom::fill(&mut entropy).expect("entropy");
    let first = u64::from_le_bytes(entropy) >> 16;
    let runs = number("RINGWAY_SIM_RUNS").unwrap_or(FRESH);
    println!("fresh seeds: {runs} from {first}");
    let fresh = play_all(first, runs);
    println!("{fresh:?}");
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in [1, 2, 3, 17, 99] {
        let played = || play(seed, false).unwrap_or_else(|told| panic!("{told}"));
        let (first, second) = (played(), played());
        assert_eq!((first.hash, first.events), (second.hash, second.events), "seed {seed}");
        assert!(first.events > 50, "seed {seed} does nothing");
    }
}
