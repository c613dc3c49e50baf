//! How exchanges and connections of HTTP/1 end: in order, and the connection goes on; by a fault,
//! with an answer if there was none; or as a stream of bytes, both hops at once.

use std::time::Duration;

use ringway_proto::h1::{Event, Fault, Role, write_text};
use ringway_proto::h2::{ConnFault, ErrorCode, NO_TAG};

use super::Shard;
use super::close::Cause;
use super::conn::{Hop, Leaving};
use super::exchange::{At, Parting, Way};
use super::link::Link;
use super::park::{Gone, Manner};
use super::table::Key;
use super::timer::Due;
use crate::border::{Border, Close, ConnId, End};
use crate::metrics::Limit;

/// How long after one side has ended a stream of bytes the other one may show why: a client, that it
/// had left before (a browser closes within a few milliseconds of its Close); the function, that it
/// has finished (some clients close as soon as they have the answer to their Close).
const LAST_WORD: Duration = Duration::from_millis(50);

impl Shard {
    /// A message has ended with what was shown before.
    pub(super) fn http1_message_end(&mut self, border: &mut Border, at: At) {
        let Some(hop) = self.conns.hop(at.conn) else { return };
        let (way, slot) = (hop.way_in(), hop.link.tag(at.key));
        let Some(exchange) = self.exchanges.at_mut(slot) else { return };
        let own = exchange.attachment.is_none() && way == Way::Up;
        exchange.pipe(way).ended = true;
        if own {
            self.direction_done(border, slot, way);
        } else {
            self.schedule(border, slot, way);
        }
    }

    /// An exchange of a client connection is over; false if the connection speaks HTTP/2. The
    /// next request is read, or the connection ends.
    pub(super) fn http1_client_over(&mut self, border: &mut Border, conn: ConnId) -> bool {
        let Some(hop) = self.conns.hop_mut(conn) else { return false };
        let leaving = hop.is_leaving();
        let Link::H1(h1) = &mut hop.link else { return false };
        h1.release();
        if h1.codec.next_message() {
            self.http1_continue(conn);
            self.watch(conn);
            return true;
        }
        // Contract CL-42: what is not whole must not look whole.
        let whole = h1.codec.has_written_all();
        border.set_open_ended(conn, !whole && h1.codec.is_open_ended());
        border.close(conn, if whole { Close::Flush } else { Close::Now });
        let how = if leaving { Gone::ByUs(Cause::SHUTDOWN) } else { Gone::Done };
        self.client_gone(border, conn, how);
        true
    }

    /// An exchange of a tunnel is over; false if the tunnel speaks HTTP/2. It waits for the next
    /// one if both messages are whole, and is closed if not (contract CL-23, CL-43).
    pub(super) fn http1_tunnel_over(&mut self, border: &mut Border, conn: ConnId) -> bool {
        let Some(hop) = self.conns.hop_mut(conn) else { return false };
        let Link::H1(h1) = &mut hop.link else { return false };
        h1.release();
        let answered = h1.codec.has_read_all();
        if h1.codec.is_between() && h1.codec.keeps_alive() {
            if let Some(tunnel) = hop.tunnel_mut() {
                tunnel.idle_since = Some(border.now);
            }
            self.watch(conn);
        } else if hop.tunnel().is_none_or(|tunnel| tunnel.held.is_none()) {
            let cause = if answered { Cause::USED_UP } else { Cause::ABANDONED };
            self.tunnel_gone(border, conn, cause);
        }
        true
    }

    /// The peer's bytes on an HTTP/1 connection have ended.
    pub(super) fn http1_ended(&mut self, border: &mut Border, conn: ConnId, end: End) {
        if self.h1_mut(conn).is_some_and(|h1| h1.codec.is_raw() && h1.has_kept()) {
            self.http1_unread(border, conn);
        }
        let Some(hop) = self.conns.hop(conn) else { return };
        let tunnel = hop.tunnel().is_some();
        let Link::H1(h1) = &hop.link else { return };
        if h1.codec.is_raw() && h1.slot != NO_TAG {
            let slot = h1.slot;
            return match (tunnel, end) {
                (true, End::Fin) => self.function_finished(border, slot),
                // The function's FIN may be among what came with it.
                (false, End::Fin) => self.parting.extend(self.exchanges.key_at(slot)),
                _ => self.end_raw(border, slot, (tunnel, end)),
            };
        }
        if !tunnel {
            // Contract CL-23: also if a request of it runs.
            self.client_gone(border, conn, Gone::Ended(end));
            return border.close(conn, Close::Flush);
        }
        let held = hop.tunnel().filter(|tunnel| tunnel.held.is_some()).map(|held| held.attachment);
        if end == End::Fin && held.is_some_and(|key| self.last_chance(key)) {
            return;
        }
        let Some(h1) = self.h1_mut(conn) else { return };
        if end == End::Fin && h1.codec.eof() == Ok(Event::End) {
            let at = At { conn, key: h1.key() };
            self.http1_message_end(border, at);
        }
        self.tunnel_gone(border, conn, Cause::ended(end));
    }

