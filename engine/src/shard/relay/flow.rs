//! Which connections may be read, and what waits. Reading stops where the output it feeds is full,
//! and where more waits than a connection or the core may hold.

use std::time::Duration;

use ringway_proto::h2::ConnFault;
use ringway_proto::h2::{ErrorCode, LimitId};

use super::super::timer::Due;
use super::super::turn::Turn;
use super::exchange::At;
use super::hop::{Hop, HopRole};
use super::hops::Hops;
use super::link::Link;
use crate::metrics::Limit;
use crate::net::ConnId;

/// Output above which no more DATA is moved to a hop; what comes then waits in its pipe.
const OUTPUT_HIGH: usize = 256 * 1024;

/// The same limit while memory is short. With many slow peers it is their output that fills the
/// memory. A fast peer that is sent less at once loses no more than some of its speed.
const OUTPUT_SHORT: usize = 64 * 1024;

/// Memory is short when more waits than what the core may hold, divided by this. From then on
/// windows grow no more. What waits until then is that of a few streams whose windows had grown.
const SHORT_PART: usize = 8;

/// When more waits than what the core may hold, divided by this, windows of streams that wait
/// shrink again.
const SHRINK_PART: usize = 2;

/// Output above which the hops that feed it stop reading: heads have no flow control.
pub(super) const OUTPUT_FULL: usize = 1024 * 1024;

/// Output below which a hop that was full lets its sources read again.
pub(super) const OUTPUT_LOW: usize = OUTPUT_FULL / 2;

/// How often streams without progress are looked for while memory is short.
const SWEEP: Duration = Duration::from_secs(1);

/// Size of a head, as limit L2 counts, from which on it is let in only if the core has room for it:
/// smaller ones are bounded by what a connection may have wait, and by the number of connections.
pub(super) const LARGE_HEAD: usize = 16 * 1024;

impl Hops {
    // ---- reading ----

    /// Stops reading from `source` until the output of `full` has drained.
    #[inline(never)]
    pub(super) fn stop_reading(&mut self, turn: &mut Turn<'_>, source: ConnId, full: ConnId) {
        let before = self.hop_mut(full).map(|hop| {
            let stopped = hop.stopped.contains(&source);
            if !stopped {
                hop.stopped.push(source);
            }
            stopped
        });
        if before == Some(false) {
            self.pause(turn, source);
        }
    }

    /// Adds one reason not to read a connection.
    pub(super) fn pause(&mut self, turn: &mut Turn<'_>, conn: ConnId) {
        if let Some(hop) = self.hop_mut(conn) {
            hop.waits += 1;
            turn.net.pause(conn, true);
        }
    }

    /// Lets a hop whose output is full stop what feeds it.
    #[inline]
    pub(super) fn hold_back(&mut self, turn: &mut Turn<'_>, source: ConnId, to: ConnId) {
        if turn.net.queued(to) > OUTPUT_FULL {
            self.stop_reading(turn, source, to);
        }
    }

    /// Lets hops read again that waited for another one's output.
    pub(super) fn resume(&mut self, turn: &mut Turn<'_>, stopped: Vec<ConnId>) {
        for source in stopped {
            if let Some(hop) = self.hop_mut(source) {
                hop.waits -= 1;
                turn.net.pause(source, hop.waits > 0);
                if hop.waits == 0 {
                    // The hop was not read meanwhile, so its silence counts only from here on.
                    hop.read_again(turn.now);
                    self.watch(turn, source);
                }
            }
        }
    }

    /// Stops reading an HTTP/1 connection whose input waits, or lets it go on.
    pub(super) fn gate(&mut self, turn: &mut Turn<'_>, conn: ConnId) {
        let most = turn.settings.config.limits.http1_buffer;
        if let Some(hop) = self.hop_mut(conn) {
            hop.gate(turn, most);
        }
    }

    // ---- what waits ----

    /// Whether this core holds as much as it may (L9).
    pub(super) fn is_full(&self, turn: &Turn<'_>) -> bool {
        self.buffered >= turn.settings.config.limits.core_buffer
    }

    /// Whether so much waits that no stream should get more room.
    #[inline]
    fn is_short(&self, turn: &Turn<'_>) -> bool {
        self.buffered > 0 && self.buffered > turn.settings.config.limits.core_buffer / SHORT_PART
    }

    /// Whether so much waits that streams should have less room than they have.
    fn is_crowded(&self, turn: &Turn<'_>) -> bool {
        self.buffered > turn.settings.config.limits.core_buffer / SHRINK_PART
    }

    /// Whether a window towards the sender of what goes to this hop may grow. If the receiver does
    /// not keep up, the window is not what holds the sender back. A larger one would only let more
    /// wait here.
    #[inline]
    pub(super) fn may_grow(&self, turn: &Turn<'_>, to: ConnId) -> bool {
        !self.is_short(turn) && !turn.net.lags(to)
    }

