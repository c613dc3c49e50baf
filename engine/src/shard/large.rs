//! Heads and trailers that are large: over a limit they cost their own exchange, and below it they
//! are counted against the core's memory for as long as they wait.
//!
//! A request head waits for its tunnel, and trailers behind DATA: they count as DATA that waits
//! does. The parts of heads that are not whole may be as much again: what has no room ends its
//! connection, which heads that merely wait must not bring about. What was sent on already waits
//! as output, see [`super::relay::OUTPUT_FULL`].

use ringway_proto::fault::Fault;
use ringway_proto::fields::Fields;
use ringway_proto::h1::{self, head::HeadFault};
use ringway_proto::h2::{ConnFault, ErrorCode, LimitId};

use super::Shard;
use super::conn::{Hop, Side};
use super::exchange::{At, Exchange, Way};
use super::link::Link;
use crate::border::{Border, ConnId};
use crate::metrics::Limit;
use crate::pool::CHUNK_BYTES;

/// Size of a head, as limit L2 counts, from which on it is let in only if the core has room for it:
/// smaller ones are bounded by what a connection may have wait, and by the number of connections.
const LARGE_HEAD: usize = 16 * 1024;

/// Octets of a request target that the access log shows.
pub(super) const LOGGED_PATH: usize = 8 * 1024;

/// A head or trailers that cannot be relayed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unwanted<'a> {
    pub(super) at: At,
    pub(super) fields: &'a Fields,
    /// The peer sends nothing after it.
    pub(super) ended: bool,
}

impl Shard {
    /// Whether the connection may have the list in hand wait, and the core has memory for it. If
    /// not, the exchange is refused here.
    #[inline]
    pub(super) fn admit_head(&mut self, border: &mut Border, at: At, ended: bool) -> bool {
        self.fields.size() <= LARGE_HEAD || self.admit_large(border, at, ended)
    }

    #[cold]
    fn admit_large(&mut self, border: &mut Border, at: At, ended: bool) -> bool {
        let (limits, size) = (&self.settings.config.limits, self.fields.size());
        let waits = self.held.max(border.pool.chunks_live() * CHUNK_BYTES);
        // A field that is said again costs its sender one octet: no connection may fill the core
        // with what it says, or all others pay.
        let own = self.conns.hop(at.conn).map_or(0, |hop| hop.lists);
        let full = if is_over(own, size, limits.connection_buffer) {
            Limit::ConnectionBuffer
        } else if waits + size > limits.core_buffer {
            Limit::CoreBuffer
        } else {
            return true;
        };
        self.metrics.limit_hit(full);
        let fields = std::mem::take(&mut self.fields);
        let unwanted = Unwanted { at, fields: &fields, ended };
        self.turn_down(border, unwanted, (&Fault::Overloaded, &Fault::Overloaded));
        self.fields = fields;
        false
    }

    /// A head or trailers over limit L2 or L3.
    pub(super) fn head_too_large(&mut self, border: &mut Border, unwanted: Unwanted<'_>) {
        let most = self.settings.config.limits.header_fields;
        let full = unwanted.fields.len() >= most;
        self.metrics.limit_hit(if full { Limit::HeaderFields } else { Limit::HeaderBytes });
        self.turn_down(border, unwanted, (&Fault::HeadTooLarge, &Fault::AnswerTooLarge));
    }

    /// Ends the exchange that a head or trailers belong to, by the first fault if they are the
    /// client's, by the second if they are the worker's. Nothing else on either hop is touched.
    fn turn_down(
        &mut self,
        border: &mut Border,
        unwanted: Unwanted<'_>,
        (of_client, of_worker): (&Fault, &Fault),
    ) {
        let Unwanted { at, fields, ended } = unwanted;
        let Some(hop) = self.conns.hop(at.conn) else { return };
        let (slot, client) = (hop.link.tag(at.key), hop.client().is_some());
        match self.exchanges.at_mut(slot) {
            None if client => {
                let style = ringway_proto::route::reply_style(fields);
                let asked = self.asked(at, fields, ended);
                self.refuse(border, &asked, &style, of_client);
            }
            // A request's trailers.
            Some(exchange) if client => {
                exchange.up.ended |= ended;
                if exchange.attachment.is_some() {
                    self.cancel_exchange(border, slot, of_client);
                } else if ended {
                    self.direction_done(border, slot, Way::Up);
                }
            }
            // Nothing of the answer has gone out: the client can be told.
            Some(exchange) if exchange.status == 0 => {
                self.cancel_exchange(border, slot, of_worker);
            }
            _ => {
                let code = Some(ErrorCode::InternalError);
                self.drop_exchange(border, slot, code, code);
            }
        }
    }

