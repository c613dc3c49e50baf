//! The edges of a session's life, each read once: by the metrics, the log and the timelines
//! ([`timelines`]). Whoever leaves an [`Edge`] knows none of the three, and none of them decides
//! anything.

mod timelines;

use std::time::Duration;

use ringway_proto::h1::connect::ConnectResult;
use ringway_proto::time::Time;
use uuid::Uuid;

use self::timelines::{CoreTime, Timelines};
use super::cause::Cause;
use super::facts::{Edge, Ended, Met};
use super::settings::ShardSettings;
use crate::log::{Closed, Line, Lines};
use crate::metrics::{CloseCode, CloseReason, Limit, ShardMetrics, SpareOutcome, StartPart};
use crate::timeline::{Entry, Event, IdBegin, Part, Party, Timer};

/// The readers of an edge beside the timelines, and the instant.
#[derive(Debug)]
pub(crate) struct Readers<'a> {
    pub(crate) now: Time,
    pub(crate) metrics: &'a mut ShardMetrics,
    pub(crate) lines: &'a mut Lines,
}

/// The edges of one core, and what is kept of them.
#[derive(Debug)]
pub(crate) struct Edges {
    timelines: Timelines,
}

impl Edges {
    /// Keeps at most `records` records (`limits.trace_records`); 0 keeps none.
    pub(super) fn new(records: usize) -> Self {
        Self { timelines: Timelines::new(records) }
    }

    /// How many records are kept.
    pub(super) fn records(&self) -> usize {
        self.timelines.records()
    }

    /// The records of this core about sessions whose id begins with `wanted`.
    pub(super) fn timeline(
        &self,
        wanted: IdBegin,
        now: Time,
        settings: &ShardSettings,
    ) -> Vec<Part> {
        let &ShardSettings { core, unix_micros_at_zero, .. } = settings;
        self.timelines.parts(wanted, CoreTime { core, now, unix_micros_at_zero })
    }

    /// Reads one edge.
    pub(super) fn read(&mut self, edge: Edge, readers: &mut Readers<'_>) {
        let now = readers.now;
        match edge {
            Edge::Note { session, at, event } => {
                self.note(session, at.unwrap_or(now), event, readers);
            }
            Edge::Began { session, facts, wish, client } => {
                self.met(session, client, readers);
                self.note(session, now, Event::Asked(wish), readers);
                self.timelines.own(session, facts);
            }
            Edge::Registered(named) => readers.lines.push(Line::Registered(named)),
            Edge::Resumed { session, way, took, client } => {
                readers.metrics.resumes.observe(way, took.as_secs_f64());
                self.met(session, client, readers);
                self.note(session, now, Event::Resumed { way, took }, readers);
            }
            Edge::Arrived { session, facts, from } => {
                self.note(session, now, Event::TunnelMoved { from }, readers);
                self.timelines.meet(session, facts);
            }
            Edge::Spare { session, outcome } => {
                readers.metrics.spares[outcome.index()] += 1;
                if let Some(event) = spare_event(outcome) {
                    self.note(session, now, event, readers);
                }
            }
            Edge::Ponged { session, took } => self.timelines.ponged(session, took, now),
            Edge::Connect { result, age, worker } => {
                count_connect(result, age, readers.metrics);
                if result != ConnectResult::Accepted {
                    readers.lines.push(Line::Rejected { result: result.label(), age, worker });
                }
            }
            Edge::Refused(refused) => readers.lines.push(Line::OpenFailed(refused)),
            Edge::Closed(ended) => self.closed(*ended, readers),
        }
    }

    fn note(&mut self, session: Uuid, at: Time, event: Event, readers: &mut Readers<'_>) {
        self.time(session, at, event, readers.metrics);
        if self.timelines.note(session, Entry { at, event }, readers.now) {
            readers.metrics.limit_hit(Limit::TraceRecords);
        }
    }

    /// Measures the parts of a session's start, from what the timelines of this core say.
    fn time(&self, session: Uuid, at: Time, event: Event, metrics: &mut ShardMetrics) {
        let queued = |event| matches!(event, Event::Asked(_) | Event::Queued { .. });
        let there = |event| matches!(event, Event::Connected { .. } | Event::Dialled { .. });
        let (part, took) = match event {
            Event::Queued { took } => (StartPart::Queue, Some(took)),
            Event::HandedOut => (StartPart::Claim, self.timelines.since(session, at, queued)),
            Event::Connected { .. } => (StartPart::Dial, self.timelines.since(session, at, queued)),
            Event::Dialled { took, .. } => (StartPart::Dial, Some(took.into())),
            Event::AnswerBegun => (StartPart::FirstByte, self.timelines.since(session, at, there)),
            _ => return,
        };
        if let Some(took) = took {
            metrics.start_seconds[part.index()].observe(took.as_secs_f64());
        }
    }

    /// Who the session's client is.
    fn met(&mut self, session: Uuid, client: Option<Met>, readers: &mut Readers<'_>) {
        if let Some(Met { client, at, authorised }) = client {
            self.note(session, at, Event::Accepted { client: client.into() }, readers);
            if let Some(at) = authorised {
                self.note(session, at, Event::Authorised, readers);
            }
        }
    }

    /// An attachment's end: the one place where it is written down.
    fn closed(&mut self, ended: Ended, readers: &mut Readers<'_>) {
        let Ended { named, cause, held_for, spare } = ended;
        let metrics = &mut *readers.metrics;
        metrics.worker_connections_closed[cause.reason.index()] += 1;
        metrics.close_codes[cause.code.index()] += 1;
        metrics.worker_connection_seconds.observe(held_for.as_secs_f64());
        // If no worker came for a spare, its session goes on. The cause says nothing of the
        // session's calls.
        let event =
            if spare { Event::SpareFailed { detail: cause.detail } } else { close_event(cause) };
        self.note(named.session, readers.now, event, readers);
        readers.lines.push(Line::Closed(Closed {
            named,
            reason: cause.reason,
            code: cause.code,
            detail: cause.detail,
            timer: cause.local_timeout,
            held_for,
        }));
    }
}

fn count_connect(result: ConnectResult, age: Option<Duration>, metrics: &mut ShardMetrics) {
    metrics.connects[result.index()] += 1;
    if let Some(age) = age {
        metrics.connect_token_age[result.index()].observe(age.as_secs_f64());
    }
}

/// What the timeline says of a spare. That it failed is said when its attachment ends.
fn spare_event(outcome: SpareOutcome) -> Option<Event> {
    match outcome {
        SpareOutcome::Asked => Some(Event::SpareAsked),
        SpareOutcome::Came => Some(Event::SpareAttached),
        SpareOutcome::Replaced => Some(Event::Replaced),
        SpareOutcome::Parked | SpareOutcome::Unused | SpareOutcome::Failed => None,
    }
}

/// An end, as the timeline says it.
fn close_event(cause: Cause) -> Event {
    let side = match (cause.reason, cause.code) {
        (CloseReason::ClientClosed, _) => Party::Client,
        (CloseReason::WorkerClosed, code) if code != CloseCode::None => Party::Worker,
        _ => Party::Gateway,
    };
    Event::Closed {
        side,
        reason: cause.reason,
        code: cause.code,
        timer: Timer::named(cause.local_timeout),
        detail: cause.detail,
    }
}

#[cfg(test)]
mod tests;
