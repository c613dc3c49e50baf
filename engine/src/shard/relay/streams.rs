//! Frames on their way from one hop to the other. Heads are decoded, amended and encoded anew; DATA
//! payload stays where it was received unless it is small, has to wait for long, or nobody wants
//! it.

use ringway_proto::fields::{Field, Fields, Token};
use ringway_proto::h2::{ErrorCode, HeadKind, OpenError};

use super::super::table::{Key, Table};
use super::super::turn::Turn;
use super::exchange::{At, Exchange, Way};
use super::flow::counted;
use super::heads::{cookie, id_field, is_end_to_end, is_replaced_up, status};
use super::hops::Hops;
use super::link::Link;
use super::memo::{InHand, KeptAnswer, KeptCall, block_sent, keep};
use crate::metrics::{CopyWhy, Method};
use crate::net::ConnId;
use crate::pool::Segment;

/// DATA frames up to this length are copied into the output: a copy of that size costs less than
/// a range of its own in the send.
pub(super) const SMALL_FRAME: usize = 4096;

/// Bytes of a request that are thrown away behind our own answer before the client's stream is
/// reset.
pub(super) const DISCARD_LIMIT: usize = 64 * 1024;

/// A piece of DATA as the connection showed it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) at: At,
    pub(super) payload: Segment,
    /// The nine bytes before the payload may be overwritten with a new frame head.
    pub(super) head_in_place: bool,
    pub(super) end: bool,
}

/// The kind of a response head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// More heads follow.
    Informational,
    /// The response begins, and ends with its head if `end` says so.
    Final { end: bool },
}

/// Connections, and the exchanges between them.
#[derive(Debug)]
pub(super) struct Streams {
    pub(super) hops: Hops,
    pub(super) exchanges: Table<Exchange>,
    /// The list being relayed, if its connection keeps it.
    pub(super) in_hand: Option<InHand>,
    /// The block that was encoded last.
    pub(super) block: Vec<u8>,
}

impl Streams {
    pub(super) fn new(generation: u32) -> Self {
        Self {
            hops: Hops::default(),
            exchanges: Table::new(generation),
            in_hand: None,
            block: Vec::new(),
        }
    }

    /// The exchange that a connection's stream belongs to, and which way its bytes go.
    pub(super) fn slot_of(&mut self, at: At) -> (u32, Way) {
        let hop = self.hops.known(at.conn);
        (hop.link.tag(at.key), hop.way_in())
    }

    // ---- DATA ----

    /// DATA from a hop: on to the other one, or it waits.
    pub(super) fn data(&mut self, turn: &mut Turn<'_>, piece: Piece) {
        let len = piece.payload.len as usize;
        let hop = self.hops.known(piece.at.conn);
        let way = hop.way_in();
        let slot = hop.link.tag(piece.at.key);
        let Some(exchange) = self.exchanges.at_mut(slot) else {
            return hop.link.drained(piece.at.key, len, false, &mut turn.net.sink(hop.conn));
        };
        if exchange.is_discarded(way) {
            return self.discard(turn, slot, piece);
        }
        let to = exchange.to(way);
        let pipe = exchange.pipe(way);
        pipe.bytes += len as u64;
        // The receiver may have wanted no more and ended its stream in order, while its answer is
        // still on its way to the sender.
        let unwanted = pipe.ended;
        pipe.ended |= piece.end;
        let waits = pipe.queued > 0 || pipe.scheduled;
        // A direction that has ended needs no larger window.
        let grows = !piece.end && to.is_some_and(|to| self.hops.may_grow(turn, to.conn));
        if unwanted || to.is_some_and(|to| !waits && self.pass_data(turn, to, piece)) {
            self.passed(turn, (slot, way), piece, grows);
        } else {
            self.hold(turn, slot, way, piece);
        }
    }

    /// A piece needs nothing more: its sender may send as much again.
    fn passed(&mut self, turn: &mut Turn<'_>, (slot, way): (u32, Way), piece: Piece, grows: bool) {
        let (at, len) = (piece.at, piece.payload.len as usize);
        if let Some(hop) = self.hops.hop_mut(at.conn) {
            hop.link.drained(at.key, len, grows, &mut turn.net.sink(at.conn));
        }
        if piece.end {
            self.direction_done(turn, slot, way);
        }
    }

