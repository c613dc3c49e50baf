//! The messages between the shards of different cores.
//!
//! A core gets a message in one of three roles: as *home of a token* (a worker's CONNECT moves to
//! it), as *dispatch home* of a function version (its work and polls meet there), or as *home of a
//! session* (its directory has the entry). A running exchange needs no message: an attachment sends
//! some when it begins and when it ends.
//!
//! Between two cores the order is kept. Between three it is not, so a message may cross any change
//! on the core that it is for. The table says what each does then:
//!
//! | Message | It crosses | Then |
//! |---|---|---|
//! | `Connect` | its attachment's end, a taken token | the worker is answered 403, as on one core |
//! | `Submit` | nothing: what withdraws it comes behind it | |
//! | `Withdraw` | the answer with the work | the token is refused when the worker dials back |
//! | `Poll` | an answer to the poll before it | [`CoreMessage::Doubted`]: the newer poll tells nothing of that answer |
//! | | `TooManyPolls` for the poll before it | it is answered as if it had waited behind that: 503, and `Gone` |
//! | `Delivered`, `Doubted`, `Gone` | work that was withdrawn, or is queued again | nothing: the first word counts |
//! | `Answer` | the connection's end, another request there | the round of its [`PollId`] is over: `Gone`, and its work is queued again |
//! | | a newer poll of the connection | it is sent, and `Doubted` says so |
//! | `TooManyPolls` | the same | nobody waits for it |
//! | `QueueFull` | the attachment's end, its tunnel | nothing: it waits for no worker any more |
//! | `Find` | the session's end | `Found` says so; what joins it comes behind the question |
//! | `Found` | the client's end | the attachment leaves the session |
//! | | the attachment's end | nothing: its `Leave` is behind its `Find` |
//! | `Vouch` | a claim of the tunnel, its end | `Vouched` says so, and the control plane is asked |
//! | `Vouched` | the question's end | nothing |
//! | | a claim of the tunnel, its end | the client asks for a session that it opened, by the worker's way |
//! | `Join`, `MemberState`, `Leave` | a claim of the tunnel | the attachment is no member any more: nothing |
//! | `EndSurplus`, `Yield`, `Unparks` | a claim of the tunnel, its end | nothing: it is not parked any more |
//! | `Claim` | the tunnel's end | `Resumed` without a tunnel |
//! | `Resumed` | the client's end | the tunnel is parked where it came |
//! | | the attachment's end | the tunnel joins its session anew, parked where it came |
//! | `Impatient` | the attachment's tunnel, or its end | one parked tunnel more yields |
//! | `Parks` | a new beginning of its home | told again (`Sessions::renew`) |
//! | `NodeLeaves` | a connection that the node brings | that one ends with the node |
//! | `Void`, `Idle` | anything | both begin anew; idle is told again |
//!
//! The name of an attachment or a poll includes its node. A message that names one of another node,
//! or of an earlier run of this process, is void. A socket that such a message brings is closed.

use std::any::Any;
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU64;

use ringway_proto::fault::Fault;
use ringway_proto::id::Node;
use ringway_proto::time::Time;
use std::sync::Arc;
use uuid::Uuid;

use super::SessionRow;
use crate::control::local::{PollAnswer, PollId, PollRequest, SessionFacts, Ticket, Work};
use crate::control::port::Owner;
use crate::net::Detached;

