//! One connection of the workers' listener before it is a tunnel: its state, its deadlines, and how
//! it leaves. Its requests are in [`super::requests`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use ringway_proto::date::HttpDate;
use ringway_proto::h1::connect::{self, ConnectResult};
use ringway_proto::h1::head::Scan;
use ringway_proto::h1::write_text;
use ringway_proto::id::Node;
use ringway_proto::time::Time;

use super::super::facts::{
    Admitted, Arrived, Back, Edge, Fact, ForNodes, ForRelay, NewTunnel, Stray, Strayed,
};
use super::super::timer::Due;
use super::super::turn::Turn;
use super::polls::{Fate, Polls};
use crate::control::local::PollAnswer;
use crate::message::{CoreMessage, MovedConnect};
use crate::metrics::{Limit, RelayCause};
use crate::net::{Close, ConnId, Detached, End};
use crate::pool::Segment;
use crate::timeline::Event;

/// Idle HTTP/1 connections without a CONNECT are closed after this long (contract LN-8).
const PLAIN_IDLE: Duration = Duration::from_secs(60);

/// The pause before a connection is looked at again whose deadline has passed without effect.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Most bytes that move with a connection: the CONNECT and what came behind it (design 3.3). A
/// worker sends nothing before our answer (contract WK-12).
pub(super) const MOVED_BYTES: usize = 64 * 1024;

/// The answer to a request head that took too long (L10).
const REQUEST_TIMEOUT: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

/// The field added to a CONNECT that goes to the old proxy.
const VIA: &[u8] = b"Via: 1.1 ringway\r\n";

/// A worker's connection that this gateway answers.
#[derive(Debug)]
pub(super) struct WorkerConn {
    pub(super) conn: ConnId,
    pub(super) peer: SocketAddr,
    /// When the connection was accepted, on this core or another.
    opened: Time,
    /// The core that accepted the connection, if it was another one.
    moved_from: Option<u16>,
    /// The gateway that the worker dialled, if it was another one.
    pub(super) via: Option<Node>,
    /// The CONNECT came by another gateway, or says so. So the connection goes to no further
    /// gateway.
    pub(super) passed_on: bool,
    /// Bytes that were read and not served yet.
    pub(super) input: Vec<u8>,
    /// When the first byte of the input came; none if the input is empty.
    pub(super) begun: Option<Time>,
    /// When the last request was answered, or the connection began.
    pub(super) idle_since: Time,
    /// Whether the connection ends with the answer to its poll.
    pub(super) last: bool,
    pub(super) polls: Polls,
    pub(super) phase: Phase,
    /// When the armed timer fires.
    timer: Option<Time>,
}

/// What is done with a connection's input.
#[derive(Clone, Copy, Debug)]
pub(super) enum Phase {
    /// Requests are served one after the other.
    Serving(Reading),
    /// A poll is on its way to its dispatch home, and more bytes came behind it. They are read in
    /// the next turn. By then the poll's answer may be there, which goes before any other.
    Paused,
    /// `head` bytes of the input are a CONNECT, and sessions are asked whether its token is good.
    Asking { head: usize },
    /// The CONNECT is for core `to`: the connection moves there with its input.
    Moving { to: u16 },
}

/// How far the incomplete request is read.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reading {
    /// How far the request's head was searched.
    pub(super) scan: Scan,
    /// Whether `100 Continue` was sent for the request.
    pub(super) continued: bool,
}

/// What becomes of a connection after an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum After {
    Stays,
    /// The connection stays, and is served further in the next turn.
    Paused,
    /// The connection is closed, and its dispatch home and session know it.
    Gone,
}

impl WorkerConn {
    pub(super) fn new(conn: ConnId, peer: SocketAddr, now: Time) -> Self {
        Self {
            conn,
            peer,
            opened: now,
            moved_from: None,
            via: None,
            passed_on: false,
            input: Vec::new(),
            begun: None,
            idle_since: now,
            last: false,
            polls: Polls::new(conn),
            phase: Phase::Serving(Reading::default()),
            timer: None,
        }
    }

    // ---- from core to core ----

