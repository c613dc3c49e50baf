//! Which fields may stand behind a body (RFC 9110 §6.5.1): one rule for both versions and both
//! directions.
//!
//! What frames, routes or authorises a message, or says how to read it, was decided by its head;
//! and what the gateway sets or removes in a head (contract CL-28 to CL-30, CL-36) must not come
//! back by its trailers. Such a field is left out, the others pass.

use crate::fields::{Field, Token};

/// Whether a field may stand in a trailer section.
///
/// A match on one byte for every name that has a token, those of gRPC among them.
#[must_use]
pub fn may_trail(field: &Field<'_>) -> bool {
    match field.token {
        Token::Other => !comes_too_late(field.name),
        Token::Authority
        | Token::Method
        | Token::Path
        | Token::Protocol
        | Token::Scheme
        | Token::Status
        | Token::UnknownPseudo
        | Token::Authorization
        | Token::Connection
        | Token::ContentLength
        | Token::ContentType
        | Token::Cookie
        | Token::Expect
        | Token::Forwarded
        | Token::FunctionId
        | Token::FunctionVersionId
        | Token::Host
        | Token::Http2Settings
        | Token::KeepAlive
        | Token::NvcfReqid
        | Token::ProxyAuthenticate
        | Token::ProxyAuthorization
        | Token::ProxyConnection
        | Token::SecWebsocketProtocol
        | Token::SetCookie
        | Token::Te
        | Token::Trailer
        | Token::TransferEncoding
        | Token::Upgrade
        | Token::XForwardedFor
        | Token::XForwardedHost
        | Token::XForwardedProto => false,
        Token::AcceptEncoding
        | Token::AccessControlRequestHeaders
        | Token::AccessControlRequestMethod
        | Token::Date
        | Token::GrpcEncoding
        | Token::GrpcMessage
        | Token::GrpcStatus
        | Token::GrpcTimeout
        | Token::Origin
        | Token::UserAgent
        | Token::XNvcfReconnectWindowSecs
        | Token::XRequestId => true,
    }
}

/// The names without a token: those that the reference's HTTP library takes out of trailers, and
/// what else belongs to one connection, to routing or to authentication.
fn comes_too_late(name: &[u8]) -> bool {
    match name {
        b"cache-control"
        | b"content-encoding"
        | b"content-range"
        | b"max-forwards"
        | b"pragma"
        | b"proxy-authentication-info"
        | b"range"
        | b"realm"
        | b"www-authenticate"
        | [b'i', b'f', b'-', ..] => true,
        [b's', ..] => name.starts_with(b"sec-websocket-"),
        [b'x', ..] => name.starts_with(b"x-forwarded-"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_head_decides_does_not_come_behind_the_body() {
        for late in [
            // The gateway sets or removes it.
            "nvcf-reqid",
            "forwarded",
            "x-forwarded-for",
            "x-forwarded-host",
            "x-forwarded-proto",
            "x-forwarded-port",
            // Framing, and what belongs to one connection.
            "connection",
            "content-length",
            "http2-settings",
            "keep-alive",
            "proxy-connection",
            "te",
            "trailer",
            "transfer-encoding",
            "upgrade",
            // Routing.
            ":path",
            ":other",
            "function-id",
            "function-version-id",
            "host",
            "sec-websocket-accept",
            "sec-websocket-protocol",
            // Credentials and cookies.
            "authorization",
            "cookie",
            "proxy-authenticate",
            "proxy-authentication-info",
            "proxy-authorization",
            "set-cookie",
            "www-authenticate",
            // How to read it, and what was asked for.
            "cache-control",
            "content-encoding",
            "content-range",
            "content-type",
            "expect",
            "if-none-match",
            "max-forwards",
            "pragma",
            "range",
        ] {
            assert!(!may_trail(&Field::new(late.as_bytes(), b"x")), "{late}");
        }
    }

    #[test]
    fn what_a_message_can_only_say_at_its_end_passes() {
        for name in [
            "grpc-status",
            "grpc-message",
            "grpc-status-details-bin",
            "x-checksum",
            "x-forwarded",
            "sec-fetch-mode",
            "server-timing",
            "proxy-status",
            "etag",
            "date",
            "my-metadata-bin",
            "if",
            "x-nvcf-status",
        ] {
            assert!(may_trail(&Field::new(name.as_bytes(), b"x")), "{name}");
        }
    }
}
