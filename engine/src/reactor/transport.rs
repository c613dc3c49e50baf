//! Connections with a transport: bytes pass it on their way to the core and from it.

use std::sync::Arc;

use super::Reactor;
use super::socket::Phase;
use super::tag::{Kind, Tag};
use super::timer::Due;
use super::uring::Report;
use crate::net::{ConnId, Core, End, Listener, Output};
use crate::pool::Segment;
use crate::transport::{Admission, Fact, Failure, Outcome, Proxied, Transport};

impl<C: Core> Reactor<C> {
    /// What a connection that was just accepted has to pass.
    pub(super) fn gate(&mut self, listener: Listener, peer: std::net::SocketAddr) -> Admission {
        match self.gates.iter_mut().find(|gate| gate.listener() == listener) {
            Some(gate) => {
                let admission = gate.admit(peer);
                if let Admission::Refused = admission {
                    self.net.tally.transport.count_proxied(listener, Proxied::Untrusted);
                    let core = self.options.core;
                    tracing::debug!(core, %peer, "not a trusted proxy: the connection is closed");
                }
                admission
            }
            None => Admission::Plain,
        }
    }

    /// Sends the listener's greeting to a connection that has just come, if neither a PROXY header
    /// nor TLS comes first.
    pub(super) fn greet(&mut self, conn: ConnId, listener: Listener) {
        if let Some(greeting) = self.greeting(listener) {
            self.net.put(conn, &greeting);
            self.set_greeted(conn);
        }
    }

    /// The greeting that a listener's connections get as soon as they come.
    pub(super) fn greeting(&self, listener: Listener) -> Option<Arc<[u8]>> {
        self.gates.iter().find(|gate| gate.listener() == listener)?.greeting()
    }

    /// The peer was told our side of the preface.
    pub(super) fn set_greeted(&mut self, conn: ConnId) {
        if let Some((output, _)) = self.net.output_mut(conn) {
            output.greeted = true;
        }
    }

    /// Passes received bytes of an open connection to the core, or to its transport.
    pub(super) fn deliver(&mut self, conn: ConnId, segment: Segment) {
        let Some(transport) = self.sockets.get_mut(conn).and_then(|s| s.transport.as_deref_mut())
        else {
            return self.call(|core, net| core.received(net, conn, segment));
        };
        let mut facts = std::mem::take(&mut self.facts);
        transport.receive(&mut self.net.pool, segment, &mut self.scratch, &mut facts);
        // A handshake's answer, or an alert, has to be sent.
        self.dirty.push(conn);
        for fact in facts.drain(..) {
            self.tell_fact(conn, fact);
        }
        self.facts = facts;
        self.scratch.plain.rewind(&self.net.pool);
        if let Some(socket) = self.sockets.get_mut(conn) {
            socket.transport.take_if(|transport| transport.is_through());
        }
    }

    fn tell_fact(&mut self, conn: ConnId, fact: Fact) {
        let open = self.net.is_open(conn);
        match fact {
            Fact::Introduced(source) => {
                self.count_proxied(conn, Proxied::Ok);
                if let (Some(source), true) = (source, open) {
                    self.call(|core, net| core.addressed(net, conn, source));
                }
            }
            Fact::Secured => self.count_handshake(conn),
            Fact::Greeted => self.set_greeted(conn),
            Fact::Bytes(segment) => {
                if open {
                    self.call(|core, net| core.received(net, conn, segment));
                }
                self.net.pool.release(segment);
            }
            Fact::Fin => {
                self.half_ended(conn, End::Fin);
                self.looks.push(conn);
            }
            Fact::Failed(failure) => self.transport_failed(conn, &failure),
        }
    }

