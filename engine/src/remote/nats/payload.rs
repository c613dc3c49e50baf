//! What a worker is asked to do, as it travels (contract 6.2), and under which subjects.

use std::time::SystemTime;

use bytes::Bytes;
use prost::Message;

use super::super::pb::connection_config::{Config, Http1Config};
use super::super::pb::{ConnectionConfig, StatefulConfig, WorkerInvokeFunctionRequest};
use crate::control::local::Work;

/// Octets of a version id in a subject.
const LONGEST_TOKEN: usize = 128;

/// Work for a worker, which tries the URIs in order (contract 4.6). It has the same form on each way
/// to one.
pub(super) fn payload(work: &Work, region: &str, proxy_uris: &[String]) -> Bytes {
    let connection = |proxy_uri: &String| {
        let config = Http1Config {
            proxy_uri: proxy_uri.clone(),
            // A token is letters and digits.
            proxy_authorization_token: String::from_utf8_lossy(&work.token).into_owned(),
        };
        ConnectionConfig { config: Some(Config::Http1Config(config)) }
    };
    let request = WorkerInvokeFunctionRequest {
        request_id: work.request_id.to_string(),
        nca_id: work.owner.tenant.to_string(),
        subject: work.owner.subject.to_string(),
        request_time: Some(SystemTime::now().into()),
        stateful_config: Some(StatefulConfig {
            nvcf_region_of_invoker: region.into(),
            connection_configs: proxy_uris.iter().map(connection).collect(),
        }),
    };
    request.encode_to_vec().into()
}

/// Whether a text can be one token of a subject: it names nothing else then.
pub(super) fn is_token(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'.' | b'*' | b'>');
    (1..=LONGEST_TOKEN).contains(&text.len()) && text.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_of_a_subject_names_nothing_else() {
        assert!(is_token("0b1a-9") && is_token(&"a".repeat(LONGEST_TOKEN)));
        for text in ["", "a.b", "*", ">", "a b", "a\r\nPUB", "\u{e9}"] {
            assert!(!is_token(text), "{text:?}");
        }
        assert!(!is_token(&"a".repeat(LONGEST_TOKEN + 1)));
    }
}
