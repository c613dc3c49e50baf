//! The worker listener: CONNECT, the local dispatch's polls, and its health.

use std::collections::VecDeque;
use std::net::SocketAddr;

use ringway_proto::fields::{Fields, Token};
use ringway_proto::h1::connect::{self, ConnectResult, Endpoint};
use ringway_proto::h1::head::{self, Body, HeadLimits, RequestHead, Scan};
use ringway_proto::h1::{CONTINUE, write_fault, write_text};
use ringway_proto::id::TokenFault;
use ringway_proto::time::Time;

use super::Shard;
use super::attach::State;
use super::close::Cause;
use super::conn::{Begun, Conn, Hop, Plain, Side, Tunnel};
use super::dispatch::Fate;
use super::pings::Pings;
use super::table::Key;
use crate::border::{Border, ConnId, End};
use crate::control::local::{PollFault, PollRequest, WorkKind};
use crate::metrics::{Limit, ResumeWay};
use crate::pool::Segment;
use crate::post::Stand;
use crate::trail::Event;

/// What to do after one request of a worker.
enum Next {
    /// Its bytes are not all there.
    Wait,
    /// Look at what follows it.
    Continue,
    /// The connection was closed or became a tunnel.
    Leave,
}

/// Where a token was good.
enum Taken {
    /// Here, for this attachment; so long after it was minted.
    Here(Key, std::time::Duration),
    /// It is another core's to say.
    Elsewhere(u16),
}

impl Shard {
    /// Bytes from a worker's connection that is no tunnel yet.
    pub(super) fn door_received(&mut self, border: &mut Border, conn: ConnId, segment: Segment) {
        if self.received_moving(border, conn, segment) {
            return;
        }
        let Some(Conn::Door(door)) = self.conns.get_mut(conn) else { return };
        door.input.extend_from_slice(border.pool.bytes(segment));
        door.begun.get_or_insert(border.now);
        self.serve_door(border, conn);
    }

    /// Serves what is whole of a worker's input.
    pub(super) fn serve_door(&mut self, border: &mut Border, conn: ConnId) {
        loop {
            let mut fields = std::mem::take(&mut self.fields);
            let next = self.door_request(border, conn, &mut fields);
            self.fields = fields;
            match next {
                Next::Continue => {}
                Next::Wait => break,
                Next::Leave => return,
            }
        }
        self.watch(conn);
    }

    fn door_request(&mut self, border: &mut Border, conn: ConnId, fields: &mut Fields) -> Next {
        let Some(Conn::Door(door)) = self.conns.get_mut(conn) else { return Next::Leave };
        if door.input.is_empty() {
            door.begun = None;
            return Next::Wait;
        }
        let head = match door.scan.parse_request(&door.input, fields, &HeadLimits::WORKER) {
            Ok(Some(head)) => head,
            Ok(None) => return Next::Wait,
            Err(fault) => {
                let mut out = Vec::new();
                write_fault(fault, self.settings.date(self.now), &mut out);
                border.put(conn, &out);
                self.end_plain(border, conn);
                return Next::Leave;
            }
        };
        if connect::endpoint(fields) == Endpoint::Connect {
            let tail = door.input[head.head_len..].to_vec();
            return self.connect(border, conn, fields, &tail);
        }
        let body = match head.body {
            Body::None => 0,
            Body::Length(length) if length <= self.settings.config.limits.poll_bytes as u64 => {
                length as usize
            }
            Body::Length(_) | Body::Chunked => {
                self.door_answer(border, conn, 413, "send a shorter body, with content-length");
                self.end_plain(border, conn);
                return Next::Leave;
            }
        };
        if door.input.len() < head.head_len + body {
            if head.expects_continue(fields) && !std::mem::replace(&mut door.continued, true) {
                border.put(conn, CONTINUE);
            }
            // The head is read again when more has come: it is short.
            door.scan = Scan::default();
            return Next::Wait;
        }
        door.scan = Scan::default();
        door.continued = false;
        let request: Vec<u8> = door.input.drain(..head.head_len + body).collect();
        door.idle_since = border.now;
        door.begun = (!door.input.is_empty()).then_some(border.now);
        self.door_serve(border, conn, fields, &request[head.head_len..], &head)
    }

