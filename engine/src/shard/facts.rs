//! What the components of a shard say to each other, as plain values. A component that cannot do
//! something itself leaves a fact. The shard's loop ([`super`]) gives each fact to its component,
//! and all consequences of one fact before the next one.
//!
//! Facts name things by id. An id may be stale when its fact is read: then its thing is gone, and
//! the fact is void. A component checks that once, where it is entered.

mod strayed;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ringway_proto::fault::Fault;
use ringway_proto::h1::connect::ConnectResult;
use ringway_proto::id::Node;
use ringway_proto::route::RoutingHead;
use ringway_proto::time::Time;
use uuid::Uuid;

pub(crate) use self::strayed::{Arrived, Back, Elsewhere, ForNodes, Stray, Strayed};
use super::cause::{Cause, Gone};
use super::table::Key;
use crate::control::local::{PollAnswer, PollId, SessionFacts, Ticket, Work};
use crate::control::port::Call;
pub(crate) use crate::control::port::{Answer, Ask, AskTicket, Progress, Question, Topic};
pub(crate) use crate::log::{Named, Refused};
use crate::message::{
    CoreMessage, Found, Join, Leave, MemberState, MovedConnect, Parks, Resumed, SessionRow, Speaks,
};
use crate::metrics::{ResumeWay, SpareOutcome};
use crate::net::{ConnId, Detached};
use crate::timeline::{Ask as Wish, Event};

/// Something that a component could not do itself; one kind for each receiver.
#[derive(Debug)]
pub(crate) enum Fact {
    Relay(ForRelay),
    Sessions(ForSessions),
    Workers(ForWorkers),
    Nodes(ForNodes),
    /// A request names a session of another gateway. Its connection goes there if it can; otherwise
    /// the request is placed here ([`ForSessions::PlaceHere`]).
    Elsewhere(Box<Elsewhere>),
    /// Whether there may be one more connection that another gateway brings, of a client or of a
    /// worker. Answered by [`ForNodes::Admitted`].
    Knock {
        conn: ConnId,
        client: bool,
    },
    /// Another gateway leaves, and with it all connections that it has brought.
    NodeLeaves {
        node: Node,
    },
    /// A message for a core, perhaps for this one.
    Send {
        to: u16,
        message: CoreMessage,
    },
    /// All components have said what is still true to a core that had forgotten this one.
    Renewed {
        core: u16,
    },
    /// A question for the control plane.
    Ask(Ask),
    /// Connect to a function's server for this attachment.
    Dial {
        key: Key,
        address: SocketAddr,
    },
    /// The connection of `Dial` is not wanted any more, whether it is there or not.
    Undial {
        conn: ConnId,
    },
}

// ---- the relay: connections, exchanges, and the routes between them ----

