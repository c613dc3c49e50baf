//! Every end: of an exchange, of a client's connection, of a tunnel, of a route.

use std::collections::VecDeque;

use ringway_proto::fault::Fault;
use ringway_proto::h2::ErrorCode;

use super::super::cause::{Cause, Gone};
use super::super::facts::{Edge, ForRelay, ForSessions, Lost, Parted};
use super::super::table::Key;
use super::super::turn::Turn;
use super::exchange::Exchange;
use super::hop::{Begun, Hop, Shutdown, TunnelState, sent_away};
use super::link::Link;
use super::routes::Route;
use super::traffic::Traffic;
use crate::net::{Close, ConnId};
use crate::timeline::{Event, Party};

impl Traffic {
    // ---- exchanges ----

    /// An exchange is over: it leaves every table and is counted.
    pub(super) fn over(&mut self, turn: &mut Turn<'_>, key: Key) {
        if let Some(exchange) = self.streams.remove(turn, key) {
            exchange.count(turn);
            if exchange.path.is_some() {
                self.streams.log_access(turn, &exchange);
            }
            self.leave_route(turn, &exchange);
            self.client_stream_ended(turn, exchange.client.conn);
        }
    }

    /// An exchange no longer needs its route. A request that waits may have the exchange's stream.
    /// If nobody waits and there is no tunnel, sessions hear that nobody needs the attachment.
    pub(super) fn leave_route(&mut self, turn: &mut Turn<'_>, exchange: &Exchange) {
        let route = exchange.route().and_then(|key| Some((key, self.routes.get_mut(key)?)));
        let Some((key, route)) = route else { return };
        if route.leave(exchange) {
            return turn.sessions(ForSessions::Abandoned { key });
        }
        if exchange.worker.is_none() && route.is_stale() {
            route.waiters.retain(|waiter| self.streams.exchanges.get(*waiter).is_some());
        }
        let waits = route.waiting > 0;
        let tunnel = route.tunnel.filter(|_| exchange.worker.is_some());
        if let Some(tunnel) = tunnel.filter(|conn| !self.http1_tunnel_over(turn, *conn)) {
            if waits {
                self.wake(turn, key);
            }
            self.rest(turn, tunnel);
        }
    }

    /// A stream of a tunnel has ended. If it was the last one, the tunnel rests.
    fn rest(&mut self, turn: &mut Turn<'_>, conn: ConnId) {
        let mut hop = self.streams.hops.hop_mut(conn).filter(|hop| hop.link.streams() == 0);
        if let Some(hop) = hop.as_mut().filter(|hop| hop.ready.is_empty()) {
            // The tunnel may rest for long, so it keeps no memory for its queue.
            hop.ready = VecDeque::new();
        }
        // The tunnel's timer is set anew only if the idle limit comes before what the timer waits
        // for.
        let idle = turn.now + turn.settings.config.session.idle;
        let unwatched = hop.as_ref().is_some_and(|hop| hop.timer.is_none_or(|at| at > idle));
        if let Some(tunnel) = hop.and_then(Hop::tunnel_mut) {
            if !tunnel.is_set_aside() {
                tunnel.state = TunnelState::Idle { since: turn.now };
            }
            let going = tunnel.going;
            if !(going && self.end_if_done(turn, conn)) && (unwatched || going) {
                self.streams.hops.watch(turn, conn);
            }
        }
    }

    /// An exchange of a tunnel is over; false if the tunnel speaks HTTP/2. An HTTP/1 tunnel waits
    /// for the next exchange if both messages are whole, and is closed if not (contract CL-23,
    /// CL-43).
    fn http1_tunnel_over(&mut self, turn: &mut Turn<'_>, conn: ConnId) -> bool {
        let Some(hop) = self.streams.hops.hop_mut(conn) else { return true };
        let Link::H1(h1) = &mut hop.link else { return false };
        h1.release();
        let answered = h1.codec.has_read_all();
        let again = h1.codec.is_between() && h1.codec.keeps_alive();
        let set_aside = hop.tunnel().is_some_and(|tunnel| tunnel.is_set_aside());
        if again || set_aside {
            if let Some(tunnel) = hop.tunnel_mut().filter(|_| !set_aside) {
                tunnel.state = TunnelState::Idle { since: turn.now };
            }
            self.streams.hops.watch(turn, conn);
        } else {
            let cause = if answered { Cause::USED_UP } else { Cause::ABANDONED };
            turn.relay(ForRelay::TunnelOver { conn, cause, last: false });
        }
        true
    }

