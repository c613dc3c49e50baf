//! What a reactor counts.

use super::Stalls;
use crate::transport;

/// What the reactor did, counted since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Loop turns.
    pub turns: u64,
    /// Receives with bytes.
    pub receives: u64,
    /// Sends the kernel took something of.
    pub sends: u64,
    /// Sends that left a rest: the socket was waited for.
    pub blocked_sends: u64,
    /// Receives that found no receive block free.
    pub starved: u64,
    /// Calls of [`super::Core::relieve`].
    pub relieved: u64,
    /// Connections accepted.
    pub accepts: u64,
    /// Accepts that failed for want of descriptors or memory, each followed by a pause.
    pub accept_failures: u64,
    /// Connections closed at once because the core holds its limit of them.
    pub refused: u64,
    /// Sockets open now, those still being closed included.
    pub sockets: u64,
    /// Connections taken up from other cores.
    pub adopts: u64,
    /// Sleeping cores woken by their ring.
    pub rings: u64,
    /// Time asleep, or looking for work.
    pub idle: std::time::Duration,
    /// Turns that took long.
    pub stalls: Stalls,
    /// What listeners with TLS or the PROXY protocol saw.
    pub transport: transport::Tally,
}
