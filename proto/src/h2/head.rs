//! Whether a field section is a well-formed message head or trailer section (RFC 9113 §8.2, §8.3).
//!
//! A section that is not is a fault of its stream and is never shown to the relay, so that nothing
//! malformed can be forwarded.

use super::stream::Content;
use crate::fields::{Field, Fields, Token};

/// The section breaks a rule: RST_STREAM with PROTOCOL_ERROR (RFC 9113 §8.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// What the connection has to remember of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// What its content-length promises.
    pub(super) content: Content,
    /// Whether its method is HEAD.
    pub(super) head: bool,
}

/// What the connection has to remember of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Response {
    /// What its content-length promises.
    pub(super) content: Content,
    /// Whether it is a 1xx: another head follows.
    pub(super) informational: bool,
}

/// The pseudo-header fields of a request and the regular ones with a rule.
#[derive(Default)]
struct Section<'a> {
    method: Option<&'a [u8]>,
    scheme: Option<&'a [u8]>,
    path: Option<&'a [u8]>,
    authority: Option<&'a [u8]>,
    status: Option<&'a [u8]>,
    host: Option<&'a [u8]>,
    content_length: Option<u64>,
}

impl<'a> Section<'a> {
    /// Reads a section; pseudo-header fields come first and once.
    fn read(fields: &'a Fields) -> Result<Self, Malformed> {
        if fields.is_malformed() {
            return Err(Malformed);
        }
        let mut section = Self::default();
        let mut regular = false;
        for field in fields.iter() {
            if field.token.is_pseudo() {
                if regular {
                    return Err(Malformed);
                }
                section.pseudo(field)?;
            } else {
                regular = true;
                section.regular(field)?;
            }
        }
        Ok(section)
    }

    fn pseudo(&mut self, field: Field<'a>) -> Result<(), Malformed> {
        let place = match field.token {
            Token::Method => &mut self.method,
            Token::Scheme => &mut self.scheme,
            Token::Path => &mut self.path,
            Token::Authority => &mut self.authority,
            Token::Status => &mut self.status,
            // Extended CONNECT is not offered (CL-46), so `:protocol` is as unknown as any other.
            _ => return Err(Malformed),
        };
        once(place, field.value)
    }

    #[inline]
    fn regular(&mut self, field: Field<'a>) -> Result<(), Malformed> {
        match field.token {
            // RFC 9113 §8.2.2: connection-specific fields.
            Token::Connection
            | Token::KeepAlive
            | Token::ProxyConnection
            | Token::TransferEncoding
            | Token::Upgrade => Err(Malformed),
            Token::Te if !field.value.eq_ignore_ascii_case(b"trailers") => Err(Malformed),
            Token::Host => once(&mut self.host, field.value),
            Token::ContentLength => once(&mut self.content_length, decimal(field.value)?),
            _ => Ok(()),
        }
    }

    fn content(&self) -> Content {
        self.content_length.map_or(Content::Unknown, Content::Left)
    }
}

/// Checks a request's head.
///
/// # Errors
/// If it breaks RFC 9113 §8.2 or §8.3.1, or ends the stream although it promises content.
pub(super) fn request(fields: &Fields, end_stream: bool) -> Result<Request, Malformed> {
    let section = Section::read(fields)?;
    let (Some(method), Some(scheme), Some(path), None) =
        (section.method, section.scheme, section.path, section.status)
    else {
        return Err(Malformed);
    };
    // A CONNECT has neither scheme nor path, so it ends above: there is nothing here to tunnel to.
    let path_fits = match path {
        [b'/', ..] => true,
        b"*" => method == b"OPTIONS",
        _ => false,
    };
    if !path_fits || path.contains(&b' ') || !is_token(method) || method == b"CONNECT" {
        return Err(Malformed);
    }
    if !is_scheme(scheme) || [section.authority, section.host].iter().flatten().any(|h| !is_host(h))
    {
        return Err(Malformed);
    }
    // RFC 9113 §8.3.1: a Host that differs from the authority would route a request by one name
    // and serve it by another.
    if let (Some(authority), Some(host)) = (section.authority, section.host)
        && !authority.eq_ignore_ascii_case(host)
    {
        return Err(Malformed);
    }
    let content = section.content();
    if end_stream && matches!(content, Content::Left(1..)) {
        return Err(Malformed);
    }
    Ok(Request { content, head: method == b"HEAD" })
}

