//! What a connection remembers from one call to the next, beside its streams: where it is in the
//! peer's bytes, the header block under way, and what has to happen in time.

use super::frame::FrameHead;
use super::stream::StreamKey;
use crate::time::Time;

/// Where in the peer's bytes we are.
#[derive(Clone, Copy, Debug)]
pub(super) enum Reading {
    /// In the client's magic, after this many octets of it.
    Magic(u8),
    /// In a frame head.
    Head,
    /// In the payload of a frame that is looked at whole.
    Payload(FrameHead),
    /// Before the pad length of a DATA frame.
    PadLength(DataFrame),
    /// In the payload of a DATA frame.
    Data(DataFrame),
    /// In octets that nobody wants.
    Skip(u32),
}

/// What is left of a DATA frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct DataFrame {
    pub(super) key: StreamKey,
    pub(super) left: u32,
    pub(super) padding: u8,
    pub(super) end_stream: bool,
    pub(super) head_in_place: bool,
}

/// A header block of which more is to come; its fragments are in `Conn::held`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    pub(super) stream: u32,
    /// Octets so far.
    pub(super) len: usize,
    pub(super) end_stream: bool,
    pub(super) self_dependent: bool,
    pub(super) continuations: u16,
    pub(super) empty: u8,
}

/// No deadline.
pub(super) const NEVER: Time = Time(u64::MAX);

/// What is waited for; [`NEVER`] when it is not.
pub(super) struct Deadlines {
    pub(super) first_settings: Time,
    pub(super) header_block: Time,
    pub(super) forget_resets: Time,
}

impl Deadlines {
    /// Without a time, the first SETTINGS may come whenever they do.
    pub(super) fn new(first_settings: Option<Time>) -> Self {
        let first_settings = first_settings.unwrap_or(NEVER);
        Self { first_settings, header_block: NEVER, forget_resets: NEVER }
    }

    pub(super) fn first_settings_came(&mut self) {
        self.first_settings = NEVER;
    }

    /// One time for header blocks and for frames that are kept: only one of them is under way.
    pub(super) fn block_waits_until(&mut self, at: Time) {
        if self.header_block == NEVER {
            self.header_block = at;
        }
    }

    pub(super) fn block_complete(&mut self) {
        self.header_block = NEVER;
    }
}
