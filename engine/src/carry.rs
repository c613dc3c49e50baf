//! Values that can be turned into bytes and back, for another node or a later process.
//!
//! **Shape** of an envelope: a version octet, an octet for the kind of its content, the length of
//! the rest in four octets, and that many octets of protobuf. It is read strictly. An envelope that
//! is cut off, too long, or of another version or kind is refused, and so is an impossible value.

use std::fmt;
use std::net::SocketAddr;

use prost::Message;
use ringway_proto::h2;
use ringway_proto::time::Time;

use crate::net::Detached;

/// The version of the shape. A changed shape gets another number.
const VERSION: u8 = 1;

/// Octets before the message.
const HEAD: usize = 6;

/// What an envelope holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A session's entry in its home's directory.
    Session = 1,
    /// What a credential was granted on a client's connection.
    Pin = 2,
    /// A client's connection without an answered request.
    Client = 3,
}

/// Why bytes cannot be turned back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// There are fewer octets than there have to be.
    Short {
        /// How many octets are needed, as far as that is known.
        needed: usize,
        /// How many octets there are.
        there: usize,
    },
    /// The envelope is of another version.
    Version(u8),
    /// The envelope holds another kind.
    Kind(u8),
    /// This many octets follow the envelope.
    Trailing(usize),
    /// The message is no protobuf of its kind.
    Garbled,
    /// This part of the message is missing or impossible.
    Part(&'static str),
    /// There is such a value here already, or nothing it could belong to.
    Unwanted,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short { needed, there } => write!(f, "{there} octets of at least {needed}"),
            Self::Version(version) => {
                write!(f, "written as version {version}, and this program reads version {VERSION}")
            }
            Self::Kind(kind) => write!(f, "something else was expected than kind {kind}"),
            Self::Trailing(more) => write!(f, "{more} octets too many"),
            Self::Garbled => f.write_str("not a message of its kind"),
            Self::Part(part) => write!(f, "its {part} cannot be"),
            Self::Unwanted => f.write_str("it is here already, or has no place here"),
        }
    }
}

impl std::error::Error for Unreadable {}

/// A message in its envelope.
pub(crate) fn pack(kind: Kind, message: &impl Message) -> Vec<u8> {
    let len = message.encoded_len();
    let mut bytes = Vec::with_capacity(HEAD + len);
    bytes.extend([VERSION, kind as u8]);
    bytes.extend((len as u32).to_be_bytes());
    bytes.extend(message.encode_to_vec());
    bytes
}

/// The message of an envelope.
///
/// # Errors
/// Says what is wrong with the bytes.
pub(crate) fn unpack<M: Message + Default>(kind: Kind, bytes: &[u8]) -> Result<M, Unreadable> {
    let there = bytes.len();
    if let Some(version) = bytes.first().filter(|version| **version != VERSION) {
        return Err(Unreadable::Version(*version));
    }
    if let Some(other) = bytes.get(1).filter(|other| **other != kind as u8) {
        return Err(Unreadable::Kind(*other));
    }
    let Some(&[_, _, a, b, c, d]) = bytes.first_chunk::<HEAD>() else {
        return Err(Unreadable::Short { needed: HEAD, there });
    };
    let needed = HEAD + u32::from_be_bytes([a, b, c, d]) as usize;
    let message = bytes.get(HEAD..needed).ok_or(Unreadable::Short { needed, there })?;
    if there > needed {
        return Err(Unreadable::Trailing(there - needed));
    }
    M::decode(message).map_err(|_| Unreadable::Garbled)
}

/// A client's connection that was released before its first answer. Dropping it closes it.
#[derive(Debug)]
pub struct Released {
    /// The socket.
    pub detached: Detached,
    /// Everything else about the connection.
    pub client: Client,
}

/// What is known of a client's connection without an answered request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// The client.
    pub peer: SocketAddr,
    /// When the connection was accepted.
    pub opened: Time,
    /// The bytes and the protocol of the connection so far.
    pub said: Said,
}

/// What was received and sent on a client's connection without an answered request.
#[derive(Clone, PartialEq, Eq)]
pub enum Said {
    /// The client was sent nothing; these bytes were received.
    Heard(Vec<u8>),
    /// HTTP/2, in which both sides have sent their preface.
    Http2(h2::Carried),
}

impl fmt::Debug for Said {
    // The received bytes hold credentials, which must be in no log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Heard(bytes) => write!(f, "Heard({} octets)", bytes.len()),
            Self::Http2(carried) => carried.fmt(f),
        }
    }
}

impl Said {
    /// All received bytes.
    #[must_use]
    pub fn received(&self) -> &[u8] {
        match self {
            Self::Heard(received) | Self::Http2(h2::Carried { received, .. }) => received,
        }
    }

    pub(crate) fn received_mut(&mut self) -> &mut Vec<u8> {
        match self {
            Self::Heard(received) | Self::Http2(h2::Carried { received, .. }) => received,
        }
    }
}

#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
struct ClientMessage {
    #[prost(string, tag = "1")]
    peer: String,
    #[prost(uint64, tag = "2")]
    opened: u64,
    #[prost(bytes = "vec", tag = "3")]
    received: Vec<u8>,
    #[prost(message, optional, tag = "4")]
    http2: Option<Http2Message>,
}

impl fmt::Debug for ClientMessage {
    // Leaves the received bytes out, as for `Said`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientMessage").field("peer", &self.peer).finish_non_exhaustive()
    }
}

#[derive(Clone, PartialEq, Message)]
struct Http2Message {
    #[prost(uint32, tag = "1")]
    max_concurrent_streams: u32,
    #[prost(uint32, tag = "2")]
    stream_window: u32,
    #[prost(uint32, tag = "3")]
    max_header_list: u32,
    #[prost(uint32, tag = "4")]
    connection_window: u32,
    #[prost(uint32, tag = "5")]
    written: u32,
}

