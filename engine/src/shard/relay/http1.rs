//! HTTP/1 on a hop: one exchange at a time, no windows. Input becomes the same calls that HTTP/2's
//! events become. Input of a later message waits here, up to a limit at which reading stops.
//!
//! Streams of bytes, and how HTTP/1 connections end, are in [`super::bytes`], the change to HTTP/2
//! in [`super::h2c`].

use ringway_proto::h1::{self, Event, Fault};
use ringway_proto::h2::{HeadKind, NO_TAG};

use super::super::facts::ForSessions;
use super::super::turn::Turn;
use super::exchange::At;
use super::heads::{names_too_much, without_named};
use super::read::{Reader, Step};
use super::streams::{Kind, Piece};
use super::traffic::Tail;
use crate::net::ConnId;
use crate::pool::Segment;

const CONNECTION_TOO_LONG: Fault =
    Fault::Broken(h1::head::HeadFault::Malformed("Connection names too many fields"));

/// The framing that an answer's head announces.
#[derive(Clone, Copy)]
struct Framing {
    /// Nothing follows the head.
    ended: bool,
    /// A stream of bytes follows the head.
    upgrade: bool,
}

impl Reader {
    /// Reads one step in the bytes of an HTTP/1 connection, where they were received, as far as the
    /// message under way goes. The rest is put aside.
    #[inline(never)]
    pub(super) fn read_http1(
        &mut self,
        turn: &mut Turn<'_>,
        conn: ConnId,
        segment: Segment,
        pos: &mut usize,
    ) -> Step {
        if *pos == 0 && self.traffic.streams.received_unasked(turn, conn, segment) {
            return Step::Done;
        }
        self.traffic.streams.hops.known(conn).received_at = turn.now;
        let h1 = self.traffic.streams.hops.h1_mut(conn).expect("it speaks HTTP/1");
        if *pos == 0 && h1.has_kept() {
            self.traffic.streams.keep(turn, conn, segment);
            self.traffic.streams.after_http1(turn, conn);
            return Step::Done;
        }
        let input = turn.net.pool.bytes(segment);
        match h1.codec.next(input, pos, &mut self.fields) {
            Ok(Event::More) => {
                if *pos < segment.len as usize {
                    self.traffic.streams.keep(
                        turn,
                        conn,
                        segment.part(*pos, segment.len as usize - *pos),
                    );
                }
                self.traffic.streams.after_http1(turn, conn);
                Step::Done
            }
            Ok(event) => {
                self.http1_event(turn, conn, segment, event);
                Step::More
            }
            Err(fault) => {
                self.traffic.streams.http1_fault(turn, conn, fault);
                Step::Done
            }
        }
    }

    fn http1_event(&mut self, turn: &mut Turn<'_>, conn: ConnId, segment: Segment, event: Event) {
        let h1 = self.traffic.streams.hops.h1_mut(conn).expect("the event is its own");
        let at = At { conn, key: h1.key() };
        let upgrading = h1.upgrading.is_some();
        match event {
            Event::Head { kind: HeadKind::Request, end_stream, upgrade } => {
                self.http1_request(turn, conn, end_stream, upgrade);
            }
            Event::Head { kind, end_stream, upgrade } => {
                self.http1_response(turn, at, kind, Framing { ended: end_stream, upgrade });
            }
            Event::Data { start, len, end_stream } if upgrading => {
                self.h2c_body(turn, conn, segment.part(start, len), end_stream);
            }
            Event::End | Event::Trailers if upgrading => self.begin_h2c(turn, conn),
            Event::Data { start, len, end_stream } => {
                let payload = segment.part(start, len);
                h1.note_leaving(turn.net.pool.bytes(payload));
                let piece = Piece { at, payload, head_in_place: false, end: end_stream };
                self.traffic.streams.data(turn, piece);
            }
            Event::Trailers => {
                if self.traffic.admit_head(turn, at, &self.fields, true) {
                    self.traffic.trailers(turn, at, &self.fields);
                }
            }
            Event::End => self.traffic.streams.message_end(turn, at),
            Event::More => {}
        }
    }

