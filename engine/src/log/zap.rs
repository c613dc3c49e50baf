//! Lines with the keys of zap, the log library of NVIDIA's proxy: what operators' queries look for
//! (contract 8.3).

use std::fmt;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::stamp;
use crate::json::Object;

/// The name under which this program logs.
const LOGGER: &str = "ringway";

/// Makes lines of events.
#[derive(Clone, Copy, Debug)]
pub(super) struct Zap;

impl<S, N> FormatEvent<S, N> for Zap
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let of = event.metadata();
        let mut fields = Fields::default();
        event.record(&mut fields);
        let file = of.file().unwrap_or_default().rsplit_once("src/").map_or("", |(_, file)| file);
        let caller = format!("{file}:{}", of.line().unwrap_or_default());
        let mut line = Vec::with_capacity(256);
        let mut object = Object::begin(&mut line);
        begin(&mut object, level(*of.level()), (stamp::now(), &caller), &fields.message);
        for (key, value) in fields.rest {
            object.number(key, value);
        }
        object.end();
        writer.write_str(&String::from_utf8_lossy(&line))?;
        writer.write_char('\n')
    }
}

/// What every line begins with. The caller is the place in this program that says it.
pub(super) fn begin(
    object: &mut Object<'_>,
    level: &str,
    (at, caller): (std::time::SystemTime, &str),
    message: &str,
) {
    object.text("level", level).number("ts", stamp::seconds(at));
    object.text("logger", LOGGER).text("caller", caller).text("msg", message);
}

/// As zap names them; it has none below debug.
fn level(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        _ => "debug",
    }
}

/// An event's fields in order, the message apart.
#[derive(Default)]
struct Fields {
    message: String,
    rest: Vec<(&'static str, serde_json::Value)>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: impl Into<serde_json::Value>) {
        self.rest.push((field.name(), value.into()));
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" {
            self.message = text;
        } else {
            self.put(field, text);
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else {
            self.put(field, value);
        }
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }
}
