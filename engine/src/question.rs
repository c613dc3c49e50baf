//! One HTTP/1.1 question to an admin port, on a connection of its own.

use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use bytes::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Sends it, and takes an answer of so many octets at most.
///
/// # Errors
/// The answer is no HTTP, or too long.
pub(crate) async fn ask(
    stream: TcpStream,
    request: Request<Body>,
    most: usize,
) -> Result<(StatusCode, Bytes), String> {
    let broken = |error: hyper::Error| error.to_string();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    // The task ends with the answer, which also shows what went wrong.
    let connection = tokio::spawn(connection);
    let response = sender.send_request(request).await.map_err(broken)?;
    let status = response.status();
    let body = to_bytes(Body::new(response.into_body()), most).await;
    connection.abort();
    Ok((status, body.map_err(|error| error.to_string())?))
}
