//! Every counter and gauge of one core: plain integers, counted by the core's own thread, copied
//! and summed when somebody asks.
//!
//! Names and labels are those of the reference (contract 8.1) where the meaning is the same, and
//! begin with `ringway_` where it is ours. Label sets are closed and exported from the first
//! scrape on, at zero.

mod histogram;
mod labels;
mod relays;
mod resumes;
mod tables;
mod transport;

use std::fmt::Write;

pub use histogram::Histogram;
use histogram::{DEFAULT_SECONDS, LIFE_SECONDS, START_SECONDS, TOKEN_AGE_SECONDS, TUNNELS};
pub use labels::{
    AskOutcome, Backend, CONNECT_RESULTS, CloseCode, CloseReason, CopyWhy, Limit, RelayCause,
    RelayOutcome, ResumeOutcome, ResumeWay, SpareOutcome, StartPart, TakenCause, TakenOutcome,
};
pub use relays::Relays;
pub use resumes::Resumes;
pub use tables::{FunctionRequests, HttpKey, HttpSample, HttpTable, HttpVersion, Method};

/// Prefix of the reference's own metrics.
const P: &str = "nvcf_grpc_proxy_service_";

/// What one core has counted.
#[derive(Clone, Debug)]
pub struct ShardMetrics {
    /// Invocation requests open now.
    pub active_http_requests: u64,
    /// Client connections open now.
    pub active_connections: u64,
    /// Client connections accepted.
    pub client_connections_opened: u64,
    /// Life of a client connection, at its end.
    pub client_connection_seconds: Histogram,
    /// Attachments a client connection has had, at its end.
    pub client_connection_tunnels: Histogram,
    /// Time of a successful initialisation, without the wait for the worker; index: is_reconnect.
    pub session_init_seconds: [Histogram; 2],
    /// Worker tokens minted.
    pub tokens_issued: u64,
    /// Worker CONNECTs by outcome, in the order of [`CONNECT_RESULTS`].
    pub connects: [u64; CONNECT_RESULTS.len()],
    /// Age of the token shown, by the same outcomes.
    pub connect_token_age: [Histogram; CONNECT_RESULTS.len()],
    /// Worker connections pending, attached or active now.
    pub worker_connections_active: u64,
    /// Worker connections that became pending.
    pub worker_connections_opened: u64,
    /// Worker connections ended, by [`CloseReason`].
    pub worker_connections_closed: [u64; CloseReason::COUNT],
    /// Worker connections ended, by [`CloseCode`].
    pub close_codes: [u64; CloseCode::COUNT],
    /// Life of a worker connection, at its end.
    pub worker_connection_seconds: Histogram,
    /// New sessions by function, version and account.
    pub function_requests: FunctionRequests,
    /// Exchanges with clients.
    pub http_server: HttpTable,
    /// Exchanges on tunnels.
    pub http_client: HttpTable,
    /// Payload bytes copied, by [`CopyWhy`].
    pub payload_copied: [u64; CopyWhy::COUNT],
    /// Payload bytes sent from where they were received.
    pub payload_relayed: u64,
    /// Panics caught at this core's edge.
    pub shard_panics: u64,
    /// Facts that waited for the next turn because too many had followed from one event.
    pub facts_put_off: u64,
    /// What was refused because of a limit, by [`Limit`].
    pub limit_hits: [u64; Limit::COUNT],
    /// How much of a limit is used now, by [`Limit`]; for a limit per connection: the fullest.
    pub limit_used: [u64; Limit::COUNT],
    /// What the limit is, by [`Limit`]; 0 where none is kept.
    pub limit_max: [u64; Limit::COUNT],
    /// 1 for what drives this core, by [`Backend`].
    pub io_backend: [u64; Backend::COUNT],
    /// Messages sent to other cores.
    pub cross_core_messages: u64,
    /// Connections taken up from other cores.
    pub core_moves: u64,
    /// Spare tunnels that workers were asked for, by [`SpareOutcome`].
    pub spares: [u64; SpareOutcome::COUNT],
    /// How long sessions took to start, by [`StartPart`].
    pub start_seconds: [Histogram; StartPart::COUNT],
    /// Questions to the control plane, by [`AskOutcome`].
    pub asks: [u64; AskOutcome::COUNT],
    /// Tunnels parked now, and what became of those that were.
    pub resumes: Resumes,
    /// Connections that go to other gateways, and come from them.
    pub relays: Relays,
    /// What listeners with TLS or the PROXY protocol saw.
    pub transport: crate::transport::Tally,
}

