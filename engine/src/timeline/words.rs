//! How a timeline's events are shown: each has a name and values for programs, and a line of text
//! for people.

use std::time::Duration;

use ringway_proto::time::Time;
use serde_json::{Map, Value, json};

use super::{Ask, Event, Party, Pings, Start, Timeline};
use crate::conn::End;
use crate::log::rfc3339;
use crate::metrics::{CloseCode, ResumeWay};

impl Timeline {
    /// The events as `/sessions/{id}` shows them.
    #[must_use]
    pub fn to_json(&self) -> Vec<Value> {
        let begin = self.events.first().map_or(Time::ZERO, |(_, entry)| entry.at);
        let of = |core: u16, at: Time, name: &str, carries: Value, text: String| {
            let mut shown = Map::new();
            shown.insert("at".into(), rfc3339(self.unix_micros(at)).into());
            shown.insert("afterMs".into(), ms(at.since(begin)).into());
            shown.insert("core".into(), core.into());
            shown.insert("event".into(), name.into());
            if let Value::Object(carries) = carries {
                shown.extend(carries);
            }
            shown.insert("text".into(), text.into());
            (at, Value::Object(shown))
        };
        let events = self.events.iter().map(|(core, entry)| {
            let event = entry.event;
            of(*core, entry.at, event.name(), event.carries(), event.text())
        });
        let pings =
            self.pings.iter().map(|(core, p)| of(*core, p.at, "pings", p.carries(), p.text()));
        let mut shown: Vec<(Time, Value)> = events.chain(pings).collect();
        shown.sort_by_key(|(at, _)| *at);
        shown.into_iter().map(|(_, value)| value).collect()
    }
}

impl Start {
    /// The parts as `/sessions/{id}` shows them, in milliseconds.
    #[must_use]
    pub fn to_json(self) -> Value {
        let parts = [
            ("queueMs", self.queue),
            ("claimMs", self.claim),
            ("dialMs", self.dial),
            ("firstByteMs", self.first_byte),
        ];
        let known =
            parts.into_iter().filter_map(|(name, took)| Some((name.into(), ms(took?).into())));
        Value::Object(known.collect())
    }
}

impl Event {
    /// The event's name in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Accepted { .. } => "accepted",
            Self::Authorised => "authorised",
            Self::Found { .. } => "found",
            Self::LookedUp { .. } => "looked_up",
            Self::Asked(_) => "asked",
            Self::Queued { .. } => "queued",
            Self::HandedOut => "handed_out",
            Self::Stood { .. } => "stood",
            Self::Moved { .. } => "connect_moved",
            Self::Refused => "connect_refused",
            Self::Connected { .. } => "connected",
            Self::Dialled { .. } => "dialled",
            Self::RequestSent => "request_sent",
            Self::AnswerBegun => "answer_begun",
            Self::Goaway => "goaway",
            Self::Stalled { .. } => "stalled",
            Self::ClientEnded { .. } => "client_ended",
            Self::Parked => "parked",
            Self::Resumed { .. } => "resumed",
            Self::TunnelLeft { .. } => "tunnel_left",
            Self::TunnelMoved { .. } => "tunnel_moved",
            Self::SpareAsked => "spare_asked",
            Self::SpareAttached => "spare_attached",
            Self::SpareFailed { .. } => "spare_failed",
            Self::Replaced => "replaced",
            Self::Yielded => "yielded",
            Self::Closed { .. } => "closed",
        }
    }

    /// The event's values, as JSON.
    fn carries(self) -> Value {
        match self {
            Self::Accepted { client } => json!({ "client": client.to_string() }),
            Self::Found { home, took } => json!({ "home": home, "tookMs": ms(took) }),
            Self::LookedUp { took } => json!({ "tookMs": ms(took) }),
            Self::Asked(ask) => json!({ "for": ask.label() }),
            Self::Queued { took } => json!({ "tookMs": ms(took) }),
            Self::Stood { taken } => json!({ "taken": taken }),
            Self::Moved { from } => json!({ "from": from }),
            Self::Connected { worker, age } => {
                json!({ "worker": worker.to_string(), "tokenAgeMs": ms(age.into()) })
            }
            Self::Dialled { server, took } => {
                json!({ "server": server.to_string(), "tookMs": ms(took.into()) })
            }
            Self::Stalled { side, took } => json!({ "side": side.label(), "tookMs": ms(took) }),
            Self::ClientEnded { end, busy } => json!({ "how": how(end), "streamsOpen": busy }),
            Self::Closed { side, reason, code, timer, detail } => json!({
                "side": side.label(),
                "reason": reason.label(),
                "code": code.label(),
                "timer": timer.name(),
                "detail": detail,
            }),
            Self::SpareFailed { detail } => json!({ "detail": detail }),
            Self::Resumed { way, took } => json!({ "way": way.label(), "tookMs": ms(took) }),
            Self::TunnelLeft { to } => json!({ "to": to }),
            Self::TunnelMoved { from } => json!({ "from": from }),
            Self::Authorised
            | Self::Parked
            | Self::SpareAsked
            | Self::SpareAttached
            | Self::Replaced
            | Self::Yielded
            | Self::HandedOut
            | Self::Refused
            | Self::RequestSent
            | Self::AnswerBegun
            | Self::Goaway => Value::Null,
        }
    }

    /// The event as a line of text.
    #[must_use]
    pub fn text(self) -> String {
        match self {
            Self::Accepted { client } => format!("the client connected from {client}"),
            Self::Authorised => "its credential is good for the function".into(),
            Self::Found { home, took } => {
                format!("core {home}, the session's home, found it in {}", span(took))
            }
            Self::LookedUp { took } => {
                format!("its worker's registration was found in {}", span(took))
            }
            Self::Asked(Ask::New) => "a worker is asked for".into(),
            Self::Asked(Ask::Again) => "its worker is asked for a tunnel".into(),
            Self::Asked(Ask::Spare) => "its worker is asked for a spare tunnel".into(),
            Self::Asked(Ask::Dial) => "the function's server is dialled".into(),
            Self::Queued { took } => {
                format!("its work was queued, {} after its request", span(took))
            }
            Self::HandedOut => "a worker took the work".into(),
            Self::Stood { taken: true } => "a worker had taken the work, and did not come".into(),
            Self::Stood { taken: false } => "no worker had taken the work".into(),
            Self::Moved { from } => {
                format!("the worker's CONNECT came to core {from} and moved here")
            }
            Self::Refused => "a CONNECT with its token named another request id".into(),
            Self::Connected { worker, age } => {
                format!("the worker dialled back from {worker}, its token {} old", span(age.into()))
            }
            Self::Dialled { server, took } => {
                format!("the server {server} answered the dial in {}", span(took.into()))
            }
            Self::RequestSent => "first byte to the worker".into(),
            Self::AnswerBegun => "first byte from the worker".into(),
            Self::Goaway => "the worker said GOAWAY".into(),
            Self::Stalled { side, took } => {
                format!("the {} took nothing for {}", side.label(), span(took))
            }
            Self::ClientEnded { end, busy } => {
                let streams = if busy { ", with streams open" } else { "" };
                format!("the client's connection ended: {}{streams}", how(end))
            }
            Self::Parked => "the tunnel is kept for when a client comes back".into(),
            Self::Resumed { way, took } => {
                let got = match way {
                    ResumeWay::Memory => "the tunnel that was kept",
                    ResumeWay::Spare => "the spare tunnel",
                    ResumeWay::Reconnect | ResumeWay::None => "one more tunnel of its worker",
                };
                format!("a client came back and got {got}, in {}", span(took))
            }
            Self::TunnelLeft { to } => format!("the tunnel goes to core {to}, to its client"),
            Self::TunnelMoved { from } => format!("the tunnel came from core {from}"),
            Self::SpareAsked => "a spare tunnel is wanted".into(),
            Self::SpareAttached => "the spare tunnel is there".into(),
            Self::SpareFailed { detail } => format!("the spare tunnel will not come: {detail}"),
            Self::Replaced => "requests go to the spare tunnel from now on".into(),
            Self::Yielded => "a new session needs its worker".into(),
            Self::Closed { reason, code, timer, detail, .. } => {
                let timer = match timer.name() {
                    "" => String::new(),
                    name => format!(", timer {name}"),
                };
                format!("closed: {detail} ({}, {}{timer})", reason.label(), code.label())
            }
        }
    }
}

