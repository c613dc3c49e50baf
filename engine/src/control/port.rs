//! The port behind which a control plane stands: what a core asks of it, and what it is told.
//!
//! A core asks under a ticket and goes on with other things. Each question has at most one answer
//! that counts: the first one that comes before its deadline and before nobody waits for it any
//! more. One that comes later, or again, finds nobody; it is counted and dropped.
//!
//! A question that ends without an answer is withdrawn. That may cross with the answer: a grant
//! under a withdrawn ticket was not used, and is given back by this. What a core had asked whose
//! shard has begun anew is not withdrawn, nobody is left who could: the plane forgets it by the
//! tickets' life.
//!
//! Work that was submitted lives on after its answer: it ends when its worker is there
//! ([`Question::Settled`]) or when nobody wants it any more ([`Question::Withdraw`]). One of the two
//! is said of each that was not refused.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use ringway_proto::id::Node;
use ringway_proto::time::Time;
use uuid::Uuid;

use super::work::Work;

pub use super::owner::{Kind, Owner, Rate};

/// Which control plane stands behind a core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plane {
    /// The one of the configuration file: it answers within the same turn.
    Local,
    /// One that takes time: [`crate::shard::Shard::take_asks`] says what is asked of it.
    Remote,
}

/// Names one question, and nothing after it: also not when the core's shard has begun anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AskTicket {
    /// The core that asks.
    pub core: u16,
    /// Which of the core's shards, one after the other: its first generation.
    pub life: u32,
    /// What the number is one of.
    pub about: Topic,
    /// Unique among that shard's questions on this topic.
    pub number: u64,
}

/// What a question is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Topic {
    /// A client's credential.
    Call,
    /// A session's tunnel: the question is numbered as the attachment is that wants it.
    Tunnel,
    /// Where another gateway is: it is numbered as the connection is that belongs there.
    Node,
}

/// What a core says to its control plane.
#[derive(Debug)]
pub struct Ask {
    /// Names the question.
    pub ticket: AskTicket,
    /// By the core's clock, microseconds: an answer after this is late.
    pub deadline: Time,
    /// What is asked.
    pub what: Question,
}

/// What is asked under a ticket.
#[derive(Debug)]
pub enum Question {
    /// Whether a credential may call a function, and whose it is.
    Authorise(Arc<Call>),
    /// That a worker be asked for a tunnel. Answered with [`Answer::Queued`], [`Answer::Limited`] or
    /// [`Answer::Unqueued`], and for a session that there is already with
    /// [`Answer::Unregistered`] and [`Answer::Unheard`].
    Submit(Box<Work>),
    /// Whose a session is that this gateway does not know. Answered with [`Answer::Registered`],
    /// [`Answer::Unregistered`] or [`Answer::Failed`].
    Lookup(Uuid),
    /// Where another gateway of the cluster is. Answered with [`Answer::Located`], soon or not at all.
    Locate(Node),
    /// How far the work that was queued under this ticket has come: its wait is over. Answered
    /// with [`Answer::Stands`], soon or not at all.
    Progress {
        /// Whether its function is a streaming one, whose workers are asked until one replies.
        streaming: bool,
    },
    /// Nothing: the worker that was asked for under this ticket is there. There is no answer.
    Settled,
    /// Nothing: nobody waits for the answer under this ticket any more, nor for a worker that was
    /// asked for under it. There is no answer.
    Withdraw,
}

/// What somebody wants to call, octet for octet as the client sent it.
#[derive(PartialEq, Eq)]
pub struct Call {
    /// Credential, function and version, in one piece of memory.
    octets: Box<[u8]>,
    credential: usize,
    /// Where the version begins.
    version: usize,
}

impl Call {
    /// What a client said. `credential` is without its scheme; `version` is empty if the client
    /// named none.
    #[must_use]
    pub fn new(credential: &[u8], function: &[u8], version: &[u8]) -> Self {
        Self {
            octets: [credential, function, version].concat().into(),
            credential: credential.len(),
            version: credential.len() + function.len(),
        }
    }

    /// The credential, without its scheme.
    #[must_use]
    pub fn credential(&self) -> &[u8] {
        &self.octets[..self.credential]
    }

    /// The function.
    #[must_use]
    pub fn function(&self) -> &[u8] {
        &self.octets[self.credential..self.version]
    }

    /// The version; empty if the client named none.
    #[must_use]
    pub fn version(&self) -> &[u8] {
        &self.octets[self.version..]
    }

    /// How many octets all three have.
    #[must_use]
    pub fn size(&self) -> usize {
        self.octets.len()
    }
}

impl fmt::Debug for Call {
    /// Without the credential, which is for no log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (function, version) = (self.function().escape_ascii(), self.version().escape_ascii());
        write!(f, "Call({function} {version})")
    }
}

/// What the control plane says to a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The client may have what it wants.
    Granted(Grant),
    /// It may not.
    Denied(Denied),
    /// The plane has no room for the question: the client may try again later.
    Full,
    /// A worker was asked, or will be: nothing more can be said before it comes.
    Queued,
    /// The tenant has begun too many sessions (contract E5).
    Limited,
    /// The work could not be queued (contract E6): why, for the log.
    Unqueued(String),
    /// A session's worker has registered it.
    Registered(Box<Registration>),
    /// No worker has registered the session.
    Unregistered,
    /// The session is registered, and its worker does not listen.
    Unheard,
    /// The owner of a session cannot be found out now; the text says why.
    Failed(String),
    /// How far queued work has come.
    Stands(Progress),
    /// Where another gateway is.
    Located(Located),
}

/// Where another gateway is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Located {
    /// It takes connections at this address.
    At(SocketAddr),
    /// The gateway is dead: nothing will ever come of what it began.
    Dead,
    /// Nothing is known of the gateway, or it takes no connections.
    Unknown,
}

/// How far work has come that no worker has dialled back for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It waits in its queue: no worker has taken it.
    Queued,
    /// A worker has taken it.
    Taken,
    /// It cannot be found out how far.
    Unknown,
}

/// What a worker registers of a session it holds (contract 6.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// The function, as the worker says it.
    pub function: Arc<str>,
    /// Its version.
    pub version: Arc<str>,
    /// NCA id of the session's first caller.
    pub tenant: Arc<str>,
}

/// What a credential was allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Whose session it will be; the version was picked if the client named none.
    pub owner: Arc<Owner>,
}

/// Why a client was refused (contract E3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    /// gRPC status code.
    pub code: u8,
    /// Why; the client is told it behind the words that every such answer begins with.
    pub text: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_can_be_logged() {
        let what = Question::Authorise(Arc::new(Call::new(b"secret", b"f\n", b"")));
        assert_eq!(format!("{what:?}"), "Authorise(Call(f\\n ))");
    }
}
