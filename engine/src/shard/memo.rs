//! Calls that repeat: what a head became on the other hop is kept under the number its list has on
//! this one. When the same list comes again and nothing that decided has changed, the same block
//! is sent again: no field is decoded, routed or encoded.

use ringway_proto::h2::{HeadKind, ListId};
use ringway_proto::route::KeptStyle;

use super::Shard;
use super::conn::Hop;
use super::exchange::{At, Exchange, Way};
use super::relay::OUTPUT_FULL;
use super::table::Key;
use crate::border::{Border, ConnId};
use crate::metrics::Method;

/// Kept per hop: a connection repeats few different heads.
const KEPT: usize = 4;

/// The longest block worth keeping.
const BLOCK_BYTES: usize = 256;

/// An encoded block and the encoder's state it holds under.
#[derive(Clone, Debug, Default)]
pub(crate) struct Block {
    generation: u64,
    bytes: Vec<u8>,
}

/// A request head of a client connection that led to an attachment.
#[derive(Debug)]
pub(crate) struct Call {
    list: ListId,
    attachment: Key,
    method: Method,
    style: KeptStyle,
    block: Block,
}

/// A response head, or trailers, of a tunnel.
#[derive(Debug)]
pub(crate) struct Answer {
    list: ListId,
    kind: HeadKind,
    status: u16,
    block: Block,
}

/// The list being relayed, so that what it becomes can be kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InHand {
    pub(crate) at: At,
    pub(crate) kind: HeadKind,
    pub(crate) list: ListId,
}

impl Call {
    pub(super) fn is_of(&self, attachment: Key) -> bool {
        self.attachment == attachment
    }
}

impl Shard {
    /// A head that repeats: relayed if nothing has changed. `false`: it takes the long way.
    pub(super) fn repeat(&mut self, border: &mut Border, of: InHand, ended: bool) -> bool {
        let Some(hop) = self.conns.hop_mut(of.at.conn) else { return false };
        if let Some(client) = hop.client_mut() {
            let calls = std::mem::take(&mut client.calls);
            let call = calls.iter().find(|call| call.list == of.list);
            let done = call.is_some_and(|call| self.repeat_call(border, of.at, call, ended));
            if let Some(client) = self.conns.hop_mut(of.at.conn).and_then(Hop::client_mut) {
                client.calls = calls;
            }
            done
        } else if let Some(tunnel) = hop.tunnel_mut() {
            let answers = std::mem::take(&mut tunnel.answers);
            let answer = answers.iter().find(|a| a.list == of.list && a.kind == of.kind);
            let done = answer.is_some_and(|a| self.repeat_answer(border, of.at, a, ended));
            if let Some(tunnel) = self.conns.hop_mut(of.at.conn).and_then(Hop::tunnel_mut) {
                tunnel.answers = answers;
            }
            done
        } else {
            false
        }
    }

    fn repeat_call(&mut self, border: &mut Border, at: At, call: &Call, ended: bool) -> bool {
        let Some(attachment) = self.attachments.get(call.attachment) else { return false };
        let Some(tunnel) = attachment.tunnel().filter(|_| attachment.waiting == 0) else {
            return false;
        };
        let Some(hop) = self.conns.hop(tunnel) else { return false };
        let going = hop.tunnel().is_none_or(|tunnel| tunnel.going);
        let same = hop.link.encoder_generation() == call.block.generation;
        if going || !same || !hop.link.can_open() || self.admit_buffer().is_err() {
            return false;
        }
        let mut exchange = Exchange::new(at, Some(call.attachment), self.now);
        exchange.style = call.style.clone();
        exchange.method = call.method;
        exchange.up.ended = ended;
        let slot = self.add_exchange(exchange);
        if !self.open_stream(slot, tunnel) {
            return false;
        }
        let to = self.exchanges.at(slot).and_then(|exchange| exchange.worker);
        if let (Some(to), Some(hop)) = (to, self.conns.hop_mut(tunnel)) {
            let block = (&call.block.bytes[..], call.block.generation);
            let out = &mut border.sink(tunnel);
            let sent = hop.link.replay(to.key, block, ended, &mut self.block, out);
            debug_assert!(sent, "the generation was the same a moment ago");
            if call.method == Method::Head {
                hop.link.set_head_request(to.key);
            }
        }
        self.request_sent(border, slot, at.conn, tunnel);
        true
    }

