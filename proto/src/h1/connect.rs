//! What a worker's request to `/v1/proxy` must carry, and what it is answered (contract 4.1, 4.2).

use super::write::write_text;
use crate::Sink;
use crate::date::HttpDate;
use crate::fields::{Fields, Token};
use crate::route::{parse_request_id, path_of};
use std::fmt;
use uuid::Uuid;

/// The answer that makes the connection a tunnel: only exactly 200 is success to a worker, and
/// what follows is raw (WK-5, WK-11).
pub const ACCEPTED: &[u8] = b"HTTP/1.1 200 OK\r\n\r\n";

/// What a request on the worker listener is for, by its path alone (WK-2, LN-5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v1/proxy`: a tunnel, whatever the method.
    Connect,
    /// `/v1/work`: the local dispatch's poll (design 4.3).
    Work,
    /// `/health`: 200 and empty.
    Health,
    /// Anything else, and every target that does not begin with a slash: 404.
    Unknown,
}

/// Which endpoint the request in `fields` is for.
#[must_use]
pub fn endpoint(fields: &Fields) -> Endpoint {
    let target = fields.first(Token::Path).unwrap_or_default();
    if !target.starts_with(b"/") {
        return Endpoint::Unknown;
    }
    match path_of(target) {
        b"/v1/proxy" => Endpoint::Connect,
        b"/v1/work" => Endpoint::Work,
        b"/health" => Endpoint::Health,
        _ => Endpoint::Unknown,
    }
}

/// A worker's request for a tunnel, not yet checked against the tokens we gave out.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Connect<'a> {
    /// Without `Bearer `; never empty.
    pub token: &'a [u8],
    /// The session it says it is for.
    pub request_id: Uuid,
}

impl fmt::Debug for Connect<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connect").field("request_id", &self.request_id).finish_non_exhaustive()
    }
}

/// What a request for a tunnel lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectFault {
    /// The target is not `/v1/proxy` in origin-form (WK-2).
    NotFound,
    /// The request announces a body, so the bytes behind the head could be two things (design 6).
    HasBody,
    /// Row 2.
    MissingAuth,
    /// Row 3.
    MissingRequestId,
    /// Row 4.
    InvalidRequestId,
}

impl ConnectFault {
    /// What is counted; `None` for what is no request to `/v1/proxy`.
    #[must_use]
    pub fn result(self) -> Option<ConnectResult> {
        match self {
            Self::NotFound => None,
            // The nine labels are fixed; this one says that the stream cannot become a tunnel.
            Self::HasBody => Some(ConnectResult::NotHijackable),
            Self::MissingAuth => Some(ConnectResult::MissingAuth),
            Self::MissingRequestId => Some(ConnectResult::MissingRequestId),
            Self::InvalidRequestId => Some(ConnectResult::InvalidRequestId),
        }
    }

    /// The status it is answered with.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::NotFound => 404,
            Self::HasBody | Self::MissingRequestId | Self::InvalidRequestId => 400,
            Self::MissingAuth => 401,
        }
    }

    /// The body it is answered with.
    #[must_use]
    pub fn body(self) -> &'static str {
        match self {
            Self::NotFound => "404 page not found\n",
            Self::HasBody => "HTTP CONNECT request has a body\n",
            Self::MissingAuth => ConnectResult::MissingAuth.body(),
            Self::MissingRequestId => ConnectResult::MissingRequestId.body(),
            Self::InvalidRequestId => ConnectResult::InvalidRequestId.body(),
        }
    }

    /// Writes the answer.
    pub fn write(self, keep_alive: bool, date: HttpDate, out: &mut impl Sink) {
        write_text(self.status(), self.body(), keep_alive, date, out);
    }
}

/// How a request to `/v1/proxy` ended: the `result` labels of contract 4.2, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "each is the row of 4.2 with its label")]
pub enum ConnectResult {
    NotHijackable,
    MissingAuth,
    MissingRequestId,
    InvalidRequestId,
    RequestIdMismatch,
    TokenExpired,
    TokenUnknown,
    Accepted,
    HijackFailed,
}

