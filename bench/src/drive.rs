//! Joins an HTTP/2 side to a socket on monoio: one read, everything in it understood, one write.
//!
//! A pending read is never dropped (the runtime would lose its bytes): the reader runs until the
//! connection ends, and the writer is a task of its own, so that two sides writing to each other
//! cannot block each other for good.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use monoio::buf::IoBufMut;
use monoio::io::Splitable;
use monoio::io::{AsyncReadRent, AsyncWriteRent, AsyncWriteRentExt, OwnedReadHalf, OwnedWriteHalf};
use monoio::net::TcpStream;
use monoio::{FusionDriver, FusionRuntime, IoUringDriver, LegacyDriver, RuntimeBuilder};

use crate::fault::Fault;

/// Bytes read at once; smaller buffers double the cost of large messages.
pub const READ_SIZE: usize = 64 * 1024;
/// Submission entries of a ring; completions get four times as many.
const RING_ENTRIES: u32 = 4096;

/// A runtime for one thread.
pub type Runtime = FusionRuntime<IoUringDriver, LegacyDriver>;
/// A runtime with timers.
pub type TimedRuntime =
    FusionRuntime<monoio::time::TimeDriver<IoUringDriver>, monoio::time::TimeDriver<LegacyDriver>>;

fn builder() -> RuntimeBuilder<FusionDriver> {
    // The runtime's default flags cost an interrupt per completion: 2 to 3 times the CPU.
    let mut ring = io_uring_of_monoio::IoUring::builder();
    ring.setup_coop_taskrun();
    RuntimeBuilder::<FusionDriver>::new().with_entries(RING_ENTRIES).uring_builder(ring)
}

/// Builds the runtime on the thread that will run it.
pub fn runtime() -> io::Result<Runtime> {
    builder().build()
}

/// As [`runtime`], able to sleep.
pub fn timed_runtime() -> io::Result<TimedRuntime> {
    builder().enable_timer().build()
}

/// What drives the sockets, for the report.
pub fn backend_name() -> &'static str {
    if monoio::utils::detect_uring() { "monoio, io_uring, COOP_TASKRUN" } else { "monoio, epoll" }
}

/// One side of an HTTP/2 connection: bytes in, bytes out.
pub trait Machine {
    /// Takes what it can of `bytes` and returns how much; the rest comes again with more.
    fn received(&mut self, bytes: &[u8]) -> Result<usize, Fault>;
    /// Adds to the output what it had no room for before.
    fn refill(&mut self);
    /// What is to be written.
    fn output(&mut self) -> &mut Vec<u8>;
    /// Whether the connection should end now.
    fn over(&self) -> bool {
        false
    }
}

/// How a connection ended when it was not this side's wish.
#[derive(Debug)]
pub enum Ended {
    /// The peer closed it, or the socket failed.
    Lost(Option<io::Error>),
    /// The peer broke the protocol.
    Fault(Fault),
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Lost(None) => f.write_str("closed by the peer"),
            Self::Lost(Some(error)) => write!(f, "{error}"),
            Self::Fault(fault) => write!(f, "{fault}"),
        }
    }
}

/// What reader and writer share besides the machine.
#[derive(Debug, Default)]
pub struct Link {
    /// Set while the writer has nothing to write.
    idle_writer: Option<Waker>,
    closed: bool,
    /// How long each read waits for the one before.
    slow: Option<Duration>,
}

/// Reads of a slow connection that come at once, so that its session is soon there.
const QUICK_READS: u32 = 6;
/// Octets that a slow connection takes at once.
const SLOW_READ: usize = 16 * 1024;

impl Link {
    /// Each read from now on waits so long for the one before; the runtime must have timers.
    pub fn slow(&mut self, pause: Option<Duration>) {
        self.slow = pause;
    }

    /// The machine was given something to write from outside.
    pub fn nudge(&mut self) {
        if let Some(waker) = self.idle_writer.take() {
            waker.wake();
        }
    }
}