    /// How much more may be moved to a hop, and what [`Self::may_grow`] says of it.
    #[inline(always)]
    pub(super) fn room(&self, turn: &Turn<'_>, to: ConnId) -> (usize, bool) {
        // Most frames meet a core in which nothing waits.
        match turn.net.queued(to) {
            0 if self.buffered == 0 => (OUTPUT_HIGH, true),
            queued => self.room_beside(turn, to, queued),
        }
    }

    #[inline(never)]
    fn room_beside(&self, turn: &Turn<'_>, to: ConnId, queued: usize) -> (usize, bool) {
        let most = most_output(self.is_short(turn));
        (most.saturating_sub(queued), self.may_grow(turn, to))
    }

    /// Whether no more DATA may be moved to a hop.
    #[inline]
    pub(super) fn output_is_full(&self, turn: &Turn<'_>, to: ConnId) -> bool {
        let queued = turn.net.queued(to);
        queued >= OUTPUT_SHORT && queued >= most_output(self.is_short(turn))
    }

    /// Payload of a stream that has waited is on its way to `to`: its sender may send more.
    pub(super) fn took(
        &mut self,
        turn: &mut Turn<'_>,
        (from, to): (Option<At>, ConnId),
        len: usize,
        backlog: bool,
    ) {
        let grows = !backlog && self.may_grow(turn, to);
        let shrinks = backlog && self.is_crowded(turn);
        if let Some(from) = from
            && let Some(hop) = self.hop_mut(from.conn)
        {
            if shrinks {
                hop.link.shrink_window(from.key);
            }
            hop.link.drained(from.key, len, grows, &mut turn.net.sink(from.conn));
        }
        self.remove_buffered(turn, from.map(|at| at.conn), len);
    }

    /// Counts bytes that wait against the core and the connection they came from.
    pub(super) fn add_buffered(&mut self, turn: &mut Turn<'_>, from: Option<ConnId>, len: usize) {
        self.buffered += len;
        let (buffered, budget) = (self.buffered, turn.settings.config.limits.core_buffer);
        if !self.sweeping && buffered > budget / 4 * 3 {
            self.sweeping = true;
            turn.arm(turn.now + SWEEP, Due::Sweep);
        }
        if let Some(hop) = from.and_then(|conn| self.hop_mut(conn)) {
            let before = hop.buffered;
            hop.buffered += counted(len);
            hop.buffered_changed(turn, before);
        }
    }

    /// The counterpart of [`Self::add_buffered`].
    pub(super) fn remove_buffered(
        &mut self,
        turn: &mut Turn<'_>,
        from: Option<ConnId>,
        len: usize,
    ) {
        self.buffered -= len;
        if let Some(hop) = from.and_then(|conn| self.hop_mut(conn)) {
            let before = hop.buffered;
            hop.buffered -= counted(len);
            hop.buffered_changed(turn, before);
        }
    }

    /// Whether streams without progress are to be looked for still.
    pub(super) fn sweeps_on(&mut self, turn: &mut Turn<'_>) -> bool {
        self.sweeping = self.buffered > turn.settings.config.limits.core_buffer / 4 * 3;
        if self.sweeping {
            turn.arm(turn.now + SWEEP, Due::Sweep);
        }
        self.sweeping
    }

    /// A head or trailers from this connection begin to wait, in memory of their own. False if the
    /// connection has as many waiting as it may.
    pub(super) fn list_waits(&mut self, turn: &mut Turn<'_>, from: ConnId, size: usize) -> bool {
        let most = turn.settings.config.limits.connection_buffer;
        let mut fits = true;
        if let Some(hop) = self.hop_mut(from) {
            fits = !is_over(hop.lists, size, most);
            hop.lists += counted(size);
        }
        self.add_buffered(turn, None, size);
        fits
    }

    /// The counterpart of [`Self::list_waits`].
    pub(super) fn list_went(&mut self, from: ConnId, counted: u32) {
        if let Some(hop) = self.hop_mut(from) {
            hop.lists -= counted;
        }
        self.buffered -= counted as usize;
    }

    /// The limit that a large head from this connection is over, if it is.
    #[cold]
    pub(super) fn large_head_over(
        &self,
        turn: &Turn<'_>,
        from: ConnId,
        size: usize,
    ) -> Option<Limit> {
        let limits = &turn.settings.config.limits;
        let waits = self.buffered.max(turn.net.pool.chunks_live() * crate::pool::CHUNK_BYTES);
        // A field that is said again costs its sender one octet: no connection may fill the core
        // with what it says, or all others pay.
        let own = self.hop(from).map_or(0, |hop| hop.lists);
        if is_over(own, size, limits.connection_buffer) {
            Some(Limit::ConnectionBuffer)
        } else if waits + size > limits.core_buffer {
            Some(Limit::CoreBuffer)
        } else {
            None
        }
    }

