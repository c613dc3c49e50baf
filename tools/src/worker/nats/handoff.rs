//! The boundary between the thread of NATS and that of the tunnels: tunnels are asked for through a
//! queue, and a byte through a socket says that something is in it.

use std::io::{self, Write};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use monoio::io::AsyncReadRent;
use monoio::net::UnixStream;
use ringway_work::{Connection, Endpoint, short};
use tokio::sync::oneshot;
use uuid::Uuid;

use super::super::connect::{self, Refusal};
use super::super::net;
use super::super::tunnel::{self, Buffers};
use super::reconnect_window;

/// Most tunnels that are asked for and not begun. The other thread takes them all each time it is
/// woken, so only one that stands still lets it fill.
const MAX_ASKED: usize = 8 * 1024;

/// A tunnel that is asked for.
pub(super) struct Asked {
    id: Uuid,
    connections: Vec<Connection>,
    opened: oneshot::Sender<Result<Opened, Refusal>>,
}

/// A tunnel that is open.
pub(super) struct Opened {
    /// How long it took to open.
    pub(super) dial: Duration,
    /// Ends with the tunnel; with how long its first request asked the session to wait for another
    /// (contract 11).
    pub(super) ended: oneshot::Receiver<Option<Duration>>,
}

/// NATS' side.
#[derive(Debug)]
pub(super) struct Asker {
    queue: SyncSender<Asked>,
    bell: StdUnixStream,
}

impl Asker {
    /// Opens a tunnel. Who gives up the wait for it has none: it is closed once it is open.
    pub(super) async fn open(
        &self,
        id: Uuid,
        connections: Vec<Connection>,
    ) -> Result<Opened, Refusal> {
        let (opened, answer) = oneshot::channel();
        let asked = Asked { id, connections, opened };
        let full = |why: &'static str| Refusal::Failed(io::Error::other(why).into());
        self.queue.try_send(asked).map_err(|error| match error {
            TrySendError::Full(_) => full("too many tunnels are asked for at once"),
            TrySendError::Disconnected(_) => full("the worker ends"),
        })?;
        // A socket that is full rings already.
        let _ = (&self.bell).write(&[1]);
        answer.await.unwrap_or_else(|_| Err(full("the worker ends")))
    }
}

/// The tunnels' side.
pub(super) struct TunnelOpener {
    queue: Receiver<Asked>,
    bell: UnixStream,
    tunnels: Rc<Tunnels>,
}

struct Tunnels {
    target: Endpoint,
    buffers: Buffers,
    /// Whether first requests are looked at.
    looks: bool,
}

impl TunnelOpener {
    pub(super) fn new(target: Endpoint, looks: bool) -> io::Result<(Self, Asker)> {
        let (queue, taken) = sync_channel(MAX_ASKED);
        let (bell, heard) = StdUnixStream::pair()?;
        bell.set_nonblocking(true)?;
        let tunnels = Rc::new(Tunnels { target, buffers: Buffers::default(), looks });
        let opener = Self { queue: taken, bell: net::from_std(heard)?, tunnels };
        Ok((opener, Asker { queue, bell }))
    }

    /// Opens tunnels until the other side is gone.
    pub(super) async fn work(mut self) -> io::Result<()> {
        let mut rings = Vec::with_capacity(256);
        loop {
            let (read, buffer) = self.bell.read(rings).await;
            rings = buffer;
            for asked in self.queue.try_iter() {
                monoio::spawn(self.tunnels.clone().serve(asked));
            }
            if read? == 0 {
                return Ok(());
            }
        }
    }
}

impl Tunnels {
    /// One tunnel, from the CONNECT to its end.
    async fn serve(self: Rc<Self>, asked: Asked) {
        let session = short(asked.id);
        let begun = Instant::now();
        let mut tunnel = match connect::open(&asked.connections, asked.id).await {
            Ok(tunnel) => tunnel,
            Err(refusal) => {
                // The session may be over.
                let _ = asked.opened.send(Err(refusal));
                return;
            }
        };
        let (ends, ended) = oneshot::channel();
        let opened = Opened { dial: begun.elapsed(), ended };
        if asked.opened.send(Ok(opened)).is_err() {
            tracing::info!(session, "a tunnel came too late for its session");
            return;
        }
        let window = if self.looks { reconnect_window::look(&mut tunnel).await } else { None };
        let how = tunnel::bridge(tunnel, &self.target, &self.buffers).await;
        super::super::tell(&session, &self.target, how);
        // The session may have been cut off.
        let _ = ends.send(window);
    }
}