/// A message of one core's shard to another's.
#[derive(Debug)]
pub enum CoreMessage {
    /// A worker's connection whose CONNECT shows a token of yours.
    Connect(Box<MovedConnect>),
    /// Work for a function version whose dispatch home you are.
    Submit(Box<Work>),
    /// No attachment waits for this work any more.
    Withdraw(Ticket),
    /// Take this spare's work out of its queue if no worker has been told of it yet.
    Recall(Ticket),
    /// The answer to [`Self::Recall`]: the work was in its queue and is taken out.
    Recalled(Ticket),
    /// A worker asks for work.
    Poll(PollId, Box<PollRequest>),
    /// The poll's answer has arrived.
    Delivered(PollId),
    /// The poll's answer was sent, and whether it has arrived will not be known.
    Doubted(PollId),
    /// No connection waits for the poll's answer any more. An answer on its way did not arrive.
    Gone(PollId),
    /// The poll's answer.
    Answer(PollId, PollAnswer),
    /// The limit of waiting polls is reached.
    TooManyPolls(PollId),
    /// The function version's queue has no room for this work.
    QueueFull(Ticket),
    /// A client asks for a session of yours. If the client may have it, this attachment joins it.
    Find(Box<Find>),
    /// The answer to [`Self::Find`].
    Found(Box<Found>),
    /// Say whether this client opened a session of yours whose tunnel waits for it.
    Vouch(Box<Vouch>),
    /// The answer to [`Self::Vouch`].
    Vouched(Box<Vouched>),
    /// An attachment belongs to this session of yours. You may have forgotten that.
    Join(Box<Join>),
    /// The attachment's state in its session has changed.
    MemberState(Uuid, Ticket, MemberState),
    /// Close the tunnel that this attachment keeps: its session has another one.
    EndSurplus(Ticket),
    /// Give the tunnel that this attachment keeps to another attachment, which waits for it.
    Claim {
        /// The attachment that keeps it.
        parked: Ticket,
        /// The attachment that gets it.
        to: Ticket,
    },
    /// The answer to [`Self::Claim`], for the attachment that waits.
    Resumed(Box<Resumed>),
    /// An attachment keeps a tunnel of a function version whose dispatch home you are.
    Parks(Box<Parks>),
    /// The attachment keeps its tunnel no more.
    Unparks(Ticket),
    /// This attachment's new work, which waits elsewhere, has waited for so long that a parked
    /// tunnel of its function version may yield.
    Impatient(Box<Parks>),
    /// Close the tunnel that this attachment keeps: a new session needs its worker.
    Yield(Ticket),
    /// The attachment has left the session.
    Leave(Box<Leave>),
    /// This core has lost messages for you. Forget what you hold of it. Ask again for what it has
    /// not answered.
    Void {
        /// The core that says so.
        core: u16,
    },
    /// Another gateway leaves: the connections that it has brought to you will end.
    NodeLeaves(Node),
    /// This core drains and has no client any more.
    Idle {
        /// The core that says so.
        core: u16,
    },
}

impl CoreMessage {
    /// Whether the message asks for something that can be refused at once if there is no room for
    /// it. Every other message waits for room.
    #[must_use]
    pub fn may_be_refused(&self) -> bool {
        matches!(
            self,
            Self::Connect(_)
                | Self::Submit(_)
                | Self::Poll(..)
                | Self::Find(_)
                | Self::Vouch(_)
                | Self::Impatient(_)
        )
    }
}

impl CoreMessage {
    /// Whether every attachment and poll that the message names is this node's.
    #[must_use]
    pub fn is_of(&self, node: Node) -> bool {
        match self {
            Self::Connect(_) | Self::Void { .. } | Self::Idle { .. } | Self::NodeLeaves(_) => true,
            Self::Submit(work) => work.ticket.node == node,
            Self::Find(find) => find.ticket.node == node,
            Self::Found(found) => found.ticket.node == node,
            Self::Vouch(vouch) => vouch.ticket.node == node,
            Self::Vouched(vouched) => vouched.ticket.node == node,
            Self::Join(join) => join.ticket.node == node,
            Self::Leave(leave) => leave.ticket.node == node,
            Self::Parks(parks) | Self::Impatient(parks) => parks.ticket.node == node,
            Self::Resumed(resumed) => resumed.ticket.node == node,
            Self::Claim { parked, to } => parked.node == node && to.node == node,
            Self::Withdraw(ticket)
            | Self::Recall(ticket)
            | Self::Recalled(ticket)
            | Self::QueueFull(ticket)
            | Self::MemberState(_, ticket, _)
            | Self::EndSurplus(ticket)
            | Self::Unparks(ticket)
            | Self::Yield(ticket) => ticket.node == node,
            Self::Poll(poll, _)
            | Self::Delivered(poll)
            | Self::Doubted(poll)
            | Self::Gone(poll)
            | Self::Answer(poll, _)
            | Self::TooManyPolls(poll) => poll.node == node,
        }
    }

    /// Tells an attachment that the tunnel it waits for has closed.
    #[must_use]
    pub fn not_resumed(ticket: Ticket) -> Self {
        Self::Resumed(Box::new(Resumed { ticket, tunnel: None }))
    }

    /// Whether a session would be lost with the message. Such a message is valid for whatever shard
    /// the core has when it arrives.
    #[must_use]
    pub fn carries_tunnel(&self) -> bool {
        matches!(self, Self::Resumed(resumed) if resumed.tunnel.is_some())
    }
}

/// A worker's connection on its way to its token's home.
pub struct MovedConnect {
    /// The socket.
    pub detached: Detached,
    /// The bytes that were read: the CONNECT, and those behind it.
    pub input: Vec<u8>,
    /// The worker's address.
    pub peer: SocketAddr,
    /// When the connection was accepted.
    pub opened: Time,
    /// The core that it comes from.
    pub from: u16,
    /// The gateway that the worker dialled, if it was another one.
    pub via: Option<Node>,
}

