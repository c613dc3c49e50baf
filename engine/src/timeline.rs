//! The timelines' words: what happens to a session, small enough that it can be kept of
//! every one. `shard/edges/timelines.rs` keeps it, the admin port puts the cores' parts together
//! ([`Timeline`]) and says in one line what they mean (`verdict.rs`).

mod verdict;
mod words;

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use ringway_proto::time::Time;
use uuid::Uuid;

use crate::conn::End;
use crate::control::local::SessionFacts;
use crate::metrics::{CloseCode, CloseReason, ResumeWay};

/// One thing that happened to a session. Only edges: nothing that a frame does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The client's connection was accepted.
    Accepted {
        /// The client.
        client: Address,
    },
    /// The client's credential was found to be good for the function.
    Authorised,
    /// The session's home, another core, let the client have it.
    Found {
        /// The other core.
        home: u16,
        /// How long it took.
        took: Duration,
    },
    /// The session's worker had registered it.
    LookedUp {
        /// How long it took.
        took: Duration,
    },
    /// A tunnel is wanted.
    Asked(Ask),
    /// The control plane elsewhere has queued the work.
    Queued {
        /// How long after the request that was.
        took: Duration,
    },
    /// A worker's poll was answered with the work.
    HandedOut,
    /// No worker came, and this was known of the work then.
    Stood {
        /// Whether a worker had taken it.
        taken: bool,
    },
    /// The worker's CONNECT came to another core and moved here.
    Moved {
        /// The other core.
        from: u16,
    },
    /// A CONNECT showed the session's token and another request id.
    Refused,
    /// The worker's CONNECT was let in.
    Connected {
        /// The worker.
        worker: Address,
        /// How old its token was.
        age: Micros,
    },
    /// The function's server was dialled.
    Dialled {
        /// The server.
        server: Address,
        /// How long it took.
        took: Micros,
    },
    /// The first byte of the first request went to the tunnel.
    RequestSent,
    /// The first byte of the first response came back.
    AnswerBegun,
    /// The worker said GOAWAY.
    Goaway,
    /// A peer took nothing for a while although something waited for it, and takes it again.
    Stalled {
        /// The peer's address.
        side: Party,
        /// For how long.
        took: Duration,
    },
    /// The client's connection ended.
    ClientEnded {
        /// In which way.
        end: End,
        /// Whether the client had streams open.
        busy: bool,
    },
    /// The tunnel is kept for when a client comes back.
    Parked,
    /// A client came back to the session.
    Resumed {
        /// How the client got its tunnel.
        way: ResumeWay,
        /// How long its request waited for that.
        took: Duration,
    },
    /// The tunnel went to another core, where its client is.
    TunnelLeft {
        /// The other core.
        to: u16,
    },
    /// The tunnel came from another core.
    TunnelMoved {
        /// The other core.
        from: u16,
    },
    /// A spare tunnel was asked for, which may replace the present one.
    SpareAsked,
    /// The spare is there.
    SpareAttached,
    /// The spare will not come: the attachment that asked has gone, or no worker took the work.
    SpareFailed {
        /// Why, for people.
        detail: &'static str,
    },
    /// The spare has replaced a tunnel that takes no more streams.
    Replaced,
    /// The parked tunnel's worker is needed by a new session.
    Yielded,
    /// An attachment ended, and its tunnel if it had one.
    Closed {
        /// Who ended the attachment.
        side: Party,
        /// The first cause, as in the metrics.
        reason: CloseReason,
        /// What the transport said, as in the metrics.
        code: CloseCode,
        /// Our timer, if it was one.
        timer: Timer,
        /// What happened, for people.
        detail: &'static str,
    },
}

/// Why a tunnel is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// A new session: any worker may have it.
    New,
    /// A session that goes on: its worker is asked.
    Again,
    /// A session that goes on: its worker is asked for a spare tunnel.
    Spare,
    /// A function without a worker: its server is dialled.
    Dial,
}

/// Who did something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Party {
    /// The client.
    Client,
    /// The worker, or the function's server.
    Worker,
    /// We.
    Gateway,
}

