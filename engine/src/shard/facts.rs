//! What the components of a shard say to each other: plain values, no more. A component that cannot
//! do something itself leaves a fact; the shard's loop ([`super`]) gives each to the
//! component it is for, the consequences of one before the next.
//!
//! All of them name things by id. An id may be stale when its fact is read: then nobody is found,
//! and the fact is void. That is checked once, where a component is entered.

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

/// Something a component could not do itself, by whom it is for.
#[derive(Debug)]
pub(crate) enum Fact {
    Relay(ForRelay),
    Sessions(ForSessions),
    Workers(ForWorkers),
    Nodes(ForNodes),
    /// A request names a session of another gateway: if its connection can go there it goes; else it
    /// is placed here ([`ForSessions::PlaceHere`]).
    Elsewhere(Box<Elsewhere>),
    /// Whether there may be one more connection that another gateway brings, of a client or of a
    /// worker. Answered by [`ForNodes::Admitted`].
    Knock {
        conn: ConnId,
        client: bool,
    },
    /// Another gateway leaves, and with it all that it has brought.
    NodeLeaves {
        node: Node,
    },
    /// A message for a core, perhaps for this one.
    Send {
        to: u16,
        message: CoreMessage,
    },
    /// A core that has forgotten this one has been told by all components what is still true.
    Renewed {
        core: u16,
    },
    /// A question for the control plane.
    Ask(Ask),
    /// A function's server is to be connected to for this attachment.
    Dial {
        key: Key,
        address: SocketAddr,
    },
    /// A connection that was asked for with `Dial` is not wanted any more, whether it is there or
    /// not.
    Undial {
        conn: ConnId,
    },
}

// ---- the relay: connections, exchanges, and the routes between them ----

/// What the relay is told. A *route* is what the relay knows of an attachment, under the same key:
/// its client, its tunnel, and the exchanges that wait for that.
#[derive(Debug)]
pub(crate) enum ForRelay {
    /// An attachment begins.
    Open { key: Key, session: Uuid, client: Option<ConnId>, terms: Terms },
    /// What holds for a route has changed.
    Terms { key: Key, terms: Terms },
    /// This exchange goes by that route, and so does from now on what asks alike on the same
    /// connection: for that route's session, and with `unnamed` for none.
    Serve { exchange: Key, key: Key, wanted: Box<Wanted>, unnamed: bool },
    /// This exchange goes nowhere.
    Refuse { exchange: Key, fault: Box<Fault> },
    /// All requests that wait for this route are answered with `fault`; the route stays.
    RefuseWaiters { key: Key, fault: Box<Fault> },
    /// The attachment ends, and its tunnel with it if there is one. Requests that wait are answered
    /// with `fault`, or, without one, with what the cause says. Answered by [`ForSessions::Closed`].
    Close { key: Key, cause: Cause, fault: Option<Box<Fault>> },
    /// Requests that wait for this route are placed as if they came now, and no other goes by it
    /// unless it is placed there anew.
    PlaceAnew { key: Key },
    /// No request goes by this route any more that is not placed there anew. Requests that wait for it
    /// still wait.
    Unlearn { key: Key },
    /// Requests that wait for one route wait for another one of the same client and session.
    Merge { from: Key, to: Key },
    /// A worker's connection becomes the route's tunnel. Answered by [`ForSessions::Attached`].
    Attach(Box<NewTunnel>),
    /// The route's tunnel is kept for a client that comes back, until then. Answered by
    /// [`ForSessions::Parked`] or [`ForSessions::UsedUp`].
    Park { key: Key, until: Time },
    /// A client of this core is back, and the parked tunnel is its own.
    Unpark { key: Key, client: ConnId },
    /// The parked tunnel of `from`, whose route ends, becomes the tunnel of `to`.
    Transfer { from: Key, to: Key },
    /// The parked tunnel goes to another core. Answered by [`ForSessions::Left`].
    Detach { key: Key },
    /// A tunnel has come from another core. It is the route's.
    Adopt { key: Key, detached: Box<Detached>, hop: MovedHop },
    /// Two attachments of a session change tunnels: `key` goes on with the fresh one of `spare`,
    /// and what runs on the old one ends there, as the spare's.
    Swap { key: Key, spare: Key },
    /// Whether another tunnel is to come in the place of this route's. If none is, one that takes no
    /// more streams ends with its last.
    Replaced { key: Key, yes: bool },
    /// Another gateway leaves: its clients are told to go, and its tunnels take no more streams.
    NodeLeaves { node: Node },
    // ---- the relay's own, done after what caused it ----
    /// Both directions of an exchange are done, or it was given up: it leaves every table.
    Over { exchange: Key },
    /// A client's connection has come to its end.
    ClientOver { conn: ConnId, how: Gone },
    /// A tunnel has come to its end.
    /// With `last`, its session is over: no spare stays.
    TunnelOver { conn: ConnId, cause: Cause, last: bool },
    /// Requests wait for this route, and it may have a stream for them.
    Wake { key: Key },
    /// What waited for a peer, the function's side or the client, goes on after it had stalled.
    Stalled { exchange: Key, up: bool, took: Duration },
}

