//! HTTP/1 on a hop: one exchange at a time, no windows. What comes in becomes the same calls that
//! HTTP/2's events become; what belongs to a later message waits here, up to a limit at which reading stops.
//!
//! How an exchange ends is in [`super::http1_end`], the change to HTTP/2 in [`super::h2c`].

use ringway_proto::fields::{Field, Fields, Token};
use ringway_proto::h1::head::HeadLimits;
use ringway_proto::h1::{self, Event, Fault, Role, connection_names};
use ringway_proto::h2::{self, HeadKind, NO_TAG};

use super::Shard;
use super::conn::{Client, Conn, Hop, Leaving, Side};
use super::exchange::At;
use super::http1_link::H1;
use super::link::Link;
use super::relay::{OUTPUT_FULL, OUTPUT_HIGH, Piece, SMALL_FRAME};
use super::table::Key;
use crate::border::{Border, ConnId};
use crate::metrics::{CopyWhy, Limit};
use crate::pool::Segment;

/// Bytes of the `Connection` fields of one head: each of its other fields is looked up there.
const CONNECTION_BYTES: usize = 1024;

/// What may still arrive after reading was stopped, over `limits.http1_buffer`.
const LATE_BYTES: usize = 256 * 1024;

impl Shard {
    fn http1_limits(&self) -> h1::Limits {
        let limits = &self.settings.config.limits;
        let head = HeadLimits { max_bytes: limits.header_bytes, max_fields: limits.header_fields };
        h1::Limits { head, trailers: head, ..h1::Limits::default() }
    }

    /// A client speaks HTTP/1; its first bytes are read next.
    pub(super) fn begin_http1(&mut self, border: &Border, conn: ConnId, foreign: bool) {
        let Some(Conn::Fresh(fresh)) = self.conns.get(conn) else { return };
        let (peer, opened) = (fresh.peer, fresh.opened);
        let mut h1 = H1::new(Role::Server, self.http1_limits());
        h1.foreign = foreign;
        h1.begun = Some(border.now);
        let mut client = Client::default();
        if self.draining.is_some() {
            client.leaving = Leaving::Final;
            h1.codec.close_after();
        }
        let link = Link::H1(Box::new(h1));
        let hop = Hop::new(conn, link, peer, (opened, border.now), Side::Client(client));
        self.conns.insert(conn, Conn::Hop(Box::new(hop)));
    }

    /// What a new tunnel speaks: what its client does (contract CL-25), once there is one.
    pub(super) fn tunnel_link(&self, border: &mut Border, conn: ConnId, key: Key) -> Link {
        let client = self.attachments.get(key).and_then(|a| self.conns.hop(a.client?));
        if client.is_none_or(|hop| matches!(hop.link, Link::H1(_))) {
            let mut h1 = H1::new(Role::Client, self.http1_limits());
            h1.unspoken = client.is_none().then(Vec::new);
            return Link::H1(Box::new(h1));
        }
        let mut h2 = h2::Conn::new(h2::Role::Client, self.http2.clone(), self.now);
        h2.start(&mut border.sink(conn));
        Link::H2(h2)
    }

    pub(super) fn h1_mut(&mut self, conn: ConnId) -> Option<&mut H1> {
        match &mut self.conns.hop_mut(conn)?.link {
            Link::H1(h1) => Some(h1),
            Link::H2(_) => None,
        }
    }

    /// Bytes of an HTTP/1 connection, where they were received.
    pub(super) fn http1_received(&mut self, border: &mut Border, conn: ConnId, segment: Segment) {
        if self.received_unasked(border, conn, segment) {
            return;
        }
        let Some(hop) = self.conns.hop_mut(conn) else { return };
        hop.received_at = border.now;
        let Some(h1) = self.h1_mut(conn) else { return };
        if h1.has_kept() {
            self.http1_keep(border, conn, segment);
        } else {
            self.http1_read(border, conn, segment);
        }
        self.http1_after(border, conn);
    }

    /// Reads as far as the message under way goes, and keeps the rest.
    pub(super) fn http1_read(&mut self, border: &mut Border, conn: ConnId, segment: Segment) {
        let mut pos = 0;
        loop {
            let Some(hop) = self.conns.hop_mut(conn) else { return };
            let Link::H1(h1) = &mut hop.link else {
                // It speaks HTTP/2 by now.
                let rest = segment.part(pos, segment.len as usize - pos);
                return self.hop_received(border, conn, rest);
            };
            let input = border.pool.bytes(segment);
            match h1.codec.next(input, &mut pos, &mut self.fields) {
                Ok(Event::More) => break,
                Ok(event) => self.http1_event(border, conn, segment, event),
                Err(fault) => return self.http1_fault(border, conn, fault),
            }
        }
        if pos < segment.len as usize {
            self.http1_keep(border, conn, segment.part(pos, segment.len as usize - pos));
        }
    }