    /// Takes up a connection of another core whose CONNECT shows a token of this one.
    pub(super) fn adopted(turn: &mut Turn<'_>, moved: MovedConnect) -> Self {
        let MovedConnect { detached, input, peer, opened, from, via } = moved;
        let conn = turn.net.adopt(detached);
        Self {
            opened,
            moved_from: Some(from),
            via,
            passed_on: via.is_some(),
            input,
            begun: Some(turn.now),
            ..Self::new(conn, peer, turn.now)
        }
    }

    /// Takes up a connection that another gateway has brought.
    pub(super) fn arrived(turn: &Turn<'_>, arrived: Arrived) -> Self {
        let Arrived { conn, peer, opened, via } = arrived;
        Self {
            opened,
            via: Some(via),
            passed_on: true,
            begun: Some(turn.now),
            ..Self::new(conn, peer, turn.now)
        }
    }

    /// Detaches the connection, so that the core `to` can take it up.
    pub(super) fn send_home(&mut self, turn: &mut Turn<'_>, to: u16) -> After {
        self.phase = Phase::Moving { to };
        turn.net.detach(self.conn);
        self.bound(turn)
    }

    /// The token's home has no room for it: the worker tries again (contract WK-5).
    pub(super) fn no_way_home(&mut self, turn: &mut Turn<'_>) -> After {
        turn.limit_hit(Limit::Mailbox);
        let date = turn.date();
        turn.put(self.conn, &no_room(date));
        self.close(turn)
    }

    /// No I/O is under way on the connection any more: it leaves.
    pub(super) fn detached(self, turn: &mut Turn<'_>, detached: Detached) {
        let Phase::Moving { to } = self.phase else {
            unreachable!("only a connection that moves is detached")
        };
        let Self { input, peer, opened, via, .. } = self;
        let from = turn.settings.core;
        let moved = MovedConnect { detached, input, peer, opened, from, via };
        turn.send(to, CoreMessage::Connect(Box::new(moved)));
    }

    // ---- bytes behind a CONNECT ----

    /// Bytes that come while nothing may be read any more.
    pub(super) fn received_behind(&mut self, turn: &mut Turn<'_>, segment: Segment) -> After {
        self.input.extend_from_slice(turn.net.pool.bytes(segment));
        self.bound(turn)
    }

    fn bound(&mut self, turn: &mut Turn<'_>) -> After {
        if self.input.len() <= MOVED_BYTES {
            return After::Stays;
        }
        self.answer(turn, 400, "too much was sent behind the CONNECT");
        self.close(turn)
    }

    // ---- what its token was good for ----

    /// The connection becomes a tunnel.
    pub(super) fn admit(mut self, turn: &mut Turn<'_>, admitted: Admitted) {
        let Phase::Asking { head } = self.phase else {
            unreachable!("only a connection whose token is asked about is let in")
        };
        let Admitted { key, age, session } = admitted;
        let worker = self.peer;
        turn.put(self.conn, connect::ACCEPTED);
        turn.edge(Edge::Connect { result: ConnectResult::Accepted, age: Some(age), worker });
        if let Some(from) = self.moved_from {
            turn.edge(Edge::Note { session, at: None, event: Event::Moved { from } });
        }
        let event = Event::Connected { worker: worker.into(), age: age.into() };
        turn.edge(Edge::Note { session, at: None, event });
        let tail = self.input.split_off(head);
        turn.relay(ForRelay::Attach(Box::new(NewTunnel {
            key,
            conn: self.conn,
            peer: worker,
            opened: self.opened,
            // The armed timer is for this table, where the connection will be gone. So the relay
            // arms its own.
            timer: None,
            via: self.via,
            tail,
        })));
    }