/// Timers that close, by the names of contract OB-2; the first is none.
const TIMERS: [&str; 4] = ["", "worker_cache_ttl", "transport_idle", "park_window"];

/// A timer of ours that closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timer(u8);

impl Timer {
    /// None.
    pub const NONE: Self = Self(0);

    /// The timer of this name, or no timer.
    #[must_use]
    pub fn named(name: &str) -> Self {
        let at = TIMERS.iter().position(|timer| *timer == name);
        debug_assert!(at.is_some(), "a timer that is not in the list: {name}");
        Self(at.unwrap_or(0) as u8)
    }

    /// The timer's name. Empty for no timer.
    #[must_use]
    pub fn name(self) -> &'static str {
        TIMERS.get(usize::from(self.0)).copied().unwrap_or_default()
    }
}

/// A duration in microseconds, 71 minutes at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Micros(u32);

impl From<Duration> for Micros {
    fn from(time: Duration) -> Self {
        Self(u32::try_from(time.as_micros()).unwrap_or(u32::MAX))
    }
}

impl From<Micros> for Duration {
    fn from(time: Micros) -> Self {
        Self::from_micros(time.0.into())
    }
}

/// A socket address in 18 octets.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Address {
    ip: [u8; 16],
    port: u16,
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        let ip = match address {
            SocketAddr::V4(v4) => v4.ip().to_ipv6_mapped(),
            SocketAddr::V6(v6) => *v6.ip(),
        };
        Self { ip: ip.octets(), port: address.port() }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ip = Ipv6Addr::from(self.ip).to_canonical();
        write!(f, "{}", SocketAddr::new(ip, self.port))
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// An event and its time, as it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// When the event happened. Every core's clock has the same origin.
    pub at: Time,
    /// The event.
    pub event: Event,
}

/// What one event may take: there are many.
const _: () = assert!(size_of::<Entry>() <= 32);

/// Round trips of PINGs to the worker: counted, not kept one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pings {
    /// How many were answered.
    pub count: u32,
    /// The quickest.
    pub least: Micros,
    /// The latest.
    pub last: Micros,
    /// The slowest.
    pub most: Micros,
    /// When the latest was answered.
    pub at: Time,
}

impl Pings {
    /// With the first of them.
    #[must_use]
    pub fn first(took: Duration, at: Time) -> Self {
        let took = took.into();
        Self { count: 1, least: took, last: took, most: took, at }
    }

    /// One more.
    pub fn add(&mut self, took: Duration, at: Time) {
        let took = took.into();
        self.count = self.count.saturating_add(1);
        self.least = self.least.min(took);
        self.most = self.most.max(took);
        (self.last, self.at) = (took, at);
    }
}

/// The begin of a request id: enough of it to find a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdBegin {
    value: u128,
    mask: u128,
}

impl IdBegin {
    /// Fewest hexadecimal digits that name a session.
    pub const DIGITS: usize = 8;

    /// Reads hexadecimal digits with or without hyphens; none if they are too few or too many.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut value = 0_u128;
        let mut bits = 0;
        for digit in text.chars().filter(|c| *c != '-') {
            value = value.checked_mul(16)? | u128::from(digit.to_digit(16)?);
            bits += 4;
        }
        if !(4 * Self::DIGITS as u32..=128).contains(&bits) {
            return None;
        }
        let below = 128 - bits;
        Some(Self { value: value << below, mask: u128::MAX << below })
    }

    /// Whether the id begins so.
    #[must_use]
    pub fn matches(self, id: Uuid) -> bool {
        id.as_u128() & self.mask == self.value
    }

    /// The whole id, if it is one.
    #[must_use]
    pub fn whole(self) -> Option<Uuid> {
        (self.mask == u128::MAX).then(|| Uuid::from_u128(self.value))
    }
}

/// How long the parts of a session's start took, one after the other but for the claim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Start {
    /// From the first request until its work was queued; by the gateway's own queue that is at once.
    pub queue: Option<Duration>,
    /// From then until a worker had the work, where that is known: NATS says it to nobody.
    pub claim: Option<Duration>,
    /// From when it was queued until the worker dialled back, the claim included.
    pub dial: Option<Duration>,
    /// From then until the first byte of an answer.
    pub first_byte: Option<Duration>,
}