/// Facts for the relay. A *route* is what the relay knows of an attachment, under the same key: its
/// client, its tunnel, and the exchanges that wait for the tunnel.
#[derive(Debug)]
pub(crate) enum ForRelay {
    /// An attachment begins.
    Open { key: Key, session: Uuid, client: Option<ConnId>, terms: Terms },
    /// What holds for a route has changed.
    Terms { key: Key, terms: Terms },
    /// This exchange goes by that route. So does from now on every request of the same connection
    /// that asks for the same and names that route's session. With `unnamed` this holds also for
    /// requests that name no session.
    Serve { exchange: Key, key: Key, wanted: Box<Wanted>, unnamed: bool },
    /// This exchange gets no route; it is answered with `fault`.
    Refuse { exchange: Key, fault: Box<Fault> },
    /// All requests that wait for this route are answered with `fault`; the route stays.
    RefuseWaiters { key: Key, fault: Box<Fault> },
    /// The attachment ends, and its tunnel with it if there is one. Requests that wait are answered
    /// with `fault`; without one, with the fault of the cause. Answered by [`ForSessions::Closed`].
    Close { key: Key, cause: Cause, fault: Option<Box<Fault>> },
    /// Requests that wait for this route are placed as if they came now. Later requests go by this
    /// route only if they are placed on it anew.
    PlaceAnew { key: Key },
    /// Later requests go by this route only if they are placed on it anew. Requests that wait for
    /// it still wait.
    Unlearn { key: Key },
    /// Requests that wait for one route wait for another one of the same client and session.
    Merge { from: Key, to: Key },
    /// A worker's connection becomes the route's tunnel. Answered by [`ForSessions::Attached`].
    Attach(Box<NewTunnel>),
    /// The route's tunnel is kept until `until` for a client that comes back. Answered by
    /// [`ForSessions::Parked`] or [`ForSessions::UsedUp`].
    Park { key: Key, until: Time },
    /// A client of this core is back and gets the parked tunnel.
    Unpark { key: Key, client: ConnId },
    /// The parked tunnel of `from`, whose route ends, becomes the tunnel of `to`.
    Transfer { from: Key, to: Key },
    /// The parked tunnel goes to another core. Answered by [`ForSessions::TunnelDetached`].
    Detach { key: Key },
    /// A tunnel has come from another core. It becomes the route's tunnel.
    Adopt { key: Key, detached: Box<Detached>, hop: MovedHop },
    /// Two attachments of a session change tunnels. `key` goes on with the fresh tunnel of `spare`.
    /// Exchanges that run on the old tunnel end there; it belongs to `spare` now.
    Swap { key: Key, spare: Key },
    /// Whether another tunnel will replace this route's. If none will, a tunnel that takes no more
    /// streams ends with its last stream.
    Replaced { key: Key, yes: bool },
    /// Another gateway leaves: its clients are told to go, and its tunnels take no more streams.
    NodeLeaves { node: Node },
    // ---- the relay's own, done after what caused it ----
    /// Both directions of an exchange are done, or the exchange was given up. It leaves every
    /// table.
    Over { exchange: Key },
    /// A client's connection has come to its end.
    ClientOver { conn: ConnId, how: Gone },
    /// A tunnel has come to its end.
    /// With `last`, its session is over: no spare stays.
    TunnelOver { conn: ConnId, cause: Cause, last: bool },
    /// Requests wait for this route, and it may have a stream for them.
    Wake { key: Key },
    /// A direction of an exchange goes on after it had waited for a peer. With `up` the peer was
    /// the function's side, otherwise the client.
    Stalled { exchange: Key, up: bool, took: Duration },
}

/// The rules for a route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Terms {
    /// After which ends of its client the route's tunnel is kept.
    pub(crate) parks: super::cause::Manners,
    /// Whether another tunnel of the session can be asked for at all.
    pub(crate) spares: bool,
}

/// What a request asks for. It decides by which route the request goes.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// The function that it calls, and its credential. Shared with the question to the control
    /// plane.
    pub(crate) call: Arc<Call>,
    /// The session that the request names.
    pub(crate) id: Option<Uuid>,
    /// For how many seconds the client asks a streaming worker to wait for its return.
    pub(crate) window: Option<u16>,
}

impl Wanted {
    pub(crate) fn of(head: &RoutingHead<'_>) -> Self {
        Self {
            call: Arc::new(Call::new(head.credential, head.function, head.version)),
            id: head.request_id,
            window: head.reconnect_window,
        }
    }
}

impl std::fmt::Debug for Wanted {
    // The credential must be in no log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wanted").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A client's connection, as `sessions` knows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller {
    pub(crate) conn: ConnId,
    pub(crate) peer: SocketAddr,
    /// When the client's connection was accepted.
    pub(crate) opened: Time,
    pub(crate) speaks: Speaks,
    /// Another gateway has brought the connection, because of its first request.
    pub(crate) brought: bool,
}