    /// Another gateway made its token, or none of the cluster did. The connection goes there as a
    /// whole, and from there to no further gateway.
    pub(super) fn send_away(mut self, turn: &mut Turn<'_>, node: Option<Node>) {
        let Phase::Asking { head } = self.phase else {
            unreachable!("only a connection whose token is asked about is sent away")
        };
        if self.passed_on {
            let After::Gone = self.reject(turn, ConnectResult::TokenUnknown, None) else {
                unreachable!("a connection that is refused is closed")
            };
            return;
        }
        let cause = if node.is_some() { RelayCause::Callback } else { RelayCause::Fallback };
        if node.is_none() {
            // Inserted before the empty line that ends the head.
            let at = head.saturating_sub(2);
            self.input.splice(at..at, VIA.iter().copied());
        }
        let Self { conn, peer, opened, input, .. } = self;
        let stray = Stray::Worker { peer, opened, input };
        turn.fact(Fact::Nodes(ForNodes::Take(Box::new(Strayed { conn, cause, node, stray }))));
    }

    pub(super) fn reject(
        &mut self,
        turn: &mut Turn<'_>,
        result: ConnectResult,
        age: Option<Duration>,
    ) -> After {
        let mut out = Vec::new();
        result.write(false, turn.date(), &mut out);
        turn.put(self.conn, &out);
        turn.edge(Edge::Connect { result, age, worker: self.peer });
        self.close(turn)
    }

    // ---- polls ----

    /// A poll has its answer.
    pub(super) fn poll_answered(&mut self, turn: &mut Turn<'_>, answer: &PollAnswer) -> After {
        self.polls.answered(turn, answer);
        self.poll_settled(turn)
    }

    /// A poll found no room.
    pub(super) fn poll_refused(&mut self, turn: &mut Turn<'_>) -> After {
        let fault = self.polls.refused(turn);
        self.answer(turn, fault.status, &fault.text);
        self.poll_settled(turn)
    }

    /// The polls have waited longer than a dispatch home lets any poll wait, or the home has
    /// forgotten them.
    pub(super) fn poll_overdue(&mut self, turn: &mut Turn<'_>) -> After {
        self.polls.nothing(turn);
        self.poll_settled(turn)
    }

    fn poll_settled(&mut self, turn: &mut Turn<'_>) -> After {
        self.idle_since = turn.now;
        if self.last && self.polls.waiting() == 0 {
            turn.net.close(self.conn, Close::Flush);
            self.polls.told(turn, Fate::Unsure);
            return After::Gone;
        }
        self.watch(turn);
        After::Stays
    }

    // ---- deadlines ----

    /// Arms the connection's timer if its next deadline is earlier than what is armed.
    pub(super) fn watch(&mut self, turn: &mut Turn<'_>) {
        let handshake = turn.settings.config.limits.handshake;
        let begun = self.begun.map(|begun| begun + handshake);
        let at = begun.or(self.polls.until()).unwrap_or(self.idle_since + PLAIN_IDLE);
        if self.timer.is_none_or(|armed| at < armed) {
            // A deadline that has passed was looked at in this instant, and nothing could be done.
            // If it were looked at again at once, the core would never leave this turn.
            let at = if at > turn.now { at } else { turn.now + LOOK_AGAIN };
            self.timer = Some(at);
            turn.arm(at, Due::worker_conn(self.conn));
        }
    }

    /// The connection's timer has fired.
    pub(super) fn look_at(&mut self, turn: &mut Turn<'_>) -> After {
        self.timer = None;
        let handshake = turn.settings.config.limits.handshake;
        if self.begun.is_some_and(|begun| begun + handshake <= turn.now) {
            turn.limit_hit(Limit::Handshake);
            turn.put(self.conn, REQUEST_TIMEOUT);
            return self.close(turn);
        }
        match self.polls.until() {
            Some(until) if until <= turn.now => self.poll_overdue(turn),
            None if self.begun.is_none() && self.idle_since + PLAIN_IDLE <= turn.now => {
                self.close(turn)
            }
            _ => {
                self.watch(turn);
                After::Stays
            }
        }
    }

    // ---- ends ----

    /// Queued output is still sent; nothing more is read.
    pub(super) fn close(&mut self, turn: &mut Turn<'_>) -> After {
        self.close_how(turn, Close::Flush);
        After::Gone
    }

    pub(super) fn close_how(&mut self, turn: &mut Turn<'_>, how: Close) {
        turn.net.close(self.conn, how);
        self.over(turn, End::Fin);
    }

