//! One connection of the relay: a client's, or a tunnel. [`HopRole`] holds what only one of the two
//! kinds has, [`Hop`] what both have.

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use ringway_proto::h2::ListId;
use ringway_proto::id::Node;
use ringway_proto::time::Time;

use super::super::cause::{Cause, Gone, Manner};
use super::super::settings::ShardSettings;
use super::super::table::Key;
use super::super::turn::Turn;
use super::exchange::Way;
use super::lanes::Lanes;
use super::link::Link;
use super::memo::{KeptAnswer, KeptCall};
use super::pings::{Found, Pings};
use crate::config::Keepalive;
use crate::net::{ConnId, End};

/// How long a peer may leave our answers unread once reading has stopped (L6).
pub(super) const UNREAD_ANSWERS: Duration = Duration::from_secs(10);

/// Payload of the PING that asks a silent peer.
pub(super) const ALIVE_PING: [u8; 8] = *b"alive?!?";

/// How long after the first GOAWAY the final one comes if the PING is not answered.
pub(super) const GOAWAY_WAIT: Duration = Duration::from_secs(1);

/// A client connection before protocol detection.
#[derive(Debug)]
pub(super) struct Fresh {
    pub(super) peer: SocketAddr,
    pub(super) opened: Time,
    /// Bytes of the HTTP/2 magic seen so far.
    pub(super) magic: usize,
    /// The gateway that the connection came to, if that was another one.
    pub(super) via: Option<Node>,
}

/// A connection as the relay sees it.
pub(super) struct Hop {
    pub(super) conn: ConnId,
    pub(super) link: Link,
    pub(super) peer: SocketAddr,
    /// When the connection was accepted.
    pub(super) opened: Time,
    /// The gateway that the connection came to, if that was another one.
    pub(super) via: Option<Node>,
    /// When the connection became a hop.
    pub(super) hop_since: Time,
    /// Exchanges with something to send on this hop, in turn; those that are gone are skipped.
    pub(super) ready: VecDeque<Key>,
    /// DATA bytes received here that wait for another hop. The hop's windows, or its buffer, bound
    /// them.
    pub(super) buffered: u32,
    pub(super) received_at: Time,
    pub(super) timer: Option<Time>,
    /// Hops that stopped reading until this one's output drains.
    pub(super) stopped: Vec<ConnId>,
    /// How many reasons there are not to read this hop, such as hops whose output is full.
    pub(super) waits: u32,
    /// Bytes of a head that is not whole, as counted last.
    pub(super) partial: u32,
    /// Size of the heads and trailers received here that wait with their exchanges.
    pub(super) lists: u32,
    pub(super) role: HopRole,
}

impl fmt::Debug for Hop {
    // The HPACK tables hold credentials: they are not for any log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hop")
            .field("conn", &self.conn)
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

/// The role of a hop: a client's connection, or a tunnel.
#[derive(Debug)]
pub(super) enum HopRole {
    Client(Client),
    Tunnel(Tunnel),
}

/// A client's part of its hop.
#[derive(Debug, Default)]
pub(super) struct Client {
    /// The client's routes, and what was learned of them: which requests go by which route.
    pub(super) lanes: Lanes,
    pub(super) shutdown: Shutdown,
    /// When the PING that is not answered yet was sent.
    pub(super) pinged_at: Option<Time>,
    /// The client said GOAWAY and blamed nobody: it leaves in order.
    pub(super) said_goaway: bool,
    /// Calls that repeat.
    pub(super) calls: Vec<KeptCall>,
}

/// How far the graceful shutdown of a client connection has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Shutdown {
    #[default]
    No,
    /// The first GOAWAY and a PING are sent: requests already on their way still count.
    Warned { since: Time },
    /// The final GOAWAY is sent: streams finish, then it closes.
    Final,
}

/// Whether the function's side has begun to speak on a tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Begun {
    /// No request was sent on the tunnel yet, and the function's side has said nothing.
    #[default]
    Unasked,
    /// The first request went out at this time. The function's process may have other things to do
    /// before it answers: it loads a model, or holds a lock.
    Asked(Time),
    /// The function's side has said something, whatever it was.
    Yes,
}

