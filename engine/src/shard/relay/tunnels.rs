//! A route's tunnel: how it comes, is kept, changes hands, and goes to another core.

use std::collections::VecDeque;

use ringway_proto::h1::Role;
use ringway_proto::h2::{self, ErrorCode, NO_TAG};
use ringway_proto::id::Node;
use ringway_proto::time::Time;
use uuid::Uuid;

use super::super::cause::{Cause, Manner};
use super::super::facts::{ForRelay, ForSessions, MovedHop, NewTunnel, RouteFacts, Terms};
use super::super::table::Key;
use super::super::timer::SETTLES;
use super::super::turn::Turn;
use super::h1::{H1, http1_limits};
use super::hop::{Held, Hop, HopRole, Tunnel, TunnelState};
use super::link::Link;
use super::routes::Route;
use super::traffic::{Tail, Traffic};
use crate::net::{Close, ConnId, Detached};

/// Gateways of which it is remembered that they leave.
const MOST_LEAVING: usize = 64;

/// A tunnel on its way to another core, with what it has carried of its session, up and down.
struct Traveller {
    hop: Box<Hop>,
    carried: (u64, u64),
}

/// Another gateway leaves, and the connections that it has brought go with it. Clients are asked to
/// come back by another gateway, and other tunnels take the place of those that it has brought.
pub(super) fn node_leaves(traffic: &mut Traffic, turn: &mut Turn<'_>, node: Node) {
    // A connection that the gateway brought a moment ago may become a tunnel only after this. So
    // the gateway is remembered.
    if !traffic.leaving.contains(&node) {
        if traffic.leaving.len() >= MOST_LEAVING {
            traffic.leaving.pop_front();
        }
        traffic.leaving.push_back(node);
    }
    for conn in traffic.streams.hops.ids() {
        let brought = traffic.streams.hops.hop(conn).filter(|hop| hop.via == Some(node));
        match brought.map(|hop| hop.tunnel().is_some()) {
            // The tunnel goes as if its worker had said GOAWAY, and nothing that runs is refused.
            Some(true) => traffic.goaway(turn, conn, u32::MAX),
            Some(false) => traffic.streams.hops.warn(turn, conn),
            None => {}
        }
    }
}

impl Traffic {
    /// An attachment begins.
    pub(super) fn open_route(
        &mut self,
        key: Key,
        session: Uuid,
        client: Option<ConnId>,
        terms: Terms,
    ) {
        let hop = client.and_then(|client| self.streams.hops.hop_mut(client));
        let client = hop.and_then(|hop| {
            let conn = hop.conn;
            hop.client_mut()?.lanes.own(key);
            Some(conn)
        });
        self.routes.insert(key, Route::new(session, client, terms));
    }

    /// The protocol state of a new tunnel. The tunnel speaks what its client speaks (contract
    /// CL-25), once there is a client.
    fn tunnel_link(&self, turn: &mut Turn<'_>, conn: ConnId, key: Key) -> Link {
        let client = self.routes.get(key).and_then(|route| self.streams.hops.hop(route.client?));
        if client.is_none_or(|hop| matches!(hop.link, Link::H1(_))) {
            let mut h1 = H1::new(Role::Client, http1_limits(turn));
            h1.unspoken = client.is_none().then(Vec::new);
            return Link::H1(Box::new(h1));
        }
        let mut h2 = h2::Conn::new(h2::Role::Client, self.http2.clone(), turn.now);
        h2.start(&mut turn.net.sink(conn));
        Link::H2(h2)
    }

