//! The relay: connections of clients and tunnels, the exchanges between them, and the routes that
//! these go by. Frames never leave it; what it cannot decide it leaves as facts for sessions.
//!
//! Three layers, each of which calls only what is below it: [`traffic`] (requests, routes, tunnels,
//! ends), [`streams`] (exchanges: what moves from hop to hop), [`hops`] (connections, and what they
//! hold). On top of them is what comes in: this module for HTTP/2, [`http1`] and [`bytes`] for
//! HTTP/1, [`watch`] for deadlines.

mod batch;
mod bytes;
mod ends;
mod exchange;
mod flow;
mod h1;
mod h2c;
mod handed;
mod heads;
mod hop;
mod hops;
mod http1;
mod kept;
mod lanes;
mod leave;
mod link;
mod memo;
mod pings;
mod pump;
mod read;
mod replies;
mod routes;
mod streams;
#[cfg(test)]
mod tests;
mod traffic;
mod tunnels;
mod watch;

use std::net::SocketAddr;
use std::sync::Arc;

use self::bytes::Raw;
use self::flow::OUTPUT_LOW;
use self::hop::Fresh;
use self::hops::Conn;
use self::link::Link;
use self::read::Reader;
pub(crate) use self::read::Step;
use self::traffic::Traffic;
use super::cause::{Cause, Gone};
use super::facts::{ForRelay, RouteFacts};
use super::settings::ShardSettings;
use super::table::Key;
use super::turn::Turn;
use crate::metrics::{Limit, ShardMetrics};
use crate::net::{Close, ConnId, Detached, End};
use crate::pool::Segment;

/// How far the limits of single connections are used, as of the connection that uses most.
#[derive(Debug, Default)]
pub(super) struct Fullest {
    /// Streams of a client.
    streams: usize,
    /// Bytes that wait at a connection of HTTP/2, or header lists.
    buffered: usize,
    /// Bytes that wait at a connection of HTTP/1.
    http1: usize,
}

/// The relay of one core.
#[derive(Debug)]
pub(super) struct Relay {
    reader: Reader,
    raw: Raw,
}

impl Relay {
    pub(super) fn new(settings: &ShardSettings) -> Self {
        let mut marks = [0; 16];
        marks.copy_from_slice(&settings.seed[16..]);
        let http2 = Arc::new(settings.http2());
        let traffic = Traffic::new(settings.generation, http2, marks);
        Self { reader: Reader::new(traffic), raw: Raw::default() }
    }

    /// Lets the stream ids of new tunnels run out early, for tests.
    pub(super) fn end_stream_ids_at(&mut self, last: u32) {
        Arc::make_mut(&mut self.reader.traffic.http2).last_own_id = last;
    }

    // ---- what can be seen ----

    /// Connections of clients.
    pub(super) fn clients(&self) -> usize {
        self.reader.traffic.streams.hops.clients()
    }

    pub(super) fn tunnels(&self) -> usize {
        self.reader.traffic.streams.hops.tunnels()
    }

    pub(super) fn is_empty(&self) -> bool {
        let streams = &self.reader.traffic.streams;
        streams.hops.is_empty()
            && streams.exchanges.len() == 0
            && self.reader.traffic.routes.is_empty()
            && self.reader.traffic.tails.is_empty()
    }

    /// Whether no DATA, heads or trailers wait here.
    pub(super) fn holds_nothing(&self) -> bool {
        self.reader.traffic.streams.hops.buffered == 0
    }

    pub(super) fn facts(&self, key: Key) -> Option<RouteFacts> {
        self.reader.traffic.facts(key)
    }

    /// Whether the connection is one of the relay's.
    pub(super) fn holds(&self, conn: ConnId) -> bool {
        self.reader.traffic.streams.hops.holds(conn)
    }

    pub(super) fn has_exchange(&self, exchange: Key) -> bool {
        self.reader.traffic.streams.exchanges.get(exchange).is_some()
    }