    /// Moves one piece to a hop if its windows and its output have room for the whole of it.
    fn pass_data(&mut self, turn: &mut Turn<'_>, to: At, piece: Piece) -> bool {
        let len = piece.payload.len as usize;
        let full = len > 0 && self.hops.output_is_full(turn, to.conn);
        let Some(hop) = self.hops.hop_mut(to.conn) else { return false };
        if full {
            return false;
        }
        let small = len <= SMALL_FRAME;
        match &mut hop.link {
            Link::H2(h2) => {
                if len > 0 && h2.data_room(to.key) < len {
                    return false;
                }
                let head = h2.data_head(to.key, len, piece.end);
                let payload = if piece.head_in_place {
                    let whole = piece.payload.grow_front(head.len());
                    turn.net.pool.bytes_mut(whole.part(0, head.len())).copy_from_slice(&head);
                    whole
                } else {
                    turn.net.put(to.conn, &head);
                    piece.payload
                };
                if small {
                    turn.net.put_copy(to.conn, payload);
                } else {
                    turn.net.push(to.conn, payload);
                }
            }
            Link::H1(h1) => {
                let slot = h1.tag(to.key);
                if !h1.put_data(len, piece.end, &mut turn.net.sink(to.conn)) {
                    self.wrong_length(turn, slot);
                    return true;
                }
                if small {
                    turn.net.put_copy(to.conn, piece.payload);
                } else {
                    turn.net.push(to.conn, piece.payload);
                }
                if piece.end && h1.codec.finish(None, &mut turn.net.sink(to.conn)).is_err() {
                    self.wrong_length(turn, slot);
                }
            }
        }
        count_payload(turn, len);
        true
    }

    /// Keeps a piece until the other hop can take it.
    fn hold(&mut self, turn: &mut Turn<'_>, slot: u32, way: Way, piece: Piece) {
        let len = piece.payload.len as usize;
        let exchange = self.exchanges.at_mut(slot).expect("the caller has just found it");
        let waits_for_tunnel = exchange.to(way).is_none();
        let pipe = exchange.pipe(way);
        if len > 0 {
            if pipe.queued == 0 {
                pipe.moved_at = turn.now;
            }
            pipe.queued += len;
            if waits_for_tunnel || len <= SMALL_FRAME || turn.net.receive_memory_is_short() {
                turn.net.stash(piece.payload, &mut pipe.queue);
                let why = if waits_for_tunnel { CopyWhy::Waiting } else { CopyWhy::SlowPeer };
                turn.metrics.payload_copied[why.index()] += len as u64;
            } else {
                turn.net.pool.retain(piece.payload);
                pipe.queue.push_back(piece.payload);
                turn.metrics.payload_relayed += len as u64;
            }
            self.hops.add_buffered(turn, Some(piece.at.conn), len);
        }
        self.schedule(turn, slot, way);
    }

    /// Request bytes after our own answer: nobody wants them, and after a while we say so.
    fn discard(&mut self, turn: &mut Turn<'_>, slot: u32, piece: Piece) {
        let exchange = self.exchanges.at_mut(slot).expect("the caller has just found it");
        exchange.discarded += piece.payload.len as usize;
        exchange.up.ended |= piece.end;
        if piece.end {
            self.direction_done(turn, slot, Way::Up);
        } else if exchange.discarded > DISCARD_LIMIT {
            self.drop_exchange(turn, slot, Some(ErrorCode::NoError), None);
        }
    }

    /// A message has ended with what was shown before.
    pub(super) fn message_end(&mut self, turn: &mut Turn<'_>, at: At) {
        let (slot, way) = self.slot_of(at);
        if let Some(exchange) = self.exchanges.at_mut(slot) {
            let own = exchange.is_discarded(way);
            exchange.pipe(way).ended = true;
            if own {
                self.direction_done(turn, slot, way);
            } else {
                self.schedule(turn, slot, way);
            }
        }
    }

