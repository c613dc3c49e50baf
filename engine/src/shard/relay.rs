//! One frame from one hop to the other. Heads are decoded, amended and encoded anew; DATA payload
//! stays where it was received unless it is small, has to wait for long, or nobody wants it.

use std::time::Duration;

use ringway_proto::fault::Fault;
use ringway_proto::fields::{Field, Fields, Token};
use ringway_proto::h2::{Blocked, CRUMB, ErrorCode};

use super::Shard;
use super::conn::Hop;
use super::exchange::{At, Pipe, Way};
use super::large::counted;
use super::link::Link;
use super::table::Key;
use super::timer::Due;
use super::trail::STALL;
use crate::border::{Border, ConnId};
use crate::metrics::{CopyWhy, Limit, Method};
use crate::pool::Segment;
use crate::trail::Event;

/// DATA frames up to this length are copied into the output: a copy of that size costs less than
/// a range of its own in the send.
pub(crate) const SMALL_FRAME: usize = 4096;

/// Output above which no more DATA is moved to a hop; what comes then waits in its pipe.
pub(crate) const OUTPUT_HIGH: usize = 256 * 1024;

/// Output above which the hops that feed it stop reading: heads have no flow control.
pub(crate) const OUTPUT_FULL: usize = 1024 * 1024;

/// Bytes one stream may send before the next stream of the hop has its turn.
const TURN_BYTES: usize = 64 * 1024;

/// How long bulk waits for more of a window than a crumb, once it has used one.
const CRUMB_WAIT: Duration = Duration::from_millis(5);

/// How often streams without progress are looked for while memory is short.
const SWEEP: Duration = Duration::from_secs(1);

/// A piece of DATA as the connection showed it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub(crate) at: At,
    pub(crate) payload: Segment,
    /// The nine bytes before the payload may be overwritten with a new frame head.
    pub(crate) head_in_place: bool,
    pub(crate) end: bool,
}

/// What came of a stream's turn.
enum Turn {
    /// All is sent; END_STREAM too, if it was due.
    Empty,
    /// More could be sent: it is the next stream's turn.
    Again,
    /// It waits for its own window.
    Blocked,
    /// Every stream of the hop has to wait.
    HopBlocked,
}

impl Shard {
    /// DATA from a hop: on to the other one, or it waits.
    pub(super) fn data(&mut self, border: &mut Border, piece: Piece) {
        let len = piece.payload.len as usize;
        let Some(hop) = self.conns.hop_mut(piece.at.conn) else { return };
        let way = hop.way_in();
        let slot = hop.link.tag(piece.at.key);
        let Some(exchange) = self.exchanges.at_mut(slot) else {
            hop.link.drained(piece.at.key, len, false, &mut border.sink(piece.at.conn));
            return;
        };
        if exchange.attachment.is_none() && way == Way::Up {
            return self.discard(border, slot, piece);
        }
        let to = exchange.to(way);
        let pipe = exchange.pipe(way);
        pipe.bytes += len as u64;
        if pipe.ended {
            return self.unwanted(border, slot, way, piece);
        }
        pipe.ended = piece.end;
        let waits = pipe.queued > 0 || pipe.scheduled;
        if let Some(to) = to
            && !waits
            && self.pass_data(border, to, piece)
        {
            // A body of another length than announced has ended the exchange, and perhaps the hop.
            let Some(hop) = self.conns.hop_mut(piece.at.conn) else { return };
            hop.link.drained(piece.at.key, len, false, &mut border.sink(piece.at.conn));
            if piece.end {
                self.direction_done(border, slot, way);
            }
            return;
        }
        self.hold(border, slot, way, piece);
    }

