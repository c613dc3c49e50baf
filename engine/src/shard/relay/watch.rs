//! Deadlines of connections: handshakes, silence, stalls, idleness. One timer a connection, armed
//! for the earliest of its concerns; what has moved meanwhile is seen when it fires. And leaving in
//! order: GOAWAY in two steps, open streams finish, then the rest is ended.

use std::time::Duration;

use ringway_proto::fault::Fault;
use ringway_proto::h1;
use ringway_proto::h1::head::HeadFault;
use ringway_proto::h2::ErrorCode;

use super::super::cause::{Cause, Gone};
use super::super::facts::ForRelay;
use super::super::table::Key;
use super::super::turn::Turn;
use super::Relay;
use super::hop::ALIVE_PING;
use super::hop::{GOAWAY_WAIT, Hop, HopRole, Shutdown, Timeouts, TunnelState, UNREAD_ANSWERS};
use super::hops::Conn;
use super::link::Link;
use crate::message::Ills;
use crate::metrics::Limit;
use crate::net::{Close, ConnId, End};

impl Relay {
    // ---- deadlines ----

    /// A connection's timer has fired.
    pub(crate) fn look_at(&mut self, turn: &mut Turn<'_>, conn: ConnId) {
        match self.reader.traffic.streams.hops.get_mut(conn) {
            Some(Conn::Fresh(fresh)) => {
                let opened = fresh.opened;
                turn.limit_hit(Limit::Handshake);
                turn.net.close(conn, Close::Flush);
                self.reader.traffic.fresh_over(turn, conn, opened);
            }
            Some(Conn::Hop(hop)) => {
                hop.timer = None;
                self.look_at_hop(turn, conn);
                self.reader.traffic.streams.hops.watch(turn, conn);
            }
            None => {}
        }
    }

    fn look_at_hop(&mut self, turn: &mut Turn<'_>, conn: ConnId) {
        let now = turn.now;
        let stalled = turn.net.blocked_since(conn).map(|since| now.since(since));
        let handshake = turn.settings.config.limits.handshake;
        let hop =
            self.reader.traffic.streams.hops.hop_mut(conn).expect("the caller has just found it");
        if hop.waits == 0
            && hop.link.deadline().is_some_and(|at| at <= now)
            && let Err(fault) = hop.link.expired(now)
        {
            return self.reader.traffic.streams.hops.fail(turn, conn, fault);
        }
        if hop.link.wants_pause() && stalled.is_some_and(|stalled| stalled >= UNREAD_ANSWERS) {
            turn.limit_hit(Limit::QueuedAnswers);
            return self.reader.traffic.streams.hops.cut(turn, conn);
        }
        if matches!(&hop.link, Link::H1(h1) if h1.begun.is_some_and(|at| at + handshake <= now)) {
            return self.reader.traffic.streams.http1_fault(
                turn,
                conn,
                h1::Fault::Broken(HeadFault::Timeout),
            );
        }
        match &mut hop.role {
            HopRole::Client(client) => {
                let warned = match client.shutdown {
                    Shutdown::Warned { since } => since + GOAWAY_WAIT <= now,
                    Shutdown::No | Shutdown::Final => false,
                };
                ask_client(turn, hop);
                if warned {
                    self.reader.traffic.streams.hops.last_goaway(turn, conn);
                }
            }
            HopRole::Tunnel(tunnel) => {
                tunnel.looked_at = now;
                look_at_tunnel(turn, hop, stalled);
            }
        }
    }

    /// Memory is short: streams that have not moved for long are given up (L11).
    pub(crate) fn sweep(&mut self, turn: &mut Turn<'_>) {
        if self.reader.traffic.streams.hops.sweeps_on(turn) {
            for exchange in self.reader.traffic.streams.stalled(turn) {
                turn.limit_hit(Limit::StalledStream);
                self.reader.traffic.cancel(turn, exchange, &Fault::Overloaded);
            }
        }
    }

    pub(crate) fn allow_small_sends(&mut self, turn: &mut Turn<'_>, exchange: Key) {
        self.reader.traffic.streams.allow_small_sends(turn, exchange);
    }

    /// The rest of an answered request did not come: the stream is given up.
    pub(crate) fn answered_too_long(&mut self, turn: &mut Turn<'_>, exchange: Key) {
        if self.reader.traffic.streams.exchanges.get(exchange).is_some() {
            let code = Some(ErrorCode::NoError);
            self.reader.traffic.streams.drop_exchange(turn, exchange.slot, code, None);
        }
    }

    // ---- leaving ----

    /// The ills that `/health` names from now on.
    pub(crate) fn set_ills(&mut self, ills: Ills) {
        self.reader.traffic.replies.ills = ills;
    }

