//! What listeners with TLS or the PROXY protocol saw.

use std::fmt::Write;

use super::family;
use crate::inlet::Tally;

const LISTENERS: [&str; 2] = ["client", "worker"];
const OUTCOMES: [&str; 3] = ["ok", "failed", "abandoned"];

/// Adds what another core has counted.
pub(super) fn add(mine: &mut Tally, other: &Tally) {
    for (mine, other) in mine.handshakes.iter_mut().zip(&other.handshakes) {
        super::add_counts(mine, other);
    }
}

pub(super) fn render(out: &mut String, tally: &Tally) {
    let name = "ringway_tls_handshakes_total";
    family(out, name, "counter", "TLS handshakes by listener and outcome.");
    for (listener, counts) in LISTENERS.iter().zip(&tally.handshakes) {
        for (outcome, count) in OUTCOMES.iter().zip(counts) {
            // Writing to a String cannot fail.
            let _ =
                writeln!(out, "{name}{{listener=\"{listener}\",outcome=\"{outcome}\"}} {count}");
        }
    }
}
