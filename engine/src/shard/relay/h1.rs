//! The state of one HTTP/1 connection, and its face towards the relay (see [`super::link`]).

use std::collections::VecDeque;

use ringway_proto::Sink;
use ringway_proto::fields::{Field, Fields};
use ringway_proto::h1::head::{HeadLimits, Version as H1Version};
use ringway_proto::h1::{self, Role};
use ringway_proto::h2::{NO_TAG, OpenError, StreamKey};
use ringway_proto::time::Time;

use super::super::turn::Turn;

use crate::metrics::HttpVersion;
use crate::pool::{Pool, Segment};

/// The browser's page that has opened a stream of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Page {
    /// There is no page: the client is no browser, or it has asked for no other protocol.
    None,
    /// The page is there, as far as is known.
    Open,
    /// The page has said that it leaves.
    Left,
}

/// The HTTP/1 state of one connection.
pub(super) struct H1 {
    pub(super) codec: h1::Conn,
    /// The peer is a client.
    server: bool,
    /// The slot of the exchange under way.
    pub(super) slot: u32,
    /// The number of exchanges so far. It names the one under way.
    turn: u32,
    /// The number of exchanges when the connection was last as good as fresh.
    since: u32,
    /// The request under way asks for another protocol.
    pub(super) upgrade: bool,
    /// The web page that has asked, if one has.
    pub(super) page: Page,
    /// Input behind the message under way: the next request, or the other protocol's first bytes.
    pub(super) kept: VecDeque<Segment>,
    pub(super) kept_bytes: usize,
    /// Reading waits: for what is kept, or for the other hop.
    pub(super) gated: bool,
    /// Since when part of a request's head is here.
    pub(super) begun: Option<Time>,
    /// The first bytes were another protocol's, so the peer gets no answer in HTTP/1.
    pub(super) foreign: bool,
    /// A tunnel that has no client yet: what its worker said without having been asked.
    pub(super) unspoken: Option<Vec<u8>>,
    /// The request whose body is read before the connection goes on in HTTP/2.
    pub(super) upgrading: Option<Box<Upgrading>>,
}

impl H1 {
    pub(super) fn new(role: Role, limits: h1::Limits) -> Self {
        Self {
            codec: h1::Conn::new(role, limits),
            server: role == Role::Server,
            slot: NO_TAG,
            turn: 0,
            since: 0,
            upgrade: false,
            page: Page::None,
            kept: VecDeque::new(),
            kept_bytes: 0,
            gated: false,
            begun: None,
            foreign: false,
            unspoken: None,
            upgrading: None,
        }
    }

    /// Names the exchange under way.
    pub(super) fn key(&self) -> StreamKey {
        StreamKey::outside(self.turn)
    }

    pub(super) fn tag(&self, key: StreamKey) -> u32 {
        if key == self.key() { self.slot } else { NO_TAG }
    }

    pub(super) fn set_tag(&mut self, key: StreamKey, slot: u32) {
        if key == self.key() {
            self.slot = slot;
        }
    }

    pub(super) fn open(&mut self) -> Result<StreamKey, OpenError> {
        if self.slot != NO_TAG || self.unspoken.is_some() {
            return Err(OpenError::Full);
        }
        if !self.codec.is_between() || !self.codec.keeps_alive() {
            return Err(OpenError::Goaway);
        }
        self.next_turn();
        Ok(self.key())
    }

    /// Whether another exchange may follow, and nothing of it is here yet.
    pub(super) fn is_reusable(&self) -> bool {
        self.codec.is_between() && self.codec.keeps_alive() && self.kept.is_empty()
    }

    /// Whether the connection, since it was last as good as fresh, has begun no exchange, or only
    /// one that is still under way. A connection that is to become HTTP/2 does not count, because
    /// its client may have got a 100 (Continue) already.
    pub(super) fn is_in_first_exchange(&self) -> bool {
        let begun = self.turn.wrapping_sub(self.since);
        self.upgrading.is_none() && (begun == 0 || (begun == 1 && self.slot != NO_TAG))
    }

