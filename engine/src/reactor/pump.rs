//! One socket's receive, send and end: what its completions mean and which operation comes next.
//!
//! The core is told of completions as they come. Receives are armed or cancelled only at the end of
//! the turn ([`Reactor::look`]), when the core has said all it wants.

use super::backend::Ring;
use super::buffer::taken;
use super::socket::{Phase, Receive, Room, Socket, Sockets};
use super::tag::{Completion, Kind, Tag};
use super::timer::{Due, FLUSH_STALL};
use super::uring::{Report, SEND_SEGMENTS};
use super::{News, Reactor};
use crate::net::{Close, ConnId, Core, End, Net, Output};
use crate::pool::Segment;
use crate::transport::Transport;

/// How many bytes of a peer that does not stop sending are dropped after a close; then the
/// connection is cut.
pub const DROP_BUDGET: usize = 1 << 20;

/// Most bytes of a send whose success may be reported late, with the next completion. Until then
/// its receive blocks are not free.
const UNTOLD: usize = 16 * 1024;

impl<C: Core> Reactor<C> {
    // ---- completions ----

    pub(super) fn received(&mut self, completion: Completion) {
        let segment = taken(&mut self.net.pool, completion);
        let Some(socket) = self.sockets.of(completion.tag) else {
            return self.release(segment);
        };
        let conn = socket.conn;
        if !completion.more() {
            socket.receive = Receive::Idle;
            self.looks.push(conn);
        }
        match (segment, -completion.result) {
            (Some(segment), _) if self.net.is_open(conn) => {
                self.net.tally.receives += 1;
                self.deliver(conn, segment);
            }
            (Some(segment), _) => {
                socket.dropped += segment.len as usize;
                self.looks.push(conn);
            }
            (None, 0) => self.bytes_ended(conn),
            (None, libc::ENOBUFS) => {
                socket.receive = Receive::Starved;
                self.starved.push_back(conn);
                self.net.tally.starved += 1;
            }
            // Cancelled by us: `look` decides what comes next.
            (None, libc::ECANCELED | libc::EINTR | libc::EAGAIN) => {}
            (None, errno) => {
                let end = socket.broken.unwrap_or_else(|| end_of(errno));
                self.fail(conn, end);
            }
        }
        self.release(segment);
    }

    fn release(&mut self, segment: Option<Segment>) {
        if let Some(segment) = segment {
            self.net.pool.release(segment);
        }
    }

    /// Reports all sends whose success the kernel does not report, if there are any. The others are
    /// in the batch, and come first.
    pub(super) fn tell_sends(&mut self, batch: &[Completion]) -> bool {
        if self.untold.is_empty() {
            return false;
        }
        for completion in batch.iter().filter(|c| c.tag.kind() == Kind::Send) {
            self.sent(*completion);
        }
        let mut untold = std::mem::take(&mut self.untold);
        for conn in untold.drain(..) {
            // 0: the send failed, and the core has been told.
            if let Some(taken @ 1..) = self.sockets.get(conn).map(|socket| socket.offered) {
                self.sent(Completion::last(Tag::of(Kind::Send, conn), taken as i32));
            }
        }
        self.untold = untold;
        true
    }

    pub(super) fn sent(&mut self, completion: Completion) {
        self.sending -= 1;
        let Some(socket) = self.sockets.of(completion.tag) else { return };
        let conn = socket.conn;
        let offered = std::mem::take(&mut socket.offered);
        if matches!(socket.phase, Phase::Closing) {
            // The connection's output is gone already.
            return self.looks.push(conn);
        }
        let Ok(bytes) = usize::try_from(completion.result) else {
            return match -completion.result {
                libc::EAGAIN => self.wait_writable(conn),
                libc::EINTR => self.dirty.push(conn),
                errno => self.send_failed(conn, end_of(errno)),
            };
        };
        socket.progress = self.net.now;
        self.net.tally.sends += 1;
        let written = self.took(conn, bytes);
        if written > 0 && self.net.is_open(conn) {
            self.call(|core, net| core.written(net, conn, written));
        }
        if bytes < offered {
            self.wait_writable(conn);
        } else {
            self.dirty.push(conn);
        }
    }

    fn wait_writable(&mut self, conn: ConnId) {
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        self.net.tally.blocked_sends += 1;
        if std::mem::replace(&mut socket.room, Room::Awaited) == Room::Unwatched {
            self.ring.writable(socket.fd(), Tag::of(Kind::Writable, conn));
        }
    }

