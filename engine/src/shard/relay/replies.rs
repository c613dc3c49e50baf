//! The only place that answers a request in our own name.

use std::time::Duration;

use ringway_proto::answer;
use ringway_proto::fault::Fault;
use ringway_proto::fields::{Field, Fields, Token};
use ringway_proto::h2::ErrorCode;
use ringway_proto::route::{Preflight, ReplyStyle};
use ringway_proto::time::Time;

use super::super::timer::Due;
use super::super::turn::Turn;
use super::exchange::{At, Exchange, Served, Way};
use super::streams::{DISCARD_LIMIT, Streams};
use crate::control::port::Plane;
use crate::message::Ills;
use crate::metrics::{HttpVersion, Method};

/// How long a request that is answered already may go on without ending.
const ANSWERED_WAIT: Duration = Duration::from_secs(10);

/// The request an answer is for, as far as the answer depends on it.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) at: At,
    pub(super) method: Method,
    /// For the access log, if there is one.
    pub(super) path: Option<Box<[u8]>>,
    /// The request is whole.
    pub(super) ended: bool,
    /// When the request's head came.
    pub(super) began: Time,
}

/// An answer of ours, in memory that is used again and again.
#[derive(Debug, Default)]
pub(super) struct Replies {
    fields: Fields,
    body: Vec<u8>,
    /// `/health` says that the gateway is going.
    pub(super) unready: bool,
    /// What `/health` says is missing, beside that the gateway is going.
    pub(super) ills: Ills,
}

impl Replies {
    /// Answers a stream that has no exchange yet with a fault.
    pub(super) fn refuse(
        &mut self,
        streams: &mut Streams,
        turn: &mut Turn<'_>,
        asked: &Asked,
        (style, fault): (&ReplyStyle<'_>, &Fault),
    ) {
        answer::render(fault, style, &mut self.fields, &mut self.body);
        if let Some(why) = fault.cause().filter(|_| turn.settings.config.session.tell_cause) {
            self.fields.push(Field::new(b"x-ringway-cause", why.as_bytes()));
        }
        self.answer(streams, turn, asked);
    }

    /// Answers an exchange that is under way, but has no response head yet, with a fault. The
    /// exchange is out of every table: the answer is an exchange of its own, and is counted as
    /// such.
    pub(super) fn refuse_exchange(
        &mut self,
        streams: &mut Streams,
        turn: &mut Turn<'_>,
        exchange: Exchange,
        fault: &Fault,
    ) {
        let hop = streams.hops.hop(exchange.client.conn);
        let counts_streams = hop.is_some_and(|hop| hop.link.speaks().0 == HttpVersion::H2);
        if *fault == Fault::Draining && counts_streams && turn.settings.dispatch == Plane::Remote {
            // Clients can go to another gateway, and gRPC does so by itself (design 3.25).
            return streams.reset(turn, exchange.client, ErrorCode::RefusedStream);
        }
        let asked = Asked {
            at: exchange.client,
            method: exchange.method,
            path: exchange.path,
            ended: exchange.up.ended,
            began: exchange.began,
        };
        let kept = exchange.style;
        // Contract CL-15: a lost tunnel's 502 has no CORS fields.
        let style = if fault.is_lost_tunnel() {
            ReplyStyle { origin: None, ..kept.style() }
        } else {
            kept.style()
        };
        self.refuse(streams, turn, &asked, (&style, fault));
    }

    pub(super) fn preflight(
        &mut self,
        streams: &mut Streams,
        turn: &mut Turn<'_>,
        asked: &Asked,
        of: &Preflight<'_>,
    ) {
        answer::preflight(of, &mut self.fields, &mut self.body);
        self.answer(streams, turn, asked);
    }

    pub(super) fn health(
        &mut self,
        streams: &mut Streams,
        turn: &mut Turn<'_>,
        asked: &Asked,
        style: &ReplyStyle<'_>,
    ) {
        let going = self.unready || turn.draining.is_some();
        let draining = going.then_some(("drain", "the gateway is draining"));
        let ills = self.ills.iter().map(|(name, why)| (*name, why.as_str()));
        let failures: Vec<_> = draining.into_iter().chain(ills).collect();
        let unix_micros = turn.settings.unix_micros_at_zero + turn.now.0;
        let health = answer::HealthReport {
            failures: &failures,
            timestamp: &crate::log::rfc3339(unix_micros),
            version: turn.settings.version(),
        };
        answer::health(&health, style, &mut self.fields, &mut self.body);
        self.answer(streams, turn, asked);
    }

    pub(super) fn info(
        &mut self,
        streams: &mut Streams,
        turn: &mut Turn<'_>,
        asked: &Asked,
        method: &[u8],
    ) {
        let info = answer::Info { version: turn.settings.version(), commit: turn.settings.commit };
        answer::info(method, &info, &mut self.fields, &mut self.body);
        self.answer(streams, turn, asked);
    }

    /// Sends an answer on a client stream. The rest of the request is read and thrown away, so
    /// that the client's upload meets neither a reset nor a closed window before the answer.
    fn answer(&self, streams: &mut Streams, turn: &mut Turn<'_>, asked: &Asked) {
        let Some(hop) = streams.hops.hop_mut(asked.at.conn) else { return };
        let bare = self.body.is_empty();
        hop.link.will_discard(DISCARD_LIMIT as u64);
        let date = turn.date();
        let date = std::iter::once(Field::new(b"date", date.as_bytes()));
        let out = &mut turn.net.sink(asked.at.conn);
        hop.link.answered_by_us(asked.at.key, turn.now);
        let fields = self.fields.iter().chain(date);
        hop.link.head(asked.at.key, fields, bare, &mut streams.block, out);
        let mut exchange = Exchange::new(asked.at, Served::Ourselves, asked.began);
        exchange.method = asked.method;
        exchange.version = hop.link.speaks().0;
        exchange.path.clone_from(&asked.path);
        exchange.status = self
            .fields
            .first(Token::Status)
            .and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok())
            .unwrap_or(0);
        exchange.up.ended = asked.ended;
        exchange.up.done = asked.ended;
        exchange.down.ended = true;
        exchange.down.queued = self.body.len();
        turn.net.stash_bytes(&self.body, &mut exchange.down.queue);
        exchange.down.bytes = self.body.len() as u64;
        let key = streams.exchanges.insert(exchange);
        hop.link.set_tag(asked.at.key, key.slot);
        streams.hops.buffered += self.body.len();
        if !asked.ended {
            turn.arm(turn.now + ANSWERED_WAIT, Due::Answered(key));
        }
        if bare {
            streams.direction_done(turn, key.slot, Way::Down);
        } else {
            streams.schedule(turn, key.slot, Way::Down);
        }
    }
}
