//! What threads send each other: the control thread to a shard, a shard to the control thread, one
//! shard to another.

mod across;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

pub use across::{
    CoreMessage, Find, Found, Join, Leave, MemberState, MovedConnect, MovedTunnel, Parks, Resumed,
    Speaks, Vouch, Vouched,
};

use crate::control::local::Policy;
use crate::control::port::{Answer, AskTicket};
use crate::keys::Keys;
use crate::metrics::ShardMetrics;
use crate::net::{Detached, Stalls};
use crate::timeline::{IdBegin, Part};

/// What does not work: the check's name (contract OB-4) and why.
pub type Ills = Arc<[(&'static str, String)]>;

/// A message to a shard.
#[derive(Debug)]
pub enum ShardMessage {
    /// Answer with [`ControlMessage::Snapshot`] under the same ticket.
    Snapshot {
        /// Names the asker's request.
        ticket: u64,
    },
    /// Answer with [`ControlMessage::Rows`] under the same ticket.
    Rows {
        /// Names the asker's request.
        ticket: u64,
        /// Where the page begins.
        from: Bookmark,
        /// Only sessions whose id begins so.
        wanted: Option<IdBegin>,
    },
    /// Answer with [`ControlMessage::Beat`] under the same ticket: whoever can has turned.
    Beat {
        /// Names the asker's request.
        ticket: u64,
    },
    /// Answer with [`ControlMessage::Timeline`] under the same ticket.
    Timeline {
        /// Names the asker's request.
        ticket: u64,
        /// Which sessions.
        wanted: IdBegin,
    },
    /// Go by these rules from now on. What runs is not touched.
    Policy(Arc<Policy>),
    /// What the gateways of the cluster know each other by from now on.
    Keys(Arc<Keys>),
    /// The control plane's answer to a question of this core.
    Answer {
        /// Names the question.
        ticket: AskTicket,
        /// What it says.
        answer: Answer,
    },
    /// Say on `/health` what does not work now.
    Health(Ills),
    /// Say on `/health` that this gateway is going: a drain follows.
    Unready,
    /// Take no new sessions, send GOAWAY, let open streams finish.
    Drain {
        /// How long open streams may take; then they are reset.
        max: Duration,
    },
    /// End at once.
    Stop,
    /// End this session, wherever its attachments are.
    End {
        /// Its id.
        id: uuid::Uuid,
    },
    /// What another core's shard has to say.
    Core(CoreMessage),
    /// Another core's shard panicked, and a new one has taken its place. What it says after this is
    /// the new one's.
    Restarted {
        /// The shard's core number.
        core: u16,
    },
    /// A client's connection that another, busier core has accepted: nothing was read from it.
    Client {
        /// The connection.
        detached: Detached,
        /// The client.
        peer: SocketAddr,
    },
}

/// A message to the control thread.
#[derive(Debug)]
pub enum ControlMessage {
    /// What a shard looked like when it was asked.
    Snapshot {
        /// The asker's ticket.
        ticket: u64,
        /// The shard's core number.
        core: u16,
        /// Its counters.
        snapshot: Box<Snapshot>,
    },
    /// Some sessions of a shard.
    Rows {
        /// The asker's ticket.
        ticket: u64,
        /// Which, and where the next ones are.
        page: Box<Page>,
    },
    /// Rules that a shard has gone by until now: to be dropped where nobody waits for it.
    Replaced {
        /// The rules.
        policy: Arc<Policy>,
    },
    /// A core turns.
    Beat {
        /// The asker's ticket.
        ticket: u64,
        /// Its client connections.
        clients: usize,
    },
    /// What a shard has recorded of some sessions.
    Timeline {
        /// The asker's ticket.
        ticket: u64,
        /// One for each session.
        parts: Vec<Part>,
    },
    /// A draining shard has closed its last connection, and its core has ended.
    Drained {
        /// The shard's core number.
        core: u16,
    },
    /// A shard panicked; a new one has taken its place.
    Restarted {
        /// The shard's core number.
        core: u16,
    },
}

/// A shard at one instant.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// The core's number.
    pub core: u16,
    /// How long the core has been asleep, or looking out for something to do, since it began.
    pub idle: Duration,
    /// Its turns that took long, since it began.
    pub stalls: Stalls,
    /// Its sockets, those still being closed included.
    pub sockets: u64,
    /// Every counter and gauge.
    pub metrics: ShardMetrics,
}

/// Where a page of a core's sessions begins: at a place of one of its three tables, which are asked
/// for in this order. What moves between them or within one meanwhile is told twice or, if it comes
/// to an earlier place of the same one, not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bookmark {
    /// Attachments that live.
    Live(u32),
    /// What others carried of sessions that live.
    Carried(u32),
    /// Sessions that have ended.
    Closed,
}

