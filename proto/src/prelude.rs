//! What one gateway says to another before it brings it a connection (design 3.22).
//!
//! The owner speaks first: [`CHALLENGE_LENGTH`] random octets. The prelude follows, and behind it a MAC
//! over both, so that nothing can be said again and no clocks are compared. The owner answers with one
//! octet, a [`Verdict`]; until then nothing else is sent. Who signs and how is the engine's; here is
//! only what the octets mean.
//!
//! **Shape**: `RWGY`, the version, the [`Matter`]'s kind, the length of the rest in two octets; then the
//! sender's node, the owner's node (number and incarnation, two octets each), and what the kind wants.
//! All numbers are in network order.

use std::fmt;
use std::net::SocketAddr;

use crate::h2::Told;
use crate::id::Node;

/// Random octets that the owner says first.
pub const CHALLENGE_LENGTH: usize = 32;
/// Octets of the MAC behind the prelude: HMAC-SHA-256, whole.
pub const MAC_LENGTH: usize = 32;
/// What a prelude begins with.
pub const MAGIC: &[u8; 4] = b"RWGY";
/// What is written. Another shape gets the next number.
pub const VERSION: u8 = 1;
/// The oldest that is read: gateways of two versions may stand side by side for a while.
pub const OLDEST: u8 = 1;
/// Octets before the rest, whose length they say.
pub const HEAD_LENGTH: usize = 8;
/// Longest rest that is read, octets.
pub const MOST_REST: usize = 256;

const NODES: usize = 8;
const OPENING: usize = 30;
const TOLD: usize = 20;

/// Why octets are no prelude.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PreludeFault {
    /// The octets are of a version that is not read here.
    Version(u8),
    /// The octets are something else, or impossible.
    Garbled,
}

impl fmt::Display for PreludeFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => write!(
                f,
                "it is of version {version}, and versions {OLDEST} to {VERSION} are read here"
            ),
            Self::Garbled => f.write_str("it is no prelude of a gateway"),
        }
    }
}

impl std::error::Error for PreludeFault {}

/// What the owner says to a prelude: one octet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Verdict {
    /// The connection is the owner's from here on.
    Taken = 1,
    /// The MAC is of another secret, or of other octets.
    Forged = 2,
    /// The version is not known there.
    Version = 3,
    /// The octets are no prelude.
    Garbled = 4,
    /// The prelude is for another node.
    Elsewhere = 5,
    /// There is no room, or the owner leaves.
    Full = 6,
    /// The prelude is for an earlier run of the process there, which is dead.
    Dead = 7,
}

impl Verdict {
    /// What this octet says.
    #[must_use]
    pub fn of(octet: u8) -> Option<Self> {
        let all = [
            Self::Taken,
            Self::Forged,
            Self::Version,
            Self::Garbled,
            Self::Elsewhere,
            Self::Full,
            Self::Dead,
        ];
        all.into_iter().find(|verdict| *verdict as u8 == octet)
    }
}

/// A connection's begin, at the node that it came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    /// The worker's or client's address.
    pub peer: SocketAddr,
    /// How long ago it came, in microseconds: the nodes' clocks are not compared.
    pub age: u64,
    /// How many octets were received of it so far. They follow behind the verdict.
    pub received: u32,
}

/// What an HTTP/2 client was sent by the node that it dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// The values of our SETTINGS.
    pub told: Told,
    /// Octets that were written to it, our SETTINGS included.
    pub written: u32,
}

/// What is brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Matter {
    /// A worker's connection, whose CONNECT shows a token of the owner's.
    Callback(Opening),
    /// A client's connection, whose first request names a session of the owner's; in HTTP/2 with what
    /// the client has heard.
    Client(Opening, Option<Heard>),
    /// Nothing: the sender leaves, and with it the connections that it has brought.
    Leave,
}

impl Matter {
    fn kind(self) -> u8 {
        match self {
            Self::Callback(_) => 1,
            Self::Client(_, None) => 2,
            Self::Client(_, Some(_)) => 3,
            Self::Leave => 4,
        }
    }
}

