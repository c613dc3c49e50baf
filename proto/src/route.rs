//! Any request head -> where it is to go: the single reader of routing fields and cookie.
//!
//! HTTP/2 and HTTP/1 heads come as the same [`Fields`] (an HTTP/1 request line as `:method` and
//! `:path`). Nothing is copied: what is read are slices of the list.

use crate::fault::Fault;
use crate::fields::{Fields, Token};
use crate::grpc;
use std::fmt;
use uuid::Uuid;

pub use crate::id::parse_request_id;

/// Name of the cookie that brings a client back to its session.
pub const COOKIE_NAME: &[u8] = b"nvcf-request-id";

/// What is to be done with a request, in the order of decisions of contract 3.1.
#[derive(Debug)]
pub enum Routed<'a> {
    /// A CORS preflight, answered on the spot on every path (CL-12).
    Preflight(Preflight<'a>),
    /// `/health` (LN-5).
    Health,
    /// `/info` (LN-4).
    Info {
        /// Only `GET` is answered with the facts.
        method: &'a [u8],
    },
    /// A call of a function.
    Invoke(RoutingHead<'a>),
    /// E1 or E2, to be answered as [`reply_style`] says.
    Refused(Fault),
}

/// A request that can be routed: it has a credential and names a function.
pub struct RoutingHead<'a> {
    /// Without `Bearer `; never empty.
    pub credential: &'a [u8],
    /// The function as sent; never empty.
    pub function: &'a [u8],
    /// The version as sent; empty if absent.
    pub version: &'a [u8],
    /// The session the client wants to come back to.
    pub request_id: Option<Uuid>,
    /// For how many seconds a streaming worker keeps the session without a tunnel, as the client
    /// asks it by `x-nvcf-reconnect-window-secs` (contract 11).
    pub reconnect_window: Option<u16>,
    /// How a fault of this request is to be answered.
    pub style: ReplyStyle<'a>,
}

impl fmt::Debug for RoutingHead<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RoutingHead")
            .field("function", &String::from_utf8_lossy(self.function))
            .field("version", &String::from_utf8_lossy(self.version))
            .field("has_request_id", &self.request_id.is_some())
            .finish_non_exhaustive()
    }
}

/// What an answer in our own name depends on (CL-8, CL-14).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplyStyle<'a> {
    /// The request is gRPC's.
    pub grpc: bool,
    /// The method is `HEAD`: the answer has no body.
    pub head: bool,
    /// The `Origin` that may read the answer, if there is one and the method allows it.
    pub origin: Option<&'a [u8]>,
}

/// A longer origin is no browser's (a host name has at most 253 octets, RFC 1035 section 2.3.4), and
/// is not kept: one is held for each request that waits.
const KEPT_ORIGIN_BYTES: usize = 1024;

impl ReplyStyle<'_> {
    /// The same, for a request that has to wait while its fields are forgotten.
    #[must_use]
    pub fn keep(&self) -> KeptStyle {
        let origin = self.origin.filter(|origin| origin.len() <= KEPT_ORIGIN_BYTES);
        KeptStyle { grpc: self.grpc, head: self.head, origin: origin.map(Box::from) }
    }
}

/// A [`ReplyStyle`] that owns its origin; allocates only for browsers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeptStyle {
    grpc: bool,
    head: bool,
    origin: Option<Box<[u8]>>,
}

impl KeptStyle {
    /// To answer with.
    #[must_use]
    pub fn style(&self) -> ReplyStyle<'_> {
        ReplyStyle { grpc: self.grpc, head: self.head, origin: self.origin.as_deref() }
    }
}

/// What a CORS preflight asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preflight<'a> {
    /// The `Origin` of the request, if the answer allows it: there is one, and the method is
    /// allowed.
    pub origin: Option<&'a [u8]>,
    /// The method asked for.
    pub method: &'a [u8],
    /// The header names asked for; may be empty.
    pub headers: &'a [u8],
}

