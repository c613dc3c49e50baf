//! Listeners: multishot accept, and connections on their way in.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::time::Duration;

use ringway_proto::time::Time;
use socket2::SockRef;

use super::fault::SetupError;
use super::options::KeepAlive;
use super::socket::{Phase, Socket};
use super::stream::{LAST_ACCEPTS, Listening, Stream, tune};
use super::tag::{Completion, Kind, Tag};
use super::timer::Due;
use super::uring::Accepts;
use super::{News, Reactor};
use crate::net::{Close, Core, Listener, Output};
use crate::transport::Admission;

/// How long accepting pauses after it failed for want of descriptors or memory.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The pause before the log says again that a listener lets nobody in.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// With room for fewer connections than this they are accepted one by one. A multishot accept takes
/// all that wait at a listener at once, and those to be refused would use up descriptors of others
/// until then. The value is the listeners' backlog (`boot/port.rs`).
const ONE_BY_ONE: usize = 4096;

/// Connections let in in one turn. Each leads to work in the turns that follow, and live
/// connections need turns in between. At the cost of a new session (docs/performance.md) this
/// number takes three milliseconds.
pub const ACCEPTS_PER_TURN: usize = 32;

/// Connections that may be on their way into the queue while its length is asked for.
const JUST_COMING: u32 = 64;

/// What is under way at a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Armed {
    Not,
    /// An accept of all that come.
    Many,
    /// An accept of all that come, cancelled because room has become short.
    Narrowing,
    /// An accept of one.
    One,
}

/// A listener and its accept.
#[derive(Debug)]
pub(super) struct ListenSocket {
    /// None once it is closed.
    socket: Option<Listening>,
    listener: Listener,
    /// Other processes have the socket too, and keep it open.
    inherited: bool,
    armed: Armed,
    /// When to accept again after a failure.
    again_at: Option<Time>,
    /// The core wants no more connections from it.
    shut: bool,
    /// Until when the log does not say again that nobody is let in.
    quiet_until: Time,
    /// How many connections may have come before the listener was tuned, so that they inherit
    /// nothing.
    untuned: u32,
    /// The listener keeps some addresses out; its connections inherit the filter.
    filters: bool,
}

impl ListenSocket {
    /// Connections inherit the listener's socket options, so none of them has to be tuned.
    pub(super) fn new(
        listener: Listener,
        socket: Listening,
        keep_alive: KeepAlive,
        inherited: bool,
    ) -> Result<Self, SetupError> {
        let untuned = match &socket {
            Listening::Kernel(socket) => prepare(socket, keep_alive, inherited)
                .map_err(|error| SetupError::Other { step: "setting up a listener", error })?,
            Listening::Simulated(_) => 0,
        };
        Ok(Self {
            untuned,
            socket: Some(socket),
            listener,
            inherited,
            armed: Armed::Not,
            again_at: None,
            shut: false,
            quiet_until: Time::ZERO,
            filters: false,
        })
    }

    pub(super) fn is_armed(&self) -> bool {
        self.armed != Armed::Not
    }

    /// Whether it is time to say that nobody is let in.
    fn may_say(&mut self, now: Time) -> bool {
        let may = self.quiet_until <= now;
        if may {
            self.quiet_until = now + SAY_AGAIN;
        }
        may
    }
}

/// Tunes a listener. Returns how many connections may have come before that.
fn prepare(socket: &TcpListener, keep_alive: KeepAlive, inherited: bool) -> std::io::Result<u32> {
    // A non-blocking listener would end its multishot accept with EAGAIN. An inherited one is every
    // core's, and with epoll another has made it non-blocking by now: it stays so.
    if !inherited {
        socket.set_nonblocking(false)?;
    }
    tune(&SockRef::from(socket), keep_alive)?;
    Ok(waiting(socket).saturating_add(JUST_COMING))
}

/// Connections that wait in a listener's queue.
fn waiting(listener: &TcpListener) -> u32 {
    // SAFETY: tcp_info is plain data of integers, for which zero is a valid value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
    let (level, name) = (libc::IPPROTO_TCP, libc::TCP_INFO);
    // SAFETY: the structure lives for the call, and its size is given.
    let result = unsafe {
        libc::getsockopt(listener.as_raw_fd(), level, name, (&raw mut info).cast(), &raw mut len)
    };
    // For a listener this field is the length of its queue (tcp_get_info in the kernel).
    if result < 0 { LAST_ACCEPTS as u32 } else { info.tcpi_unacked }
}

