//! Frames as bytes: the nine-byte head, the kinds and flags, and a writer for every frame that has
//! no payload of a stream's own. No state, no rules: those are in [`super::Conn`].
//!
//! Source: RFC 9113 §4 and §6.

use std::fmt;

use crate::Sink;

/// Bytes of a frame head.
pub const HEAD_BYTES: usize = 9;

/// What a client sends before its first frame (RFC 9113 §3.4).
pub const MAGIC: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The largest stream id, and the largest window.
pub const MAX_31: u32 = (1 << 31) - 1;

/// The frame size every peer must accept (RFC 9113 §4.2).
pub const MIN_MAX_FRAME: u32 = 16_384;

/// The largest frame size that may be allowed.
pub const MAX_MAX_FRAME: u32 = (1 << 24) - 1;

/// Flag bits. ACK and END_STREAM share a bit, as the RFC has it.
pub mod flag {
    /// SETTINGS and PING: the answer to one of ours.
    pub const ACK: u8 = 0x1;
    /// DATA and HEADERS: the last frame of this direction.
    pub const END_STREAM: u8 = 0x1;
    /// HEADERS, CONTINUATION, PUSH_PROMISE: the header block ends here.
    pub const END_HEADERS: u8 = 0x4;
    /// DATA, HEADERS, PUSH_PROMISE: a length octet and that much padding.
    pub const PADDED: u8 = 0x8;
    /// HEADERS: five octets of (deprecated) priority.
    pub const PRIORITY: u8 = 0x20;
}

/// Frame kinds of RFC 9113 §6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each variant is the frame it is named after")]
pub enum Kind {
    Data,
    Headers,
    Priority,
    RstStream,
    Settings,
    PushPromise,
    Ping,
    Goaway,
    WindowUpdate,
    Continuation,
    /// Any other: to be ignored, but not inside a header block (RFC 9113 §5.5).
    Unknown(u8),
}

impl Kind {
    /// The kind with this number.
    #[must_use]
    pub fn of(number: u8) -> Self {
        match number {
            0 => Self::Data,
            1 => Self::Headers,
            2 => Self::Priority,
            3 => Self::RstStream,
            4 => Self::Settings,
            5 => Self::PushPromise,
            6 => Self::Ping,
            7 => Self::Goaway,
            8 => Self::WindowUpdate,
            9 => Self::Continuation,
            other => Self::Unknown(other),
        }
    }

    /// The number of the kind.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Data => 0,
            Self::Headers => 1,
            Self::Priority => 2,
            Self::RstStream => 3,
            Self::Settings => 4,
            Self::PushPromise => 5,
            Self::Ping => 6,
            Self::Goaway => 7,
            Self::WindowUpdate => 8,
            Self::Continuation => 9,
            Self::Unknown(number) => number,
        }
    }
}

/// A frame's first nine bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHead {
    /// Bytes of payload; at most 2^24 - 1.
    pub len: u32,
    /// What the frame is.
    pub kind: Kind,
    /// See [`flag`]; bits without a meaning for the kind are to be ignored.
    pub flags: u8,
    /// The stream, 0 for the connection; the reserved bit is dropped.
    pub stream: u32,
}

impl FrameHead {
    /// Reads a head.
    #[must_use]
    pub fn parse(bytes: [u8; HEAD_BYTES]) -> Self {
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = bytes;
        Self {
            len: u32::from_be_bytes([0, l0, l1, l2]),
            kind: Kind::of(kind),
            flags,
            stream: u32::from_be_bytes([s0, s1, s2, s3]) & MAX_31,
        }
    }

    /// The head as bytes.
    #[must_use]
    pub fn bytes(self) -> [u8; HEAD_BYTES] {
        debug_assert!(self.len <= MAX_MAX_FRAME, "a frame's length has 24 bits");
        let [_, l0, l1, l2] = self.len.to_be_bytes();
        let [s0, s1, s2, s3] = self.stream.to_be_bytes();
        [l0, l1, l2, self.kind.number(), self.flags, s0, s1, s2, s3]
    }

    /// Whether all bits of `flag` are set.
    #[must_use]
    pub fn has(self, flag: u8) -> bool {
        self.flags & flag == flag
    }
}