impl Bookmark {
    /// The first page.
    pub const BEGIN: Self = Self::Live(0);
}

/// Some of a core's sessions.
#[derive(Debug)]
pub struct Page {
    /// The core's number.
    pub core: u16,
    /// Rows; a session may have several, on several pages and cores.
    pub rows: Vec<SessionRow>,
    /// Where the next page begins, if there is one.
    pub next: Option<Bookmark>,
}

/// A session as `/sessions` shows it. A core makes thousands of them, and text of none.
#[derive(Clone, Debug, Default)]
pub struct SessionRow {
    /// The whole request id; the admin port shortens it where it must.
    pub request_id: uuid::Uuid,
    /// As the client sent it.
    pub function_id: Arc<str>,
    /// The version that was picked.
    pub function_version_id: Arc<str>,
    /// Tenant (NCA id) that owns the session.
    pub tenant: Arc<str>,
    /// `waiting`, `attached`, `active`, `parked` or `closed`.
    pub state: &'static str,
    /// Core of the attachment.
    pub core: u16,
    /// Peer address of the client connection, if that is known.
    pub client_address: Option<SocketAddr>,
    /// Peer address of the worker's tunnel, once there is one.
    pub tunnel: Option<SocketAddr>,
    /// Streams open now.
    pub streams: u32,
    /// Body bytes from the client.
    pub bytes_in: u64,
    /// Body bytes to the client.
    pub bytes_out: u64,
    /// Milliseconds since the session began.
    pub age_ms: u64,
    /// Why it ended, once it has.
    pub close_reason: Option<&'static str>,
    /// When, in microseconds of Unix time.
    pub ended_at: Option<u64>,
}

impl SessionRow {
    /// One row for each session, in the order of the first of its rows: a session may have
    /// attachments on several cores, and the liveliest speaks for it.
    #[must_use]
    pub fn joined(rows: impl IntoIterator<Item = Self>) -> Vec<Self> {
        let mut joined: Vec<Self> = Vec::new();
        let mut places = HashMap::new();
        for row in rows {
            let place = *places.entry(row.request_id).or_insert(joined.len());
            match joined.get_mut(place) {
                Some(first) => first.join(row),
                None => joined.push(row),
            }
        }
        joined
    }

    /// Adds what another one has carried of the same session, and has no part in any more.
    pub fn carry(&mut self, before: &Self) {
        self.bytes_in += before.bytes_in;
        self.bytes_out += before.bytes_out;
    }

    /// What is left of an attachment that has ended while its session goes on: it adds to the rows
    /// that live, and says nothing else.
    #[must_use]
    pub fn carried(&self) -> Self {
        Self { streams: 0, close_reason: None, ended_at: None, ..self.clone() }
    }

    fn join(&mut self, mut other: Self) {
        if other.liveliness() > self.liveliness() {
            std::mem::swap(self, &mut other);
        }
        if other.close_reason.is_none() {
            self.streams += other.streams;
            self.bytes_in += other.bytes_in;
            self.bytes_out += other.bytes_out;
        }
    }

    fn liveliness(&self) -> u8 {
        match self.state {
            "closed" => 0,
            "waiting" => 1,
            "parked" => 2,
            "active" => 4,
            _ => 3,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_on_several_cores_has_one_row() {
        let row = |id: u128, core, state, streams| SessionRow {
            request_id: uuid::Uuid::from_u128(id),
            core,
            state,
            streams,
            close_reason: (state == "closed").then_some("shutdown"),
            ..SessionRow::default()
        };
        let rows = SessionRow::joined([
            row(1, 0, "waiting", 1),
            row(2, 0, "closed", 5),
            row(3, 1, "attached", 0),
            row(1, 1, "active", 2),
            row(1, 2, "attached", 4),
            row(2, 2, "attached", 1),
        ]);
        let told: Vec<_> = rows.iter().map(|row| (row.core, row.state, row.streams)).collect();
        assert_eq!(told, [(1, "active", 7), (2, "attached", 1), (1, "attached", 0)]);
    }
}