    pub(super) fn writable(&mut self, completion: Completion) {
        let Some(socket) = self.sockets.of(completion.tag) else { return };
        let conn = socket.conn;
        let goes_on = completion.more();
        if goes_on && !tells_of_room(completion.result) {
            return;
        }
        let after = if goes_on { Room::Watched } else { Room::Unwatched };
        let before = std::mem::replace(&mut socket.room, after);
        socket.cancelled &= goes_on;
        // If the poll found an error, the next send brings it to light.
        match socket.phase {
            Phase::Closing => self.looks.push(conn),
            Phase::Open if is_leaving(&self.net, conn) => self.looks.push(conn),
            _ if before == Room::Awaited => self.dirty.push(conn),
            _ => {}
        }
    }

    /// A cancel that found nothing: a receive that was just between two of its shots goes on.
    pub(super) fn cancel_ended(&mut self, completion: Completion) {
        let Some(socket) = self.sockets.of(completion.tag) else { return };
        if completion.result < 0 && socket.receive == Receive::Cancelling {
            socket.receive = Receive::Armed;
            self.looks.push(socket.conn);
        }
    }

    // ---- how a connection ends ----

    /// The socket has no more bytes. That says that the peer has sent everything, unless TLS should
    /// have said so first (RFC 8446 §6.1).
    fn bytes_ended(&mut self, conn: ConnId) {
        let transport = self.sockets.get(conn).and_then(|socket| socket.transport.as_deref());
        let cut = transport.is_some_and(Transport::is_cut_short);
        self.half_ended(conn, if cut { End::Truncated } else { End::Fin });
    }

    pub(super) fn half_ended(&mut self, conn: ConnId, half: End) {
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        let told = std::mem::replace(&mut socket.fin, true);
        if let Some(end) = socket.broken {
            // The send took the socket's error away; the receive only sees the end.
            self.fail(conn, end);
        } else if !told && self.net.is_open(conn) {
            if self.net.asks_delivery(conn) && socket.has_unacknowledged() {
                self.net.cut_delivery(conn);
            }
            self.keep(conn);
            self.call(|core, net| core.ended(net, conn, half));
        }
    }

    /// A send found the connection broken. Bytes that came before are still in the socket, so
    /// `look` sees to it that they are received; then comes the receive's own end.
    fn send_failed(&mut self, conn: ConnId, end: End) {
        if let Some(socket) = self.sockets.get_mut(conn) {
            socket.broken = Some(end);
            self.looks.push(conn);
        }
    }

    /// The connection is broken: its id dies. The core is told if the connection was still its own.
    pub(super) fn fail(&mut self, conn: ConnId, end: End) {
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        socket.phase = Phase::Closing;
        self.looks.push(conn);
        let open = self.net.is_open(conn);
        self.net.kill(conn);
        if open {
            self.call(|core, net| core.ended(net, conn, end));
        }
    }

    // ---- what comes next ----

    /// Starts or stops the operations that the connection's state asks for, and closes it when none
    /// is left.
    pub(super) fn look(&mut self, conn: ConnId) {
        self.heed_open_end(conn);
        self.heed_close(conn);
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        let spent = socket.dropped > DROP_BUDGET;
        if matches!(socket.phase, Phase::Lingering) && (socket.fin || spent) {
            socket.phase = Phase::Closing;
        }
        if matches!(socket.phase, Phase::Closing) {
            return self.finish(conn);
        }
        if is_leaving(&self.net, conn) {
            if socket.is_still() && socket.broken.is_none() {
                self.news.push(News::Detached(conn));
            }
            cancel_poll(&mut self.ring, socket);
        }
        // A broken socket may never end by itself, so it is not received from any more.
        let wanted = wants_bytes(socket, &self.net) && socket.broken != Some(End::Failed);
        match (wanted, socket.receive) {
            (true, Receive::Idle) => {
                socket.receive = Receive::Armed;
                self.ring.receive(socket.fd(), self.share, Tag::of(Kind::Receive, conn));
            }
            (false, Receive::Armed) => {
                socket.receive = Receive::Cancelling;
                let tag = Tag::of(Kind::Cancel, conn);
                self.ring.cancel(Tag::of(Kind::Receive, conn), tag);
            }
            (false, Receive::Starved) => socket.receive = Receive::Idle,
            _ => {}
        }
        if socket.broken.is_some() && socket.receive == Receive::Idle {
            // No receive will report the end. The core is told at a turn's start only.
            self.news.push(News::Broken(conn));
        }
    }