    /// The connection has ended. After a FIN an answer on its way may have arrived. After any other
    /// end it did not: its work is queued again.
    pub(super) fn over(&mut self, turn: &mut Turn<'_>, end: End) {
        let may_have_arrived = end.is_half() && turn.net.queued(self.conn) == 0;
        let polls = std::mem::replace(&mut self.polls, Polls::new(self.conn));
        polls.left(turn, may_have_arrived);
        if let Phase::Moving { .. } = self.phase {
            // The connection has ended on its way to the token's home.
            let result = ConnectResult::HijackFailed;
            turn.edge(Edge::Connect { result, age: None, worker: self.peer });
        }
    }

    pub(super) fn answer(&self, turn: &mut Turn<'_>, status: u16, text: &str) {
        let mut out = Vec::new();
        let line = if text.is_empty() { String::new() } else { format!("{text}\n") };
        write_text(status, &line, status < 413, turn.date(), &mut out);
        turn.put(self.conn, &out);
    }
}

/// No gateway has taken a connection that belongs to another one. If its owner is dead, no other
/// try can succeed (design 3.22). In any other case the worker tries again (contract WK-5).
pub(super) fn back(turn: &mut Turn<'_>, back: Back) {
    let Back { conn, peer, dead } = back;
    let mut out = Vec::new();
    if dead {
        let result = ConnectResult::TokenExpired;
        result.write(false, turn.date(), &mut out);
        turn.edge(Edge::Connect { result, age: None, worker: peer });
    } else {
        let text = "the gateway that this token is for is not reached, try again\n";
        write_text(503, text, false, turn.date(), &mut out);
    }
    turn.put(conn, &out);
    turn.net.close(conn, Close::Flush);
}

/// The token's home has no room for the connection: the worker tries again (contract WK-5).
pub(super) fn turn_away(turn: &mut Turn<'_>, detached: Detached) {
    let date = turn.date();
    let conn = turn.net.adopt(detached);
    turn.put(conn, &no_room(date));
    turn.net.close(conn, Close::Flush);
}

fn no_room(date: HttpDate) -> Vec<u8> {
    let mut out = Vec::new();
    write_text(503, "the gateway is overloaded, try again\n", false, date, &mut out);
    out
}

/// The connections, by the slot that the network interface gave them.
#[derive(Debug, Default)]
pub(super) struct WorkerConns {
    /// A map, because they are few among the connections of a core.
    slots: BTreeMap<u32, Box<WorkerConn>>,
}

impl WorkerConns {
    pub(super) fn insert(&mut self, worker_conn: Box<WorkerConn>) {
        let before = self.slots.insert(worker_conn.conn.slot, worker_conn);
        assert!(before.is_none(), "a slot is given again only after its connection was closed");
    }

    pub(super) fn get_mut(&mut self, conn: ConnId) -> Option<&mut WorkerConn> {
        let worker_conn = self.slots.get_mut(&conn.slot)?;
        (worker_conn.conn == conn).then_some(worker_conn)
    }

    pub(super) fn get(&self, conn: ConnId) -> Option<&WorkerConn> {
        let worker_conn = self.slots.get(&conn.slot)?;
        (worker_conn.conn == conn).then_some(worker_conn)
    }

    /// Takes a connection out. Its caller puts it back, unless the connection has ended.
    pub(super) fn take(&mut self, conn: ConnId) -> Option<Box<WorkerConn>> {
        self.get(conn)?;
        self.slots.remove(&conn.slot)
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// All of them, in the order of their slots.
    pub(super) fn ids(&self) -> Vec<ConnId> {
        self.slots.values().map(|worker_conn| worker_conn.conn).collect()
    }

    /// The connections whose polls wait for an answer of that core.
    pub(super) fn waiting_at(&self, core: u16) -> Vec<ConnId> {
        let worker_conns = self.slots.values().map(|worker_conn| &**worker_conn);
        worker_conns
            .filter(|worker_conn| worker_conn.polls.wait_at(core))
            .map(|worker_conn| worker_conn.conn)
            .collect()
    }
}