    /// Trailers from a hop: on to the other one, behind the DATA that waits. False if the hop has
    /// as many lists waiting as it may: then the exchange has to end.
    #[must_use]
    pub(super) fn trailers(&mut self, turn: &mut Turn<'_>, at: At, fields: &Fields) -> bool {
        let (slot, way) = self.slot_of(at);
        let Some(exchange) = self.exchanges.at_mut(slot) else { return true };
        let own = exchange.is_discarded(way);
        let to = exchange.to(way);
        let pipe = exchange.pipe(way);
        let unwanted = std::mem::replace(&mut pipe.ended, true);
        match to {
            _ if own || unwanted => self.direction_done(turn, slot, way),
            Some(to) if pipe.queued == 0 && !pipe.scheduled => {
                if let Some(hop) = self.hops.hop_mut(to.conn) {
                    let out = &mut turn.net.sink(to.conn);
                    let generation = hop.link.trailers(to.key, fields, &mut self.block, out);
                    self.keep_answer(at.conn, 0, generation.filter(|_| way == Way::Down));
                    self.direction_done(turn, slot, way);
                }
            }
            _ => {
                // Trailers come once: a second section ends the stream in the codec.
                pipe.trailers = Some(Box::new(fields.clone()));
                if !self.list_waits(turn, slot, way, fields.size()) {
                    return false;
                }
                self.schedule(turn, slot, way);
            }
        }
        true
    }

    // ---- heads ----

    /// Opens the exchange's stream on its tunnel, if the worker allows one more. `Some(true)` if it
    /// is the first one of the tunnel.
    pub(super) fn open_stream(
        &mut self,
        turn: &mut Turn<'_>,
        slot: u32,
        tunnel: ConnId,
    ) -> Option<bool> {
        let (now, keepalive) = (turn.now, &turn.settings.config.keepalive);
        let soon = now + keepalive.tunnel_ping.min(keepalive.tunnel_start);
        let hop = self.hops.hop_mut(tunnel)?;
        let stream = match hop.link.open() {
            Ok(stream) => stream,
            Err(OpenError::Full | OpenError::Exhausted | OpenError::Goaway) => return None,
        };
        hop.link.set_tag(stream, slot);
        // An idle tunnel may be looked at only when its idle time is over.
        let unwatched = hop.timer.is_none_or(|at| at > soon);
        let first = hop.tunnel_mut().is_some_and(|tunnel| tunnel.asked(now));
        if let Some(exchange) = self.exchanges.at_mut(slot) {
            exchange.worker = Some(At { conn: tunnel, key: stream });
        }
        if unwatched {
            self.hops.watch(turn, tunnel);
        }
        Some(first)
    }

    /// A request head to its tunnel: the stream is open already. `id` is the session's.
    pub(super) fn request_head(
        &mut self,
        turn: &mut Turn<'_>,
        slot: u32,
        fields: &Fields,
        id: &[u8; 36],
    ) {
        let exchange = self.exchanges.at(slot).expect("the caller has just found it");
        let to = exchange.worker.expect("its stream is open");
        let hop = self.hops.known(to.conn);
        let end = exchange.up.ended && exchange.up.queued == 0 && exchange.up.trailers.is_none();
        // Contract CL-27: the scheme on this hop is ours. CL-30: the id is the session's.
        let scheme = |f: Field<'_>| f.token == Token::Scheme;
        let upgrade = exchange.upgrade;
        let fields = fields
            .iter()
            .filter(|f| is_end_to_end(f.token) || (upgrade && f.token == Token::Upgrade))
            .filter(|f| !is_replaced_up(f.token))
            .map(|f| if scheme(f) { Field { value: b"http", ..f } } else { f })
            .chain(std::iter::once(id_field(id)));
        let out = &mut turn.net.sink(to.conn);
        let generation = hop.link.head(to.key, fields, end, &mut self.block, out);
        if exchange.method == Method::Head {
            hop.link.set_head_request(to.key);
        }
        self.keep_call(slot, generation);
        self.request_sent(turn, slot, to.conn);
    }

