//! Bytes that wait for another hop go out in turn, as far as windows and output allow. The ends of
//! exchanges are here too.

use std::time::Duration;

use ringway_proto::h2::{Blocked, ErrorCode, SMALL_SEND};
use ringway_proto::time::Time;

use super::super::facts::ForRelay;
use super::super::table::Key;
use super::super::timer::Due;
use super::super::turn::Turn;
use super::exchange::{At, Exchange, Pipe, Served, Way};
use super::streams::{SMALL_FRAME, Streams};
use crate::log::{AccessLine, Line};
use crate::metrics::{CopyWhy, HttpKey, HttpSample, HttpVersion};
use crate::net::ConnId;

/// Bytes one stream may send before the next stream of the hop has its turn.
const TURN_BYTES: usize = 64 * 1024;

/// How long bulk data that has used a small part of a window waits for a larger part.
const SMALL_SEND_WAIT: Duration = Duration::from_millis(5);

/// A peer that took nothing for so long has stalled.
const STALL: Duration = Duration::from_secs(1);

/// The outcome of a stream's turn.
enum Went {
    /// All is sent; END_STREAM too, if it was due.
    Empty,
    /// More could be sent: it is the next stream's turn.
    Again,
    /// The stream waits for its own window.
    Blocked,
    /// Every stream of the hop has to wait.
    HopBlocked,
}

/// Design 3.11: the code that a hop's reset becomes on the other hop. A message that was cut must
/// not look whole there, so the code is never `NO_ERROR` (contract CL-42, RFC 9113 §8.1).
pub(super) fn relayed_code(code: ErrorCode) -> ErrorCode {
    match code {
        ErrorCode::Cancel | ErrorCode::RefusedStream | ErrorCode::EnhanceYourCalm => code,
        _ => ErrorCode::InternalError,
    }
}

impl Streams {
    /// Puts a pipe with something to send on its receiver's turn list and lets the hop send.
    pub(super) fn schedule(&mut self, turn: &mut Turn<'_>, slot: u32, way: Way) {
        let key = self.exchanges.key_at(slot);
        let exchange = self.exchanges.at_mut(slot).and_then(|of| Some((of.to(way)?, of.pipe(way))));
        if let (Some(key), Some((to, pipe))) = (key, exchange)
            && pipe.waits()
            && !pipe.scheduled
            && let Some(hop) = self.hops.hop_mut(to.conn)
        {
            pipe.scheduled = true;
            hop.ready.push_back(key);
            self.pump(turn, to.conn);
        }
    }

    /// Lets the streams that wait for this hop send in turn, as far as windows and output allow.
    pub(super) fn pump(&mut self, turn: &mut Turn<'_>, conn: ConnId) {
        while let Some((key, way, hop_since)) = self.next_ready(turn, conn) {
            // An exchange may be gone, and its slot another one's by now, with a turn on another
            // hop.
            let Some(exchange) = self.exchanges.get_mut(key) else { continue };
            let since = exchange.pipe(way).moved_at.max(hop_since);
            let went = self.send_waiting(turn, key.slot, way);
            if let Some(exchange) = self.exchanges.get_mut(key) {
                let pipe = exchange.pipe(way);
                pipe.scheduled = matches!(went, Went::Again | Went::HopBlocked);
                let took = pipe.moved_at.since(since);
                if took >= STALL {
                    turn.relay(ForRelay::Stalled { exchange: key, up: way == Way::Up, took });
                }
            }
            match went {
                Went::Empty => self.direction_done(turn, key.slot, way),
                Went::Again => self.requeue(conn, key, false),
                Went::Blocked => {}
                Went::HopBlocked => return self.requeue(conn, key, true),
            }
        }
    }

    /// The exchange whose turn it is on a hop that has room.
    fn next_ready(&mut self, turn: &Turn<'_>, conn: ConnId) -> Option<(Key, Way, Time)> {
        let room = !self.hops.output_is_full(turn, conn);
        let hop = self.hops.hop_mut(conn)?;
        let key = if room { hop.ready.pop_front() } else { None };
        Some((key?, hop.way_out(), hop.hop_since))
    }

