//! What listeners with TLS or the PROXY protocol saw.

use std::fmt::Write;

use super::family;
use crate::transport::Tally;

const LISTENERS: [&str; 2] = ["client", "worker"];
const OUTCOMES: [&str; 3] = ["ok", "failed", "abandoned"];
const PROXIED: [&str; 3] = ["ok", "untrusted", "malformed"];

/// Adds what another core has counted.
pub(super) fn add(mine: &mut Tally, other: &Tally) {
    for (mine, other) in mine.handshakes.iter_mut().zip(&other.handshakes) {
        super::add_counts(mine, other);
    }
    for (mine, other) in mine.proxied.iter_mut().zip(&other.proxied) {
        super::add_counts(mine, other);
    }
}

pub(super) fn render(out: &mut String, tally: &Tally) {
    let name = "ringway_tls_handshakes_total";
    family(out, name, "counter", "TLS handshakes by listener and outcome.");
    each(out, name, &OUTCOMES, &tally.handshakes);
    let name = "ringway_proxy_protocol_total";
    family(out, name, "counter", "Connections that had to begin with a PROXY header.");
    each(out, name, &PROXIED, &tally.proxied);
}

fn each(out: &mut String, name: &str, outcomes: &[&str; 3], counts: &[[u64; 3]; 2]) {
    for (listener, counts) in LISTENERS.iter().zip(counts) {
        for (outcome, count) in outcomes.iter().zip(counts) {
            // Writing to a String cannot fail.
            let _ =
                writeln!(out, "{name}{{listener=\"{listener}\",outcome=\"{outcome}\"}} {count}");
        }
    }
}