    fn http1_event(&mut self, border: &mut Border, conn: ConnId, segment: Segment, event: Event) {
        let Some(h1) = self.h1_mut(conn) else { return };
        let at = At { conn, key: h1.key() };
        let upgrading = h1.upgrading.is_some();
        match event {
            Event::Head { kind: HeadKind::Request, end_stream, upgrade } => {
                self.http1_request(border, conn, end_stream, upgrade);
            }
            Event::Head { kind, end_stream, upgrade } => {
                self.http1_response(border, at, kind, (end_stream, upgrade));
            }
            Event::Data { start, len, end_stream } if upgrading => {
                self.h2c_body(border, conn, segment.part(start, len), end_stream);
            }
            Event::End | Event::Trailers if upgrading => self.begin_h2c(border, conn),
            Event::Data { start, len, end_stream } => {
                let payload = segment.part(start, len);
                self.data(border, Piece { at, payload, head_in_place: false, end: end_stream });
            }
            Event::Trailers if !self.admit_head(border, at, true) => {}
            Event::Trailers => {
                let fields = std::mem::take(&mut self.fields);
                self.trailers(border, at, &fields);
                self.fields = fields;
            }
            Event::End => self.http1_message_end(border, at),
            Event::More => {}
        }
    }

    fn http1_request(&mut self, border: &mut Border, conn: ConnId, ended: bool, upgrade: bool) {
        if names_too_much(&self.fields) {
            return self.http1_fault(border, conn, CONNECTION_TOO_LONG);
        }
        let Some(h1) = self.h1_mut(conn) else { return };
        h1.next_turn();
        h1.begun = None;
        h1.upgrade = upgrade;
        let at = At { conn, key: h1.key() };
        if !self.admit_head(border, at, ended) {
            return;
        }
        if self.starts_h2c(border, conn, ended) {
            return;
        }
        let fields = std::mem::take(&mut self.fields);
        self.request(border, at, &fields, ended);
        self.fields = fields;
    }

    fn http1_response(
        &mut self,
        border: &mut Border,
        at: At,
        kind: HeadKind,
        (ended, upgrade): (bool, bool),
    ) {
        if names_too_much(&self.fields) {
            return self.http1_fault(border, at.conn, CONNECTION_TOO_LONG);
        }
        if !self.admit_head(border, at, ended) {
            return;
        }
        let mut fields = std::mem::take(&mut self.fields);
        if let Some(kept) = without_named(&fields) {
            fields = kept;
        }
        let informational = kind == HeadKind::Informational;
        self.response_head(border, at, &fields, (informational, ended));
        self.fields = fields;
        if upgrade {
            self.begin_raw(border, at);
        }
    }

    /// The worker has changed protocols and the client has been told: bytes from now on
    /// (contract CL-47).
    fn begin_raw(&mut self, border: &mut Border, at: At) {
        let Some(h1) = self.h1_mut(at.conn) else { return };
        let slot = h1.tag(at.key);
        let Some(exchange) = self.exchanges.at_mut(slot) else { return };
        exchange.up.ended = false;
        exchange.up.done = false;
        exchange.down.ended = false;
        let (client, attachment) = (exchange.client.conn, exchange.attachment);
        for conn in [at.conn, client] {
            if let Some(h1) = self.h1_mut(conn) {
                h1.codec.raw();
                border.set_open_ended(conn, true);
            }
        }
        // The tunnel ends with the exchange, and with it the session; when its client is lost it
        // is too late to ask: a browser's last bytes and its FIN come a millisecond apart.
        if let Some(key) = attachment {
            self.ask_spare(key);
        }
        border.ask_delivery(client);
        self.http1_continue(client);
    }

    /// Whoever waited for the message under way may be read, before this turn ends.
    pub(super) fn http1_continue(&mut self, conn: ConnId) {
        if self.h1_mut(conn).is_some_and(|h1| h1.has_kept()) {
            self.unread.push(conn);
        }
    }

    /// Puts input aside until it may be read; reading stops meanwhile.
    fn http1_keep(&mut self, border: &mut Border, conn: ConnId, rest: Segment) {
        let most = self.settings.config.limits.http1_buffer + LATE_BYTES;
        let Some(Hop { link: Link::H1(h1), .. }) = self.conns.hop_mut(conn) else { return };
        let len = rest.len as usize;
        h1.kept_bytes += len;
        if h1.kept_bytes > most {
            // Reading has stopped long ago: this is no reactor of ours.
            self.metrics.limit_hit(Limit::Http1Buffer);
            h1.kept_bytes -= len;
            return self.cut(border, conn);
        }
        border.stash(rest, &mut h1.kept);
        self.metrics.payload_copied[CopyWhy::Waiting.index()] += len as u64;
        self.holding(border, Some(conn), len);
    }