/// A worker's connection that becomes a tunnel.
#[derive(Debug)]
pub(crate) struct NewTunnel {
    pub(crate) key: Key,
    pub(crate) conn: ConnId,
    pub(crate) peer: SocketAddr,
    pub(crate) opened: Time,
    /// A timer of the connection that is armed already.
    pub(crate) timer: Option<Time>,
    /// The gateway that the worker dialled, if it was another one.
    pub(crate) via: Option<Node>,
    /// The bytes that were read behind its CONNECT.
    pub(crate) tail: Vec<u8>,
}

/// The protocol's state on a tunnel that goes from core to core. Only the relay looks into it.
pub(crate) struct MovedHop(pub(crate) Box<dyn std::any::Any + Send>);

impl std::fmt::Debug for MovedHop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MovedHop")
    }
}

/// What a route has carried until its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Streams that were open.
    pub(crate) streams: u32,
    /// Body bytes from the client.
    pub(crate) bytes_up: u64,
    /// Body bytes to the client.
    pub(crate) bytes_down: u64,
    /// The tunnel has answered, and no part of an answer was lost.
    pub(crate) answered: bool,
    /// The route had a tunnel.
    pub(crate) tunnel: bool,
}

/// What the relay shows of a route.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RouteFacts {
    /// The tunnel's peer, if there is a tunnel.
    pub(crate) tunnel: Option<SocketAddr>,
    /// A request was sent on the tunnel.
    pub(crate) used: bool,
    pub(crate) streams: u32,
    pub(crate) bytes_up: u64,
    pub(crate) bytes_down: u64,
}

impl RouteFacts {
    /// A session's row, with what its route carries.
    pub(crate) fn show(self, row: SessionRow) -> SessionRow {
        SessionRow {
            // Only the route knows whether its tunnel is used.
            state: if row.state == "attached" && self.used { "active" } else { row.state },
            tunnel: self.tunnel,
            streams: self.streams,
            bytes_in: self.bytes_up,
            bytes_out: self.bytes_down,
            ..row
        }
    }
}

/// One route of a client whose connection has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Parted {
    pub(crate) key: Key,
    /// An exchange ran on the route, or waited for it.
    pub(crate) busy: bool,
    /// The route's tunnel is to be kept.
    pub(crate) kept: bool,
}

// ---- sessions: attachments, pins, what is parked, the directory ----