    fn client_stream_ended(&mut self, turn: &mut Turn<'_>, conn: ConnId) {
        let Some(hop) = self.streams.hops.hop_mut(conn) else { return };
        let shutdown = hop.client().map(|client| client.shutdown);
        match &mut hop.link {
            Link::H1(h1) => {
                h1.release();
                if h1.codec.next_message() {
                    if h1.has_kept() {
                        self.unread.push(conn);
                    }
                    return self.streams.hops.watch(turn, conn);
                }
                // Contract CL-42: a message that is not whole must not look whole.
                let whole = h1.codec.has_written_all();
                turn.net.set_open_ended(conn, !whole && h1.codec.is_open_ended());
                turn.net.close(conn, if whole { Close::Flush } else { Close::Now });
                let shuts_down = shutdown != Some(Shutdown::No);
                let how = if shuts_down { Gone::ByUs(Cause::SHUTDOWN) } else { Gone::Done };
                turn.relay(ForRelay::ClientOver { conn, how });
            }
            Link::H2(h2) => {
                if shutdown == Some(Shutdown::Final) && h2.streams() == 0 {
                    turn.net.close(conn, Close::Flush);
                    turn.relay(ForRelay::ClientOver { conn, how: sent_away(turn) });
                }
            }
        }
    }

    /// The tunnel of a running exchange is lost (contract CL-41, CL-42, design 3.11).
    fn stream_lost(&mut self, turn: &mut Turn<'_>, slot: u32, fault: &Fault) {
        let exchange = self.streams.exchanges.at(slot).filter(|exchange| !exchange.down.ended);
        match exchange.map(|exchange| exchange.status) {
            Some(0) => self.refuse(turn, self.streams.key_at(slot), fault),
            Some(_) => {
                self.streams.drop_exchange(turn, slot, Some(ErrorCode::InternalError), None);
            }
            // The exchange's client has gone before, so there is nobody to answer.
            None => {}
        }
    }

    // ---- connections ----

    /// A client connection has ended: its tunnels close at once (contract CL-23), or are kept for
    /// a client that comes back.
    pub(super) fn client_over(&mut self, turn: &mut Turn<'_>, conn: ConnId, how: Gone) {
        let Some(mut hop) = self.streams.hops.remove_hop(conn) else { return };
        self.streams.hops.forget_partial(&mut hop);
        let manner = hop.manner(how);
        self.streams.hops.resume(turn, std::mem::take(&mut hop.stopped));
        self.streams.hops.forget_kept(turn, &mut hop);
        let seconds = turn.now.since(hop.opened).as_secs_f64();
        turn.metrics.client_connection_seconds.observe(seconds);
        let lanes = hop.client().map(|client| &client.lanes);
        let keys: Vec<Key> = lanes.into_iter().flat_map(|lanes| lanes.routes()).collect();
        let is_busy = |key: &Key| self.routes.get(*key).is_some_and(Route::is_busy);
        let busy: Vec<bool> = keys.iter().map(is_busy).collect();
        let kept = self.choose_kept(turn, &keys, manner);
        self.hold_used(&kept, manner);
        for slot in hop.link.tags() {
            let of = self.streams.exchanges.at(slot).and_then(Exchange::route);
            // A tunnel that was replaced has streams of this client, although its route is not the
            // client's.
            let replaced = |key| self.routes.get(key).is_some_and(|r| r.client != Some(conn));
            if of.is_some_and(|key| kept.binary_search(&key).is_ok() || replaced(key)) {
                self.streams.drop_exchange(turn, slot, None, Some(ErrorCode::Cancel));
            } else {
                // The tunnel goes as a whole: its streams need no reset each.
                self.streams.drop_exchange(turn, slot, None, None);
            }
        }
        let parted = |(key, busy): (Key, bool)| {
            if let Some(route) = self.routes.get_mut(key) {
                route.client = None;
            }
            Parted { key, busy, kept: kept.binary_search(&key).is_ok() }
        };
        let routes = keys.into_iter().zip(busy).map(parted).collect();
        turn.sessions(ForSessions::ClientGone { conn, how, routes });
    }