impl Default for ShardMetrics {
    fn default() -> Self {
        Self {
            active_http_requests: 0,
            active_connections: 0,
            client_connections_opened: 0,
            client_connection_seconds: Histogram::new(LIFE_SECONDS),
            client_connection_tunnels: Histogram::new(TUNNELS),
            session_init_seconds: [Histogram::new(DEFAULT_SECONDS); 2],
            tokens_issued: 0,
            connects: [0; CONNECT_RESULTS.len()],
            connect_token_age: [Histogram::new(TOKEN_AGE_SECONDS); CONNECT_RESULTS.len()],
            worker_connections_active: 0,
            worker_connections_opened: 0,
            worker_connections_closed: [0; CloseReason::COUNT],
            close_codes: [0; CloseCode::COUNT],
            worker_connection_seconds: Histogram::new(LIFE_SECONDS),
            function_requests: FunctionRequests::default(),
            http_server: HttpTable::default(),
            http_client: HttpTable::default(),
            payload_copied: [0; CopyWhy::COUNT],
            payload_relayed: 0,
            shard_panics: 0,
            facts_put_off: 0,
            limit_hits: [0; Limit::COUNT],
            limit_used: [0; Limit::COUNT],
            limit_max: [0; Limit::COUNT],
            io_backend: [0; Backend::COUNT],
            cross_core_messages: 0,
            core_moves: 0,
            spares: [0; SpareOutcome::COUNT],
            start_seconds: [Histogram::new(START_SECONDS); StartPart::COUNT],
            asks: [0; AskOutcome::COUNT],
            resumes: Resumes::default(),
            relays: Relays::default(),
            transport: crate::transport::Tally::default(),
        }
    }
}

impl ShardMetrics {
    /// Counts something refused because of a limit.
    pub fn limit_hit(&mut self, limit: Limit) {
        self.limit_hits[limit.index()] += 1;
    }

    /// Says how much of a limit is used.
    pub fn gauge(&mut self, limit: Limit, used: usize, max: usize) {
        self.limit_used[limit.index()] = used as u64;
        self.limit_max[limit.index()] = max as u64;
    }

    /// The counters without the gauges, for a core that is silent or has begun anew.
    #[must_use]
    pub fn counters(&self) -> Self {
        let mut counters = self.clone();
        counters.active_http_requests = 0;
        counters.active_connections = 0;
        counters.worker_connections_active = 0;
        counters.limit_used = [0; Limit::COUNT];
        counters.limit_max = [0; Limit::COUNT];
        counters.io_backend = [0; Backend::COUNT];
        counters.resumes.parked = 0;
        counters.relays.active = [0; RelayCause::COUNT];
        counters
    }

    /// Adds what another core has counted.
    pub fn add(&mut self, other: &Self) {
        self.active_http_requests += other.active_http_requests;
        self.active_connections += other.active_connections;
        self.client_connections_opened += other.client_connections_opened;
        self.client_connection_seconds.add(&other.client_connection_seconds);
        self.client_connection_tunnels.add(&other.client_connection_tunnels);
        add_histograms(&mut self.session_init_seconds, &other.session_init_seconds);
        self.tokens_issued += other.tokens_issued;
        add_counts(&mut self.connects, &other.connects);
        add_histograms(&mut self.connect_token_age, &other.connect_token_age);
        self.worker_connections_active += other.worker_connections_active;
        self.worker_connections_opened += other.worker_connections_opened;
        add_counts(&mut self.worker_connections_closed, &other.worker_connections_closed);
        add_counts(&mut self.close_codes, &other.close_codes);
        self.worker_connection_seconds.add(&other.worker_connection_seconds);
        self.function_requests.add(&other.function_requests);
        self.http_server.add(&other.http_server);
        self.http_client.add(&other.http_client);
        add_counts(&mut self.payload_copied, &other.payload_copied);
        self.payload_relayed += other.payload_relayed;
        self.shard_panics += other.shard_panics;
        self.facts_put_off += other.facts_put_off;
        add_counts(&mut self.limit_hits, &other.limit_hits);
        for limit in Limit::ALL {
            let i = limit.index();
            let join = if limit.adds_up() { u64::saturating_add } else { u64::max };
            self.limit_used[i] = join(self.limit_used[i], other.limit_used[i]);
            self.limit_max[i] = join(self.limit_max[i], other.limit_max[i]);
        }
        add_counts(&mut self.io_backend, &other.io_backend);
        self.cross_core_messages += other.cross_core_messages;
        self.core_moves += other.core_moves;
        add_counts(&mut self.spares, &other.spares);
        add_histograms(&mut self.start_seconds, &other.start_seconds);
        add_counts(&mut self.asks, &other.asks);
        self.resumes.add(&other.resumes);
        self.relays.add(&other.relays);
        transport::add(&mut self.transport, &other.transport);
    }

