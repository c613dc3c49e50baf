//! Received bytes become calls: the first bytes of a connection, and HTTP/2's events. HTTP/1's
//! events are in [`super::http1`].

use std::net::SocketAddr;

use ringway_proto::detect::{Detected, PREFACE, detect};
use ringway_proto::fields::Fields;
use ringway_proto::h1::Role;
use ringway_proto::h2::{self, ErrorCode, Event, HeadKind};
use ringway_proto::time::Time;

use super::super::facts::Edge;
use super::super::turn::Turn;
use super::batch::pass;
use super::exchange::At;
use super::h1::{H1, http1_limits};
use super::heads;
use super::hop::{ALIVE_PING, Client, Hop, HopRole, Shutdown};
use super::hops::Conn;
use super::leave::DRAIN_PING;
use super::link::Link;
use super::memo::InHand;
use super::streams::{Kind, Piece};
use super::traffic::{Traffic, Unwanted};
use crate::net::{ConnId, Output};
use crate::pool::Segment;

/// The outcome of one step of reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// There may be more to read in what was received.
    More,
    /// All that was received was taken.
    Done,
    /// The connection is none of the relay's.
    Foreign,
}

/// Reads what connections receive.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) traffic: Traffic,
    /// Memory used again and again: the list heads are decoded into, and what a connection has to
    /// say for itself while it reads.
    pub(super) fields: Fields,
    pub(super) answers: Vec<u8>,
}

impl Reader {
    pub(super) fn new(traffic: Traffic) -> Self {
        Self { traffic, fields: Fields::new(), answers: Vec::new() }
    }

    /// Reads on from `pos` of what was received, up to the next thing that has consequences.
    #[inline(always)]
    pub(super) fn received(
        &mut self,
        turn: &mut Turn<'_>,
        conn: ConnId,
        segment: Segment,
        pos: &mut usize,
    ) -> Step {
        if let Some(hop) = self.traffic.streams.hops.hop(conn) {
            return match hop.link {
                Link::H2(_) => self.read_http2(turn, conn, segment, pos),
                Link::H1(_) => self.read_http1(turn, conn, segment, pos),
            };
        }
        if self.traffic.streams.hops.holds(conn) {
            self.detect(turn, conn, segment)
        } else {
            Step::Foreign
        }
    }

    /// Reads on in bytes that lie outside the receive memory, if there are any.
    #[inline(never)]
    pub(super) fn read_tail(&mut self, turn: &mut Turn<'_>) -> Step {
        let mut tail = self.traffic.tails.pop();
        if let Some(tail) = &mut tail
            && let Some(segment) = tail.segments.front().copied()
            && self.received(turn, tail.conn, segment, &mut tail.pos) != Step::More
        {
            tail.pos = 0;
            tail.segments.pop_front();
            turn.net.pool.release(segment);
        }
        let step = if tail.is_some() { Step::More } else { Step::Done };
        let rest = tail.filter(|tail| !tail.segments.is_empty());
        self.traffic.tails.extend(rest);
        step
    }

    /// First bytes of a client connection: which protocol is it?
    #[inline(never)]
    fn detect(&mut self, turn: &mut Turn<'_>, conn: ConnId, segment: Segment) -> Step {
        let Some(Conn::Fresh(fresh)) = self.traffic.streams.hops.get_mut(conn) else {
            return Step::Done;
        };
        let (seen, peer, opened) = (fresh.magic, fresh.peer, fresh.opened);
        let via = fresh.via;
        // The bytes that were seen before are a prefix of the magic, so none of them need be kept.
        let mut first = PREFACE[..seen].to_vec();
        let more = segment.len.min(PREFACE.len() as u32) as usize;
        first.extend_from_slice(turn.net.pool.bytes(segment.part(0, more)));
        // A client that has got our side of HTTP/2's preface can go on in HTTP/2 only.
        let greeted = turn.net.output(conn).is_some_and(Output::is_greeted);
        let mut hop = match detect(&first) {
            Detected::NeedMore => {
                fresh.magic = first.len();
                return Step::Done;
            }
            Detected::H1 if !greeted => {
                let foreign = heads::is_foreign(&first, turn.net.pool.bytes(segment));
                client_hop(turn, conn, (peer, opened), foreign)
            }
            Detected::H1 | Detected::H2 => {
                let mut h2 = h2::Conn::new(h2::Role::Server, self.traffic.http2.clone(), turn.now);
                if greeted {
                    h2.start(&mut Vec::new());
                } else {
                    h2.start(&mut turn.net.sink(conn));
                }
                let role = HopRole::Client(Client::default());
                Hop::new(conn, Link::H2(h2), (peer, opened), turn.now, role)
            }
        };
        hop.via = via;
        self.begin(turn, hop);
        self.feed(turn, conn, &PREFACE[..seen])
    }

