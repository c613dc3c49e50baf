//! What the gateway says in its own name: faults, CORS preflights, `/health`, `/info`.
//!
//! Each function fills a head (`:status` first) and a body, for HTTP/2 and HTTP/1 alike. An empty
//! body means that the head ends the answer: one HEADERS frame with END_STREAM on HTTP/2 (CL-9).

use crate::decimal::{DIGITS_MAX, decimal};
use crate::fault::Fault;
use crate::fields::{Field, Fields};
use crate::grpc;
use crate::route::{Preflight, ReplyStyle};

/// Bytes of a fault's text that are sent; what the control plane says may be longer.
pub const TEXT_MAX: usize = 2048;

/// What `/health` says (OB-4).
#[derive(Clone, Copy, Debug)]
pub struct HealthReport<'a> {
    /// Name and text of each check that failed; none means healthy.
    pub failures: &'a [(&'a str, &'a str)],
    /// When it was checked, as RFC 3339 writes it.
    pub timestamp: &'a str,
    /// The gateway's version.
    pub version: &'a str,
}

/// What `/info` says (LN-4).
#[derive(Clone, Copy, Debug)]
pub struct Info<'a> {
    /// The gateway's version.
    pub version: &'a str,
    /// The commit it was built from.
    pub commit: &'a str,
}

/// The answer to a request that failed before a tunnel could answer it (contract 3.3 to 3.5).
pub fn render(fault: &Fault, style: &ReplyStyle<'_>, fields: &mut Fields, body: &mut Vec<u8>) {
    fields.clear();
    body.clear();
    // CL-41: a lost tunnel shows in gRPC's fields and in the status, and in no text.
    let lost = fault.is_lost_tunnel();
    let text = fault.to_string();
    let text = &text[..text.floor_char_boundary(TEXT_MAX)];
    if style.grpc {
        push_status(fields, fault.grpc_style_status());
        push(fields, b"content-type", b"application/grpc");
        push_number(fields, b"content-length", 0);
        push_number(fields, b"grpc-status", u64::from(fault.code()));
        let mut message = Vec::with_capacity(text.len());
        grpc::encode_message(text, &mut message);
        push(fields, b"grpc-message", &message);
    } else if lost {
        push_status(fields, fault.http_status());
        push_number(fields, b"content-length", 0);
    } else {
        push_status(fields, fault.http_status());
        push(fields, b"content-type", b"text/plain; charset=utf-8");
        push_body(text.as_bytes(), style, fields, body);
    }
    if let Some(seconds) = fault.retry_after() {
        push_number(fields, b"retry-after", u64::from(seconds));
    }
    if fault.clears_cookie() {
        // CL-6, to the letter.
        push(fields, b"set-cookie", b"nvcf-request-id=; Max-Age=0");
    }
    // CL-15: a 502 is the tunnel's failure, not our answer, and gets no CORS fields.
    if !lost {
        push_cors(style, fields);
    }
}

/// The answer to a CORS preflight (CL-12): always 200.
pub fn preflight(asked: &Preflight<'_>, fields: &mut Fields, body: &mut Vec<u8>) {
    fields.clear();
    body.clear();
    push_status(fields, 200);
    push_number(fields, b"content-length", 0);
    push(fields, b"vary", b"Origin");
    push(fields, b"vary", b"Access-Control-Request-Method");
    push(fields, b"vary", b"Access-Control-Request-Headers");
    let Some(origin) = asked.origin else { return };
    push(fields, b"access-control-allow-origin", origin);
    push(fields, b"access-control-allow-methods", &asked.method.to_ascii_uppercase());
    if asked.headers.iter().any(u8::is_ascii_alphanumeric) {
        push(fields, b"access-control-allow-headers", asked.headers);
    }
    push(fields, b"access-control-allow-credentials", b"true");
    push(fields, b"access-control-max-age", b"3600");
}

/// The answer to `/health` on the client port (OB-4).
pub fn health(
    report: &HealthReport<'_>,
    style: &ReplyStyle<'_>,
    fields: &mut Fields,
    body: &mut Vec<u8>,
) {
    fields.clear();
    body.clear();
    let (status, word) =
        if report.failures.is_empty() { (200, "OK") } else { (503, "Unavailable") };
    let mut json = Vec::new();
    push_member(b"{", "status", word, &mut json);
    push_member(b",", "timestamp", report.timestamp, &mut json);
    for (at, (name, text)) in report.failures.iter().enumerate() {
        let before: &[u8] = if at == 0 { b",\"failures\":{" } else { b"," };
        push_member(before, name, text, &mut json);
    }
    if !report.failures.is_empty() {
        json.push(b'}');
    }
    push_member(b",\"component\":{", "name", "grpc proxy", &mut json);
    push_member(b",", "version", report.version, &mut json);
    json.extend_from_slice(b"}}");
    push_status(fields, status);
    push(fields, b"content-type", b"application/json");
    push_body(&json, style, fields, body);
}

/// The answer to `/info` (LN-4).
pub fn info(method: &[u8], facts: &Info<'_>, fields: &mut Fields, body: &mut Vec<u8>) {
    fields.clear();
    body.clear();
    if method != b"GET" {
        push_status(fields, 405);
        push(fields, b"allow", b"GET");
        push_number(fields, b"content-length", 0);
        return;
    }
    let or_unknown =
        |fact: &'_ str| if fact.is_empty() { "unknown".into() } else { fact.to_owned() };
    let mut json = Vec::new();
    push_member(b"{", "service", "nvcf-grpc-proxy", &mut json);
    push_member(b",", "version", &or_unknown(facts.version), &mut json);
    push_member(b",", "commit", &or_unknown(facts.commit), &mut json);
    json.push(b'}');
    push_status(fields, 200);
    push(fields, b"content-type", b"application/json");
    push_body(&json, &ReplyStyle::default(), fields, body);
}

/// CL-14.
fn push_cors(style: &ReplyStyle<'_>, fields: &mut Fields) {
    push(fields, b"vary", b"Origin");
    if let Some(origin) = style.origin {
        push(fields, b"access-control-allow-origin", origin);
        push(fields, b"access-control-allow-credentials", b"true");
    }
}

/// Content-Length, and the body unless it is `HEAD`'s (RFC 9110 §9.3.2).
fn push_body(content: &[u8], style: &ReplyStyle<'_>, fields: &mut Fields, body: &mut Vec<u8>) {
    push_number(fields, b"content-length", content.len() as u64);
    if !style.head {
        body.extend_from_slice(content);
    }
}

fn push_status(fields: &mut Fields, status: u16) {
    push_number(fields, b":status", u64::from(status));
}

fn push_number(fields: &mut Fields, name: &[u8], number: u64) {
    push(fields, name, decimal(number, &mut [0; DIGITS_MAX]));
}

fn push(fields: &mut Fields, name: &[u8], value: &[u8]) {
    fields.push(Field::new(name, value));
}

/// One string member of a JSON object, behind `before`.
fn push_member(before: &[u8], name: &str, value: &str, json: &mut Vec<u8>) {
    json.extend_from_slice(before);
    push_json(name, json);
    json.push(b':');
    push_json(value, json);
}

fn push_json(text: &str, json: &mut Vec<u8>) {
    json.push(b'"');
    for &byte in text.as_bytes() {
        match byte {
            b'"' | b'\\' => json.extend_from_slice(&[b'\\', byte]),
            0..=31 => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                json.extend_from_slice(b"\\u00");
                json.extend_from_slice(&[HEX[(byte >> 4) as usize], HEX[(byte & 15) as usize]]);
            }
            _ => json.push(byte),
        }
    }
    json.push(b'"');
}