    fn requeue(&mut self, conn: ConnId, key: Key, front: bool) {
        if let Some(hop) = self.hops.hop_mut(conn) {
            if front { hop.ready.push_front(key) } else { hop.ready.push_back(key) }
        }
    }

    /// Takes one stream's turn: DATA up to its share, then trailers or the bare end.
    fn send_waiting(&mut self, turn: &mut Turn<'_>, slot: u32, way: Way) -> Went {
        let mut share = TURN_BYTES;
        loop {
            let exchange = self.exchanges.at_mut(slot).expect("its turn has come");
            let (from, to) = (exchange.from(way), exchange.to(way));
            let pipe = exchange.pipe(way);
            let full = to.is_some_and(|to| self.hops.output_is_full(turn, to.conn));
            let hop = to.and_then(|to| Some((to, self.hops.hop_mut(to.conn)?)));
            let Some((to, hop)) = hop else { return Went::Blocked };
            let waiting = pipe.queued;
            let Some(front) = pipe.queue.front_mut() else {
                return self.send_end(turn, slot, way);
            };
            let piece = front.len as usize;
            let n = match hop.link.sendable(to.key, piece, waiting, !pipe.small_send) {
                Ok(n) => n.min(share),
                Err(blocked) => {
                    let small_send = hop.link.data_room(to.key) > 0;
                    return self.blocked(turn, slot, way, (blocked, small_send));
                }
            };
            if share == 0 || full {
                return Went::Again;
            }
            let end = waiting == n && pipe.ended && pipe.trailers.is_none();
            if !hop.link.put_data(to.key, n, end, &mut turn.net.sink(to.conn)) {
                self.wrong_length(turn, slot);
                return Went::Blocked;
            }
            share -= n;
            pipe.small_send = n < SMALL_SEND.min(piece);
            let part = front.part(0, n);
            let rest = front.part(n, front.len as usize - n);
            pipe.queued -= n;
            pipe.moved_at = turn.now;
            if n <= SMALL_FRAME {
                if turn.net.pool.is_ring(part) {
                    turn.metrics.payload_copied[CopyWhy::SmallFrame.index()] += n as u64;
                }
                turn.net.put_copy(to.conn, part);
            } else {
                turn.net.push(to.conn, part);
            }
            let whole = !end || hop.link.end_data(&mut turn.net.sink(to.conn));
            if rest.len == 0 {
                pipe.queue.pop_front();
                turn.net.pool.release(part);
            } else {
                *front = rest;
            }
            let backlog = pipe.queued > 0;
            self.hops.took(turn, (from, to.conn), n, backlog);
            if !whole {
                self.wrong_length(turn, slot);
                return Went::Blocked;
            }
            if end {
                return Went::Empty;
            }
        }
    }

    /// A turn that has to wait. If a small part of the window is left, it is used after a while:
    /// the receiver may give credit for whole messages only.
    fn blocked(
        &mut self,
        turn: &mut Turn<'_>,
        slot: u32,
        way: Way,
        (by, small_send): (Blocked, bool),
    ) -> Went {
        let key = self.key_at(slot);
        if let Some(exchange) = self.exchanges.get_mut(key).filter(|_| small_send)
            && !std::mem::replace(&mut exchange.pipe(way).crumb_waits, true)
        {
            turn.arm(turn.now + SMALL_SEND_WAIT, Due::SmallSend(key));
        }
        match by {
            Blocked::Connection => Went::HopBlocked,
            Blocked::Stream | Blocked::Ended => Went::Blocked,
        }
    }

    /// The next small sends of an exchange may go.
    pub(super) fn allow_small_sends(&mut self, turn: &mut Turn<'_>, key: Key) {
        for way in [Way::Up, Way::Down] {
            let waits = |exchange: &mut Exchange| {
                let (to, pipe) = (exchange.to(way), exchange.pipe(way));
                std::mem::take(&mut pipe.crumb_waits).then(|| {
                    pipe.small_send = false;
                    to.filter(|_| pipe.scheduled)
                })
            };
            match self.exchanges.get_mut(key).and_then(waits) {
                Some(Some(to)) => self.pump(turn, to.conn),
                Some(None) => self.schedule(turn, key.slot, way),
                None => {}
            }
        }
    }

