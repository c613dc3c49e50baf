//! What a run counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::Instant;

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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
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
    /// Connections that could not be made or ended early.
    pub connection: u64,
}

impl Failures {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.status + self.grpc + self.length + self.reset + self.lost + self.connection
    }

    /// Adds another thread's.
    pub fn add(&mut self, other: &Self) {
        self.status += other.status;
        self.grpc += other.grpc;
        self.length += other.length;
        self.reset += other.reset;
        self.lost += other.lost;
        self.connection += other.connection;
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
}

impl Tally {
    /// Nothing counted yet.
    pub fn new(stage: Arc<Stage>) -> Self {
        let histogram = || {
            Histogram::new_with_bounds(1_000, LONGEST_NS, 3)
                .expect("the bounds are constants hdrhistogram accepts")
        };
        let (latency, late) = (histogram(), histogram());
        Self { stage, calls: 0, failures: Failures::default(), latency, late }
    }

    /// A call that began at `began` has ended as it must.
    pub fn completed(&mut self, began: Instant, now: Instant) {
        if self.stage.phase() == Phase::Counted {
            self.calls += 1;
            let ns = u64::try_from((now - began).as_nanos()).unwrap_or(LONGEST_NS);
            self.latency.saturating_record(ns);
        }
    }

    /// So many units have come whose latency means nothing.
    pub fn units(&mut self, count: u64) {
        if self.stage.phase() == Phase::Counted {
            self.calls += count;
        }
    }

    /// A start came so much after it was due: the generator's own error.
    pub fn started_late(&mut self, late: std::time::Duration) {
        if self.stage.phase() == Phase::Counted {
            let ns = u64::try_from(late.as_nanos()).unwrap_or(LONGEST_NS);
            self.late.saturating_record(ns);
        }
    }

    /// Adds another thread's counts.
    pub fn add(&mut self, other: &Self) {
        // Cannot fail: every tally has the same bounds.
        let _ = self.late.add(&other.late);
        self.calls += other.calls;
        self.failures.add(&other.failures);
        // Cannot fail: every tally has the same bounds.
        let _ = self.latency.add(&other.latency);
    }
}