/// Why a stream was reset or a connection ended (RFC 9113 §7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each variant is the code it is named after")]
pub enum ErrorCode {
    NoError,
    ProtocolError,
    InternalError,
    FlowControlError,
    SettingsTimeout,
    StreamClosed,
    FrameSizeError,
    RefusedStream,
    Cancel,
    CompressionError,
    ConnectError,
    EnhanceYourCalm,
    InadequateSecurity,
    Http11Required,
    /// A code the RFC does not name: as INTERNAL_ERROR, but passed on as it is.
    Other(u32),
}

impl ErrorCode {
    /// The code with this number.
    #[must_use]
    pub fn of(number: u32) -> Self {
        match number {
            0x0 => Self::NoError,
            0x1 => Self::ProtocolError,
            0x2 => Self::InternalError,
            0x3 => Self::FlowControlError,
            0x4 => Self::SettingsTimeout,
            0x5 => Self::StreamClosed,
            0x6 => Self::FrameSizeError,
            0x7 => Self::RefusedStream,
            0x8 => Self::Cancel,
            0x9 => Self::CompressionError,
            0xa => Self::ConnectError,
            0xb => Self::EnhanceYourCalm,
            0xc => Self::InadequateSecurity,
            0xd => Self::Http11Required,
            other => Self::Other(other),
        }
    }

    /// The number of the code.
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            Self::NoError => 0x0,
            Self::ProtocolError => 0x1,
            Self::InternalError => 0x2,
            Self::FlowControlError => 0x3,
            Self::SettingsTimeout => 0x4,
            Self::StreamClosed => 0x5,
            Self::FrameSizeError => 0x6,
            Self::RefusedStream => 0x7,
            Self::Cancel => 0x8,
            Self::CompressionError => 0x9,
            Self::ConnectError => 0xa,
            Self::EnhanceYourCalm => 0xb,
            Self::InadequateSecurity => 0xc,
            Self::Http11Required => 0xd,
            Self::Other(number) => number,
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::NoError => "NO_ERROR",
            Self::ProtocolError => "PROTOCOL_ERROR",
            Self::InternalError => "INTERNAL_ERROR",
            Self::FlowControlError => "FLOW_CONTROL_ERROR",
            Self::SettingsTimeout => "SETTINGS_TIMEOUT",
            Self::StreamClosed => "STREAM_CLOSED",
            Self::FrameSizeError => "FRAME_SIZE_ERROR",
            Self::RefusedStream => "REFUSED_STREAM",
            Self::Cancel => "CANCEL",
            Self::CompressionError => "COMPRESSION_ERROR",
            Self::ConnectError => "CONNECT_ERROR",
            Self::EnhanceYourCalm => "ENHANCE_YOUR_CALM",
            Self::InadequateSecurity => "INADEQUATE_SECURITY",
            Self::Http11Required => "HTTP_1_1_REQUIRED",
            Self::Other(number) => return write!(f, "{number:#x}"),
        };
        f.write_str(name)
    }
}

/// Names of SETTINGS parameters (RFC 9113 §6.5.2).
pub mod setting {
    /// Largest HPACK table the sender decodes with.
    pub const HEADER_TABLE_SIZE: u16 = 0x1;
    /// Whether the sender takes PUSH_PROMISE.
    pub const ENABLE_PUSH: u16 = 0x2;
    /// Streams the receiver may have open.
    pub const MAX_CONCURRENT_STREAMS: u16 = 0x3;
    /// Window of a new stream.
    pub const INITIAL_WINDOW_SIZE: u16 = 0x4;
    /// Largest payload the sender takes.
    pub const MAX_FRAME_SIZE: u16 = 0x5;
    /// Largest field section the sender wants, as an advice.
    pub const MAX_HEADER_LIST_SIZE: u16 = 0x6;
}

/// Writes a SETTINGS frame with these parameters.
pub fn put_settings(out: &mut impl Sink, parameters: &[(u16, u32)]) {
    out.put(&control(Kind::Settings, 0, 0, parameters.len() * 6));
    for (name, value) in parameters {
        let ([n0, n1], [v0, v1, v2, v3]) = (name.to_be_bytes(), value.to_be_bytes());
        out.put(&[n0, n1, v0, v1, v2, v3]);
    }
}

/// Writes the acknowledgement of a SETTINGS frame.
pub fn put_settings_ack(out: &mut impl Sink) {
    out.put(&control(Kind::Settings, flag::ACK, 0, 0));
}