    /// The end of a direction whose DATA is all sent.
    fn send_end(&mut self, turn: &mut Turn<'_>, slot: u32, way: Way) -> Went {
        let exchange = self.exchanges.at_mut(slot).expect("the caller has just found it");
        let to = exchange.to(way).expect("the caller has just found it");
        let pipe = exchange.pipe(way);
        if !pipe.ended || pipe.done {
            return Went::Blocked;
        }
        let trailers = pipe.trailers.take();
        let size = trailers.as_ref().map_or(0, |trailers| trailers.size());
        let hop = self.hops.hop_mut(to.conn).expect("the caller has just found it");
        let out = &mut turn.net.sink(to.conn);
        let whole = match trailers {
            Some(trailers) => {
                hop.link.trailers(to.key, &trailers, &mut self.block, out);
                true
            }
            None => hop.link.put_data(to.key, 0, true, out) && hop.link.end_data(out),
        };
        self.list_went(slot, way, size);
        if !whole {
            self.wrong_length(turn, slot);
            return Went::Blocked;
        }
        Went::Empty
    }

    /// Sends what waits in one direction of a stream of bytes.
    pub(super) fn flush_raw(&mut self, turn: &mut Turn<'_>, slot: u32, way: Way) {
        let exchange = self.exchanges.at_mut(slot).expect("the caller has just found it");
        let (from, to) = (exchange.from(way), exchange.to(way));
        let pipe = exchange.pipe(way);
        for part in pipe.queue.drain(..) {
            if let Some(to) = to {
                turn.net.push(to.conn, part);
            }
            turn.net.pool.release(part);
        }
        let waited = std::mem::take(&mut pipe.queued);
        self.hops.remove_buffered(turn, from.map(|at| at.conn), waited);
    }

    /// Exchanges that have not moved for long although something waits (L11).
    pub(super) fn stalled(&self, turn: &Turn<'_>) -> Vec<Key> {
        let (now, patience) = (turn.now, turn.settings.config.limits.stalled_stream);
        let stalled = |pipe: &Pipe| pipe.queued > 0 && pipe.moved_at + patience <= now;
        let all = self.exchanges.iter();
        all.filter(|(_, exchange)| stalled(&exchange.up) || stalled(&exchange.down))
            .map(|(key, _)| key)
            .collect()
    }

    /// Copies out of receive memory what waits there.
    pub(super) fn relieve(&mut self, turn: &mut Turn<'_>) {
        for exchange in self.exchanges.values_mut() {
            turn.net.copy_out_of(&mut exchange.up.queue);
            turn.net.copy_out_of(&mut exchange.down.queue);
        }
    }

    // ---- ends of exchanges ----

    /// One direction of an exchange has passed its END_STREAM on.
    pub(super) fn direction_done(&mut self, turn: &mut Turn<'_>, slot: u32, way: Way) {
        let exchange = self.exchanges.at_mut(slot).expect("the caller has just found it");
        exchange.pipe(way).done = true;
        let own = exchange.served == Served::Ourselves;
        if exchange.up.done && exchange.down.done {
            turn.relay(ForRelay::Over { exchange: self.key_at(slot) });
        } else if exchange.down.done {
            // RFC 9113 §8.1: a complete response ends the exchange; the rest of the request is not
            // wanted any more. Behind an answer of ours the rest is read for a while, unless the
            // connection ends anyway.
            let client = exchange.client.conn;
            let ends = self.hops.hop(client).is_some_and(|hop| hop.link.ends_with_exchange());
            if !own || ends {
                let code = Some(ErrorCode::NoError);
                self.drop_exchange(turn, slot, code, code);
            }
        }
    }

    /// A stream was reset on one hop: the other one follows.
    pub(super) fn stream_reset(
        &mut self,
        turn: &mut Turn<'_>,
        conn: ConnId,
        slot: u32,
        code: ErrorCode,
    ) {
        let Some(exchange) = self.exchanges.at_mut(slot) else { return };
        if exchange.client.conn == conn {
            self.drop_exchange(turn, slot, None, Some(relayed_code(code)));
        } else if exchange.down.ended && code == ErrorCode::NoError {
            // The worker has answered in full and wants no more of the request; what waits of
            // the answer is still delivered.
            exchange.up.ended = true;
            let waiting = exchange.up.clear(&mut turn.net.pool);
            let client = exchange.client.conn;
            self.hops.remove_buffered(turn, Some(client), waiting);
        } else {
            self.drop_exchange(turn, slot, Some(relayed_code(code)), None);
        }
    }