/// Reads a request's routing fields (contract 3.2).
#[must_use]
pub fn read(fields: &Fields) -> Routed<'_> {
    let seen = Seen::of(fields);
    if let Some(preflight) = seen.preflight() {
        return Routed::Preflight(preflight);
    }
    let function = seen.value(fields, seen.function, b"function-id");
    // Design 3.9: a request that names a function may have these paths for itself.
    if function.is_empty() {
        match path_of(seen.target) {
            b"/health" => return Routed::Health,
            b"/info" => return Routed::Info { method: seen.method },
            _ => {}
        }
    }
    let authorization = seen.value(fields, seen.authorization, b"authorization");
    let bearer = authorization.strip_prefix(b"Bearer ");
    // A browser cannot write the space behind `Bearer` into a WebSocket protocol name, so a bare
    // credential will do if the request has that field at all.
    let credential = if seen.websocket { bearer.or(Some(authorization)) } else { bearer };
    let Some(credential) = credential.filter(|credential| !credential.is_empty()) else {
        let none = authorization.is_empty();
        let fault = if none { Fault::MissingAuthorization } else { Fault::NotBearer };
        return Routed::Refused(fault);
    };
    if function.is_empty() {
        return Routed::Refused(Fault::MissingFunctionId);
    }
    Routed::Invoke(RoutingHead {
        credential,
        function,
        version: seen.value(fields, seen.version, b"function-version-id"),
        request_id: seen.request_id(fields),
        reconnect_window: seen.reconnect_window(),
        style: seen.style(),
    })
}

/// How a fault of this request is to be answered, whatever else is wrong with it.
#[must_use]
pub fn reply_style(fields: &Fields) -> ReplyStyle<'_> {
    Seen::of(fields).style()
}

/// The path of a request target: without the query and, of an absolute-form target
/// (RFC 9112 §3.2.2), without scheme and authority.
pub(crate) fn path_of(target: &[u8]) -> &[u8] {
    let end = target.iter().position(|&b| b == b'?').unwrap_or(target.len());
    let target = &target[..end];
    if target.starts_with(b"/") {
        return target;
    }
    let Some(scheme) = target.windows(3).position(|window| window == b"://") else {
        return target;
    };
    let rest = &target[scheme + 3..];
    let path = rest.iter().position(|&b| b == b'/').unwrap_or(rest.len());
    &rest[path..]
}

/// The first field of each name that matters: one walk over the list.
#[derive(Default)]
struct Seen<'a> {
    method: &'a [u8],
    target: &'a [u8],
    authorization: Option<&'a [u8]>,
    function: Option<&'a [u8]>,
    version: Option<&'a [u8]>,
    request_id: Option<&'a [u8]>,
    reconnect_window: Option<&'a [u8]>,
    content_type: Option<&'a [u8]>,
    origin: Option<&'a [u8]>,
    asked_method: Option<&'a [u8]>,
    asked_headers: Option<&'a [u8]>,
    websocket: bool,
    cookie: bool,
}

impl<'a> Seen<'a> {
    fn of(fields: &'a Fields) -> Self {
        let mut seen = Self::default();
        for field in fields.iter() {
            let first = match field.token {
                Token::Method => {
                    seen.method = field.value;
                    continue;
                }
                Token::Path => {
                    seen.target = field.value;
                    continue;
                }
                Token::SecWebsocketProtocol => {
                    seen.websocket = true;
                    continue;
                }
                Token::Cookie => {
                    seen.cookie = true;
                    continue;
                }
                Token::Authorization => &mut seen.authorization,
                Token::FunctionId => &mut seen.function,
                Token::FunctionVersionId => &mut seen.version,
                Token::NvcfReqid => &mut seen.request_id,
                Token::XNvcfReconnectWindowSecs => &mut seen.reconnect_window,
                Token::ContentType => &mut seen.content_type,
                Token::Origin => &mut seen.origin,
                Token::AccessControlRequestMethod => &mut seen.asked_method,
                Token::AccessControlRequestHeaders => &mut seen.asked_headers,
                _ => continue,
            };
            // If there are duplicates the first one counts, even if it is empty.
            first.get_or_insert(field.value);
        }
        seen
    }

