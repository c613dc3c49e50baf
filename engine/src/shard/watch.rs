//! Deadlines of connections: handshakes, silence, stalls, idleness. One timer a connection, armed
//! for the earliest of its concerns; what has moved meanwhile is seen when it fires.

use std::time::Duration;

use ringway_proto::h1::Fault;
use ringway_proto::h1::head::HeadFault;
use ringway_proto::time::Time;

use super::Shard;
use super::close::Cause;
use super::conn::{Begun, Conn, Hop, Leaving, Side};
use super::link::Link;
use super::park::Gone;
use super::timer::Due;
use crate::border::{Border, Close, ConnId, End};
use crate::config::Keepalive;
use crate::metrics::Limit;

/// Idle HTTP/1 connections without a CONNECT are closed after this long (contract LN-8).
const PLAIN_IDLE: Duration = Duration::from_secs(60);

/// How long a peer may leave our answers unread once reading has stopped (L6).
const UNREAD_ANSWERS: Duration = Duration::from_secs(10);

/// How long after the first GOAWAY the final one comes if the PING is not answered.
pub(crate) const GOAWAY_WAIT: Duration = Duration::from_secs(1);

/// When a connection is looked at again whose deadline has passed without consequence.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Payload of the PING between the two GOAWAYs, and of the one that asks a silent peer.
pub(crate) const DRAIN_PING: [u8; 8] = *b"goaway-2";
pub(crate) const ALIVE_PING: [u8; 8] = *b"alive?!?";

/// The timers that a hop's deadlines depend on.
pub(crate) struct Terms<'a> {
    pub(crate) keepalive: &'a Keepalive,
    pub(crate) idle: Duration,
    pub(crate) unused: Duration,
    pub(crate) handshake: Duration,
}

impl Shard {
    /// Arms the connection's timer if its next deadline is earlier than what is armed.
    pub(super) fn watch(&mut self, conn: ConnId) {
        let terms = self.settings.terms();
        let Some(entry) = self.conns.get_mut(conn) else { return };
        let handshake = self.settings.config.limits.handshake;
        let (at, armed) = match entry {
            Conn::Fresh(fresh) => {
                self.timers.arm(fresh.opened + handshake, Due::conn(conn));
                return;
            }
            Conn::Door(plain) => {
                let at = match plain.begun {
                    Some(begun) => Some(begun + handshake),
                    None if plain.polls > 0 => plain.desk.until,
                    None => Some(plain.idle_since + PLAIN_IDLE),
                };
                (at, &mut plain.timer)
            }
            Conn::Hop(hop) => (hop.deadline(&terms), &mut hop.timer),
        };
        let Some(at) = at else { return };
        if armed.is_none_or(|armed| at < armed) {
            // What is due already was looked at in this instant, and nothing could be done about
            // it: looked at again at once, it would keep the core in this turn for ever.
            let at = if at > self.now { at } else { self.now + LOOK_AGAIN };
            *armed = Some(at);
            self.timers.arm(at, Due::conn(conn));
        }
    }

    /// A connection's timer has fired.
    pub(super) fn look_at(&mut self, border: &mut Border, conn: ConnId) {
        let now = border.now;
        match self.conns.get_mut(conn) {
            Some(Conn::Fresh(_)) => {
                self.metrics.limit_hit(Limit::Handshake);
                border.close(conn, Close::Flush);
                self.plain_gone(border, conn);
                return;
            }
            Some(Conn::Door(plain)) => {
                plain.timer = None;
                let late = plain
                    .begun
                    .is_some_and(|begun| begun + self.settings.config.limits.handshake <= now);
                let idle = plain.begun.is_none()
                    && plain.polls == 0
                    && plain.idle_since + PLAIN_IDLE <= now;
                if late {
                    self.metrics.limit_hit(Limit::Handshake);
                    border.put(conn, REQUEST_TIMEOUT);
                }
                let overdue = plain.polls > 0 && plain.desk.until.is_some_and(|at| at <= now);
                if late || idle {
                    self.end_plain(border, conn);
                    return;
                }
                if overdue {
                    self.poll_overdue(border, conn);
                }
            }
            Some(Conn::Hop(hop)) => {
                hop.timer = None;
                self.look_at_hop(border, conn);
            }
            None => return,
        }
        self.watch(conn);
    }

