//! One tunnel of a worker: the CONNECT (contract 4.1), then the function on the byte stream.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::Router;
use bytes::{Buf, BytesMut};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use ringway_work::{ANSWER_TIMEOUT, Connection, DIAL_TIMEOUT, Endpoint, Head, Http1, pauses};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::poll::{self, SENDER};

/// Receive window of a stream and of a tunnel.
const WINDOW: u32 = 16 << 20;
/// What a bridge takes before it dials its server.
const FIRST_BYTES: usize = 64 * 1024;
/// Fields and bytes of a request head: more than the gateway lets through.
const MAX_FIELDS: usize = 1024;
const MAX_HEAD_BYTES: usize = 1 << 20;

/// What is served on a tunnel.
#[derive(Clone, Debug)]
pub enum Serve {
    /// These routes, over HTTP/2 or HTTP/1.
    Routes(Router),
    /// A server at this address, byte by byte.
    Bridge(String),
}

/// Why there is no tunnel.
#[derive(Debug)]
pub(super) enum Refusal {
    /// 401 or 403: trying again is of no use (contract WK-5).
    ForGood(u16),
    /// Anything else, after all rounds.
    Failed(io::Error),
}

/// Connects to the server of `--target`.
async fn dial(target: &str) -> io::Result<TcpStream> {
    timeout(DIAL_TIMEOUT, TcpStream::connect(target)).await?
}

/// Says at the start that nothing answers where the user's server should be.
pub(crate) async fn look_at(target: String) {
    if let Err(error) = dial(&target).await {
        tracing::warn!(
            target_server = target,
            %error,
            "nothing answers at --target: start your server there; until then every call gets 502"
        );
    }
}

/// Opens a tunnel: each address in turn, a few rounds.
pub(super) async fn open(addresses: &[Connection], id: Uuid) -> Result<Tunnel, Refusal> {
    let mut pauses = pauses();
    let mut last = io::Error::other("no address that this worker can dial");
    loop {
        for http1 in addresses.iter().filter_map(|address| address.http1.as_ref()) {
            match connect(http1, id).await {
                Ok(Ok(tunnel)) => return Ok(tunnel),
                Ok(Err(status @ (401 | 403))) => return Err(Refusal::ForGood(status)),
                Ok(Err(status)) => last = io::Error::other(format!("CONNECT answered {status}")),
                Err(error) => last = error,
            }
        }
        match pauses.next() {
            Some(pause) => sleep(pause).await,
            None => return Err(Refusal::Failed(last)),
        }
    }
}

/// One CONNECT; the inner error is a status other than 200.
async fn connect(to: &Http1, id: Uuid) -> io::Result<Result<Tunnel, u16>> {
    let endpoint = Endpoint::parse(&to.proxy_uri).map_err(io::Error::other)?;
    let head = SENDER.connect(&endpoint, to, id);
    let head = head.ok_or_else(|| io::Error::other("the token is no token"))?;
    let mut stream = timeout(DIAL_TIMEOUT, poll::connect(&endpoint)).await??;
    stream.write_all(head.as_bytes()).await?;
    let mut read = BytesMut::with_capacity(1024);
    let answer = async {
        loop {
            if let Some(head) = Head::parse(&read).map_err(io::Error::other)? {
                if !matches!(head.status, 100..200) {
                    return Ok(head);
                }
                read.advance(head.len);
            } else if stream.read_buf(&mut read).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
            }
        }
    };
    let head = timeout(ANSWER_TIMEOUT, answer).await??;
    // Only 200 is success, whatever framing the head announces (contract WK-5, WK-11).
    if head.status != 200 {
        return Ok(Err(head.status));
    }
    read.advance(head.len);
    Ok(Ok(Tunnel { stream, early: read, open: None }))
}

/// The stream after the CONNECT, with what the gateway sent right behind its answer.
#[derive(Debug)]
pub(super) struct Tunnel {
    stream: TcpStream,
    early: BytesMut,
    /// Dropped with the stream: whoever waits for the other half learns that it is closed.
    open: Option<oneshot::Sender<()>>,
}

impl Tunnel {
    /// Serves the function until the tunnel ends.
    pub(super) async fn serve(self, serve: &Serve) -> io::Result<()> {
        match serve {
            Serve::Routes(routes) => self.serve_routes(routes.clone()).await,
            Serve::Bridge(target) => self.bridge(target).await,
        }
    }

    /// Until the stream is closed: a WebSocket goes on when the HTTP on it has ended.
    async fn serve_routes(mut self, routes: Router) -> io::Result<()> {
        let (open, closed) = oneshot::channel();
        self.open = Some(open);
        let mut server = auto::Builder::new(TokioExecutor::new());
        server.http1().max_headers(MAX_FIELDS).half_close(true).max_buf_size(MAX_HEAD_BYTES);
        server
            .http2()
            .max_concurrent_streams(None)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .max_header_list_size(MAX_HEAD_BYTES as u32)
            // Clients cancel as often as they like; the gateway has counted them already.
            .max_pending_accept_reset_streams(1 << 20)
            .max_local_error_reset_streams(None);
        let service = TowerToHyperService::new(routes);
        let served = server.serve_connection_with_upgrades(TokioIo::new(self), service).await;
        // Nothing is ever sent: it ends in an error, with the stream.
        let _ = closed.await;
        served.map_err(|error| io::Error::other(error.to_string()))
    }

    async fn bridge(mut self, target: &str) -> io::Result<()> {
        let server = dial(target).await.inspect_err(|error| {
            tracing::warn!(
                target_server = target,
                %error,
                "nothing answers at --target, so that this call gets 502: start your server there"
            );
        })?;
        server.set_nodelay(true)?;
        // A worker is silent until the gateway speaks (contract WK-12), but an HTTP/2 server is
        // not: hold it back until the first bytes have come.
        let mut first = BytesMut::with_capacity(FIRST_BYTES);
        if self.read_buf(&mut first).await? == 0 {
            return Ok(());
        }
        super::bridge::join(self.stream, &first, server).await
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.early.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let n = self.early.len().min(buf.remaining());
        buf.put_slice(&self.early.split_to(n));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