    fn http1_request(&mut self, turn: &mut Turn<'_>, conn: ConnId, ended: bool, upgrade: bool) {
        if names_too_much(&self.fields) {
            return self.traffic.streams.http1_fault(turn, conn, CONNECTION_TOO_LONG);
        }
        let h1 = self.traffic.streams.hops.h1_mut(conn).expect("the request is its own");
        h1.begin_request(&self.fields, upgrade);
        let at = At { conn, key: h1.key() };
        if self.traffic.admit_head(turn, at, &self.fields, ended)
            && !self.starts_h2c(turn, conn, ended)
        {
            self.traffic.request(turn, at, &self.fields, ended);
        }
    }

    fn http1_response(
        &mut self,
        turn: &mut Turn<'_>,
        at: At,
        kind: HeadKind,
        Framing { ended, upgrade }: Framing,
    ) {
        if names_too_much(&self.fields) {
            return self.traffic.streams.http1_fault(turn, at.conn, CONNECTION_TOO_LONG);
        }
        if !self.traffic.admit_head(turn, at, &self.fields, ended) {
            return;
        }
        let passed = without_named(&self.fields);
        let fields = passed.as_ref().unwrap_or(&self.fields);
        let kind = match kind {
            HeadKind::Informational => Kind::Informational,
            _ => Kind::Final { end: ended },
        };
        self.traffic.response(turn, at, fields, kind);
        if upgrade {
            self.begin_raw(turn, at);
        }
    }

    /// Reads what a stream of bytes had put aside, before the stream ends.
    pub(super) fn read_raw(&mut self, turn: &mut Turn<'_>, conn: ConnId) {
        let h1 = self.traffic.streams.hops.h1_mut(conn);
        if h1.is_some_and(|h1| h1.codec.is_raw() && h1.slot != NO_TAG && h1.has_kept()) {
            self.unkeep(turn, conn);
            while self.read_tail(turn) == Step::More {}
        }
    }

    /// Input that the connection had put aside is read next.
    pub(super) fn unkeep(&mut self, turn: &mut Turn<'_>, conn: ConnId) {
        if let Some(h1) = self.traffic.streams.hops.h1_mut(conn) {
            let segments = std::mem::take(&mut h1.kept);
            let bytes = std::mem::take(&mut h1.kept_bytes);
            self.traffic.streams.hops.remove_buffered(turn, Some(conn), bytes);
            self.traffic.tails.push(Tail { conn, segments, pos: 0 });
        }
    }

    /// The worker has changed protocols, and the client has got the head that says so. From now on
    /// the exchange is a stream of bytes (contract CL-47).
    fn begin_raw(&mut self, turn: &mut Turn<'_>, at: At) {
        let streams = &mut self.traffic.streams;
        let (slot, _) = streams.slot_of(at);
        let Some(exchange) = streams.exchanges.at_mut(slot) else { return };
        exchange.up.ended = false;
        exchange.up.done = false;
        exchange.down.ended = false;
        let (client, route) = (exchange.client.conn, exchange.route());
        for conn in [at.conn, client] {
            if let Some(h1) = streams.hops.h1_mut(conn) {
                h1.codec.raw();
                turn.net.set_open_ended(conn, true);
            }
        }
        // A spare is asked for now, because the tunnel ends with this exchange, and the session
        // with the tunnel. When the client is lost it is too late to ask: a browser's last bytes
        // and its FIN come a millisecond apart.
        if let Some(key) = route {
            turn.sessions(ForSessions::WantsSpare { key });
        }
        turn.net.ask_delivery(client);
        if streams.hops.h1_mut(client).is_some_and(|h1| h1.has_kept()) {
            self.traffic.unread.push(client);
        }
    }
}
