//! The lines of sessions as JSON, made directly: the way through `tracing` costs many times as
//! much, and a session leaves four of them. Keys, order and form are those of [`super::lines`].

use std::time::SystemTime;

use uuid::Uuid;

use super::{Closed, Keys, Line, Named, Record, stamp, zap};
use crate::json::Object;
use crate::metrics::CloseReason;

/// Where these lines are made: the caller of all of them.
const CALLER: &str = "log/json.rs";

/// Appends the lines of a record; false if it is none of those made here.
pub(super) fn write(record: &Record, keys: Keys, out: &mut Vec<u8>) -> bool {
    match &record.line {
        Line::Registered(named) => line(out, |object| {
            let at = At::of(record, keys);
            at.begin(object, "registering new worker connection", named);
            object.text("function_id", &named.function);
            object.text("function_version_id", &named.version);
            object.number("shard", record.shard);
            left_out(object, record);
        }),
        Line::Closed(of) => closed(record, keys, of, out),
        Line::OpenFailed(_)
        | Line::Rejected { .. }
        | Line::ConnectionFailed { .. }
        | Line::Unrelayed { .. }
        | Line::PreludeRefused { .. }
        | Line::Access(_) => return false,
    }
    true
}

fn closed(record: &Record, keys: Keys, of: &Closed, out: &mut Vec<u8>) {
    let at = &At::of(record, keys);
    let mut closing = |message| {
        line(out, |object| {
            at.begin(object, message, &of.named);
            object.number("shard", record.shard);
        });
    };
    match of.reason {
        CloseReason::ClientClosed => {
            closing("triggering worker connection shutdown from client close");
        }
        CloseReason::WorkerClosed => closing("connection going inactive, removing from cache"),
        _ => {}
    }
    closing("closing worker connection");
    line(out, |object| {
        at.begin(object, "worker connection cache eviction triggered", &of.named);
        object
            .text("eviction_reason", of.reason.label())
            .number("held_for", of.held_for.as_secs_f64());
        At { time: record.at - of.held_for, keys }.put(object, "opened_at");
        at.put(object, "closed_at");
        object
            .text("close_code", of.code.label())
            .text("close_detail", of.detail)
            .flag("closed_by_peer", of.by_peer())
            .text("local_timeout", of.timer)
            .text("function_id", &of.named.function)
            .text("function_version_id", &of.named.version)
            .number("shard", record.shard);
        left_out(object, record);
    });
}

fn left_out(object: &mut Object<'_>, record: &Record) {
    if record.left_out > 0 {
        object.number("left_out", record.left_out);
    }
}

/// When a line's fact happened, and the keys of the line.
#[derive(Clone, Copy)]
struct At {
    time: SystemTime,
    keys: Keys,
}

impl At {
    fn of(record: &Record, keys: Keys) -> Self {
        Self { time: record.at, keys }
    }

    /// What every line begins with.
    fn begin(self, object: &mut Object<'_>, message: &'static str, named: &Named) {
        match self.keys {
            Keys::Ringway => {
                self.put(object, "timestamp");
                object.text("level", "INFO").text("message", message);
            }
            Keys::Zap => zap::begin(object, "info", (self.time, CALLER), message),
        }
        let mut id = Uuid::encode_buffer();
        let id = named.session.hyphenated().encode_lower(&mut id);
        object.text("request_id", id);
    }

    /// The time: as text, or as zap writes times.
    fn put(self, object: &mut Object<'_>, key: &'static str) {
        match self.keys {
            Keys::Ringway => object.text(key, &stamp::of(self.time)),
            Keys::Zap => object.number(key, stamp::seconds(self.time)),
        };
    }
}

