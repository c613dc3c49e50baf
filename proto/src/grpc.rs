//! gRPC's part of HTTP: status codes, how they map to HTTP, the message field, the content type.

/// A gRPC status code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names and numbers are those of the gRPC specification")]
pub enum Code {
    Ok = 0,
    Cancelled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

/// The HTTP status that a plain request is answered with for a gRPC status (CL-11).
///
/// Takes a number, not a [`Code`]: the control plane's codes are passed on whatever they are.
#[must_use]
pub fn http_status(code: u8) -> u16 {
    match code {
        0 => 200,
        3 => 400,
        4 => 504,
        5 => 404,
        6 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    }
}

/// Appends `text` as a `grpc-message` value: percent-encoded but for printable ASCII other than
/// `%` (gRPC over HTTP/2, "Percent-Encoded").
pub fn encode_message(text: &str, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for &byte in text.as_bytes() {
        if matches!(byte, b' '..=b'~') && byte != b'%' {
            out.push(byte);
        } else {
            out.extend_from_slice(&[b'%', HEX[(byte >> 4) as usize], HEX[(byte & 15) as usize]]);
        }
    }
}

/// Whether a request with this content type is answered in gRPC style (CL-8): the media type
/// without parameters is `application/grpc` in any case, and nothing more.
#[must_use]
pub fn is_grpc(content_type: &[u8]) -> bool {
    let media_type = content_type.split(|&b| b == b';').next().unwrap_or_default();
    media_type.trim_ascii().eq_ignore_ascii_case(b"application/grpc")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cl_8_only_the_bare_media_type_is_grpc() {
        for yes in ["application/grpc", "Application/GRPC", " application/grpc ; charset=x"] {
            assert!(is_grpc(yes.as_bytes()), "{yes}");
        }
        for no in [
            "",
            ";application/grpc",
            "application/grpc+proto",
            "application/grpc-web",
            "application/grpc, x",
            "text/plain",
        ] {
            assert!(!is_grpc(no.as_bytes()), "{no}");
        }
    }

    #[test]
    fn cl_11_every_code_has_its_http_status() {
        let table = [
            (Code::Ok, 200),
            (Code::Cancelled, 500),
            (Code::Unknown, 500),
            (Code::InvalidArgument, 400),
            (Code::DeadlineExceeded, 504),
            (Code::NotFound, 404),
            (Code::AlreadyExists, 409),
            (Code::PermissionDenied, 403),
            (Code::ResourceExhausted, 429),
            (Code::FailedPrecondition, 500),
            (Code::Aborted, 500),
            (Code::OutOfRange, 500),
            (Code::Unimplemented, 501),
            (Code::Internal, 500),
            (Code::Unavailable, 503),
            (Code::DataLoss, 500),
            (Code::Unauthenticated, 401),
        ];
        for (number, (code, status)) in table.into_iter().enumerate() {
            assert_eq!(code as usize, number);
            assert_eq!(http_status(code as u8), status, "{code:?}");
        }
        assert_eq!(http_status(17), 500);
        assert_eq!(http_status(255), 500);
    }

    #[test]
    fn messages_are_percent_encoded() {
        let mut out = Vec::new();
        encode_message("a b~%\n\u{e9}\x7f", &mut out);
        assert_eq!(out, b"a b~%25%0A%C3%A9%7F");
    }
}