/// Checks a response's head, final or informational.
///
/// # Errors
/// If it breaks RFC 9113 §8.2 or §8.3.2, or ends the stream although more is due.
pub(super) fn response(
    fields: &Fields,
    end_stream: bool,
    head_request: bool,
) -> Result<Response, Malformed> {
    let section = Section::read(fields)?;
    let requests = [section.method, section.scheme, section.path, section.authority];
    let (Some(status), [None, None, None, None]) = (section.status, requests) else {
        return Err(Malformed);
    };
    let [hundreds @ b'1'..=b'9', b'0'..=b'9', b'0'..=b'9'] = status else {
        return Err(Malformed);
    };
    if *hundreds == b'1' {
        // RFC 9113 §8.6: no 101. §8.1: an informational head does not end a message.
        return match (status, end_stream) {
            (b"101", _) | (_, true) => Err(Malformed),
            _ => Ok(Response { content: Content::Unknown, informational: true }),
        };
    }
    // RFC 9110 §6.4.1: these have no content, whatever length they tell.
    let content = match status {
        b"204" | b"304" => Content::Left(0),
        _ if head_request => Content::Left(0),
        _ => section.content(),
    };
    if end_stream && matches!(content, Content::Left(1..)) {
        return Err(Malformed);
    }
    Ok(Response { content, informational: false })
}

/// Checks a trailer section.
///
/// # Errors
/// If it has a pseudo-header field (RFC 9113 §8.1) or one that frames or routes a message, which
/// came too late for whoever read the head (RFC 9110 §6.5.1).
pub(super) fn trailers(fields: &Fields) -> Result<(), Malformed> {
    let section = Section::read(fields)?;
    let pseudo = [section.method, section.scheme, section.path, section.authority, section.status];
    if pseudo != [None; 5] || section.host.is_some() || section.content_length.is_some() {
        return Err(Malformed);
    }
    Ok(())
}

fn once<T>(place: &mut Option<T>, value: T) -> Result<(), Malformed> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(Malformed),
    }
}

/// RFC 9110 §8.6: digits only; no sign, no list.
fn decimal(value: &[u8]) -> Result<u64, Malformed> {
    if value.is_empty() || value.len() > 19 {
        return Err(Malformed);
    }
    value.iter().try_fold(0u64, |sum, digit| match digit {
        b'0'..=b'9' => Ok(sum * 10 + u64::from(digit - b'0')),
        _ => Err(Malformed),
    })
}

/// RFC 9110 §5.6.2.
fn is_token(text: &[u8]) -> bool {
    !text.is_empty()
        && text.iter().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b))
}

/// RFC 3986 §3.1.
fn is_scheme(text: &[u8]) -> bool {
    text.first().is_some_and(u8::is_ascii_alphabetic)
        && text.iter().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(b))
}

/// Whether all octets may stand in an authority without user information (RFC 9113 §8.3.1,
/// RFC 3986 §3.2): no slash, query or space that would end it for one reader and not for another.
pub(crate) fn is_host(text: &[u8]) -> bool {
    text.iter().all(|&b| HOST_OCTET[b as usize])
}

