//! Every operation in every state of a socket, on both backends: none completes again and again
//! without having brought anything.

use std::collections::VecDeque;
use std::io::{ErrorKind, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use super::backend::Ring;
use super::buffer::taken;
use super::options::Options;
use super::pump::tells_of_room;
use super::stream::tune;
use super::tag::{Completion, Kind, Tag};
use super::uring::{Accepts, Report, Share, Wait};
use crate::mailbox::mailbox;
use crate::metrics::Backend;
use crate::net::ConnId;
use crate::pool::{Pool, Segment};

/// How long completions are counted.
const QUIET: Duration = Duration::from_millis(100);
/// This many completions that brought nothing mean that an operation spins.
const SPINS: usize = 10;
/// How much a peer's receive buffer holds.
const PEER_KEEPS: usize = 16 * 1024;

#[derive(Clone, Copy, Debug)]
enum State {
    Fresh,
    Bytes,
    Fin,
    BytesThenFin,
    OurFin,
    BothFins,
    Reset,
    BytesThenReset,
    Urgent,
    UrgentBetweenBytes,
    UrgentThenFin,
    Full,
    FullThenFin,
    FullWithUrgent,
    FullThenReset,
}

const STATES: [State; 15] = [
    State::Fresh,
    State::Bytes,
    State::Fin,
    State::BytesThenFin,
    State::OurFin,
    State::BothFins,
    State::Reset,
    State::BytesThenReset,
    State::Urgent,
    State::UrgentBetweenBytes,
    State::UrgentThenFin,
    State::Full,
    State::FullThenFin,
    State::FullWithUrgent,
    State::FullThenReset,
];

/// All operations that a tag can name.
fn kinds() -> Vec<Kind> {
    let mut kinds: Vec<Kind> = Vec::new();
    for number in 0..=u64::from(u8::MAX) {
        let kind = Tag(number << 56).kind();
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    kinds
}

/// A connection in some state, and what drives it.
struct World {
    ring: Ring,
    share: Share,
    pool: Pool,
    listener: TcpListener,
    ours: TcpStream,
    peer: Option<TcpStream>,
    /// A byte to send.
    queue: VecDeque<Segment>,
    /// A poll for room is under way.
    polling: bool,
    dialled: Option<(Socket, Box<SockAddr>)>,
    bell: OwnedFd,
}

const CONN: ConnId = ConnId { slot: 3, generation: 7 };

impl World {
    fn new(backend: Backend, state: State) -> Self {
        let options = Options { backend, ..Options::default() };
        let mut pool = Pool::new(options.blocks, options.block_bytes);
        let (ring, share) = Ring::new(&options, &mut pool).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        peer.set_recv_buffer_size(PEER_KEEPS).unwrap();
        peer.connect(&listener.local_addr().unwrap().into()).unwrap();
        peer.set_tcp_nodelay(true).unwrap();
        let (ours, _) = listener.accept().unwrap();
        tune(&SockRef::from(&ours), options.keep_alive).unwrap();
        let queue = VecDeque::from([pool.chunk().part(0, 1)]);
        let (_, inbox) = mailbox::<()>(1).unwrap();
        // SAFETY: the mailbox lives while its descriptor is copied.
        let bell = unsafe { std::os::fd::BorrowedFd::borrow_raw(inbox.bell()) };
        let bell = bell.try_clone_to_owned().unwrap();
        let (peer, dialled) = (Some(peer.into()), None);
        let mut world =
            Self { ring, share, pool, listener, ours, peer, queue, polling: false, dialled, bell };
        world.bring(state);
        world
    }

    /// Brings the connection into a state.
    fn bring(&mut self, state: State) {
        let mut peer = self.peer.take().unwrap();
        let urgent = |peer: &TcpStream| SockRef::from(peer).send_out_of_band(b"!").unwrap();
        if let State::Full | State::FullThenFin | State::FullWithUrgent | State::FullThenReset =
            state
        {
            self.ours.set_nonblocking(true).unwrap();
            let full = std::iter::from_fn(|| Some(self.ours.write(&[0; 64 * 1024])));
            let full = full.filter_map(Result::err).next();
            assert_eq!(full.map(|error| error.kind()), Some(ErrorKind::WouldBlock));
            self.ours.set_nonblocking(false).unwrap();
        }
        match state {
            State::Fresh | State::Full => {}
            State::Bytes => peer.write_all(b"bytes").unwrap(),
            State::Fin | State::FullThenFin => peer.shutdown(Shutdown::Write).unwrap(),
            State::BytesThenFin => {
                peer.write_all(b"bytes").unwrap();
                peer.shutdown(Shutdown::Write).unwrap();
            }
            State::OurFin => self.ours.shutdown(Shutdown::Write).unwrap(),
            State::BothFins => {
                peer.shutdown(Shutdown::Write).unwrap();
                self.ours.shutdown(Shutdown::Write).unwrap();
            }
            State::Urgent | State::FullWithUrgent => assert_eq!(urgent(&peer), 1),
            State::UrgentBetweenBytes | State::UrgentThenFin => {
                peer.write_all(b"bytes").unwrap();
                urgent(&peer);
                peer.write_all(b"bytes").unwrap();
                if let State::UrgentThenFin = state {
                    peer.shutdown(Shutdown::Write).unwrap();
                }
            }
            State::Reset | State::BytesThenReset | State::FullThenReset => {
                if let State::BytesThenReset = state {
                    peer.write_all(b"bytes").unwrap();
                }
                SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
                drop(peer);
                return;
            }
        }
        self.peer = Some(peer);
    }

    /// Arms an operation of any kind.
    fn arm(&mut self, kind: Kind) {
        let tag = Tag::of(kind, CONN);
        let socket = self.ours.as_raw_fd();
        match kind {
            Kind::Accept => self.ring.accept(self.listener.as_raw_fd(), Accepts::Many, tag),
            Kind::Receive => self.ring.receive(socket, self.share, tag),
            Kind::Send => {
                self.ring.send(socket, &self.queue, &self.pool, Report::Always, tag);
            }
            Kind::Writable => {
                self.polling = true;
                self.ring.writable(socket, tag);
            }
            Kind::Connect => {
                let dialled = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                let address = Box::new(self.listener.local_addr().unwrap().into());
                let (dialled, address) = self.dialled.insert((dialled, address));
                // The listener is another socket, so it has a slot of its own.
                let tag = Tag::of(kind, ConnId { slot: 4, generation: 1 });
                self.ring.connect(dialled.as_raw_fd(), address, tag);
            }
            Kind::Cancel => self.ring.cancel(tag.sibling(Kind::Receive), tag),
            Kind::Bell => self.ring.bell(self.bell.as_raw_fd(), tag),
            Kind::Ring => {
                if let Some(ring) = self.ring.fd() {
                    self.ring.ring(ring, tag.sibling(Kind::Rung), tag);
                }
            }
            // This is never armed: another core's ring completes as it.
            Kind::Rung => {}
        }
    }

    /// Goes on as the reactor does. True if the completion brought anything.
    fn brought(&mut self, completion: Completion) -> bool {
        let (kind, result, goes_on) = (completion.tag.kind(), completion.result, completion.more());
        match kind {
            Kind::Accept if result >= 0 => {
                // SAFETY: the kernel has just given us this descriptor.
                drop(unsafe { OwnedFd::from_raw_fd(result) });
                true
            }
            Kind::Receive => {
                if let Some(segment) = taken(&mut self.pool, completion) {
                    self.pool.release(segment);
                }
                let nothing =
                    [libc::EAGAIN, libc::EINTR, libc::ECANCELED, libc::ENOBUFS].contains(&-result);
                if !goes_on && (result > 0 || nothing) {
                    self.arm(Kind::Receive);
                }
                !nothing
            }
            Kind::Send => {
                if result == -libc::EAGAIN && !self.polling {
                    self.arm(Kind::Writable);
                }
                result != -libc::EAGAIN
            }
            Kind::Writable => {
                self.polling = goes_on;
                if !goes_on || tells_of_room(result) {
                    self.arm(Kind::Send);
                }
                false
            }
            Kind::Bell if !goes_on => {
                self.arm(Kind::Bell);
                false
            }
            Kind::Connect | Kind::Rung => true,
            Kind::Accept | Kind::Cancel | Kind::Bell | Kind::Ring => false,
        }
    }

    /// How many completions bring nothing in a time in which nothing happens.
    fn in_vain(&mut self, kind: Kind) -> usize {
        self.arm(kind);
        let (begun, mut vain) = (Instant::now(), 0);
        while begun.elapsed() < QUIET && vain < 1000 {
            self.ring.lend(&mut self.pool);
            self.ring.enter(Wait::AtMost(QUIET / 10), &mut self.pool);
            let batch = self.ring.take_batch();
            for completion in &batch {
                vain += usize::from(!self.brought(*completion));
            }
            self.ring.give_back(batch);
        }
        vain
    }
}

#[test]
fn no_operation_spins_in_any_state() {
    let kinds = kinds();
    assert!(kinds.contains(&Kind::Accept) && kinds.contains(&Kind::Rung), "{kinds:?}");
    let cases = STATES.iter().flat_map(|state| {
        [Backend::Ring, Backend::Epoll].map(|backend| (backend, *state, kinds.clone()))
    });
    let threads: Vec<_> = cases
        .map(|(backend, state, kinds)| {
            thread::spawn(move || {
                for kind in kinds {
                    let vain = World::new(backend, state).in_vain(kind);
                    assert!(vain < SPINS, "{kind:?}, {state:?}, {backend:?}: {vain} in {QUIET:?}");
                }
            })
        })
        .collect();
    let ended: Vec<_> = threads.into_iter().map(thread::JoinHandle::join).collect();
    assert!(ended.iter().all(Result::is_ok));
}
