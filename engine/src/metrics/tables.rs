//! Series whose labels come from traffic: bounded tables.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use indexmap::IndexMap;
use ringway_proto::time::Time;

use super::histogram::{HTTP_BYTES, HTTP_SECONDS, Histogram, Placed};

/// Most series of `function_request_total` on one core; one that was not used lately yields.
pub(super) const FUNCTION_SERIES: usize = 4096;
/// A function's series ends when it was unused for so long (contract 8.1).
pub(super) const FUNCTION_EXPIRY: Duration = Duration::from_secs(6 * 3600);
/// Most (method, status, version) rows of one table; what comes later is counted by status class.
pub(super) const HTTP_ROWS: usize = 128;

/// Sessions begun, by function, version and account.
///
/// With more functions than series every new session may be of one that has none: whose yields is
/// found at once, by the second-chance rule, and keys are shared with those who read a copy.
#[derive(Clone, Debug, Default)]
pub struct FunctionRequests {
    /// Key: the three labels joined by NUL, which none of them can contain.
    rows: IndexMap<Arc<str>, Series, foldhash::fast::RandomState>,
    /// The next series that may have to yield.
    hand: usize,
    key: String,
}

/// What is counted under one key.
#[derive(Clone, Copy, Debug)]
struct Series {
    count: u64,
    last: Time,
    /// Used since the hand came by.
    used: bool,
}

impl FunctionRequests {
    /// Counts a new session.
    pub fn count(&mut self, function: &str, version: &str, nca: &str, now: Time) {
        self.key.clear();
        for part in [function, "\0", version, "\0", nca] {
            self.key.push_str(part);
        }
        if let Some(row) = self.rows.get_mut(self.key.as_str()) {
            *row = Series { count: row.count + 1, last: now, used: true };
            return;
        }
        let key: Arc<str> = self.key.as_str().into();
        let fresh = Series { count: 1, last: now, used: false };
        if self.rows.len() < FUNCTION_SERIES {
            self.rows.insert(key, fresh);
            return;
        }
        let place = self.idle_place();
        // This fails only if the key has another place, and that was looked for above.
        if self.rows.replace_index(place, key).is_ok() {
            self.rows[place] = fresh;
        }
    }

    /// Ends the series that were unused for `FUNCTION_EXPIRY`.
    pub fn expire(&mut self, now: Time) {
        self.rows.retain(|_, row| now.since(row.last) < FUNCTION_EXPIRY);
    }

    /// The number of series.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The place of the series that yields: it was not used since the hand last came by.
    fn idle_place(&mut self) -> usize {
        loop {
            let place = self.hand % self.rows.len();
            self.hand = place + 1;
            if !std::mem::take(&mut self.rows[place].used) {
                return place;
            }
        }
    }

    /// Adds another core's counts. The sum is not held to `FUNCTION_SERIES`: it lives for one
    /// scrape.
    pub fn add(&mut self, other: &Self) {
        for (key, theirs) in &other.rows {
            let none = Series { count: 0, last: Time::ZERO, used: false };
            let row = self.rows.entry(key.clone()).or_insert(none);
            row.count += theirs.count;
            row.last = row.last.max(theirs.last);
        }
    }

    pub(super) fn render(&self, out: &mut String, name: &str) {
        let mut rows: Vec<_> = self.rows.iter().map(|(key, row)| (key, row.count)).collect();
        rows.sort_unstable();
        for (key, count) in rows {
            let mut parts = key.split('\0').map(escape);
            let mut next = || parts.next().unwrap_or_default();
            let _ = writeln!(
                out,
                "{name}{{function_id=\"{}\",function_version_id=\"{}\",nca_id=\"{}\"}} {count}",
                next(),
                next(),
                next(),
            );
        }
    }
}

/// A label value as the text format wants it.
fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// A request method, as far as metrics tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each variant is the method it stands for")]
pub enum Method {
    Connect,
    Delete,
    Get,
    Head,
    Options,
    Patch,
    Post,
    Put,
    Trace,
    Other,
}

impl Method {
    /// The method with this exact name.
    #[must_use]
    pub fn of(name: &[u8]) -> Self {
        match name {
            b"CONNECT" => Self::Connect,
            b"DELETE" => Self::Delete,
            b"GET" => Self::Get,
            b"HEAD" => Self::Head,
            b"OPTIONS" => Self::Options,
            b"PATCH" => Self::Patch,
            b"POST" => Self::Post,
            b"PUT" => Self::Put,
            b"TRACE" => Self::Trace,
            _ => Self::Other,
        }
    }

