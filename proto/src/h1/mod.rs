//! One HTTP/1 connection's rules, for both roles, without I/O (RFC 9112).
//!
//! [`Conn`] is fed with received bytes and answers, one [`Event`] at a time, with what the relay
//! must know; what it writes goes into the [`Sink`](crate::Sink) it is given. Payload is never
//! copied: events point into the caller's input, and [`Conn::data_head`] says what has to stand
//! before a payload on the other hop.
//!
//! The pieces it is made of: request heads ([`head`]), bodies ([`body`]), what a worker's CONNECT
//! must carry ([`connect`]). Not here: what a request means ([`crate::route`]), which fields end
//! at this hop ([`connection_names`] tells those that `Connection` does), time.
//!
//! Neighbours in the walk: the shard calls [`Conn::next`] on one hop with what its reactor
//! received and writes what comes out with the other hop's [`Conn::request`] or
//! [`Conn::response`], [`Conn::data_head`] and [`Conn::finish`].

pub mod body;
mod conn;
pub mod connect;
pub mod head;
mod response;
mod send;
mod target;
mod upgrade;
mod write;
mod writing;

pub use conn::Conn;
pub use head::connection_names;
pub use send::{ChunkHead, is_te_trailers};
pub use upgrade::{H2C_ACCEPTED, asks_upgrade, ends_going_away, h2c_settings};
pub use write::{CONTINUE, reason_of, write_answer, write_fault, write_response, write_text};

pub use crate::h2::HeadKind;

use head::{HeadFault, HeadLimits};
use std::fmt;

/// Which side of the connection we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The client hop: reads requests, writes responses.
    Server,
    /// The tunnel: writes requests, reads responses.
    Client,
}

/// How much of everything a peer gets. Those of chunks are fixed: [`body::CHUNK_LINE_MAX`] and
/// [`body::CHUNK_EXTENSION_EXCESS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The limits of a request's or response's head.
    pub head: HeadLimits,
    /// The limits of a trailer section.
    pub trailers: HeadLimits,
    /// 1xx heads before a response.
    pub informational: u8,
}

impl Default for Limits {
    fn default() -> Self {
        Self { head: HeadLimits::CLIENT, trailers: HeadLimits::CLIENT, informational: 16 }
    }
}

/// What the relay must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The input is used up; or, if some is left, it belongs to what comes after this message:
    /// the caller keeps it until [`Conn::next_message`] or [`Conn::raw`].
    More,
    /// A head is in the caller's list: `:method`, `:path` and, from Host, `:authority`, or
    /// `:status`; then the fields as sent, names in lower case, those of this hop among them.
    Head {
        /// What it is; never trailers. A 101 is a [`HeadKind::Response`].
        kind: HeadKind,
        /// The message has no body; no further event ends it.
        end_stream: bool,
        /// The request asks for another protocol ([`asks_upgrade`]), or this is the 101 that
        /// grants the one asked for.
        upgrade: bool,
    },
    /// A piece of the body.
    Data {
        /// Where in the input it begins.
        start: usize,
        /// How long it is; never 0.
        len: usize,
        /// The body ends with it; no further event does.
        end_stream: bool,
    },
    /// The trailers are in the caller's list, without those that come too late (RFC 9110 §6.5.1);
    /// they end the message.
    Trailers,
    /// The body has ended with the data before.
    End,
}

/// Why a connection cannot go on: it is to be closed, behind an answer if one can be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The peer's head or framing is broken, or over a limit.
    Broken(HeadFault),
    /// The peer closed within a message, or before its response.
    Truncated,
    /// The worker sent something that no request asked for (response splitting).
    Unasked,
    /// The worker changed to another protocol than was asked for (CL-47).
    WrongUpgrade,
    /// The worker sent more 1xx heads than [`Limits::informational`].
    TooManyInformational,
    /// What was to be sent has more or fewer bytes than its `content-length`, or has a body where
    /// none may be.
    WrongLength,
    /// The head to be sent has no method, path or status that could stand in HTTP/1.
    Unwritable,
}

impl Fault {
    /// The status the client is answered with, if it has none yet; `role` is the role of the
    /// connection that the fault is of.
    #[must_use]
    pub fn status(self, role: Role) -> u16 {
        match (self, role) {
            (Self::Broken(fault), Role::Server) => fault.status(),
            (Self::Truncated, Role::Server) => 400,
            _ => 502,
        }
    }

    /// For people; nothing of it is the peer's.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Broken(fault) => fault.text(),
            Self::Truncated => "connection ended within a message",
            Self::Unasked => "bytes that no request asked for",
            Self::WrongUpgrade => "changed to a protocol that was not asked for",
            Self::TooManyInformational => "too many informational responses",
            Self::WrongLength => "body is not as long as its content-length",
            Self::Unwritable => "head cannot be written as HTTP/1",
        }
    }
}

impl From<HeadFault> for Fault {
    fn from(fault: HeadFault) -> Self {
        Self::Broken(fault)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl std::error::Error for Fault {}