    /// After one receive: counts what has come of a head that is not whole. True if the connection
    /// has sent much of one while the core has no memory left, and is to end.
    ///
    /// Small parts neither end a connection nor bring that about: their number is bounded by that
    /// of connections. Tunnels answer for tunnels alone, and lose no session for the parts of
    /// others: one ends only for a part that is more than a head may be.
    pub(super) fn count_partial(&mut self, turn: &mut Turn<'_>, conn: ConnId) -> bool {
        let limits = &turn.settings.config.limits;
        let (budget, head) = (limits.core_buffer, limits.header_bytes);
        let Some(hop) = self.hop_mut(conn) else { return false };
        let (before, now) = (hop.partial as usize, hop.link.partial());
        if before == now {
            return false;
        }
        hop.partial = counted(now);
        let (role, most) = match hop.role {
            HopRole::Client(_) => (0, LARGE_HEAD),
            HopRole::Tunnel(_) => (1, head.max(LARGE_HEAD)),
        };
        self.parts[role] = self.parts[role] - large(before) + large(now);
        let over = now > before.max(most) && self.parts[role] > budget;
        if over {
            turn.limit_hit(Limit::CoreBuffer);
        }
        over
    }

    /// An HTTP/1 connection ends, and the input that it had put aside goes with it.
    pub(super) fn forget_kept(&mut self, turn: &mut Turn<'_>, hop: &mut Hop) {
        if let Link::H1(h1) = &mut hop.link {
            let waits = h1.take_waiting(&mut turn.net.pool);
            self.remove_buffered(turn, None, waits);
        }
    }

    /// A hop goes, and what had come of a head with it.
    pub(super) fn forget_partial(&mut self, hop: &mut Hop) {
        let role = usize::from(hop.client().is_none());
        self.parts[role] -= large(std::mem::take(&mut hop.partial) as usize);
    }
}

impl Hop {
    /// The amount that waits of what came here has changed. While it is too much, credit of the
    /// connection is held back.
    fn buffered_changed(&mut self, turn: &mut Turn<'_>, before: u32) {
        let most = turn.settings.buffered_per_connection();
        let (was, is) = (before as usize > most, self.buffered as usize > most);
        match &mut self.link {
            Link::H2(h2) => {
                if was != is {
                    h2.hold_connection_credit(is, &mut turn.net.sink(self.conn));
                }
            }
            Link::H1(_) => self.gate(turn, turn.settings.config.limits.http1_buffer),
        }
    }

    /// Stops reading while much waits of what came here, or lets it go on.
    fn gate(&mut self, turn: &mut Turn<'_>, most: usize) {
        let Link::H1(h1) = &mut self.link else { return };
        // Reading goes on at half the limit, so that it does not stop and go with every piece.
        // Input that is put aside counts as well. With little of it reading goes on, or nobody
        // would see the client leave while its request runs (contract CL-23).
        let gated = self.buffered as usize > if h1.gated { most / 2 } else { most };
        if gated != h1.gated {
            h1.gated = gated;
            if gated {
                self.waits += 1;
            } else {
                self.waits -= 1;
            }
            turn.net.pause(self.conn, self.waits > 0);
        }
    }

    /// An HTTP/1 connection gives up its place to another protocol state: what stopped its reading
    /// does so no more.
    pub(super) fn replace_link(&mut self, turn: &mut Turn<'_>, link: Link) {
        if matches!(&self.link, Link::H1(h1) if h1.gated) {
            self.waits -= 1;
            turn.net.pause(self.conn, self.waits > 0);
        }
        self.link = link;
    }
}

/// Output of a hop above which no more DATA is moved to it.
fn most_output(short: bool) -> usize {
    if short { OUTPUT_SHORT } else { OUTPUT_HIGH }
}

/// A size as hops count it: what waits of one, lists included, is less than 4 GiB.
pub(super) fn counted(size: usize) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
}

/// Whether one list more is over what a connection may have wait. The first one may always.
fn is_over(waits: u32, size: usize, most: usize) -> bool {
    waits > 0 && waits as usize + size > most
}

/// The octets of an unfinished head that count against the core: none if the part is small.
fn large(part: usize) -> usize {
    if part > LARGE_HEAD { part } else { 0 }
}

/// The rest of the block cannot be kept, and without it no other can be decoded.
pub(super) fn no_memory() -> ConnFault {
    ConnFault {
        code: ErrorCode::EnhanceYourCalm,
        reason: "no memory for more of this header block",
        limit: None::<LimitId>,
    }
}
