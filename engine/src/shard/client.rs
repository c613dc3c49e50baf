//! The client hop: what comes from a client, up to the point where it belongs to an exchange.

use ringway_proto::answer;
use ringway_proto::detect::{Detected, PREFACE, detect};
use ringway_proto::fault::Fault;
use ringway_proto::fields::{Fields, Token};
use ringway_proto::h1;
use ringway_proto::h2;
use ringway_proto::route::{self, ReplyStyle, Routed};

use super::Shard;
use super::conn::{Client, Conn, Fresh, Hop, Leaving, Plain, Side};
use super::exchange::{At, Exchange};
use super::link::Link;
use super::reply::Asked;
use crate::border::{Border, Close, ConnId};
use crate::metrics::Method;
use crate::pool::Segment;

impl Shard {
    /// First bytes of a client connection: which protocol is it?
    pub(super) fn detect_client(&mut self, border: &mut Border, conn: ConnId, segment: Segment) {
        let Some(Conn::Fresh(fresh)) = self.conns.get_mut(conn) else { return };
        let seen = fresh.magic;
        // What was seen before is a prefix of the magic: nothing need be kept of it.
        let mut first = PREFACE[..seen].to_vec();
        let more = segment.len.min(PREFACE.len() as u32) as usize;
        first.extend_from_slice(border.pool.bytes(segment.part(0, more)));
        match detect(&first) {
            Detected::NeedMore => fresh.magic = first.len(),
            Detected::H2 => {
                self.begin_http2(border, conn);
                self.feed_bytes(border, conn, &PREFACE[..seen]);
                self.hop_received(border, conn, segment);
            }
            Detected::H1 => {
                let Fresh { peer, opened, .. } = *fresh;
                let mut plain = Plain::new(peer, opened);
                plain.input.extend_from_slice(&PREFACE[..seen]);
                self.conns.insert(conn, Conn::Http1(plain));
                self.http1_received(border, conn, segment);
            }
        }
    }

    fn begin_http2(&mut self, border: &mut Border, conn: ConnId) {
        let Some(Conn::Fresh(fresh)) = self.conns.get(conn) else { return };
        let mut h2 = h2::Conn::new(h2::Role::Server, self.settings.http2(), self.now);
        h2.start(&mut border.sink(conn));
        let hop = Box::new(Hop::new(
            conn,
            Link::H2(h2),
            fresh.peer,
            (fresh.opened, self.now),
            Side::Client(Client::default()),
        ));
        self.conns.insert(conn, Conn::Hop(hop));
        if self.draining.is_some() {
            self.warn(border, conn);
        }
        self.watch(conn);
    }

    /// A request head: answered by us, or relayed.
    pub(super) fn request(&mut self, border: &mut Border, at: At, fields: &Fields, ended: bool) {
        let asked = self.asked(at, fields, ended);
        match route::read(fields) {
            Routed::Preflight(preflight) => self.preflight(border, &asked, &preflight),
            Routed::Health => self.health(border, &asked, &route::reply_style(fields)),
            Routed::Info { method } => self.info(border, &asked, method),
            Routed::Refused(fault) => {
                self.refuse(border, &asked, &route::reply_style(fields), &fault);
            }
            Routed::Invoke(head) => {
                let key = self
                    .admit_buffer()
                    .and_then(|()| self.pin(at.conn, &head))
                    .and_then(|pin| self.attachment_for(at.conn, pin, head.request_id, border.now));
                match key {
                    Ok(key) => {
                        let mut exchange = Exchange::new(at, Some(key), self.now);
                        exchange.style = head.style.keep();
                        exchange.method = asked.method;
                        exchange.path = asked.path;
                        exchange.up.ended = ended;
                        let slot = self.add_exchange(exchange);
                        self.start_exchange(border, slot, fields);
                    }
                    Err(fault) => {
                        crate::log::open_failed(&fault, self.settings.core);
                        self.refuse(border, &asked, &head.style, &fault);
                    }
                }
            }
        }
    }

    fn asked(&self, at: At, fields: &Fields, ended: bool) -> Asked {
        let method = Method::of(fields.first(Token::Method).unwrap_or_default());
        let logged = self.settings.config.log.access;
        let path = fields.first(Token::Path).filter(|_| logged).map(Box::from);
        Asked { at, method, path, ended, began: self.now }
    }