    /// A connection to the function's side, accepted or dialled, becomes a route's tunnel.
    pub(super) fn attach(&mut self, turn: &mut Turn<'_>, new: NewTunnel) {
        let NewTunnel { key, conn, peer, opened, timer, via, tail } = new;
        if self.routes.get(key).is_none_or(|route| route.tunnel.is_some()) {
            return turn.net.close(conn, Close::Now);
        }
        let link = self.tunnel_link(turn, conn, key);
        let unspoken = link.is_unspoken();
        // The timer of unused tunnels does not run for a spare, because a spare waits for a client.
        let state = if unspoken { TunnelState::InUse } else { TunnelState::Unused };
        let tunnel = HopRole::Tunnel(Tunnel::new(key, state, turn.now));
        let mut hop = Hop::new(conn, link, (peer, opened), turn.now, tunnel);
        // The timer that was armed for the connection goes on for the hop.
        (hop.timer, hop.via) = (timer, via);
        self.streams.hops.insert_hop(hop);
        if let Some(route) = self.routes.get_mut(key) {
            route.tunnel = Some(conn);
        }
        self.read_later(turn, conn, &tail);
        self.streams.hops.watch(turn, conn);
        turn.sessions(ForSessions::Attached { key, unspoken });
        if let Some(node) = via.filter(|node| self.leaving.contains(node)) {
            turn.relay(ForRelay::NodeLeaves { node });
        }
        if !unspoken {
            turn.relay(ForRelay::Wake { key });
        }
    }

    /// Bytes that were received before are to be read.
    fn read_later(&mut self, turn: &mut Turn<'_>, conn: ConnId, bytes: &[u8]) {
        if !bytes.is_empty() {
            let mut segments = VecDeque::new();
            turn.net.stash_bytes(bytes, &mut segments);
            self.tails.push(Tail { conn, segments, pos: 0 });
        }
    }

    /// The first request for a tunnel on which nothing was said: from now on the tunnel speaks what
    /// its client speaks.
    pub(super) fn speak(&mut self, turn: &mut Turn<'_>, key: Key, conn: ConnId) {
        let unspoken = self.streams.hops.h1_mut(conn).and_then(|h1| h1.unspoken.take());
        let unasked = unspoken.expect("the caller has just seen that nothing was said");
        let link = self.tunnel_link(turn, conn, key);
        if let Some(hop) = self.streams.hops.hop_mut(conn) {
            hop.replace_link(turn, link);
        }
        self.read_later(turn, conn, &unasked);
        self.streams.hops.watch(turn, conn);
    }

    // ---- kept for later ----

    /// Chooses those of a lost client's routes whose tunnels are kept, in order. No request waits
    /// for these routes any more.
    pub(super) fn choose_kept(
        &mut self,
        turn: &Turn<'_>,
        keys: &[Key],
        manner: Manner,
    ) -> Vec<Key> {
        let mut kept = Vec::new();
        for key in keys.iter().filter(|_| turn.draining.is_none()) {
            let Some(route) = self.routes.get_mut(*key) else { continue };
            let hop = route.tunnel.and_then(|tunnel| self.streams.hops.hop(tunnel));
            let Some((hop, tunnel)) = hop.and_then(|hop| Some((hop, hop.tunnel()?))) else {
                continue;
            };
            // A function finishes only what its own tunnel carries. For the client's other sessions
            // the end of its connection means no more than any FIN.
            let manner = match manner {
                Manner::Finished if hop.link.streams() == 0 => Manner::Silent,
                manner => manner,
            };
            let going = tunnel.going && !route.replaced;
            if !going && route.terms.parks.contains(manner) {
                // Requests that wait would otherwise go out while the streams before them end.
                route.waiters.clear();
                kept.push(*key);
            }
        }
        kept.sort_unstable();
        kept
    }

    /// The routes of a lost client are kept: a tunnel that it used up is not closed with its last
    /// exchange.
    pub(super) fn hold_used(&mut self, kept: &[Key], manner: Manner) {
        let held = match manner {
            Manner::Finished => Held::Finished,
            _ => Held::Lost { dropped: 0 },
        };
        for key in kept {
            let tunnel = self.routes.get(*key).and_then(|route| route.tunnel);
            let hop = tunnel.and_then(|tunnel| self.streams.hops.hop_mut(tunnel));
            if let Some(hop) = hop {
                let used = matches!(&hop.link, Link::H1(h1) if h1.slot != NO_TAG);
                if let Some(tunnel) = hop.tunnel_mut().filter(|tunnel| used || tunnel.going) {
                    tunnel.state = TunnelState::Held(held);
                }
            }
        }
    }

