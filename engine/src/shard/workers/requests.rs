//! The requests of a worker's connection: polls, health checks, and its CONNECT, whose token
//! `sessions` judges.

use std::sync::Arc;

use ringway_proto::fields::{Fields, Token};
use ringway_proto::h1::connect::{self, Endpoint};
use ringway_proto::h1::head::{self, Body, HeadLimits, RequestHead};
use ringway_proto::h1::{CONTINUE, write_fault};
use uuid::Uuid;

use super::super::facts::{Edge, ForSessions};
use super::super::turn::Turn;
use super::worker_conn::{After, Phase, Reading, WorkerConn};
use crate::control::local::{Policy, PollFault, PollRequest};
use crate::pool::Segment;

/// What the component lends for serving requests.
#[derive(Debug)]
pub(super) struct PollState {
    /// The rules: who may poll for what.
    pub(super) policy: Arc<Policy>,
    /// The rounds of polls so far (see [`crate::control::local::PollId`]).
    pub(super) rounds: u64,
    /// Memory that is reused: heads are decoded into it.
    pub(super) fields: Fields,
}

/// What to do after one request of a worker.
enum Next {
    /// Wait: the request is not complete. It is read so far.
    Wait(Reading),
    /// Look at the bytes behind it.
    Continue,
    /// A poll is on its way.
    Placed,
    /// The request was a CONNECT, whose head has `head` bytes.
    Connect { head: usize, text: Vec<u8>, id: Uuid, marked: bool },
    /// Close: this was the last answer.
    Close,
}

impl WorkerConn {
    /// Bytes have come.
    pub(super) fn received(
        &mut self,
        turn: &mut Turn<'_>,
        poll_state: &mut PollState,
        segment: Segment,
    ) -> After {
        match self.phase {
            Phase::Asking { .. } | Phase::Moving { .. } => self.received_behind(turn, segment),
            Phase::Serving(_) => {
                self.input.extend_from_slice(turn.net.pool.bytes(segment));
                self.begun.get_or_insert(turn.now);
                self.serve(turn, poll_state)
            }
            Phase::Paused => {
                self.input.extend_from_slice(turn.net.pool.bytes(segment));
                After::Stays
            }
        }
    }

    /// Goes on in the turn after a poll that had more bytes behind it.
    pub(super) fn serve_on(&mut self, turn: &mut Turn<'_>, poll_state: &mut PollState) -> After {
        self.phase = Phase::Serving(Reading::default());
        self.serve(turn, poll_state)
    }

    /// Serves all complete requests of the input.
    pub(super) fn serve(&mut self, turn: &mut Turn<'_>, poll_state: &mut PollState) -> After {
        while let Phase::Serving(reading) = self.phase {
            match self.request(turn, poll_state, reading) {
                Next::Continue => self.phase = Phase::Serving(Reading::default()),
                Next::Wait(reading) => {
                    self.phase = Phase::Serving(reading);
                    break;
                }
                Next::Placed if self.input.is_empty() => {
                    self.phase = Phase::Serving(Reading::default());
                    break;
                }
                Next::Placed => {
                    self.phase = Phase::Paused;
                    return After::Paused;
                }
                Next::Connect { head, text, id, marked } => {
                    self.passed_on |= marked;
                    self.phase = Phase::Asking { head };
                    turn.sessions(ForSessions::Token { conn: self.conn, text, id });
                    return After::Stays;
                }
                Next::Close => return self.close(turn),
            }
        }
        self.watch(turn);
        After::Stays
    }

