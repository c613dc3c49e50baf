//! The lines of sessions as JSON, made directly: the way through `tracing` costs many times as
//! much, and a session leaves four of them. Keys, order and form are those of [`super::lines`].

use uuid::Uuid;

use super::{Closed, Line, Named, Record, stamp};
use crate::json::Object;
use crate::metrics::CloseReason;

/// Appends the lines of a record; false if it is none of those made here.
pub(super) fn write(record: &Record, out: &mut Vec<u8>) -> bool {
    match &record.line {
        Line::Registered(named) => line(out, |object| {
            begin(object, &stamp::of(record.at), "registering new worker connection", named);
            object.text("function_id", &named.function);
            object.text("function_version_id", &named.version);
            object.number("shard", record.shard);
            left_out(object, record);
        }),
        Line::Closed(of) => closed(record, of, out),
        Line::OpenFailed(_)
        | Line::Rejected { .. }
        | Line::ConnectionFailed { .. }
        | Line::Access(_) => return false,
    }
    true
}

fn closed(record: &Record, of: &Closed, out: &mut Vec<u8>) {
    let timestamp = &*stamp::of(record.at);
    let mut closing = |message| {
        line(out, |object| {
            begin(object, timestamp, message, &of.named);
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
        begin(object, timestamp, "worker connection cache eviction triggered", &of.named);
        object
            .text("eviction_reason", of.reason.label())
            .number("held_for", of.held_for.as_secs_f64())
            .text("opened_at", &stamp::of(record.at - of.held_for))
            .text("closed_at", timestamp)
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

/// What every line begins with.
fn begin(object: &mut Object<'_>, timestamp: &str, message: &'static str, named: &Named) {
    let mut id = Uuid::encode_buffer();
    let id = named.session.hyphenated().encode_lower(&mut id);
    object.text("timestamp", timestamp).text("level", "INFO");
    object.text("message", message).text("request_id", id);
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
    fn by_tracing(record: &Record) -> String {
        let sheet = Sheet::default();
        let writer = sheet.clone();
        let layer = tracing_subscriber::fmt::layer().with_timer(stamp::Stamp);
        let layer = layer.with_writer(move || writer.clone());
        let subscriber = tracing_subscriber::registry()
            .with(layer.json().flatten_event(true).with_target(false));
        tracing::subscriber::with_default(subscriber, || {
            stamp::at(record.at, || super::super::lines::write(record));
        });
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
            let mut out = Vec::new();
            assert!(write(&record, &mut out));
            assert_eq!(String::from_utf8(out).unwrap(), by_tracing(&record));
        }
    }
}
