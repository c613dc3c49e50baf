//! Heads as lists of fields: what passes from one hop to the other, and what is said in its place.

use ringway_proto::fields::{Field, Fields, Token};
use ringway_proto::h1::connection_names;

/// Bytes of the `Connection` fields of one head: each of its other fields is looked up there.
const CONNECTION_BYTES: usize = 1024;

pub(super) fn id_field(id: &[u8; 36]) -> Field<'_> {
    Field { token: Token::NvcfReqid, name: b"nvcf-reqid", value: id, never_indexed: false }
}

/// The value of the session's cookie (contract CL-37).
pub(super) fn cookie(id: &[u8; 36]) -> [u8; 52] {
    let mut value = *b"nvcf-request-id=------------------------------------";
    value[16..].copy_from_slice(id);
    value
}

/// The three digits of `:status`.
pub(super) fn status(fields: &Fields) -> u16 {
    let digits = fields.first(Token::Status).unwrap_or_default();
    digits.iter().fold(0, |value, digit| value * 10 + u16::from(digit.wrapping_sub(b'0') % 10))
}

/// Whether a field belongs to the message, not to one connection (contract CL-28). `te` can only
/// be `trailers` in HTTP/2 and is put back (RFC 9113 §8.2.2).
pub(super) fn is_end_to_end(token: Token) -> bool {
    !matches!(
        token,
        Token::Connection
            | Token::ProxyConnection
            | Token::KeepAlive
            | Token::ProxyAuthenticate
            | Token::ProxyAuthorization
            | Token::Trailer
            | Token::TransferEncoding
            | Token::Upgrade
    )
}

/// Request fields that are not the client's to say (contract CL-29, CL-30).
pub(super) fn is_replaced_up(token: Token) -> bool {
    matches!(
        token,
        Token::Forwarded
            | Token::XForwardedFor
            | Token::XForwardedHost
            | Token::XForwardedProto
            | Token::NvcfReqid
    )
}

/// Whether the first bytes are another protocol's. They are if they begin with no method. They are
/// as well if their first line is here and names no version of HTTP, or is HTTP/2's own that went
/// wrong. Empty lines before the first line are skipped (RFC 9112 §2.2).
pub(super) fn is_foreign(mut first: &[u8], mut received: &[u8]) -> bool {
    while let (Some(less), Some(rest)) =
        (first.strip_prefix(b"\r\n"), received.strip_prefix(b"\r\n"))
    {
        (first, received) = (less, rest);
    }
    if matches!(first, b"" | b"\r") {
        return false;
    }
    let line = received.iter().position(|&octet| octet == b'\n').map(|end| &received[..end]);
    let named = |line: &[u8]| {
        line.windows(5).any(|window| window == b"HTTP/") && !line.starts_with(b"PRI ")
    };
    !first.first().is_some_and(u8::is_ascii_alphabetic) || line.is_some_and(|line| !named(line))
}

/// Whether a head's `Connection` fields are too long to be looked up for each other field.
pub(super) fn names_too_much(fields: &Fields) -> bool {
    let lists = fields.iter().filter(|field| field.token == Token::Connection);
    lists.map(|field| field.value.len()).sum::<usize>() > CONNECTION_BYTES
}

/// The list without the fields that its `Connection` names (contract CL-28); none if it names none.
/// Framing and host are this hop's own and are written anew.
pub(super) fn without_named(fields: &Fields) -> Option<Fields> {
    let named = |field: Field<'_>| {
        !matches!(field.token, Token::Connection | Token::Upgrade | Token::Te)
            && !field.token.is_pseudo()
            && connection_names(fields, field.name)
    };
    fields.first(Token::Connection)?;
    fields.iter().any(named).then(|| {
        let mut kept = Fields::new();
        fields.iter().filter(|field| !named(*field)).for_each(|field| kept.push(field));
        kept
    })
}