    /// A response head to the client. True if it is the tunnel's first, which carries the cookie.
    pub(super) fn response_head(
        &mut self,
        turn: &mut Turn<'_>,
        (at, slot): (At, u32),
        fields: &Fields,
        kind: Kind,
        id: &[u8; 36],
    ) -> bool {
        let exchange = self.exchanges.at_mut(slot).expect("the caller has just found it");
        let (to, upgrade) = (exchange.client, exchange.upgrade);
        // RFC 9110 §6.6.2: which trailers come is said to the client, not to us.
        let passes = |token| {
            is_end_to_end(token) || token == Token::Trailer || (upgrade && token == Token::Upgrade)
        };
        let plain = fields.iter().filter(|f| passes(f.token));
        let Kind::Final { end } = kind else {
            if let Some(hop) = self.hops.hop_mut(to.conn) {
                let out = &mut turn.net.sink(to.conn);
                hop.link.head(to.key, plain, false, &mut self.block, out);
            }
            return false;
        };
        exchange.status = status(fields);
        exchange.down.ended = end;
        let status = exchange.status;
        let tunnel = self.hops.hop_mut(at.conn).and_then(|hop| hop.tunnel_mut());
        let first = tunnel.is_some_and(|t| !std::mem::replace(&mut t.cookie_sent, true));
        // Contract CL-36: our id replaces the worker's. CL-37: one cookie a tunnel, after theirs.
        let cookie = first.then(|| cookie(id));
        let cookie = cookie.as_ref().map(|value| Field::new(b"set-cookie", value));
        let ours = std::iter::once(id_field(id)).chain(cookie);
        let fields = plain.filter(|f| f.token != Token::NvcfReqid).chain(ours);
        if let Some(hop) = self.hops.hop_mut(to.conn) {
            let out = &mut turn.net.sink(to.conn);
            let generation = hop.link.head(to.key, fields, end, &mut self.block, out);
            if hop.link.is_open_ended() {
                turn.net.set_open_ended(to.conn, true);
            }
            self.keep_answer(at.conn, status, generation.filter(|_| !first));
        }
        self.answer_sent(turn, slot, at.conn, end);
        first
    }

    /// A request head is out: now its stream ends, or goes on with what waits of the body.
    pub(super) fn request_sent(&mut self, turn: &mut Turn<'_>, slot: u32, tunnel: ConnId) {
        let exchange = self.exchanges.at(slot).expect("the caller has just found it");
        let (client, up) = (exchange.client.conn, &exchange.up);
        let ended = up.ended && up.queued == 0 && up.trailers.is_none();
        self.hops.hold_back(turn, client, tunnel);
        if ended {
            self.direction_done(turn, slot, Way::Up);
        } else {
            self.schedule(turn, slot, Way::Up);
        }
    }

    /// A response head or trailers are out.
    fn answer_sent(&mut self, turn: &mut Turn<'_>, slot: u32, tunnel: ConnId, ended: bool) {
        if let Some(client) = self.exchanges.at(slot).map(|exchange| exchange.client.conn) {
            self.hops.hold_back(turn, tunnel, client);
        }
        if ended {
            self.direction_done(turn, slot, Way::Down);
        }
    }

    // ---- heads that repeat ----

    /// Relays a tunnel's head that repeats, if nothing has changed. None if the head has to take
    /// the long way.
    #[inline(always)]
    pub(super) fn repeat_answer(
        &mut self,
        turn: &mut Turn<'_>,
        of: InHand,
        ended: bool,
    ) -> Option<()> {
        let slot = self.hops.known(of.at.conn).link.tag(of.at.key);
        let exchange = self.exchanges.at_mut(slot)?;
        let (to, down) = (exchange.client, &mut exchange.down);
        if of.kind == HeadKind::Trailers && (down.queued > 0 || down.scheduled) {
            return None;
        }
        // The client hop and the tunnel are one hop if the head is the client's own. Such a head is
        // no answer.
        let [hop, client] = self.hops.two_hops(of.at.conn, to.conn)?;
        let tunnel = hop.tunnel().filter(|tunnel| tunnel.cookie_sent)?;
        let same = |answer: &&KeptAnswer| answer.list == of.list && answer.kind == of.kind;
        let answer = tunnel.answers.iter().find(same)?;
        let block = (&answer.block.bytes[..], answer.block.generation);
        let out = &mut turn.net.sink(to.conn);
        if !client.link.replay(to.key, block, ended, &mut self.block, out) {
            return None;
        }
        down.ended = ended;
        if of.kind == HeadKind::Response {
            exchange.status = answer.status;
        }
        self.hops.hold_back(turn, of.at.conn, to.conn);
        if ended {
            self.direction_done(turn, slot, Way::Down);
        }
        Some(())
    }