    /// Writes everything in the Prometheus text format.
    pub fn render(&self, out: &mut String) {
        self.render_clients(out);
        self.render_workers(out);
        family(
            out,
            "function_request_total",
            "counter",
            "New sessions by function, version and account.",
        );
        self.function_requests.render(out, "function_request_total");
        self.http_server.render(out, "http_server", "requests of clients");
        self.http_client.render(out, "http_client", "exchanges on tunnels");
        self.render_ours(out);
        self.resumes.render(out);
        self.relays.render(out);
        transport::render(out, &self.transport);
    }

    fn render_clients(&self, out: &mut String) {
        let gauge = "gauge";
        single(
            out,
            (&format!("{P}active_http_requests_total"), gauge),
            "Invocation requests open now.",
            self.active_http_requests,
        );
        single(
            out,
            (&format!("{P}active_connections_total"), gauge),
            "Client connections open now.",
            self.active_connections,
        );
        single(
            out,
            (&format!("{P}client_connection_opened_total"), "counter"),
            "Client connections accepted.",
            self.client_connections_opened,
        );
        let name = format!("{P}client_connection_duration_seconds");
        family(out, &name, "histogram", "Life of a client connection.");
        self.client_connection_seconds.render(out, &name, "");
        let name = format!("{P}client_connection_worker_tunnels_at_close");
        family(out, &name, "histogram", "Worker tunnels a client connection had at its end.");
        self.client_connection_tunnels.render(out, &name, "");
        let name = format!("{P}session_init_seconds_total");
        family(out, &name, "histogram", "Session initialisation, without the wait for the worker.");
        for (histogram, label) in self.session_init_seconds.iter().zip(["false", "true"]) {
            histogram.render(out, &name, &format!("is_reconnect=\"{label}\""));
        }
    }

    fn render_workers(&self, out: &mut String) {
        single(
            out,
            (&format!("{P}worker_token_issued_total"), "counter"),
            "Worker tokens minted.",
            self.tokens_issued,
        );
        let name = format!("{P}worker_connect_total");
        family(out, &name, "counter", "Worker CONNECTs by outcome.");
        each(out, &name, "result", CONNECT_RESULTS.into_iter().zip(self.connects));
        let name = format!("{P}worker_connect_token_age_seconds");
        family(out, &name, "histogram", "Age of the token a worker showed.");
        for (histogram, label) in self.connect_token_age.iter().zip(CONNECT_RESULTS) {
            if histogram.count() > 0 {
                histogram.render(out, &name, &format!("result=\"{label}\""));
            }
        }
        single(
            out,
            (&format!("{P}worker_connections_active"), "gauge"),
            "Worker connections pending, attached or active now.",
            self.worker_connections_active,
        );
        single(
            out,
            (&format!("{P}worker_connection_opened_total"), "counter"),
            "Worker connections that became pending.",
            self.worker_connections_opened,
        );
        let name = format!("{P}worker_connection_closed_total");
        family(out, &name, "counter", "Worker connections ended, by cause.");
        let labels = CloseReason::ALL.iter().map(|reason| reason.label());
        each(out, &name, "reason", labels.zip(self.worker_connections_closed));
        let name = format!("{P}worker_connection_close_code_total");
        family(out, &name, "counter", "Worker connections ended, by what the transport said.");
        let labels = CloseCode::ALL.iter().map(|code| code.label());
        each(out, &name, "code", labels.zip(self.close_codes));
        let name = format!("{P}worker_connection_duration_seconds");
        family(out, &name, "histogram", "Life of a worker connection.");
        self.worker_connection_seconds.render(out, &name, "");
    }

