//! The client hop: what comes from a client, up to the point where it belongs to an exchange.

use ringway_proto::detect::{Detected, PREFACE, detect};
use ringway_proto::fault::Fault;
use ringway_proto::fields::{Fields, Token};
use ringway_proto::h2;
use ringway_proto::route::{self, Routed, RoutingHead};

use super::Shard;
use super::conn::{Client, Conn, Hop, Leaving, Side};
use super::exchange::{At, Exchange};
use super::http1;
use super::large::LOGGED_PATH;
use super::link::Link;
use super::reply::Asked;
use crate::border::{Border, Close, ConnId};
use crate::log::Refusal;
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
                let foreign = is_foreign(&first, border.pool.bytes(segment));
                self.begin_http1(border, conn, foreign);
                self.feed_bytes(border, conn, &PREFACE[..seen]);
                self.http1_received(border, conn, segment);
            }
        }
    }

    fn begin_http2(&mut self, border: &mut Border, conn: ConnId) {
        let Some(Conn::Fresh(fresh)) = self.conns.get(conn) else { return };
        let mut h2 = h2::Conn::new(h2::Role::Server, self.http2.clone(), self.now);
        h2.start(&mut border.sink(conn));
        let mut hop = Box::new(Hop::new(
            conn,
            Link::H2(h2),
            fresh.peer,
            (fresh.opened, self.now),
            Side::Client(Client::default()),
        ));
        // Armed when it was accepted: it looks after the hop as well.
        hop.timer = Some(fresh.opened + self.settings.config.limits.handshake);
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
                        let passed = self.without_named(at.conn, fields);
                        self.start_exchange(border, slot, passed.as_ref().unwrap_or(fields));
                    }
                    Err(fault) => {
                        self.log_refusal(at.conn, &head, &fault);
                        self.refuse(border, &asked, &head.style, &fault);
                    }
                }
            }
        }
    }

    fn log_refusal(&self, conn: ConnId, head: &RoutingHead<'_>, fault: &Fault) {
        let Some(hop) = self.conns.hop(conn) else { return };
        crate::log::open_failed(&Refusal {
            fault,
            client: hop.peer,
            function_id: head.function,
            function_version_id: head.version,
            tenant: self.policy.tenant(head.credential).map(|name| &**name).unwrap_or_default(),
            shard: self.settings.core,
        });
    }

    pub(super) fn asked(&self, at: At, fields: &Fields, ended: bool) -> Asked {
        let method = Method::of(fields.first(Token::Method).unwrap_or_default());
        let logged = self.settings.config.log.access;
        let path = fields.first(Token::Path).filter(|_| logged);
        let path = path.map(|path| Box::from(&path[..path.len().min(LOGGED_PATH)]));
        Asked { at, method, path, ended, began: self.now }
    }

    /// Enters an exchange into the tables.
    pub(super) fn add_exchange(&mut self, exchange: Exchange) -> u32 {
        let at = exchange.client;
        let key = self.exchanges.insert(exchange);
        let slot = key.slot;
        if let Some(hop) = self.conns.hop_mut(at.conn) {
            hop.link.set_tag(at.key, slot);
            if let (Link::H1(h1), Some(exchange)) = (&hop.link, self.exchanges.get_mut(key)) {
                (exchange.version, exchange.upgrade) = h1.speaks();
            }
        }
        self.metrics.active_http_requests += 1;
        slot
    }

    /// What an HTTP/1 client's `Connection` names ends here, but was read first (contract CL-28).
    fn without_named(&self, conn: ConnId, fields: &Fields) -> Option<Fields> {
        match self.conns.hop(conn)?.link {
            Link::H1(_) => http1::without_named(fields),
            Link::H2(_) => None,
        }
    }

    /// Closes an HTTP/1 connection of our own once its output is sent.
    pub(super) fn end_plain(&mut self, border: &mut Border, conn: ConnId) {
        border.close(conn, Close::Flush);
        self.plain_gone(border, conn);
    }
}

/// Whether the first bytes are another protocol's: they begin with no method, or their first line,
/// should it be here, names no version of HTTP, or is HTTP/2's own that went wrong. Empty lines before it are read over (RFC 9112 §2.2).
fn is_foreign(mut first: &[u8], mut received: &[u8]) -> bool {
    while let (Some(less), Some(rest)) =
        (first.strip_prefix(b"\r\n"), received.strip_prefix(b"\r\n"))
    {
        (first, received) = (less, rest);
    }
    if matches!(first, b"" | b"\r") {
        return false;
    }
    let line = received.iter().position(|&octet| octet == b'\n').map(|end| &received[..end]);
    let named = |line: &[u8]| {
        line.windows(5).any(|window| window == b"HTTP/") && !line.starts_with(b"PRI ")
    };
    !first.first().is_some_and(u8::is_ascii_alphabetic) || line.is_some_and(|line| !named(line))
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
            partial: 0,
            lists: 0,
            side,
        }
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.client().is_some_and(|client| client.leaving != Leaving::No)
    }
}
