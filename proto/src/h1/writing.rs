//! How far our message is, and which fields may stand in it.

use super::head::options;
use crate::fields::{Field, Token, name_is_valid, value_is_valid};
use crate::trailer::may_trail;

/// What is left to be sent of our message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writing {
    /// No message was begun.
    Idle,
    /// A message without content whose end was not written yet.
    Empty,
    /// Bytes to come.
    Length(u64),
    /// Chunks, and whether the latest one still needs its CRLF.
    Chunked(bool),
    UntilClose,
    Done,
    Raw,
}

impl Writing {
    pub(super) fn is_done(self) -> bool {
        self == Self::Done
    }
}

/// Whether a field is written as it is given.
pub(super) fn passes(field: &Field<'_>) -> bool {
    let ours = match field.token {
        token if token.is_pseudo() => true,
        Token::Connection
        | Token::ContentLength
        | Token::Http2Settings
        | Token::KeepAlive
        | Token::ProxyConnection
        | Token::Te
        | Token::TransferEncoding => true,
        // h2c ends here: a worker that took it would get requests nobody looked at.
        Token::Upgrade => options(field.value).any(|o| o.eq_ignore_ascii_case(b"h2c")),
        _ => false,
    };
    // The parsers let no such octet in; here it would end the line and begin another message.
    !ours && name_is_valid(field.name) && value_is_valid(field.value)
}

/// Whether a field is written behind a body, or was read there.
pub(super) fn may_be_trailer(field: &Field<'_>) -> bool {
    may_trail(field) && passes(field)
}