    /// The function's side has ended a stream of bytes. Where that is a clean end, a client that had
    /// left before is told from one that got the last bytes and then leaves: a browser that loads its
    /// page again closes behind its Close and reads nothing more, so that the answer meets a RST, or
    /// its FIN comes while the answer is on its way. No frame is looked at.
    fn function_finished(&mut self, border: &mut Border, slot: u32) {
        if !self.may_be_finished(slot) {
            return self.end_raw(border, slot, (true, End::Fin));
        }
        self.flush_raw(border, slot, Way::Down);
        let Some(exchange) = self.exchanges.at_mut(slot) else { return };
        let before = std::mem::replace(&mut exchange.parting, Parting::Function);
        if let Parting::Client(heard) = before {
            let by_worker = exchange.down.bytes == heard;
            return self.end_raw(border, slot, (by_worker, End::Fin));
        }
        let key = self.exchanges.key_at(slot);
        if let Some(key) = key.filter(|key| !self.parting.contains(key)) {
            self.timers.arm(border.now + LAST_WORD, Due::Finish(key));
        }
    }

    /// Whether the function's FIN would be a clean end of this stream of bytes, and not its client's.
    fn may_be_finished(&self, slot: u32) -> bool {
        let of = self.exchanges.at(slot).and_then(|exchange| exchange.attachment);
        let spare = of.and_then(|of| self.attachments.get(of)).and_then(|of| of.spare);
        spare.is_some() && !of.is_some_and(|of| self.outlives_finish(of))
    }

    /// The clients that ended streams of bytes in this turn. One that got all there was may have left
    /// because its function has finished, whose FIN is then not far.
    pub(super) fn part_clients(&mut self, border: &mut Border) {
        while let Some(key) = self.parting.pop() {
            let Some(exchange) = self.exchanges.get(key) else { continue };
            let client = exchange.client.conn;
            let heard = border.was_delivered(client) && border.queued(client) == 0;
            let (parting, got) = (exchange.parting, exchange.down.bytes);
            if parting == Parting::None && heard && self.may_be_finished(key.slot) {
                if let Some(exchange) = self.exchanges.get_mut(key) {
                    exchange.parting = Parting::Client(got);
                }
                self.timers.arm(border.now + LAST_WORD, Due::Finish(key));
                continue;
            }
            let finished = parting == Parting::Function && heard;
            self.end_raw(border, key.slot, (finished, End::Fin));
        }
    }

    /// One side has ended a stream of bytes, and the other one has not shown why.
    pub(super) fn finish_raw(&mut self, border: &mut Border, key: Key) {
        let Some(exchange) = self.exchanges.get(key) else { return };
        let by_worker = exchange.parting == Parting::Function;
        self.end_raw(border, key.slot, (by_worker, End::Fin));
    }

    /// Sends what waits in one direction of a stream of bytes.
    fn flush_raw(&mut self, border: &mut Border, slot: u32, way: Way) {
        let Some(exchange) = self.exchanges.at_mut(slot) else { return };
        let (from, to) = (exchange.from(way), exchange.to(way));
        let pipe = exchange.pipe(way);
        for part in pipe.queue.drain(..) {
            if let Some(to) = to {
                border.push(to.conn, part);
            }
            border.pool.release(part);
        }
        let waited = std::mem::take(&mut pipe.queued);
        self.let_go(border, from.map(|at| at.conn), waited);
    }