    /// As long as a FIN would say too much, the connection's close is a RST, also if this process
    /// dies. Whether a FIN may be sent after all is decided when all is sent ([`Self::flushed`]).
    fn heed_open_end(&mut self, conn: ConnId) {
        let open_ended = self.net.output(conn).is_some_and(Output::is_open_ended);
        if let (true, Some(socket)) = (open_ended, self.sockets.get_mut(conn)) {
            socket.set_resets(true);
        }
    }

    /// Takes up what the core asked for with [`Net::close`].
    fn heed_close(&mut self, conn: ConnId) {
        let Some(output) = self.net.output(conn) else { return };
        let (closing, queued) = (output.closing(), output.queued());
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        match (closing, &socket.phase) {
            (_, Phase::Closing) | (None, _) => {}
            (Some(Close::Now), _) => socket.phase = Phase::Closing,
            (Some(Close::Flush), Phase::Dialling) if queued == 0 => {
                socket.phase = Phase::Closing;
            }
            (Some(Close::Flush), Phase::Open) => {
                socket.phase = Phase::Flushing;
                socket.progress = self.net.now;
                self.timers.set(Due::Stall, self.net.now, conn);
                self.dirty.push(conn);
            }
            (Some(Close::Flush), _) => {}
        }
    }

    /// Cancels what is under way on a closing socket, and closes it once nothing is.
    fn finish(&mut self, conn: ConnId) {
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        cancel_all(&mut self.ring, socket);
        if socket.offered > 0 {
            return;
        }
        let watched = socket.room != Room::Unwatched;
        let ended = !socket.is_receiving() && !watched && socket.dial.is_none();
        // A blocked peer's bytes are freed now, not only after the last completion.
        self.net.kill(conn);
        self.clear_transport(conn);
        if ended {
            self.remove(conn);
        }
    }

    // ---- sending ----

    /// Starts at most one send for each connection that has something to send.
    pub(super) fn flush(&mut self) {
        self.net.take_dirty(&mut self.dirty);
        let mut dirty = std::mem::take(&mut self.dirty);
        for conn in &dirty {
            self.send(*conn);
        }
        dirty.clear();
        self.dirty = dirty;
    }

    fn send(&mut self, conn: ConnId) {
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        let Some(output) = self.net.output(conn) else { return };
        // The next owner of a connection sends its output.
        if !socket.may_send() || is_leaving(&self.net, conn) {
            return;
        }
        if socket.transport.is_some() {
            return self.send_sealed(conn);
        }
        if output.queue().is_empty() {
            return self.flushed(conn);
        }
        let fd = socket.fd();
        let (bytes, segments) = (output.queued(), output.queue().len());
        let report = self.report(conn, bytes, segments);
        let Some(output) = self.net.output(conn) else { return };
        let tag = Tag::of(Kind::Send, conn);
        let offered = self.ring.send(fd, output.queue(), &self.net.pool, report, tag);
        self.begun(conn, offered, report);
    }

    /// What the kernel has to report of a send of all output of a connection, which is `bytes` in
    /// `segments`. If success were reported, a core with nothing else to do would wake up only for
    /// that.
    pub(super) fn report(&self, conn: ConnId, bytes: usize, segments: usize) -> Report {
        let open = |socket: &Socket| matches!(socket.phase, Phase::Open);
        let whole = bytes <= UNTOLD.min(self.options.send_bytes) && segments <= SEND_SEGMENTS;
        let blocks = self.starved.is_empty() && !self.short;
        let awaited = || !self.sockets.get(conn).is_some_and(open) || self.core.awaits(conn);
        if whole && blocks && !awaited() { Report::Failure } else { Report::Always }
    }

    /// A send is under way.
    pub(super) fn begun(&mut self, conn: ConnId, offered: usize, report: Report) {
        if let Some(socket) = self.sockets.get_mut(conn) {
            socket.offered = offered;
            self.sending += 1;
            if report == Report::Failure {
                self.untold.push(conn);
            }
        }
    }

    /// Everything is sent: a connection that is being flushed gets its FIN.
    pub(super) fn flushed(&mut self, conn: ConnId) {
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        if !matches!(socket.phase, Phase::Flushing) {
            return;
        }
        if self.net.output(conn).is_some_and(Output::is_open_ended) {
            socket.phase = Phase::Closing;
            return self.look(conn);
        }
        socket.set_resets(false);
        if socket.fin && !socket.is_receiving() {
            // Both sides have sent everything: closing sends our FIN.
            socket.phase = Phase::Closing;
            return self.look(conn);
        }
        socket.phase = Phase::Lingering;
        // The call fails if the peer is gone already: then there is nobody to tell.
        let _ = socket.stream.end_writing();
        self.timers.set(Due::Linger, self.net.now, conn);
        self.look(conn);
    }