fn line(out: &mut Vec<u8>, write: impl FnOnce(&mut Object<'_>)) {
    let mut object = Object::begin(out);
    write(&mut object);
    object.end();
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};
    use std::time::{Duration, SystemTime};

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;
    use crate::metrics::CloseCode;

    #[derive(Clone, Default)]
    struct Sheet(Arc<Mutex<Vec<u8>>>);

    impl Write for Sheet {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// As `tracing` writes a record's lines, set up as [`super::super::install`] does it.
    fn by_tracing(record: &Record, keys: Keys) -> String {
        let sheet = Sheet::default();
        let writer = sheet.clone();
        let layer = tracing_subscriber::fmt::layer().with_timer(stamp::Stamp);
        let layer = layer.with_writer(move || writer.clone());
        let registry = tracing_subscriber::registry();
        let said = || stamp::at(record.at, || super::super::lines::write(record));
        match keys {
            Keys::Ringway => tracing::subscriber::with_default(
                registry.with(layer.json().flatten_event(true).with_target(false)),
                said,
            ),
            Keys::Zap => {
                tracing::subscriber::with_default(registry.with(layer.event_format(zap::Zap)), said)
            }
        }
        let bytes = sheet.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn the_lines_are_those_that_tracing_writes() {
        let held = [0, 1, 999_999, 1_000_000, 86_400_000_000, 123_456_789];
        let reasons = [CloseReason::ClientClosed, CloseReason::WorkerClosed, CloseReason::Shutdown];
        for (n, held) in held.into_iter().enumerate() {
            let session = "dc72d8f7-1bdb-8000-8d24-000bdc6bb9cd".parse().unwrap();
            let version = if n % 2 == 0 { "" } else { "v" };
            let named =
                Named { session, function: "f".into(), version: version.into(), counted_for: None };
            let closed = |named| Closed {
                named,
                reason: reasons[n % reasons.len()],
                code: if n == 1 { CloseCode::Eof } else { CloseCode::None },
                detail: ["", "a \"quoted\" \\ text\u{7f}", "zwölf\n"][n % 3],
                timer: "",
                held_for: Duration::from_micros(held),
            };
            let at = SystemTime::UNIX_EPOCH + Duration::from_micros(1_763_870_400_000_007);
            let line = if n == 0 { Line::Registered(named) } else { Line::Closed(closed(named)) };
            let record = Record { at, shard: 3, left_out: n as u64 % 4, line };
            let made = |keys| {
                let mut out = Vec::new();
                assert!(write(&record, keys, &mut out));
                String::from_utf8(out).unwrap()
            };
            assert_eq!(made(Keys::Ringway), by_tracing(&record, Keys::Ringway));
            assert_zap(&made(Keys::Zap), &by_tracing(&record, Keys::Zap));
        }
    }

    /// The same lines with zap's keys, but for the place they come from and the form of times.
    #[track_caller]
    fn assert_zap(made: &str, by_tracing: &str) {
        assert_eq!(made.lines().count(), by_tracing.lines().count());
        for (made, other) in made.lines().zip(by_tracing.lines()) {
            let head =
                r#"{"level":"info","ts":1763870400.000007,"logger":"ringway","caller":"log/"#;
            assert!(made.starts_with(head) && other.starts_with(head), "{made}\n{other}");
            let read = |line: &str| -> serde_json::Map<String, serde_json::Value> {
                serde_json::from_str(line).unwrap()
            };
            let (mut made, mut other) = (read(made), read(other));
            assert!(made["msg"].is_string() && !made.contains_key("message"));
            if let Some(closed_at) = made.get("closed_at") {
                assert_eq!(closed_at, &made["ts"]);
                let held = made["ts"].as_f64().unwrap() - made["opened_at"].as_f64().unwrap();
                assert!((held - made["held_for"].as_f64().unwrap()).abs() < 1e-5, "{made:?}");
            }
            for key in ["caller", "opened_at", "closed_at"] {
                assert_eq!(made.remove(key).is_some(), other.remove(key).is_some(), "{key}");
            }
            assert_eq!(made, other);
        }
    }
}
