//! What a run counts.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;

/// Longest latency told apart, in nanoseconds.
const LONGEST_NS: u64 = 60_000_000_000;

/// Where a run stands; written by the timing thread, read by the generator's.
#[derive(Debug, Default)]
pub struct Stage {
    phase: AtomicU8,
    live: AtomicUsize,
    broken: AtomicUsize,
    /// Connections that may be made so far, of a run that makes them in steps.
    allowed: AtomicUsize,
    not_built: OnceLock<String>,
    /// Why the first connection ended that did so early.
    why_broken: OnceLock<String>,
}

/// The parts of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Calls run and are not counted.
    WarmUp = 0,
    /// Calls that end now are counted.
    Counted = 1,
    /// Calls run on and are not counted any more, while the CPU time is read.
    Trailing = 2,
    /// No further calls.
    Over = 3,
}

impl Stage {
    /// The current phase.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::WarmUp,
            1 => Phase::Counted,
            2 => Phase::Trailing,
            _ => Phase::Over,
        }
    }

    /// Enters `phase`.
    pub fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// A connection has had its first answer.
    pub fn connection_lives(&self) {
        self.live.fetch_add(1, Ordering::Relaxed);
    }

    /// A connection has ended before the run was over.
    pub fn connection_broke(&self) {
        self.broken.fetch_add(1, Ordering::Relaxed);
    }

    /// The same, with the reason; the first one is kept.
    pub fn connection_broke_by(&self, why: &impl fmt::Display) {
        // A second reason may be the first one's consequence.
        let _ = self.why_broken.set(why.to_string());
        self.connection_broke();
    }

    /// Why the first connection ended early, if one did and said so.
    pub fn why_broken(&self) -> Option<&str> {
        self.why_broken.get().map(String::as_str)
    }

    /// Allows so many connections.
    pub fn allow(&self, connections: usize) {
        self.allowed.store(connections, Ordering::Relaxed);
    }

    /// Connections that may be made.
    pub fn allowed(&self) -> usize {
        self.allowed.load(Ordering::Relaxed)
    }

    /// The peer cannot do what the run is about; the first reason is kept.
    pub fn give_up(&self, why: &str) {
        // A second reason is the first one's consequence.
        let _ = self.not_built.set(why.to_owned());
    }

    /// Why the run was given up.
    pub fn gave_up(&self) -> Option<&str> {
        self.not_built.get().map(String::as_str)
    }

    /// Connections that have had an answer.
    pub fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    /// Connections that ended early.
    pub fn broken(&self) -> usize {
        self.broken.load(Ordering::Relaxed)
    }
}

/// Calls that did not end as they must, by what was wrong. They count in every phase.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Failures {
    /// `:status` was not 200.
    pub status: u64,
    /// `grpc-status` was missing or not 0.
    pub grpc: u64,
    /// The answer had another length than asked for.
    pub length: u64,
    /// The stream was reset.
    pub reset: u64,
    /// Calls open when their connection ended.
    pub lost: u64,
    /// Answers from another session than the one that was asked for.
    pub session: u64,
    /// Connections that could not be made or ended early, by why.
    pub connections: BTreeMap<String, u64>,
}

impl Failures {
    /// A connection could not be made, or ended early.
    pub fn connection(&mut self, why: &impl fmt::Display) {
        *self.connections.entry(why.to_string()).or_default() += 1;
    }

    /// The misses that happened, each with its cause's name.
    pub fn by_cause(&self) -> BTreeMap<String, u64> {
        let calls = [
            ("status", self.status),
            ("grpc", self.grpc),
            ("length", self.length),
            ("reset", self.reset),
            ("lost", self.lost),
            ("session", self.session),
        ];
        let calls = calls.map(|(name, count)| (name.to_owned(), count)).into_iter();
        let connections =
            self.connections.iter().map(|(why, count)| (format!("connection: {why}"), *count));
        calls.chain(connections).filter(|(_, count)| *count > 0).collect()
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.by_cause().values().sum()
    }

    /// Adds another thread's.
    pub fn add(&mut self, other: &Self) {
        self.status += other.status;
        self.grpc += other.grpc;
        self.length += other.length;
        self.reset += other.reset;
        self.lost += other.lost;
        self.session += other.session;
        for (why, count) in &other.connections {
            *self.connections.entry(why.clone()).or_default() += count;
        }
    }
}

/// One generator thread's counts.
#[derive(Debug)]
pub struct Tally {
    /// Where the run stands.
    pub stage: Arc<Stage>,
    /// Calls, messages or connections completed in the counted phase.
    pub calls: u64,
    /// Calls that went wrong.
    pub failures: Failures,
    /// Latency of the counted calls in nanoseconds.
    pub latency: Histogram<u64>,
    /// How late paced starts were, in nanoseconds.
    pub late: Histogram<u64>,
    /// Latencies of what a unit is made of, in nanoseconds.
    pub parts: BTreeMap<&'static str, Histogram<u64>>,
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1_000, LONGEST_NS, 3)
        .expect("the bounds are constants hdrhistogram accepts")
}

fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(LONGEST_NS)
}

impl Tally {
    /// Nothing counted yet.
    pub fn new(stage: Arc<Stage>) -> Self {
        let (latency, late) = (histogram(), histogram());
        let (failures, parts) = (Failures::default(), BTreeMap::new());
        Self { stage, calls: 0, failures, latency, late, parts }
    }

    /// A call that began at `began` has ended as it must.
    pub fn completed(&mut self, began: Instant, now: Instant) {
        self.completed_of(1, began, now);
    }

    /// The same of a call that is so many units.
    pub fn completed_of(&mut self, units: u32, began: Instant, now: Instant) {
        if self.stage.phase() == Phase::Counted {
            self.calls += u64::from(units);
            self.latency.saturating_record(ns(now.saturating_duration_since(began)));
        }
    }

    /// A part of a unit took so long.
    pub fn part(&mut self, name: &'static str, took: Duration) {
        if self.stage.phase() == Phase::Counted {
            self.parts.entry(name).or_insert_with(histogram).saturating_record(ns(took));
        }
    }

    /// So many units have come whose latency means nothing.
    pub fn units(&mut self, count: u64) {
        if self.stage.phase() == Phase::Counted {
            self.calls += count;
        }
    }

    /// A start came so much after it was due: the generator's own error.
    pub fn started_late(&mut self, late: Duration) {
        if self.stage.phase() == Phase::Counted {
            self.late.saturating_record(ns(late));
        }
    }

    /// The latencies of the units, and those of their parts with their names.
    pub fn histograms(&self) -> impl Iterator<Item = (Option<&'static str>, &Histogram<u64>)> {
        let parts = self.parts.iter().map(|(name, histogram)| (Some(*name), histogram));
        std::iter::once((None, &self.latency)).chain(parts)
    }

    /// Adds another thread's counts.
    pub fn add(&mut self, other: &Self) {
        // Cannot fail: every tally has the same bounds.
        let _ = self.late.add(&other.late);
        self.calls += other.calls;
        self.failures.add(&other.failures);
        // Cannot fail: every tally has the same bounds.
        let _ = self.latency.add(&other.latency);
        for (name, theirs) in &other.parts {
            let _ = self.parts.entry(name).or_insert_with(histogram).add(theirs);
        }
    }
}