    fn repeat_answer(&mut self, border: &mut Border, at: At, answer: &Answer, ended: bool) -> bool {
        let Some(hop) = self.conns.hop(at.conn) else { return false };
        let slot = hop.link.tag(at.key);
        let first = hop.tunnel().is_none_or(|tunnel| !tunnel.cookie_sent);
        let Some(exchange) = self.exchanges.at_mut(slot) else { return false };
        let waits = exchange.down.queued > 0 || exchange.down.scheduled;
        if first || (waits && answer.kind == HeadKind::Trailers) {
            return false;
        }
        let to = exchange.client;
        let Some(hop) = self.conns.hop_mut(to.conn) else { return false };
        let block = (&answer.block.bytes[..], answer.block.generation);
        let out = &mut border.sink(to.conn);
        if !hop.link.replay(to.key, block, ended, &mut self.block, out) {
            return false;
        }
        if answer.kind == HeadKind::Response {
            exchange.status = answer.status;
        }
        exchange.down.ended = ended;
        self.answer_sent(border, slot, at.conn, ended);
        true
    }

    /// Keeps what a request head became, if it can be sent again.
    pub(super) fn keep_call(&mut self, slot: u32, generation: Option<u64>) {
        let (Some(generation), Some(of)) = (generation, self.in_hand) else { return };
        let Some(exchange) = self.exchanges.at(slot) else { return };
        let style = &exchange.style;
        // What is logged or answered to browsers differs per request in ways kept nowhere here.
        if exchange.client != of.at || exchange.path.is_some() || style.style().origin.is_some() {
            return;
        }
        let Some(attachment) = exchange.attachment else { return };
        let (method, style) = (exchange.method, style.clone());
        let Some(block) = self.block_sent(generation) else { return };
        if let Some(client) = self.conns.hop_mut(of.at.conn).and_then(Hop::client_mut) {
            let call = Call { list: of.list, attachment, method, style, block };
            keep(&mut client.calls, call, |kept| kept.list == of.list);
        }
    }

    /// Keeps what a response head or trailers became, if it can be sent again.
    pub(super) fn keep_answer(&mut self, from: ConnId, status: u16, generation: Option<u64>) {
        let (Some(generation), Some(of)) = (generation, self.in_hand) else { return };
        if of.at.conn != from {
            return;
        }
        let Some(block) = self.block_sent(generation) else { return };
        if let Some(tunnel) = self.conns.hop_mut(from).and_then(Hop::tunnel_mut) {
            let answer = Answer { list: of.list, kind: of.kind, status, block };
            keep(&mut tunnel.answers, answer, |kept| kept.list == of.list);
        }
    }

    /// The block that was encoded last.
    fn block_sent(&self, generation: u64) -> Option<Block> {
        let bytes = self.block.get(ringway_proto::h2::frame::HEAD_BYTES..)?;
        (bytes.len() <= BLOCK_BYTES).then(|| Block { generation, bytes: bytes.to_vec() })
    }

    /// Lets a hop whose output is full stop what feeds it.
    pub(super) fn hold_back(&mut self, border: &mut Border, source: ConnId, to: ConnId) {
        if border.queued(to) > OUTPUT_FULL {
            self.stop_reading(border, source, to);
        }
    }

    /// A request head is out: its end, or what waits of its body.
    pub(super) fn request_sent(
        &mut self,
        border: &mut Border,
        slot: u32,
        client: ConnId,
        tunnel: ConnId,
    ) {
        self.hold_back(border, client, tunnel);
        let Some(exchange) = self.exchanges.at(slot) else { return };
        let up = &exchange.up;
        if up.ended && up.queued == 0 && up.trailers.is_none() {
            self.direction_done(border, slot, Way::Up);
        } else {
            self.schedule(border, slot, Way::Up);
        }
    }

    /// A response head or trailers are out.
    pub(super) fn answer_sent(
        &mut self,
        border: &mut Border,
        slot: u32,
        tunnel: ConnId,
        ended: bool,
    ) {
        if let Some(client) = self.exchanges.at(slot).map(|exchange| exchange.client.conn) {
            self.hold_back(border, tunnel, client);
        }
        if ended {
            self.direction_done(border, slot, Way::Down);
        }
    }
}

/// Takes the place of an entry for the same list, or of the oldest.
fn keep<T>(entries: &mut Vec<T>, entry: T, same: impl Fn(&T) -> bool) {
    entries.retain(|kept| !same(kept));
    if entries.len() == KEPT {
        entries.remove(0);
    }
    entries.push(entry);
}
