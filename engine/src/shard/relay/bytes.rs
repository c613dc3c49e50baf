//! Streams of bytes: what an HTTP/1 exchange becomes behind a 101. Both hops end together. The side
//! that ended the stream, and the way it did so, decide what becomes of the session.

use std::time::Duration;

use ringway_proto::h1::Event;
use ringway_proto::h2::NO_TAG;

use super::super::cause::{Cause, Gone, Manner};
use super::super::facts::{ForRelay, ForSessions};
use super::super::table::Key;
use super::super::timer::Due;
use super::super::turn::Turn;
use super::exchange::{At, Parting, Way};
use super::h1::Page;
use super::hop::{Hop, HopRole};
use super::link::Link;
use super::traffic::Traffic;
use crate::net::{Close, ConnId, End};

/// How long the gateway waits, after one side has ended a stream of bytes, for the end of the other
/// side. If the function's FIN comes first, the client's end may show that the client had left
/// before: a browser closes within a few milliseconds of its Close. If the client's FIN comes
/// first, the function's FIN shows that the function has finished: some clients close as soon as
/// they have the answer to their Close.
const LAST_WORD: Duration = Duration::from_millis(50);

/// The side that ended a stream of bytes, and how.
#[derive(Clone, Copy, Debug)]
struct RawEnd {
    by_worker: bool,
    end: End,
}

/// Streams of bytes of one core.
#[derive(Debug, Default)]
pub(super) struct Raw {
    /// The streams whose clients ended them in this turn.
    parting: Vec<Key>,
}

impl Raw {
    /// Whether [`Self::part_clients`] has something to do.
    pub(super) fn is_parting(&self) -> bool {
        !self.parting.is_empty()
    }

    /// The peer's bytes on an HTTP/1 connection have ended.
    pub(super) fn ended(
        &mut self,
        traffic: &mut Traffic,
        turn: &mut Turn<'_>,
        conn: ConnId,
        end: End,
    ) {
        let hop = traffic.streams.hops.hop_mut(conn);
        let Some(Hop { link: Link::H1(h1), role, .. }) = hop else { return };
        let (slot, raw) = (h1.slot, h1.codec.is_raw());
        let tunnel = matches!(role, HopRole::Tunnel(_));
        if raw && slot != NO_TAG {
            return match (tunnel, end) {
                (true, End::Fin) => self.function_finished(traffic, turn, slot),
                // The function's FIN may be read later in this turn, so nothing is decided before
                // the turn's end.
                (false, End::Fin) => {
                    self.parting.extend(traffic.streams.exchanges.key_at(slot));
                }
                _ => end_raw(traffic, turn, slot, RawEnd { by_worker: tunnel, end }),
            };
        }
        if !tunnel {
            // Contract CL-23: the connection ends even if one of its requests is running.
            turn.net.close(conn, Close::Flush);
            return turn.relay(ForRelay::ClientOver { conn, how: Gone::Ended(end) });
        }
        tunnel_ended(traffic, turn, conn, end);
    }

    /// The function's side has ended a stream of bytes. If that would be a clean end, the gateway
    /// has to tell a client that had left before from a client that got the last bytes and then
    /// leaves. When a page is left, its browser says so in a Close, closes behind it and reads
    /// nothing more. The function's answer then meets a RST, or the browser's FIN comes while the
    /// answer is on its way.
    fn function_finished(&self, traffic: &mut Traffic, turn: &mut Turn<'_>, slot: u32) {
        if !may_be_finished(traffic, slot) {
            return end_raw(traffic, turn, slot, RawEnd { by_worker: true, end: End::Fin });
        }
        traffic.streams.flush_raw(turn, slot, Way::Down);
        let key = traffic.streams.key_at(slot);
        let exchange = traffic.streams.exchanges.at_mut(slot).expect("it has a key");
        let before = std::mem::replace(&mut exchange.parting, Parting::Function);
        if let Parting::Client(heard) = before {
            let by_worker = exchange.down.bytes == heard;
            return end_raw(traffic, turn, slot, RawEnd { by_worker, end: End::Fin });
        }
        if page_has_left(traffic, slot) {
            return end_raw(traffic, turn, slot, RawEnd { by_worker: false, end: End::Fin });
        }
        if !self.parting.contains(&key) {
            turn.arm(turn.now + LAST_WORD, Due::Finish(key));
        }
    }

    /// Decides about the clients that ended streams of bytes in this turn. A client that got all
    /// there was may have left because its function has finished. The function's FIN is then not
    /// far, and is waited for.
    pub(super) fn part_clients(&mut self, traffic: &mut Traffic, turn: &mut Turn<'_>) {
        while let Some(key) = self.parting.pop() {
            let finished = may_be_finished(traffic, key.slot) && !page_has_left(traffic, key.slot);
            let Some(exchange) = traffic.streams.exchanges.get_mut(key) else { continue };
            let client = exchange.client.conn;
            let heard = turn.net.was_delivered(client) && turn.net.queued(client) == 0;
            if exchange.parting == Parting::None && heard && finished {
                exchange.parting = Parting::Client(exchange.down.bytes);
                turn.arm(turn.now + LAST_WORD, Due::Finish(key));
                continue;
            }
            let by_worker = exchange.parting == Parting::Function && heard;
            end_raw(traffic, turn, key.slot, RawEnd { by_worker, end: End::Fin });
        }
    }