/// What a route is held to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Terms {
    /// After which ends of its client its tunnel is kept.
    pub(crate) parks: super::cause::Manners,
    /// Whether another tunnel of the session can be asked for at all.
    pub(crate) spares: bool,
}

/// What a request asks for: what decides by which route it goes.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// What it calls, and as whom: shared with the question that is asked about it.
    pub(crate) call: Arc<Call>,
    /// The session it names.
    pub(crate) id: Option<Uuid>,
    /// For how many seconds it asks a streaming worker to wait for it.
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
    // The credential is for no log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wanted").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A client's connection, as sessions know it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller {
    pub(crate) conn: ConnId,
    pub(crate) peer: SocketAddr,
    /// When it was accepted.
    pub(crate) opened: Time,
    pub(crate) speaks: Speaks,
    /// Another gateway has brought it, because of its first request.
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
    /// The gateway that it came to, if it was another one.
    pub(crate) via: Option<Node>,
    /// What was read behind its CONNECT.
    pub(crate) tail: Vec<u8>,
}

/// The protocol's state on a tunnel that goes from core to core. Only the relay looks into it.
pub(crate) struct MovedHop(pub(crate) Box<dyn std::any::Any + Send>);

impl std::fmt::Debug for MovedHop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MovedHop")
    }
}

/// What a route has carried, at its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Streams that were open.
    pub(crate) streams: u32,
    /// Body bytes from the client.
    pub(crate) bytes_up: u64,
    /// Body bytes to the client.
    pub(crate) bytes_down: u64,
    /// Its tunnel had answered, and nothing of an answer was lost.
    pub(crate) answered: bool,
    /// It had a tunnel.
    pub(crate) tunnel: bool,
}

/// What can be seen of a route from outside.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RouteFacts {
    /// The tunnel's peer, if there is a tunnel.
    pub(crate) tunnel: Option<SocketAddr>,
    /// A request was sent on it.
    pub(crate) used: bool,
    pub(crate) streams: u32,
    pub(crate) bytes_up: u64,
    pub(crate) bytes_down: u64,
}