    fn request(
        &mut self,
        turn: &mut Turn<'_>,
        poll_state: &mut PollState,
        mut reading: Reading,
    ) -> Next {
        if self.input.is_empty() {
            self.begun = None;
            return Next::Wait(reading);
        }
        let parsed =
            reading.scan.parse_request(&self.input, &mut poll_state.fields, &HeadLimits::WORKER);
        let head = match parsed {
            Ok(Some(head)) => head,
            Ok(None) => return Next::Wait(reading),
            Err(fault) => {
                let mut out = Vec::new();
                write_fault(fault, turn.date(), &mut out);
                turn.put(self.conn, &out);
                return Next::Close;
            }
        };
        if connect::endpoint(&poll_state.fields) == Endpoint::Connect {
            return self.connect(turn, &poll_state.fields, head.head_len);
        }
        let body = match head.body {
            Body::None => 0,
            Body::Length(length) if length <= turn.settings.config.limits.poll_bytes as u64 => {
                length as usize
            }
            Body::Length(_) | Body::Chunked => {
                self.answer(turn, 413, "send a shorter body, with content-length");
                return Next::Close;
            }
        };
        if self.input.len() < head.head_len + body {
            if head.expects_continue(&poll_state.fields) && !reading.continued {
                turn.put(self.conn, CONTINUE);
                reading.continued = true;
            }
            // A head is short, so it is read again from its begin when more has come.
            return Next::Wait(Reading { continued: reading.continued, ..Reading::default() });
        }
        let request: Vec<u8> = self.input.drain(..head.head_len + body).collect();
        self.idle_since = turn.now;
        self.begun = (!self.input.is_empty()).then_some(turn.now);
        self.whole(turn, poll_state, &head, &request[head.head_len..])
    }

    /// Serves a complete request that is no CONNECT.
    fn whole(
        &mut self,
        turn: &mut Turn<'_>,
        poll_state: &mut PollState,
        head: &RequestHead,
        body: &[u8],
    ) -> Next {
        let alive = head::keeps_alive(head.version, &poll_state.fields);
        let message = poll_state.fields.first(Token::Method).unwrap_or_default() == b"POST";
        let (status, text) = match connect::endpoint(&poll_state.fields) {
            Endpoint::Work if message => match read_poll(turn, poll_state, body) {
                Ok(request) => {
                    self.polls.place(turn, request, &mut poll_state.rounds);
                    if alive {
                        return Next::Placed;
                    }
                    self.last = true;
                    return Next::Wait(Reading::default());
                }
                Err(PollFault { status, text }) => (status, text),
            },
            Endpoint::Work => (405, "use POST".into()),
            Endpoint::Health => (200, String::new()),
            Endpoint::Connect | Endpoint::Unknown => (404, "404 page not found".into()),
        };
        self.polls.end(turn);
        self.answer(turn, status, &text);
        if alive { Next::Continue } else { Next::Close }
    }

    /// Checks a worker's CONNECT by contract 4.2, in the order given there, up to its token.
    fn connect(&mut self, turn: &mut Turn<'_>, fields: &Fields, head: usize) -> Next {
        self.polls.end(turn);
        match connect::read(fields) {
            Ok(asked) => {
                let (text, id) = (asked.token.to_vec(), asked.request_id);
                Next::Connect { head, text, id, marked: was_passed_on(fields) }
            }
            Err(fault) => {
                let mut out = Vec::new();
                fault.write(false, turn.date(), &mut out);
                turn.put(self.conn, &out);
                if let Some(result) = fault.result() {
                    turn.edge(Edge::Connect { result, age: None, worker: self.peer });
                }
                Next::Close
            }
        }
    }
}

/// Whether a request says that a gateway has passed it on (RFC 9110 §7.6.3).
fn was_passed_on(fields: &Fields) -> bool {
    let by_us = |value: &[u8]| {
        value.split(|octet| *octet == b',').any(|by| by.trim_ascii().ends_with(b" ringway"))
    };
    fields.iter().any(|field| field.name.eq_ignore_ascii_case(b"via") && by_us(field.value))
}

/// One poll for work, by a worker that may ask for that.
fn read_poll(
    turn: &Turn<'_>,
    poll_state: &PollState,
    body: &[u8],
) -> Result<PollRequest, PollFault> {
    let most = turn.settings.config.limits.poll_ids;
    let bad = |text| PollFault { status: 400, text };
    let request = PollRequest::parse(body, most).map_err(bad)?;
    let authorization = poll_state.fields.first(Token::Authorization).unwrap_or_default();
    let credential = authorization.strip_prefix(b"Bearer ").unwrap_or(authorization);
    poll_state.policy.worker(credential, &request)?;
    Ok(request)
}