    fn render_ours(&self, out: &mut String) {
        let name = "ringway_payload_copied_bytes_total";
        family(out, name, "counter", "Payload bytes copied inside the gateway.");
        let labels = CopyWhy::ALL.iter().map(|why| why.label());
        each(out, name, "why", labels.zip(self.payload_copied));
        single(
            out,
            ("ringway_payload_relayed_bytes_total", "counter"),
            "Payload bytes sent from where they were received.",
            self.payload_relayed,
        );
        let name = "ringway_io_backend";
        family(out, name, "gauge", "Cores by what drives them.");
        let labels = Backend::ALL.iter().map(|backend| backend.label());
        each(out, name, "backend", labels.zip(self.io_backend));
        single(
            out,
            ("ringway_shard_panics_total", "counter"),
            "Panics caught at a core's edge; its connections were closed.",
            self.shard_panics,
        );
        single(
            out,
            ("ringway_facts_put_off_total", "counter"),
            "What waited for the next turn because too much had followed from one event: a fault of ours.",
            self.facts_put_off,
        );
        single(
            out,
            ("ringway_cross_core_messages_total", "counter"),
            "Messages sent to other cores.",
            self.cross_core_messages,
        );
        single(
            out,
            ("ringway_core_moves_total", "counter"),
            "Connections taken up from other cores.",
            self.core_moves,
        );
        let name = "ringway_spares_total";
        family(out, name, "counter", "Spare tunnels that workers were asked for.");
        let labels = SpareOutcome::ALL.iter().map(|outcome| outcome.label());
        each(out, name, "outcome", labels.zip(self.spares));
        let name = "ringway_session_start_seconds";
        family(out, name, "histogram", "Parts of the start of sessions; claim is part of dial.");
        for (histogram, part) in self.start_seconds.iter().zip(StartPart::ALL) {
            histogram.render(out, name, &format!("part=\"{}\"", part.label()));
        }
        let name = "ringway_control_asks_total";
        family(out, name, "counter", "Questions to the control plane, and how they ended.");
        let labels = AskOutcome::ALL.iter().map(|outcome| outcome.label());
        each(out, name, "outcome", labels.zip(self.asks));
        let kept = |values: [u64; Limit::COUNT]| {
            let limits = Limit::ALL.iter().filter(|limit| self.limit_max[limit.index()] > 0);
            limits.map(move |limit| (limit.label(), values[limit.index()]))
        };
        family(out, "ringway_limit_used", "gauge", "How much of a limit is used now.");
        each(out, "ringway_limit_used", "limit", kept(self.limit_used));
        family(out, "ringway_limit_max", "gauge", "What the limit is.");
        each(out, "ringway_limit_max", "limit", kept(self.limit_max));
        family(out, "ringway_limit_hits_total", "counter", "What a limit has refused.");
        let labels = Limit::ALL.iter().map(|limit| limit.label());
        each(out, "ringway_limit_hits_total", "limit", labels.zip(self.limit_hits));
    }
}

fn add_counts<const N: usize>(mine: &mut [u64; N], theirs: &[u64; N]) {
    for (mine, theirs) in mine.iter_mut().zip(theirs) {
        *mine += theirs;
    }
}

fn add_histograms<const N: usize>(mine: &mut [Histogram; N], theirs: &[Histogram; N]) {
    for (mine, theirs) in mine.iter_mut().zip(theirs) {
        mine.add(theirs);
    }
}