    /// If nothing of an exchange is here, the next one counts as the first.
    pub(super) fn start_over(&mut self) -> bool {
        let rests = self.slot == NO_TAG
            && self.upgrading.is_none()
            && self.codec.held() == 0
            && self.is_reusable();
        if rests {
            self.since = self.turn;
        }
        rests
    }

    /// The next exchange begins.
    pub(super) fn next_turn(&mut self) {
        self.turn = self.turn.wrapping_add(1);
    }

    /// A client's request has begun; whether it asks for another protocol. A browser names the
    /// page in `origin` (RFC 6455 4.1), which no script can leave out.
    pub(super) fn begin_request(&mut self, fields: &Fields, upgrade: bool) {
        self.next_turn();
        self.begun = None;
        self.upgrade = upgrade;
        let page = upgrade && fields.iter().any(|field| field.name == b"origin");
        self.page = if page { Page::Open } else { Page::None };
    }

    /// Looks at the last bytes of a stream of bytes so far. A script cannot close with 1001: if the
    /// bytes end with such a Close, the page is being left.
    pub(super) fn note_leaving(&mut self, bytes: &[u8]) {
        if self.page != Page::None && self.codec.is_raw() {
            self.page = if h1::ends_going_away(bytes) { Page::Left } else { Page::Open };
        }
    }

    /// The protocol version that the exchange under way is counted as, and whether the exchange
    /// asks for another protocol.
    pub(super) fn speaks(&self) -> (HttpVersion, bool) {
        let version = match self.codec.version() {
            H1Version::Http10 => HttpVersion::H10,
            H1Version::Http11 => HttpVersion::H11,
        };
        (version, self.upgrade)
    }

    /// Writes a head. The codec refuses no head that the parsers let in, and none of our own
    /// answers.
    pub(super) fn head<'a>(
        &mut self,
        fields: impl Iterator<Item = Field<'a>> + Clone,
        end: bool,
        out: &mut impl Sink,
    ) {
        let written = if self.server {
            self.codec.response(fields, end, out)
        } else {
            self.codec.request(fields, end, out)
        };
        if written.is_err() {
            debug_assert!(false, "a head that cannot be written was let in");
            self.codec.close_after();
        }
    }

    /// Writes the framing before a piece of a body; false if the body is longer than was announced.
    pub(super) fn put_data(&mut self, len: usize, end: bool, out: &mut impl Sink) -> bool {
        let Ok(head) = self.codec.data_head(len, end) else { return false };
        out.put(head.as_bytes());
        true
    }

    /// The exchange is over, one way or another.
    pub(super) fn release(&mut self) {
        self.slot = NO_TAG;
        self.upgrade = false;
    }

    pub(super) fn has_kept(&self) -> bool {
        !self.kept.is_empty()
    }

    /// Drops all that waits here; returns how many bytes that were.
    pub(super) fn take_waiting(&mut self, pool: &mut Pool) -> usize {
        self.kept.drain(..).for_each(|part| pool.release(part));
        let body = self
            .upgrading
            .take()
            .map_or(0, |mut upgrading| upgrading.drop_body(pool) + upgrading.fields.size());
        std::mem::take(&mut self.kept_bytes) + body
    }
}

/// A request that is being read before its connection changes to HTTP/2.
pub(super) struct Upgrading {
    pub(super) fields: Fields,
    pub(super) settings: Vec<u8>,
    pub(super) body: VecDeque<Segment>,
    pub(super) bytes: usize,
}

impl Upgrading {
    pub(super) fn drop_body(&mut self, pool: &mut Pool) -> usize {
        self.body.drain(..).for_each(|part| pool.release(part));
        std::mem::take(&mut self.bytes)
    }
}

/// The limits that an HTTP/1 connection is held to.
pub(super) fn http1_limits(turn: &Turn<'_>) -> h1::Limits {
    let limits = &turn.settings.config.limits;
    let head = HeadLimits { max_bytes: limits.header_bytes, max_fields: limits.header_fields };
    h1::Limits { head, trailers: head, ..h1::Limits::default() }
}
