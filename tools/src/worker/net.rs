//! Sockets and the runtime that moves their bytes.

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::time::Duration;

use monoio::io::AsyncReadRent;
use monoio::net::{TcpStream, UnixStream};
use monoio::time::timeout;
use monoio::{FusionDriver, FusionRuntime, IoUringDriver, LegacyDriver, RuntimeBuilder};
use ringway_work::{DIAL_TIMEOUT, Endpoint};

/// TCP keep-alive finds a peer that is gone without a word, as Go's default does.
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 9;
/// Submission entries of the ring; completions get twice as many.
const RING_ENTRIES: u32 = 1024;
/// Longest answer of the resolver's thread.
const MAX_ADDRESSES: usize = 4096;

/// A runtime for this thread, with timers.
pub(super) type Runtime =
    FusionRuntime<monoio::time::TimeDriver<IoUringDriver>, monoio::time::TimeDriver<LegacyDriver>>;

/// What is to move the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io {
    /// io_uring, or epoll where it is refused.
    Auto,
    /// io_uring.
    Ring,
    /// epoll.
    Epoll,
}

/// The runtime, and whether it is the ring.
pub(super) fn runtime(io: Io) -> io::Result<(Runtime, bool)> {
    let epoll = || {
        let built = RuntimeBuilder::<LegacyDriver>::new().enable_timer().build()?;
        Ok((FusionRuntime::from(built), false))
    };
    if io == Io::Epoll || (io == Io::Auto && !monoio::utils::detect_uring()) {
        return epoll();
    }
    // The runtime's default flags cost an interrupt per completion: two to three times the CPU.
    let mut ring = io_uring_of_monoio::IoUring::builder();
    ring.setup_coop_taskrun();
    let builder = RuntimeBuilder::<FusionDriver>::new();
    match builder.with_entries(RING_ENTRIES).uring_builder(ring).enable_timer().build() {
        Ok(_) if io == Io::Ring && !monoio::utils::detect_uring() => {
            Err(io::Error::new(io::ErrorKind::Unsupported, "io_uring is refused here"))
        }
        Ok(runtime) => Ok((runtime, true)),
        // Kernels before 5.19 have a ring, but not these flags.
        Err(_) if io == Io::Auto => epoll(),
        Err(error) => Err(error),
    }
}

/// What moves the bytes on this machine unless something else is asked for.
#[must_use]
pub fn io_here() -> &'static str {
    match runtime(Io::Auto) {
        Ok((_, true)) => "io_uring",
        _ => "epoll",
    }
}

/// Connects to the first address of `to` that answers.
pub(super) async fn dial(to: &Endpoint) -> io::Result<TcpStream> {
    let dialled = timeout(DIAL_TIMEOUT, async {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in resolve(&to.host, to.port).await? {
            match TcpStream::connect_addr(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    });
    let stream = dialled.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    stream.set_nodelay(true)?;
    stream.set_tcp_keepalive(Some(KEEPALIVE), Some(KEEPALIVE), Some(KEEPALIVE_PROBES))?;
    Ok(stream)
}

/// The addresses of a name. The system's resolver blocks, so a thread asks it.
async fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let (asking, mut answering) = StdUnixStream::pair()?;
    let host = host.to_owned();
    let ask = move || {
        let text = match (host.as_str(), port).to_socket_addrs() {
            Ok(found) => found.map(|address| format!("{address}\n")).collect(),
            Err(error) => format!("{error}"),
        };
        // The caller may have gone away meanwhile.
        let _ = answering.write_all(text.as_bytes());
    };
    std::thread::Builder::new().name("resolver".into()).spawn(ask)?;
    let mut asking = from_std(asking)?;
    let mut text = Vec::new();
    loop {
        let (read, buf) = asking.read(Vec::with_capacity(MAX_ADDRESSES)).await;
        if read? == 0 || text.len() > MAX_ADDRESSES {
            break;
        }
        text.extend_from_slice(&buf);
    }
    let text = String::from_utf8_lossy(&text);
    text.lines().map(|line| line.parse().map_err(|_| io::Error::other(line.to_owned()))).collect()
}

/// A socket of the standard library for this thread's runtime.
pub(super) fn from_std(stream: StdUnixStream) -> io::Result<UnixStream> {
    // epoll wants sockets that do not block; the ring would give up on them instead of waiting.
    stream.set_nonblocking(monoio::utils::is_legacy())?;
    UnixStream::from_std(stream)
}