    fn begin(&mut self, turn: &mut Turn<'_>, mut hop: Hop) {
        let conn = hop.conn;
        let http2 = matches!(hop.link, Link::H2(_));
        if http2 {
            // The timer was armed when the connection was accepted, and looks after the hop as
            // well.
            hop.timer = Some(hop.opened + turn.settings.config.limits.handshake);
        }
        self.traffic.streams.hops.insert_hop(hop);
        if http2 && turn.draining.is_some() {
            self.traffic.streams.hops.warn(turn, conn);
        }
        if http2 {
            self.traffic.streams.hops.watch(turn, conn);
        }
    }

    /// Bytes that are known without having been received again: the begin of the HTTP/2 magic, or
    /// of a request line.
    fn feed(&mut self, turn: &mut Turn<'_>, conn: ConnId, bytes: &[u8]) -> Step {
        let mut pos = 0;
        let hop = self.traffic.streams.hops.hop_mut(conn);
        match hop.map(|hop| &mut hop.link) {
            Some(Link::H2(h2)) => {
                let (fields, answers) = (&mut self.fields, &mut self.answers);
                if let Err(fault) = h2.next(bytes, &mut pos, fields, answers, turn.now) {
                    self.traffic.streams.hops.fail(turn, conn, fault);
                    return Step::Done;
                }
            }
            Some(Link::H1(h1)) => {
                if let Err(fault) = h1.codec.next(bytes, &mut pos, &mut self.fields) {
                    self.traffic.streams.http1_fault(turn, conn, fault);
                    return Step::Done;
                }
            }
            None => return Step::Done,
        }
        Step::More
    }

    /// The bytes of an HTTP/2 connection, where they were received, up to the next thing that has
    /// consequences.
    ///
    /// This method is inlined where bytes come in, with all that a plain frame and a head that
    /// repeats pass: what the calls save and restore would be a twentieth of a unary call.
    #[inline(always)]
    fn read_http2(
        &mut self,
        turn: &mut Turn<'_>,
        conn: ConnId,
        segment: Segment,
        pos: &mut usize,
    ) -> Step {
        loop {
            let (streams, answers) = (&mut self.traffic.streams, &mut self.answers);
            pass(streams, turn, (conn, segment), pos, answers);
            let Link::H2(h2) = &mut streams.hops.known(conn).link else { return Step::More };
            let input = turn.net.pool.bytes(segment);
            let event = h2.next(input, pos, &mut self.fields, answers, turn.now);
            if !answers.is_empty() {
                turn.net.put(conn, answers);
                answers.clear();
            }
            match event {
                Ok(Event::More) => {
                    self.traffic.streams.hops.after_http2(turn, conn);
                    return Step::Done;
                }
                Ok(event) => self.event(turn, conn, segment, event),
                Err(fault) => {
                    self.traffic.streams.hops.fail(turn, conn, fault);
                    return Step::Done;
                }
            }
            // An exchange's end is the relay's own, and all that most calls come to.
            if let Some(exchange) = turn.take_over() {
                self.traffic.over(turn, exchange);
            }
            // Facts that the event has left are settled before the next event is read.
            if turn.left.has_facts() || !self.traffic.tails.is_empty() {
                return Step::More;
            }
        }
    }

    #[inline(always)]
    pub(super) fn event(
        &mut self,
        turn: &mut Turn<'_>,
        conn: ConnId,
        input: Segment,
        event: Event,
    ) {
        let traffic = &mut self.traffic;
        match event {
            Event::More => {}
            Event::Head { key, kind, end_stream, list, repeated } => {
                let at = At { conn, key };
                let in_hand = list.map(|list| InHand { at, kind, list });
                if let Some(of) = in_hand
                    && repeated
                {
                    let done = match kind {
                        HeadKind::Request => traffic.repeat_call(turn, of, end_stream),
                        _ => traffic.streams.repeat_answer(turn, of, end_stream),
                    };
                    if done.is_some() {
                        return;
                    }
                }
                self.head(turn, (at, kind), end_stream, (in_hand, repeated));
            }
            Event::HeadTooLarge { key, end_stream } => {
                let at = At { conn, key };
                let unwanted = Unwanted { at, fields: &self.fields, ended: end_stream };
                traffic.head_too_large(turn, unwanted);
            }
            Event::Data { key, start, len, head_in_place, end_stream } => {
                let (at, payload) = (At { conn, key }, input.part(start, len));
                traffic.streams.data(turn, Piece { at, payload, head_in_place, end: end_stream });
            }
            Event::Reset { tag, code, .. } => traffic.streams.stream_reset(turn, conn, tag, code),
            Event::Window(None) => traffic.streams.pump(turn, conn),
            Event::Window(Some(key)) => {
                if let Some(hop) = traffic.streams.hops.hop(conn) {
                    let (slot, way) = (hop.link.tag(key), hop.way_out());
                    traffic.streams.schedule(turn, slot, way);
                }
            }
            Event::Settings => self.peer_settings(turn, conn),
            Event::Goaway { last, code } => self.peer_goaway(turn, conn, last, code),
            Event::Pong(payload) => self.pong(turn, conn, payload),
        }
    }