    /// Moves one piece to a hop if its windows and its output have room for the whole of it.
    fn pass_data(&mut self, border: &mut Border, to: At, piece: Piece) -> bool {
        let len = piece.payload.len as usize;
        let Some(hop) = self.conns.hop_mut(to.conn) else { return false };
        let Link::H2(h2) = &mut hop.link else { return self.pass_http1(border, to, piece) };
        if len > 0 && (border.queued(to.conn) >= OUTPUT_HIGH || h2.data_room(to.key) < len) {
            return false;
        }
        let head = h2.data_head(to.key, len, piece.end);
        let small = len <= SMALL_FRAME;
        if piece.head_in_place {
            let whole = piece.payload.grow_front(head.len());
            border.pool.bytes_mut(whole.part(0, head.len())).copy_from_slice(&head);
            if small { border.put_copy(to.conn, whole) } else { border.push(to.conn, whole) }
        } else {
            border.put(to.conn, &head);
            let payload = piece.payload;
            if small { border.put_copy(to.conn, payload) } else { border.push(to.conn, payload) }
        }
        if small {
            self.metrics.payload_copied[CopyWhy::SmallFrame.index()] += len as u64;
        } else {
            self.metrics.payload_relayed += len as u64;
        }
        true
    }

    /// Keeps a piece until the other hop can take it.
    fn hold(&mut self, border: &mut Border, slot: u32, way: Way, piece: Piece) {
        let len = piece.payload.len as usize;
        let exchange = self.exchanges.at_mut(slot).expect("the caller has just found it");
        let waits_for_tunnel = exchange.to(way).is_none();
        let pipe = exchange.pipe(way);
        if len > 0 {
            if pipe.queued == 0 {
                pipe.moved_at = border.now;
            }
            pipe.queued += len;
            if waits_for_tunnel || len <= SMALL_FRAME || border.receive_memory_is_short() {
                border.stash(piece.payload, &mut pipe.queue);
                let why = if waits_for_tunnel { CopyWhy::Waiting } else { CopyWhy::SlowPeer };
                self.metrics.payload_copied[why.index()] += len as u64;
            } else {
                border.pool.retain(piece.payload);
                pipe.queue.push_back(piece.payload);
                self.metrics.payload_relayed += len as u64;
            }
            self.holding(border, Some(piece.at.conn), len);
        }
        self.schedule(border, slot, way);
    }

    /// The receiver wanted no more and has ended its stream in order, while its answer is still on
    /// its way to the sender.
    fn unwanted(&mut self, border: &mut Border, slot: u32, way: Way, piece: Piece) {
        if let Some(hop) = self.conns.hop_mut(piece.at.conn) {
            let len = piece.payload.len as usize;
            hop.link.drained(piece.at.key, len, false, &mut border.sink(piece.at.conn));
        }
        if piece.end {
            self.direction_done(border, slot, way);
        }
    }

    /// Counts bytes that wait against the core and the connection they came from.
    pub(super) fn holding(&mut self, border: &mut Border, from: Option<ConnId>, len: usize) {
        self.held += len;
        let budget = self.settings.config.limits.core_buffer;
        if !self.sweeping && self.held > budget / 4 * 3 {
            self.sweeping = true;
            self.timers.arm(border.now + SWEEP, Due::Sweep);
        }
        let Some(conn) = from else { return };
        let Some(hop) = self.conns.hop_mut(conn) else { return };
        let (before, most) = (hop.held as usize, self.settings.held_per_connection());
        hop.held += counted(len);
        let Link::H2(h2) = &mut hop.link else { return self.http1_gate(border, conn) };
        h2.allow_growth(self.held < budget / 2);
        if before <= most && hop.held as usize > most {
            h2.hold_connection_credit(true, &mut border.sink(conn));
        }
    }

    /// The counterpart of [`Self::holding`].
    pub(super) fn let_go(&mut self, border: &mut Border, from: Option<ConnId>, len: usize) {
        self.held -= len;
        let Some(conn) = from else { return };
        let Some(hop) = self.conns.hop_mut(conn) else { return };
        let (before, most) = (hop.held as usize, self.settings.held_per_connection());
        hop.held -= counted(len);
        let Link::H2(h2) = &mut hop.link else { return self.http1_gate(border, conn) };
        h2.allow_growth(self.held < self.settings.config.limits.core_buffer / 2);
        if before > most && hop.held as usize <= most {
            h2.hold_connection_credit(false, &mut border.sink(conn));
        }
    }