impl Pings {
    fn carries(self) -> Value {
        json!({
            "count": self.count,
            "minMs": ms(self.least.into()),
            "lastMs": ms(self.last.into()),
            "maxMs": ms(self.most.into()),
        })
    }

    fn text(self) -> String {
        let [least, last, most] = [self.least, self.last, self.most].map(|t| span(t.into()));
        format!(
            "{} PINGs answered by the worker in {least} to {most}, the last in {last}",
            self.count
        )
    }
}

impl Ask {
    fn label(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Again => "reconnect",
            Self::Spare => "spare",
            Self::Dial => "dial",
        }
    }
}

impl Party {
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Worker => "worker",
            Self::Gateway => "gateway",
        }
    }
}

/// In which way a connection ended.
pub(super) fn how(end: End) -> &'static str {
    match end {
        End::Fin => "FIN",
        End::Truncated => "FIN without TLS close_notify",
        End::Reset => "connection reset",
        End::Timeout => "timed out",
        End::Failed => "socket error",
    }
}

/// What was seen on a tunnel when it ended.
pub(super) fn said(code: CloseCode) -> &'static str {
    match code {
        CloseCode::Eof => "it closed the tunnel",
        CloseCode::Reset => "connection reset",
        CloseCode::Timeout => "it answers no more",
        CloseCode::H2Goaway => "GOAWAY",
        CloseCode::H2Connection => "it broke HTTP/2",
        _ => code.label(),
    }
}

fn ms(time: Duration) -> f64 {
    time.as_micros() as f64 / 1000.0
}

/// A duration for people: `0.4 ms`, `12 ms`, `3.1 s`, `2 min 5 s`, `3 h 20 min`.
#[must_use]
pub(super) fn span(time: Duration) -> String {
    let micros = time.as_micros();
    let seconds = time.as_secs();
    match micros {
        0..10_000 => trimmed(micros as f64 / 1e3, "ms"),
        10_000..1_000_000 => format!("{} ms", micros / 1000),
        1_000_000..100_000_000 => trimmed(micros as f64 / 1e6, "s"),
        100_000_000..7_200_000_000 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

fn trimmed(value: f64, unit: &str) -> String {
    let text = format!("{value:.1}");
    format!("{} {unit}", text.strip_suffix(".0").unwrap_or(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_as_exact_as_people_want_them() {
        for (micros, text) in [
            (0, "0 ms"),
            (412, "0.4 ms"),
            (12_900, "12 ms"),
            (3_140_000, "3.1 s"),
            (30_000_400, "30 s"),
            (125_000_000, "2 min 5 s"),
            (12_000_000_000, "3 h 20 min"),
        ] {
            assert_eq!(span(Duration::from_micros(micros)), text);
        }
    }
}