    /// Enters an exchange into the tables.
    pub(super) fn add_exchange(&mut self, exchange: Exchange) -> u32 {
        let at = exchange.client;
        let slot = self.exchanges.insert(exchange).slot;
        if let Some(hop) = self.conns.hop_mut(at.conn) {
            hop.link.set_tag(at.key, slot);
        }
        self.metrics.active_http_requests += 1;
        slot
    }

    /// A request head over limit L2: answered, not relayed.
    pub(super) fn head_too_large(
        &mut self,
        border: &mut Border,
        at: At,
        fields: &Fields,
        ended: bool,
    ) {
        let style = route::reply_style(fields);
        let asked = self.asked(at, fields, ended);
        self.refuse(border, &asked, &style, &Fault::HeadTooLarge);
    }

    /// HTTP/1 on the client port: `/health`, `/info` and preflights are answered, calls are not
    /// relayed.
    pub(super) fn http1_received(&mut self, border: &mut Border, conn: ConnId, segment: Segment) {
        if let Some(Conn::Http1(plain)) = self.conns.get_mut(conn) {
            plain.input.extend_from_slice(border.pool.bytes(segment));
            plain.begun.get_or_insert(border.now);
        }
        loop {
            let mut fields = std::mem::take(&mut self.fields);
            let more = self.http1_request(border, conn, &mut fields);
            self.fields = fields;
            if !more {
                break;
            }
        }
        self.watch(conn);
    }

    /// One request of an HTTP/1 client; true if there may be another.
    fn http1_request(&mut self, border: &mut Border, conn: ConnId, fields: &mut Fields) -> bool {
        let Some(Conn::Http1(plain)) = self.conns.get_mut(conn) else { return false };
        let limits = h1::head::HeadLimits::CLIENT;
        let head = match plain.scan.parse_request(&plain.input, fields, &limits) {
            Ok(Some(head)) => head,
            Ok(None) => return false,
            Err(fault) => {
                // Who does not name the protocol at all is not answered in it.
                if speaks_http1(&plain.input) {
                    let mut out = Vec::new();
                    h1::write_fault(fault, &mut out);
                    border.put(conn, &out);
                }
                self.end_plain(border, conn);
                return false;
            }
        };
        plain.input.drain(..head.head_len);
        plain.scan = h1::head::Scan::default();
        plain.begun = (!plain.input.is_empty()).then_some(border.now);
        plain.idle_since = border.now;
        let mut reply = std::mem::take(&mut self.reply);
        let style = ReplyStyle { grpc: false, ..route::reply_style(fields) };
        match route::read(fields) {
            Routed::Health => self.render_health(&style, &mut reply),
            Routed::Info { method } => self.render_info(method, &mut reply),
            Routed::Preflight(preflight) => {
                answer::preflight(&preflight, &mut reply.fields, &mut reply.body);
            }
            Routed::Refused(..) | Routed::Invoke(_) => {
                let fault = Fault::Http1Unsupported;
                answer::render(&fault, &style, &mut reply.fields, &mut reply.body);
            }
        }
        // A body would have to be read before the next request: no such request is served here.
        let keep = head.body.is_empty() && h1::head::keeps_alive(head.version, fields);
        let mut out = Vec::new();
        let body = if style.head { &[][..] } else { &reply.body };
        h1::write_answer(&reply.fields, body, keep, &mut out);
        border.put(conn, &out);
        self.reply = reply;
        if !keep {
            self.end_plain(border, conn);
        }
        keep
    }

    /// Closes an HTTP/1 connection of our own once its output is sent.
    pub(super) fn end_plain(&mut self, border: &mut Border, conn: ConnId) {
        border.close(conn, Close::Flush);
        self.plain_gone(border, conn);
    }
}

/// Whether the first line names HTTP/1.
fn speaks_http1(input: &[u8]) -> bool {
    let line = input.split(|&octet| octet == b'\n').next().unwrap_or_default();
    line.windows(7).any(|window| window == b"HTTP/1.")
}

impl Hop {
    pub(super) fn new(
        conn: ConnId,
        link: Link,
        peer: std::net::SocketAddr,
        (opened, now): (ringway_proto::time::Time, ringway_proto::time::Time),
        side: Side,
    ) -> Self {
        Self {
            conn,
            link,
            peer,
            opened,
            hop_since: now,
            ready: std::collections::VecDeque::new(),
            held: 0,
            received_at: now,
            timer: None,
            stopped: Vec::new(),
            waits: 0,
            side,
        }
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.client().is_some_and(|client| client.leaving != Leaving::No)
    }
}