    /// Looks at `most` connections from `at` on for the fullest ones. Returns where to go on, if
    /// there are more.
    pub(super) fn survey(&self, at: usize, most: usize, fullest: &mut Fullest) -> Option<usize> {
        let hops = &self.reader.traffic.streams.hops;
        let until = at.saturating_add(most).min(hops.slots());
        for hop in hops.range(at..until) {
            if hop.client().is_some() {
                fullest.streams = fullest.streams.max(hop.link.streams());
            }
            // DATA that waits has a bound of its own, and so have heads and trailers that wait.
            fullest.buffered = fullest.buffered.max(hop.lists as usize);
            let buffered = hop.buffered as usize;
            match hop.link {
                Link::H2(_) => fullest.buffered = fullest.buffered.max(buffered),
                Link::H1(_) => fullest.http1 = fullest.http1.max(buffered),
            }
        }
        (until < hops.slots()).then_some(until)
    }

    /// Enters into the metrics how far the relay's limits are used.
    pub(super) fn gauge(
        &self,
        settings: &ShardSettings,
        fullest: &Fullest,
        metrics: &mut ShardMetrics,
    ) {
        let limits = &settings.config.limits;
        let mut gauge = |limit: Limit, used: usize, max: usize| {
            metrics.limit_used[limit.index()] = used as u64;
            metrics.limit_max[limit.index()] = max as u64;
        };
        let hops = &self.reader.traffic.streams.hops;
        gauge(Limit::ClientConnections, hops.clients(), limits.client_connections);
        gauge(Limit::CoreBuffer, hops.buffered, limits.core_buffer);
        gauge(Limit::Streams, fullest.streams, limits.streams as usize);
        gauge(Limit::ConnectionBuffer, fullest.buffered, limits.connection_buffer);
        gauge(Limit::Http1Buffer, fullest.http1, limits.http1_buffer);
    }

    // ---- what the network interface says ----

    pub(super) fn accepted(&mut self, turn: &mut Turn<'_>, conn: ConnId, peer: SocketAddr) {
        let fresh = Fresh { peer, opened: turn.now, magic: 0, via: None };
        self.reader.traffic.streams.hops.insert(conn, Conn::Fresh(Box::new(fresh)));
        self.reader.traffic.streams.hops.watch(turn, conn);
    }

    pub(super) fn addressed(&mut self, conn: ConnId, peer: SocketAddr) {
        match self.reader.traffic.streams.hops.get_mut(conn) {
            Some(Conn::Hop(hop)) => hop.peer = peer,
            Some(Conn::Fresh(fresh)) => fresh.peer = peer,
            None => {}
        }
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
        self.reader.received(turn, conn, segment, pos)
    }

    /// Reads on in bytes that lie outside the receive memory, if there are any.
    pub(super) fn read_tail(&mut self, turn: &mut Turn<'_>) {
        self.reader.read_tail(turn);
    }

    /// Whether [`Self::read_tail`] has something to do.
    pub(super) fn has_tail(&self) -> bool {
        !self.reader.traffic.tails.is_empty()
    }

    /// Input that was put aside may be read now, before this turn ends.
    pub(super) fn read_kept(&mut self, turn: &mut Turn<'_>) -> Step {
        match self.reader.traffic.unread.pop() {
            Some(conn) => {
                self.reader.unkeep(turn, conn);
                Step::More
            }
            None => Step::Done,
        }
    }

    /// Whether something may be read, or parted from, before this turn ends.
    pub(super) fn has_unread(&self) -> bool {
        !self.reader.traffic.unread.is_empty() || self.raw.is_parting()
    }

    pub(super) fn part_clients(&mut self, turn: &mut Turn<'_>) {
        self.raw.part_clients(&mut self.reader.traffic, turn);
    }

    pub(super) fn finish_raw(&mut self, turn: &mut Turn<'_>, exchange: Key) {
        self.raw.finish_raw(&mut self.reader.traffic, turn, exchange);
    }

    pub(super) fn ended(&mut self, turn: &mut Turn<'_>, conn: ConnId, end: End) {
        match self.reader.traffic.streams.hops.get_mut(conn) {
            Some(Conn::Hop(hop)) if matches!(hop.link, Link::H1(_)) => {
                self.reader.read_raw(turn, conn);
                self.raw.ended(&mut self.reader.traffic, turn, conn, end);
            }
            Some(Conn::Hop(hop)) if hop.tunnel().is_some() => {
                let cause = Cause::ended(end);
                turn.relay(ForRelay::TunnelOver { conn, cause, last: false });
            }
            Some(Conn::Hop(_)) => {
                turn.net.close(conn, Close::Flush);
                turn.relay(ForRelay::ClientOver { conn, how: Gone::Ended(end) });
            }
            Some(Conn::Fresh(fresh)) => {
                let opened = fresh.opened;
                turn.net.close(conn, Close::Flush);
                self.reader.traffic.fresh_over(turn, conn, opened);
            }
            None => {}
        }
    }

