//! Bytes between a connection and its owner, both ways as they came: no frame is looked at.
//!
//! A FIN on one side becomes a FIN on the other. Whatever cuts the bytes short becomes a RST,
//! because whether a tunnel is kept depends on how its client has ended. If this process dies, both
//! ends are reset.

use super::super::turn::Turn;
use super::out::{Out, Step};
use crate::metrics::{CopyWhy, RelayOutcome};
use crate::net::{Close, ConnId, End};
use crate::pool::Segment;

/// Shorter segments are cheaper to copy than to refer to.
const SMALL: usize = 4 * 1024;
/// While a connection has more output than this, the side that feeds it is not read.
const FULL: usize = 1024 * 1024;
const LOW: usize = FULL / 2;

impl Out {
    /// The connection to the owner, which is reached.
    fn far(&self) -> ConnId {
        self.far.expect("bytes pass to an owner that is reached")
    }

    /// Passes bytes to the other side. `up`: to the owner.
    pub(super) fn pass(&mut self, turn: &mut Turn<'_>, segment: Segment, up: bool) {
        let (from, to) = if up { (self.near, self.far()) } else { (self.far(), self.near) };
        let len = segment.len as usize;
        if len <= SMALL {
            turn.net.put_copy(to, segment);
            turn.metrics.payload_copied[CopyWhy::SmallFrame.index()] += len as u64;
        } else {
            turn.net.push(to, segment);
            turn.metrics.payload_relayed += len as u64;
        }
        if turn.net.queued(to) > FULL {
            self.held[usize::from(up)] = true;
            turn.net.pause(from, true);
        }
    }

    /// The kernel has taken some of a connection's output.
    pub(super) fn drained(&mut self, turn: &mut Turn<'_>, conn: ConnId) {
        let up = conn != self.near;
        if self.held[usize::from(up)] && turn.net.queued(conn) < LOW {
            self.held[usize::from(up)] = false;
            turn.net.pause(if up { self.near } else { self.far() }, false);
        }
    }

    /// The owner has the connection from now on. The bytes received so far go there first.
    pub(super) fn flow(&mut self, turn: &mut Turn<'_>) {
        let far = self.far();
        self.step = Step::Flowing;
        turn.metrics.relays.count(self.cause, RelayOutcome::Relayed);
        for conn in [self.near, far] {
            turn.net.set_open_ended(conn, true);
        }
        if let Some(stray) = self.stray.take() {
            turn.put(far, stray.received());
        }
        turn.net.pause(self.near, false);
    }

    /// One of the two connections has ended, so the other one ends too.
    pub(super) fn part(self, turn: &mut Turn<'_>, (end, near_ended): (End, bool)) {
        let far = self.far();
        let (ended, other) = if near_ended { (self.near, far) } else { (far, self.near) };
        for conn in [ended, other] {
            turn.net.set_open_ended(conn, end != End::Fin);
        }
        turn.net.close(other, Close::Flush);
        if end.is_half() {
            turn.net.close(ended, Close::Flush);
        }
    }
}