/// Facts for the sessions.
#[derive(Debug)]
pub(crate) enum ForSessions {
    /// A request is here that no route is known for. Answered by [`ForRelay::Serve`] or
    /// [`ForRelay::Refuse`], now or later.
    Place {
        exchange: Key,
        from: Box<Caller>,
        wanted: Box<Wanted>,
    },
    /// From `sessions` to itself: the client was granted what it asks for, so its request goes on.
    GoOn {
        exchange: Key,
        from: ConnId,
        wanted: Box<Wanted>,
    },
    /// Like [`Self::Place`], but served here even if the request names a session of another
    /// gateway.
    PlaceHere(Box<Elsewhere>),
    /// A client's connection has ended. No client waits for its routes any more.
    ClientGone {
        conn: ConnId,
        how: Gone,
        routes: Vec<Parted>,
    },
    /// No request waits for this attachment any more, and it has no tunnel.
    Abandoned {
        key: Key,
    },
    /// The attachment has its tunnel. `unspoken`: nothing can be sent on it before a client is
    /// there.
    Attached {
        key: Key,
        unspoken: bool,
    },
    /// The tunnel is parked. Only clients that speak the given protocol can have it.
    Parked {
        key: Key,
        speaks: Speaks,
    },
    /// The tunnel can carry no other client's requests. It is held until another tunnel is there.
    UsedUp {
        key: Key,
    },
    /// The tunnel takes no more streams. Those that run on it end there.
    Spent {
        key: Key,
        goaway: bool,
    },
    /// The tunnel will be used up by the exchange that runs on it.
    WantsSpare {
        key: Key,
    },
    /// The worker has ended a tunnel that was held until its spare comes.
    LastChance {
        key: Key,
    },
    /// The tunnel is lost, or has ended. Requests that wait for the route go on waiting.
    Lost(Lost),
    /// The answer to [`ForRelay::Close`]: the route is gone.
    Closed {
        key: Key,
        cause: Cause,
        tally: Tally,
    },
    /// The answer to [`ForRelay::Detach`]: no I/O is under way on the tunnel any more.
    TunnelDetached {
        key: Key,
        detached: Box<Detached>,
        hop: MovedHop,
    },
    /// A worker shows a token. Answered by [`ForWorkers::Admit`], [`ForWorkers::Reject`] or
    /// [`ForWorkers::SendHome`].
    Token {
        conn: ConnId,
        text: Vec<u8>,
        id: Uuid,
    },
    /// The control plane's answer.
    Answered {
        ticket: AskTicket,
        answer: Answer,
    },
    /// A connection to a function's server is under way.
    Dialling {
        key: Key,
        conn: ConnId,
    },
    /// The connection was not dialled: the limit of connections to the functions' side is reached.
    NotDialled {
        key: Key,
    },
    // ---- said by other cores, or by this one to itself ----
    /// The work found no room in its queue, or on its way there. The work of a spare can only find
    /// its queue full: it waits on its way until there is room.
    NotSubmitted {
        ticket: Ticket,
        fault: Box<Fault>,
    },
    Recalled(Ticket),
    YieldWorker(Ticket),
    /// A client of another core asks for a session whose home is here.
    Find(Box<crate::message::Find>),
    Found(Box<Found>),
    /// A client asks whether it opened a session whose home is here.
    Vouch(Box<crate::message::Vouch>),
    Vouched(Box<crate::message::Vouched>),
    /// The question found no room on its way to the session's home.
    NotFound(Box<crate::message::Find>),
    Join(Box<Join>),
    MemberState(Uuid, Ticket, MemberState),
    Leave(Box<Leave>),
    EndSurplus(Ticket),
    Claim {
        parked: Ticket,
        to: Ticket,
    },
    /// The answer to the claim of a parked tunnel, for the attachment that waits. `room`: one more
    /// connection to the functions' side is allowed.
    Resumed {
        resumed: Box<Resumed>,
        room: bool,
    },
}

/// A tunnel's end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lost {
    pub(crate) key: Key,
    pub(crate) cause: Cause,
    /// The tunnel had stopped taking streams before it was lost.
    pub(crate) going: bool,
    /// The session ends with this tunnel: none of its spares stays.
    pub(crate) last: bool,
}

// ---- the workers' listener: polls, CONNECTs, queues of work ----

/// Facts for the workers.
#[derive(Debug)]
pub(crate) enum ForWorkers {
    /// The token is good: the connection becomes the tunnel. Answered with [`ForRelay::Attach`].
    Admit {
        conn: ConnId,
        admitted: Box<Admitted>,
    },
    /// The token is not good.
    Reject {
        conn: ConnId,
        result: ConnectResult,
        age: Option<Duration>,
    },
    /// Another gateway made the token. `node` is none if that gateway is not of the cluster.
    SendAway {
        conn: ConnId,
        node: Option<Node>,
    },
    /// A connection was to go to another gateway, and that gateway did not take it.
    Back(Box<Back>),
    /// Another gateway has brought a worker's connection.
    Arrived(Box<Arrived>),
    /// Another core made the token.
    SendHome {
        conn: ConnId,
        core: u16,
    },
    /// Another core made the token, and other messages wait for that core already. The loop puts
    /// this in place of [`ForWorkers::SendHome`].
    NoWayHome {
        conn: ConnId,
    },
    /// An attachment's work, for the dispatch home of its function version.
    Submit(Box<Work>),
    /// No attachment waits for the work any more.
    Withdraw(Box<OfVersion>),
    /// The worker for this work is there.
    Served(Box<OfVersion>),
    /// New work has waited for so long that a parked tunnel of its function version may yield.
    Impatient(Box<OfVersion>),
    /// The work is taken back, unless a worker has got it already.
    Recall(Box<OfVersion>),
    /// A tunnel of a function version is parked, or is not any more.
    Parks(Box<Parks>),
    Unparks(Box<OfVersion>),
    // ---- said by other cores, or by this one to itself ----
    Connect(Box<MovedConnect>),
    /// This core has no room for the connection.
    TurnAway(Detached),
    Submitted(Box<Work>),
    Withdrawn(Ticket),
    RecallAsked(Ticket),
    ImpatientThere(Box<Parks>),
    Polled(PollId, Box<crate::control::local::PollRequest>),
    /// The poll found no room at its dispatch home, or on the way there.
    PollRefused(PollId),
    Delivered(PollId),
    Doubted(PollId),
    PollGone(PollId),
    PollAnswered(PollId, PollAnswer),
    ParkedThere(Box<Parks>),
    UnparkedThere(Ticket),
}