const HOST_OCTET: [bool; 256] = {
    let mut table = [false; 256];
    let allowed = b"!$%&'()*+,-.:;=[]_~\
        0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut i = 0;
    while i < allowed.len() {
        table[allowed[i] as usize] = true;
        i += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    type Pairs<'a> = &'a [(&'a str, &'a str)];

    fn list(pairs: Pairs<'_>) -> Fields {
        let mut fields = Fields::new();
        for (name, value) in pairs {
            fields.push(Field::new(name.as_bytes(), value.as_bytes()));
        }
        fields
    }

    const GET: [(&str, &str); 3] = [(":method", "GET"), (":scheme", "http"), (":path", "/a")];

    fn with(extra: Pairs<'_>) -> Fields {
        list(&[&GET[..], extra].concat())
    }

    fn without(name: &str) -> Fields {
        let rest: Vec<_> = GET.into_iter().filter(|(n, _)| *n != name).collect();
        list(&rest)
    }

    #[test]
    fn a_request_needs_each_pseudo_header_once_and_first() {
        assert!(request(&list(&GET), true).is_ok());
        for name in [":method", ":scheme", ":path"] {
            assert!(request(&without(name), true).is_err(), "{name} missing");
            let twice = GET.iter().find(|(n, _)| *n == name).copied().unwrap();
            assert!(request(&with(&[twice]), true).is_err(), "{name} twice");
        }
        for extra in [(":status", "200"), (":protocol", "websocket"), (":x", "y")] {
            assert!(request(&with(&[extra]), true).is_err(), "{extra:?}");
        }
        let late = [("x", "y"), (":authority", "a")];
        assert!(request(&with(&late), true).is_err());
    }

    #[test]
    fn methods_and_paths_are_checked() {
        let with =
            |method, path| list(&[(":method", method), (":scheme", "http"), (":path", path)]);
        for (method, path) in [("POST", "/"), ("OPTIONS", "*"), ("M-SEARCH", "/x?y"), ("HEAD", "/")]
        {
            let head = request(&with(method, path), true).unwrap().head;
            assert_eq!(head, method == "HEAD");
        }
        for (method, path) in [
            ("GET", ""),
            ("GET", "*"),
            ("GET", "x"),
            ("GET", "/a b"),
            ("", "/"),
            ("G T", "/"),
            ("CONNECT", "/"),
        ] {
            assert!(request(&with(method, path), true).is_err(), "{method} {path}");
        }
        assert!(request(&list(&[(":method", "CONNECT"), (":authority", "a:1")]), false).is_err());
    }

    #[test]
    fn connection_specific_fields_are_refused_everywhere() {
        for extra in [
            ("connection", "close"),
            ("keep-alive", "1"),
            ("proxy-connection", "x"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("te", "gzip"),
            ("te", "trailers, gzip"),
        ] {
            assert!(request(&with(&[extra]), false).is_err(), "{extra:?}");
            assert!(response(&list(&[(":status", "200"), extra]), false, false).is_err());
            assert!(trailers(&list(&[extra])).is_err());
        }
        assert!(request(&with(&[("te", "trailers")]), false).is_ok());
    }

    #[test]
    fn content_length_is_one_number() {
        let content = |value| request(&with(&[("content-length", value)]), false);
        assert_eq!(content("042").unwrap().content, Content::Left(42));
        for bad in ["", "-1", "+1", "1,1", "1 ", "0x1", "99999999999999999999"] {
            assert!(content(bad).is_err(), "{bad:?}");
        }
        let twice = [("content-length", "1"), ("content-length", "1")];
        assert!(request(&with(&twice), false).is_err());
        assert!(request(&with(&[("content-length", "1")]), true).is_err());
        assert!(request(&with(&[("content-length", "0")]), true).is_ok());
    }

    #[test]
    fn host_is_the_authority_or_alone() {
        let hosts = |extra: Pairs<'_>| request(&list(&[&GET[..], extra].concat()), true).is_ok();
        assert!(hosts(&[("host", "a")]));
        assert!(hosts(&[(":authority", "A.b"), ("host", "a.B")]));
        assert!(!hosts(&[(":authority", "a"), ("host", "b")]));
        assert!(!hosts(&[("host", "a"), ("host", "a")]));
        for good in ["", "a:80", "[::1]:8080", "10.0.0.1", "a_b%2fc"] {
            assert!(hosts(&[(":authority", good)]) && hosts(&[("host", good)]), "{good}");
        }
        for bad in ["a/b", "a b", "u@a", "a?b", "a#b", "a\\b", "\u{e4}"] {
            assert!(!hosts(&[(":authority", bad)]) && !hosts(&[("host", bad)]), "{bad}");
        }
    }

    #[test]
    fn schemes_are_words() {
        let with = |scheme| list(&[(":method", "GET"), (":scheme", scheme), (":path", "/")]);
        for good in ["http", "https", "grpc+x-1.0"] {
            assert!(request(&with(good), true).is_ok(), "{good}");
        }
        for bad in ["", "1http", "ht tp", "http:", "http://a/?"] {
            assert!(request(&with(bad), true).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_response_has_a_status_and_nothing_else() {
        let check = |status, end, head| response(&list(&[(":status", status)]), end, head);
        assert!(!check("200", false, false).unwrap().informational);
        assert!(check("103", false, false).unwrap().informational);
        for bad in ["", "20", "2000", "2x0", "099", "101"] {
            assert!(check(bad, false, false).is_err(), "{bad:?}");
        }
        assert!(check("103", true, false).is_err());
        assert!(response(&list(&[]), false, false).is_err());
        assert!(response(&list(&[(":status", "200"), (":path", "/")]), false, false).is_err());
    }

    #[test]
    fn responses_without_content_have_none() {
        let check = |status, head| {
            let fields = list(&[(":status", status), ("content-length", "9")]);
            response(&fields, false, head).unwrap().content
        };
        assert_eq!(check("200", false), Content::Left(9));
        assert_eq!(check("200", true), Content::Left(0));
        assert_eq!(check("204", false), Content::Left(0));
        assert_eq!(check("304", false), Content::Left(0));
        let fields = list(&[(":status", "200"), ("content-length", "9")]);
        assert!(response(&fields, true, true).is_ok(), "the answer to a HEAD");
        assert!(response(&fields, true, false).is_err());
    }

    #[test]
    fn trailers_frame_and_route_nothing() {
        assert!(trailers(&list(&[("grpc-status", "0")])).is_ok());
        for bad in [(":status", "200"), (":path", "/"), ("content-length", "0"), ("host", "a")] {
            assert!(trailers(&list(&[("grpc-status", "0"), bad])).is_err());
            assert!(trailers(&list(&[bad])).is_err());
        }
    }

    #[test]
    fn a_list_marked_malformed_is_refused() {
        let mut fields = with(&[]);
        fields.mark_malformed();
        assert!(request(&fields, true).is_err());
    }
}