impl<C: Core> Reactor<C> {
    /// How many more sockets there may be: connections of a listener, or others. Sockets that the
    /// core has closed count until their peers have gone, because they hold a descriptor.
    pub(super) fn room(&self, listener: Option<Listener>) -> usize {
        let (sockets, options) = (&self.sockets, &self.options);
        let all = options.connections.saturating_sub(sockets.live());
        let others = options.others.saturating_sub(sockets.live() - sockets.clients());
        match listener {
            Some(Listener::Client) => all.min(options.clients.saturating_sub(sockets.clients())),
            Some(Listener::Worker) => {
                all.min(others).min(options.workers.saturating_sub(sockets.workers()))
            }
            Some(Listener::Cluster) | None => all.min(others),
        }
    }

    /// Lets connections in by every listener that is not waiting after a failure.
    pub(super) fn open_listen_sockets(&mut self) {
        let most = ONE_BY_ONE + self.crowd.len();
        let many = [Listener::Client, Listener::Worker, Listener::Cluster]
            .map(|listener| self.room(Some(listener)) >= most);
        for (number, listen_socket) in self.listen_sockets.iter_mut().enumerate() {
            let many = many[listen_socket.listener as usize];
            if listen_socket.armed == Armed::Many && !many && !listen_socket.shut {
                listen_socket.armed = Armed::Narrowing;
                let target = Tag::numbered(Kind::Accept, number);
                self.ring.cancel(target, Tag::numbered(Kind::Cancel, usize::MAX));
            }
            let due = listen_socket.again_at.is_none_or(|at| at <= self.net.now);
            if let Some(socket) = &listen_socket.socket
                && listen_socket.armed == Armed::Not
                && !listen_socket.shut
                && due
            {
                let (armed, often) =
                    if many { (Armed::Many, Accepts::Many) } else { (Armed::One, Accepts::One) };
                listen_socket.armed = armed;
                listen_socket.again_at = None;
                self.ring.accept(socket.fd(), often, Tag::numbered(Kind::Accept, number));
            }
        }
    }

    /// Lets nobody in any more.
    pub(super) fn close_listen_sockets(&mut self) {
        self.closing = true;
        for (number, listen_socket) in self.listen_sockets.iter().enumerate() {
            if listen_socket.is_armed() {
                let target = Tag::numbered(Kind::Accept, number);
                self.ring.cancel(target, Tag::numbered(Kind::Cancel, usize::MAX));
            }
        }
    }

    /// Lets nobody in by this listener any more; its port is free when the accept has ended.
    pub(super) fn shut_listen_sockets(&mut self, listener: Listener) {
        for (number, listen_socket) in self.listen_sockets.iter_mut().enumerate() {
            if listen_socket.listener != listener
                || std::mem::replace(&mut listen_socket.shut, true)
            {
                continue;
            }
            listen_socket.again_at = None;
            // Clients in an inherited queue are left to the process that comes after this one.
            if let Some(socket) = listen_socket.socket.as_ref().filter(|_| !listen_socket.inherited)
            {
                // The core hears of these connections in the next turn.
                let last = socket.end().into_iter();
                self.news.extend(last.map(|stream| News::Accepted(stream, listener)));
            }
            if listen_socket.is_armed() {
                let target = Tag::numbered(Kind::Accept, number);
                self.ring.cancel(target, Tag::numbered(Kind::Cancel, usize::MAX));
            } else {
                listen_socket.socket = None;
            }
        }
    }

    /// Lets nobody in by this listener from these addresses, unless other processes have the socket
    /// too. If the kernel has no filters, the core closes such connections as they come.
    pub(super) fn keep_out(&mut self, listener: Listener, addresses: &[SocketAddr]) {
        for listen_socket in self
            .listen_sockets
            .iter_mut()
            .filter(|listen_socket| listen_socket.listener == listener)
        {
            if let Some(socket) = listen_socket.socket.as_ref().filter(|_| !listen_socket.inherited)
            {
                let kept_out = socket.keep_out(addresses);
                listen_socket.filters = kept_out.is_ok() && !addresses.is_empty();
            }
        }
    }

    /// When an accept that failed is tried again.
    pub(super) fn listen_deadline(&self) -> Option<Time> {
        self.listen_sockets.iter().filter_map(|listen_socket| listen_socket.again_at).min()
    }

    pub(super) fn accepted(&mut self, completion: Completion) {
        let number = completion.tag.slot() as usize;
        let listen_socket = &mut self.listen_sockets[number];
        if !completion.more() {
            listen_socket.armed = Armed::Not;
        }
        if listen_socket.shut && !listen_socket.is_armed() {
            listen_socket.socket = None;
        }
        if completion.result < 0 {
            return self.accept_failed(number, -completion.result);
        }
        let listener = listen_socket.listener;
        let tuned = listen_socket.untuned == 0;
        listen_socket.untuned = listen_socket.untuned.saturating_sub(1);
        let filters = listen_socket.filters;
        let stream = self.ring.accepted(completion.result);
        if filters {
            // The connection's packets need no filter. If it cannot be removed, they pass it
            // anyway.
            let _ = stream.detach_filter();
        }
        if self.let_in < ACCEPTS_PER_TURN && self.crowd.is_empty() {
            self.let_in += 1;
            self.admit(stream, listener, tuned);
        } else {
            self.crowd.push_back((stream, listener, tuned));
        }
        if !self.closing {
            self.open_listen_sockets();
        }
    }

