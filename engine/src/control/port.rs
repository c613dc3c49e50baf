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

use std::fmt;
use std::sync::Arc;

use ringway_proto::time::Time;

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
    /// Unique among that shard's questions.
    pub number: u64,
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
    Authorise(Box<Call>),
    /// Nothing: nobody waits for the answer under this ticket any more. There is none to this.
    Withdraw,
}

/// What somebody wants to call, octet for octet as the client sent it.
#[derive(Clone, PartialEq, Eq)]
pub struct Call {
    /// The credential, without its scheme.
    pub credential: Box<[u8]>,
    /// The function.
    pub function: Box<[u8]>,
    /// The version; empty if the client named none.
    pub version: Box<[u8]>,
}

impl fmt::Debug for Call {
    /// Without the credential, which is for no log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (function, version) = (self.function.escape_ascii(), self.version.escape_ascii());
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
}

/// Who sessions belong to, as far as they have it in common. All of them share one.
#[derive(Debug, PartialEq, Eq)]
pub struct Owner {
    /// Who calls.
    pub tenant: Arc<str>,
    /// Canonical function id.
    pub function: Arc<str>,
    /// Canonical version id.
    pub version: Arc<str>,
}

/// What a credential was allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Whose session it will be; the version was picked if the client named none.
    pub owner: Arc<Owner>,
    /// Whether the function is of the streaming kind.
    pub streaming: bool,
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
        let call = Call {
            credential: b"secret".as_slice().into(),
            function: b"f\n".as_slice().into(),
            version: b"".as_slice().into(),
        };
        let what = Question::Authorise(Box::new(call));
        assert_eq!(format!("{what:?}"), "Authorise(Call(f\\n ))");
    }
}