/// Writes a family's head.
pub(crate) fn family(out: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// Writes a family of one series without labels.
pub(crate) fn single(out: &mut String, (name, kind): (&str, &str), help: &str, value: u64) {
    family(out, name, kind, help);
    let _ = writeln!(out, "{name} {value}");
}

/// Writes the series of a family that differ in one label.
pub(crate) fn each<'a>(
    out: &mut String,
    name: &str,
    label: &str,
    series: impl Iterator<Item = (&'a str, u64)>,
) {
    for (value, count) in series {
        let _ = writeln!(out, "{name}{{{label}=\"{value}\"}} {count}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(metrics: &ShardMetrics) -> String {
        let mut out = String::new();
        metrics.render(&mut out);
        out
    }

    #[test]
    fn closed_label_sets_are_complete_at_the_first_scrape() {
        let text = text(&ShardMetrics::default());
        for line in [
            "nvcf_grpc_proxy_service_active_http_requests_total 0",
            "nvcf_grpc_proxy_service_active_connections_total 0",
            "nvcf_grpc_proxy_service_client_connection_opened_total 0",
            "nvcf_grpc_proxy_service_client_connection_duration_seconds_bucket{le=\"3600\"} 0",
            "nvcf_grpc_proxy_service_client_connection_worker_tunnels_at_close_bucket{le=\"0\"} 0",
            "nvcf_grpc_proxy_service_session_init_seconds_total_bucket{is_reconnect=\"true\",le=\"0.005\"} 0",
            "nvcf_grpc_proxy_service_worker_token_issued_total 0",
            "nvcf_grpc_proxy_service_worker_connect_total{result=\"rejected_hijack_failed\"} 0",
            "nvcf_grpc_proxy_service_worker_connections_active 0",
            "nvcf_grpc_proxy_service_worker_connection_opened_total 0",
            "nvcf_grpc_proxy_service_worker_connection_closed_total{reason=\"ttl_expired\"} 0",
            "nvcf_grpc_proxy_service_worker_connection_close_code_total{code=\"h2_goaway\"} 0",
            "ringway_payload_copied_bytes_total{why=\"slow_peer\"} 0",
            "ringway_limit_hits_total{limit=\"streams\"} 0",
        ] {
            assert!(text.lines().any(|l| l == line), "missing {line}");
        }
        let of = |name: &str| text.lines().filter(|l| l.starts_with(name)).count();
        assert_eq!(of("nvcf_grpc_proxy_service_worker_connect_total{"), 9);
        assert_eq!(of("nvcf_grpc_proxy_service_worker_connection_closed_total{"), 7);
        assert_eq!(of("nvcf_grpc_proxy_service_worker_connection_close_code_total{"), 16);
    }

    #[test]
    fn every_series_belongs_to_the_family_announced_last() {
        let mut metrics = ShardMetrics::default();
        metrics.connect_token_age[7].observe(0.2);
        metrics.function_requests.count("f", "v", "n", ringway_proto::time::Time::ZERO);
        let key = HttpKey { method: Method::Post, status: 200, version: HttpVersion::H2 };
        metrics.http_server.observe(key, HttpSample::default());
        metrics.limit_max[Limit::Streams.index()] = 5;
        let text = text(&metrics);
        let mut family = "";
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                family = rest.split(' ').next().unwrap();
            } else if !line.starts_with('#') {
                assert!(line.starts_with(family), "{line} under {family}");
            }
        }
        assert!(text.contains(
            "http_server_request_duration_seconds_count{http_request_method=\"POST\",\
             http_response_status_code=\"200\",network_protocol_version=\"2\"} 1\n"
        ));
        assert!(text.contains("ringway_limit_max{limit=\"streams\"} 5\n"));
        assert!(!text.contains("server_address"));
    }

    #[test]
    fn cores_add_up_and_limits_of_one_connection_do_not() {
        let mut one = ShardMetrics { tokens_issued: 3, ..Default::default() };
        one.worker_connections_closed[CloseReason::Shutdown.index()] = 2;
        one.session_init_seconds[1].observe(0.1);
        one.limit_max[Limit::Streams.index()] = 10;
        one.limit_max[Limit::ClientConnections.index()] = 10;
        one.function_requests.count("f", "v", "n", ringway_proto::time::Time::ZERO);
        let mut sum = ShardMetrics::default();
        sum.add(&one);
        sum.add(&one);
        assert_eq!(sum.tokens_issued, 6);
        assert_eq!(sum.worker_connections_closed[CloseReason::Shutdown.index()], 4);
        assert_eq!(sum.session_init_seconds[1].count(), 2);
        assert_eq!(sum.limit_max[Limit::Streams.index()], 10);
        assert_eq!(sum.limit_max[Limit::ClientConnections.index()], 20);
        assert!(text(&sum).contains("nca_id=\"n\"} 2\n"));
    }
}