    /// The wait for the other side's end of a stream of bytes is over. The side that ended the
    /// stream first counts as the one that ended it.
    pub(super) fn finish_raw(&self, traffic: &mut Traffic, turn: &mut Turn<'_>, key: Key) {
        if let Some(exchange) = traffic.streams.exchanges.get(key) {
            let by_worker = exchange.parting == Parting::Function;
            end_raw(traffic, turn, key.slot, RawEnd { by_worker, end: End::Fin });
        }
    }
}

/// The bytes of an HTTP/1 tunnel have ended.
fn tunnel_ended(traffic: &mut Traffic, turn: &mut Turn<'_>, conn: ConnId, end: End) {
    let hop = traffic.streams.hops.hop_mut(conn);
    let Some(Hop { link: Link::H1(h1), role: HopRole::Tunnel(tunnel), .. }) = hop else {
        return;
    };
    let key = tunnel.route;
    let replaced = traffic.routes.get(key).is_some_and(|route| route.replaced);
    if end == End::Fin && tunnel.held().is_some() && replaced {
        return turn.sessions(ForSessions::LastChance { key });
    }
    if end == End::Fin && h1.codec.eof() == Ok(Event::End) {
        let at = At { conn, key: h1.key() };
        traffic.streams.message_end(turn, at);
    }
    let cause = Cause::ended(end);
    turn.relay(ForRelay::TunnelOver { conn, cause, last: false });
}

/// Whether the client of a stream of bytes is a browser whose page has said that it leaves. That is
/// enough to know. The client's FIN says no more, because a balancer may have sent it in the
/// browser's place.
fn page_has_left(traffic: &Traffic, slot: u32) -> bool {
    let client = traffic.streams.exchanges.at(slot).map(|exchange| exchange.client.conn);
    let link = client.and_then(|client| traffic.streams.hops.hop(client)).map(|hop| &hop.link);
    matches!(link, Some(Link::H1(h1)) if h1.page == Page::Left)
}

/// Whether it matters which side has ended this stream of bytes: a spare is to come, and it is of
/// no use after an end by the function.
fn may_be_finished(traffic: &Traffic, slot: u32) -> bool {
    let key = traffic.streams.exchanges.at(slot).and_then(|exchange| exchange.route());
    let route = key.and_then(|key| traffic.routes.get(key));
    route.is_some_and(|route| route.replaced && !route.terms.parks.contains(Manner::Finished))
}

/// One side of a stream of bytes has ended. What was received goes out, then both hops end
/// (contract CL-47). If a spare is to take the tunnel's place, the tunnel stays until the spare is
/// there. A FIN on one side becomes a FIN on the other; anything else that cut the bytes short
/// becomes a RST. The function's FIN is a clean end: unless the session is kept after such an end,
/// no spare stays.
fn end_raw(
    traffic: &mut Traffic,
    turn: &mut Turn<'_>,
    slot: u32,
    RawEnd { by_worker, end }: RawEnd,
) {
    for way in [Way::Up, Way::Down] {
        traffic.streams.flush_raw(turn, slot, way);
    }
    let exchange = traffic.streams.exchanges.at_mut(slot).expect("the caller has just found it");
    exchange.up.ended = true;
    exchange.down.ended = true;
    let (client, tunnel) = (exchange.client.conn, exchange.worker.map(|at| at.conn));
    let (route, finished) = (exchange.route(), exchange.parting == Parting::Function);
    // The function has finished with a FIN. If its tunnel breaks after that, the FIN counts.
    let end = if by_worker && finished { End::Fin } else { end };
    for conn in [Some(client), tunnel].into_iter().flatten() {
        turn.net.set_open_ended(conn, end != End::Fin);
    }
    let clean = by_worker && end == End::Fin;
    let key = route.filter(|_| clean || !by_worker);
    let kept = key.filter(|key| outlives(traffic, turn, *key, clean));
    turn.net.close(client, Close::Flush);
    if let Some(conn) = tunnel.filter(|_| kept.is_none()) {
        let cause = if by_worker { Cause::ended(end) } else { Cause::client_ended(end) };
        turn.net.close(conn, Close::Flush);
        turn.relay(ForRelay::TunnelOver { conn, cause, last: key.is_some() });
    }
    let how = if by_worker { Gone::Function(end) } else { Gone::Ended(end) };
    turn.relay(ForRelay::ClientOver { conn: client, how });
    if let Some(key) = kept.filter(|_| finished) {
        turn.sessions(ForSessions::LastChance { key });
    }
}

/// Whether a session may outlive its stream of bytes: by a spare, which takes the tunnel's
/// place.
fn outlives(traffic: &Traffic, turn: &Turn<'_>, key: Key, clean: bool) -> bool {
    let route = traffic.routes.get(key);
    let terms = route.map(|route| route.terms).unwrap_or_default();
    let kept = !clean || terms.parks.contains(Manner::Finished);
    kept && terms.spares && turn.draining.is_none()
}
