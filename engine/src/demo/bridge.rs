//! The bytes of one tunnel to a server (`--target`), and back.
//!
//! A FIN on one side becomes a FIN on the other. If one side is lost, the other one gets a RST: a
//! body until close ends with a FIN, so a lost server must not look like one (contract CL-42).

use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::time::{sleep, timeout};

use crate::reactor::unacknowledged;

/// Buffer of each direction.
const COPY_BYTES: usize = 64 * 1024;
/// How long the other direction may go on once one has ended.
const LINGER: Duration = Duration::from_secs(1);
/// How long written bytes may take to arrive before a RST is sent, which would overtake them.
const DELIVERY: Duration = Duration::from_secs(1);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(2);

/// One of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Tunnel,
    Server,
}

/// How a direction ended: in order, or because this side broke.
type Ended = Result<(), (Side, io::Error)>;

/// Joins both sides until they have ended. `first` are bytes that the tunnel has sent already.
///
/// # Errors
/// If one of the two broke: then the other was cut.
pub(super) async fn join(
    mut tunnel: TcpStream,
    first: &[u8],
    mut server: TcpStream,
) -> io::Result<()> {
    // Whatever ends this before both have ended in order closes them by RST.
    set_resets(&tunnel, true);
    set_resets(&server, true);
    let ended = move_both(&mut tunnel, first, &mut server).await;
    match &ended {
        Ok(()) => {
            set_resets(&tunnel, false);
            set_resets(&server, false);
        }
        Err((Side::Tunnel, _)) => deliver(&server).await,
        Err((Side::Server, _)) => deliver(&tunnel).await,
    }
    ended.map_err(|(_, error)| error)
}

async fn move_both(tunnel: &mut TcpStream, first: &[u8], server: &mut TcpStream) -> Ended {
    let (from_tunnel, to_tunnel) = tunnel.split();
    let (from_server, mut to_server) = server.split();
    to_server.write_all(first).await.map_err(|error| (Side::Server, error))?;
    let broken = AtomicBool::new(false);
    let mut up = Box::pin(pump((from_tunnel, Side::Tunnel), (to_server, Side::Server), &broken));
    let mut down = Box::pin(pump((from_server, Side::Server), (to_tunnel, Side::Tunnel), &broken));
    tokio::select! {
        ended = &mut up => finish(Side::Tunnel, ended, down).await,
        ended = &mut down => finish(Side::Server, ended, up).await,
    }
}

/// One direction has ended: the other may finish what is on its way, unless its sink is lost.
async fn finish(source: Side, first: Ended, other: impl Future<Output = Ended>) -> Ended {
    if matches!(first, Err((side, _)) if side == source) {
        return first;
    }
    first.and(timeout(LINGER, other).await.unwrap_or(Ok(())))
}

/// Moves bytes until the source ends, and tells the sink.
async fn pump(
    (mut from, source): (ReadHalf<'_>, Side),
    (mut to, sink): (WriteHalf<'_>, Side),
    broken: &AtomicBool,
) -> Ended {
    let mut buffer = vec![0; COPY_BYTES];
    let breaks = |side, error| {
        broken.store(true, Relaxed);
        (side, error)
    };
    loop {
        let read = from.read(&mut buffer).await.map_err(|error| breaks(source, error))?;
        if read == 0 {
            break;
        }
        to.write_all(&buffer[..read]).await.map_err(|error| breaks(sink, error))?;
    }
    // The end of what a peer sent may be that of its connection: then a send was told, before.
    if !broken.load(Relaxed) {
        // The connection may be closed already, by the other side.
        let _ = to.shutdown().await;
    }
    Ok(())
}

/// Lets the close of a socket be a RST, also that which comes with the end of this process; or a
/// FIN again.
fn set_resets(stream: &TcpStream, resets: bool) {
    // The call fails on a socket that is gone already.
    let _ = SockRef::from(stream).set_linger(resets.then_some(Duration::ZERO));
}

/// Waits for what was written to arrive, before a RST does.
async fn deliver(stream: &TcpStream) {
    for _ in 0..DELIVERY.as_millis() / LOOK.as_millis() {
        if unacknowledged(stream).is_ok_and(|bytes| bytes == 0) {
            break;
        }
        sleep(LOOK).await;
    }
}