    /// The label; OpenTelemetry's name for an unknown one.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Connect => "CONNECT",
            Self::Delete => "DELETE",
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Options => "OPTIONS",
            Self::Patch => "PATCH",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Trace => "TRACE",
            Self::Other => "_OTHER",
        }
    }
}

/// An HTTP version, as `network_protocol_version` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HttpVersion {
    /// HTTP/1.0.
    H10,
    /// HTTP/1.1.
    H11,
    /// HTTP/2.
    H2,
}

impl HttpVersion {
    fn label(self) -> &'static str {
        match self {
            Self::H10 => "1.0",
            Self::H11 => "1.1",
            Self::H2 => "2",
        }
    }
}

/// The labels of one finished exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HttpKey {
    /// Request method.
    pub method: Method,
    /// Status of the answer; 0 if there was none.
    pub status: u16,
    /// Version on this hop.
    pub version: HttpVersion,
}

/// One exchange, measured: the same on both hops.
#[derive(Clone, Copy, Debug, Default)]
pub struct HttpSample {
    seconds: Placed,
    request_bytes: Placed,
    response_bytes: Placed,
}

impl HttpSample {
    /// `took` is from the request's head to the answer's end; then the bytes of the two bodies.
    #[must_use]
    pub fn new(took: Duration, request_bytes: u64, response_bytes: u64) -> Self {
        Self {
            seconds: Placed::of(took.as_secs_f64(), HTTP_SECONDS),
            request_bytes: Placed::of(request_bytes as f64, HTTP_BYTES),
            response_bytes: Placed::of(response_bytes as f64, HTTP_BYTES),
        }
    }
}

#[derive(Clone, Debug)]
struct HttpRow {
    key: HttpKey,
    seconds: Histogram,
    request_bytes: Histogram,
    response_bytes: Histogram,
}

/// The HTTP series of one hop.
#[derive(Clone, Debug, Default)]
pub struct HttpTable {
    /// The row used last stands first: traffic repeats itself.
    rows: Vec<HttpRow>,
}

impl HttpTable {
    /// Counts a finished exchange.
    pub fn observe(&mut self, key: HttpKey, sample: HttpSample) {
        let row = self.row(key);
        row.seconds.count_in(sample.seconds);
        row.request_bytes.count_in(sample.request_bytes);
        row.response_bytes.count_in(sample.response_bytes);
    }

    /// Adds another core's counts.
    pub fn add(&mut self, other: &Self) {
        for theirs in &other.rows {
            let mine = self.row(theirs.key);
            mine.seconds.add(&theirs.seconds);
            mine.request_bytes.add(&theirs.request_bytes);
            mine.response_bytes.add(&theirs.response_bytes);
        }
    }

    fn row(&mut self, key: HttpKey) -> &mut HttpRow {
        if let Some(at) = self.rows.iter().position(|row| row.key == key) {
            // Rows are large: one that stands there already is not moved about.
            if at > 0 {
                self.rows.swap(0, at);
            }
            return &mut self.rows[0];
        }
        let class = HttpKey { method: Method::Other, status: key.status / 100 * 100, ..key };
        if self.rows.len() >= HTTP_ROWS && key != class {
            // At most ten classes and three versions: the recursion ends with the next call.
            return self.row(class);
        }
        self.rows.push(HttpRow {
            key,
            seconds: Histogram::new(HTTP_SECONDS),
            request_bytes: Histogram::new(HTTP_BYTES),
            response_bytes: Histogram::new(HTTP_BYTES),
        });
        let last = self.rows.len() - 1;
        &mut self.rows[last]
    }