    /// A head of either side, or trailers, that is read in full.
    #[inline(never)]
    fn head(
        &mut self,
        turn: &mut Turn<'_>,
        (at, kind): (At, HeadKind),
        ended: bool,
        (in_hand, repeated): (Option<InHand>, bool),
    ) {
        let traffic = &mut self.traffic;
        if let Some(of) = in_hand.filter(|_| repeated) {
            traffic.streams.hops.known(at.conn).link.recall(of.list, &mut self.fields);
        }
        let fields = &self.fields;
        if !repeated && !traffic.admit_head(turn, at, fields, ended) {
            return;
        }
        traffic.streams.in_hand = in_hand;
        match kind {
            HeadKind::Request => traffic.request(turn, at, fields, ended),
            HeadKind::Informational => traffic.response(turn, at, fields, Kind::Informational),
            HeadKind::Response => {
                traffic.response(turn, at, fields, Kind::Final { end: ended });
            }
            HeadKind::Trailers => traffic.trailers(turn, at, fields),
        }
        traffic.streams.in_hand = None;
    }

    /// New windows or a new stream limit: everything that waits for this hop may go on.
    #[inline(never)]
    fn peer_settings(&mut self, turn: &mut Turn<'_>, conn: ConnId) {
        let streams = &mut self.traffic.streams;
        let hop = streams.hops.known(conn);
        let (way, slots) = (hop.way_out(), hop.link.tags());
        let route = hop.tunnel().map(|tunnel| tunnel.route);
        for slot in slots {
            streams.schedule(turn, slot, way);
        }
        streams.pump(turn, conn);
        if let Some(key) = route {
            self.traffic.wake(turn, key);
        }
    }

    #[cold]
    fn peer_goaway(&mut self, turn: &mut Turn<'_>, conn: ConnId, last: u32, code: ErrorCode) {
        let hop = self.traffic.streams.hops.hop_mut(conn);
        match hop.map(|hop| &mut hop.role) {
            // The client leaves in good order, which matters for parking.
            Some(HopRole::Client(client)) => client.said_goaway |= code == ErrorCode::NoError,
            Some(HopRole::Tunnel(_)) => self.traffic.goaway(turn, conn, last),
            None => {}
        }
    }

    /// A PING was answered: the client has read our first GOAWAY, or the worker lives.
    #[inline(never)]
    fn pong(&mut self, turn: &mut Turn<'_>, conn: ConnId, payload: [u8; 8]) {
        let hop = self.traffic.streams.hops.known(conn);
        let found = (payload == ALIVE_PING).then(|| hop.found(turn.now));
        match (&mut hop.role, found) {
            (HopRole::Client(client), None) if payload == DRAIN_PING => {
                if matches!(client.shutdown, Shutdown::Warned { .. }) {
                    self.traffic.streams.hops.last_goaway(turn, conn);
                }
            }
            (HopRole::Tunnel(tunnel), Some(found)) => {
                let sent = tunnel.pings.answered(found);
                let route = self.traffic.routes.get(tunnel.route);
                if let Some((sent, route)) = sent.zip(route) {
                    let took = turn.now.since(sent);
                    turn.edge(Edge::Ponged { session: route.session, took });
                }
            }
            _ => {}
        }
    }
}

/// A client's connection that speaks HTTP/1; its first bytes are read next.
pub(super) fn client_hop(
    turn: &Turn<'_>,
    conn: ConnId,
    from: (SocketAddr, Time),
    foreign: bool,
) -> Hop {
    let mut h1 = H1::new(Role::Server, http1_limits(turn));
    h1.foreign = foreign;
    h1.begun = Some(turn.now);
    let mut client = Client::default();
    if turn.draining.is_some() {
        client.shutdown = Shutdown::Final;
        h1.codec.close_after();
    }
    Hop::new(conn, Link::H1(Box::new(h1)), from, turn.now, HopRole::Client(client))
}