    /// The peer cannot be understood. The core is told, and an alert is still sent.
    fn transport_failed(&mut self, conn: ConnId, failure: &Failure) {
        match failure {
            Failure::Proxy(_) => self.count_proxied(conn, Proxied::Malformed),
            _ => self.count_handshake(conn),
        }
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        let peer = socket.stream.peer().ok();
        tracing::debug!(core = self.options.core, ?peer, why = %failure, "a connection failed");
        let flushing = matches!(socket.phase, Phase::Open);
        if flushing {
            socket.phase = Phase::Flushing;
            socket.progress = self.net.now;
            self.timers.set(Due::Stall, self.net.now, conn);
        }
        self.looks.push(conn);
        let open = self.net.is_open(conn);
        self.net.kill(conn);
        if open {
            self.call(|core, net| core.ended(net, conn, End::Failed));
        }
    }

    fn count_proxied(&mut self, conn: ConnId, proxied: Proxied) {
        if let Some(transport) = self.sockets.get(conn).and_then(|s| s.transport.as_deref()) {
            self.net.tally.transport.count_proxied(transport.listener(), proxied);
        }
    }

    fn count_handshake(&mut self, conn: ConnId) {
        if let Some(transport) = self.sockets.get_mut(conn).and_then(|s| s.transport.as_deref_mut())
            && let Some(outcome) = transport.outcome()
        {
            self.net.tally.transport.count(transport.listener(), outcome);
        }
    }

    /// Seals a bounded part of the connection's output, and sends sealed records.
    pub(super) fn send_sealed(&mut self, conn: ConnId) {
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        let open_ended = self.net.output(conn).is_some_and(Output::is_open_ended);
        let last = matches!(socket.phase, Phase::Flushing) && !open_ended;
        let fd = socket.fd();
        let Some(transport) = socket.transport.as_deref_mut() else { return };
        let Some((output, pool)) = self.net.output_mut(conn) else { return };
        if let Err(failure) = transport.seal(output, pool, last, &mut self.scratch) {
            let why = failure.to_string();
            tracing::debug!(core = self.options.core, why, "a connection can send nothing more");
            socket.broken = Some(End::Failed);
            return self.looks.push(conn);
        }
        if transport.queue().is_empty() {
            return self.flushed(conn);
        }
        let (bytes, segments) = (transport.sealed(), transport.queue().len());
        let rest = self.net.output(conn).is_some_and(|output| !output.queue().is_empty());
        let report = if rest { Report::Always } else { self.report(conn, bytes, segments) };
        let Some(transport) = self.sockets.get(conn).and_then(|s| s.transport.as_deref()) else {
            return;
        };
        let tag = Tag::of(Kind::Send, conn);
        let offered = self.ring.send(fd, transport.queue(), &self.net.pool, report, tag);
        self.begun(conn, offered, report);
    }

    /// The kernel took bytes of a connection's output; returns how many of them were the core's.
    pub(super) fn took(&mut self, conn: ConnId, bytes: usize) -> usize {
        match self.sockets.get_mut(conn).and_then(|socket| socket.transport.as_deref_mut()) {
            None => {
                self.net.sent(conn, bytes);
                bytes
            }
            Some(transport) => {
                let plain = transport.sent(&mut self.net.pool, bytes);
                self.net.out(conn, plain);
                plain
            }
        }
    }

    /// No more output of a connection is sent.
    pub(super) fn clear_transport(&mut self, conn: ConnId) {
        if let Some(transport) = self.sockets.get_mut(conn).and_then(|s| s.transport.as_deref_mut())
        {
            transport.clear(&mut self.net.pool);
        }
    }

    /// The connection's socket is closed: its memory goes back to the pool, and an unfinished
    /// handshake is counted.
    pub(super) fn end_transport(&mut self, transport: Option<Box<Transport>>) {
        let Some(mut transport) = transport else { return };
        transport.clear(&mut self.net.pool);
        if let Some(outcome @ (Outcome::Abandoned | Outcome::Failed)) = transport.outcome() {
            self.net.tally.transport.count(transport.listener(), outcome);
        }
    }

    /// A handshake has had its time.
    pub(super) fn transport_late(&mut self, conn: ConnId) {
        self.fail(conn, End::Failed);
    }
}
