//! A client's connection on its way to who answers its first request: another core, another node, a
//! later process.
//!
//! Until then everything about it follows from what was received and from what our SETTINGS said:
//! the codec has written nothing but its own answers, and its encoder is untouched. So nothing of
//! its state is taken apart. Who takes the connection up reads it again from the preface on, and
//! says nothing of that twice.

use std::fmt;
use std::sync::Arc;

use super::conn::Conn;
use super::window::DEFAULT_WINDOW;
use super::{ConnFault, Event, Limits, Role};
use crate::Sink;
use crate::fields::Fields;
use crate::time::Time;

/// What a client was told of us when its connection began.
///
/// **Units**: octets, but for the streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// SETTINGS_MAX_CONCURRENT_STREAMS.
    pub max_concurrent_streams: u32,
    /// SETTINGS_INITIAL_WINDOW_SIZE.
    pub stream_window: u32,
    /// SETTINGS_MAX_HEADER_LIST_SIZE.
    pub max_header_list: u32,
    /// The connection's window, as the first WINDOW_UPDATE left it.
    pub connection_window: u32,
}

/// A connection of which no request was answered yet.
#[derive(Clone, PartialEq, Eq)]
pub struct Carried {
    /// The settings that the client was sent.
    pub told: Told,
    /// All that was received, from the first octet of the preface on.
    pub received: Vec<u8>,
    /// How many octets were written, our SETTINGS included.
    pub written: u32,
}

impl fmt::Debug for Carried {
    // What was received holds credentials: they are not for any log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Carried")
            .field("told", &self.told)
            .field("received", &self.received.len())
            .field("written", &self.written)
            .finish()
    }
}

/// Why a connection cannot be taken up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotRestored {
    /// What was received breaks a rule.
    Fault(ConnFault),
    /// Less is to be said of what was received than was said: another codec has read it.
    SaysLess,
}

impl fmt::Display for NotRestored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fault(fault) => fault.fmt(f),
            Self::SaysLess => f.write_str("the connection was read by another codec"),
        }
    }
}

impl std::error::Error for NotRestored {}

impl Told {
    /// What these limits say.
    #[must_use]
    pub fn of(limits: &Limits) -> Self {
        Self {
            max_concurrent_streams: limits.max_concurrent_streams,
            stream_window: limits.stream_window,
            max_header_list: u32::try_from(limits.headers.max_size).unwrap_or(u32::MAX),
            connection_window: limits.connection_window.max(DEFAULT_WINDOW),
        }
    }

    /// These limits, changed to the settings that the connection was sent. The same value if they
    /// agree.
    fn within(self, limits: &Arc<Limits>) -> Arc<Limits> {
        if Self::of(limits) == self {
            return limits.clone();
        }
        let mut own = Limits::clone(limits);
        own.max_concurrent_streams = self.max_concurrent_streams;
        own.stream_window = self.stream_window;
        own.stream_window_max = own.stream_window_max.max(self.stream_window);
        own.headers.max_size = self.max_header_list as usize;
        own.connection_window = self.connection_window;
        own.into()
    }
}

impl Carried {
    /// The connection at its begin, which is to read [`Self::received`], and how many octets of what
    /// it writes then were written before.
    ///
    /// # Errors
    /// If its begin alone says more.
    pub fn begin(&self, limits: &Arc<Limits>, now: Time) -> Result<(Conn, usize), NotRestored> {
        let mut conn = Conn::new(Role::Server, self.told.within(limits), now);
        let mut begin = Vec::new();
        conn.start(&mut begin);
        let left = (self.written as usize).checked_sub(begin.len());
        left.map(|left| (conn, left)).ok_or(NotRestored::SaysLess)
    }
}

impl Conn {
    /// The connection as it can be carried, if no request of it was answered and nothing else was
    /// said to the peer of the caller's own. `received` is all that was received, of which so many
    /// octets at the end were not read yet: nothing was said of them. A connection with more than half
    /// its window in it stays: credit may have been given, or held back, for reasons that lie outside.
    #[must_use]
    pub fn carried(&self, received: Vec<u8>, unread: usize) -> Option<Carried> {
        let told = Told::of(&self.limits);
        let paid = received.len() >= told.connection_window as usize / 2;
        if !self.is_unanswered() || paid {
            return None;
        }
        let begin = Carried { told, received, written: 0 };
        let mut said = Vec::new();
        let mut again = Self::new(Role::Server, self.limits.clone(), self.now);
        again.start(&mut said);
        let read = begin.received.len().checked_sub(unread)?;
        again.read_all(&begin.received[..read], &mut said).ok()?;
        let same = again.highest == self.highest && again.streams() == self.streams();
        same.then_some(Carried { written: said.len() as u32, ..begin })
    }

    /// Whether the connection is a client's, and nothing was said on it but what the protocol says
    /// by itself.
    #[must_use]
    pub fn is_unanswered(&self) -> bool {
        self.role == Role::Server && !self.spoken && self.fault.is_none()
    }

    /// The connection as it was, at `now`: the same events follow, and the same is written, as if it
    /// had never been anywhere else. What there is to say of octets that nobody has answered goes to
    /// `out`.
    ///
    /// # Errors
    /// If it cannot be that connection.
    pub fn restored(
        limits: &Arc<Limits>,
        carried: &Carried,
        now: Time,
        out: &mut impl Sink,
    ) -> Result<Self, NotRestored> {
        let (mut conn, left) = carried.begin(limits, now)?;
        let mut said = Vec::new();
        conn.read_all(&carried.received, &mut said).map_err(NotRestored::Fault)?;
        out.put(said.get(left..).ok_or(NotRestored::SaysLess)?);
        Ok(conn)
    }

    fn read_all(&mut self, input: &[u8], said: &mut Vec<u8>) -> Result<(), ConnFault> {
        let (mut pos, mut fields) = (0, Fields::new());
        while self.next(input, &mut pos, &mut fields, said, self.now)? != Event::More {}
        Ok(())
    }
}
