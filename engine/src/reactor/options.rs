//! The options of a reactor.

use std::time::Duration;

use super::fault::SetupError;
use crate::metrics::Backend;
use crate::net::Listener;
use crate::transport::Entrances;

/// What a core does when there is nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BusyPoll {
    /// Sleep at once.
    Never,
    /// Look for work this many microseconds after the last, then sleep.
    Micros(u64),
    /// Look for work as long as the traffic makes it worth while: not at all if there is little.
    Auto,
    /// Never sleep: lowest latency, a whole CPU.
    Always,
}

/// How TCP finds out that a peer is gone. Times are whole seconds, as the kernel counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepAlive {
    /// The first probe is sent after this time without data.
    pub idle: Duration,
    /// Time between probes.
    pub interval: Duration,
    /// Probes without an answer until the connection is lost.
    pub probes: u32,
    /// The connection is lost when for this time nothing sent was acknowledged, when for this time
    /// the peer has taken nothing, or when for this time probes were not answered, however many.
    pub user_timeout: Duration,
}

impl KeepAlive {
    /// Between gateways, which are close to each other: a relay over a lost link ends within 15 s.
    pub const BETWEEN_GATEWAYS: Self = Self {
        idle: Duration::from_secs(5),
        interval: Duration::from_secs(2),
        probes: 4,
        user_timeout: Duration::from_secs(12),
    };

    /// Whether the kernel accepts these values (tcp(7)).
    fn is_possible(self) -> bool {
        let possible =
            |time: Duration| (1..=32_767).contains(&time.as_secs()) && time.subsec_nanos() == 0;
        possible(self.idle)
            && possible(self.interval)
            && (1..=127).contains(&self.probes)
            && (1..=i32::MAX as u128).contains(&self.user_timeout.as_millis())
    }
}

/// The options of a reactor.
#[derive(Clone, Debug)]
pub struct Options {
    /// The core's number, for the log.
    pub core: u16,
    /// Whether io_uring or epoll drives the reactor.
    pub backend: Backend,
    /// The CPU its thread is pinned to.
    pub pin: Option<usize>,
    /// What the core does when there is nothing to do.
    pub busy_poll: BusyPoll,
    /// Receive blocks in all. Memory is touched only as far as it is needed.
    pub blocks: usize,
    /// How many of the blocks the kernel has at a time. The others replace those that wait in an
    /// output queue. This bounds what one turn receives. So it decides how long small messages wait
    /// beside bulk, and whether bytes are still in the cache when they are sent: few are better
    /// than many.
    pub lent: usize,
    /// Bytes of a receive block.
    pub block_bytes: usize,
    /// Bytes of one receive at most; 0: as many as a block has room for.
    pub receive_cap: usize,
    /// Bytes that one socket gets per turn at most, so that bulk leaves turns and blocks for
    /// others; 0: no limit. Kernels that know neither cap nor limit are used without.
    pub receive_limit: usize,
    /// Bytes of one send at most, so that control frames get in between bulk.
    pub send_bytes: usize,
    /// Entries of the submission queue: a power of two.
    pub entries: u32,
    /// Sockets at most, accepted and dialled; accepting beyond it closes at once.
    pub connections: usize,
    /// How many of the sockets may be clients', with those that are being closed.
    pub clients: usize,
    /// How many of the sockets may be of any other kind, with those that are being closed.
    pub others: usize,
    /// How many of the others the worker listener may let in: the rest is kept for dials.
    pub workers: usize,
    /// The keep-alive of every connection, accepted or dialled.
    pub keep_alive: KeepAlive,
    /// Listeners that do not belong to this process alone: a service manager has handed them down,
    /// and goes on listening when this process has ended. Whoever took them has made them blocking.
    pub inherited: Vec<Listener>,
    /// The [`KeepAlive::user_timeout`] of clients. A client that vanished holds its worker for this
    /// time.
    pub client_timeout: Duration,
    /// What the listeners demand of connections before the core sees their bytes.
    pub entrances: Entrances,
    /// How long a connection may take for that.
    pub entrance_time: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            core: 0,
            backend: Backend::Ring,
            pin: None,
            busy_poll: BusyPoll::Never,
            blocks: 128,
            lent: 4,
            block_bytes: 64 * 1024,
            receive_cap: 64 * 1024,
            receive_limit: 128 * 1024,
            send_bytes: 256 * 1024,
            entries: 1024,
            connections: 64 * 1024,
            clients: 64 * 1024,
            others: 64 * 1024,
            workers: 64 * 1024,
            // The values of Go (contract LN-9).
            keep_alive: KeepAlive {
                idle: Duration::from_secs(15),
                interval: Duration::from_secs(15),
                probes: 9,
                // As long as all probes take, so that data on its way has no less time.
                user_timeout: Duration::from_secs(15 + 9 * 15),
            },
            inherited: Vec::new(),
            client_timeout: Duration::from_secs(60),
            entrances: Entrances::default(),
            entrance_time: Duration::from_secs(10),
        }
    }
}

impl Options {
    /// The keep-alive of a listener's connections.
    pub(super) fn keep_alive_of(&self, listener: Listener) -> KeepAlive {
        match listener {
            Listener::Client => KeepAlive { user_timeout: self.client_timeout, ..self.keep_alive },
            Listener::Worker => self.keep_alive,
            Listener::Cluster => KeepAlive::BETWEEN_GATEWAYS,
        }
    }

    pub(super) fn check(&self) -> Result<(), SetupError> {
        let wrong = |why| Err(SetupError::Options(why));
        match self {
            _ if !(1..=1 << 15).contains(&self.blocks) => wrong("blocks: 1 to 32768"),
            _ if self.lent == 0 => wrong("lent: at least 1"),
            _ if !(1..=1 << 30).contains(&self.block_bytes) => wrong("block_bytes: 1 to 1 GiB"),
            _ if self.receive_cap > 1 << 30 || self.receive_limit > 1 << 30 => {
                wrong("receive_cap, receive_limit: at most 1 GiB")
            }
            _ if !(1..=1 << 30).contains(&self.send_bytes) => wrong("send_bytes: 1 to 1 GiB"),
            _ if !self.entries.is_power_of_two() || !(8..=8192).contains(&self.entries) => {
                wrong("entries: a power of two from 8 to 8192")
            }
            _ if self.connections == 0 => wrong("connections: at least 1"),
            _ if self.clients == 0 => wrong("clients: at least 1"),
            _ if self.workers == 0 => wrong("workers: at least 1"),
            _ if self.others < self.workers => wrong("others: no fewer than workers"),
            _ if !self.keep_alive.is_possible()
                || !self.keep_alive_of(Listener::Client).is_possible() =>
            {
                wrong("keep_alive: 1 to 32767 whole seconds, 1 to 127 probes, 1 ms to 24 days")
            }
            _ => Ok(()),
        }
    }
}
