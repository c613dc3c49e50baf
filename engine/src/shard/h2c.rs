//! `Upgrade: h2c` (contract CL-48): the request is read to its end, answered 101, and becomes
//! stream 1 of an HTTP/2 connection.

use std::collections::VecDeque;

use ringway_proto::fault::Fault;
use ringway_proto::fields::{Field, Fields, Token};
use ringway_proto::h1::head::{HeadFault, Version};
use ringway_proto::h1::{self, CONTINUE, H2C_ACCEPTED, h2c_settings};
use ringway_proto::h2;
use ringway_proto::route;

use super::Shard;
use super::conn::Hop;
use super::exchange::At;
use super::http1::without_named;
use super::link::Link;
use super::relay::is_end_to_end;
use crate::border::{Border, ConnId};
use crate::metrics::{CopyWhy, Limit};
use crate::pool::Segment;

/// A request that is being read before its connection changes to HTTP/2.
pub(crate) struct Upgrading {
    pub(super) fields: Fields,
    settings: Vec<u8>,
    pub(super) body: VecDeque<Segment>,
    pub(super) bytes: usize,
}

impl Shard {
    /// Whether the request in hand changes the connection to HTTP/2. Only before the connection
    /// has a session: its tunnels speak HTTP/1, and a server may ignore the wish (RFC 9110 §7.8).
    pub(super) fn starts_h2c(&mut self, border: &mut Border, conn: ConnId, ended: bool) -> bool {
        if self.fields.first(Token::Http2Settings).is_none() {
            return false;
        }
        let Some(settings) = h2c_settings(&self.fields) else { return false };
        let fresh = |hop: &Hop| hop.client().is_some_and(|client| client.attachments.is_empty());
        if !self.conns.hop(conn).is_some_and(fresh) {
            return false;
        }
        let fields = as_http2(&self.fields);
        let Some(h1) = self.h1_mut(conn) else { return false };
        if h1.codec.version() != Version::Http11 {
            return false;
        }
        let awaits = h1.codec.expects_continue();
        let size = fields.size();
        h1.upgrading =
            Some(Box::new(Upgrading { fields, settings, body: VecDeque::new(), bytes: 0 }));
        self.holding(border, None, size);
        if ended {
            self.begin_h2c(border, conn);
        } else if awaits {
            border.put(conn, CONTINUE);
        }
        true
    }

    /// A piece of such a request's body: kept, up to `limits.h2c_body`.
    pub(super) fn h2c_body(
        &mut self,
        border: &mut Border,
        conn: ConnId,
        piece: Segment,
        ended: bool,
    ) {
        let most = self.settings.config.limits.h2c_body;
        let full = self.admit_buffer().err();
        let Some(h1) = self.h1_mut(conn) else { return };
        let key = h1.key();
        let Some(upgrading) = &mut h1.upgrading else { return };
        let len = piece.len as usize;
        let large = upgrading.bytes + len > most;
        if large || full.is_some() {
            let waits = upgrading.drop_body(&mut border.pool) + upgrading.fields.size();
            let fields = h1.upgrading.take().map(|upgrading| upgrading.fields).unwrap_or_default();
            self.let_go(border, None, waits);
            if large {
                self.metrics.limit_hit(Limit::H2cBody);
            }
            let fault = full.map_or(Fault::BodyTooLarge, |fault| *fault);
            let asked = self.asked(At { conn, key }, &fields, ended);
            return self.refuse(border, &asked, &route::reply_style(&fields), &fault);
        }
        upgrading.bytes += len;
        border.stash(piece, &mut upgrading.body);
        self.holding(border, None, len);
        if ended {
            self.begin_h2c(border, conn);
        }
    }

    /// The request is whole: the connection goes on in HTTP/2.
    pub(super) fn begin_h2c(&mut self, border: &mut Border, conn: ConnId) {
        let limits = self.http2.clone();
        let Some(Hop { link: Link::H1(h1), .. }) = self.conns.hop_mut(conn) else { return };
        let Some(upgrading) = h1.upgrading.take() else { return };
        let Upgrading { fields, settings, body, bytes } = *upgrading;
        self.let_go(border, None, bytes + fields.size());
        let mut h2 = h2::Conn::new(h2::Role::Server, limits, self.now);
        let is_head = fields.first(Token::Method) == Some(b"HEAD");
        let Ok(key) = h2.upgraded(&settings, is_head) else {
            body.into_iter().for_each(|part| border.pool.release(part));
            return self.http1_fault(border, conn, BAD_SETTINGS);
        };
        border.put(conn, H2C_ACCEPTED);
        h2.start(&mut border.sink(conn));
        self.http1_replace(border, conn, Link::H2(h2));
        self.request(border, At { conn, key }, &fields, true);
        self.hand_over(border, At { conn, key }, body, bytes);
        if self.draining.is_some() {
            self.warn(border, conn);
        }
        self.watch(conn);
    }
}

impl Shard {
    /// The body that came with the request. The head still waits for its tunnel, which cannot be
    /// there on a connection without a session; an answer of ours has no use for a body.
    fn hand_over(&mut self, border: &mut Border, at: At, body: VecDeque<Segment>, bytes: usize) {
        let slot = self.conns.hop(at.conn).map_or(h2::NO_TAG, |hop| hop.link.tag(at.key));
        let waiting = self.exchanges.at_mut(slot).filter(|exchange| exchange.head.is_some());
        let Some(exchange) = waiting else {
            return body.into_iter().for_each(|part| border.pool.release(part));
        };
        exchange.up.queue = body;
        exchange.up.queued = bytes;
        exchange.up.bytes = bytes as u64;
        exchange.up.moved_at = border.now;
        self.metrics.payload_copied[CopyWhy::Waiting.index()] += bytes as u64;
        self.holding(border, Some(at.conn), bytes);
    }
}

const BAD_SETTINGS: h1::Fault =
    h1::Fault::Broken(HeadFault::Malformed("HTTP2-Settings are not valid"));

impl Upgrading {
    pub(super) fn drop_body(&mut self, pool: &mut crate::pool::Pool) -> usize {
        self.body.drain(..).for_each(|part| pool.release(part));
        std::mem::take(&mut self.bytes)
    }
}

/// The request as HTTP/2 has it: pseudo-headers first, nothing of the connection's own.
fn as_http2(fields: &Fields) -> Fields {
    let mut list = Fields::new();
    fields.iter().filter(|field| field.token.is_pseudo()).for_each(|field| list.push(field));
    list.push(Field::new(b":scheme", b"http"));
    let stripped = without_named(fields);
    let own = |token| matches!(token, Token::Http2Settings | Token::Te) || !is_end_to_end(token);
    let rest = stripped.as_ref().unwrap_or(fields).iter();
    rest.filter(|field| !field.token.is_pseudo() && !own(field.token))
        .for_each(|field| list.push(field));
    // RFC 9113 §8.2.2: it has no other value there.
    let te = |field: Field<'_>| field.token == Token::Te && h1::is_te_trailers(field.value);
    if fields.iter().any(te) {
        list.push(Field::new(b"te", b"trailers"));
    }
    list
}