    /// At the begin of a turn: lets connections in that earlier turns had no room for.
    pub(super) fn let_crowd_in(&mut self) {
        self.let_in = self.crowd.len().min(ACCEPTS_PER_TURN);
        for _ in 0..self.let_in {
            let Some((stream, listener, tuned)) = self.crowd.pop_front() else { break };
            self.admit(stream, listener, tuned);
        }
    }

    fn accept_failed(&mut self, number: usize, errno: i32) {
        if self.closing || self.listen_sockets[number].shut {
            return;
        }
        // The connection was gone before it was accepted, and the next one may be fine. Or the
        // accept was cancelled.
        if !matches!(errno, libc::ECONNABORTED | libc::EINTR | libc::ECANCELED) {
            let listen_socket = &mut self.listen_sockets[number];
            listen_socket.again_at = Some(self.net.now + ACCEPT_PAUSE);
            self.net.tally.accept_failures += 1;
            if listen_socket.may_say(self.net.now) {
                let error = std::io::Error::from_raw_os_error(errno);
                tracing::warn!(core = self.options.core, %error, "accepting pauses");
            }
        }
        self.open_listen_sockets();
    }

    /// Lets a connection in; `tuned` says that it has inherited its listener's options.
    pub(super) fn admit(&mut self, stream: Stream, listener: Listener, tuned: bool) {
        if self.closing || self.room(Some(listener)) == 0 {
            self.net.tally.refused += 1;
            return self.tell_full(listener);
        }
        // Both fail when the peer has reset the connection already: nobody to talk to.
        let Ok(peer) = stream.peer() else { return };
        let keep_alive = self.options.keep_alive_of(listener);
        if !tuned && stream.tune(keep_alive).is_err() {
            return;
        }
        let transport = match self.gate(listener, peer) {
            Admission::Refused => return,
            Admission::Plain => None,
            Admission::Through(transport) => Some(transport),
        };
        let conn = self.net.open();
        if transport.is_some() {
            self.timers.set_after(Due::Entrance, self.net.now, self.options.entrance_time, conn);
        }
        let socket = Socket::new(stream, conn, Phase::Open);
        self.add(Socket { transport, listener: Some(listener), ..socket });
        self.net.tally.accepts += 1;
        self.looks.push(conn);
        self.greet(conn, listener);
        self.call(|core, net| core.accepted(net, conn, listener, peer));
        let closing = self.net.output(conn).and_then(Output::closing);
        if closing == Some(Close::Now) {
            self.tell_full(listener);
        }
    }

    /// A connection was closed as soon as it came, because the limit is reached.
    fn tell_full(&mut self, listener: Listener) {
        let (core, now) = (self.options.core, self.net.now);
        let listen_socket =
            self.listen_sockets.iter_mut().find(|listen_socket| listen_socket.listener == listener);
        if !self.closing && listen_socket.is_some_and(|listen_socket| listen_socket.may_say(now)) {
            let limit = match listener {
                Listener::Client => "limits.client_connections",
                Listener::Worker | Listener::Cluster => "limits.worker_connections",
            };
            tracing::warn!(
                core,
                limit,
                "the limit on open connections is reached: new ones are closed at once"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::super::stream::UNSENT;
    use super::*;

    #[test]
    fn connections_inherit_what_their_listener_was_tuned_to_or_are_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let before = [TcpStream::connect(address).unwrap(), TcpStream::connect(address).unwrap()];
        let keep_alive = super::super::Options::default().keep_alive;
        let socket = Listening::Kernel(listener.try_clone().unwrap());
        let listen_socket = ListenSocket::new(Listener::Client, socket, keep_alive, false).unwrap();
        assert_eq!(listen_socket.untuned, before.len() as u32 + JUST_COMING);
        let _after = TcpStream::connect(address).unwrap();
        let accepted: Vec<_> = (0..3).map(|_| listener.accept().unwrap().0).collect();
        assert!(!accepted[1].nodelay().unwrap());
        let last = SockRef::from(&accepted[2]);
        assert!(last.tcp_nodelay().unwrap() && last.keepalive().unwrap());
        assert!(last.out_of_band_inline().unwrap());
        assert_eq!(last.tcp_notsent_lowat().unwrap(), UNSENT);
        assert_eq!(last.tcp_keepalive_time().unwrap(), keep_alive.idle);
        assert_eq!(last.tcp_keepalive_interval().unwrap(), keep_alive.interval);
        assert_eq!(last.tcp_keepalive_retries().unwrap(), keep_alive.probes);
    }
}