    pub(crate) fn set_unready(&mut self) {
        self.reader.traffic.replies.unready = true;
    }

    /// Every client is asked to leave.
    pub(crate) fn drain(&mut self, turn: &mut Turn<'_>) {
        for conn in self.reader.traffic.streams.hops.ids() {
            if self.reader.traffic.streams.hops.hop(conn).is_some_and(|hop| hop.client().is_some())
            {
                self.reader.traffic.streams.hops.warn(turn, conn);
            }
        }
    }

    /// Ends everything that is left.
    pub(crate) fn end_all(&mut self, turn: &mut Turn<'_>, how: Close) {
        for conn in self.reader.traffic.streams.hops.ids() {
            match self.reader.traffic.streams.hops.get_mut(conn) {
                Some(Conn::Hop(hop)) if hop.client().is_some() => {
                    let last = hop.link.highest_peer_stream();
                    hop.link.goaway(last, ErrorCode::NoError, b"", &mut turn.net.sink(conn));
                    turn.net.close(conn, how);
                    let how = Gone::ByUs(Cause::SHUTDOWN);
                    turn.relay(ForRelay::ClientOver { conn, how });
                }
                Some(Conn::Hop(_)) => {
                    let cause = Cause::SHUTDOWN;
                    turn.relay(ForRelay::TunnelOver { conn, cause, last: false });
                }
                Some(Conn::Fresh(fresh)) => {
                    let opened = fresh.opened;
                    turn.net.close(conn, how);
                    self.reader.traffic.fresh_over(turn, conn, opened);
                }
                None => {}
            }
        }
    }
}

/// A client that says nothing for long is asked whether it is still there, if that is wished.
fn ask_client(turn: &mut Turn<'_>, hop: &mut Hop) {
    let keepalive = &turn.settings.config.keepalive;
    let (every, most) = (keepalive.client_ping, keepalive.client_ping_timeout);
    // While the client is not read, its silence is our own doing.
    let asks = hop.waits == 0 && matches!(hop.link, Link::H2(_));
    let (conn, silent, now) = (hop.conn, hop.received_at, turn.now);
    if let (Some(every), HopRole::Client(client)) = (every.filter(|_| asks), &mut hop.role) {
        match client.pinged_at {
            Some(at) if at + most <= now => {
                turn.net.close(conn, Close::Now);
                turn.relay(ForRelay::ClientOver { conn, how: Gone::Ended(End::Timeout) });
            }
            None if silent + every <= now => {
                client.pinged_at = Some(now);
                hop.link.ping(ALIVE_PING, &mut turn.net.sink(conn));
            }
            _ => {}
        }
    }
}

fn look_at_tunnel(turn: &mut Turn<'_>, hop: &mut Hop, stalled: Option<Duration>) {
    let timeouts = Timeouts::of(turn.settings);
    let (conn, now) = (hop.conn, turn.now);
    if let Some(cause) = overdue(hop, &timeouts, now, stalled) {
        return turn.relay(ForRelay::TunnelOver { conn, cause, last: false });
    }
    if hop.ping_at(&timeouts).is_some_and(|at| at <= now) {
        let found = hop.found(now);
        if let Some(tunnel) = hop.tunnel_mut() {
            tunnel.pings.asks(found);
        }
        hop.link.ping(ALIVE_PING, &mut turn.net.sink(conn));
    }
}

/// Why a tunnel ends now, if it does.
fn overdue(
    hop: &Hop,
    timeouts: &Timeouts<'_>,
    now: ringway_proto::time::Time,
    stalled: Option<Duration>,
) -> Option<Cause> {
    let tunnel = hop.tunnel()?;
    let begins_by = hop.begins_by(timeouts);
    let keepalive = timeouts.keepalive;
    if begins_by.is_some_and(|at| at <= now) {
        return Some(Cause::MUTE);
    }
    if begins_by.is_none() && stalled.is_some_and(|stalled| stalled >= keepalive.tunnel_write) {
        return Some(Cause::STALLED);
    }
    let asked = tunnel.pings.open().filter(|_| hop.waits == 0);
    if asked.is_some_and(|at| at + keepalive.tunnel_ping_timeout <= now) {
        return Some(Cause::SILENT);
    }
    match tunnel.state {
        TunnelState::Parked { until } if until <= now => Some(Cause::WINDOW),
        TunnelState::Replaced { until } if until <= now && hop.link.streams() == 0 => {
            Some(hop.spent_cause())
        }
        TunnelState::Idle { since } if since + timeouts.idle <= now => Some(Cause::IDLE),
        TunnelState::Unused if hop.hop_since + timeouts.unused <= now => Some(Cause::UNUSED),
        _ => None,
    }
}
