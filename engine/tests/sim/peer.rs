//! What all far ends have in common: how the world calls them, and what they have it do.

use ringway_proto::time::Time;

use super::ledger::{Ledger, Work};
use super::plan::Plan;
use super::seed::Seed;

/// What a peer does.
#[derive(Debug)]
pub(crate) enum Act {
    Send(Vec<u8>),
    /// The bytes are sent so many microseconds later. Nothing else is sent before.
    Later(Vec<u8>, usize),
    Fin,
    Reset,
    /// Stops or resumes reading.
    Read(bool),
    /// The peer wants its next tick after so many microseconds.
    Wait(usize),
    /// A worker dials in with this work.
    Dial {
        worker: usize,
        work: Work,
        trick: Trick,
        after: usize,
    },
    /// A worker polls again.
    Poll {
        worker: usize,
        after: usize,
    },
    /// A client comes back for a session.
    Return {
        to: Comeback,
        after: usize,
    },
}

/// A session whose client was lost, and how a client comes back to it.
#[derive(Clone, Debug)]
pub(crate) struct Comeback {
    pub(crate) id: String,
    pub(crate) owner: &'static str,
    pub(crate) key: &'static str,
    pub(crate) tenant: &'static str,
    pub(crate) function: &'static str,
    pub(crate) http1: bool,
}

/// The most PINGs and SETTINGS that a connection sends. A thousand would be a flood (L5).
pub(crate) const CHATTER: u32 = 60;

/// What a worker's CONNECT does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trick {
    None,
    WrongToken,
    WrongId,
    NoToken,
}

/// The world as a peer sees it.
pub(crate) struct Stage<'a> {
    pub(crate) seed: &'a mut Seed,
    pub(crate) ledger: &'a mut Ledger,
    pub(crate) plan: &'a Plan,
    pub(crate) now: Time,
    /// Faults are over. Everything that was begun is brought to its end.
    pub(crate) calm: bool,
    /// Peers with nothing to finish leave.
    pub(crate) closing: bool,
    pub(crate) acts: &'a mut Vec<Act>,
}

impl Stage<'_> {
    /// A fault of this likelihood, in percent; never in calm times.
    pub(crate) fn fault(&mut self, percent: u32) -> bool {
        percent > 0 && !self.calm && self.seed.chance(percent)
    }

    /// A fault of this likelihood in a thousand, for what is asked at every tick.
    pub(crate) fn rarely(&mut self, permille: u32) -> bool {
        permille > 0 && !self.calm && self.seed.next() % 1000 < u64::from(permille)
    }
}

/// A far end.
pub(crate) trait Peer {
    /// Bytes came from the gateway.
    fn received(&mut self, bytes: &[u8], stage: &mut Stage<'_>);
    /// The gateway's FIN or RST came.
    fn ended(&mut self, reset: bool, stage: &mut Stage<'_>);
    /// The peer's wait is over.
    fn tick(&mut self, stage: &mut Stage<'_>);
    /// Whether the peer still waits for something on an open connection.
    fn is_unfinished(&self) -> bool {
        false
    }
    /// What the peer waits for, for a failure's message.
    fn waits_for(&self) -> String {
        String::new()
    }
}

/// When a peer wants its next tick: soon after something happened, and ever later while nothing
/// does.
#[derive(Debug)]
pub(crate) struct Pace {
    wait: usize,
}

impl Pace {
    pub(crate) fn new() -> Self {
        Self { wait: 100 }
    }

    pub(crate) fn hurry(&mut self) {
        self.wait = 100;
    }

    pub(crate) fn next(&mut self, seed: &mut Seed) -> usize {
        let wait = seed.range(self.wait / 2, self.wait);
        self.wait = (self.wait * 2).min(1_500_000);
        wait.max(1)
    }
}
