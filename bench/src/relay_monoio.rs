//! The control of the baseline: the same relay as tasks of monoio, over io_uring with
//! `COOP_TASKRUN`. It shows what an async runtime costs beside hand-written epoll.

use std::io;
use std::net::SocketAddr;

use monoio::io::Splitable;
use monoio::io::{AsyncReadRent, AsyncWriteRent, AsyncWriteRentExt, OwnedReadHalf, OwnedWriteHalf};
use monoio::net::{ListenerOpts, TcpListener, TcpStream};

use crate::drive;

/// Bytes moved at once, as the baseline's.
const BUFFER: usize = 64 * 1024;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;

/// Listens on `listen`, says so with `ready`, and relays each connection to `target`.
pub fn run(
    listen: SocketAddr,
    target: SocketAddr,
    ready: impl FnOnce(SocketAddr),
) -> io::Result<()> {
    drive::runtime()?.block_on(async move {
        let options = ListenerOpts::new().backlog(BACKLOG).reuse_port(false);
        let listener = TcpListener::bind_with_config(listen, &options)?;
        ready(listener.local_addr()?);
        loop {
            let (client, _) = listener.accept().await?;
            monoio::spawn(pair(client, target));
        }
    })
}

async fn pair(client: TcpStream, target: SocketAddr) {
    let server = match TcpStream::connect(target).await {
        Ok(server) => server,
        Err(error) => return ringway_stdio::complain!("relay: cannot reach {target}: {error}"),
    };
    // The call fails only on a connection that is gone already, which the first read will find.
    let _ = client.set_nodelay(true).and_then(|()| server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    monoio::spawn(way(from_client, to_server));
    way(from_server, to_client).await;
}

/// One direction, until its source has finished. Then the sink gets a FIN.
async fn way(mut source: OwnedReadHalf<TcpStream>, mut sink: OwnedWriteHalf<TcpStream>) {
    let mut buffer = Vec::with_capacity(BUFFER);
    loop {
        let (read, full) = source.read(buffer).await;
        if !matches!(read, Ok(n) if n > 0) {
            break;
        }
        let (written, spent) = sink.write_all(full).await;
        if written.is_err() {
            break;
        }
        buffer = spent;
        buffer.clear();
    }
    // The other side may be gone, which is the same end.
    let _ = sink.shutdown().await;
}
