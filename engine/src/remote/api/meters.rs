//! The counters of the clients of NVIDIA's services (contract 8.1).

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;
use tonic::Code;

use crate::metrics::{Histogram, each, family, single};

/// OpenTelemetry's default bounds, which are the reference's, in milliseconds.
const MILLISECONDS: &[f64] = &[
    0.0, 5.0, 10.0, 25.0, 50.0, 75.0, 100.0, 250.0, 500.0, 750.0, 1000.0, 2500.0, 5000.0, 7500.0,
    10000.0,
];
/// Status codes of gRPC: 0 to 16.
const CODES: usize = 17;
/// Clients of the token endpoint that have a series of their own, and the octets of their names:
/// whoever writes the secrets file chooses those.
const MOST_CLIENTS: usize = 64;
const MOST_NAME: usize = 128;

/// What is called.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rpc {
    Authorise,
    Limit,
    Health,
}

impl Rpc {
    const ALL: [Self; 3] = [Self::Authorise, Self::Limit, Self::Health];

    /// Service and method, as gRPC names them.
    const fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Authorise => ("nvcf.Proxy", "AuthStatefulWork"),
            Self::Limit => ("nvcfratelimiter.RateLimitService", "RateLimit"),
            Self::Health => ("grpc.health.v1.Health", "Check"),
        }
    }
}

/// How a question to the rate limiter came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Check {
    Allowed,
    Denied,
    /// The limiter did not answer, or its answer cannot be understood: the session was allowed.
    Failed,
    /// There were too many questions at once to ask: the session was allowed.
    Skipped,
}

impl Check {
    const ALL: [(Self, &'static str); 4] = [
        (Self::Allowed, "allowed"),
        (Self::Denied, "denied"),
        (Self::Failed, "failed"),
        (Self::Skipped, "skipped"),
    ];
}

/// All that is counted here. One for the process, shared by all clients.
#[derive(Debug, Default)]
pub(crate) struct Meters(Mutex<Counted>);

#[derive(Debug)]
struct Counted {
    calls: [[Histogram; CODES]; Rpc::ALL.len()],
    /// Fetches of OAuth2 tokens that failed, by the client's name and id.
    refresh_errors: BTreeMap<(&'static str, String), u64>,
    /// Open questions to the API, the most there were, and those for which there was no room.
    asked: (u64, u64),
    refused: u64,
    checks: [u64; Check::ALL.len()],
    /// Whether the limiter has answered the last question; none while it was never asked.
    limiter_answers: Option<bool>,
    remembered: u64,
    unremembered: u64,
    /// Reads of the secrets file: usable, and not.
    secrets: [u64; 2],
    api_serves: Option<bool>,
}

impl Default for Counted {
    fn default() -> Self {
        Self {
            calls: [[Histogram::new(MILLISECONDS); CODES]; Rpc::ALL.len()],
            refresh_errors: BTreeMap::new(),
            asked: (0, 0),
            refused: 0,
            checks: [0; Check::ALL.len()],
            limiter_answers: None,
            remembered: 0,
            unremembered: 0,
            secrets: [0; 2],
            api_serves: None,
        }
    }
}

/// A running call. It is counted when this is dropped, as cancelled unless a status came.
#[derive(Debug)]
pub(super) struct Timed<'a> {
    meters: &'a Meters,
    rpc: Rpc,
    since: Instant,
    code: Code,
}

impl Timed<'_> {
    /// The call has ended with this status.
    pub(super) fn ended(mut self, code: Code) {
        self.code = code;
    }
}

impl Drop for Timed<'_> {
    fn drop(&mut self) {
        let took = self.since.elapsed().as_secs_f64() * 1000.0;
        let mut counted = self.meters.counted();
        let of = counted.calls[self.rpc as usize].get_mut(self.code as usize);
        if let Some(histogram) = of {
            histogram.observe(took);
        }
    }
}

/// An open question to the API. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Asked<'a>(&'a Meters);

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.0.counted().asked.0 -= 1;
    }
}

impl Meters {
    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to time a call.
    pub(super) fn time(&self, rpc: Rpc) -> Timed<'_> {
        Timed { meters: self, rpc, since: Instant::now(), code: Code::Cancelled }
    }

    /// Takes one of `most` places for questions to the API; none if there is none.
    pub(super) fn ask(&self, most: usize) -> Option<Asked<'_>> {
        let mut counted = self.counted();
        counted.asked.1 = most as u64;
        if counted.asked.0 >= counted.asked.1 {
            counted.refused += 1;
            return None;
        }
        counted.asked.0 += 1;
        Some(Asked(self))
    }

    /// A token of OAuth2 could not be fetched.
    pub(super) fn refresh_failed(&self, client: &'static str, id: &str) {
        let mut end = id.len().min(MOST_NAME);
        while !id.is_char_boundary(end) {
            end -= 1;
        }
        let mut key = (client, id[..end].to_owned());
        let mut counted = self.counted();
        let known = counted.refresh_errors.contains_key(&key);
        if !known && counted.refresh_errors.len() >= MOST_CLIENTS {
            key.1 = "other".into();
        }
        *counted.refresh_errors.entry(key).or_default() += 1;
    }

    pub(super) fn checked(&self, check: Check) {
        let mut counted = self.counted();
        counted.checks[check as usize] += 1;
        if check != Check::Skipped {
            counted.limiter_answers = Some(check != Check::Failed);
        }
    }

    /// Notes how many refusals of the limiter are remembered. `one_more`: one more found no room.
    pub(super) fn remembered(&self, now: usize, one_more: bool) {
        let mut counted = self.counted();
        counted.remembered = now as u64;
        counted.unremembered += u64::from(one_more);
    }

    pub(super) fn secrets_read(&self, usable: bool) {
        self.counted().secrets[usize::from(!usable)] += 1;
    }

    pub(super) fn api_checked(&self, serves: bool) {
        self.counted().api_serves = Some(serves);
    }

    /// Writes everything in the Prometheus text format.
    pub(crate) fn render(&self, out: &mut String) {
        let counted = self.counted();
        let name = "rpc_client_duration_milliseconds";
        family(out, name, "histogram", "Calls of NVIDIA's API, rate limiter and health check.");
        for rpc in Rpc::ALL {
            let (service, method) = rpc.names();
            for (code, histogram) in counted.calls[rpc as usize].iter().enumerate() {
                if code == 0 || histogram.count() > 0 {
                    let labels = format!(
                        "rpc_service=\"{service}\",rpc_method=\"{method}\",\
                         rpc_grpc_status_code=\"{code}\""
                    );
                    histogram.render(out, name, &labels);
                }
            }
        }
        let name = "nv_client_authn_refresh_errors_total";
        family(out, name, "counter", "Tokens of OAuth2 that could not be fetched.");
        for ((client, id), count) in &counted.refresh_errors {
            let id = id.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            // Writing to a String cannot fail.
            let _ = writeln!(out, "{name}{{client_name=\"{client}\",client_id=\"{id}\"}} {count}");
        }
        counted.render_ours(out);
    }
}

