//! Percentile curves out of the HDR logs that the runs left behind.

use std::fs;
use std::io::{self, Cursor};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;
use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

use super::figures::BEYOND;

/// How far a curve goes: 1 - 10^-4, the 99.99th percentile.
pub const NINES: f64 = 4.0;
/// Points for each nine.
const POINTS: u32 = 12;

/// One curve: how many nines the percentile has, and the latency there in microseconds.
pub type Curve = Vec<(f64, f64)>;

/// The runs' untagged intervals together. What a run did not leave behind is left out.
pub fn read(files: impl Iterator<Item = impl AsRef<Path>>) -> Option<Curve> {
    let mut sum: Option<Histogram<u64>> = None;
    for histogram in files.filter_map(|file| one(file.as_ref()).ok()) {
        match &mut sum {
            // Cannot fail: every run's histogram has the same bounds.
            Some(sum) => drop(sum.add(&histogram)),
            None => sum = Some(histogram),
        }
    }
    let sum = sum.filter(|sum| !sum.is_empty())?;
    // The tail is shown as far as enough samples lie beyond it.
    let most = (sum.len() as f64 / BEYOND).max(1.0).log10().min(NINES);
    let steps = (most * f64::from(POINTS)).floor() as u32;
    let point = |step: u32| {
        let nines = f64::from(step) / f64::from(POINTS);
        (nines, sum.value_at_quantile(1.0 - 10_f64.powf(-nines)) as f64 / 1e3)
    };
    Some((0..=steps).map(point).collect())
}

/// The units of one log; intervals with a tag are something else.
fn one(file: &Path) -> io::Result<Histogram<u64>> {
    let text = fs::read(file)?;
    let fault = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let mut sum: Option<Histogram<u64>> = None;
    for entry in IntervalLogIterator::new(&text) {
        let LogEntry::Interval(interval) = entry.map_err(|e| fault(format!("{e:?}")))? else {
            continue;
        };
        if interval.tag().is_some() {
            continue;
        }
        let bytes = STANDARD.decode(interval.encoded_histogram());
        let bytes = bytes.map_err(|e| fault(e.to_string()))?;
        let histogram: Histogram<u64> = Deserializer::new()
            .deserialize(&mut Cursor::new(bytes))
            .map_err(|e| fault(e.to_string()))?;
        match &mut sum {
            Some(sum) => sum.add(&histogram).map_err(|e| fault(e.to_string()))?,
            None => sum = Some(histogram),
        }
    }
    sum.ok_or_else(|| fault("no interval".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hdrhistogram::serialization::V2DeflateSerializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};
    use std::time::Duration;

    #[test]
    fn a_log_gives_the_curve_of_its_units_and_not_of_its_parts() {
        let mut units = Histogram::<u64>::new_with_bounds(1_000, 60_000_000_000, 3).unwrap();
        let mut parts = units.clone();
        for i in 1..=10_000_u64 {
            units.record(i * 1_000).unwrap();
            parts.record(1_000_000_000).unwrap();
        }
        let mut text = Vec::new();
        let mut serializer = V2DeflateSerializer::new();
        let builder = IntervalLogWriterBuilder::new();
        let mut log = builder.begin_log_with(&mut text, &mut serializer).unwrap();
        let second = Duration::from_secs(1);
        log.write_histogram(&units, Duration::ZERO, second, None).unwrap();
        log.write_histogram(&parts, Duration::ZERO, second, Tag::new("new")).unwrap();
        let file = std::env::temp_dir().join(format!("ringway-curve-{}", std::process::id()));
        fs::write(&file, &text).unwrap();
        let missing = file.with_extension("gone");
        let curve = read([&file, &missing].into_iter()).unwrap();
        let near = |nines: f64, us: f64| {
            let point = curve.iter().find(|p| (p.0 - nines).abs() < 1e-9).unwrap();
            assert!((point.1 / us - 1.0).abs() < 0.01, "{point:?}");
        };
        near(1.0, 9_000.0);
        near(2.0, 9_900.0);
        near(3.0, 9_990.0);
        assert!(curve.iter().all(|point| point.0 < 3.01), "ten of ten thousand are beyond it");
        assert_eq!(read([&missing].into_iter()), None);
        fs::remove_file(file).unwrap();
    }
}
