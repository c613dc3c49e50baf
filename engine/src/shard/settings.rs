//! What a shard is given at its start.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use ringway_proto::date::HttpDate;
use ringway_proto::h2;
use ringway_proto::hpack::HeaderLimits;
use ringway_proto::id::Node;
use ringway_proto::time::Time;

use crate::config::{Config, Limits};
use crate::control::port::Plane;
use crate::keys::Keys;

/// A shard's settings: the configuration, and what names this core of this process.
#[derive(Clone, Debug)]
pub struct ShardSettings {
    /// All settings.
    pub config: Arc<Config>,
    /// Which control plane says who may call.
    pub plane: Plane,
    /// Which control plane brings work to workers.
    pub dispatch: Plane,
    /// Logical number of this core.
    pub core: u16,
    /// How many cores there are; they are numbered from 0.
    pub cores: u16,
    /// Names this run of this node's process in ids, in tokens and towards other nodes.
    pub node: Node,
    /// A secret of this process, the same on all its cores. Seals are made with it, and tokens if
    /// there is no cluster.
    pub secret: [u8; 16],
    /// The keys by which the gateways of a cluster know each other; none: there is no cluster.
    pub keys: Option<Arc<Keys>>,
    /// Where this core's random numbers begin.
    pub seed: [u8; 32],
    /// Generation of the first table entries; a shard that takes another's place begins higher.
    pub generation: u32,
    /// Octets kept of each client's connection until its first request is answered, so that it can
    /// be [released](super::Shard::release). 0: none is kept, and none leaves.
    pub unanswered: usize,
    /// What workers dial back to, without a path: `http://host:port`.
    pub advertise: String,
    /// Microseconds of Unix time at this process's [`ringway_proto::time::Time::ZERO`].
    pub unix_micros_at_zero: u64,
    /// For `/info` and `/health`.
    pub version: &'static str,
    /// For `/info`.
    pub commit: &'static str,
}

impl ShardSettings {
    /// The version to report: the program's own, unless another one was configured.
    pub(crate) fn version(&self) -> &str {
        self.config.version.as_deref().unwrap_or(self.version)
    }

    /// A moment in microseconds of Unix time.
    pub(crate) fn unix_micros(&self, at: Time) -> u64 {
        self.unix_micros_at_zero + at.0
    }

    /// The date field of an answer (RFC 9110 §6.6.1).
    pub(crate) fn date(&self, now: Time) -> HttpDate {
        HttpDate::from_unix((self.unix_micros_at_zero + now.0) / 1_000_000)
    }

    /// The core where work and polls of a function version meet: the same one on every core.
    pub(crate) fn dispatch_home(&self, function: &str, version: &str) -> u16 {
        if self.cores <= 1 {
            return self.core;
        }
        let mut hasher = DefaultHasher::new();
        (function, version).hash(&mut hasher);
        (hasher.finish() % u64::from(self.cores)) as u16
    }

    /// Octets of DATA of one connection that may wait here before its connection credit is kept
    /// back too (design 3.10).
    pub(crate) fn buffered_per_connection(&self) -> usize {
        self.config.limits.connection_buffer / 2
    }

    /// The limits of one HTTP/2 connection.
    #[must_use]
    pub fn http2(&self) -> h2::Limits {
        Self::http2_of(&self.config.limits)
    }

    /// Our side of the preface towards a client, as every connection under these limits begins.
    #[must_use]
    pub fn greeting(limits: &Limits) -> Arc<[u8]> {
        let mut greeting = Vec::new();
        h2::Conn::new(h2::Role::Server, Self::http2_of(limits), Time::ZERO).start(&mut greeting);
        greeting.into()
    }

    fn http2_of(limits: &Limits) -> h2::Limits {
        h2::Limits {
            max_concurrent_streams: limits.streams,
            headers: HeaderLimits {
                max_size: limits.header_bytes,
                max_fields: limits.header_fields,
            },
            block_bytes: limits.header_block as u32,
            continuations: limits.continuations as u8,
            glitch_burst: limits.glitch_burst,
            glitch_refill: limits.glitch_refill,
            answers: limits.queued_answers as u32,
            empty_data: limits.empty_data,
            stream_window: limits.stream_window,
            stream_window_max: limits.stream_window_max,
            // Half of the buffer may be on its way while the other half is held: see
            // `buffered_per_connection`.
            connection_window: (limits.connection_buffer / 2) as u32,
            first_settings: limits.handshake,
            header_block: limits.handshake,
            ..h2::Limits::default()
        }
    }
}