    /// Memory is short: streams that have not moved for long are given up (L11).
    pub(super) fn sweep(&mut self, border: &mut Border) {
        let limits = &self.settings.config.limits;
        let (budget, patience) = (limits.core_buffer, limits.stalled_stream);
        self.sweeping = self.held > budget / 4 * 3;
        if !self.sweeping {
            return;
        }
        self.timers.arm(border.now + SWEEP, Due::Sweep);
        let now = border.now;
        let stalled = |pipe: &Pipe| pipe.queued > 0 && pipe.moved_at + patience <= now;
        let slots: Vec<u32> = self
            .exchanges
            .iter()
            .filter(|(_, exchange)| stalled(&exchange.up) || stalled(&exchange.down))
            .map(|(key, _)| key.slot)
            .collect();
        for slot in slots {
            self.metrics.limit_hit(Limit::StalledStream);
            self.cancel_exchange(border, slot, &Fault::Overloaded);
        }
    }

    /// Request bytes after our own answer: nobody wants them, and after a while we say so.
    fn discard(&mut self, border: &mut Border, slot: u32, piece: Piece) {
        let exchange = self.exchanges.at_mut(slot).expect("the caller has just found it");
        exchange.discarded += piece.payload.len as usize;
        exchange.up.ended |= piece.end;
        if piece.end {
            self.direction_done(border, slot, Way::Up);
        } else if exchange.discarded > super::reply::DISCARD_LIMIT {
            self.drop_exchange(border, slot, Some(ErrorCode::NoError), None);
        }
    }

    /// Puts a pipe with something to send on its receiver's turn list and lets the hop send.
    pub(super) fn schedule(&mut self, border: &mut Border, slot: u32, way: Way) {
        let Some(key) = self.exchanges.key_at(slot) else { return };
        let Some(exchange) = self.exchanges.at_mut(slot) else { return };
        let Some(to) = exchange.to(way) else { return };
        let pipe = exchange.pipe(way);
        if !pipe.waits() || pipe.scheduled {
            return;
        }
        if let Some(hop) = self.conns.hop_mut(to.conn) {
            pipe.scheduled = true;
            hop.ready.push_back(key);
            self.pump(border, to.conn);
        }
    }

    /// Lets the streams that wait for this hop send in turn, as far as windows and output allow.
    pub(super) fn pump(&mut self, border: &mut Border, conn: ConnId) {
        while border.queued(conn) < OUTPUT_HIGH {
            let Some(hop) = self.conns.hop_mut(conn) else { return };
            let way = hop.way_out();
            let Some(key) = hop.ready.pop_front() else { return };
            let hop_since = hop.hop_since;
            // Its slot may be another exchange's by now, with a turn on another hop.
            let Some(exchange) = self.exchanges.get_mut(key) else { continue };
            let since = exchange.pipe(way).moved_at.max(hop_since);
            let turn = self.send_waiting(border, key.slot, way);
            let again = matches!(turn, Turn::Again | Turn::HopBlocked);
            if let Some(exchange) = self.exchanges.get_mut(key) {
                let pipe = exchange.pipe(way);
                pipe.scheduled = again;
                if pipe.moved_at.since(since) >= STALL {
                    self.note_stall(key.slot, way, since);
                }
            }
            match turn {
                Turn::Empty => self.direction_done(border, key.slot, way),
                Turn::Again => self.requeue(conn, key, false),
                Turn::Blocked => {}
                Turn::HopBlocked => return self.requeue(conn, key, true),
            }
        }
    }

    fn requeue(&mut self, conn: ConnId, key: Key, front: bool) {
        if let Some(hop) = self.conns.hop_mut(conn) {
            if front { hop.ready.push_front(key) } else { hop.ready.push_back(key) }
        }
    }