    /// Writes the families `{prefix}_request_duration_seconds` and the body sizes.
    pub(super) fn render(&self, out: &mut String, prefix: &str, what: &str) {
        type Pick = fn(&HttpRow) -> &Histogram;
        let families: [(&str, &str, Pick); 3] = [
            ("request_duration_seconds", "Duration of", |row| &row.seconds),
            ("request_body_size_bytes", "Request body bytes of", |row| &row.request_bytes),
            ("response_body_size_bytes", "Response body bytes of", |row| &row.response_bytes),
        ];
        let mut rows: Vec<&HttpRow> = self.rows.iter().collect();
        rows.sort_unstable_by_key(|row| row.key);
        for (suffix, help, pick) in families {
            let name = format!("{prefix}_{suffix}");
            super::family(out, &name, "histogram", &format!("{help} {what}."));
            for row in &rows {
                let labels = format!(
                    "http_request_method=\"{}\",http_response_status_code=\"{}\",\
                     network_protocol_version=\"{}\"",
                    row.key.method.label(),
                    row.key.status,
                    row.key.version.label(),
                );
                pick(row).render(out, &name, &labels);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_function_series_expires_after_six_hours_unused() {
        let mut table = FunctionRequests::default();
        table.count("f", "v", "old", Time::ZERO);
        let later = Time::ZERO + FUNCTION_EXPIRY;
        table.count("f", "v", "new", later);
        table.expire(later);
        assert_eq!(table.len(), 1);
        let mut text = String::new();
        table.render(&mut text, "t");
        assert_eq!(text, "t{function_id=\"f\",function_version_id=\"v\",nca_id=\"new\"} 1\n");
    }

    #[test]
    fn a_full_function_table_drops_one_that_was_not_used_again() {
        let mut table = FunctionRequests::default();
        for i in 0..FUNCTION_SERIES {
            table.count("f", &i.to_string(), "n", Time(i as u64));
        }
        table.count("f", "0", "n", Time::ZERO + SECOND);
        table.count("f", "one more", "n", Time::ZERO + SECOND);
        assert_eq!(table.len(), FUNCTION_SERIES);
        let mut text = String::new();
        table.render(&mut text, "t");
        assert!(text.contains("version_id=\"0\"") && text.contains("one more"));
        assert!(!text.contains("version_id=\"1\""));
    }

    #[test]
    fn who_gives_way_is_found_without_a_look_at_all() {
        let mut table = FunctionRequests::default();
        for i in 0..3 * FUNCTION_SERIES {
            // Every other one is used twice, as if it were of a function that is called often.
            for _ in 0..=i % 2 {
                table.count("f", &i.to_string(), "n", Time(i as u64));
            }
        }
        assert_eq!(table.len(), FUNCTION_SERIES);
        let before = table.hand;
        table.count("f", "new", "n", Time::ZERO);
        let moved = (table.hand + FUNCTION_SERIES - before) % FUNCTION_SERIES;
        assert!((1..=2).contains(&moved), "the hand went {moved} places");
        assert!(table.rows.contains_key("f\0new\0n"));
    }

    #[test]
    fn label_values_are_escaped() {
        let mut table = FunctionRequests::default();
        table.count("a\"b\\c\n", "", "", Time::ZERO);
        let mut text = String::new();
        table.render(&mut text, "t");
        assert!(text.starts_with(r#"t{function_id="a\"b\\c\n","#), "{text}");
    }

    #[test]
    fn a_sample_counts_with_its_duration_and_its_bodies() {
        let mut table = HttpTable::default();
        let key = HttpKey { method: Method::Post, status: 200, version: HttpVersion::H2 };
        table.observe(key, HttpSample::new(Duration::from_millis(80), 105, 20_000));
        let mut text = String::new();
        table.render(&mut text, "t", "tests");
        let count = |family: &str, bound: &str| {
            let line = text.lines().find(|line| {
                line.starts_with(&format!("t_{family}_bucket"))
                    && line.contains(&format!("le=\"{bound}\""))
            });
            line.and_then(|line| line.rsplit(' ').next()).map(str::to_owned)
        };
        let bounds = [
            ("request_duration_seconds", "0.075", "0.1"),
            ("request_body_size_bytes", "100", "250"),
            ("response_body_size_bytes", "10000", "+Inf"),
        ];
        for (family, below, at) in bounds {
            assert_eq!(count(family, below).as_deref(), Some("0"), "{text}");
            assert_eq!(count(family, at).as_deref(), Some("1"), "{text}");
        }
        assert!(text.contains("version=\"2\"} 0.08\n") && text.contains("} 105\n"), "{text}");
    }

    #[test]
    fn a_full_http_table_counts_by_status_class() {
        let mut table = HttpTable::default();
        for status in 0..1000 {
            let key = HttpKey { method: Method::Get, status, version: HttpVersion::H2 };
            table.observe(key, HttpSample::default());
        }
        assert!(table.rows.len() <= HTTP_ROWS + 10);
        let total: u64 = table.rows.iter().map(|row| row.seconds.count()).sum();
        assert_eq!(total, 1000);
        let mut sum = table.clone();
        sum.add(&table);
        let total: u64 = sum.rows.iter().map(|row| row.seconds.count()).sum();
        assert_eq!(total, 2000);
    }
}