    // ---- deadlines ----

    pub(super) fn due(&mut self, due: Due, conn: ConnId) {
        if !matters(&self.sockets, due, conn) {
            return;
        }
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        match due {
            Due::Dial => self.dial_late(conn),
            Due::Entrance => self.transport_late(conn),
            Due::Stall if self.net.now.since(socket.progress) < FLUSH_STALL => {
                self.timers.set(Due::Stall, self.net.now, conn);
            }
            Due::Stall | Due::Linger => {
                socket.phase = Phase::Closing;
                self.net.kill(conn);
                self.looks.push(conn);
            }
        }
    }

    /// Tries a receive again that found no block. It comes before receives that got some, which
    /// might take everything again.
    pub(super) fn feed(&mut self, conn: ConnId) {
        if let Some(socket) = self.sockets.get_mut(conn)
            && socket.receive == Receive::Starved
        {
            socket.receive = Receive::Idle;
            self.look(conn);
        }
    }
}

/// Whether the reason for a deadline still exists.
pub(super) fn matters(sockets: &Sockets, due: Due, conn: ConnId) -> bool {
    sockets.get(conn).is_some_and(|socket| match due {
        Due::Dial => matches!(socket.phase, Phase::Dialling),
        Due::Stall => matches!(socket.phase, Phase::Flushing),
        Due::Linger => matches!(socket.phase, Phase::Lingering),
        Due::Entrance => {
            let transport = socket.transport.as_deref();
            matches!(socket.phase, Phase::Open)
                && transport.is_some_and(|transport| !transport.is_open())
        }
    })
}

/// Whether the connection's bytes are to be received: those for the core, unless it paused, and a
/// bounded number of those to be dropped.
fn wants_bytes(socket: &Socket, net: &Net) -> bool {
    if socket.fin {
        return false;
    }
    match socket.phase {
        Phase::Open => {
            let paused = net.output(socket.conn).is_none_or(Output::is_paused);
            !paused && !is_leaving(net, socket.conn)
        }
        Phase::Flushing | Phase::Lingering => socket.dropped <= DROP_BUDGET,
        Phase::Dialling | Phase::Closing => false,
    }
}

/// Whether the core detaches the connection and has not closed it since.
fn is_leaving(net: &Net, conn: ConnId) -> bool {
    net.output(conn).is_some_and(|output| output.is_detaching() && output.closing().is_none())
}

/// Cancels every operation on the socket that was not cancelled yet.
fn cancel_all(ring: &mut Ring, socket: &mut Socket) {
    let tag = Tag::of(Kind::Cancel, socket.conn);
    if socket.receive == Receive::Armed {
        socket.receive = Receive::Cancelling;
        ring.cancel(Tag::of(Kind::Receive, socket.conn), tag);
    }
    cancel_poll(ring, socket);
    if socket.dial.is_some() && !std::mem::replace(&mut socket.cancelled, true) {
        ring.cancel(Tag::of(Kind::Connect, socket.conn), tag);
    }
}

/// Cancels the poll for room to send, if there is one that was not cancelled yet.
fn cancel_poll(ring: &mut Ring, socket: &mut Socket) {
    if socket.room != Room::Unwatched && !std::mem::replace(&mut socket.cancelled, true) {
        let tag = Tag::of(Kind::Cancel, socket.conn);
        ring.cancel(Tag::of(Kind::Writable, socket.conn), tag);
    }
}

/// Whether a poll's result is a reason to send again. io_uring also reports the peer's FIN unasked,
/// which makes no room.
pub(super) fn tells_of_room(result: i32) -> bool {
    const ROOM: i32 = (libc::POLLOUT | libc::POLLERR | libc::POLLHUP | libc::POLLNVAL) as i32;
    result < 0 || result & ROOM != 0
}

fn end_of(errno: i32) -> End {
    match errno {
        libc::ECONNRESET | libc::EPIPE | libc::ECONNABORTED | libc::ENOTCONN => End::Reset,
        // A timeout reports why the last try went nowhere, if that is known (tcp(7)).
        libc::ETIMEDOUT | libc::EHOSTUNREACH | libc::ENETUNREACH | libc::ENETDOWN => End::Timeout,
        _ => End::Failed,
    }
}
