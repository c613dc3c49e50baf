//! What was asked, counted.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use serde::Serialize;

/// Most values of a field that are counted each for itself; the others are counted together.
const MAX_VALUES: usize = 10_000;
/// Calls that are listed one by one: the last ones.
const MAX_RECENT: usize = 2_000;
/// The value that stands for those beyond.
const OTHERS: &str = "(others)";

/// The counts of all parts.
#[derive(Debug, Default)]
pub(crate) struct Board(Mutex<Parts>);

#[derive(Debug, Default)]
struct Parts {
    began: Option<Instant>,
    parts: BTreeMap<&'static str, Tally>,
}

/// The counts of one part.
#[derive(Debug, Default, Serialize)]
struct Tally {
    /// Calls that have ended, and those that run.
    calls: u64,
    running: u64,
    /// Most that ran at once.
    at_once: u64,
    /// How often each value of each field was seen.
    by: BTreeMap<&'static str, BTreeMap<String, u64>>,
    /// The last calls in the order of their ends.
    recent: VecDeque<Told>,
}

/// One call.
#[derive(Debug, Serialize)]
struct Told {
    /// When it came, in milliseconds since the counts began.
    at_ms: f64,
    took_ms: f64,
    #[serde(flatten)]
    fields: BTreeMap<&'static str, String>,
}

impl Board {
    /// A call of a part begins.
    pub(crate) fn call(
        self: &Arc<Self>,
        part: &'static str,
        fields: &[(&'static str, &str)],
    ) -> Call {
        let at = Instant::now();
        let mut parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        parts.began.get_or_insert(at);
        let tally = parts.parts.entry(part).or_default();
        tally.running += 1;
        tally.at_once = tally.at_once.max(tally.running);
        drop(parts);
        let fields = fields.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        Call { board: self.clone(), part, at, fields, status: None }
    }

    /// Everything, as JSON.
    pub(crate) fn json(&self) -> String {
        let parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        serde_json::to_string(&parts.parts).expect("counts and texts are JSON")
    }

    /// Counts from nothing; what runs is counted when it ends.
    pub(crate) fn reset(&self) {
        let mut parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        parts.began = Some(Instant::now());
        for tally in parts.parts.values_mut() {
            let running = tally.running;
            *tally = Tally { running, at_once: running, ..Tally::default() };
        }
    }
}

/// A call that runs; counted when it is dropped.
pub(crate) struct Call {
    board: Arc<Board>,
    part: &'static str,
    at: Instant,
    fields: BTreeMap<&'static str, String>,
    status: Option<String>,
}

impl Call {
    /// One more field of it.
    pub(crate) fn field(&mut self, name: &'static str, value: &str) {
        self.fields.insert(name, value.to_owned());
    }

    /// How it ends.
    pub(crate) fn ends(&mut self, status: impl ToString) {
        self.status = Some(status.to_string());
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        // Without a status the caller has left before the answer.
        let status = self.status.take().unwrap_or_else(|| "left".to_owned());
        self.fields.insert("status", status);
        let mut parts = self.board.0.lock().unwrap_or_else(PoisonError::into_inner);
        let began = parts.began.unwrap_or(self.at);
        let Some(tally) = parts.parts.get_mut(self.part) else { return };
        tally.running -= 1;
        tally.calls += 1;
        for (name, value) in &self.fields {
            let values = tally.by.entry(name).or_default();
            let known = values.len() < MAX_VALUES || values.contains_key(value);
            *values.entry(if known { value.clone() } else { OTHERS.to_owned() }).or_default() += 1;
        }
        if tally.recent.len() == MAX_RECENT {
            tally.recent.pop_front();
        }
        tally.recent.push_back(Told {
            at_ms: self.at.saturating_duration_since(began).as_secs_f64() * 1e3,
            took_ms: self.at.elapsed().as_secs_f64() * 1e3,
            fields: std::mem::take(&mut self.fields),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_every_field_and_by_how_many_ran_at_once() {
        let board = Arc::new(Board::default());
        let mut first = board.call("api", &[("key", "a")]);
        let second = board.call("api", &[("key", "a")]);
        first.ends(0);
        drop((first, second));
        board.call("api", &[("key", "b")]).ends(16);
        let json: serde_json::Value = serde_json::from_str(&board.json()).unwrap();
        let api = &json["api"];
        assert_eq!(
            (&api["calls"], &api["at_once"], &api["running"]),
            (&3.into(), &2.into(), &0.into())
        );
        assert_eq!(api["by"]["key"], serde_json::json!({"a": 2, "b": 1}));
        assert_eq!(api["by"]["status"], serde_json::json!({"0": 1, "16": 1, "left": 1}));
        assert_eq!(api["recent"][2]["key"], "b");
        board.reset();
        let json: serde_json::Value = serde_json::from_str(&board.json()).unwrap();
        assert_eq!(json["api"]["calls"], 0);
    }
}
