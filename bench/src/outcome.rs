//! What came of a run: figures for a reader, a table or a program.
//!
//! Neighbours: [`crate::load`] makes them, [`crate::compare`] reads them as JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};
use serde::{Deserialize, Serialize};

use crate::memory::Memory;
use crate::tally::Tally;

/// What came of it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// What is counted as a call: a call, a message, a connection, a session.
    #[serde(default)]
    pub unit: String,
    /// Units completed while counting; of sessions that rest, how many there were.
    pub calls: u64,
    /// Length of the count.
    pub elapsed_ns: u64,
    /// Completed units a second.
    pub calls_per_s: f64,
    /// Payload bytes a second, both directions.
    pub bytes_per_s: f64,
    /// Latency of the counted units in microseconds.
    pub latency_us: Latency,
    /// Latency of what a unit is made of, or of the same in another phase, by name: see
    /// [`crate::load::Kind`].
    #[serde(default)]
    pub parts: BTreeMap<String, Latency>,
    /// Time from the first connect until every connection had an answer, in milliseconds.
    pub set_up_ms: f64,
    /// Calls that went wrong, in any phase, by cause.
    pub failures: BTreeMap<String, u64>,
    /// All of them.
    pub failed: u64,
    /// Why the peer cannot do what was asked of it at all; then nothing was counted.
    #[serde(default)]
    pub not_built: Option<String>,
    /// CPU time of the watched processes while counting, in nanoseconds.
    pub cpu_ns: BTreeMap<String, u64>,
    /// The generator's own.
    pub own_cpu_ns: u64,
    /// CPU microseconds a unit, of each watched process and of the `generator`.
    #[serde(default)]
    pub per_unit: BTreeMap<String, f64>,
    /// CPUs that anything else on the machine kept busy meanwhile.
    pub other_cpus: f64,
    /// What drove the generator's sockets.
    pub driver: String,
    /// How late paced starts were, in microseconds: the generator's own error. It is part of the
    /// latencies.
    #[serde(default)]
    pub late_us: Option<Latency>,
    /// Share of the time that each of the generator's threads was on a CPU.
    #[serde(default)]
    pub generator_busy: f64,
    /// Share of their CPUs that the generator and what it watches beside the proxy took together.
    #[serde(default)]
    pub side_busy: f64,
    /// One of the two was too busy while the proxy was not: the rate is theirs, not the proxy's.
    #[serde(default)]
    pub limited: bool,
    /// Bytes a second of the bulk stream, of a run that had one beside.
    #[serde(default)]
    pub bulk_bytes_per_s: Option<f64>,
    /// Memory before and after the connections were made.
    #[serde(default)]
    pub memory: Memory,
    /// The proxy's own samples that changed during the run, and by how much.
    #[serde(default)]
    pub metrics: BTreeMap<String, f64>,
    /// Share of the TLS handshakes that took a session up again, of a run that wanted that.
    #[serde(default)]
    pub resumed: Option<f64>,
    /// Where the latencies are as an HDR interval log; each part is an interval with its name as
    /// tag.
    #[serde(default)]
    pub hdr: Option<PathBuf>,
}

/// Percentiles in microseconds.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Latency {
    #[serde(default)]
    pub count: u64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

impl Latency {
    /// A summary of latencies in nanoseconds.
    pub fn of(histogram: &Histogram<u64>) -> Self {
        let us = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
        let max = histogram.max() as f64 / 1e3;
        let count = histogram.len();
        Self { count, p50: us(0.5), p90: us(0.9), p99: us(0.99), p999: us(0.999), max }
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "p50 {:.1}, p90 {:.1}, p99 {:.1}, p99.9 {:.1}, max {:.0}",
            self.p50, self.p90, self.p99, self.p999, self.max
        )
    }
}

/// The parts of a tally.
pub fn parts(tally: &Tally) -> BTreeMap<String, Latency> {
    tally.parts.iter().map(|(name, hist)| ((*name).to_owned(), Latency::of(hist))).collect()
}

/// The latencies as an HDR interval log: one interval for the units, one for each part.
pub fn write_histograms(
    path: &Path,
    counted: Duration,
    histograms: &[(Option<&str>, &Histogram<u64>)],
) -> io::Result<()> {
    let mut file = std::fs::File::create(path)?;
    let mut serializer = V2DeflateSerializer::new();
    let fault = |error: &dyn fmt::Debug| io::Error::other(format!("{error:?}"));
    let mut log = IntervalLogWriterBuilder::new()
        .with_start_time(SystemTime::now())
        .begin_log_with(&mut file, &mut serializer)
        .map_err(|error| fault(&error))?;
    for (name, histogram) in histograms.iter().copied() {
        let tag = name.and_then(Tag::new);
        log.write_histogram(histogram, Duration::ZERO, counted, tag)
            .map_err(|error| fault(&error))?;
    }
    Ok(())
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(why) = &self.not_built {
            return write!(f, "not built: {why}");
        }
        let elapsed = self.elapsed_ns as f64;
        let share = |ns: u64| 100.0 * ns as f64 / elapsed;
        let per_unit = |ns: u64| ns as f64 / 1e3 / self.calls.max(1) as f64;
        let unit = &self.unit;
        writeln!(
            f,
            "{} {unit}s in {:.2} s: {:.0} {unit}s/s, {:.1} MB/s, {} failed {:?}",
            self.calls,
            elapsed / 1e9,
            self.calls_per_s,
            self.bytes_per_s / 1e6,
            self.failed,
            self.failures
        )?;
        writeln!(f, "latency us: {}", self.latency_us)?;
        for (name, latency) in &self.parts {
            writeln!(f, "{name} us ({}): {latency}", latency.count)?;
        }
        write!(
            f,
            "generator ({}): {:.3} us a {unit}, {:.0} % of each of its CPUs",
            self.driver,
            per_unit(self.own_cpu_ns),
            self.generator_busy * 100.0
        )?;
        for (name, ns) in &self.cpu_ns {
            write!(
                f,
                "\n{name}: {:.3} us a {unit}, {:.0} % of one CPU",
                per_unit(*ns),
                share(*ns)
            )?;
            let memory = &self.memory;
            let each = (memory.per_connection(name), memory.kernel_per_connection(name));
            if let (Some(own), Some(kernel)) = each {
                write!(f, ", {own:.0} bytes a connection and {kernel:.0} of the kernel's")?;
            }
        }
        self.write_more(f)
    }
}

impl Outcome {
    /// Counts failures that no connection noticed.
    pub fn miss(&mut self, cause: &str, count: u64) {
        if count > 0 {
            *self.failures.entry(cause.to_owned()).or_default() += count;
            self.failed += count;
        }
    }

    fn write_more(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(late) = self.late_us {
            write!(f, "\nstarts late us: {late}")?;
        }
        if let Some(bulk) = self.bulk_bytes_per_s {
            write!(f, "\nbulk beside: {:.1} MB/s", bulk / 1e6)?;
        }
        if let Some(share) = self.resumed {
            write!(f, "\n{:.0} % of the handshakes resumed", share * 100.0)?;
        }
        write!(f, "{}", self.memory)?;
        // The others say in NVIDIA's names what is here already.
        for (name, change) in self.metrics.iter().filter(|(name, _)| name.starts_with("ringway_")) {
            write!(f, "\n{name} {change:+}")?;
        }
        if self.limited {
            write!(f, "\nlimited by the generator's side")?;
        }
        Ok(())
    }
}
