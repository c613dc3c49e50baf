//! Tries out the kernel's features that the reactor is built on, one by one, to show what a host
//! lacks.

use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::buffer::{BlockRing, PROBE_ENTERS, PROBE_WAIT, probe};
use super::fault::SetupError;
use super::options::Options;
use super::tag::{Completion, Kind, Tag};
use super::uring::{Accepts, Share, Uring, Wait};
use crate::pool::Pool;

/// A feature of io_uring that the reactor uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// A ring of one thread that does deferred work when it enters.
    Rings,
    /// Receive blocks that are filled bit by bit.
    Blocks,
    /// Receives that go on.
    Receives,
    /// Receives that take a bounded number of bytes. The reactor can do without.
    Bounds,
    /// Accepts that go on.
    Accepts,
    /// Messages from ring to ring. Cores can be woken without them.
    Messages,
}

impl Feature {
    /// The feature's name for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Rings => "SINGLE_ISSUER, DEFER_TASKRUN and SUBMIT_ALL rings",
            Self::Blocks => "incremental buffer rings",
            Self::Receives => "multishot receives",
            Self::Bounds => "length caps of multishot receives",
            Self::Accepts => "multishot accepts",
            Self::Messages => "MSG_RING",
        }
    }

    /// Whether io_uring has no effect without it.
    #[must_use]
    pub fn is_needed(self) -> bool {
        !matches!(self, Self::Bounds | Self::Messages)
    }
}

/// The result of trying a feature.
#[derive(Debug)]
pub struct Trial {
    /// What was tried.
    pub feature: Feature,
    /// Whether the feature works, or why not.
    pub result: Result<(), SetupError>,
}

/// Tries out every feature by using it. A feature that needs another one which has failed is left
/// out.
#[must_use]
pub fn try_features(options: &Options) -> Vec<Trial> {
    let mut trials = Vec::new();
    let mut note = |feature, result: Result<(), SetupError>| {
        let works = result.is_ok();
        trials.push(Trial { feature, result });
        works
    };
    let ring = || Uring::new(options.entries, options.send_bytes, false);
    let mut pool = Pool::new(options.blocks, options.block_bytes);
    // The ring is dropped before its blocks' memory.
    let (blocks, mut first);
    match ring() {
        Ok(ring) => first = ring,
        Err(error) => {
            note(Feature::Rings, Err(error));
            return trials;
        }
    }
    note(Feature::Rings, Ok(()));
    match BlockRing::register(&first, &pool, options.lent) {
        Ok(mut made) => {
            made.lend(&mut pool);
            blocks = Some(made);
            note(Feature::Blocks, Ok(()));
        }
        Err(error) => {
            blocks = None;
            note(Feature::Blocks, Err(error));
        }
    }
    if blocks.is_some() {
        let free = Share { cap: 0, limit: 0 };
        let received = probe(&mut first, &mut pool, free).map(drop);
        if note(Feature::Receives, received) {
            note(Feature::Bounds, bounded(&mut first, &mut pool));
        }
    }
    note(Feature::Accepts, accepts(&mut first));
    note(Feature::Messages, ring().and_then(|mut other| rings(&mut first, &mut other)));
    trials
}

/// A receive with a cap and a limit.
fn bounded(ring: &mut Uring, pool: &mut Pool) -> Result<(), SetupError> {
    let share = Share { cap: 1024, limit: 4096 };
    match probe(ring, pool, share)? {
        got if got == share => Ok(()),
        _ => Err(SetupError::TooOld { feature: Feature::Bounds.name(), needs: "6.17" }),
    }
}

/// An accept that goes on after its first connection.
fn accepts(ring: &mut Uring) -> Result<(), SetupError> {
    let step = "trying out an accept";
    let other = |error| SetupError::Other { step, error };
    let needs = (Feature::Accepts.name(), "5.19");
    let listener = TcpListener::bind("127.0.0.1:0").map_err(other)?;
    let _peer = TcpStream::connect(listener.local_addr().map_err(other)?).map_err(other)?;
    ring.accept(listener.as_raw_fd(), Accepts::Many, Tag::numbered(Kind::Accept, 0));
    let completion = first_of(ring).ok_or(other(std::io::ErrorKind::TimedOut.into()))?;
    if completion.result < 0 {
        let error = std::io::Error::from_raw_os_error(-completion.result);
        return Err(SetupError::of(step, needs, error));
    }
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    drop(unsafe { OwnedFd::from_raw_fd(completion.result) });
    let (feature, needs) = needs;
    if completion.more() { Ok(()) } else { Err(SetupError::TooOld { feature, needs }) }
}

/// A message from one ring to the other.
fn rings(ring: &mut Uring, other: &mut Uring) -> Result<(), SetupError> {
    let step = "trying out a message between rings";
    let theirs = Tag::numbered(Kind::Bell, 1);
    ring.ring(other.fd(), theirs, Tag::numbered(Kind::Bell, 2));
    ring.enter(Wait::No);
    match first_of(other) {
        Some(completion) if completion.tag == theirs => Ok(()),
        _ => {
            let errno = first_of(ring).map_or(libc::ETIMEDOUT, |failed| -failed.result);
            let error = std::io::Error::from_raw_os_error(errno);
            Err(SetupError::of(step, (Feature::Messages.name(), "5.18"), error))
        }
    }
}

/// The next completion, waited for a while.
fn first_of(ring: &mut Uring) -> Option<Completion> {
    (0..PROBE_ENTERS).find_map(|_| {
        ring.enter(Wait::AtMost(PROBE_WAIT));
        let batch = ring.take_batch();
        let first = batch.first().copied();
        ring.give_back(batch);
        first
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_feature_is_there_on_a_host_that_runs_the_tests() {
        let trials = try_features(&Options::default());
        let names: Vec<_> = trials.iter().map(|trial| trial.feature).collect();
        let all = [
            Feature::Rings,
            Feature::Blocks,
            Feature::Receives,
            Feature::Bounds,
            Feature::Accepts,
            Feature::Messages,
        ];
        assert_eq!(names, all);
        for trial in trials {
            assert!(trial.result.is_ok() || !trial.feature.is_needed(), "{trial:?}");
        }
    }

    #[test]
    fn a_message_to_what_is_no_ring_is_refused() {
        let options = Options::default();
        let mut ring = Uring::new(options.entries, options.send_bytes, false).unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        ring.ring(file.as_raw_fd(), Tag::numbered(Kind::Bell, 1), Tag::numbered(Kind::Bell, 2));
        assert!(first_of(&mut ring).is_some_and(|completion| completion.result < 0));
    }
}