    /// One stream's turn: DATA up to its share, then trailers or the bare end.
    fn send_waiting(&mut self, border: &mut Border, slot: u32, way: Way) -> Turn {
        let mut share = TURN_BYTES;
        loop {
            let Some(exchange) = self.exchanges.at_mut(slot) else { return Turn::Blocked };
            let Some(to) = exchange.to(way) else { return Turn::Blocked };
            let from = exchange.from(way);
            let pipe = exchange.pipe(way);
            let Some(hop) = self.conns.hop_mut(to.conn) else { return Turn::Blocked };
            let waiting = pipe.queued;
            let Some(front) = pipe.queue.front_mut() else {
                return self.send_end(border, slot, way);
            };
            let piece = front.len as usize;
            let n = match hop.link.sendable(to.key, piece, waiting, !pipe.crumb) {
                Ok(n) => n.min(share),
                Err(blocked) => {
                    let crumb = hop.link.data_room(to.key) > 0;
                    return self.blocked(slot, way, blocked, crumb);
                }
            };
            if share == 0 || border.queued(to.conn) >= OUTPUT_HIGH {
                return Turn::Again;
            }
            let end = waiting == n && pipe.ended && pipe.trailers.is_none();
            if !hop.link.put_data(to.key, n, end, &mut border.sink(to.conn)) {
                self.wrong_length(border, slot);
                return Turn::Blocked;
            }
            share -= n;
            pipe.crumb = n < CRUMB.min(piece);
            let part = front.part(0, n);
            let rest = front.part(n, front.len as usize - n);
            pipe.queued -= n;
            pipe.moved_at = border.now;
            if n <= SMALL_FRAME {
                if border.pool.is_ring(part) {
                    self.metrics.payload_copied[CopyWhy::SmallFrame.index()] += n as u64;
                }
                border.put_copy(to.conn, part);
            } else {
                border.push(to.conn, part);
            }
            let whole = !end || hop.link.end_data(&mut border.sink(to.conn));
            if rest.len == 0 {
                pipe.queue.pop_front();
                border.pool.release(part);
            } else {
                *front = rest;
            }
            let backlog = pipe.queued > 0;
            self.took(border, from, n, backlog);
            if !whole {
                self.wrong_length(border, slot);
                return Turn::Blocked;
            }
            if end {
                return Turn::Empty;
            }
        }
    }

    /// A turn that has to wait. If a crumb of the window is left, it is used after a while: the
    /// receiver may give credit for whole messages only.
    fn blocked(&mut self, slot: u32, way: Way, by: Blocked, crumb: bool) -> Turn {
        if let (true, Some(key)) = (crumb, self.exchanges.key_at(slot))
            && let Some(exchange) = self.exchanges.at_mut(slot)
            && !std::mem::replace(&mut exchange.pipe(way).crumb_waits, true)
        {
            self.timers.arm(self.now + CRUMB_WAIT, Due::Crumb(key));
        }
        match by {
            Blocked::Connection => Turn::HopBlocked,
            Blocked::Stream | Blocked::Ended => Turn::Blocked,
        }
    }

    /// The next crumbs of an exchange may go.
    pub(super) fn allow_crumbs(&mut self, border: &mut Border, key: Key) {
        for way in [Way::Up, Way::Down] {
            let Some(exchange) = self.exchanges.get_mut(key) else { return };
            let to = exchange.to(way);
            let pipe = exchange.pipe(way);
            if !std::mem::take(&mut pipe.crumb_waits) {
                continue;
            }
            pipe.crumb = false;
            if !pipe.scheduled {
                self.schedule(border, key.slot, way);
            } else if let Some(to) = to {
                self.pump(border, to.conn);
            }
        }
    }

    /// What was held of a stream has moved on: its sender may send more.
    fn took(&mut self, border: &mut Border, from: Option<At>, len: usize, backlog: bool) {
        if let Some(from) = from
            && let Some(hop) = self.conns.hop_mut(from.conn)
        {
            hop.link.drained(from.key, len, backlog, &mut border.sink(from.conn));
        }
        self.let_go(border, from.map(|at| at.conn), len);
    }