    /// A client connection that has said nothing yet has ended.
    pub(super) fn fresh_over(
        &mut self,
        turn: &mut Turn<'_>,
        conn: ConnId,
        opened: ringway_proto::time::Time,
    ) {
        self.streams.hops.remove(conn);
        let seconds = turn.now.since(opened).as_secs_f64();
        turn.metrics.client_connection_seconds.observe(seconds);
        let how = Gone::ByUs(Cause::CLIENT_GONE);
        turn.sessions(ForSessions::ClientGone { conn, how, routes: Vec::new() });
    }

    /// A tunnel has ended, or the gateway ends it: its streams are answered or reset. Sessions
    /// decide what becomes of the requests that wait for it.
    pub(super) fn tunnel_over(
        &mut self,
        turn: &mut Turn<'_>,
        conn: ConnId,
        cause: Cause,
        last: bool,
    ) {
        let of = self.streams.hops.hop(conn).and_then(Hop::tunnel);
        let silent = of.is_some_and(|tunnel| matches!(tunnel.begun, Begun::Asked(_)));
        let cause = if silent { cause.unanswered() } else { cause };
        if let Some((key, going)) = of.map(|tunnel| (tunnel.route, tunnel.going)) {
            // Sessions hear of the tunnel before its streams are answered. An answer to the last
            // request may end the client's connection, but it is the tunnel that has ended the
            // session.
            turn.sessions(ForSessions::Lost(Lost { key, cause, going, last }));
            self.lose_tunnel(turn, conn, cause);
        }
    }

    fn lose_tunnel(&mut self, turn: &mut Turn<'_>, conn: ConnId, cause: Cause) {
        let mut hop = self.streams.hops.remove_hop(conn).expect("the caller has just found it");
        self.streams.hops.forget_partial(&mut hop);
        turn.net.close(conn, Close::Now);
        self.streams.hops.resume(turn, std::mem::take(&mut hop.stopped));
        self.streams.hops.forget_kept(turn, &mut hop);
        let slots = hop.link.tags();
        // An answer that has come in full is still delivered, even if part of it waits here.
        let over = |slot: &u32| self.streams.exchanges.at(*slot).is_some_and(|e| e.down.ended);
        let whole = slots.iter().all(over);
        if let Some(tunnel) = hop.tunnel()
            && let Some(route) = self.routes.get_mut(tunnel.route)
        {
            route.tunnel = None;
            route.lost = Some(tunnel.cookie_sent && whole);
        }
        for slot in slots {
            self.stream_lost(turn, slot, &cause.loss());
        }
    }

    // ---- routes ----

    /// The attachment ends, and its tunnel with it if there is one.
    pub(super) fn close_route(
        &mut self,
        turn: &mut Turn<'_>,
        key: Key,
        cause: Cause,
        fault: Option<&Fault>,
    ) {
        // Octets of exchanges that still run are counted with those that have ended.
        let carried = self.facts(key);
        let tunnel = self.routes.get(key).map(|route| route.tunnel);
        let Some((tunnel, carried)) = tunnel.zip(carried) else { return };
        if let Some(conn) = tunnel {
            let link = self.streams.hops.hop(conn).map(|hop| &hop.link);
            if matches!(link, Some(Link::H1(h1)) if h1.codec.is_raw()) {
                // The rest of a stream of bytes is still sent. Half a message is not: it must not
                // look whole.
                turn.net.close(conn, Close::Flush);
            }
            self.lose_tunnel(turn, conn, cause);
        }
        self.unlearn(key);
        let route = self.routes.remove(key).expect("it was there a moment ago");
        let client = route.client.and_then(|client| self.streams.hops.hop_mut(client));
        if let Some(client) = client.and_then(Hop::client_mut) {
            client.lanes.disown(key);
        }
        let lost = route.lost.is_some();
        let loss = cause.loss();
        let told = fault.unwrap_or(if lost { &loss } else { cause.fault() });
        let tally = route.tally(carried);
        for waiter in route.waiters {
            self.refuse(turn, waiter, told);
        }
        turn.sessions(ForSessions::Closed { key, cause, tally });
    }

    /// A direction of an exchange goes on after its receiver had stalled: the session's timeline
    /// shows it.
    pub(super) fn stalled(
        &self,
        turn: &mut Turn<'_>,
        exchange: Key,
        (up, took): (bool, std::time::Duration),
    ) {
        let key = self.streams.exchanges.get(exchange).and_then(Exchange::route);
        if let Some(route) = key.and_then(|key| self.routes.get(key)) {
            let side = if up { Party::Worker } else { Party::Client };
            let event = Event::Stalled { side, took };
            turn.edge(Edge::Note { session: route.session, at: None, event });
        }
    }
}
