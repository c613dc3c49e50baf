//! What ends a connection of the generator or the endpoint.

use std::fmt;

use crate::verify::Said;

/// Why a connection cannot go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The client preface of RFC 9113 §3.4 did not come.
    Preface,
    /// A frame is larger than this side allows or has a length its type forbids.
    FrameSize,
    /// A frame came where its stream or its header block does not allow it.
    Sequence,
    /// A header block exceeds [`crate::wire::BLOCK_LIMIT`].
    BlockTooLong,
    /// A window grew past 2^31-1.
    Window,
    /// The peer's header block cannot be decoded.
    Compression,
    /// The peer changed its header table size after the first settings; the fixed blocks cannot
    /// follow that.
    TableResized,
    /// All stream ids of the connection are used.
    StreamIds,
    /// Too many calls of the connection failed for the run to mean anything; the last said this.
    Hopeless(Said),
    /// The peer sent GOAWAY with this code.
    Goaway(u32),
    /// TLS failed, or did not agree on HTTP/2.
    Tls(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Preface => f.write_str("the peer did not speak HTTP/2"),
            Self::FrameSize => f.write_str("a frame has a length it must not have"),
            Self::Sequence => f.write_str("a frame came out of order"),
            Self::BlockTooLong => f.write_str("a header block is too long"),
            Self::Window => f.write_str("a flow-control window overflowed"),
            Self::Compression => f.write_str("a header block cannot be decoded"),
            Self::TableResized => f.write_str("the header table was resized in mid connection"),
            Self::StreamIds => f.write_str("the connection has no stream ids left"),
            Self::Hopeless(said) => write!(f, "too many calls failed, the last {said}"),
            Self::Goaway(code) => write!(f, "the peer went away with code {code}"),
            Self::Tls(what) => write!(f, "TLS: {what}"),
        }
    }
}

impl std::error::Error for Fault {}