/// The whole of it, but for the MAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prelude {
    /// The node that brings the connection.
    pub from: Node,
    /// The node that owns the connection.
    pub to: Node,
    /// What is brought.
    pub matter: Matter,
}

impl Prelude {
    /// The octets that are signed and sent.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut rest = Vec::with_capacity(NODES + OPENING + TOLD);
        for node in [self.from, self.to] {
            rest.extend(node.number().to_be_bytes());
            rest.extend(node.incarnation().to_be_bytes());
        }
        match self.matter {
            Matter::Callback(opening) | Matter::Client(opening, None) => {
                put_opening(opening, &mut rest);
            }
            Matter::Client(opening, Some(Heard { told, written })) => {
                put_opening(opening, &mut rest);
                for number in [
                    told.max_concurrent_streams,
                    told.stream_window,
                    told.max_header_list,
                    told.connection_window,
                    written,
                ] {
                    rest.extend(number.to_be_bytes());
                }
            }
            Matter::Leave => {}
        }
        let mut bytes = Vec::with_capacity(HEAD_LENGTH + rest.len() + MAC_LENGTH);
        bytes.extend(MAGIC);
        bytes.extend([VERSION, self.matter.kind()]);
        bytes.extend((rest.len() as u16).to_be_bytes());
        bytes.extend(rest);
        bytes
    }

    /// Octets of the prelude that begins so, without its MAC; none while too few are here.
    ///
    /// # Errors
    /// The octets do not begin like a prelude.
    pub fn length(begin: &[u8]) -> Result<Option<usize>, PreludeFault> {
        let known = begin.len().min(MAGIC.len());
        if begin[..known] != MAGIC[..known] {
            return Err(PreludeFault::Garbled);
        }
        if let Some(version) = begin.get(4).filter(|version| !(OLDEST..=VERSION).contains(*version))
        {
            return Err(PreludeFault::Version(*version));
        }
        let Some(&[_, _, _, _, _, _, high, low]) = begin.first_chunk::<HEAD_LENGTH>() else {
            return Ok(None);
        };
        let rest = usize::from(u16::from_be_bytes([high, low]));
        if rest > MOST_REST { Err(PreludeFault::Garbled) } else { Ok(Some(HEAD_LENGTH + rest)) }
    }

    /// Reads the octets of one prelude, without its MAC.
    ///
    /// # Errors
    /// The octets are no prelude.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, PreludeFault> {
        if Self::length(bytes)? != Some(bytes.len()) {
            return Err(PreludeFault::Garbled);
        }
        let kind = bytes[5];
        let mut rest = Rest(&bytes[HEAD_LENGTH..]);
        let read = (|| {
            let (from, to) = (rest.node()?, rest.node()?);
            let matter = match kind {
                1 => Matter::Callback(rest.opening()?),
                2 => Matter::Client(rest.opening()?, None),
                3 => Matter::Client(rest.opening()?, Some(rest.heard()?)),
                4 => Matter::Leave,
                _ => return None,
            };
            rest.0.is_empty().then_some(Self { from, to, matter })
        })();
        read.ok_or(PreludeFault::Garbled)
    }
}

fn put_opening(opening: Opening, into: &mut Vec<u8>) {
    let ip = match opening.peer {
        SocketAddr::V4(peer) => peer.ip().to_ipv6_mapped().octets(),
        SocketAddr::V6(peer) => peer.ip().octets(),
    };
    into.extend(ip);
    into.extend(opening.peer.port().to_be_bytes());
    into.extend(opening.age.to_be_bytes());
    into.extend(opening.received.to_be_bytes());
}