/// Runs `machine` on `stream` until either ends; `early` are bytes already read.
pub async fn drive<M: Machine + 'static>(
    stream: TcpStream,
    machine: Rc<RefCell<M>>,
    early: &[u8],
) -> Result<(), Ended> {
    drive_linked(stream, machine, early, Rc::default()).await
}

/// As [`drive`], for a machine that is also given work from outside: `link` tells the writer.
pub async fn drive_linked<M: Machine + 'static>(
    stream: TcpStream,
    machine: Rc<RefCell<M>>,
    early: &[u8],
    link: Rc<RefCell<Link>>,
) -> Result<(), Ended> {
    // Without it small answers wait for acknowledgements.
    stream.set_nodelay(true).map_err(|e| Ended::Lost(Some(e)))?;
    let (reader, writer) = stream.into_split();
    monoio::spawn(write(writer, machine.clone(), link.clone()));
    let ended = read(reader, &machine, &link, early).await;
    let mut l = link.borrow_mut();
    l.closed = true;
    l.nudge();
    ended
}

async fn read<M: Machine>(
    mut reader: OwnedReadHalf<TcpStream>,
    machine: &RefCell<M>,
    link: &RefCell<Link>,
    early: &[u8],
) -> Result<(), Ended> {
    let mut buf = Vec::with_capacity(READ_SIZE.max(early.len() * 2));
    buf.extend_from_slice(early);
    let (slow, mut quick) = (link.borrow().slow, QUICK_READS);
    loop {
        if !buf.is_empty() {
            let mut m = machine.borrow_mut();
            let used = m.received(&buf).map_err(Ended::Fault)?;
            if m.over() {
                return Ok(());
            }
            let wake =
                if m.output().is_empty() { None } else { link.borrow_mut().idle_writer.take() };
            drop(m);
            if let Some(waker) = wake {
                waker.wake();
            }
            // At most one incomplete frame is left, far less than the buffer.
            let left = buf.len() - used;
            buf.copy_within(used.., 0);
            buf.truncate(left);
        }
        let (from, mut to) = (buf.len(), buf.capacity());
        if let Some(pause) = slow {
            to = to.min(from + SLOW_READ);
            quick = quick.saturating_sub(1);
            if quick == 0 {
                monoio::time::sleep(pause).await;
            }
        }
        let (result, slice) = reader.read(buf.slice_mut(from..to)).await;
        buf = slice.into_inner();
        match result {
            Ok(0) => return if machine.borrow().over() { Ok(()) } else { Err(Ended::Lost(None)) },
            Ok(_) => {}
            Err(error) => return Err(Ended::Lost(Some(error))),
        }
    }
}

async fn write<M: Machine>(
    mut writer: OwnedWriteHalf<TcpStream>,
    machine: Rc<RefCell<M>>,
    link: Rc<RefCell<Link>>,
) {
    let mut spare = Vec::new();
    while let Some(bytes) = next_output(&machine, &link, spare).await {
        let (result, mut bytes) = writer.write_all(bytes).await;
        if result.is_err() {
            break;
        }
        bytes.clear();
        spare = bytes;
        machine.borrow_mut().refill();
    }
    // The reader, if it still waits, sees the end; its own error is the one reported.
    let _ = writer.shutdown().await;
}

/// Swaps the machine's output for `spare` once there is some; `None` when the connection is over.
async fn next_output<M: Machine>(
    machine: &RefCell<M>,
    link: &RefCell<Link>,
    spare: Vec<u8>,
) -> Option<Vec<u8>> {
    let mut spare = Some(spare);
    poll_fn(|cx| {
        let mut link = link.borrow_mut();
        if link.closed {
            return Poll::Ready(None);
        }
        let mut machine = machine.borrow_mut();
        let out = machine.output();
        if out.is_empty() {
            link.idle_writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Some(std::mem::replace(out, spare.take().unwrap_or_default())))
    })
    .await
}
