//! What all far ends have in common: how the world asks them and what they ask of it.

use ringway_proto::time::Time;

use super::ledger::{Ledger, Work};
use super::plan::Plan;
use super::seed::Seed;

/// What a peer does.
#[derive(Debug)]
pub(crate) enum Act {
    Send(Vec<u8>),
    /// The same, so many microseconds later; nothing else is sent before.
    Later(Vec<u8>, usize),
    Fin,
    Reset,
    /// Stops or resumes reading.
    Read(bool),
    /// Be asked again after so many microseconds.
    Wait(usize),
    /// Dial back with this work, or poll again.
    Dial {
        worker: usize,
        work: Work,
        trick: Trick,
        after: usize,
    },
    Poll {
        worker: usize,
        after: usize,
    },
    /// Somebody comes back for a session.
    Return {
        to: Comeback,
        after: usize,
    },
}

/// A session that was lost sight of, and how somebody comes back to it.
#[derive(Clone, Debug)]
pub(crate) struct Comeback {
    pub(crate) id: String,
    pub(crate) owner: &'static str,
    pub(crate) key: &'static str,
    pub(crate) tenant: &'static str,
    pub(crate) function: &'static str,
    pub(crate) http1: bool,
}

/// PINGs and SETTINGS that a connection sends at most: a thousand would be a flood (L5).
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
    /// Nobody makes trouble any more: what was begun is brought to its end.
    pub(crate) calm: bool,
    /// Whoever has nothing to finish leaves.
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
    /// Bytes came.
    fn received(&mut self, bytes: &[u8], stage: &mut Stage<'_>);
    /// The gateway's FIN or RST came.
    fn ended(&mut self, reset: bool, stage: &mut Stage<'_>);
    /// The wait is over.
    fn tick(&mut self, stage: &mut Stage<'_>);
    /// Whether it still waits for something on an open connection.
    fn is_unfinished(&self) -> bool {
        false
    }
    /// What that is.
    fn waits_for(&self) -> String {
        String::new()
    }
}

/// When a peer wants to be asked again: soon after something happened, ever later after nothing.
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