/// Writes a PING, or the answer to one.
pub fn put_ping(out: &mut impl Sink, payload: [u8; 8], ack: bool) {
    let flags = if ack { flag::ACK } else { 0 };
    let mut frame = [0; HEAD_BYTES + 8];
    frame[..HEAD_BYTES].copy_from_slice(&control(Kind::Ping, flags, 0, 8));
    frame[HEAD_BYTES..].copy_from_slice(&payload);
    out.put(&frame);
}

/// Writes a RST_STREAM.
pub fn put_reset(out: &mut impl Sink, stream: u32, code: ErrorCode) {
    put_word(out, Kind::RstStream, stream, code.number());
}

/// Writes a WINDOW_UPDATE; `increment` is at least 1 and at most [`MAX_31`].
pub fn put_window_update(out: &mut impl Sink, stream: u32, increment: u32) {
    debug_assert!(increment > 0 && increment <= MAX_31, "RFC 9113 §6.9");
    put_word(out, Kind::WindowUpdate, stream, increment);
}

/// Writes a GOAWAY.
pub fn put_goaway(out: &mut impl Sink, last_stream: u32, code: ErrorCode, debug: &[u8]) {
    out.put(&control(Kind::Goaway, 0, 0, 8 + debug.len()));
    out.put(&last_stream.to_be_bytes());
    out.put(&code.number().to_be_bytes());
    if !debug.is_empty() {
        out.put(debug);
    }
}

fn put_word(out: &mut impl Sink, kind: Kind, stream: u32, word: u32) {
    let mut frame = [0; HEAD_BYTES + 4];
    frame[..HEAD_BYTES].copy_from_slice(&control(kind, 0, stream, 4));
    frame[HEAD_BYTES..].copy_from_slice(&word.to_be_bytes());
    out.put(&frame);
}

fn control(kind: Kind, flags: u8, stream: u32, len: usize) -> [u8; HEAD_BYTES] {
    FrameHead { len: len as u32, kind, flags, stream }.bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_comes_back_as_it_was_written() {
        for number in 0..=20 {
            let head = FrameHead {
                len: 0x01_02_03,
                kind: Kind::of(number),
                flags: 0xa5,
                stream: 0x7fff_fffe,
            };
            assert_eq!(FrameHead::parse(head.bytes()), head);
            assert_eq!(head.bytes()[3], number);
        }
    }

    #[test]
    fn the_reserved_bit_of_a_stream_id_is_dropped() {
        let head = FrameHead::parse([0, 0, 0, 0, 0, 0x80, 0, 0, 1]);
        assert_eq!(head.stream, 1);
    }

    #[test]
    fn error_codes_keep_their_numbers() {
        for number in 0..40 {
            assert_eq!(ErrorCode::of(number).number(), number);
        }
        assert_eq!(ErrorCode::of(u32::MAX), ErrorCode::Other(u32::MAX));
        assert_eq!(ErrorCode::Http11Required.number(), 0xd);
        assert_eq!(ErrorCode::Other(0x20).to_string(), "0x20");
    }

    #[test]
    fn control_frames_are_as_the_rfc_draws_them() {
        let mut out = Vec::new();
        put_settings(&mut out, &[(setting::MAX_FRAME_SIZE, 16_384)]);
        assert_eq!(out, [0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0x40, 0]);
        out.clear();
        put_settings_ack(&mut out);
        assert_eq!(out, [0, 0, 0, 4, 1, 0, 0, 0, 0]);
        out.clear();
        put_ping(&mut out, [7; 8], true);
        assert_eq!(out, [0, 0, 8, 6, 1, 0, 0, 0, 0, 7, 7, 7, 7, 7, 7, 7, 7]);
        out.clear();
        put_reset(&mut out, 3, ErrorCode::Cancel);
        assert_eq!(out, [0, 0, 4, 3, 0, 0, 0, 0, 3, 0, 0, 0, 8]);
        out.clear();
        put_window_update(&mut out, 0, 0x1234);
        assert_eq!(out, [0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0x12, 0x34]);
        out.clear();
        put_goaway(&mut out, 5, ErrorCode::NoError, b"hi");
        assert_eq!(out, [0, 0, 10, 7, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, b'h', b'i']);
    }
}
