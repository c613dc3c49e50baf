//! The port to a control plane: a core's questions, and the plane's answers.
//!
//! A core asks under a ticket and goes on with other things. Of each question one answer counts:
//! the first one that comes before the deadline, while somebody waits for it. A later or second
//! answer is counted and dropped.
//!
//! A question that ends without an answer is withdrawn. The withdrawal may cross the answer. It
//! then tells the plane that a grant under this ticket was not used. If a core's shard begins anew,
//! nobody is left to withdraw its questions. The plane forgets these by the life in their tickets.
//!
//! Submitted work lives on after its answer. It ends when its worker is there
//! ([`Question::Settled`]) or when nobody wants it any more ([`Question::Withdraw`]). Each piece of
//! work that was not refused gets one of the two.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use ringway_proto::id::Node;
use ringway_proto::time::Time;
use uuid::Uuid;

use super::work::Work;

pub use super::owner::{Kind, Owner, Rate};

/// Which kind of control plane a core asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plane {
    /// The local plane of the configuration file. It answers within the same turn.
    Local,
    /// A remote plane, which takes time. [`crate::shard::Shard::take_asks`] gives the questions for
    /// it.
    Remote,
}

/// Names one question. No later question has the same ticket, even after the core's shard has begun
/// anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AskTicket {
    /// The core that asks.
    pub core: u16,
    /// Which of the core's successive shards asks: the first generation of its tables.
    pub life: u32,
    /// What the number counts.
    pub about: Topic,
    /// Unique among that shard's questions on this topic.
    pub number: u64,
}

/// What a question is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Topic {
    /// A client's credential.
    Call,
    /// A session's tunnel. The number is that of the attachment that wants it.
    Tunnel,
    /// Where another gateway is. The number is that of the connection that belongs there.
    Node,
}

/// A core's message to its control plane.
#[derive(Debug)]
pub struct Ask {
    /// Names the question.
    pub ticket: AskTicket,
    /// When an answer is too late, by the core's clock.
    pub deadline: Time,
    /// What is asked.
    pub what: Question,
}

/// What is asked under a ticket.
#[derive(Debug)]
pub enum Question {
    /// Whether a credential may call a function, and whose it is.
    Authorise(Arc<Call>),
    /// Asks a worker for a tunnel. Answered with [`Answer::Queued`], [`Answer::Limited`] or
    /// [`Answer::Unqueued`]. For a session that exists already the answer may also be
    /// [`Answer::Unregistered`] or [`Answer::Unheard`].
    Submit(Box<Work>),
    /// The owner of a session that this gateway does not know. Answered with
    /// [`Answer::Registered`], [`Answer::Unregistered`] or [`Answer::Failed`].
    Lookup(Uuid),
    /// Where another gateway of the cluster is. Answered with [`Answer::Located`], soon or not at all.
    Locate(Node),
    /// How far the work has come that was queued under this ticket. Asked when the wait for a
    /// worker is over. Answered with [`Answer::Stands`], soon or not at all.
    Progress {
        /// Whether the function is a streaming one, whose workers are asked until one replies.
        streaming: bool,
    },
    /// No question: the worker that was asked for under this ticket is there. There is no answer.
    Settled,
    /// No question: nobody waits any more for the answer under this ticket, or for the worker that
    /// was asked for under it. There is no answer.
    Withdraw,
}

/// A credential, and the function and version to call, octet for octet as the client sent them.
#[derive(PartialEq, Eq)]
pub struct Call {
    /// Credential, function and version, in one piece of memory.
    octets: Box<[u8]>,
    credential: usize,
    /// Where the version begins.
    version: usize,
}

impl Call {
    /// A call. `credential` is without its scheme; `version` is empty if the client named none.
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
    /// Leaves the credential out, which must be in no log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (function, version) = (self.function().escape_ascii(), self.version().escape_ascii());
        write!(f, "Call({function} {version})")
    }
}

/// The control plane's answer to a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The client may have what it wants.
    Granted(Grant),
    /// The client may not have it.
    Denied(Denied),
    /// The plane has no room for the question: the client may try again later.
    Full,
    /// A worker was asked, or will be. The next news is its CONNECT.
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
    /// The gateway takes connections at this address.
    At(SocketAddr),
    /// The gateway is dead. Its sessions and tokens are lost.
    Dead,
    /// Nothing is known of the gateway, or it takes no connections.
    Unknown,
}

/// How far work has come for which no worker has dialled back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The work waits in its queue: no worker has taken it.
    Queued,
    /// A worker has taken it.
    Taken,
    /// The plane cannot find out.
    Unknown,
}

/// What a worker registers of a session it holds (contract 6.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// The function, as the worker says it.
    pub function: Arc<str>,
    /// The function's version.
    pub version: Arc<str>,
    /// NCA id of the session's first caller.
    pub tenant: Arc<str>,
}

/// What a credential was allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The owner of the session to be. If the client named no version, one was picked.
    pub owner: Arc<Owner>,
}

/// Why a client was refused (contract E3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    /// gRPC status code.
    pub code: u8,
    /// The reason. The client's answer has it behind the words with which every such answer begins.
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