    /// The route's client is gone and its streams have ended: the tunnel is kept, if it can carry
    /// another client's requests.
    pub(super) fn park(&mut self, turn: &mut Turn<'_>, key: Key, until: Time) {
        let tunnel = self.routes.get(key).and_then(|route| route.tunnel);
        let Some(hop) = tunnel.and_then(|conn| self.streams.hops.hop_mut(conn)) else { return };
        let (conn, reusable, speaks) = (hop.conn, hop.link.is_reusable(), hop.link.clients());
        let asks = matches!(hop.link, Link::H2(_));
        let tunnel = hop.tunnel_mut().expect("a route's tunnel is one");
        // The kept answers were made with the old client's encoder, and fit no other.
        tunnel.answers = Vec::new();
        if reusable {
            tunnel.state = TunnelState::Parked { until };
            tunnel.cookie_sent = false;
            self.streams.hops.watch(turn, conn);
            return turn.sessions(ForSessions::Parked { key, speaks });
        }
        let held = tunnel.held().unwrap_or(Held::Lost { dropped: 0 });
        tunnel.state = TunnelState::Held(held);
        if asks {
            // If it were read, an HTTP/2 tunnel would have to be answered like one in use.
            self.streams.hops.pause(turn, conn);
        }
        turn.sessions(ForSessions::UsedUp { key });
        if held == Held::Finished {
            turn.sessions(ForSessions::LastChance { key });
        }
    }

    /// A client of this core is back, and the parked tunnel is its own.
    pub(super) fn unpark(&mut self, turn: &mut Turn<'_>, key: Key, client: ConnId) {
        let hop = self.streams.hops.hop_mut(client).and_then(|hop| hop.client_mut());
        if let Some((client_of, route)) = hop.zip(self.routes.get_mut(key)) {
            client_of.lanes.own(key);
            route.client = Some(client);
        }
        self.own(turn, key);
    }

    /// The tunnel has become this route's own, by a client that is back or from another route. It
    /// rests from now on.
    fn own(&mut self, turn: &mut Turn<'_>, key: Key) {
        let tunnel = self.routes.get(key).and_then(|route| route.tunnel);
        if let Some(hop) = tunnel.and_then(|tunnel| self.streams.hops.hop_mut(tunnel)) {
            let conn = hop.conn;
            if let Some(tunnel) = hop.tunnel_mut() {
                tunnel.route = key;
                tunnel.state = TunnelState::Idle { since: turn.now };
            }
            self.streams.hops.watch(turn, conn);
        }
    }

    /// The parked tunnel of `from`, whose route ends, becomes the tunnel of `to`.
    pub(super) fn transfer(&mut self, turn: &mut Turn<'_>, from: Key, to: Key) {
        let from = self.routes.remove(from);
        let carried = from.as_ref().map(|route| (route.bytes_up, route.bytes_down));
        let tunnel = from.and_then(|route| route.tunnel);
        match (self.routes.get_mut(to), tunnel) {
            (Some(route), _) => {
                route.tunnel = tunnel;
                route.carry(carried.unwrap_or_default());
            }
            // The route is gone, so the tunnel has no use.
            (None, Some(conn)) => {
                let cause = Cause::SURPLUS;
                turn.relay(ForRelay::TunnelOver { conn, cause, last: false });
            }
            (None, None) => {}
        }
        self.own(turn, to);
        turn.relay(ForRelay::Wake { key: to });
    }

