//! TEMP
#![expect(missing_docs, reason = "temporary")]
use std::time::Duration;
#[derive(Default)]
pub struct SessionEdge<'a> { pub request_id: &'a str, pub function_id: &'a str, pub function_version_id: &'a str, pub eviction_reason: &'static str, pub close_code: &'static str, pub close_detail: &'a str, pub closed_by_peer: bool, pub local_timeout: &'static str, pub held_for: Duration, pub shard: u16}
pub fn rfc3339(_m: u64) -> String { String::new() }
pub fn open_failed(_f: &ringway_proto::fault::Fault, _c: u16) {}
pub fn connect_rejected(_r: &str, _a: Option<Duration>, _c: u16) {}
pub fn tunnel_registered(_e: &SessionEdge<'_>) {}
pub fn attachment_closed(_e: &SessionEdge<'_>) {}
pub fn connection_failed(_p: std::net::SocketAddr, _t: bool, _f: &ringway_proto::h2::ConnFault, _c: u16) {}
