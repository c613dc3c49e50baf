//! The baseline: the least a process can do between two TCP sockets.
//!
//! One thread, one edge-triggered epoll, `recv` and `send`, no protocol. What does not fit into
//! the other socket stays in its buffer and is sent from there, without a copy; a finished
//! direction is finished on the other side too. Buffers are shared while they are empty, so a
//! connection that is not behind owns none.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};

use socket2::{Domain, Protocol, Socket, Type};

use crate::sys::{BROKEN, Epoll, IN, OUT, RDHUP, Ready};

/// Bytes moved at once.
const BUFFER: usize = 64 * 1024;
/// Events taken from one wait.
const EVENTS: usize = 512;
/// Reads of one direction before the others have a turn.
const READS_PER_TURN: usize = 16;
/// Token of the listener; pairs count from 0.
const LISTENER: u64 = u64::MAX;

type Buffer = Box<[u8]>;

/// One direction of a pair.
#[derive(Debug, Default)]
struct Way {
    /// An edge said there is something to read and no read has found the end of it.
    readable: bool,
    /// The source has finished (or will, once it is read to the end).
    hung_up: bool,
    finished: bool,
    passed_on: bool,
    /// Bytes `.1 ..` of the buffer, up to `.2`, which the destination has not taken yet.
    rest: Option<(Buffer, usize, usize)>,
}

/// Two sockets; way 0 goes from socket 0 to socket 1.
#[derive(Debug)]
struct Pair {
    sockets: [TcpStream; 2],
    ways: [Way; 2],
}

/// How far a way came.
enum Moved {
    /// As far as the sockets allow.
    Done,
    /// Its turn was over first.
    More,
    /// One of the sockets is broken.
    Broken,
}

/// A relay that has not started yet.
#[derive(Debug)]
pub struct Relay {
    listener: TcpListener,
    target: SocketAddr,
    epoll: Epoll,
    pairs: Vec<Option<Pair>>,
    free: Vec<usize>,
    /// Empty buffers, the most recently used one last (it is in the cache).
    spare: Vec<Buffer>,
    /// Ways whose turn was over before their source was empty.
    again: Vec<(usize, usize)>,
}

impl Relay {
    /// Listens on `listen` and will dial `target` for each connection.
    pub fn bind(listen: SocketAddr, target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(listen)?;
        listener.set_nonblocking(true)?;
        let epoll = Epoll::new()?;
        epoll.add(&listener, LISTENER)?;
        let (pairs, free, spare, again) = (vec![], vec![], vec![], vec![]);
        Ok(Self { listener, target, epoll, pairs, free, spare, again })
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Relays until epoll fails. With `spin` it looks for events and never waits.
    pub fn run(mut self, spin: bool) -> io::Result<()> {
        let mut ready = [Ready::EMPTY; EVENTS];
        loop {
            let n = self.epoll.wait(&mut ready, !spin && self.again.is_empty())?;
            for (slot, way) in std::mem::take(&mut self.again) {
                self.turn(slot, way);
            }
            for event in &ready[..n] {
                self.event(event);
            }
        }
    }

    fn event(&mut self, event: &Ready) {
        if event.token() == LISTENER {
            return self.accept();
        }
        let (slot, end) = ((event.token() >> 1) as usize, (event.token() & 1) as usize);
        // A pair closed earlier in this batch, or a new one in its place: either is harmless.
        let Some(Some(pair)) = self.pairs.get_mut(slot) else { return };
        if event.any(IN | RDHUP | BROKEN) {
            pair.ways[end].readable = true;
            pair.ways[end].hung_up |= event.any(RDHUP | BROKEN);
            self.turn(slot, end);
        }
        if event.any(OUT) {
            self.turn(slot, 1 - end);
        }
    }

    /// Edge-triggered: every waiting connection is taken.
    fn accept(&mut self) {
        loop {
            match self.listener.accept() {
                Ok((client, _)) => {
                    if let Err(error) = self.open(client) {
                        ringway_stdio::complain!("relay: cannot reach {}: {error}", self.target);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    ringway_stdio::complain!("relay: accept: {error}");
                    return;
                }
            }
        }
    }

    fn open(&mut self, client: TcpStream) -> io::Result<()> {
        client.set_nonblocking(true)?;
        let domain = Domain::for_address(self.target);
        let server = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        match server.connect(&self.target.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
            _ => {}
        }
        let sockets = [client, TcpStream::from(server)];
        let slot = self.free.pop().unwrap_or_else(|| {
            self.pairs.push(None);
            self.pairs.len() - 1
        });
        for (end, socket) in sockets.iter().enumerate() {
            socket.set_nodelay(true)?;
            self.epoll.add(socket, (slot << 1 | end) as u64)?;
        }
        self.pairs[slot] = Some(Pair { sockets, ways: Default::default() });
        Ok(())
    }

    fn turn(&mut self, slot: usize, way: usize) {
        let Some(Some(pair)) = self.pairs.get_mut(slot) else { return };
        match pair.step(way, &mut self.spare) {
            Moved::Done if pair.ways.iter().all(|w| w.passed_on) => self.close(slot),
            Moved::Done => {}
            Moved::More => self.again.push((slot, way)),
            Moved::Broken => self.close(slot),
        }
    }

    fn close(&mut self, slot: usize) {
        let Some(pair) = self.pairs[slot].take() else { return };
        for way in pair.ways {
            self.spare.extend(way.rest.map(|(buffer, ..)| buffer));
        }
        self.free.push(slot);
    }
}

impl Pair {
    /// Moves what can be moved from socket `from` to the other.
    fn step(&mut self, from: usize, spare: &mut Vec<Buffer>) -> Moved {
        let (mut source, mut sink) = (&self.sockets[from], &self.sockets[1 - from]);
        let way = &mut self.ways[from];
        for _ in 0..READS_PER_TURN {
            if let Some((buffer, at, end)) = way.rest.take() {
                match drain(&mut sink, &buffer, at, end) {
                    Ok(at) if at < end => {
                        way.rest = Some((buffer, at, end));
                        return Moved::Done;
                    }
                    Ok(_) => spare.push(buffer),
                    Err(_) => {
                        spare.push(buffer);
                        return Moved::Broken;
                    }
                }
            }
            if way.finished {
                if !way.passed_on {
                    way.passed_on = true;
                    // Fails only when the other side is gone already, which is the same end.
                    let _ = sink.shutdown(Shutdown::Write);
                }
                return Moved::Done;
            }
            if !way.readable {
                return Moved::Done;
            }
            let mut buffer = spare.pop().unwrap_or_else(|| vec![0; BUFFER].into_boxed_slice());
            match source.read(&mut buffer) {
                Ok(0) => way.finished = true,
                Ok(n) => {
                    // A short read emptied the socket; new bytes make a new edge.
                    way.readable = n == BUFFER || way.hung_up;
                    way.rest = Some((buffer, 0, n));
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => way.readable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    spare.push(buffer);
                    return Moved::Broken;
                }
            }
            spare.push(buffer);
        }
        Moved::More
    }
}

/// Sends `buffer[at..end]` as far as the socket takes it; returns the new `at`.
fn drain(sink: &mut &TcpStream, buffer: &[u8], mut at: usize, end: usize) -> io::Result<usize> {
    while at < end {
        match sink.write(&buffer[at..end]) {
            Ok(n) => at += n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(at)
}