/// What a worker's connection is admitted for.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) key: Key,
    /// The age of its token.
    pub(crate) age: Duration,
    pub(crate) session: Uuid,
}

/// An attachment of a function version, by its name towards other cores.
#[derive(Clone, Debug)]
pub(crate) struct OfVersion {
    pub(crate) ticket: Ticket,
    pub(crate) function: Arc<str>,
    pub(crate) version: Arc<str>,
}

// ---- edges: what metrics, log and timeline read ----

/// Something that happens once to a session or to a connection. An edge holds all that its readers
/// need. No other place counts, logs or notes the same event.
#[derive(Debug)]
pub(crate) enum Edge {
    /// An event for the timeline alone that no other edge says. It happened at `at`, or now.
    Note { session: Uuid, at: Option<Time>, event: Event },
    /// An attachment begins to ask for a tunnel.
    Began { session: Uuid, facts: SessionFacts, wish: Wish, client: Option<Met> },
    /// The worker's or server's connection is the tunnel now.
    Registered(Named),
    /// A client is back at its session. `client` is set if it was not noted when its work was asked
    /// for.
    Resumed { session: Uuid, way: ResumeWay, took: Duration, client: Option<Met> },
    /// A parked tunnel has come from another core.
    Arrived { session: Uuid, facts: SessionFacts, from: u16 },
    /// What has become of a spare. The timeline says that the spare was asked for, came, or took
    /// the other tunnel's place.
    Spare { session: Uuid, outcome: SpareOutcome },
    /// A PING was answered.
    Ponged { session: Uuid, took: Duration },
    /// A worker's CONNECT was answered.
    Connect { result: ConnectResult, age: Option<Duration>, worker: SocketAddr },
    /// A request got no session.
    Refused(Box<Refused>),
    /// An attachment has ended.
    Closed(Box<Ended>),
}

/// Who a session's client is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Met {
    pub(crate) client: SocketAddr,
    /// When the client's connection was accepted.
    pub(crate) at: Time,
    /// When the control plane granted its credential.
    pub(crate) authorised: Option<Time>,
}

/// An attachment's end.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Names the session in log lines. If no worker served the session, its lines count against its
    /// client's share of the log.
    pub(crate) named: Named,
    pub(crate) cause: Cause,
    pub(crate) held_for: Duration,
    /// The attachment was a spare, and its worker never came.
    pub(crate) spare: bool,
}

/// The number that stands for an attachment or a question in its name towards others.
pub(crate) fn number_of(key: Key) -> u64 {
    u64::from(key.generation) << 32 | u64::from(key.slot)
}

/// The attachment of this core with that name.
pub(crate) fn key_of(ticket: Ticket) -> Key {
    key_numbered(ticket.number)
}

/// The counterpart of [`number_of`].
pub(crate) fn key_numbered(number: u64) -> Key {
    Key { slot: number as u32, generation: (number >> 32) as u32 }
}