impl ConnectResult {
    /// How many there are.
    pub const COUNT: usize = 9;

    /// All of them, by index.
    pub const ALL: [Self; Self::COUNT] = [
        Self::NotHijackable,
        Self::MissingAuth,
        Self::MissingRequestId,
        Self::InvalidRequestId,
        Self::RequestIdMismatch,
        Self::TokenExpired,
        Self::TokenUnknown,
        Self::Accepted,
        Self::HijackFailed,
    ];

    /// The result's place in a table of counters.
    #[must_use]
    pub fn index(self) -> usize {
        self as usize
    }

    /// The result's metric label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::NotHijackable => "rejected_not_hijackable",
            Self::MissingAuth => "rejected_missing_auth",
            Self::MissingRequestId => "rejected_missing_requestid",
            Self::InvalidRequestId => "rejected_invalid_requestid",
            Self::RequestIdMismatch => "rejected_requestid_mismatch",
            Self::TokenExpired => "rejected_token_expired",
            Self::TokenUnknown => "rejected_token_unknown",
            Self::Accepted => "accepted",
            Self::HijackFailed => "rejected_hijack_failed",
        }
    }

    /// The status it is answered with.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::NotHijackable | Self::HijackFailed => 500,
            Self::MissingAuth => 401,
            Self::MissingRequestId | Self::InvalidRequestId => 400,
            Self::RequestIdMismatch | Self::TokenExpired | Self::TokenUnknown => 403,
            Self::Accepted => 200,
        }
    }

    /// The body it is answered with (WK-4). The three causes of 403 share one: whoever guesses
    /// tokens learns nothing (limit L13).
    #[must_use]
    pub fn body(self) -> &'static str {
        match self {
            Self::NotHijackable => "HTTP CONNECT request is not hijack-able\n",
            Self::MissingAuth => "HTTP CONNECT request is missing auth\n",
            Self::MissingRequestId => "HTTP CONNECT request is missing request id\n",
            Self::InvalidRequestId => "HTTP CONNECT request has an invalid request id\n",
            Self::RequestIdMismatch | Self::TokenExpired | Self::TokenUnknown => {
                "HTTP CONNECT request is missing valid auth\n"
            }
            Self::Accepted => "",
            Self::HijackFailed => "HTTP CONNECT request could not be taken over\n",
        }
    }

    /// Writes the answer; of [`Self::Accepted`], [`ACCEPTED`].
    pub fn write(self, keep_alive: bool, date: HttpDate, out: &mut impl Sink) {
        if self == Self::Accepted {
            out.put(ACCEPTED);
        } else {
            write_text(self.status(), self.body(), keep_alive, date, out);
        }
    }
}

/// Reads a request for a tunnel: path, framing, then rows 2 to 4 of contract 4.2 in their order.
///
/// # Errors
/// The first thing it lacks; the worker's fault.
pub fn read(fields: &Fields) -> Result<Connect<'_>, ConnectFault> {
    if endpoint(fields) != Endpoint::Connect {
        return Err(ConnectFault::NotFound);
    }
    if announces_body(fields) {
        return Err(ConnectFault::HasBody);
    }
    let authorization = fields.first(Token::Authorization).unwrap_or_default();
    let token = authorization.strip_prefix(b"Bearer ").unwrap_or(authorization);
    if token.is_empty() {
        return Err(ConnectFault::MissingAuth);
    }
    let request_id = fields.first(Token::XRequestId).unwrap_or_default();
    if request_id.is_empty() {
        return Err(ConnectFault::MissingRequestId);
    }
    let request_id = parse_request_id(request_id).ok_or(ConnectFault::InvalidRequestId)?;
    Ok(Connect { token, request_id })
}

/// A request may say that it has no body: Go's POST does, and so may what stands between (WK-2).
fn announces_body(fields: &Fields) -> bool {
    fields.iter().any(|field| match field.token {
        Token::TransferEncoding => true,
        Token::ContentLength => field.value.iter().any(|&b| b != b'0'),
        _ => false,
    })
}
