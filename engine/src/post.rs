//! What threads send each other: the control thread to a shard, a shard to the control thread.

use std::net::SocketAddr;
use std::time::Duration;

use crate::border::Parcel;
use crate::metrics::ShardMetrics;

/// A message to a shard.
#[derive(Debug)]
pub enum ShardPost {
    /// Answer with [`ControlPost::Snapshot`] under the same ticket.
    Snapshot {
        /// Names the asker's request.
        ticket: u64,
    },
    /// Say on `/health` that this gateway is going: a drain follows.
    Unready,
    /// Take no new sessions, send GOAWAY, let open streams finish.
    Drain {
        /// How long open streams may take; then they are reset.
        max: Duration,
    },
    /// End at once.
    Stop,
    /// What another core's shard has to say.
    Core(CorePost),
    /// Another core's shard panicked, and a new one has taken its place. What it says after this is
    /// the new one's.
    Restarted {
        /// The shard's core number.
        core: u16,
    },
    /// A client's connection that another, busier core has accepted: nothing was read from it.
    Client {
        /// The connection.
        parcel: Parcel,
        /// The client.
        peer: SocketAddr,
    },
}

/// A message of one core's shard to another's.
#[derive(Debug)]
pub enum CorePost {}

/// A message to the control thread.
#[derive(Debug)]
pub enum ControlPost {
    /// What a shard looked like when it was asked.
    Snapshot {
        /// The asker's ticket.
        ticket: u64,
        /// The shard's core number.
        core: u16,
        /// Counters and sessions.
        snapshot: Box<Snapshot>,
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
    /// Its sockets, those still being closed included.
    pub sockets: u64,
    /// Every counter and gauge.
    pub metrics: ShardMetrics,
    /// One row a session, live ones first, then those closed recently.
    pub sessions: Vec<SessionRow>,
}

/// A session as `/sessions` shows it.
#[derive(Clone, Debug, Default)]
pub struct SessionRow {
    /// The whole request id; the admin port shortens it where it must.
    pub request_id: uuid::Uuid,
    /// As the client sent it.
    pub function_id: String,
    /// The version that was picked.
    pub function_version_id: String,
    /// Tenant (NCA id) that owns the session.
    pub tenant: String,
    /// `waiting`, `attached`, `active`, `parked` or `closed`.
    pub state: &'static str,
    /// Core of the attachment.
    pub core: u16,
    /// Peer address of the client connection.
    pub client_address: String,
    /// Peer address of the worker's tunnel, empty before there is one.
    pub tunnel: String,
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
}
