//! HTTP/1 answers, as bytes.

use super::head::HeadFault;
use crate::Sink;
use crate::date::HttpDate;
use crate::decimal::{DIGITS_MAX, decimal};
use crate::fields::{Fields, Token, value_is_valid};

/// What lets a client send a body it announced with `Expect` (RFC 9110 §10.1.1).
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Writes a whole response.
///
/// `fields` without pseudo-headers are sent in order; `content-length` is added unless it is
/// there (an answer to `HEAD` has its own) or the status has no body, `connection: close` if the
/// connection is to end.
pub fn write_response(
    status: u16,
    reason: &str,
    fields: &Fields,
    body: &[u8],
    keep_alive: bool,
    out: &mut impl Sink,
) {
    out.put(b"HTTP/1.1 ");
    put_number(u64::from(status), out);
    out.put(b" ");
    out.put(reason.as_bytes());
    out.put(b"\r\n");
    for field in fields.iter() {
        // The parsers let no such value in; here it would end the line and begin another answer.
        if field.token.is_pseudo() || !value_is_valid(field.value) {
            continue;
        }
        put_field(field.name, field.value, out);
    }
    // RFC 9110 §8.6: none in 1xx and 204.
    let has_body = status >= 200 && status != 204;
    if has_body && fields.first(Token::ContentLength).is_none() {
        put_field(b"content-length", decimal(body.len() as u64, &mut [0; DIGITS_MAX]), out);
    }
    if !keep_alive {
        put_field(b"connection", b"close", out);
    }
    out.put(b"\r\n");
    out.put(body);
}

/// Writes what `answer.rs` rendered, with the status of its `:status`.
pub fn write_answer(fields: &Fields, body: &[u8], keep_alive: bool, out: &mut impl Sink) {
    let digits = fields.first(Token::Status).unwrap_or_default();
    let number = digits.iter().try_fold(0_u16, |number, digit| match digit {
        b'0'..=b'9' => number.checked_mul(10)?.checked_add(u16::from(digit - b'0')),
        _ => None,
    });
    let status = number.filter(|status| (100..1000).contains(status)).unwrap_or(500);
    write_response(status, reason_of(status), fields, body, keep_alive, out);
}

/// Writes a short text in the manner of Go's `http.Error` (WK-4): `text` should end in a newline.
pub fn write_text(status: u16, text: &str, keep_alive: bool, date: HttpDate, out: &mut impl Sink) {
    put_status_line(status, out);
    put_field(b"date", date.as_bytes(), out);
    put_field(b"content-type", b"text/plain; charset=utf-8", out);
    put_field(b"x-content-type-options", b"nosniff", out);
    put_field(b"content-length", decimal(text.len() as u64, &mut [0; DIGITS_MAX]), out);
    if !keep_alive {
        put_field(b"connection", b"close", out);
    }
    out.put(b"\r\n");
    out.put(text.as_bytes());
}

/// Writes the answer to a head that could not be read; the connection ends with it.
pub fn write_fault(fault: HeadFault, date: HttpDate, out: &mut impl Sink) {
    write_text(fault.status(), fault.text(), false, date, out);
}

/// The reason phrase of the usual statuses (RFC 9110 §15); empty for others, which RFC 9112 §4
/// allows.
#[must_use]
pub fn reason_of(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        103 => "Early Hints",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        203 => "Non-Authoritative Information",
        204 => "No Content",
        205 => "Reset Content",
        206 => "Partial Content",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        424 => "Failed Dependency",
        425 => "Too Early",
        426 => "Upgrade Required",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        451 => "Unavailable For Legal Reasons",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}

pub(super) fn put_status_line(status: u16, out: &mut impl Sink) {
    out.put(b"HTTP/1.1 ");
    put_number(u64::from(status), out);
    out.put(b" ");
    out.put(reason_of(status).as_bytes());
    out.put(b"\r\n");
}

pub(super) fn put_field(name: &[u8], value: &[u8], out: &mut impl Sink) {
    out.put(name);
    out.put(b": ");
    out.put(value);
    out.put(b"\r\n");
}

fn put_number(number: u64, out: &mut impl Sink) {
    out.put(decimal(number, &mut [0; DIGITS_MAX]));
}