impl Counted {
    fn render_ours(&self, out: &mut String) {
        let gauge = "gauge";
        let name = "ringway_api_calls";
        single(out, (name, gauge), "Questions to NVIDIA's API that are out.", self.asked.0);
        let name = "ringway_api_calls_max";
        single(out, (name, gauge), "How many there can be, once there was one.", self.asked.1);
        let name = "ringway_api_calls_refused_total";
        single(out, (name, "counter"), "Questions there was no room for.", self.refused);
        if let Some(serves) = self.api_serves {
            let name = "ringway_api_serves";
            let help = "1 if NVIDIA's API passed its last health check.";
            single(out, (name, gauge), help, u64::from(serves));
        }
        let name = "ringway_rate_limiter_checks_total";
        family(out, name, "counter", "Questions to the rate limiter; failed and skipped allow.");
        let checks = Check::ALL.iter().map(|(check, label)| (*label, self.checks[*check as usize]));
        each(out, name, "outcome", checks);
        if let Some(answers) = self.limiter_answers {
            let name = "ringway_rate_limiter_answers";
            let help = "1 if the rate limiter answered the last question: at 0 nothing is limited.";
            single(out, (name, gauge), help, u64::from(answers));
        }
        let name = "ringway_rate_limiter_remembered";
        let help = "Refusals that are remembered, of 65536 at most; some may be overdue.";
        single(out, (name, gauge), help, self.remembered);
        let name = "ringway_rate_limiter_unremembered_total";
        single(out, (name, "counter"), "Refusals there was no room for.", self.unremembered);
        let name = "ringway_secrets_reads_total";
        family(out, name, "counter", "Reads of the secrets file.");
        each(out, name, "result", ["usable", "unusable"].into_iter().zip(self.secrets));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_timed_by_their_status_and_those_dropped_are_cancelled() {
        let meters = Meters::default();
        let timed = meters.time(Rpc::Authorise);
        std::thread::sleep(std::time::Duration::from_millis(30));
        timed.ended(Code::NotFound);
        drop(meters.time(Rpc::Limit));
        let mut text = String::new();
        meters.render(&mut text);
        for line in [
            "rpc_client_duration_milliseconds_bucket{rpc_service=\"nvcf.Proxy\",\
             rpc_method=\"AuthStatefulWork\",rpc_grpc_status_code=\"5\",le=\"25\"} 0\n",
            "rpc_client_duration_milliseconds_count{rpc_service=\"nvcf.Proxy\",\
             rpc_method=\"AuthStatefulWork\",rpc_grpc_status_code=\"5\"} 1\n",
            "rpc_client_duration_milliseconds_count{rpc_service=\"nvcf.Proxy\",\
             rpc_method=\"AuthStatefulWork\",rpc_grpc_status_code=\"0\"} 0\n",
            "rpc_client_duration_milliseconds_count{rpc_service=\
             \"nvcfratelimiter.RateLimitService\",rpc_method=\"RateLimit\",\
             rpc_grpc_status_code=\"1\"} 1\n",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    #[test]
    fn clients_of_the_token_endpoint_are_bounded_and_quoted() {
        let meters = Meters::default();
        meters.refresh_failed("api", "a\"b");
        for n in 0..100 {
            meters.refresh_failed("api", &format!("{n}{}", "é".repeat(100)));
        }
        let mut text = String::new();
        meters.render(&mut text);
        let name = "nv_client_authn_refresh_errors_total{client_name=\"api\",client_id=";
        assert!(text.contains(&format!("{name}\"a\\\"b\"}} 1\n")), "{text}");
        assert!(text.contains(&format!("{name}\"other\"}} 37\n")), "{text}");
        assert_eq!(text.matches(name).count(), MOST_CLIENTS + 1);
    }

    #[test]
    fn places_are_given_back() {
        let meters = Meters::default();
        let (first, second) = (meters.ask(2), meters.ask(2));
        assert!(first.is_some() && second.is_some() && meters.ask(2).is_none());
        drop(first);
        assert!(meters.ask(2).is_some());
        let mut text = String::new();
        meters.render(&mut text);
        assert!(text.contains("\nringway_api_calls 1\n"), "{text}");
        assert!(text.contains("\nringway_api_calls_refused_total 1\n"), "{text}");
    }
}