    /// The end of a direction whose DATA is all sent.
    fn send_end(&mut self, border: &mut Border, slot: u32, way: Way) -> Turn {
        let exchange = self.exchanges.at_mut(slot).expect("the caller has just found it");
        let to = exchange.to(way).expect("the caller has just found it");
        let pipe = exchange.pipe(way);
        if !pipe.ended || pipe.done {
            return Turn::Blocked;
        }
        let trailers = pipe.trailers.take();
        let size = trailers.as_ref().map_or(0, |trailers| trailers.size());
        let Some(hop) = self.conns.hop_mut(to.conn) else { return Turn::Blocked };
        let out = &mut border.sink(to.conn);
        let whole = match trailers {
            Some(trailers) => {
                hop.link.trailers(to.key, &trailers, &mut self.block, out);
                true
            }
            None => hop.link.put_data(to.key, 0, true, out) && hop.link.end_data(out),
        };
        self.list_went(slot, way, size);
        if !whole {
            self.wrong_length(border, slot);
            return Turn::Blocked;
        }
        Turn::Empty
    }

    /// Trailers from a hop: on to the other one, behind the DATA that waits.
    pub(super) fn trailers(&mut self, border: &mut Border, at: At, fields: &Fields) {
        let Some(hop) = self.conns.hop_mut(at.conn) else { return };
        let (way, slot) = (hop.way_in(), hop.link.tag(at.key));
        let Some(exchange) = self.exchanges.at_mut(slot) else { return };
        let own = exchange.attachment.is_none() && way == Way::Up;
        let to = exchange.to(way);
        let pipe = exchange.pipe(way);
        let unwanted = std::mem::replace(&mut pipe.ended, true);
        match to {
            _ if own || unwanted => self.direction_done(border, slot, way),
            Some(to) if pipe.queued == 0 && !pipe.scheduled => {
                if let Some(hop) = self.conns.hop_mut(to.conn) {
                    let out = &mut border.sink(to.conn);
                    let generation = hop.link.trailers(to.key, fields, &mut self.block, out);
                    self.keep_answer(at.conn, 0, generation.filter(|_| way == Way::Down));
                    self.direction_done(border, slot, way);
                }
            }
            _ => {
                // What comes twice ends the stream before it comes here.
                pipe.trailers = Some(Box::new(fields.clone()));
                if !self.list_waits(border, slot, way, fields.size()) {
                    return self.list_refused(border, slot, way, fields);
                }
                self.schedule(border, slot, way);
            }
        }
    }

    /// A request head to its tunnel: the stream is open already.
    pub(super) fn request_head(&mut self, border: &mut Border, slot: u32, fields: &Fields) {
        let Some(exchange) = self.exchanges.at_mut(slot) else { return };
        let (Some(to), Some(key)) = (exchange.worker, exchange.attachment) else { return };
        let end = exchange.up.ended && exchange.up.queued == 0 && exchange.up.trailers.is_none();
        let Some(attachment) = self.attachments.get(key) else { return };
        let Some(hop) = self.conns.hop_mut(to.conn) else { return };
        // Contract CL-27: the scheme on this hop is ours. CL-30: the id is the session's.
        let scheme = |f: Field<'_>| f.token == Token::Scheme;
        let id = Field {
            token: Token::NvcfReqid,
            name: b"nvcf-reqid",
            value: &attachment.id_text,
            never_indexed: false,
        };
        let upgrade = exchange.upgrade;
        let fields = fields
            .iter()
            .filter(|f| is_end_to_end(f.token) || (upgrade && f.token == Token::Upgrade))
            .filter(|f| !is_replaced_up(f.token))
            .map(|f| if scheme(f) { Field { value: b"http", ..f } } else { f })
            .chain(std::iter::once(id));
        let out = &mut border.sink(to.conn);
        let generation = hop.link.head(to.key, fields, end, &mut self.block, out);
        if exchange.method == Method::Head {
            hop.link.set_head_request(to.key);
        }
        let client = exchange.client.conn;
        self.keep_call(slot, generation);
        self.request_sent(border, slot, client, to.conn);
    }

