//! The clock of an open loop: wakes a generator thread at a fixed rate, more finely than the
//! runtime's timers can, by octets through a socket pair.

use std::io::{self, Write};
use std::os::unix::net::UnixStream as StdStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use monoio::buf::IoBufMut;
use monoio::io::AsyncReadRent;
use monoio::net::UnixStream;

use crate::tally::{Phase, Stage};

/// Wakes closer together than this are one.
const SHORTEST: Duration = Duration::from_micros(50);
/// Wakes that may be unread; then the generator is behind anyway.
const BACKLOG: usize = 4096;

/// The generator thread's end.
pub struct Pace {
    wakes: UnixStream,
    buffer: Vec<u8>,
    /// When the next start is due.
    next: Instant,
    every: Duration,
}

impl Pace {
    /// Starts that come `every` so often, from now until the run is over.
    ///
    /// # Errors
    /// No socket pair or no thread.
    pub fn start(every: Duration, stage: Arc<Stage>) -> io::Result<Self> {
        let (ours, theirs) = StdStream::pair()?;
        ours.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        let next = Instant::now();
        thread::Builder::new()
            .name("load-pace".into())
            .spawn(move || wake(theirs, every.max(SHORTEST), &stage))?;
        let wakes = UnixStream::from_std(ours)?;
        Ok(Self { wakes, buffer: Vec::with_capacity(BACKLOG), next, every })
    }

    /// Waits until at least one start is due; `None` when the run is over.
    pub async fn due(&mut self) -> Option<Due<'_>> {
        let buffer = std::mem::take(&mut self.buffer);
        let (result, slice) = self.wakes.read(buffer.slice_mut(..)).await;
        self.buffer = slice.into_inner();
        self.buffer.clear();
        match result {
            Ok(n) if n > 0 => Some(Due { pace: self, now: Instant::now() }),
            _ => None,
        }
    }
}

/// The starts that are due now, each at its own instant.
pub struct Due<'a> {
    pace: &'a mut Pace,
    now: Instant,
}

impl Due<'_> {
    /// How late the generator is with a start that was due at `at`.
    pub fn late(&self, at: Instant) -> Duration {
        self.now.saturating_duration_since(at)
    }
}

impl Iterator for Due<'_> {
    type Item = Instant;

    fn next(&mut self) -> Option<Instant> {
        let due = self.pace.next;
        if due > self.now {
            return None;
        }
        self.pace.next = due + self.pace.every;
        Some(due)
    }
}

fn wake(mut pair: StdStream, every: Duration, stage: &Stage) {
    // By default the kernel may add 50 us to every sleep.
    crate::sys::sharp_sleeps();
    let mut next = Instant::now();
    while stage.phase() != Phase::Over {
        next += every;
        let now = Instant::now();
        if next > now {
            thread::sleep(next - now);
        } else {
            // The generator is late: missed starts are reported together.
            next = now;
        }
        match pair.write(&[0]) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return,
            Ok(_) | Err(_) => {}
        }
    }
}