/// A worker's part of its hop.
#[derive(Debug)]
pub(super) struct Tunnel {
    pub(super) route: Key,
    pub(super) state: TunnelState,
    /// The tunnel takes no more streams: its worker said GOAWAY, or its stream ids ran out.
    pub(super) going: bool,
    /// The session cookie went out with one of the tunnel's responses.
    pub(super) cookie_sent: bool,
    /// When the tunnel's deadlines were looked at last.
    pub(super) looked_at: Time,
    /// The record of our PINGs, as the peer counts them.
    pub(super) pings: Pings,
    pub(super) begun: Begun,
    /// Response heads and trailers that repeat.
    pub(super) answers: Vec<KeptAnswer>,
}

/// The state of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TunnelState {
    /// No request was sent on the tunnel yet, and one is expected.
    Unused,
    /// Streams are open on the tunnel; or it is a spare that waits for a client, for as long as
    /// that takes.
    InUse,
    /// The tunnel's last stream ended at this time.
    Idle { since: Time },
    /// The tunnel has no client, and is kept until this time.
    Parked { until: Time },
    /// The tunnel is used up. It is kept all the same, until another tunnel of the session is
    /// there.
    Held(Held),
    /// Another tunnel has taken this one's place. This one ends with its last stream, and not
    /// before the time given here. If it ended before its worker has heard that the other tunnel
    /// was let in, the worker would end the session with it.
    Replaced { until: Time },
}

/// Why a used-up tunnel is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// The tunnel's client was lost. The tunnel is read on, so that its end is seen, and what comes
    /// is thrown away.
    Lost {
        /// Bytes thrown away.
        dropped: usize,
    },
    /// The function's side has ended the tunnel.
    Finished,
}

/// The timers that a hop's deadlines depend on.
pub(super) struct Timeouts<'a> {
    pub(super) keepalive: &'a Keepalive,
    pub(super) idle: Duration,
    pub(super) unused: Duration,
    pub(super) handshake: Duration,
}

impl<'a> Timeouts<'a> {
    pub(super) fn of(settings: &'a ShardSettings) -> Self {
        Self {
            keepalive: &settings.config.keepalive,
            idle: settings.config.session.idle,
            // Contract 3.10: an unused tunnel has the pending connection's time.
            unused: settings.config.session.wait,
            handshake: settings.config.limits.handshake,
        }
    }
}

impl Tunnel {
    pub(super) fn new(route: Key, state: TunnelState, now: Time) -> Self {
        Self {
            route,
            state,
            going: false,
            cookie_sent: false,
            looked_at: now,
            pings: Pings::default(),
            begun: Begun::default(),
            answers: Vec::new(),
        }
    }

    /// A request goes out on the tunnel. True if it is the first one.
    pub(super) fn asked(&mut self, now: Time) -> bool {
        if self.begun == Begun::Unasked {
            self.begun = Begun::Asked(now);
        }
        std::mem::replace(&mut self.state, TunnelState::InUse) == TunnelState::Unused
    }

    pub(super) fn held(&self) -> Option<Held> {
        match self.state {
            TunnelState::Held(held) => Some(held),
            _ => None,
        }
    }

    /// Whether the tunnel is held or replaced. Such a tunnel is given no more streams, so its state
    /// does not change with the end of those it has.
    pub(super) fn is_set_aside(&self) -> bool {
        matches!(self.state, TunnelState::Held(_) | TunnelState::Replaced { .. })
    }

    /// Whether the worker may not have heard yet of the tunnel that has taken this one's place.
    pub(super) fn settles(&self, now: Time) -> bool {
        matches!(self.state, TunnelState::Replaced { until } if until > now)
    }

    pub(super) fn is_parked(&self) -> bool {
        matches!(self.state, TunnelState::Parked { .. })
    }
}