    /// Reads what was put aside, as far as it goes.
    pub(super) fn http1_unread(&mut self, border: &mut Border, conn: ConnId) {
        let Some(h1) = self.h1_mut(conn) else { return };
        let kept = std::mem::take(&mut h1.kept);
        let bytes = std::mem::take(&mut h1.kept_bytes);
        self.let_go(border, Some(conn), bytes);
        for segment in kept {
            match self.conns.hop_mut(conn).map(|hop| &mut hop.link) {
                Some(Link::H1(h1)) if h1.has_kept() => self.http1_keep(border, conn, segment),
                Some(Link::H1(_)) => self.http1_read(border, conn, segment),
                Some(Link::H2(_)) => self.hop_received(border, conn, segment),
                None => {}
            }
            border.pool.release(segment);
        }
        self.http1_after(border, conn);
    }

    /// After input: whether reading goes on, and how long a head may take.
    fn http1_after(&mut self, border: &mut Border, conn: ConnId) {
        let now = border.now;
        let Some(h1) = self.h1_mut(conn) else { return };
        if h1.slot == NO_TAG && h1.codec.held() > 0 {
            h1.begun.get_or_insert(now);
        } else {
            h1.begun = None;
        }
        self.http1_gate(border, conn);
        if border.queued(conn) > OUTPUT_FULL {
            self.stop_reading(border, conn, conn);
        }
        self.count_partial(border, conn);
        self.watch(conn);
    }

    /// Stops reading a connection whose input waits, or lets it go on.
    pub(super) fn http1_gate(&mut self, border: &mut Border, conn: ConnId) {
        let most = self.settings.config.limits.http1_buffer;
        let Some(hop) = self.conns.hop_mut(conn) else { return };
        let Link::H1(h1) = &mut hop.link else { return };
        // It goes on at half, so that it does not stop and go with every piece.
        // What is kept counts: with little of it reading goes on, or nobody would see the client
        // leave while its request runs (contract CL-23).
        let gated = hop.held as usize > if h1.gated { most / 2 } else { most };
        if gated != h1.gated {
            h1.gated = gated;
            if gated {
                hop.waits += 1
            } else {
                hop.waits -= 1
            }
            border.pause(conn, hop.waits > 0);
        }
    }

    /// Moves one piece to an HTTP/1 hop if its output has room.
    pub(super) fn pass_http1(&mut self, border: &mut Border, to: At, piece: Piece) -> bool {
        let len = piece.payload.len as usize;
        if len > 0 && border.queued(to.conn) >= OUTPUT_HIGH {
            return false;
        }
        let Some(h1) = self.h1_mut(to.conn) else { return false };
        let slot = h1.tag(to.key);
        if !h1.put_data(len, piece.end, &mut border.sink(to.conn)) {
            self.wrong_length(border, slot);
            return true;
        }
        if len <= SMALL_FRAME {
            border.put_copy(to.conn, piece.payload);
            self.metrics.payload_copied[CopyWhy::SmallFrame.index()] += len as u64;
        } else {
            border.push(to.conn, piece.payload);
            self.metrics.payload_relayed += len as u64;
        }
        if piece.end {
            self.http1_finish(border, to);
        }
        true
    }

    fn http1_finish(&mut self, border: &mut Border, to: At) {
        let Some(h1) = self.h1_mut(to.conn) else { return };
        let slot = h1.tag(to.key);
        if h1.codec.finish(None, &mut border.sink(to.conn)).is_err() {
            self.wrong_length(border, slot);
        }
    }

    /// An HTTP/1 connection gives up its place to HTTP/2: what stopped its reading does so no more.
    pub(super) fn http1_replace(&mut self, border: &mut Border, conn: ConnId, link: Link) {
        let Some(hop) = self.conns.hop_mut(conn) else { return };
        if matches!(&hop.link, Link::H1(h1) if h1.gated) {
            hop.waits -= 1;
            border.pause(conn, hop.waits > 0);
        }
        hop.link = link;
    }
}

const CONNECTION_TOO_LONG: Fault =
    Fault::Broken(h1::head::HeadFault::Malformed("Connection names too many fields"));

fn names_too_much(fields: &Fields) -> bool {
    let lists = fields.iter().filter(|field| field.token == Token::Connection);
    lists.map(|field| field.value.len()).sum::<usize>() > CONNECTION_BYTES
}

/// The list without the fields that its `Connection` names (contract CL-28); none if it names none.
/// Framing and host are this hop's own and are written anew.
pub(super) fn without_named(fields: &Fields) -> Option<Fields> {
    let named = |field: Field<'_>| {
        !matches!(field.token, Token::Connection | Token::Upgrade | Token::Te)
            && !field.token.is_pseudo()
            && connection_names(fields, field.name)
    };
    fields.first(Token::Connection)?;
    fields.iter().any(named).then(|| {
        let mut kept = Fields::new();
        fields.iter().filter(|field| !named(*field)).for_each(|field| kept.push(field));
        kept
    })
}