impl RouteFacts {
    /// A session's row, with what its route carries.
    pub(crate) fn show(self, row: SessionRow) -> SessionRow {
        SessionRow {
            // Whether a tunnel is used only its route knows.
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
    /// Something ran on it, or waited for it.
    pub(crate) busy: bool,
    /// Its tunnel is to be kept.
    pub(crate) kept: bool,
}

// ---- sessions: attachments, pins, what is parked, the directory ----

/// What the sessions are told.
#[derive(Debug)]
pub(crate) enum ForSessions {
    /// A request is here that no route is known for. Answered by [`ForRelay::Serve`] or
    /// [`ForRelay::Refuse`], now or later.
    Place {
        exchange: Key,
        from: Box<Caller>,
        wanted: Box<Wanted>,
    },
    /// The sessions' own: a request goes on whose client was granted what it wants.
    GoOn {
        exchange: Key,
        from: ConnId,
        wanted: Box<Wanted>,
    },
    /// The same, wherever the session is that it names.
    PlaceHere(Box<Elsewhere>),
    /// A client's connection has ended. Nobody waits for its routes any more.
    ClientGone {
        conn: ConnId,
        how: Gone,
        routes: Vec<Parted>,
    },
    /// Nobody waits for this attachment any more, and it has no tunnel.
    Abandoned {
        key: Key,
    },
    /// The attachment has its tunnel. `unspoken`: nothing can be said on it before a client is there.
    Attached {
        key: Key,
        unspoken: bool,
    },
    /// The tunnel is parked, and goes with clients that speak so.
    Parked {
        key: Key,
        speaks: Speaks,
    },
    /// The tunnel can carry no other client's requests; it is held until another one is there.
    UsedUp {
        key: Key,
    },
    /// The tunnel takes no more streams: those that run end on it.
    Spent {
        key: Key,
        goaway: bool,
    },
    /// The tunnel will be used up with what runs on it.
    WantsSpare {
        key: Key,
    },
    /// The worker has ended a tunnel that is held until its spare is there.
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
    /// The answer to [`ForRelay::Detach`]: nothing is under way on the tunnel any more.
    Left {
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
    /// There may be no more connections to the functions' side.
    NotDialled {
        key: Key,
    },
    // ---- said by other cores, or by this one to itself ----
    /// The work found no room in its queue, or on its way there. The work of a spare waits on its
    /// way, so only the former is said of it.
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
    /// With `room`, there may be one more connection to the functions' side.
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
    /// The tunnel took no more streams already.
    pub(crate) going: bool,
    /// The session is over with it: no spare of it stays.
    pub(crate) last: bool,
}

// ---- the workers' listener: polls, CONNECTs, queues of work ----

/// What the workers' component is told.
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
    /// Another gateway made the token. `node` is none if it is not of the cluster.
    SendAway {
        conn: ConnId,
        node: Option<Node>,
    },
    /// A connection that was to go to another gateway: nothing came of it.
    Back(Box<Back>),
    /// Another gateway has brought a worker's connection.
    Arrived(Box<Arrived>),
    /// Another core made the token.
    SendHome {
        conn: ConnId,
        core: u16,
    },
    /// Another core made the token, and other messages wait for that core already. The loop says
    /// this in place of [`ForWorkers::SendHome`].
    NoWayHome {
        conn: ConnId,
    },
    /// An attachment's work, for the dispatch home of its function version.
    Submit(Box<Work>),
    /// Nobody waits for the work any more.
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
    /// The connection finds no place here.
    TurnAway(Detached),
    Submitted(Box<Work>),
    Withdrawn(Ticket),
    RecallAsked(Ticket),
    ImpatientThere(Box<Parks>),
    Polled(PollId, Box<crate::control::local::PollRequest>),
    /// The poll found no room on its way, or there.
    PollRefused(PollId),
    Delivered(PollId),
    Doubted(PollId),
    PollGone(PollId),
    PollAnswered(PollId, PollAnswer),
    ParkedThere(Box<Parks>),
    UnparkedThere(Ticket),
}

/// For what a worker's connection is let in.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) key: Key,
    /// How old its token was.
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

/// What happens to a session, or to a connection, once. Each says all that its readers make of it:
/// nobody counts, logs or notes the same thing besides.
#[derive(Debug)]
pub(crate) enum Edge {
    /// What no other edge says, for the timeline alone; now, or a while ago.
    Note { session: Uuid, at: Option<Time>, event: Event },
    /// An attachment begins to ask for a tunnel.
    Began { session: Uuid, facts: SessionFacts, wish: Wish, client: Option<Met> },
    /// The worker's or server's connection is the tunnel now.
    Registered(Named),
    /// A client is back at its session. The client, if it was not noted when its work was asked for.
    Resumed { session: Uuid, way: ResumeWay, took: Duration, client: Option<Met> },
    /// A parked tunnel has come from another core.
    Arrived { session: Uuid, facts: SessionFacts, from: u16 },
    /// What has become of a spare. The timeline says that it was asked for, came or took the other
    /// tunnel's place.
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
    /// When it was accepted.
    pub(crate) at: Time,
    /// When its credential was found to be good.
    pub(crate) authorised: Option<Time>,
}

/// An attachment's end.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Names the session in lines. The lines of a session that nobody served are counted as its
    /// client's.
    pub(crate) named: Named,
    pub(crate) cause: Cause,
    pub(crate) held_for: Duration,
    /// A worker was asked for it as a spare, and it never came.
    pub(crate) spare: bool,
}

/// An attachment's or a question's number in its name towards others.
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