impl Hop {
    pub(super) fn new(
        conn: ConnId,
        link: Link,
        (peer, opened): (SocketAddr, Time),
        now: Time,
        role: HopRole,
    ) -> Self {
        Self {
            conn,
            link,
            peer,
            opened,
            via: None,
            hop_since: now,
            ready: VecDeque::new(),
            buffered: 0,
            received_at: now,
            timer: None,
            stopped: Vec::new(),
            waits: 0,
            partial: 0,
            lists: 0,
            role,
        }
    }

    pub(super) fn client(&self) -> Option<&Client> {
        match &self.role {
            HopRole::Client(client) => Some(client),
            HopRole::Tunnel(_) => None,
        }
    }

    pub(super) fn client_mut(&mut self) -> Option<&mut Client> {
        match &mut self.role {
            HopRole::Client(client) => Some(client),
            HopRole::Tunnel(_) => None,
        }
    }

    pub(super) fn tunnel(&self) -> Option<&Tunnel> {
        match &self.role {
            HopRole::Tunnel(tunnel) => Some(tunnel),
            HopRole::Client(_) => None,
        }
    }

    pub(super) fn tunnel_mut(&mut self) -> Option<&mut Tunnel> {
        match &mut self.role {
            HopRole::Tunnel(tunnel) => Some(tunnel),
            HopRole::Client(_) => None,
        }
    }

    /// What was kept of a client's request head with this list, if such a head came before.
    pub(super) fn call(&self, list: ListId) -> Option<&KeptCall> {
        self.client()?.calls.iter().find(|call| call.list == list)
    }

    /// The direction of bytes that come in on this hop.
    pub(super) fn way_in(&self) -> Way {
        if self.client().is_some() { Way::Up } else { Way::Down }
    }

    /// The direction of bytes that leave on this hop.
    pub(super) fn way_out(&self) -> Way {
        if self.client().is_some() { Way::Down } else { Way::Up }
    }

    pub(super) fn is_shutting_down(&self) -> bool {
        self.client().is_some_and(|client| client.shutdown != Shutdown::No)
    }

    /// A client connection's end, as the rules for parking see it.
    pub(super) fn manner(&self, how: Gone) -> Manner {
        match how {
            Gone::ByUs(_) => Manner::Ours,
            Gone::Function(End::Fin) => Manner::Finished,
            Gone::Function(_) => Manner::Unclean,
            Gone::Done => Manner::Clean,
            // The client leaves because the gateway has asked it to, and may come back at once.
            Gone::Ended(_) if self.is_shutting_down() => Manner::Unclean,
            Gone::ToldOff => Manner::Unclean,
            Gone::Ended(_) if self.client().is_some_and(|client| client.said_goaway) => {
                Manner::Clean
            }
            // Many clients never say `close_notify`.
            Gone::Ended(end) if end.is_half() && self.link.streams() == 0 => Manner::Silent,
            Gone::Ended(_) => Manner::Unclean,
        }
    }

    /// The cause with which a tunnel ends that takes no more streams and has none.
    pub(super) fn spent_cause(&self) -> Cause {
        if self.link.is_exhausted() { Cause::EXHAUSTED } else { Cause::GOAWAY }
    }

    /// The peer is there: no PING is open any more.
    pub(super) fn answered(&mut self) {
        match &mut self.role {
            HopRole::Client(client) => client.pinged_at = None,
            HopRole::Tunnel(tunnel) => {
                tunnel.pings.close();
                tunnel.begun = Begun::Yes;
            }
        }
    }

    /// The hop is read again. Its peer's silence counts only from now on.
    pub(super) fn read_again(&mut self, now: Time) {
        self.received_at = now;
        self.link.read_again(now);
        match &mut self.role {
            HopRole::Client(client) => client.pinged_at = None,
            HopRole::Tunnel(tunnel) => {
                tunnel.pings.close();
                if let Begun::Asked(at) = &mut tunnel.begun {
                    *at = now;
                }
            }
        }
    }

    /// The state in which a PING, or the answer to one, finds this hop. HEADERS and DATA that came
    /// until now count for this PING, and for no later one.
    pub(super) fn found(&mut self, now: Time) -> Found {
        let heard = self.link.has_heard();
        self.link.forget_heard();
        Found { now, in_use: self.link.streams() > 0, heard }
    }

