//! One line in words: what became of a session, or how it stands.

use ringway_proto::time::Time;

use super::words::{how, said, span};
use super::{Entry, Event, Side, Timeline};
use crate::border::End;
use crate::log::rfc3339;
use crate::metrics::CloseReason;

impl Timeline {
    /// The verdict; whether the session has ended is better known elsewhere.
    #[must_use]
    pub fn verdict(&self, ended: bool) -> String {
        if self.events.is_empty() {
            return "no events were kept of it".into();
        }
        let last = self.last(|event| matches!(event, Event::Closed { .. }));
        match last {
            Some((_, entry)) if ended => self.end(entry),
            _ => self.stand(),
        }
    }

    fn last(&self, wanted: impl Fn(Event) -> bool) -> Option<(u16, Entry)> {
        self.events.iter().rev().find(|(_, entry)| wanted(entry.event)).copied()
    }

    fn first(&self, wanted: impl Fn(Event) -> bool) -> Option<Time> {
        self.events.iter().find(|(_, entry)| wanted(entry.event)).map(|(_, entry)| entry.at)
    }

    /// How it ended.
    fn end(&self, closed: Entry) -> String {
        let Event::Closed { side, reason, code, timer, detail } = closed.event else {
            return String::new();
        };
        let joined = self.last(|event| joins(event) || matches!(event, Event::Asked(_)));
        if let (CloseReason::TtlExpired, Some((_, asked))) = (reason, joined)
            && let Event::Asked(_) = asked.event
        {
            return format!("no worker came within {}", span(closed.at.since(asked.at)));
        }
        let after = self.after_first_byte(closed.at);
        match side {
            Side::Client => self.client_left(after),
            Side::Worker => format!("ended by the worker: {}, {after}", said(code)),
            Side::Gateway => match timer.name() {
                "" => format!("ended by the gateway: {detail}, {after}"),
                name => format!("ended by the gateway: {detail} (timer {name}), {after}"),
            },
        }
    }

    fn client_left(&self, after: String) -> String {
        let left = self.last(|event| matches!(event, Event::ClientEnded { .. }));
        let Some((_, Entry { at, event: Event::ClientEnded { end, busy } })) = left else {
            return format!("ended by the client, {after}");
        };
        match end {
            End::Fin if busy => format!("ended by the client in the middle of a call, {after}"),
            End::Fin => format!("ended by the client, {after}"),
            _ => format!("client lost its network {} ({}), {after}", self.clock(at), how(end)),
        }
    }

    fn after_first_byte(&self, at: Time) -> String {
        let back = self.first(|event| event == Event::AnswerBegun);
        let sent = self.first(|event| event == Event::RequestSent);
        match (back, sent) {
            (Some(first), _) => format!("{} after the first byte", span(at.since(first))),
            (None, Some(sent)) => {
                format!("{} after the first request, before any answer", span(at.since(sent)))
            }
            (None, None) => "before the first byte".into(),
        }
    }

    /// How it stands while it lives.
    fn stand(&self) -> String {
        let asked = self.last(|event| matches!(event, Event::Asked(_)));
        let joined = self.last(joins);
        match (asked, joined) {
            (Some((_, asked)), None) => format!(
                "waits for a worker since {} ({})",
                self.clock(asked.at),
                span(self.now.since(asked.at))
            ),
            (Some((_, asked)), Some((core, joined))) => {
                let came = span(joined.at.since(asked.at));
                format!(
                    "runs on core {core}: the worker came after {came}{}",
                    self.answered(joined.at)
                )
            }
            _ => "its begin was not kept".into(),
        }
    }

    fn answered(&self, joined: Time) -> String {
        match self.first(|event| event == Event::AnswerBegun) {
            Some(first) if first >= joined => {
                format!(", the first byte {} later", span(first.since(joined)))
            }
            Some(_) => String::new(),
            None => ", nothing has come back yet".into(),
        }
    }

    /// The time of day, UTC.
    fn clock(&self, at: Time) -> String {
        rfc3339(self.unix_micros(at)).get(11..19).unwrap_or_default().into()
    }
}

/// Whether an attachment has its tunnel by this event.
fn joins(event: Event) -> bool {
    matches!(event, Event::Connected { .. } | Event::Dialled { .. })
}
