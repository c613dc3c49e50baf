//! One line in words: what became of a session, or how it stands.

use ringway_proto::time::Time;

use super::words::{said, span};
use super::{Ask, Entry, Event, Party, Timeline};
use crate::conn::End;
use crate::log::rfc3339;
use crate::metrics::{CloseCode, CloseReason};

impl Timeline {
    /// The verdict. The caller says whether the session has ended, because it knows better.
    #[must_use]
    pub fn verdict(&self, ended: bool) -> String {
        if self.events.is_empty() {
            return "no events were kept of it".into();
        }
        let closed = self.last(|event| matches!(event, Event::Closed { .. }));
        match closed {
            Some((_, closed)) if ended => self.end(closed),
            _ => self.status(),
        }
    }

    /// When its last attachment ended, in microseconds of Unix time.
    #[must_use]
    pub fn closed_at(&self) -> Option<u64> {
        let closed = self.last(|event| matches!(event, Event::Closed { .. }));
        closed.map(|(_, entry)| self.unix_micros(entry.at))
    }

    fn last(&self, wanted: impl Fn(Event) -> bool) -> Option<(u16, Entry)> {
        self.events.iter().rev().find(|(_, entry)| wanted(entry.event)).copied()
    }

    fn last_before(&self, at: Time, wanted: impl Fn(Event) -> bool) -> Option<Entry> {
        let before = self.events.iter().rev().filter(|(_, entry)| entry.at <= at);
        before.map(|(_, entry)| *entry).find(|entry| wanted(entry.event))
    }

    fn first(&self, wanted: impl Fn(Event) -> bool) -> Option<Time> {
        self.events.iter().find(|(_, entry)| wanted(entry.event)).map(|(_, entry)| entry.at)
    }

    // ---- ended ----

    fn end(&self, closed: Entry) -> String {
        let Event::Closed { side, reason, code, timer, detail } = closed.event else {
            return String::new();
        };
        let begun = self.last(|event| joins(event) || asks(event));
        if let (CloseReason::TtlExpired, Some((_, Entry { at, event: Event::Asked(_) }))) =
            (reason, begun)
        {
            let waited = span(closed.at.since(at));
            return match self.last(tells_of_taking) {
                Some((_, entry)) if entry.event == (Event::Stood { taken: false }) => {
                    format!("no worker took it within {waited}")
                }
                Some(_) => format!("a worker took it, and did not dial back within {waited}"),
                None => format!("no worker came within {waited}"),
            };
        }
        let parked = self.last(parks_or_resumes).filter(|(_, last)| last.event == Event::Parked);
        if let Some((_, parked)) = parked {
            let lost = self.lost(parked.at);
            let waited = span(closed.at.since(parked.at));
            if self.last(|event| event == Event::Yielded).is_some() {
                return format!("{lost}; gave way to a new session {waited} later");
            }
            return match (timer.name(), side) {
                ("park_window", _) => format!("{lost} and did not come back within {waited}"),
                (_, Party::Worker) => {
                    format!("{lost}; the worker ended it {waited} later: {}", said(code))
                }
                _ => format!("{lost}; ended {waited} later: {detail}"),
            };
        }
        let after = self.after_first_byte(closed.at);
        match (side, timer.name()) {
            (Party::Client, _) => self.client_left(closed.at, &after),
            // Which rule it broke, or what it does not speak.
            (Party::Worker, _) if code == CloseCode::H2Connection => {
                format!("ended by the worker: {detail}, {after}")
            }
            (Party::Worker, _) if self.is_unanswered(code) => format!(
                "ended by the worker: {}, {after}; does the server behind it run?",
                said(code)
            ),
            (Party::Worker, _) => format!("ended by the worker: {}, {after}", said(code)),
            (Party::Gateway, "") => format!("ended by the gateway: {detail}, {after}"),
            (Party::Gateway, timer) => {
                format!("ended by the gateway: {detail} (timer {timer}), {after}")
            }
        }
    }

    /// Whether the tunnel was closed before any answer, as it is when a worker's own server does
    /// not take its connection.
    fn is_unanswered(&self, code: CloseCode) -> bool {
        matches!(code, CloseCode::Eof | CloseCode::Reset)
            && self.first(|event| event == Event::RequestSent).is_some()
            && self.first(|event| event == Event::AnswerBegun).is_none()
    }

