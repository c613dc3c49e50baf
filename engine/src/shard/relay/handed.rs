//! A client's connection without an answered request leaves this core, or comes from another one.
//!
//! The connection leaves as if its client had gone, but the socket stays open: nothing of what
//! waits is answered, and no worker has seen any of it. Where the connection comes to, all that was
//! received is read again.

use std::net::SocketAddr;

use ringway_proto::h2::{Carried, ConnFault, ErrorCode, Event, NO_TAG, NotRestored};
use ringway_proto::id::Node;
use ringway_proto::time::Time;

use super::super::cause::{Cause, Gone};
use super::super::facts::ForRelay;
use super::super::turn::Turn;
use super::hop::{self, Fresh, Hop, HopRole};
use super::hops::Conn;
use super::link::Link;
use super::{Relay, Step};
use crate::carry::{Client, Said};
use crate::net::ConnId;
use crate::pool::Segment;

impl Step {
    /// Whether there may be more to read in what was received.
    pub(crate) fn is_more(self) -> bool {
        self == Self::More
    }

    /// The connection is none of the relay's.
    pub(crate) fn is_foreign(self) -> bool {
        self == Self::Foreign
    }
}

impl Relay {
    /// Whether a connection is a client's, nothing was said to it but what its protocol says by itself,
    /// and nothing of its requests has gone to a worker.
    pub(crate) fn is_unanswered(&self, conn: ConnId) -> bool {
        let streams = &self.reader.traffic.streams;
        let Some(hop) = streams.hops.hop(conn) else {
            // The client has not said yet what it speaks.
            return streams.hops.holds(conn);
        };
        let untouched = |slot: &u32| {
            *slot == NO_TAG
                || streams
                    .exchanges
                    .at(*slot)
                    .is_some_and(|of| of.worker.is_none() && of.status == 0)
        };
        hop.client().is_some()
            && !hop.is_shutting_down()
            && hop.link.is_unanswered()
            && hop.link.tags().iter().all(untouched)
    }

    /// Whether an HTTP/1 client whose requests so far were answered by this gateway itself has no
    /// request under way, and nothing else of it is here: from now on it is as unanswered as a fresh
    /// one.
    pub(crate) fn start_over(&mut self, conn: ConnId) -> bool {
        let hop = self.reader.traffic.streams.hops.hop_mut(conn);
        let Some(Hop { link: Link::H1(h1), role: HopRole::Client(client), .. }) = hop else {
            return false;
        };
        let fresh = !client.lanes.has_routes() && client.shutdown == hop::Shutdown::No;
        fresh && h1.start_over()
    }

    /// Releases a connection without an answered request. The caller gives all that was `received`
    /// on it, and the number of those octets that are not read yet. The relay does not know the
    /// connection from now on; what else comes on it is for the caller to add. None if the
    /// connection stays.
    pub(crate) fn leave(
        &mut self,
        turn: &mut Turn<'_>,
        conn: ConnId,
        (received, unread): (&[u8], usize),
    ) -> Option<Client> {
        if turn.draining.is_some() || !self.is_unanswered(conn) {
            return None;
        }
        let received = received.to_vec();
        let client = match self.reader.traffic.streams.hops.get_mut(conn)? {
            Conn::Fresh(fresh) => {
                let (peer, opened) = (fresh.peer, fresh.opened);
                self.reader.traffic.fresh_over(turn, conn, opened);
                Client { peer, opened, said: Said::Heard(received) }
            }
            Conn::Hop(hop) => {
                let said = match &hop.link {
                    Link::H2(h2) => Said::Http2(h2.carried(received, unread)?),
                    Link::H1(_) => Said::Heard(received),
                };
                turn.relay(ForRelay::ClientOver { conn, how: Gone::ByUs(Cause::MOVED) });
                Client { peer: hop.peer, opened: hop.opened, said }
            }
        };
        Some(client)
    }

    /// A connection on which nothing was said comes from another owner. Its bytes are received
    /// after this call.
    pub(crate) fn come(
        &mut self,
        turn: &mut Turn<'_>,
        conn: ConnId,
        (peer, opened): (SocketAddr, Time),
        via: Option<Node>,
    ) {
        let fresh = Fresh { peer, opened, magic: 0, via };
        self.reader.traffic.streams.hops.insert(conn, Conn::Fresh(Box::new(fresh)));
        self.reader.traffic.streams.hops.watch(turn, conn);
    }

    /// An HTTP/2 connection comes from another owner. [`Self::reread`] has to read its bytes again.
    /// Returns how many octets of the answers to them were sent before.
    ///
    /// # Errors
    /// The state is none that this codec can have carried.
    pub(crate) fn come_http2(
        &mut self,
        turn: &mut Turn<'_>,
        (conn, peer, opened): (ConnId, SocketAddr, Time),
        (carried, via): (&Carried, Option<Node>),
    ) -> Result<usize, NotRestored> {
        let (h2, said) = carried.begin(&self.reader.traffic.http2, turn.now)?;
        let role = HopRole::Client(hop::Client::default());
        let mut hop = Hop::new(conn, Link::H2(h2), (peer, opened), turn.now, role);
        hop.via = via;
        self.reader.traffic.streams.hops.insert_hop(hop);
        self.reader.traffic.streams.hops.watch(turn, conn);
        Ok(said)
    }

    /// Reads one step in bytes that another owner of an HTTP/2 connection has read before. That
    /// owner has sent the first `said` octets of the answers, so they are not sent again.
    pub(crate) fn reread(
        &mut self,
        turn: &mut Turn<'_>,
        (conn, segment): (ConnId, Segment),
        pos: &mut usize,
        said: &mut usize,
    ) -> Step {
        let hop = self.reader.traffic.streams.hops.hop_mut(conn);
        let Some(Link::H2(h2)) = hop.map(|hop| &mut hop.link) else { return Step::Done };
        let input = turn.net.pool.bytes(segment);
        let event =
            h2.next(input, pos, &mut self.reader.fields, &mut self.reader.answers, turn.now);
        let again = self.reader.answers.len().min(*said);
        *said -= again;
        turn.net.put(conn, &self.reader.answers[again..]);
        self.reader.answers.clear();
        match event {
            Ok(Event::More) => {
                if turn.net.queued(conn) == 0 {
                    // The answers that were counted have all left the output.
                    h2.set_answers_backlog(0);
                }
                self.reader.traffic.streams.hops.after_http2(turn, conn);
                Step::Done
            }
            Ok(event) => {
                self.reader.event(turn, conn, segment, event);
                Step::More
            }
            Err(fault) => {
                self.reader.traffic.streams.hops.fail(turn, conn, fault);
                Step::Done
            }
        }
    }

    /// All bytes were read again. If this gateway drains, the client is asked to leave. If there is
    /// less to say than was said before, the connection was begun by another codec, and it fails.
    pub(crate) fn arrived(&mut self, turn: &mut Turn<'_>, conn: ConnId, said: usize) {
        if said > 0 {
            let code = ErrorCode::InternalError;
            let reason = "the connection was begun by another codec";
            self.reader.traffic.streams.hops.fail(
                turn,
                conn,
                ConnFault { code, reason, limit: None },
            );
        } else if turn.draining.is_some() {
            self.reader.traffic.streams.hops.warn(turn, conn);
        }
    }
}
