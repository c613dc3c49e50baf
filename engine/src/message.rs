//! The messages between threads: from the control thread to a shard, from a shard to the control
//! thread, and from one shard to another.

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
        /// Only sessions whose id begins with this.
        wanted: Option<IdBegin>,
    },
    /// Answer with [`ControlMessage::Beat`] under the same ticket, which shows that the core turns.
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
    /// Use these rules from now on. Running sessions are not touched.
    Policy(Arc<Policy>),
    /// The keys by which the gateways of the cluster know each other from now on.
    Keys(Arc<Keys>),
    /// The control plane's answer to a question of this core.
    Answer {
        /// Names the question.
        ticket: AskTicket,
        /// The answer.
        answer: Answer,
    },
    /// Show on `/health` what does not work now.
    Health(Ills),
    /// Show on `/health` that this gateway leaves: a drain follows.
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
        /// The session's id.
        id: uuid::Uuid,
    },
    /// A message from another core's shard.
    Core(CoreMessage),
    /// Another core's shard panicked, and a new one has taken its place. Later messages of that
    /// core are the new shard's.
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
    /// A shard's state when it was asked.
    Snapshot {
        /// The asker's ticket.
        ticket: u64,
        /// The shard's core number.
        core: u16,
        /// The shard's counters.
        snapshot: Box<Snapshot>,
    },
    /// Some sessions of a shard.
    Rows {
        /// The asker's ticket.
        ticket: u64,
        /// The sessions, and where the next page begins.
        page: Box<Page>,
    },
    /// Rules that a shard has used until now. The control thread drops them, where nobody waits for
    /// that.
    Replaced {
        /// The rules.
        policy: Arc<Policy>,
    },
    /// A sign that a core turns.
    Beat {
        /// The asker's ticket.
        ticket: u64,
        /// How many client connections the core has.
        clients: usize,
    },
    /// The events that a shard has recorded of some sessions.
    Timeline {
        /// The asker's ticket.
        ticket: u64,
        /// One for each session.
        parts: Vec<Part>,
    },
    /// A shard's drain is over: its last connection is closed, and its core has ended.
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
    /// How long the core has slept, or looked for work, since it began.
    pub idle: Duration,
    /// The core's long turns since it began.
    pub stalls: Stalls,
    /// The core's sockets, with those that are still being closed.
    pub sockets: u64,
    /// Every counter and gauge.
    pub metrics: ShardMetrics,
}

/// Where a page of a core's sessions begins: at a place of one of its three tables, which are shown
/// in this order. A session that moves to a later place meanwhile is shown twice. One that moves to
/// an earlier place of the same table is not shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bookmark {
    /// Attachments that live.
    Live(u32),
    /// What ended attachments have carried of sessions that live.
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

/// A session as `/sessions` shows it. A core makes thousands of rows, so it makes no text of them.
#[derive(Clone, Debug, Default)]
pub struct SessionRow {
    /// The full request id; the admin port shortens it where it has to.
    pub request_id: uuid::Uuid,
    /// The function id as the client sent it.
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
    /// Why the session ended, once it has.
    pub close_reason: Option<&'static str>,
    /// When the session ended, in microseconds of Unix time.
    pub ended_at: Option<u64>,
}

impl SessionRow {
    /// Joins the rows to one for each session, in the order of its first row. A session may have
    /// attachments on several cores; the row shows the liveliest.
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

    /// Adds what an attachment that has ended has carried of the same session.
    pub fn carry(&mut self, before: &Self) {
        self.bytes_in += before.bytes_in;
        self.bytes_out += before.bytes_out;
    }

    /// The row that is left of an attachment that has ended while its session goes on. It only adds
    /// to the counts of the rows that live.
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
