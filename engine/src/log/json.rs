//! The lines of sessions as JSON, made directly: the way through `tracing` costs many times as
//! much, and a session leaves four of them. Keys, order and form are those of [`super::lines`].

use super::{Edge, Record, What, stamp};
use crate::json::Object;

/// Appends the lines of a record; false if it is none of those made here.
pub(super) fn write(record: &Record, out: &mut Vec<u8>) -> bool {
    match &record.what {
        What::Registered(edge) => line(out, |object| {
            begin(object, &stamp::of(record.at), "registering new worker connection", edge);
            object.text("function_id", edge.function_id());
            object.text("function_version_id", edge.function_version_id());
            object.number("shard", record.shard);
            left_out(object, record);
        }),
        What::Closed(edge) => closed(record, edge, out),
        What::OpenFailed { .. }
        | What::Rejected { .. }
        | What::ConnectionFailed { .. }
        | What::Access { .. } => return false,
    }
    true
}

fn closed(record: &Record, edge: &Edge, out: &mut Vec<u8>) {
    let timestamp = &*stamp::of(record.at);
    let mut closing = |message| {
        line(out, |object| {
            begin(object, timestamp, message, edge);
            object.number("shard", record.shard);
        });
    };
    match edge.eviction_reason {
        "client_closed" => closing("triggering worker connection shutdown from client close"),
        "worker_closed" => closing("connection going inactive, removing from cache"),
        _ => {}
    }
    closing("closing worker connection");
    line(out, |object| {
        begin(object, timestamp, "worker connection cache eviction triggered", edge);
        object
            .text("eviction_reason", edge.eviction_reason)
            .number("held_for", edge.held_for.as_secs_f64())
            .text("opened_at", &stamp::of(record.at - edge.held_for))
            .text("closed_at", timestamp)
            .text("close_code", edge.close_code)
            .text("close_detail", edge.close_detail())
            .flag("closed_by_peer", edge.closed_by_peer)
            .text("local_timeout", edge.local_timeout)
            .text("function_id", edge.function_id())
            .text("function_version_id", edge.function_version_id())
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
fn begin(object: &mut Object<'_>, timestamp: &str, message: &'static str, edge: &Edge) {
    object.text("timestamp", timestamp).text("level", "INFO");
    object.text("message", message).text("request_id", edge.request_id());
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

    use super::super::SessionEdge;
    use super::*;

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
        let reasons = ["client_closed", "worker_closed", "shutdown"];
        for (n, held) in held.into_iter().enumerate() {
            let edge = Edge::of(&SessionEdge {
                request_id: "dc72d8f7-1bdb-8000-8d24-000bdc6bb9cd",
                function_id: "f",
                function_version_id: if n % 2 == 0 { "" } else { "v" },
                eviction_reason: reasons[n % reasons.len()],
                close_code: "none",
                close_detail: ["", "a \"quoted\" \\ text\u{7f}", "zwölf\n"][n % 3],
                closed_by_peer: n == 1,
                local_timeout: "",
                held_for: Duration::from_micros(held),
                shard: 3,
                counted_for: None,
            });
            let at = SystemTime::UNIX_EPOCH + Duration::from_micros(1_763_870_400_000_007);
            let what = if n == 0 { What::Registered(edge) } else { What::Closed(edge) };
            let record = Record { at, shard: 3, left_out: n as u64 % 4, what };
            let mut out = Vec::new();
            assert!(write(&record, &mut out));
            assert_eq!(String::from_utf8(out).unwrap(), by_tracing(&record));
        }
    }
}
