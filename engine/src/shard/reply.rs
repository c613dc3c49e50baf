//! The only place that answers a request in our own name.

use std::time::Duration;

use ringway_proto::answer;
use ringway_proto::fault::Fault;
use ringway_proto::fields::{Field, Fields, Token};
use ringway_proto::h2::ErrorCode;
use ringway_proto::route::{Preflight, ReplyStyle};
use ringway_proto::time::Time;

use super::Shard;
use super::exchange::{At, Exchange, Way};
use super::timer::Due;
use crate::border::Border;
use crate::metrics::Method;

/// Request bytes thrown away behind our own answer before the client is told to stop.
pub(crate) const DISCARD_LIMIT: usize = 64 * 1024;

/// How long a request that is answered already may go on without ending.
pub(crate) const ANSWERED_WAIT: Duration = Duration::from_secs(10);

/// An answer of ours: head and body.
#[derive(Debug, Default)]
pub(crate) struct Reply {
    pub(crate) fields: Fields,
    pub(crate) body: Vec<u8>,
}

/// The request an answer is for, as far as the answer depends on it.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) at: At,
    pub(crate) method: Method,
    /// For the access log, if there is one.
    pub(crate) path: Option<Box<[u8]>>,
    /// The request is whole.
    pub(crate) ended: bool,
    /// When its head came.
    pub(crate) began: Time,
}

impl Shard {
    /// Answers a stream that has no exchange yet with a fault.
    pub(super) fn refuse(
        &mut self,
        border: &mut Border,
        asked: &Asked,
        style: &ReplyStyle<'_>,
        fault: &Fault,
    ) {
        let mut reply = std::mem::take(&mut self.reply);
        answer::render(fault, style, &mut reply.fields, &mut reply.body);
        self.answer(border, asked, &reply);
        self.reply = reply;
    }

    /// Answers an exchange that is under way, but has no response head yet, with a fault.
    pub(super) fn refuse_exchange(&mut self, border: &mut Border, slot: u32, fault: &Fault) {
        let Some(exchange) = self.exchanges.at_mut(slot) else { return };
        let asked = Asked {
            at: exchange.client,
            method: exchange.method,
            path: exchange.path.take(),
            ended: exchange.up.ended,
            began: exchange.began,
        };
        let kept = std::mem::take(&mut exchange.style);
        // The answer is an exchange of its own, and is counted as such.
        self.remove_exchange(border, slot);
        // Contract CL-15: a lost tunnel's 502 has no CORS fields.
        let style = if fault.is_lost_tunnel() {
            ReplyStyle { origin: None, ..kept.style() }
        } else {
            kept.style()
        };
        self.refuse(border, &asked, &style, fault);
    }

    pub(super) fn preflight(&mut self, border: &mut Border, asked: &Asked, of: &Preflight<'_>) {
        let mut reply = std::mem::take(&mut self.reply);
        answer::preflight(of, &mut reply.fields, &mut reply.body);
        self.answer(border, asked, &reply);
        self.reply = reply;
    }

    pub(super) fn health(&mut self, border: &mut Border, asked: &Asked, style: &ReplyStyle<'_>) {
        let mut reply = std::mem::take(&mut self.reply);
        self.render_health(style, &mut reply);
        self.answer(border, asked, &reply);
        self.reply = reply;
    }

    pub(super) fn render_health(&self, style: &ReplyStyle<'_>, reply: &mut Reply) {
        let draining = [("drain", "the gateway is draining")];
        let going = self.unready || self.draining.is_some();
        let failures = if going { &draining[..] } else { &[] };
        let unix_micros = self.settings.unix_micros_at_zero + self.now.0;
        let health = answer::HealthReport {
            failures,
            timestamp: &crate::log::rfc3339(unix_micros),
            version: self.settings.version,
        };
        answer::health(&health, style, &mut reply.fields, &mut reply.body);
    }

    pub(super) fn info(&mut self, border: &mut Border, asked: &Asked, method: &[u8]) {
        let mut reply = std::mem::take(&mut self.reply);
        self.render_info(method, &mut reply);
        self.answer(border, asked, &reply);
        self.reply = reply;
    }

    pub(super) fn render_info(&self, method: &[u8], reply: &mut Reply) {
        let info = answer::Info { version: self.settings.version, commit: self.settings.commit };
        answer::info(method, &info, &mut reply.fields, &mut reply.body);
    }

    /// Sends an answer on a client stream. The rest of the request is read and thrown away, so
    /// that the client's upload meets neither a reset nor a closed window before the answer.
    fn answer(&mut self, border: &mut Border, asked: &Asked, reply: &Reply) {
        let Some(hop) = self.conns.hop_mut(asked.at.conn) else { return };
        let bare = reply.body.is_empty();
        hop.link.will_discard(DISCARD_LIMIT as u64);
        let date = self.settings.date(self.now);
        let date = std::iter::once(Field::new(b"date", date.as_bytes()));
        let out = &mut border.sink(asked.at.conn);
        hop.link.answered_by_us(asked.at.key, self.now);
        let fields = reply.fields.iter().chain(date);
        hop.link.head(asked.at.key, fields, bare, &mut self.block, out);
        let mut exchange = Exchange::new(asked.at, None, asked.began);
        exchange.method = asked.method;
        exchange.version = hop.link.speaks().0;
        exchange.path.clone_from(&asked.path);
        exchange.status = reply
            .fields
            .first(Token::Status)
            .and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok())
            .unwrap_or(0);
        exchange.up.ended = asked.ended;
        exchange.up.done = asked.ended;
        exchange.down.ended = true;
        exchange.down.queued = reply.body.len();
        border.stash_bytes(&reply.body, &mut exchange.down.queue);
        exchange.down.bytes = reply.body.len() as u64;
        self.held += reply.body.len();
        let key = self.exchanges.insert(exchange);
        hop.link.set_tag(asked.at.key, key.slot);
        if !asked.ended {
            self.timers.arm(self.now + ANSWERED_WAIT, Due::Answered(key));
        }
        if bare {
            self.direction_done(border, key.slot, Way::Down);
        } else {
            self.schedule(border, key.slot, Way::Down);
        }
    }

    /// The rest of an answered request did not come: the stream is given up.
    pub(super) fn answered_too_long(&mut self, border: &mut Border, key: super::table::Key) {
        if self.exchanges.get(key).is_some() {
            self.drop_exchange(border, key.slot, Some(ErrorCode::NoError), None);
        }
    }
}