    // ---- deadlines ----

    /// The time by which the function's side has to say something, if it was asked, has said
    /// nothing yet, and is read. HTTP/2's SETTINGS are due at once. HTTP/1 is silent until the
    /// response, so it has no such time.
    pub(super) fn begins_by(&self, timeouts: &Timeouts<'_>) -> Option<Time> {
        match self.tunnel()?.begun {
            Begun::Asked(at) if self.waits == 0 && matches!(self.link, Link::H2(_)) => {
                Some(at + timeouts.keepalive.tunnel_start)
            }
            _ => None,
        }
    }

    /// The time at which a tunnel's peer is to be asked whether it is there. That is done while the
    /// tunnel is in use or parked, is read, and no answer is awaited.
    pub(super) fn ping_at(&self, timeouts: &Timeouts<'_>) -> Option<Time> {
        let tunnel = self.tunnel()?;
        let in_use = self.link.streams() > 0;
        if self.waits > 0
            || matches!(self.link, Link::H1(_))
            || tunnel.begun != Begun::Yes
            || tunnel.pings.open().is_some()
            || !(in_use || tunnel.is_parked())
        {
            return None;
        }
        let allowed = tunnel.pings.allowed_from(in_use, self.link.has_heard());
        Some((self.received_at + timeouts.keepalive.tunnel_ping).max(allowed))
    }

    /// The earliest of the connection's concerns.
    pub(super) fn deadline(&self, timeouts: &Timeouts<'_>) -> Option<Time> {
        // While the connection is not read, what its codec waits for may have come already.
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
            concern(begun + timeouts.handshake);
        }
        match &self.role {
            HopRole::Client(client) => self.client_concerns(client, timeouts, &mut concern),
            HopRole::Tunnel(tunnel) => self.tunnel_concerns(tunnel, timeouts, &mut concern),
        }
        earliest
    }

    fn client_concerns(
        &self,
        client: &Client,
        timeouts: &Timeouts<'_>,
        concern: &mut impl FnMut(Time),
    ) {
        if let Shutdown::Warned { since } = client.shutdown {
            concern(since + GOAWAY_WAIT);
        }
        if let Some(every) = timeouts.keepalive.client_ping
            && matches!(self.link, Link::H2(_))
            && self.waits == 0
        {
            concern(match client.pinged_at {
                Some(at) => at + timeouts.keepalive.client_ping_timeout,
                None => self.received_at + every,
            });
        }
    }

    fn tunnel_concerns(
        &self,
        tunnel: &Tunnel,
        timeouts: &Timeouts<'_>,
        concern: &mut impl FnMut(Time),
    ) {
        match tunnel.state {
            TunnelState::Parked { until } => concern(until),
            TunnelState::Idle { since } => concern(since + timeouts.idle),
            TunnelState::Unused => concern(self.hop_since + timeouts.unused),
            TunnelState::Replaced { until } if self.link.streams() == 0 => concern(until),
            TunnelState::InUse | TunnelState::Held(_) | TunnelState::Replaced { .. } => {}
        }
        // While the tunnel is not read, its silence is our own doing.
        if self.waits == 0
            && let Some(at) = tunnel.pings.open()
        {
            concern(at + timeouts.keepalive.tunnel_ping_timeout);
        }
        if let Some(at) = self.begins_by(timeouts) {
            concern(at);
        }
        if let Some(at) = self.ping_at(timeouts) {
            concern(at);
        }
        // A tunnel with streams is looked at for whether its peer takes what is sent.
        let asked = self.waits == 0 || matches!(self.link, Link::H1(_));
        if asked && self.link.streams() > 0 {
            concern(tunnel.looked_at.max(self.received_at) + timeouts.keepalive.tunnel_write);
        }
    }
}

/// Why a client connection ends that was asked to leave and has no streams any more.
pub(super) fn sent_away(turn: &Turn<'_>) -> Gone {
    if turn.draining.is_some() { Gone::ByUs(Cause::SHUTDOWN) } else { Gone::ToldOff }
}