    fn door_serve(
        &mut self,
        border: &mut Border,
        conn: ConnId,
        fields: &Fields,
        body: &[u8],
        head: &RequestHead,
    ) -> Next {
        let method = fields.first(Token::Method).unwrap_or_default();
        match connect::endpoint(fields) {
            Endpoint::Work if method == b"POST" => {
                if let Err(fault) = self.poll(border, conn, fields, body) {
                    self.end_poll(border, conn);
                    self.door_answer(border, conn, fault.status, &fault.text);
                }
                self.answer_polls(border);
            }
            Endpoint::Work => {
                self.end_poll(border, conn);
                self.door_answer(border, conn, 405, "use POST");
            }
            Endpoint::Health => {
                self.end_poll(border, conn);
                self.door_answer(border, conn, 200, "");
            }
            Endpoint::Connect | Endpoint::Unknown => {
                self.end_poll(border, conn);
                self.door_answer(border, conn, 404, "404 page not found");
            }
        }
        if head::keeps_alive(head.version, fields) {
            return Next::Continue;
        }
        if let Some(Conn::Door(door)) = self.conns.get_mut(conn) {
            if door.polls > 0 {
                door.last = true;
                return Next::Wait;
            }
            self.poll_told(conn, Fate::Unsure);
            self.end_plain(border, conn);
        }
        Next::Leave
    }

    /// One poll for work (design 4.3).
    fn poll(
        &mut self,
        border: &mut Border,
        conn: ConnId,
        fields: &Fields,
        body: &[u8],
    ) -> Result<(), PollFault> {
        let most = self.settings.config.limits.poll_ids;
        let bad = |text| PollFault { status: 400, text };
        let request = PollRequest::parse(body, most).map_err(bad)?;
        let authorization = fields.first(Token::Authorization).unwrap_or_default();
        let credential = authorization.strip_prefix(b"Bearer ").unwrap_or(authorization);
        self.policy.worker(credential, &request)?;
        self.place_poll(border, conn, request)
    }

    /// A worker's connection has ended before it became a tunnel. After anything but a FIN an
    /// answer that was on its way did not arrive: its work is queued again. After a FIN it may
    /// have.
    pub(super) fn door_gone(&mut self, border: &mut Border, conn: ConnId, end: End) {
        let Some(Conn::Door(door)) = self.conns.remove(conn) else { return };
        self.leave_desk(conn, &door, end.is_half() && border.queued(conn) == 0);
        self.moved_nowhere(&door);
        self.answer_polls(border);
    }

    pub(super) fn door_answer(&self, border: &mut Border, conn: ConnId, status: u16, text: &str) {
        let mut out = Vec::new();
        let line = if text.is_empty() { String::new() } else { format!("{text}\n") };
        let date = self.settings.date(self.now);
        write_text(status, &line, status < 413, date, &mut out);
        border.put(conn, &out);
    }

    /// A worker's CONNECT: the checks of contract 4.2, in its order.
    fn connect(&mut self, border: &mut Border, conn: ConnId, fields: &Fields, tail: &[u8]) -> Next {
        self.end_poll(border, conn);
        let Some(Conn::Door(door)) = self.conns.get(conn) else { return Next::Leave };
        let peer = door.peer;
        let (result, age) = match connect::read(fields) {
            Err(fault) => {
                let mut out = Vec::new();
                fault.write(false, self.settings.date(self.now), &mut out);
                border.put(conn, &out);
                if let Some(result) = fault.result() {
                    self.count_connect(result, None, peer);
                }
                self.end_plain(border, conn);
                return Next::Leave;
            }
            Ok(asked) => match self.take_token(border, asked.token, asked.request_id) {
                Ok(Taken::Elsewhere(core)) => {
                    self.send_home(border, conn, core);
                    return Next::Leave;
                }
                Ok(Taken::Here(key, age)) => {
                    self.count_connect(ConnectResult::Accepted, Some(age), peer);
                    self.note_connect(conn, key, age);
                    self.attach(border, conn, key, tail);
                    return Next::Leave;
                }
                Err(rejected) => rejected,
            },
        };
        let mut out = Vec::new();
        result.write(false, self.settings.date(self.now), &mut out);
        border.put(conn, &out);
        self.count_connect(result, age, peer);
        self.end_plain(border, conn);
        Next::Leave
    }

    pub(super) fn count_connect(
        &mut self,
        result: ConnectResult,
        age: Option<std::time::Duration>,
        worker: SocketAddr,
    ) {
        self.metrics.connects[result.index()] += 1;
        if let Some(age) = age {
            self.metrics.connect_token_age[result.index()].observe(age.as_secs_f64());
        }
        if result != ConnectResult::Accepted {
            crate::log::connect_rejected(result.label(), age, worker, self.settings.core);
        }
    }