    fn client_left(&self, at: Time, after: &str) -> String {
        let left = self.last_before(at, |event| matches!(event, Event::ClientEnded { .. }));
        match left.map(|left| left.event) {
            Some(Event::ClientEnded { end: End::Fin | End::Truncated, busy: false }) | None => {
                format!("ended by the client, {after}")
            }
            Some(_) => format!("{}, {after}", self.lost(at)),
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

    // ---- alive ----

    fn status(&self) -> String {
        if let Some((core, entry)) = self.last(parks_or_resumes) {
            let lost = self.lost(entry.at);
            return match entry.event {
                Event::Parked => {
                    let since = span(self.now.since(entry.at));
                    format!("{lost}; its worker is kept for it, for {since} so far")
                }
                _ => self.back(core, entry, &lost),
            };
        }
        let asked = self.last(asks);
        match (asked, self.last(joins)) {
            (Some((_, asked)), None) => {
                let (since, waits) = (self.clock(asked.at), span(self.now.since(asked.at)));
                format!("waits for a worker since {since} ({waits})")
            }
            (_, Some((core, joined))) => self.runs(core, joined),
            (None, None) => "its begin was not kept".into(),
        }
    }

    /// A client came back.
    fn back(&self, core: u16, resumed: Entry, lost: &str) -> String {
        let left = |event| matches!(event, Event::ClientEnded { .. });
        let Some(ended) = self.last_before(resumed.at, left) else {
            let clock = self.clock(resumed.at);
            return format!("another client of it came {clock} on core {core}, same worker");
        };
        let away = span(resumed.at.since(ended.at));
        format!("{lost}, back after {away} on core {core}, same worker")
    }

    fn runs(&self, core: u16, joined: Entry) -> String {
        let asked = self.last_before(joined.at, asks);
        let came = asked.map_or_else(String::new, |asked| {
            format!(": the worker came after {}", span(joined.at.since(asked.at)))
        });
        let answered = match self.first(|event| event == Event::AnswerBegun) {
            Some(first) if first >= joined.at => {
                format!(", the first byte {} later", span(first.since(joined.at)))
            }
            Some(_) => String::new(),
            None => ", nothing has come back yet".into(),
        };
        format!("runs on core {core}{came}{answered}")
    }

    // ---- words ----

    /// How the last client before `at` was lost.
    fn lost(&self, at: Time) -> String {
        let ended = self.last_before(at, |event| matches!(event, Event::ClientEnded { .. }));
        let Some(Entry { at, event: Event::ClientEnded { end, busy } }) = ended else {
            return "client left".into();
        };
        let clock = self.clock(at);
        match (end, busy) {
            (End::Fin | End::Truncated, false) => format!("client left {clock}"),
            (End::Fin | End::Truncated, true) => {
                format!("client left {clock} in the middle of a call")
            }
            // A reset is a program's end as often as a network's: one that exits with bytes unread
            // resets its connection.
            (End::Reset, _) => format!("client reset its connection {clock}"),
            (End::Failed, _) => format!("client's connection failed {clock}"),
            (End::Timeout, _) => format!("client lost its network {clock}"),
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

/// Whether a client waits for a tunnel from this event on.
fn asks(event: Event) -> bool {
    matches!(event, Event::Asked(ask) if ask != Ask::Spare)
}

fn parks_or_resumes(event: Event) -> bool {
    matches!(event, Event::Parked | Event::Resumed { .. })
}

/// Whether the event says if a worker took the work.
fn tells_of_taking(event: Event) -> bool {
    matches!(event, Event::HandedOut | Event::Stood { .. })
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use uuid::Uuid;

    use super::*;
    use crate::metrics::ResumeWay;
    use crate::timeline::{Part, Timer};

    fn client() -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], 80))
    }

    /// 14:02:00 is the origin; `at` in milliseconds.
    fn timeline(events: &[(u16, u64, Event)]) -> Timeline {
        let part = |core: u16| Part {
            core,
            id: Uuid::nil(),
            facts: None,
            entries: events
                .iter()
                .filter(|(of, ..)| *of == core)
                .map(|(_, at, event)| Entry { at: Time(at * 1000), event: *event })
                .collect(),
            pings: None,
            lost: 0,
            now: Time(100_000_000),
            unix_micros_at_zero: 50_520_000_000,
        };
        Timeline::of(&[part(1), part(0)])
    }

    fn connected() -> Event {
        let age = Duration::from_millis(12).into();
        Event::Connected { worker: client().into(), age }
    }

    fn closed(side: Party, reason: CloseReason, code: CloseCode, timer: &str) -> Event {
        Event::Closed { side, reason, code, timer: Timer::named(timer), detail: "why" }
    }

    const ASKED: Event = Event::Asked(Ask::New);
    const RESET: Event = Event::ClientEnded { end: End::Reset, busy: true };
    const LOST: Event = Event::ClientEnded { end: End::Timeout, busy: true };

    fn life(more: &[(u16, u64, Event)]) -> Timeline {
        let mut events = vec![
            (0, 0, Event::Accepted { client: client().into() }),
            (0, 1000, ASKED),
            (0, 1012, connected()),
            (0, 1013, Event::RequestSent),
            (0, 1020, Event::AnswerBegun),
        ];
        events.extend_from_slice(more);
        timeline(&events)
    }

    #[test]
    fn how_it_stands() {
        let told = timeline(&[(0, 40_000, ASKED)]).verdict(false);
        assert_eq!(told, "waits for a worker since 14:02:40 (60 s)");
        let told = timeline(&[(0, 0, ASKED), (0, 12, connected())]).verdict(false);
        assert_eq!(told, "runs on core 0: the worker came after 12 ms, nothing has come back yet");
        let told = life(&[]).verdict(false);
        assert_eq!(told, "runs on core 0: the worker came after 12 ms, the first byte 8 ms later");
        assert_eq!(timeline(&[]).verdict(false), "no events were kept of it");
    }

    #[test]
    fn lost_and_back() {
        let mut events = vec![(0, 7000, LOST), (0, 7000, Event::Parked)];
        let told = life(&events).verdict(false);
        let kept = "client lost its network 14:02:07; its worker is kept for it, for 93 s so far";
        assert_eq!(told, kept);
        let took = Duration::from_millis(1);
        events.push((1, 10_100, Event::Resumed { way: ResumeWay::Memory, took }));
        let told = life(&events).verdict(false);
        let back = "client lost its network 14:02:07, back after 3.1 s on core 1, same worker";
        assert_eq!(told, back);
        let gone = (CloseReason::ClientClosed, CloseCode::None);
        events.pop();
        events.push((0, 37_000, closed(Party::Client, gone.0, gone.1, "park_window")));
        let told = life(&events).verdict(true);
        assert_eq!(told, "client lost its network 14:02:07 and did not come back within 30 s");
        events.pop();
        let reset = closed(Party::Worker, CloseReason::WorkerClosed, CloseCode::Reset, "");
        events.push((0, 9_000, reset));
        let told = life(&events).verdict(true);
        let later =
            "client lost its network 14:02:07; the worker ended it 2 s later: connection reset";
        assert_eq!(told, later);
    }

    #[test]
    fn how_it_ended() {
        let reset = closed(Party::Worker, CloseReason::WorkerClosed, CloseCode::Reset, "");
        let told = life(&[(0, 13_420, reset)]).verdict(true);
        assert_eq!(told, "ended by the worker: connection reset, 12.4 s after the first byte");
        let (reason, code) = (CloseReason::WorkerClosed, CloseCode::Eof);
        let fin = closed(Party::Worker, reason, code, "");
        let told = timeline(&[
            (0, 1, ASKED),
            (0, 2, connected()),
            (0, 3, Event::RequestSent),
            (0, 8, fin),
        ]);
        let dead = "ended by the worker: it closed the tunnel, 5 ms after the first request, \
                    before any answer; does the server behind it run?";
        assert_eq!(told.verdict(true), dead);
        let ttl = (CloseReason::TtlExpired, CloseCode::None, "worker_cache_ttl");
        let nobody = closed(Party::Gateway, ttl.0, ttl.1, ttl.2);
        let told = timeline(&[(0, 1, ASKED), (0, 30_001, nobody)]).verdict(true);
        assert_eq!(told, "no worker came within 30 s");
        for (event, verdict) in [
            (Event::Stood { taken: false }, "no worker took it within 30 s"),
            (Event::Stood { taken: true }, "a worker took it, and did not dial back within 30 s"),
            (Event::HandedOut, "a worker took it, and did not dial back within 30 s"),
        ] {
            let told = timeline(&[(0, 1, ASKED), (1, 30_000, event), (0, 30_001, nobody)]);
            assert_eq!(told.verdict(true), verdict);
        }
        let told = timeline(&[(0, 1, ASKED), (0, 2, connected()), (0, 30_002, nobody)]);
        let unused = "ended by the gateway: why (timer worker_cache_ttl), before the first byte";
        assert_eq!(told.verdict(true), unused);
        let left = closed(Party::Client, CloseReason::ClientClosed, CloseCode::None, "");
        let fin = |busy| Event::ClientEnded { end: End::Fin, busy };
        for (ended, told) in [
            (fin(false), "ended by the client, 980 ms after the first byte"),
            (
                fin(true),
                "client left 14:02:02 in the middle of a call, 980 ms after the first byte",
            ),
            (LOST, "client lost its network 14:02:02, 980 ms after the first byte"),
            (RESET, "client reset its connection 14:02:02, 980 ms after the first byte"),
        ] {
            assert_eq!(life(&[(0, 2000, ended), (0, 2000, left)]).verdict(true), told);
        }
        let idle = (CloseReason::WorkerClosed, CloseCode::None, "transport_idle");
        let told =
            life(&[(0, 31_020, closed(Party::Gateway, idle.0, idle.1, idle.2))]).verdict(true);
        let by_us = "ended by the gateway: why (timer transport_idle), 30 s after the first byte";
        assert_eq!(told, by_us);
    }

    #[test]
    fn events_of_several_cores_stand_in_order_and_each_has_its_text() {
        let events = life(&[(1, 1015, Event::HandedOut), (0, 7000, RESET)]).to_json();
        let names: Vec<_> = events.iter().map(|event| event["event"].as_str()).collect();
        assert_eq!(names[3..6], [Some("request_sent"), Some("handed_out"), Some("answer_begun")]);
        assert_eq!(events[0]["at"], "1970-01-01T14:02:00.000000Z");
        assert_eq!((&events[4]["core"], &events[4]["afterMs"]), (&1.into(), &1015.0.into()));
        assert_eq!(events[2]["tokenAgeMs"], 12.0);
        assert!(events.iter().all(|event| event["text"].as_str().is_some_and(|t| t.len() > 5)));
    }
}
