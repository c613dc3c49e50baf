//! What is counted of the connection to NATS (contract 8.1).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use async_nats::Statistics;

use crate::metrics::{each, family, single};

/// The counts. They begin at zero, and all of them are told from the first scrape on.
#[derive(Debug, Default)]
pub(in crate::remote) struct Meters {
    errors: AtomicU64,
    failures: [AtomicU64; Failure::ALL.len()],
    disconnects: AtomicU64,
    reconnects: AtomicU64,
    lame_ducks: AtomicU64,
    statistics: OnceLock<Arc<Statistics>>,
}

/// Kinds of failures, by what the error says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    CertificateExpired,
    TlsVerification,
    Tls,
    Authentication,
    Timeout,
    Connection,
    Other,
}

impl Failure {
    const ALL: [Self; 7] = [
        Self::CertificateExpired,
        Self::TlsVerification,
        Self::Tls,
        Self::Authentication,
        Self::Timeout,
        Self::Connection,
        Self::Other,
    ];

    const fn label(self) -> &'static str {
        match self {
            Self::CertificateExpired => "certificate_expired",
            Self::TlsVerification => "tls_verification",
            Self::Tls => "tls",
            Self::Authentication => "authentication",
            Self::Timeout => "timeout",
            Self::Connection => "connection",
            Self::Other => "other",
        }
    }

    /// The client library and rustls say what happened in words alone.
    pub(super) fn of(text: &str) -> Self {
        const CONNECTION: [&str; 7] = [
            "refused",
            "reset",
            "broken pipe",
            "dns",
            "unreachable",
            "stale connection",
            "io error",
        ];
        let text = text.to_ascii_lowercase();
        let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
        if says(&["certificate"]) && says(&["expired", "not valid after"]) {
            Self::CertificateExpired
        } else if says(&["certificate", "unknownissuer"]) {
            Self::TlsVerification
        } else if says(&["tls", "alert", "handshake failure"]) {
            Self::Tls
        } else if says(&["authorization", "authentication", "signing nonce"]) {
            Self::Authentication
        } else if says(&["timed out", "timeout"]) {
            Self::Timeout
        } else if says(&CONNECTION) {
            Self::Connection
        } else {
            Self::Other
        }
    }
}

impl Meters {
    /// The client library's own counts are there from now on.
    pub(super) fn follow(&self, statistics: Arc<Statistics>) {
        // There is one connection for each of these.
        let _ = self.statistics.set(statistics);
    }

    pub(super) fn error(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn failure(&self, failure: Failure) {
        self.failures[failure as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn disconnected(&self) {
        self.disconnects.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn reconnected(&self) {
        self.reconnects.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn lame_duck(&self) {
        self.lame_ducks.fetch_add(1, Ordering::Relaxed);
    }

    /// Writes them as Prometheus reads them.
    pub(in crate::remote) fn render(&self, out: &mut String) {
        const FAILURES: &str = "nvcf_grpc_proxy_service_nats_failure_total";
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let mut counter = |name: &str, help: &str, count: u64| {
            let name = format!("nvcf_grpc_proxy_service_{name}");
            single(out, (&name, "counter"), help, count);
        };
        counter("nats_error_total", "Errors that NATS reported by itself.", of(&self.errors));
        let lost = of(&self.disconnects);
        counter("nats_disconnect_total", "Connections to NATS that were lost.", lost);
        let again = of(&self.reconnects);
        counter("nats_reconnect_total", "Connections to NATS after the first one.", again);
        let leaving = of(&self.lame_ducks);
        counter("nats_lame_duck_total", "NATS servers that said they will leave.", leaving);
        family(out, FAILURES, "counter", "Failures of the connection to NATS.");
        let failures = Failure::ALL.into_iter();
        let failures =
            failures.map(|failure| (failure.label(), of(&self.failures[failure as usize])));
        each(out, FAILURES, "reason", failures);
        self.render_statistics(out);
    }

    fn render_statistics(&self, out: &mut String) {
        // The metrics are there even before there is a connection.
        let none = Arc::default();
        let counts = self.statistics.get().unwrap_or(&none);
        let now = Ordering::Relaxed;
        let again = counts.connects.load(now).saturating_sub(1);
        for (name, help, value) in [
            ("nats_out_bytes", "Bytes sent to NATS.", counts.out_bytes.load(now)),
            ("nats_in_bytes", "Bytes received from NATS.", counts.in_bytes.load(now)),
            ("nats_out_msgs", "Messages sent to NATS.", counts.out_messages.load(now)),
            ("nats_in_msgs", "Messages received from NATS.", counts.in_messages.load(now)),
            ("nats_reconnects", "Connections to NATS after the first one.", again),
        ] {
            let name = format!("nvcf_grpc_proxy_service_{name}");
            single(out, (&name, "gauge"), help, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_told_apart_by_their_words() {
        for (text, failure) in [
            ("TLS error: invalid peer certificate: Expired", Failure::CertificateExpired),
            ("IO error: invalid peer certificate: UnknownIssuer", Failure::TlsVerification),
            ("TLS error: received fatal alert: BadCertificate", Failure::TlsVerification),
            ("TLS error: invalid dns name", Failure::Tls),
            ("authorization violation: nats: authorization violation", Failure::Authentication),
            ("nats: User Authentication Expired", Failure::Authentication),
            ("timed out", Failure::Timeout),
            ("IO error: Connection refused (os error 111)", Failure::Connection),
            ("DNS error", Failure::Connection),
            ("nats: Permissions Violation for Publish to \"a\"", Failure::Other),
        ] {
            assert_eq!(Failure::of(text), failure, "{text}");
        }
    }

    #[test]
    fn all_is_told_from_the_first_scrape_on() {
        let meters = Meters::default();
        meters.failure(Failure::Timeout);
        let mut out = String::new();
        meters.render(&mut out);
        for line in [
            "nats_error_total 0",
            "nats_failure_total{reason=\"certificate_expired\"} 0",
            "nats_failure_total{reason=\"timeout\"} 1",
            "nats_disconnect_total 0",
            "nats_reconnect_total 0",
            "nats_lame_duck_total 0",
            "nats_out_bytes 0",
            "nats_in_bytes 0",
            "nats_out_msgs 0",
            "nats_in_msgs 0",
            "nats_reconnects 0",
        ] {
            let line = format!("nvcf_grpc_proxy_service_{line}");
            assert!(out.lines().any(|told| told == line), "{line} is missing in\n{out}");
        }
    }
}