    /// One side of a stream of bytes has ended: what was received goes out, then both end
    /// (contract CL-47), the tunnel not before another one is there that stands in for it. A FIN on
    /// one side is a FIN on the other; whatever cut the bytes short is a RST there. The function's FIN
    /// is a clean end: for what is not kept after one, no spare stays.
    fn end_raw(&mut self, border: &mut Border, slot: u32, (by_worker, end): (bool, End)) {
        for way in [Way::Up, Way::Down] {
            self.flush_raw(border, slot, way);
            if let Some(exchange) = self.exchanges.at_mut(slot) {
                exchange.pipe(way).ended = true;
            }
        }
        let Some(exchange) = self.exchanges.at(slot) else { return };
        let (client, tunnel) = (exchange.client.conn, exchange.worker.map(|at| at.conn));
        let (attachment, finished) = (exchange.attachment, exchange.parting == Parting::Function);
        // A tunnel whose FIN has come can break all the same.
        let end = if by_worker && finished { End::Fin } else { end };
        for conn in [Some(client), tunnel].into_iter().flatten() {
            border.set_open_ended(conn, end != End::Fin);
        }
        let clean = by_worker && end == End::Fin;
        let key = attachment.filter(|_| clean || !by_worker);
        let kept = key.filter(|key| !clean || self.outlives_finish(*key));
        let replaced = kept.is_some_and(|key| self.ask_spare(key));
        border.close(client, Close::Flush);
        if let Some(tunnel) = tunnel
            && !replaced
        {
            if let Some(key) = key {
                self.end_spare_of(border, key);
            }
            let cause = if by_worker { Cause::ended(end) } else { Cause::client_ended(end) };
            border.close(tunnel, Close::Flush);
            self.tunnel_gone(border, tunnel, cause);
        }
        let how = if by_worker { Gone::Function(end) } else { Gone::Ended(end) };
        self.client_gone(border, client, how);
        if let Some(key) = kept.filter(|_| finished) {
            self.last_chance(key);
        }
    }

    /// Whether an attachment's session is kept for a client although the function's side has
    /// finished with it.
    fn outlives_finish(&self, key: Key) -> bool {
        let Some(attachment) = self.attachments.get(key) else { return false };
        let (function, version) = (&attachment.owner.function, &attachment.owner.version);
        let streams = self.policy.streams(function, version);
        self.settings.config.session.park.keeps(Manner::Finished, streams)
    }

    /// What a peer sent cannot be read, or not as one thing only: its connection ends.
    pub(super) fn http1_fault(&mut self, border: &mut Border, conn: ConnId, fault: Fault) {
        use ringway_proto::h1::head::HeadFault;
        let Some(hop) = self.conns.hop(conn) else { return };
        let tunnel = hop.tunnel().is_some();
        let Link::H1(h1) = &hop.link else { return };
        match fault {
            Fault::Broken(HeadFault::TooLarge) => self.metrics.limit_hit(Limit::HeaderBytes),
            Fault::Broken(HeadFault::Timeout) => self.metrics.limit_hit(Limit::Handshake),
            Fault::Broken(HeadFault::TooManyFields) => self.metrics.limit_hit(Limit::HeaderFields),
            _ => {}
        }
        let told = ConnFault { code: ErrorCode::ProtocolError, reason: fault.text(), limit: None };
        crate::log::connection_failed(hop.peer, tunnel, &told, self.settings.core);
        if tunnel {
            return self.tunnel_gone(border, conn, Cause::MALFORMED);
        }
        let (slot, foreign) = (h1.slot, h1.foreign);
        let exchange = self.exchanges.at(slot).filter(|_| slot != NO_TAG);
        let begun = exchange.is_some_and(|exchange| exchange.status != 0);
        let whole = exchange.is_none_or(|exchange| exchange.attachment.is_none());
        if !begun && !foreign {
            let date = self.settings.date(self.now);
            let out = &mut border.sink(conn);
            write_text(fault.status(Role::Server), fault.text(), false, date, out);
        }
        border.close(conn, if begun && !whole { Close::Now } else { Close::Flush });
        self.client_gone(border, conn, Gone::ByUs(Cause::CLIENT_GONE));
    }

    /// A body that is not as long as its head said, which the reader would have refused: cut.
    pub(super) fn wrong_length(&mut self, border: &mut Border, slot: u32) {
        debug_assert!(false, "a body of another length than announced was let in");
        let code = Some(ErrorCode::InternalError);
        self.drop_exchange(border, slot, code, code);
    }

    /// A draining client connection: its response says that it is the last, and an idle one ends.
    pub(super) fn http1_leave(&mut self, border: &mut Border, conn: ConnId) {
        let Some(hop) = self.conns.hop_mut(conn) else { return };
        let Some(client) = hop.client_mut() else { return };
        client.leaving = Leaving::Final;
        let Link::H1(h1) = &mut hop.link else { return };
        h1.codec.close_after();
        if h1.slot == NO_TAG && h1.codec.is_between() && h1.upgrading.is_none() {
            border.close(conn, Close::Flush);
            self.client_gone(border, conn, Gone::ByUs(Cause::SHUTDOWN));
        }
    }

    /// What an HTTP/1 connection kept goes with it.
    pub(super) fn http1_forget(&mut self, border: &mut Border, hop: &mut Hop) {
        let Link::H1(h1) = &mut hop.link else { return };
        let waits = h1.take_waiting(&mut border.pool);
        self.let_go(border, None, waits);
    }
}