    /// The field, or if it is absent or empty the WebSocket pair of that name; empty if neither.
    fn value(&self, fields: &'a Fields, field: Option<&'a [u8]>, name: &[u8]) -> &'a [u8] {
        let value = field.unwrap_or_default();
        if value.is_empty() && self.websocket {
            return websocket_pair(fields, name).unwrap_or_default();
        }
        value
    }

    /// CL-3: the first source that is not empty decides, even if it is no id.
    fn request_id(&self, fields: &'a Fields) -> Option<Uuid> {
        let value = self.value(fields, self.request_id, b"nvcf-reqid");
        if value.is_empty() && self.cookie {
            return parse_request_id(cookie(fields, COOKIE_NAME)?);
        }
        parse_request_id(value)
    }

    /// What is no number of seconds below 65 536 counts as absent: the worker reads it for itself.
    fn reconnect_window(&self) -> Option<u16> {
        std::str::from_utf8(self.reconnect_window?.trim_ascii()).ok()?.parse().ok()
    }

    fn style(&self) -> ReplyStyle<'a> {
        ReplyStyle {
            grpc: self.content_type.is_some_and(grpc::is_grpc),
            head: self.method == b"HEAD",
            origin: self.allowed_origin(self.method),
        }
    }

    fn preflight(&self) -> Option<Preflight<'a>> {
        // CL-12, CL-13: the method's case counts; without the asked method it is a call.
        let method = self.asked_method.filter(|asked| !asked.is_empty())?;
        (self.method == b"OPTIONS").then(|| Preflight {
            origin: self.allowed_origin(method),
            method,
            headers: self.asked_headers.unwrap_or_default(),
        })
    }

    fn allowed_origin(&self, method: &[u8]) -> Option<&'a [u8]> {
        self.origin.filter(|origin| !origin.is_empty() && allows_cors(method))
    }
}

/// The methods of CL-12, in any case as the reference's library compares them.
fn allows_cors(method: &[u8]) -> bool {
    const METHODS: [&[u8]; 7] = [b"HEAD", b"GET", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"];
    METHODS.iter().any(|allowed| method.eq_ignore_ascii_case(allowed))
}

/// CL-1: the first `name.value` pair of this name in the `Sec-WebSocket-Protocol` fields.
fn websocket_pair<'a>(fields: &'a Fields, name: &[u8]) -> Option<&'a [u8]> {
    fields
        .iter()
        .filter(|field| field.token == Token::SecWebsocketProtocol)
        .flat_map(|field| field.value.split(|&b| b == b','))
        .filter_map(|part| cut(part.strip_prefix(b" ").unwrap_or(part), b'.'))
        .find(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value)
}

/// The first usable cookie of this name, read as the reference's library does.
///
/// RFC 9113 §8.2.3: a client may cut its cookies into several fields, to be joined with `; `.
/// Pairs end at each `;`, so walking the fields one by one finds the same pairs.
fn cookie<'a>(fields: &'a Fields, name: &[u8]) -> Option<&'a [u8]> {
    fields
        .iter()
        .filter(|field| field.token == Token::Cookie)
        .flat_map(|field| field.value.split(|&b| b == b';'))
        .map(|pair| cut(pair.trim_ascii(), b'=').unwrap_or((pair.trim_ascii(), b"")))
        .filter(|(key, _)| key.trim_ascii() == name)
        .find_map(|(_, value)| cookie_value(value))
}

/// The value without its quotes, if it has only octets that may stand in one (RFC 6265 §4.1.1,
/// and spaces and commas, which Go's `net/http` lets through).
fn cookie_value(raw: &[u8]) -> Option<&[u8]> {
    let value = match raw {
        [b'"', inner @ .., b'"'] => inner,
        _ => raw,
    };
    let allowed = |&b: &u8| matches!(b, b' '..=b'~') && b != b'"' && b != b'\\';
    value.iter().all(allowed).then_some(value)
}

/// What stands before and behind the first `mark`.
fn cut(text: &[u8], mark: u8) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|&b| b == mark)?;
    Some((&text[..at], &text[at + 1..]))
}