    /// Two routes of a session change tunnels. `key` goes on with the fresh tunnel of `spare`. What
    /// runs on the old tunnel ends there, as the streams of `spare`.
    pub(super) fn swap(&mut self, turn: &mut Turn<'_>, key: Key, spare: Key) {
        let tunnel_of = |key| self.routes.get(key).and_then(|route| route.tunnel);
        let tunnels = tunnel_of(key).zip(tunnel_of(spare));
        let tunnels = tunnels.and_then(|(old, new)| self.streams.hops.two_hops(old, new));
        let Some([old, new]) = tunnels else { return };
        let slots = old.link.tags();
        let (old_conn, new_conn, speaks) = (old.conn, new.conn, new.link.clients());
        let tunnels = old.tunnel_mut().zip(new.tunnel_mut());
        let (was, is) = tunnels.expect("a route's tunnel is one");
        let parked = match was.state {
            TunnelState::Parked { until } => Some(until),
            _ => None,
        };
        was.state = TunnelState::Replaced { until: turn.now + SETTLES };
        (was.route, is.route) = (spare, key);
        is.cookie_sent = was.cookie_sent;
        is.state = match parked {
            Some(until) => TunnelState::Parked { until },
            None => TunnelState::Idle { since: turn.now },
        };
        for slot in &slots {
            if let Some(exchange) = self.streams.exchanges.at_mut(*slot) {
                exchange.served = super::exchange::Served::Route(spare);
            }
        }
        let streams = slots.len() as u32;
        let client = self.routes.get_mut(key).and_then(|route| {
            route.tunnel = Some(new_conn);
            route.streams -= streams;
            route.client
        });
        if let Some(route) = self.routes.get_mut(spare) {
            route.tunnel = Some(old_conn);
            route.streams += streams;
        }
        let client = client.and_then(|client| self.streams.hops.hop_mut(client)?.client_mut());
        if let Some(client) = client {
            // The kept calls hold heads that the old tunnel's encoder made.
            client.calls.retain(|call| call.route != key);
        }
        self.streams.hops.watch(turn, new_conn);
        self.streams.hops.watch(turn, old_conn);
        if parked.is_some() {
            turn.sessions(ForSessions::Parked { key, speaks });
        }
        turn.relay(ForRelay::Wake { key });
    }

    /// Says whether another tunnel is to come in the place of a route's. If none is, a tunnel that
    /// takes no more streams ends with its last one.
    pub(super) fn set_replaced(&mut self, turn: &mut Turn<'_>, key: Key, yes: bool) {
        let tunnel = self.routes.get_mut(key).and_then(|route| {
            route.replaced = yes;
            route.tunnel
        });
        if let Some(tunnel) = tunnel.filter(|_| !yes) {
            self.end_if_done(turn, tunnel);
        }
    }

    /// A tunnel that takes no more streams, and has none, ends, unless it is kept until another one
    /// has taken its place.
    pub(super) fn end_if_done(&self, turn: &mut Turn<'_>, conn: ConnId) -> bool {
        let hop = self.streams.hops.hop(conn).filter(|hop| hop.link.streams() == 0);
        let Some((hop, tunnel)) = hop.and_then(|hop| Some((hop, hop.tunnel()?))) else {
            return false;
        };
        let replaced = self.routes.get(tunnel.route).is_some_and(|route| route.replaced);
        let kept = tunnel.held().is_some() || tunnel.settles(turn.now);
        let done = tunnel.going && !kept && !replaced;
        if done {
            let cause = hop.spent_cause();
            turn.relay(ForRelay::TunnelOver { conn, cause, last: false });
        }
        done
    }

    /// The worker said GOAWAY (design 3.11): running streams below its last id finish, those
    /// above are refused, and requests from now on go to a tunnel that takes this one's place.
    pub(super) fn goaway(&mut self, turn: &mut Turn<'_>, conn: ConnId, last: u32) {
        let hop = self.streams.hops.known(conn);
        let keys = hop.link.keys_above(last);
        let out = &mut turn.net.sink(conn);
        let refuse = |stream| {
            let slot = hop.link.tag(stream);
            hop.link.reset(stream, ErrorCode::Cancel, out);
            slot
        };
        let refused: Vec<u32> = keys.into_iter().map(refuse).collect();
        let tunnel = hop.tunnel_mut().expect("a worker's connection is one");
        let first = !std::mem::replace(&mut tunnel.going, true);
        let key = tunnel.route;
        if first {
            turn.sessions(ForSessions::Spent { key, goaway: true });
        }
        for slot in refused {
            self.streams.drop_exchange(turn, slot, Some(ErrorCode::RefusedStream), None);
        }
    }