    pub(super) fn written(&mut self, turn: &mut Turn<'_>, conn: ConnId) {
        let hops = &mut self.reader.traffic.streams.hops;
        let Some(hop) = hops.hop_mut(conn) else { return };
        let left = turn.net.queued(conn);
        let ready = !hop.ready.is_empty();
        if left == 0 || (left < OUTPUT_LOW && !hop.stopped.is_empty()) {
            hop.link.set_answers_backlog(0);
        }
        if left < OUTPUT_LOW && !hop.stopped.is_empty() {
            let stopped = std::mem::take(&mut hop.stopped);
            hops.resume(turn, stopped);
        }
        if ready {
            self.reader.traffic.streams.pump(turn, conn);
        }
    }

    pub(super) fn awaits(&self, conn: ConnId) -> bool {
        let hop = self.reader.traffic.streams.hops.hop(conn);
        hop.is_some_and(|hop| !hop.stopped.is_empty() || !hop.ready.is_empty())
    }

    pub(super) fn detached(&mut self, turn: &mut Turn<'_>, conn: ConnId, detached: Detached) {
        self.reader.traffic.detached(turn, conn, detached);
    }

    pub(super) fn relieve(&mut self, turn: &mut Turn<'_>) {
        self.reader.traffic.streams.relieve(turn);
    }

    // ---- facts ----

    pub(super) fn on(&mut self, turn: &mut Turn<'_>, fact: ForRelay) {
        let traffic = &mut self.reader.traffic;
        match fact {
            ForRelay::Open { key, session, client, terms } => {
                traffic.open_route(key, session, client, terms);
            }
            ForRelay::Terms { key, terms } => traffic.routes.set_terms(key, terms),
            ForRelay::Serve { exchange, key, wanted, unnamed } => {
                traffic.serve(turn, exchange, key, (&wanted, unnamed));
            }
            ForRelay::Refuse { exchange, fault } => traffic.refuse(turn, exchange, &fault),
            ForRelay::RefuseWaiters { key, fault } => traffic.refuse_waiters(turn, key, &fault),
            ForRelay::Close { key, cause, fault } => {
                traffic.close_route(turn, key, cause, fault.as_deref());
            }
            ForRelay::Unlearn { key } => traffic.unlearn(key),
            ForRelay::PlaceAnew { key } => traffic.place_anew(turn, key),
            ForRelay::Merge { from, to } => traffic.merge(turn, from, to),
            ForRelay::Attach(new) => traffic.attach(turn, *new),
            ForRelay::Park { key, until } => traffic.park(turn, key, until),
            ForRelay::Unpark { key, client } => traffic.unpark(turn, key, client),
            ForRelay::Transfer { from, to } => traffic.transfer(turn, from, to),
            ForRelay::Detach { key } => traffic.detach(turn, key),
            ForRelay::Adopt { key, detached, hop } => traffic.adopt(turn, key, *detached, hop),
            ForRelay::Swap { key, spare } => traffic.swap(turn, key, spare),
            ForRelay::Replaced { key, yes } => traffic.set_replaced(turn, key, yes),
            ForRelay::NodeLeaves { node } => tunnels::node_leaves(traffic, turn, node),
            ForRelay::Over { exchange } => traffic.over(turn, exchange),
            ForRelay::ClientOver { conn, how } => traffic.client_over(turn, conn, how),
            ForRelay::TunnelOver { conn, cause, last } => {
                traffic.tunnel_over(turn, conn, cause, last);
            }
            ForRelay::Wake { key } => traffic.wake(turn, key),
            ForRelay::Stalled { exchange, up, took } => {
                traffic.stalled(turn, exchange, (up, took));
            }
        }
    }

    // ---- the first bytes ----

    // ---- HTTP/2 ----
}
