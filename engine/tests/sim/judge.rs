//! Judges the head of an answer.

use super::h2::List;
use super::ledger::{Exchange, Named};

pub(crate) fn field(fields: &[(Vec<u8>, Vec<u8>)], name: &str) -> Option<String> {
    let found = fields.iter().find(|(known, _)| known == name.as_bytes())?;
    Some(String::from_utf8_lossy(&found.1).into_owned())
}

/// A worker's head must arrive as it was sent, with the session's id and perhaps the cookie.
pub(crate) fn relayed_head(number: usize, exchange: &Exchange, mut fields: List, end: bool) {
    assert!(exchange.hopeless.is_none(), "exchange {number}: served against the rules");
    let sent = exchange.down.head.clone().expect("its worker has answered");
    let session = field(&sent, "x-sim-session").expect("workers say it");
    let id = field(&fields, "nvcf-reqid");
    assert_eq!(id.as_deref(), Some(&session[..]), "exchange {number}: another session's id");
    if let Some(at) = fields.iter().position(|(name, _)| name == b"set-cookie") {
        let (_, value) = fields.remove(at);
        let value = String::from_utf8_lossy(&value).into_owned();
        assert_eq!(value, format!("nvcf-request-id={session}"), "exchange {number}: the cookie");
    }
    fields.retain(|(name, _)| name != b"nvcf-reqid");
    assert_eq!(fields, sent, "exchange {number}: another head");
    let only = exchange.down.ended && exchange.down.sent == 0 && exchange.down.trailers.is_none();
    assert!(!end || only, "exchange {number}: the head ends what goes on");
}

/// The gateway's own answer must be one that this request can get. Returns its gRPC code.
pub(crate) fn own_answer(number: usize, exchange: &Exchange, fields: &List, status: &str) -> u8 {
    let code: u8 = match field(fields, "grpc-status") {
        Some(code) => code.parse().expect("a number"),
        None => match status {
            "400" => 3,
            "401" => 16,
            "403" => 7,
            "404" => 5,
            "429" | "431" => 8,
            "500" => 13,
            "502" | "503" => 14,
            "504" => 4,
            other => panic!("exchange {number}: answered with {other}"),
        },
    };
    assert_eq!(field(fields, "grpc-status").is_some(), exchange.grpc, "exchange {number}");
    let message = field(fields, "grpc-message").unwrap_or_default();
    exchange.judge_refusal(number, code, &message);
    if exchange.was_told(code) {
        return code;
    }
    // The gateway looks for overload and drain before anything else.
    let any = [8, 14];
    let fine = match (exchange.hopeless, &exchange.named) {
        (Some(hopeless), Named::Session(_)) => code == hopeless || code == 5 || any.contains(&code),
        (Some(hopeless), _) => code == hopeless || any.contains(&code),
        // The request may have waited for a session that another request named.
        (None, Named::Nothing) => [4, 8, 14].contains(&code) || (code == 5 && exchange.excuse),
        (None, _) => [4, 5, 8, 14].contains(&code),
    };
    assert!(fine, "exchange {number}: answered with {code}, {:?}", exchange.named);
    if status == "502" {
        assert!(exchange.excuse, "exchange {number}: 502, but no tunnel was lost");
    }
    code
}