    /// A response head to the client.
    pub(super) fn response_head(
        &mut self,
        border: &mut Border,
        at: At,
        fields: &Fields,
        (informational, end): (bool, bool),
    ) {
        let Some(hop) = self.conns.hop_mut(at.conn) else { return };
        let slot = hop.link.tag(at.key);
        let Some(exchange) = self.exchanges.at_mut(slot) else { return };
        let (to, key) = (exchange.client, exchange.attachment);
        let Some(attachment) = key.and_then(|key| self.attachments.get(key)) else { return };
        let id_text = attachment.id_text;
        let upgrade = exchange.upgrade;
        // RFC 9110 §6.6.2: which trailers come is said to the client, not to us.
        let passes = |token| {
            is_end_to_end(token) || token == Token::Trailer || (upgrade && token == Token::Upgrade)
        };
        let plain = fields.iter().filter(|f| passes(f.token));
        if informational {
            if let Some(hop) = self.conns.hop_mut(to.conn) {
                let out = &mut border.sink(to.conn);
                hop.link.head(to.key, plain, false, &mut self.block, out);
            }
            return;
        }
        exchange.status = status(fields);
        exchange.down.ended = end;
        let first = hop.tunnel_mut().is_some_and(|t| !std::mem::replace(&mut t.cookie_sent, true));
        // Contract CL-36: our id replaces the worker's. CL-37: one cookie a tunnel, after theirs.
        let id = Field {
            token: Token::NvcfReqid,
            name: b"nvcf-reqid",
            value: &id_text,
            never_indexed: false,
        };
        let cookie = first.then(|| attachment.cookie());
        let cookie = cookie.as_ref().map(|value| Field::new(b"set-cookie", value));
        let fields =
            plain.filter(|f| f.token != Token::NvcfReqid).chain(std::iter::once(id)).chain(cookie);
        let status = exchange.status;
        if let Some(hop) = self.conns.hop_mut(to.conn) {
            let out = &mut border.sink(to.conn);
            let generation = hop.link.head(to.key, fields, end, &mut self.block, out);
            if hop.link.is_open_ended() {
                border.set_open_ended(to.conn, true);
            }
            self.keep_answer(at.conn, status, generation.filter(|_| !first));
        }
        if let Some(key) = key.filter(|_| first) {
            self.note_of(key, Event::AnswerBegun);
        }
        self.answer_sent(border, slot, at.conn, end);
    }
}

impl Hop {
    /// Which way bytes go that come in here.
    pub(crate) fn way_in(&self) -> Way {
        if self.client().is_some() { Way::Up } else { Way::Down }
    }

    /// Which way bytes go that leave here.
    pub(crate) fn way_out(&self) -> Way {
        if self.client().is_some() { Way::Down } else { Way::Up }
    }
}

/// The three digits of `:status`.
fn status(fields: &Fields) -> u16 {
    let digits = fields.first(Token::Status).unwrap_or_default();
    digits.iter().fold(0, |value, digit| value * 10 + u16::from(digit.wrapping_sub(b'0') % 10))
}

/// Whether a field belongs to the message, not to one connection (contract CL-28). `te` can only
/// be `trailers` in HTTP/2 and is put back (RFC 9113 §8.2.2).
pub(super) fn is_end_to_end(token: Token) -> bool {
    !matches!(
        token,
        Token::Connection
            | Token::ProxyConnection
            | Token::KeepAlive
            | Token::ProxyAuthenticate
            | Token::ProxyAuthorization
            | Token::Trailer
            | Token::TransferEncoding
            | Token::Upgrade
    )
}

/// Request fields that are not the client's to say (contract CL-29, CL-30).
fn is_replaced_up(token: Token) -> bool {
    matches!(
        token,
        Token::Forwarded
            | Token::XForwardedFor
            | Token::XForwardedHost
            | Token::XForwardedProto
            | Token::NvcfReqid
    )
}