    fn look_at_hop(&mut self, border: &mut Border, conn: ConnId) {
        let now = border.now;
        let Some(hop) = self.conns.hop_mut(conn) else { return };
        if hop.waits == 0
            && hop.link.deadline().is_some_and(|at| at <= now)
            && let Err(fault) = hop.link.expired(now)
        {
            return self.fail(border, conn, fault);
        }
        let stalled = border.blocked_since(conn).map(|since| now.since(since));
        let Some(hop) = self.conns.hop_mut(conn) else { return };
        if hop.link.wants_pause() && stalled.is_some_and(|stalled| stalled >= UNREAD_ANSWERS) {
            self.metrics.limit_hit(Limit::QueuedAnswers);
            return self.cut(border, conn);
        }
        if let Some(tunnel) = hop.tunnel_mut() {
            tunnel.looked_at = now;
        }
        if let Link::H1(h1) = &hop.link
            && h1.begun.is_some_and(|begun| begun + self.settings.config.limits.handshake <= now)
        {
            return self.http1_fault(border, conn, Fault::Broken(HeadFault::Timeout));
        }
        match &hop.side {
            Side::Client(client) => {
                if let Leaving::Warned { since } = client.leaving
                    && since + GOAWAY_WAIT <= now
                {
                    self.last_goaway(border, conn);
                }
                self.look_at_client(border, conn);
            }
            Side::Tunnel(_) => self.look_at_tunnel(border, conn, stalled),
        }
    }

    /// A client that says nothing for long is asked whether it is still there, if that is wished.
    fn look_at_client(&mut self, border: &mut Border, conn: ConnId) {
        let now = border.now;
        let keepalive = &self.settings.config.keepalive;
        let (Some(every), most) = (keepalive.client_ping, keepalive.client_ping_timeout) else {
            return;
        };
        let Some(hop) = self.conns.hop_mut(conn) else { return };
        // What it says is not read now: its silence is ours.
        if hop.waits > 0 || matches!(hop.link, Link::H1(_)) {
            return;
        }
        let silent = hop.received_at;
        let Some(client) = hop.client_mut() else { return };
        match client.pinged_at {
            Some(at) if at + most <= now => {
                border.close(conn, Close::Now);
                self.client_gone(border, conn, Gone::Ended(End::Timeout));
            }
            None if silent + every <= now => {
                client.pinged_at = Some(now);
                hop.link.ping(ALIVE_PING, &mut border.sink(conn));
            }
            _ => {}
        }
    }

    fn look_at_tunnel(&mut self, border: &mut Border, conn: ConnId, stalled: Option<Duration>) {
        let now = border.now;
        let terms = self.settings.terms();
        let Some(hop) = self.conns.hop_mut(conn) else { return };
        let read = hop.waits == 0;
        let (begins_by, ping_at) = (hop.begins_by(&terms), hop.ping_at(&terms));
        let hop_since = hop.hop_since;
        let Some(tunnel) = hop.tunnel_mut() else { return };
        let cause = if begins_by.is_some_and(|at| at <= now) {
            Some(Cause::MUTE)
        } else if begins_by.is_none()
            && stalled.is_some_and(|stalled| stalled >= terms.keepalive.tunnel_write)
        {
            Some(Cause::STALLED)
        } else if read
            && tunnel.pings.open().is_some_and(|at| at + terms.keepalive.tunnel_ping_timeout <= now)
        {
            Some(Cause::SILENT)
        } else if let Some(until) = tunnel.parked {
            Some(Cause::WINDOW).filter(|_| until <= now)
        } else if tunnel.idle_since.is_some_and(|since| since + terms.idle <= now) {
            Some(Cause::IDLE)
        } else if !tunnel.used && hop_since + terms.unused <= now {
            Some(Cause::UNUSED)
        } else {
            None
        };
        if let Some(cause) = cause {
            return self.tunnel_gone(border, conn, cause);
        }
        if ping_at.is_some_and(|at| at <= now) {
            let found = hop.found(now);
            if let Some(tunnel) = hop.tunnel_mut() {
                tunnel.pings.asks(found);
            }
            hop.link.ping(ALIVE_PING, &mut border.sink(conn));
        }
    }