impl fmt::Debug for MovedConnect {
    // The bytes hold a token, which must be in no log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MovedConnect")
            .field("detached", &self.detached.socket)
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

/// A client's question for a session.
#[derive(Debug)]
pub struct Find {
    /// The session it names.
    pub id: Uuid,
    /// The attachment that waits for the answer.
    pub ticket: Ticket,
    /// The function as the client sent it.
    pub function: Box<[u8]>,
    /// The version as the client sent it; empty if it named none.
    pub version: Box<[u8]>,
    /// The tenant whose credential the client showed.
    pub tenant: Arc<str>,
    /// What the client speaks.
    pub speaks: Speaks,
}

/// A client's credential, and the session for which it need not be asked about again.
#[derive(Debug)]
pub struct Vouch {
    /// The session it names.
    pub id: Uuid,
    /// The question that waits for the answer.
    pub ticket: Ticket,
    /// The function as the client sent it.
    pub function: Box<[u8]>,
    /// The version as the client sent it; empty if it named none.
    pub version: Box<[u8]>,
    /// The seal of its credential.
    pub seal: NonZeroU64,
    /// What the client speaks.
    pub speaks: Speaks,
}

/// The answer to a [`Vouch`].
#[derive(Debug)]
pub struct Vouched {
    /// The question.
    pub ticket: Ticket,
    /// The session's owner; none if the control plane has to be asked.
    pub owner: Option<Arc<Owner>>,
}

/// What becomes of an attachment that waits for a tunnel which was parked elsewhere.
#[derive(Debug)]
pub struct Resumed {
    /// The attachment.
    pub ticket: Ticket,
    /// The tunnel; none if it had closed already.
    pub tunnel: Option<MovedTunnel>,
}

/// A tunnel on its way to its client's core.
pub struct MovedTunnel {
    /// The socket.
    pub detached: Detached,
    /// The tunnel's protocol state, which only shards look into.
    pub hop: Box<dyn Any + Send>,
    /// The session.
    pub session: Uuid,
    /// The session's facts.
    pub facts: SessionFacts,
    /// When its attachment began.
    pub opened: Time,
    /// The last client.
    pub client_address: SocketAddr,
    /// The core where it was.
    pub from: u16,
}

impl fmt::Debug for MovedTunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MovedTunnel")
            .field("detached", &self.detached.socket)
            .field("session", &self.session)
            .finish_non_exhaustive()
    }
}

/// A tunnel that is kept for its session's client. New work may need its worker.
#[derive(Debug)]
pub struct Parks {
    /// The attachment.
    pub ticket: Ticket,
    /// Canonical function id.
    pub function: Arc<str>,
    /// Canonical version id.
    pub version: Arc<str>,
}

/// The answer to a [`Find`].
#[derive(Debug)]
pub struct Found {
    /// The attachment that asked.
    pub ticket: Ticket,
    /// The session's facts, or E7 to E10.
    pub outcome: Result<SessionFacts, Fault>,
}

/// An attachment of a session.
#[derive(Debug)]
pub struct Join {
    /// The session.
    pub id: Uuid,
    /// The attachment.
    pub ticket: Ticket,
    /// The session's facts.
    pub facts: SessionFacts,
    /// The attachment's state there.
    pub member_state: MemberState,
}

/// An attachment's state in its session, as the session's home knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberState {
    /// The attachment waits for its tunnel.
    Wanted,
    /// A tunnel that was parked is on its way to the attachment.
    Coming {
        /// The core where the tunnel was parked.
        from: u16,
    },
    /// A client uses its tunnel.
    Open,
    /// The member's tunnel will replace another one that is used up or lost.
    Spare,
    /// The member's tunnel is kept for a client that comes back.
    Parked(Speaks),
}

/// The protocol that a tunnel's clients have to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// HTTP/1.
    Http1,
    /// HTTP/2.
    Http2,
    /// Nothing was sent on the tunnel yet, so both will do.
    Any,
}

impl Speaks {
    /// Whether a tunnel of this protocol serves a client of that protocol.
    #[must_use]
    pub fn fits(self, client: Self) -> bool {
        self == Self::Any || self == client
    }
}

/// An attachment that leaves its session.
#[derive(Debug)]
pub struct Leave {
    /// The session.
    pub id: Uuid,
    /// The attachment.
    pub ticket: Ticket,
    /// The session's row if this was its last attachment; none if no worker was asked for it.
    pub row: Option<SessionRow>,
}