/// What one core has of a session.
#[derive(Clone, Debug)]
pub struct Part {
    /// The core.
    pub core: u16,
    /// The session.
    pub id: Uuid,
    /// The session's owner; none if this core had no attachment of the session.
    pub facts: Option<SessionFacts>,
    /// What happened, in order.
    pub entries: Vec<Entry>,
    /// PINGs to its worker.
    pub pings: Option<Pings>,
    /// Events that found no room, between the first and the latest.
    pub lost: u32,
    /// The core's time when it answered.
    pub now: Time,
    /// Unix time at [`Time::ZERO`], in microseconds.
    pub unix_micros_at_zero: u64,
}

/// A session's life as all its cores saw it.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    /// By time; each with the core that says so.
    pub events: Vec<(u16, Entry)>,
    /// PINGs to the worker, by core.
    pub pings: Vec<(u16, Pings)>,
    /// Events that found no room.
    pub lost: u32,
    now: Time,
    unix_micros_at_zero: u64,
}

impl Timeline {
    /// Puts the parts of one session together.
    #[must_use]
    pub fn of(parts: &[Part]) -> Self {
        let mut all = Self::default();
        for part in parts {
            all.events.extend(part.entries.iter().map(|entry| (part.core, *entry)));
            all.pings.extend(part.pings.map(|pings| (part.core, pings)));
            all.lost = all.lost.saturating_add(part.lost);
            all.now = all.now.max(part.now);
            all.unix_micros_at_zero = part.unix_micros_at_zero;
        }
        all.events.sort_by_key(|(core, entry)| (entry.at, *core));
        all
    }

    /// How long the start of the session took, by its parts: those that it has come to.
    #[must_use]
    pub fn start(&self) -> Start {
        let mut start = Start::default();
        let (mut asked, mut there) = (None, None);
        for (_, Entry { at, event }) in &self.events {
            let since = |from: Option<Time>| from.map(|from| at.since(from));
            match event {
                Event::Asked(Ask::New | Ask::Dial) if asked.is_none() => asked = Some(*at),
                Event::Queued { took } => {
                    start.queue = Some(*took);
                    asked = Some(*at);
                }
                Event::HandedOut if start.claim.is_none() => start.claim = since(asked),
                Event::Connected { .. } | Event::Dialled { .. } if there.is_none() => {
                    there = Some(*at);
                    start.dial = since(asked);
                }
                Event::AnswerBegun if start.first_byte.is_none() => start.first_byte = since(there),
                _ => {}
            }
        }
        start
    }

    /// The reason of the latest end, as the metrics name it.
    #[must_use]
    pub fn close_reason(&self) -> Option<&'static str> {
        self.events.iter().rev().find_map(|(_, entry)| match entry.event {
            Event::Closed { reason, .. } => Some(reason.label()),
            _ => None,
        })
    }

    /// A time as Unix time in microseconds.
    #[must_use]
    pub fn unix_micros(&self, at: Time) -> u64 {
        self.unix_micros_at_zero + at.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_known_by_its_begin() {
        let id: Uuid = "6370809d-e385-8000-8069-c00135678634".parse().expect("an id");
        for begin in ["6370809d", "6370809D-e385", "6370809de3858000", &id.to_string()] {
            assert!(IdBegin::parse(begin).is_some_and(|begin| begin.matches(id)), "{begin}");
        }
        assert!(!IdBegin::parse("6370809d-e386").expect("digits").matches(id));
        assert_eq!(IdBegin::parse(&id.to_string()).and_then(IdBegin::whole), Some(id));
        assert_eq!(IdBegin::parse("6370809d").and_then(IdBegin::whole), None);
        for bad in ["", "6370809", "6370809x", "é370809dd", &format!("{id}0")] {
            assert_eq!(IdBegin::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_address_is_shown_as_it_came() {
        for text in ["192.0.2.1:80", "[2001:db8::1]:443", "127.0.0.1:0"] {
            let address: SocketAddr = text.parse().expect("an address");
            assert_eq!(Address::from(address).to_string(), text);
        }
    }
}