    /// Closes a connection whose peer takes nothing any more.
    pub(super) fn cut(&mut self, border: &mut Border, conn: ConnId) {
        match self.conns.hop(conn).map(|hop| hop.tunnel().is_some()) {
            Some(true) => self.tunnel_gone(border, conn, Cause::STALLED),
            Some(false) => {
                border.close(conn, Close::Now);
                // It takes nothing any more: it may be lost.
                self.client_gone(border, conn, Gone::Ended(End::Timeout));
            }
            None => {}
        }
    }
}

impl Hop {
    /// By when the function's side has to say something, while it has not and is read. HTTP/2's
    /// SETTINGS are due at once; HTTP/1 is silent until the response.
    fn begins_by(&self, terms: &Terms<'_>) -> Option<Time> {
        match self.tunnel()?.begun {
            Begun::Asked(at) if self.waits == 0 && matches!(self.link, Link::H2(_)) => {
                Some(at + terms.keepalive.tunnel_start)
            }
            _ => None,
        }
    }

    /// When a tunnel is to be asked whether its peer is there: it is in use or parked, it is read,
    /// and no answer is awaited.
    fn ping_at(&self, terms: &Terms<'_>) -> Option<Time> {
        let tunnel = self.tunnel()?;
        let in_use = self.link.streams() > 0;
        if self.waits > 0
            || matches!(self.link, Link::H1(_))
            || tunnel.begun != Begun::Yes
            || tunnel.pings.open().is_some()
            || !(in_use || tunnel.parked.is_some())
        {
            return None;
        }
        let allowed = tunnel.pings.allowed_from(in_use, self.link.has_heard());
        Some((self.received_at + terms.keepalive.tunnel_ping).max(allowed))
    }

    fn deadline(&self, terms: &Terms<'_>) -> Option<Time> {
        // What is not read may be there.
        let mut earliest = if self.waits == 0 { self.link.deadline() } else { None };
        let mut concern = |at: Time| {
            earliest = Some(earliest.map_or(at, |earliest| earliest.min(at)));
        };
        if self.link.wants_pause() {
            concern(self.received_at + UNREAD_ANSWERS);
        }
        if let Link::H1(h1) = &self.link
            && let Some(begun) = h1.begun
        {
            concern(begun + terms.handshake);
        }
        match &self.side {
            Side::Client(client) => {
                if let Leaving::Warned { since } = client.leaving {
                    concern(since + GOAWAY_WAIT);
                }
                if let Some(every) = terms.keepalive.client_ping
                    && matches!(self.link, Link::H2(_))
                    && self.waits == 0
                {
                    concern(match client.pinged_at {
                        Some(at) => at + terms.keepalive.client_ping_timeout,
                        None => self.received_at + every,
                    });
                }
            }
            Side::Tunnel(tunnel) => {
                if let Some(until) = tunnel.parked {
                    concern(until);
                } else {
                    if let Some(since) = tunnel.idle_since {
                        concern(since + terms.idle);
                    }
                    if !tunnel.used {
                        concern(self.hop_since + terms.unused);
                    }
                }
                // What it says is not read now: its silence is ours.
                if self.waits == 0
                    && let Some(at) = tunnel.pings.open()
                {
                    concern(at + terms.keepalive.tunnel_ping_timeout);
                }
                [self.begins_by(terms), self.ping_at(terms)]
                    .into_iter()
                    .flatten()
                    .for_each(&mut concern);
                // Whether it takes what is sent.
                let asked = self.waits == 0 || matches!(self.link, Link::H1(_));
                if asked && self.link.streams() > 0 {
                    concern(tunnel.looked_at.max(self.received_at) + terms.keepalive.tunnel_write);
                }
            }
        }
        earliest
    }
}

/// The answer to a request head that took too long (L10).
const REQUEST_TIMEOUT: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
