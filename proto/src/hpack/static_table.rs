//! The static table (RFC 7541 Appendix A), with tokens, and how the encoder finds a field in it.

use super::table::Row;
use crate::fields::{Field, Token};

/// Entries; dynamic entries are numbered after them.
pub(super) const LEN: usize = 61;

const fn row(token: Token, name: &'static [u8], value: &'static [u8]) -> Row<'static> {
    Row { token, name, value, name_valid: true, value_valid: true }
}

/// Index 1 is at place 0.
static ROWS: [Row<'static>; LEN] = [
    row(Token::Authority, b":authority", b""),
    row(Token::Method, b":method", b"GET"),
    row(Token::Method, b":method", b"POST"),
    row(Token::Path, b":path", b"/"),
    row(Token::Path, b":path", b"/index.html"),
    row(Token::Scheme, b":scheme", b"http"),
    row(Token::Scheme, b":scheme", b"https"),
    row(Token::Status, b":status", b"200"),
    row(Token::Status, b":status", b"204"),
    row(Token::Status, b":status", b"206"),
    row(Token::Status, b":status", b"304"),
    row(Token::Status, b":status", b"400"),
    row(Token::Status, b":status", b"404"),
    row(Token::Status, b":status", b"500"),
    row(Token::Other, b"accept-charset", b""),
    row(Token::AcceptEncoding, b"accept-encoding", b"gzip, deflate"),
    row(Token::Other, b"accept-language", b""),
    row(Token::Other, b"accept-ranges", b""),
    row(Token::Other, b"accept", b""),
    row(Token::Other, b"access-control-allow-origin", b""),
    row(Token::Other, b"age", b""),
    row(Token::Other, b"allow", b""),
    row(Token::Authorization, b"authorization", b""),
    row(Token::Other, b"cache-control", b""),
    row(Token::Other, b"content-disposition", b""),
    row(Token::Other, b"content-encoding", b""),
    row(Token::Other, b"content-language", b""),
    row(Token::ContentLength, b"content-length", b""),
    row(Token::Other, b"content-location", b""),
    row(Token::Other, b"content-range", b""),
    row(Token::ContentType, b"content-type", b""),
    row(Token::Cookie, b"cookie", b""),
    row(Token::Date, b"date", b""),
    row(Token::Other, b"etag", b""),
    row(Token::Expect, b"expect", b""),
    row(Token::Other, b"expires", b""),
    row(Token::Other, b"from", b""),
    row(Token::Host, b"host", b""),
    row(Token::Other, b"if-match", b""),
    row(Token::Other, b"if-modified-since", b""),
    row(Token::Other, b"if-none-match", b""),
    row(Token::Other, b"if-range", b""),
    row(Token::Other, b"if-unmodified-since", b""),
    row(Token::Other, b"last-modified", b""),
    row(Token::Other, b"link", b""),
    row(Token::Other, b"location", b""),
    row(Token::Other, b"max-forwards", b""),
    row(Token::ProxyAuthenticate, b"proxy-authenticate", b""),
    row(Token::ProxyAuthorization, b"proxy-authorization", b""),
    row(Token::Other, b"range", b""),
    row(Token::Other, b"referer", b""),
    row(Token::Other, b"refresh", b""),
    row(Token::Other, b"retry-after", b""),
    row(Token::Other, b"server", b""),
    row(Token::SetCookie, b"set-cookie", b""),
    row(Token::Other, b"strict-transport-security", b""),
    row(Token::TransferEncoding, b"transfer-encoding", b""),
    row(Token::UserAgent, b"user-agent", b""),
    row(Token::Other, b"vary", b""),
    row(Token::Other, b"via", b""),
    row(Token::Other, b"www-authenticate", b""),
];

/// The row with this index, which counts from one.
#[inline]
pub(super) fn get(index: usize) -> Option<&'static Row<'static>> {
    ROWS.get(index.wrapping_sub(1))
}