    // ---- from core to core ----

    /// The parked tunnel goes to another core, however long it was to be kept.
    pub(super) fn detach(&mut self, turn: &mut Turn<'_>, key: Key) {
        let tunnel = self.routes.get(key).and_then(|route| route.tunnel);
        if let Some(hop) = tunnel.and_then(|conn| self.streams.hops.hop_mut(conn)) {
            turn.net.detach(hop.conn);
            if let Some(tunnel) = hop.tunnel_mut() {
                tunnel.state = TunnelState::InUse;
            }
        }
    }

    /// Nothing is under way any more on a tunnel that another core wants: the tunnel leaves this
    /// core.
    pub(super) fn detached(&mut self, turn: &mut Turn<'_>, conn: ConnId, detached: Detached) {
        let Some(mut hop) = self.streams.hops.remove_hop(conn) else { return };
        self.streams.hops.forget_partial(&mut hop);
        let key = hop.tunnel().map(|tunnel| tunnel.route).expect("only tunnels are detached");
        let route = self.routes.remove(key);
        let carried = route.map(|route| (route.bytes_up, route.bytes_down)).unwrap_or_default();
        // Every other connection that fed the tunnel or waited for it was a client's, and is gone.
        hop.stopped.retain(|full| *full == hop.conn);
        hop.waits = hop.stopped.len() as u32;
        hop.link.read_again(turn.now);
        hop.ready.clear();
        hop.timer = None;
        debug_assert_eq!((hop.buffered, hop.lists), (0, 0), "its streams are gone");
        let hop = MovedHop(Box::new(Traveller { hop, carried }));
        turn.sessions(ForSessions::TunnelDetached { key, detached: Box::new(detached), hop });
    }

    /// A tunnel has come from another core, and becomes the route's.
    pub(super) fn adopt(
        &mut self,
        turn: &mut Turn<'_>,
        key: Key,
        detached: Detached,
        hop: MovedHop,
    ) {
        let traveller: Box<Traveller> = hop.0.downcast().expect("only `detached` makes one");
        let Traveller { mut hop, carried } = *traveller;
        let conn = turn.net.adopt(detached);
        hop.conn = conn;
        hop.stopped.fill(conn);
        if hop.waits > 0 {
            turn.net.pause(conn, true);
        }
        self.streams.hops.insert(conn, super::hops::Conn::Hop(hop));
        if let Some(route) = self.routes.get_mut(key) {
            route.tunnel = Some(conn);
            route.carry(carried);
        }
        self.own(turn, key);
        turn.relay(ForRelay::Wake { key });
    }

    // ---- looked at ----

    pub(super) fn facts(&self, key: Key) -> Option<RouteFacts> {
        let route = self.routes.get(key)?;
        let hop = route.tunnel.and_then(|tunnel| self.streams.hops.hop(tunnel));
        let used = |tunnel: &Tunnel| tunnel.state != TunnelState::Unused;
        let mut facts = RouteFacts {
            tunnel: hop.map(|hop| hop.peer),
            used: hop.and_then(Hop::tunnel).is_some_and(used),
            streams: route.streams,
            bytes_up: route.bytes_up,
            bytes_down: route.bytes_down,
        };
        for slot in hop.into_iter().flat_map(|hop| hop.link.tags()) {
            if let Some(exchange) = self.streams.exchanges.at(slot) {
                facts.bytes_up += exchange.up.bytes;
                facts.bytes_down += exchange.down.bytes;
            }
        }
        Some(facts)
    }
}