/// What is not read yet.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn node(&mut self) -> Option<Node> {
        let number = u16::from_be_bytes(self.take()?);
        Node::new(number, u16::from_be_bytes(self.take()?))
    }

    fn number(&mut self) -> Option<u32> {
        self.take().map(u32::from_be_bytes)
    }

    fn opening(&mut self) -> Option<Opening> {
        let ip = self.take::<16>()?;
        let mut peer = SocketAddr::from((ip, u16::from_be_bytes(self.take()?)));
        peer.set_ip(peer.ip().to_canonical());
        let age = u64::from_be_bytes(self.take()?);
        Some(Opening { peer, age, received: self.number()? })
    }

    fn heard(&mut self) -> Option<Heard> {
        let told = Told {
            max_concurrent_streams: self.number()?,
            stream_window: self.window()?,
            max_header_list: self.number()?,
            connection_window: self.window()?,
        };
        Some(Heard { told, written: self.number()? })
    }

    /// RFC 9113 §6.9.1.
    fn window(&mut self) -> Option<u32> {
        self.number().filter(|window| *window <= 0x7fff_ffff)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u16) -> Node {
        Node::new(number, 0xabcd).unwrap()
    }

    fn all() -> Vec<Prelude> {
        let opening = |peer: &str, received| Opening {
            peer: peer.parse().unwrap(),
            age: 1_234_567,
            received,
        };
        let told = Told {
            max_concurrent_streams: 100,
            stream_window: 65_536,
            max_header_list: u32::MAX,
            connection_window: 0x7fff_ffff,
        };
        let matters = [
            Matter::Callback(opening("192.0.2.1:443", 300)),
            Matter::Client(opening("[2001:db8::1]:1", 65_536), None),
            Matter::Client(opening("[2001:db8::1]:1", 7), Some(Heard { told, written: 40 })),
            Matter::Leave,
        ];
        let prelude = |matter| Prelude { from: node(4095), to: node(0), matter };
        matters.map(prelude).to_vec()
    }

    #[test]
    fn what_is_written_is_read() {
        for prelude in all() {
            let bytes = prelude.to_bytes();
            assert_eq!(Prelude::from_bytes(&bytes), Ok(prelude));
            assert!(bytes.len() <= HEAD_LENGTH + MOST_REST);
            for end in 0..bytes.len() {
                let length = if end < HEAD_LENGTH { None } else { Some(bytes.len()) };
                assert_eq!(Prelude::length(&bytes[..end]), Ok(length));
                assert_eq!(Prelude::from_bytes(&bytes[..end]), Err(PreludeFault::Garbled));
            }
            let long = [&bytes[..], b"x"].concat();
            assert_eq!(Prelude::from_bytes(&long), Err(PreludeFault::Garbled));
        }
    }

    #[test]
    fn whatever_is_changed_is_another_prelude_or_none() {
        for prelude in all() {
            let bytes = prelude.to_bytes();
            for bit in 0..bytes.len() * 8 {
                let mut other = bytes.clone();
                other[bit / 8] ^= 1 << (bit % 8);
                assert_ne!(Prelude::from_bytes(&other), Ok(prelude), "bit {bit}");
            }
        }
    }

    #[test]
    fn another_version_is_told_from_nonsense() {
        let mut bytes = all()[0].to_bytes();
        bytes[4] = VERSION + 1;
        assert_eq!(Prelude::from_bytes(&bytes), Err(PreludeFault::Version(VERSION + 1)));
        bytes[4] = OLDEST - 1;
        assert_eq!(Prelude::length(&bytes[..5]), Err(PreludeFault::Version(OLDEST - 1)));
        assert_eq!(Prelude::length(b"GET / HTTP/1.1"), Err(PreludeFault::Garbled));
        let huge = [&MAGIC[..], &[VERSION, 1, 0xff, 0xff]].concat();
        assert_eq!(Prelude::length(&huge), Err(PreludeFault::Garbled));
        assert!(PreludeFault::Version(9).to_string().contains("version 9"));
    }

    #[test]
    fn an_octet_is_one_verdict() {
        for octet in 0..=255 {
            let verdict = Verdict::of(octet);
            assert_eq!(
                verdict.map(|verdict| verdict as u8),
                (1..=7).contains(&octet).then_some(octet)
            );
        }
    }
}
