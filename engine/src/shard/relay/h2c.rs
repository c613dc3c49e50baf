//! `Upgrade: h2c` (contract CL-48): the request is read to its end, answered 101, and becomes
//! stream 1 of an HTTP/2 connection.

use std::collections::VecDeque;

use ringway_proto::fault::Fault;
use ringway_proto::fields::{Field, Fields, Token};
use ringway_proto::h1::head::{HeadFault, Version};
use ringway_proto::h1::{self, CONTINUE, H2C_ACCEPTED, h2c_settings};
use ringway_proto::h2;
use ringway_proto::route;

use super::super::turn::Turn;
use super::exchange::At;
use super::h1::Upgrading;
use super::heads::{is_end_to_end, without_named};
use super::link::Link;
use super::read::Reader;
use super::traffic::asked;
use crate::metrics::{CopyWhy, Limit};
use crate::net::ConnId;
use crate::pool::Segment;

impl Reader {
    /// Whether the request in hand changes the connection to HTTP/2. Only a connection without a
    /// session is changed, because a session's tunnels speak HTTP/1 already. A server may ignore
    /// the wish (RFC 9110 §7.8).
    pub(super) fn starts_h2c(&mut self, turn: &mut Turn<'_>, conn: ConnId, ended: bool) -> bool {
        if self.fields.first(Token::Http2Settings).is_none() {
            return false;
        }
        let hop = self.traffic.streams.hops.hop_mut(conn);
        let fresh = hop.filter(|hop| hop.client().is_some_and(|c| !c.lanes.has_routes()));
        let h1 = fresh.and_then(|hop| match &mut hop.link {
            Link::H1(h1) => Some(h1).filter(|h1| h1.codec.version() == Version::Http11),
            Link::H2(_) => None,
        });
        let Some((h1, settings)) = h1.zip(h2c_settings(&self.fields)) else { return false };
        let fields = as_http2(&self.fields);
        let awaits = h1.codec.expects_continue();
        let size = fields.size();
        h1.upgrading =
            Some(Box::new(Upgrading { fields, settings, body: VecDeque::new(), bytes: 0 }));
        self.traffic.streams.hops.add_buffered(turn, None, size);
        if ended {
            self.begin_h2c(turn, conn);
        } else if awaits {
            turn.net.put(conn, CONTINUE);
        }
        true
    }

    /// A piece of the body of a request that changes its connection: it is kept, up to
    /// `limits.h2c_body`.
    pub(super) fn h2c_body(
        &mut self,
        turn: &mut Turn<'_>,
        conn: ConnId,
        piece: Segment,
        ended: bool,
    ) {
        let most = turn.settings.config.limits.h2c_body;
        let full = self.traffic.streams.hops.is_full(turn);
        let h1 = self.traffic.streams.hops.h1_mut(conn).expect("the body is its own");
        let at = At { conn, key: h1.key() };
        let Some(upgrading) = &mut h1.upgrading else { return };
        let len = piece.len as usize;
        let large = upgrading.bytes + len > most;
        if large || full {
            let waits = upgrading.drop_body(&mut turn.net.pool) + upgrading.fields.size();
            let fields = h1.upgrading.take().map(|upgrading| upgrading.fields).unwrap_or_default();
            self.traffic.streams.hops.remove_buffered(turn, None, waits);
            let (limit, fault) = match full {
                true => (Limit::CoreBuffer, Fault::Overloaded),
                false => (Limit::H2cBody, Fault::BodyTooLarge),
            };
            turn.limit_hit(limit);
            let asked = asked(turn, at, &fields, ended);
            let style = route::reply_style(&fields);
            let streams = &mut self.traffic.streams;
            return self.traffic.replies.refuse(streams, turn, &asked, (&style, &fault));
        }
        upgrading.bytes += len;
        turn.net.stash(piece, &mut upgrading.body);
        self.traffic.streams.hops.add_buffered(turn, None, len);
        if ended {
            self.begin_h2c(turn, conn);
        }
    }

    /// The request is whole: the connection goes on in HTTP/2.
    pub(super) fn begin_h2c(&mut self, turn: &mut Turn<'_>, conn: ConnId) {
        let limits = self.traffic.http2.clone();
        let h1 = self.traffic.streams.hops.h1_mut(conn);
        let Some(upgrading) = h1.and_then(|h1| h1.upgrading.take()) else { return };
        let Upgrading { fields, settings, body, bytes } = *upgrading;
        self.traffic.streams.hops.remove_buffered(turn, None, bytes + fields.size());
        let mut h2 = h2::Conn::new(h2::Role::Server, limits, turn.now);
        let is_head = fields.first(Token::Method) == Some(b"HEAD");
        let Ok(key) = h2.upgraded(&settings, is_head) else {
            body.into_iter().for_each(|part| turn.net.pool.release(part));
            return self.traffic.streams.http1_fault(turn, conn, BAD_SETTINGS);
        };
        turn.net.put(conn, H2C_ACCEPTED);
        h2.start(&mut turn.net.sink(conn));
        if let Some(hop) = self.traffic.streams.hops.hop_mut(conn) {
            hop.replace_link(turn, Link::H2(h2));
        }
        let at = At { conn, key };
        self.traffic.request(turn, at, &fields, true);
        self.hand_over(turn, at, body, bytes);
        if turn.draining.is_some() {
            self.traffic.streams.hops.warn(turn, conn);
        }
        self.traffic.streams.hops.watch(turn, conn);
    }

    /// Gives the exchange the body that came with the request. The head still waits for a tunnel,
    /// because a connection without a session has none. If we have answered the request ourselves,
    /// the body is dropped.
    fn hand_over(&mut self, turn: &mut Turn<'_>, at: At, body: VecDeque<Segment>, bytes: usize) {
        let streams = &mut self.traffic.streams;
        let (slot, _) = streams.slot_of(at);
        let waiting = streams.exchanges.at_mut(slot).filter(|exchange| exchange.head.is_some());
        let Some(exchange) = waiting else {
            return body.into_iter().for_each(|part| turn.net.pool.release(part));
        };
        exchange.up.queue = body;
        exchange.up.queued = bytes;
        exchange.up.bytes = bytes as u64;
        exchange.up.moved_at = turn.now;
        turn.metrics.payload_copied[CopyWhy::Waiting.index()] += bytes as u64;
        streams.hops.add_buffered(turn, Some(at.conn), bytes);
    }
}

const BAD_SETTINGS: h1::Fault =
    h1::Fault::Broken(HeadFault::Malformed("HTTP2-Settings are not valid"));

/// Rewrites a request's fields for HTTP/2: pseudo-headers first, and no field that is the HTTP/1
/// connection's own.
fn as_http2(fields: &Fields) -> Fields {
    let mut list = Fields::new();
    fields.iter().filter(|field| field.token.is_pseudo()).for_each(|field| list.push(field));
    list.push(Field::new(b":scheme", b"http"));
    let stripped = without_named(fields);
    let own = |token| matches!(token, Token::Http2Settings | Token::Te) || !is_end_to_end(token);
    let rest = stripped.as_ref().unwrap_or(fields).iter();
    rest.filter(|field| !field.token.is_pseudo() && !own(field.token))
        .for_each(|field| list.push(field));
    // RFC 9113 §8.2.2: in HTTP/2 `te` has no other value.
    let te = |field: Field<'_>| field.token == Token::Te && h1::is_te_trailers(field.value);
    if fields.iter().any(te) {
        list.push(Field::new(b"te", b"trailers"));
    }
    list
}
