//! What a gateway says about itself: its Prometheus samples, before and after.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A scrape may take so long.
const LIMIT: Duration = Duration::from_secs(2);
/// Longest answer read.
const MOST_BYTES: u64 = 8 << 20;
/// Most changed samples that are shown.
const MOST_CHANGES: usize = 200;

/// All samples at an instant.
#[derive(Debug, Default)]
pub struct Samples {
    values: BTreeMap<String, f64>,
}

impl Samples {
    /// Asks `address` for `/metrics`.
    ///
    /// # Errors
    /// Nobody answers, or not with 200.
    pub fn take(address: SocketAddr) -> io::Result<Self> {
        let mut stream = TcpStream::connect_timeout(&address, LIMIT)?;
        stream.set_read_timeout(Some(LIMIT))?;
        // HTTP/1.0, so that the body ends with the connection.
        write!(stream, "GET /metrics HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
        let mut text = String::new();
        stream.take(MOST_BYTES).read_to_string(&mut text)?;
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let line = head.lines().next().unwrap_or_default();
        if line.split(' ').nth(1) != Some("200") {
            return Err(io::Error::other(format!("{address}/metrics: {line}")));
        }
        Ok(Self::parse(body))
    }

    fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let values = lines.filter_map(|line| {
            let (name, value) = line.trim_end().rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        Self { values: values.collect() }
    }

    /// What has changed since `before`, by how much. Buckets are left out: sum and count say
    /// enough.
    pub fn since(&self, before: &Self) -> BTreeMap<String, f64> {
        let changed = self.values.iter().filter_map(|(name, value)| {
            let change = value - before.values.get(name).copied().unwrap_or(0.0);
            (change != 0.0 && !name.contains("_bucket{")).then(|| (name.clone(), change))
        });
        changed.take(MOST_CHANGES).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changed_is_told() {
        let before =
            Samples::parse("# TYPE a counter\na 1\nb{x=\"1 2\"} 2\nh_bucket{le=\"1\"} 1\n");
        let after =
            Samples::parse("a 1\nb{x=\"1 2\"} 5.5\nh_bucket{le=\"1\"} 2\nnew_total 3\nodd NaN?\n");
        let wanted = [("b{x=\"1 2\"}".to_owned(), 3.5), ("new_total".to_owned(), 3.0)];
        assert_eq!(after.since(&before), wanted.into());
    }
}
