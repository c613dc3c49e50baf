//! What a reactor is made with.

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
    /// The same, for as long as the traffic makes it worth while: not at all when it is thin.
    Auto,
    /// Never sleep: lowest latency, a whole CPU.
    Always,
}

/// How TCP finds out that a peer is gone. Times are whole seconds, as the kernel counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepAlive {
    /// Without data for so long, the first probe is sent.
    pub idle: Duration,
    /// Time between probes.
    pub interval: Duration,
    /// Probes without an answer until the connection is lost.
    pub probes: u32,
    /// The connection is lost when nothing of what was sent is acknowledged for so long, when the
    /// peer takes nothing for so long, or, whatever their number, when probes are not answered.
    pub user_timeout: Duration,
}

impl KeepAlive {
    /// Between gateways, which stand close together: what was relayed over a link that is gone ends
    /// within 15 s.
    pub const BETWEEN_GATEWAYS: Self = Self {
        idle: Duration::from_secs(5),
        interval: Duration::from_secs(2),
        probes: 4,
        user_timeout: Duration::from_secs(12),
    };

    /// What the kernel takes (tcp(7)).
    fn is_possible(self) -> bool {
        let possible =
            |time: Duration| (1..=32_767).contains(&time.as_secs()) && time.subsec_nanos() == 0;
        possible(self.idle)
            && possible(self.interval)
            && (1..=127).contains(&self.probes)
            && (1..=i32::MAX as u128).contains(&self.user_timeout.as_millis())
    }
}

/// What a reactor is made with.
#[derive(Clone, Debug)]
pub struct Options {
    /// The core's number, for the log.
    pub core: u16,
    /// What drives it.
    pub backend: Backend,
    /// The CPU its thread is pinned to.
    pub pin: Option<usize>,
    /// What it does when there is nothing to do.
    pub busy_poll: BusyPoll,
    /// Receive blocks in all. Memory is touched only as far as it is needed.
    pub blocks: usize,
    /// How many of them the kernel has at a time; the others take the place of those that wait in
    /// an output queue. It bounds what one turn receives, so it decides how long others wait beside
    /// bulk, and whether bytes are still in the cache when they are sent: few are better than many.
    pub lent: usize,
    /// Bytes of a receive block.
    pub block_bytes: usize,
    /// Bytes of one receive at most; 0: as a block has room.
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
    /// How many of them clients may have, with those that are on their way out.
    pub clients: usize,
    /// How many of them may be anything else, with those that are on their way out.
    pub others: usize,
    /// How many of the others the worker listener may let in: the rest is kept for dials.
    pub workers: usize,
    /// Of every connection, accepted or dialled.
    pub keep_alive: KeepAlive,
    /// Which listeners are not this process's alone: somebody who goes on listening when it has
    /// ended has handed them down. They were made blocking by whoever took them.
    pub inherited: Vec<Listener>,
    /// In place of its [`KeepAlive::user_timeout`], of clients: how long one that vanished is waited
    /// for decides how long it holds what is behind the gateway.
    pub client_timeout: Duration,
    /// What connections have to pass before the core sees their bytes.
    pub entrances: Entrances,
    /// How long that may take them.
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
            // Go's (contract LN-9).
            keep_alive: KeepAlive {
                idle: Duration::from_secs(15),
                interval: Duration::from_secs(15),
                probes: 9,
                // As long as the probes take: data on its way is given no less time.
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
    /// Of what a listener lets in.
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