    /// Ends an exchange before its time, with a reset on the hops that are given a code.
    pub(super) fn drop_exchange(
        &mut self,
        turn: &mut Turn<'_>,
        slot: u32,
        client: Option<ErrorCode>,
        worker: Option<ErrorCode>,
    ) {
        if let Some(exchange) = self.exchanges.at_mut(slot) {
            exchange.stop();
            let ends = [(client, Some(exchange.client)), (worker, exchange.worker)];
            for (code, at) in ends {
                if let (Some(code), Some(at)) = (code, at) {
                    self.reset(turn, at, code);
                }
            }
            turn.relay(ForRelay::Over { exchange: self.key_at(slot) });
        }
    }

    pub(super) fn reset(&mut self, turn: &mut Turn<'_>, at: At, code: ErrorCode) {
        if let Some(hop) = self.hops.hop_mut(at.conn) {
            hop.link.reset(at.key, code, &mut turn.net.sink(at.conn));
        }
    }

    /// Cuts an exchange with a body that is not as long as its head said. The reader would have
    /// refused such a body.
    pub(super) fn wrong_length(&mut self, turn: &mut Turn<'_>, slot: u32) {
        debug_assert!(false, "a body of another length than announced was let in");
        let code = Some(ErrorCode::InternalError);
        self.drop_exchange(turn, slot, code, code);
    }

    /// Writes the exchange's line in the access log.
    pub(super) fn log_access(&self, turn: &mut Turn<'_>, exchange: &Exchange) {
        let hop = self.hops.hop(exchange.client.conn);
        if let Some((hop, path)) = hop.zip(exchange.path.clone()) {
            let latency = turn.now.since(exchange.began);
            turn.line(Line::Access(Box::new(AccessLine {
                method: exchange.method.label(),
                path,
                status: exchange.status,
                latency,
                client: hop.peer,
                size: exchange.down.bytes,
            })));
        }
    }

    /// Takes an exchange out of every table, with what waits of it.
    pub(super) fn remove(&mut self, turn: &mut Turn<'_>, key: Key) -> Option<Exchange> {
        let mut exchange = self.exchanges.remove(key)?;
        let client = exchange.client.conn;
        let up = exchange.up.clear(&mut turn.net.pool);
        let relayed = exchange.served != Served::Ourselves;
        self.hops.remove_buffered(turn, relayed.then_some(client), up);
        let down = exchange.down.clear(&mut turn.net.pool);
        self.hops.remove_buffered(turn, exchange.worker.map(|at| at.conn), down);
        for way in [Way::Up, Way::Down] {
            let counted = exchange.lists[way as usize];
            if let Some(from) = exchange.from(way).filter(|_| counted > 0) {
                self.hops.list_went(from.conn, counted);
            }
        }
        turn.metrics.active_http_requests -= u64::from(relayed);
        Some(exchange)
    }
}

impl Exchange {
    /// Nothing more is relayed of this exchange.
    fn stop(&mut self) {
        for pipe in [&mut self.up, &mut self.down] {
            pipe.ended = true;
            pipe.done = true;
        }
    }

    /// Counts the exchange, at its end.
    pub(super) fn count(&self, turn: &mut Turn<'_>) {
        let request_bytes = self.up.bytes + self.discarded as u64;
        let took = turn.now.since(self.began);
        let sample = HttpSample::new(took, request_bytes, self.down.bytes);
        let (method, status, version) = (self.method, self.status, self.version);
        turn.metrics.http_server.observe(HttpKey { method, status, version }, sample);
        if self.worker.is_some() {
            // A tunnel never speaks HTTP/1.0.
            let version = if version == HttpVersion::H10 { HttpVersion::H11 } else { version };
            turn.metrics.http_client.observe(HttpKey { method, status, version }, sample);
        }
    }
}