impl Client {
    /// The value as bytes. `zero` is the Unix time, in microseconds, of this process's
    /// [`Time::ZERO`].
    #[must_use]
    pub fn to_bytes(&self, zero: u64) -> Vec<u8> {
        let http2 = match &self.said {
            Said::Heard(_) => None,
            Said::Http2(carried) => Some(Http2Message {
                max_concurrent_streams: carried.told.max_concurrent_streams,
                stream_window: carried.told.stream_window,
                max_header_list: carried.told.max_header_list,
                connection_window: carried.told.connection_window,
                written: carried.written,
            }),
        };
        let received = self.said.received().to_vec();
        let (peer, opened) = (self.peer.to_string(), unix_of(self.opened, zero));
        pack(Kind::Client, &ClientMessage { peer, opened, received, http2 })
    }

    /// Reads the bytes of [`Self::to_bytes`], of this or another process. `zero` is that of this
    /// process.
    ///
    /// # Errors
    /// Says what is wrong with the bytes.
    pub fn from_bytes(bytes: &[u8], zero: u64) -> Result<Self, Unreadable> {
        let message: ClientMessage = unpack(Kind::Client, bytes)?;
        let ClientMessage { peer, opened, received, http2 } = message;
        let said = match http2 {
            None => Said::Heard(received),
            Some(of) => {
                // RFC 9113 §6.9.1.
                let most = 0x7fff_ffff;
                if of.stream_window > most || of.connection_window > most {
                    return Err(Unreadable::Part("window"));
                }
                let told = h2::Told {
                    max_concurrent_streams: of.max_concurrent_streams,
                    stream_window: of.stream_window,
                    max_header_list: of.max_header_list,
                    connection_window: of.connection_window,
                };
                Said::Http2(h2::Carried { told, received, written: of.written })
            }
        };
        let peer = peer.parse().map_err(|_| Unreadable::Part("peer"))?;
        Ok(Self { peer, opened: time_of(opened, zero), said })
    }
}

/// An instant in microseconds of Unix time.
pub(crate) fn unix_of(at: Time, zero: u64) -> u64 {
    zero.saturating_add(at.0)
}

/// The counterpart of [`unix_of`]. Instants before this process's begin become its begin.
pub(crate) fn time_of(unix: u64, zero: u64) -> Time {
    Time(unix.saturating_sub(zero))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clients() -> [Client; 2] {
        let told = h2::Told::of(&h2::Limits::default());
        let carried = h2::Carried { told, received: b"PRI * secret".to_vec(), written: 40 };
        [Said::Heard(b"GET / secret".to_vec()), Said::Http2(carried)].map(|said| Client {
            peer: "[2001:db8::7]:4711".parse().unwrap(),
            opened: Time(77),
            said,
        })
    }

    #[test]
    fn a_client_is_the_same_again_and_later_processes_know_when_it_came() {
        for client in clients() {
            let bytes = client.to_bytes(1000);
            assert_eq!(Client::from_bytes(&bytes, 1000), Ok(client.clone()));
            let later = Client::from_bytes(&bytes, 1070).map(|client| client.opened);
            assert_eq!(later, Ok(Time(7)));
            let much_later = Client::from_bytes(&bytes, 5000).map(|client| client.opened);
            assert_eq!(much_later, Ok(Time::ZERO));
            assert!(!format!("{client:?}").contains("secret"));
        }
    }

    #[test]
    fn what_is_cut_off_too_long_or_something_else_is_refused_and_says_so() {
        for client in clients() {
            let bytes = client.to_bytes(0);
            for end in 0..bytes.len() {
                let refused = Client::from_bytes(&bytes[..end], 0);
                assert!(
                    matches!(refused, Err(Unreadable::Short { there, needed }) if there == end && needed > end),
                    "{refused:?}"
                );
            }
            let long = [&bytes[..], b"xy"].concat();
            assert_eq!(Client::from_bytes(&long, 0), Err(Unreadable::Trailing(2)));
            let mut other = bytes.clone();
            other[0] = 2;
            assert_eq!(Client::from_bytes(&other, 0), Err(Unreadable::Version(2)));
            (other[0], other[1]) = (1, Kind::Pin as u8);
            assert_eq!(Client::from_bytes(&other, 0), Err(Unreadable::Kind(2)));
            for at in 0..bytes.len() * 8 {
                let mut broken = bytes.clone();
                broken[at / 8] ^= 1 << (at % 8);
                // The broken bytes may still be a valid client's. They are read or refused, but
                // nothing panics.
                if let Err(why) = Client::from_bytes(&broken, 0) {
                    assert!(!why.to_string().is_empty());
                }
            }
        }
    }

    #[test]
    fn a_value_that_cannot_be_is_refused() {
        let peer = || "192.0.2.1:1".to_owned();
        let window = Http2Message { stream_window: 1 << 31, ..Http2Message::default() };
        let wide = ClientMessage { peer: peer(), http2: Some(window), ..ClientMessage::default() };
        let of_nobody = ClientMessage { peer: "nobody".into(), ..ClientMessage::default() };
        for (message, part) in [(wide, "window"), (of_nobody, "peer")] {
            let bytes = pack(Kind::Client, &message);
            assert_eq!(Client::from_bytes(&bytes, 0), Err(Unreadable::Part(part)));
        }
        let garbled = [&[VERSION, Kind::Client as u8, 0, 0, 0, 1][..], &[0xff]].concat();
        assert_eq!(Client::from_bytes(&garbled, 0), Err(Unreadable::Garbled));
    }
}