    /// A head or trailers begin to wait with their exchange, in memory of their own. They count
    /// against the core and against the hop they came from. False if that hop has as many already
    /// as it may: then [`Self::list_refused`] is to follow.
    #[must_use]
    pub(super) fn list_waits(
        &mut self,
        border: &mut Border,
        slot: u32,
        way: Way,
        size: usize,
    ) -> bool {
        let Some(exchange) = self.exchanges.at_mut(slot) else { return true };
        let (counted, mut fits) = (counted(size), true);
        exchange.lists[way as usize] += counted;
        if let Some(hop) = exchange.from(way).and_then(|at| self.conns.hop_mut(at.conn)) {
            fits = !is_over(hop.lists, size, self.settings.config.limits.connection_buffer);
            hop.lists += counted;
        }
        self.holding(border, None, size);
        fits
    }

    /// What has just begun to wait is more than its connection may have wait: it costs its own
    /// exchange.
    #[cold]
    pub(super) fn list_refused(
        &mut self,
        border: &mut Border,
        slot: u32,
        way: Way,
        fields: &Fields,
    ) {
        self.metrics.limit_hit(Limit::ConnectionBuffer);
        let Some(exchange) = self.exchanges.at(slot) else { return };
        let Some(at) = exchange.from(way) else { return };
        let ended = exchange.ended(way);
        let unwanted = Unwanted { at, fields, ended };
        self.turn_down(border, unwanted, (&Fault::Overloaded, &Fault::Overloaded));
    }

    /// The counterpart of [`Self::list_waits`].
    pub(super) fn list_went(&mut self, slot: u32, way: Way, size: usize) {
        if size == 0 {
            return;
        }
        let Some(exchange) = self.exchanges.at_mut(slot) else { return };
        let counted = counted(size);
        exchange.lists[way as usize] -= counted;
        if let Some(hop) = exchange.from(way).and_then(|at| self.conns.hop_mut(at.conn)) {
            hop.lists -= counted;
        }
        self.held -= size;
    }

    /// An exchange goes, and its head and trailers with it.
    pub(super) fn lists_went(&mut self, exchange: &Exchange) {
        for way in [Way::Up, Way::Down] {
            let counted = exchange.lists[way as usize];
            if counted == 0 {
                continue;
            }
            if let Some(hop) = exchange.from(way).and_then(|at| self.conns.hop_mut(at.conn)) {
                hop.lists -= counted;
            }
            self.held -= counted as usize;
        }
    }

    /// After one receive: counts what has come of a head that is not whole, and ends a connection
    /// that has sent much of one while the core has no memory left.
    ///
    /// Small parts neither end a connection nor bring that about: their number is bounded by that
    /// of connections. Tunnels answer for tunnels alone, and lose no session for the parts of
    /// others: one ends only for a part that is more than a head may be.
    pub(super) fn count_partial(&mut self, border: &mut Border, conn: ConnId) {
        let limits = &self.settings.config.limits;
        let (budget, head) = (limits.core_buffer, limits.header_bytes);
        let Some(hop) = self.conns.hop_mut(conn) else { return };
        let (before, now) = (hop.partial as usize, hop.link.partial());
        if before == now {
            return;
        }
        hop.partial = counted(now);
        let (side, most) = match hop.side {
            Side::Client(_) => (0, LARGE_HEAD),
            Side::Tunnel(_) => (1, head.max(LARGE_HEAD)),
        };
        self.parts[side] = self.parts[side] - large(before) + large(now);
        if now > before.max(most) && self.parts[side] > budget {
            self.metrics.limit_hit(Limit::CoreBuffer);
            match self.conns.hop(conn).map(|hop| &hop.link) {
                Some(Link::H2(_)) => self.fail(border, conn, no_memory()),
                Some(Link::H1(_)) => {
                    self.http1_fault(border, conn, h1::Fault::Broken(HeadFault::TooLarge));
                }
                None => {}
            }
        }
    }

    /// A hop goes, and what had come of a head with it.
    pub(super) fn forget_partial(&mut self, hop: &mut Hop) {
        let side = usize::from(hop.client().is_none());
        self.parts[side] -= large(std::mem::take(&mut hop.partial) as usize);
    }
}

/// A size as hops count it: what waits of one, lists included, is less than 4 GiB.
pub(super) fn counted(size: usize) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
}

/// Whether one list more is over what a connection may have wait. The first one may always.
fn is_over(waits: u32, size: usize, most: usize) -> bool {
    waits > 0 && waits as usize + size > most
}

/// What a part of a head counts against the core.
fn large(part: usize) -> usize {
    if part > LARGE_HEAD { part } else { 0 }
}

/// The rest of the block cannot be kept, and without it no other can be decoded.
fn no_memory() -> ConnFault {
    ConnFault {
        code: ErrorCode::EnhanceYourCalm,
        reason: "no memory for more of this header block",
        limit: None::<LimitId>,
    }
}