    /// Sends a request head again as it was, on the stream that is open already.
    pub(super) fn replay_call(&mut self, turn: &mut Turn<'_>, slot: u32, of: InHand, ended: bool) {
        let to = self.exchanges.at(slot).and_then(|exchange| exchange.worker);
        let to = to.expect("its stream was opened");
        if let Some([client, tunnel]) = self.hops.two_hops(of.at.conn, to.conn) {
            let call = client.call(of.list).expect("it was found a moment ago");
            let block = (&call.block.bytes[..], call.block.generation);
            let out = &mut turn.net.sink(to.conn);
            let sent = tunnel.link.replay(to.key, block, ended, &mut self.block, out);
            debug_assert!(sent, "the generation was the same a moment ago");
            if call.method == Method::Head {
                tunnel.link.set_head_request(to.key);
            }
        }
        self.request_sent(turn, slot, to.conn);
    }

    /// Keeps what a request head became, if it can be sent again.
    fn keep_call(&mut self, slot: u32, generation: Option<u64>) {
        let exchange = self.exchanges.at(slot);
        let (Some(generation), Some(of), Some(exchange)) = (generation, self.in_hand, exchange)
        else {
            return;
        };
        let style = &exchange.style;
        // A call that is logged or a browser's is not kept: what the log and the answer need of it
        // differs from request to request.
        if exchange.client != of.at || exchange.path.is_some() || style.style().origin.is_some() {
            return;
        }
        let (method, style) = (exchange.method, style.clone());
        let block = block_sent(&self.block, generation).zip(exchange.route());
        let client = self.hops.hop_mut(of.at.conn).and_then(|hop| hop.client_mut());
        if let (Some((block, route)), Some(client)) = (block, client) {
            let call = KeptCall { list: of.list, route, method, style, block };
            keep(&mut client.calls, call, |kept| kept.list == of.list);
        }
    }

    /// Keeps what a response head or trailers became, if it can be sent again.
    fn keep_answer(&mut self, from: ConnId, status: u16, generation: Option<u64>) {
        let of = self.in_hand.filter(|of| of.at.conn == from);
        let block = generation.and_then(|generation| block_sent(&self.block, generation));
        let tunnel = self.hops.hop_mut(from).and_then(|hop| hop.tunnel_mut());
        if let (Some(of), Some(block), Some(tunnel)) = (of, block, tunnel) {
            let answer = KeptAnswer { list: of.list, kind: of.kind, status, block };
            keep(&mut tunnel.answers, answer, |kept| kept.list == of.list);
        }
    }

    // ---- heads and trailers that wait ----

    /// A head or trailers begin to wait with their exchange, in memory of their own. They count
    /// against the core and against the hop they came from. False if that hop has as many waiting
    /// as it may: then the exchange has to end.
    #[must_use]
    pub(super) fn list_waits(
        &mut self,
        turn: &mut Turn<'_>,
        slot: u32,
        way: Way,
        size: usize,
    ) -> bool {
        let exchange = self.exchanges.at_mut(slot).expect("the caller has just found it");
        exchange.lists[way as usize] += counted(size);
        let from = exchange.from(way).expect("something has come from there");
        self.hops.list_waits(turn, from.conn, size)
    }

    /// The counterpart of [`Self::list_waits`].
    pub(super) fn list_went(&mut self, slot: u32, way: Way, size: usize) {
        if let Some(exchange) = self.exchanges.at_mut(slot).filter(|_| size > 0) {
            exchange.lists[way as usize] -= counted(size);
            if let Some(from) = exchange.from(way) {
                self.hops.list_went(from.conn, counted(size));
            }
        }
    }

    /// The key of the exchange in a slot that is known to be taken.
    pub(super) fn key_at(&self, slot: u32) -> Key {
        self.exchanges.key_at(slot).expect("the caller has just found it")
    }
}

fn count_payload(turn: &mut Turn<'_>, len: usize) {
    if len <= SMALL_FRAME {
        turn.metrics.payload_copied[CopyWhy::SmallFrame.index()] += len as u64;
    } else {
        turn.metrics.payload_relayed += len as u64;
    }
}