    /// Finds the attachment that waits with this token. Taking it is one step: whoever comes
    /// second finds it attached (contract WK-8).
    fn take_token(
        &mut self,
        border: &mut Border,
        text: &[u8],
        id: uuid::Uuid,
    ) -> Result<Taken, (ConnectResult, Option<std::time::Duration>)> {
        let address = self.tokens.read(text).map_err(|fault| match fault {
            TokenFault::Malformed
            | TokenFault::ForeignNode
            | TokenFault::OtherIncarnation
            | TokenFault::BadMac => (ConnectResult::TokenUnknown, None),
        })?;
        if address.core != self.settings.core && address.core < self.settings.cores {
            return Ok(Taken::Elsewhere(address.core));
        }
        let key = Key { slot: address.slot, generation: address.generation };
        let now = self.now;
        let expired = (ConnectResult::TokenExpired, None);
        let Some(attachment) = self.attachments.get_mut(key) else { return Err(expired) };
        let session = attachment.session;
        let State::Waiting { token, issued, wrong, .. } = &mut attachment.state else {
            return Err(expired);
        };
        if !token.matches(text) {
            return Err((ConnectResult::TokenUnknown, None));
        }
        let age = now.since(*issued);
        if session == id {
            return Ok(Taken::Here(key, age));
        }
        *wrong += 1;
        let wrong = *wrong;
        self.note(session, Event::Refused);
        if wrong >= self.settings.config.limits.token_tries {
            self.metrics.limit_hit(Limit::TokenTries);
            self.give_up(border, key, Cause::REVOKED);
        }
        Err((ConnectResult::RequestIdMismatch, Some(age)))
    }

    /// The worker has come: its connection becomes the attachment's tunnel.
    fn attach(&mut self, border: &mut Border, conn: ConnId, key: Key, tail: &[u8]) {
        let Some(Conn::Door(door)) = self.conns.remove(conn) else { return };
        let Plain { peer, opened, timer, .. } = *door;
        border.put(conn, connect::ACCEPTED);
        let attachment = self.attachments.get(key).expect("its token was just taken");
        let owner = attachment.owner.clone();
        if let Some(kind) = attachment.kind() {
            self.pending.leave(&owner.tenant, kind);
        }
        self.withdraw(key, &owner.function, &owner.version);
        self.become_tunnel(border, conn, (peer, opened), key);
        if let Some(hop) = self.conns.hop_mut(conn) {
            // What was armed for the door looks after the hop as well.
            hop.timer = hop.timer.or(timer);
        }
        if let Some(attachment) = self.attachments.get_mut(key)
            && attachment.waiters.is_empty()
        {
            // From now on only a worker's limit of streams makes anything wait.
            attachment.waiters = VecDeque::new();
        }
        self.receive_copy(border, conn, tail);
        self.watch(conn);
    }

    /// A connection to the function's side, accepted or dialled, becomes an attachment's tunnel.
    pub(super) fn become_tunnel(
        &mut self,
        border: &mut Border,
        conn: ConnId,
        (peer, opened): (SocketAddr, Time),
        key: Key,
    ) {
        let link = self.tunnel_link(border, conn, key);
        let spare = link.is_unspoken();
        let tunnel = Tunnel {
            attachment: key,
            // A spare has no time in which it must be.
            used: spare,
            cookie_sent: false,
            idle_since: None,
            looked_at: self.now,
            pings: Pings::default(),
            begun: Begun::default(),
            going: false,
            parked: None,
            held: None,
            answers: Vec::new(),
        };
        let hop = Hop::new(conn, link, peer, (opened, self.now), Side::Tunnel(tunnel));
        self.conns.insert(conn, Conn::Hop(Box::new(hop)));
        let attachment = self.attachments.get_mut(key).expect("it waits for this connection");
        let back = attachment.kind() == Some(WorkKind::Reconnect);
        attachment.state = State::Attached { tunnel: conn };
        let (id, since) = (attachment.session, attachment.opened);
        if back && !spare {
            self.count_resume(ResumeWay::Reconnect, since);
            self.note_resume(key, ResumeWay::Reconnect, since);
        }
        let stand = if spare { Stand::Spare } else { Stand::Open };
        self.tell_stand(border, id, key, stand);
        let Some(attachment) = self.attachments.get(key) else { return };
        crate::log::tunnel_registered(&attachment.edge(self.settings.core));
        if spare {
            self.spare_came(border, key);
        } else {
            self.serve_waiters(border, key);
        }
    }
}
