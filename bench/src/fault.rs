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
    /// The peer reset a stream that was to last as long as its connection, with this code.
    Reset(u32),
    /// An HTTP/1.1 head or a WebSocket frame is not what it must be.
    Http(&'static str),
    /// An upgrade was answered with this status.
    Refused(u16),
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
            Self::Goaway(code) => write!(f, "GOAWAY {}", Code(*code)),
            Self::Reset(code) => write!(f, "RST_STREAM {}", Code(*code)),
            Self::Http(what) => write!(f, "HTTP/1.1: {what}"),
            Self::Refused(status) => write!(f, "an upgrade was answered with {status}"),
            Self::Tls(what) => write!(f, "TLS: {what}"),
        }
    }
}

impl std::error::Error for Fault {}

/// The names of RFC 9113 §7, by code.
const CODES: [&str; 14] = [
    "NO_ERROR",
    "PROTOCOL_ERROR",
    "INTERNAL_ERROR",
    "FLOW_CONTROL_ERROR",
    "SETTINGS_TIMEOUT",
    "STREAM_CLOSED",
    "FRAME_SIZE_ERROR",
    "REFUSED_STREAM",
    "CANCEL",
    "COMPRESSION_ERROR",
    "CONNECT_ERROR",
    "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY",
    "HTTP_1_1_REQUIRED",
];

/// An error code, by its name if it has one.
struct Code(u32);

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match CODES.get(self.0 as usize) {
            Some(name) => f.write_str(name),
            None => write!(f, "with code {}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_told_by_name() {
        assert_eq!(Fault::Goaway(11).to_string(), "GOAWAY ENHANCE_YOUR_CALM");
        assert_eq!(Fault::Reset(8).to_string(), "RST_STREAM CANCEL");
        assert_eq!(Fault::Goaway(14).to_string(), "GOAWAY with code 14");
    }
}
