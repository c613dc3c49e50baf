//! A client's request head: target and Host become `:path` and `:authority`.

use super::head::{
    Body, HeadFault, Lines, RequestLine, Version, is_token, read_field_line, read_framing,
};
use crate::fields::{Field, Fields, Token};
use crate::h2::is_host;

/// What a connection has to remember of a request until its answer is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) version: Version,
    pub(super) body: Body,
    pub(super) is_head: bool,
}

/// Reads a whole head; `fields` then begins with `:method`, `:path` in origin-form and, if there
/// is a Host, `:authority`.
pub(super) fn read_request(head: &[u8], fields: &mut Fields) -> Result<Request, HeadFault> {
    fields.clear();
    let mut lines = Lines(head);
    let line = RequestLine::read(lines.next().unwrap_or_default())?;
    if line.method == b"CONNECT" {
        return Err(HeadFault::Malformed("CONNECT is not for clients"));
    }
    let (authority, rooted) = cut_target(line.method, line.target)?;
    fields.push(Field { token: Token::Method, ..Field::new(b":method", line.method) });
    match rooted {
        // RFC 9112 §3.2.1: an empty path is sent as a slash, also before a query.
        Rooted::Whole(path) => fields.push(Field::new(b":path", path)),
        Rooted::Query(query) => fields.push(Field::new(b":path", &[b"/", query].concat())),
    }
    for line in lines {
        read_field_line(line, fields)?;
    }
    let body = read_framing(fields, line.version)?;
    lift_host(authority, fields)?;
    Ok(Request { version: line.version, body, is_head: line.method == b"HEAD" })
}

/// A path in origin-form, or what follows an empty one.
enum Rooted<'a> {
    Whole(&'a [u8]),
    /// The path is empty: a slash belongs before this query.
    Query(&'a [u8]),
}

/// Takes a target apart: its authority, if it is in absolute-form, and its path with the query
/// (RFC 9112 §3.2).
fn cut_target<'a>(
    method: &[u8],
    target: &'a [u8],
) -> Result<(Option<&'a [u8]>, Rooted<'a>), HeadFault> {
    if matches!(target, [b'/', ..] | b"*") {
        return Ok((None, Rooted::Whole(target)));
    }
    let scheme = [&b"http://"[..], b"https://"].into_iter().find(|scheme| {
        target.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme))
    });
    let Some(scheme) = scheme else {
        return Err(HeadFault::Malformed("request target has another scheme than http"));
    };
    let rest = &target[scheme.len()..];
    let end = rest.iter().position(|b| matches!(b, b'/' | b'?' | b'#')).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if authority.is_empty() || !is_host(authority) {
        return Err(HeadFault::Malformed("request target has a malformed authority"));
    }
    let path = match path {
        // RFC 9112 §3.2.4
        [] if method == b"OPTIONS" => Rooted::Whole(b"*"),
        [] => Rooted::Whole(b"/"),
        [b'/', ..] => Rooted::Whole(path),
        _ => Rooted::Query(path),
    };
    Ok((Some(authority), path))
}

/// Moves the Host field to the third place and names it `:authority`. If the target was in
/// absolute-form, its authority is taken instead (RFC 9112 §3.2.2). The gateway writes Host anew from
/// it, so no server behind the gateway sees the field that the client sent.
fn lift_host(authority: Option<&[u8]>, fields: &mut Fields) -> Result<(), HeadFault> {
    let at = fields.iter().position(|field| field.token == Token::Host);
    let host = at.and_then(|at| fields.get(at)).map(|field| field.value).unwrap_or_default();
    if !is_host(host) {
        return Err(HeadFault::Malformed("Host is malformed"));
    }
    let at = match (authority, at) {
        (None, None) => return Ok(()),
        (None, Some(at)) => at,
        (Some(authority), _) => {
            fields.retain(|field| field.token != Token::Host);
            fields.push(Field::new(b"host", authority));
            fields.len() - 1
        }
    };
    fields.move_as(at, 2, b":authority");
    Ok(())
}

/// Whether a request line made of this method and path is read as the same two.
pub(super) fn can_be_sent(method: &[u8], path: &[u8]) -> bool {
    let rooted = path.first() == Some(&b'/') || (path == b"*" && method == b"OPTIONS");
    rooted && is_token(method) && path.iter().all(|&b| b > b' ' && b != 127)
}