/// The index of exactly this field.
#[inline]
pub(super) fn find(field: &Field<'_>) -> Option<usize> {
    Some(match (field.token, field.value) {
        (Token::Method, b"GET") => 2,
        (Token::Method, b"POST") => 3,
        (Token::Path, b"/") => 4,
        (Token::Path, b"/index.html") => 5,
        (Token::Scheme, b"http") => 6,
        (Token::Scheme, b"https") => 7,
        (Token::Status, b"200") => 8,
        (Token::Status, b"204") => 9,
        (Token::Status, b"206") => 10,
        (Token::Status, b"304") => 11,
        (Token::Status, b"400") => 12,
        (Token::Status, b"404") => 13,
        (Token::Status, b"500") => 14,
        (Token::AcceptEncoding, b"gzip, deflate") => 16,
        (_, b"") => {
            let index = find_name(field)?;
            return get(index).filter(|row| row.value.is_empty()).map(|_| index);
        }
        _ => return None,
    })
}

/// The first index with this field's name.
pub(super) fn find_name(field: &Field<'_>) -> Option<usize> {
    Some(match field.token {
        Token::Authority => 1,
        Token::Method => 2,
        Token::Path => 4,
        Token::Scheme => 6,
        Token::Status => 8,
        Token::AcceptEncoding => 16,
        Token::Authorization => 23,
        Token::ContentLength => 28,
        Token::ContentType => 31,
        Token::Cookie => 32,
        Token::Date => 33,
        Token::Expect => 35,
        Token::Host => 38,
        Token::ProxyAuthenticate => 48,
        Token::ProxyAuthorization => 49,
        Token::SetCookie => 55,
        Token::TransferEncoding => 57,
        Token::UserAgent => 58,
        Token::Other => return find_other(field.name),
        _ => return None,
    })
}

/// Names of the table that have no token.
fn find_other(name: &[u8]) -> Option<usize> {
    Some(match name {
        b"accept-charset" => 15,
        b"accept-language" => 17,
        b"accept-ranges" => 18,
        b"accept" => 19,
        b"access-control-allow-origin" => 20,
        b"age" => 21,
        b"allow" => 22,
        b"cache-control" => 24,
        b"content-disposition" => 25,
        b"content-encoding" => 26,
        b"content-language" => 27,
        b"content-location" => 29,
        b"content-range" => 30,
        b"etag" => 34,
        b"expires" => 36,
        b"from" => 37,
        b"if-match" => 39,
        b"if-modified-since" => 40,
        b"if-none-match" => 41,
        b"if-range" => 42,
        b"if-unmodified-since" => 43,
        b"last-modified" => 44,
        b"link" => 45,
        b"location" => 46,
        b"max-forwards" => 47,
        b"range" => 50,
        b"referer" => 51,
        b"refresh" => 52,
        b"retry-after" => 53,
        b"server" => 54,
        b"strict-transport-security" => 56,
        b"vary" => 59,
        b"via" => 60,
        b"www-authenticate" => 61,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_those_of_the_names() {
        for row in &ROWS {
            assert_eq!(row.token, Token::of(row.name));
        }
    }

    #[test]
    fn every_row_is_found_by_field_and_by_name() {
        assert!(get(0).is_none() && get(LEN + 1).is_none());
        for index in 1..=LEN {
            let row = get(index).unwrap();
            let field = Field::new(row.name, row.value);
            assert_eq!(find(&field), Some(index), "{}", row.name.escape_ascii());
            let first = (1..=LEN).find(|&at| get(at).unwrap().name == row.name);
            assert_eq!(find_name(&field), first);
            assert_eq!(find(&Field::new(row.name, b"something else")), None);
        }
    }

    #[test]
    fn what_is_not_in_the_table_is_not_found() {
        for name in [&b"te"[..], b":nonsense", b"grpc-status", b"accepts", b""] {
            let field = Field::new(name, b"");
            assert_eq!((find(&field), find_name(&field)), (None, None));
        }
        assert_eq!(find(&Field::new(b":method", b"")), None);
        assert_eq!(find(&Field::new(b"accept-encoding", b"")), None);
    }
}
