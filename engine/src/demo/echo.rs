//! The echo function: gRPC with health and reflection, HTTP `/echo`, and WebSocket `/ws`.

use std::iter::repeat_n;
use std::pin::Pin;

use axum::Router;
use axum::extract::Request as HttpRequest;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::Response as HttpResponse;
use axum::routing::any;
use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderMap, SEC_WEBSOCKET_PROTOCOL};
use tokio_stream::{Stream, StreamExt};
use tonic::codec::CompressionEncoding;
use tonic::metadata::{KeyAndValueRef, MetadataMap};
use tonic::{Code, Request, Response, Status, Streaming};

use pb::EchoMessage;
use pb::echo_server::EchoServer;

/// Messages and service, generated from `echo/echo.proto`.
#[expect(
    missing_docs,
    unused_qualifications,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::excessive_nesting,
    clippy::too_many_lines,
    reason = "generated; the proto file documents it"
)]
pub mod pb {
    tonic::include_proto!("ringway.echo.v1");
}

/// The compiled `echo.proto`, for reflection.
pub const FILE_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/echo.bin"));

/// The gRPC service.
#[derive(Clone, Copy, Debug, Default)]
pub struct Echo;

/// Everything the function answers: gRPC (echo, health, reflection v1 and v1alpha), `/echo` and
/// `/ws`.
///
/// # Panics
/// Never: the descriptors are compiled in.
pub async fn routes() -> Router {
    // No limit on messages: the gateway has none either (contract CL-33). Compressed messages are
    // read but not sent, so that what comes back is as large as what was sent.
    let echo = EchoServer::new(Echo)
        .max_decoding_message_size(usize::MAX)
        .max_encoding_message_size(usize::MAX)
        .accept_compressed(CompressionEncoding::Gzip);
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<EchoServer<Echo>>().await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    const COMPILED: &str = "descriptors made by the build script are readable";
    tonic::service::Routes::new(echo)
        .add_service(health)
        .add_service(reflection().build_v1().expect(COMPILED))
        .add_service(reflection().build_v1alpha().expect(COMPILED))
        .into_axum_router()
        .route("/echo", any(http_echo))
        .route("/ws", any(websocket))
}

/// Echoes each message; a Close is answered with the same code (RFC 6455 §5.5.1).
async fn websocket(headers: HeaderMap, upgrade: WebSocketUpgrade) -> HttpResponse {
    // No limit on messages, as for gRPC.
    let upgrade = upgrade.max_message_size(usize::MAX).max_frame_size(usize::MAX);
    let upgrade = match chosen_protocol(&headers) {
        Some(protocol) => upgrade.protocols([protocol]),
        None => upgrade,
    };
    upgrade.on_upgrade(echo_messages)
}

async fn echo_messages(mut socket: WebSocket) {
    while let Some(Ok(message)) = socket.recv().await {
        let echoed = match message {
            Message::Text(_) | Message::Binary(_) => socket.send(message).await,
            // Answered by the socket itself.
            Message::Ping(_) | Message::Pong(_) | Message::Close(_) => Ok(()),
        };
        if echoed.is_err() {
            return;
        }
    }
}

/// The first protocol offered that is no credential pair (contract CL-1), else the first: a browser
/// wants one of its own back.
fn chosen_protocol(headers: &HeaderMap) -> Option<String> {
    let offered = || {
        let lines = headers.get_all(SEC_WEBSOCKET_PROTOCOL).into_iter();
        let lines = lines.filter_map(|line| line.to_str().ok());
        lines.flat_map(|line| line.split(',')).map(str::trim).filter(|part| !part.is_empty())
    };
    let is_pair = |part: &&str| {
        let name = part.split_once('.').map(|pair| pair.0.to_ascii_lowercase());
        name.is_some_and(|name| CREDENTIALS.contains(&name.as_str()))
    };
    offered().find(|part| !is_pair(part)).or_else(|| offered().next()).map(str::to_owned)
}

/// Names of the pairs that the gateway reads (contract 3.2).
const CREDENTIALS: [&str; 4] =
    ["authorization", "function-id", "function-version-id", "nvcf-reqid"];

/// The body comes back as it arrives, under the same content type.
async fn http_echo(request: HttpRequest) -> HttpResponse {
    let (head, body) = request.into_parts();
    let mut response = HttpResponse::new(body);
    if let Some(kind) = head.headers.get(CONTENT_TYPE) {
        response.headers_mut().insert(CONTENT_TYPE, kind.clone());
    }
    for (name, value) in &head.headers {
        if name.as_str().starts_with("x-echo-") {
            response.headers_mut().append(name, value.clone());
        }
    }
    response
}

type Messages = Pin<Box<dyn Stream<Item = Result<EchoMessage, Status>> + Send>>;

#[tonic::async_trait]
impl pb::echo_server::Echo for Echo {
    type ServerStreamStream = Messages;
    type BidiStreamStream = Streaming<EchoMessage>;

    async fn unary(&self, call: Request<EchoMessage>) -> Result<Response<EchoMessage>, Status> {
        let metadata = asked(call.metadata())?;
        Ok(answer(metadata, call.into_inner()))
    }

    async fn client_stream(
        &self,
        call: Request<Streaming<EchoMessage>>,
    ) -> Result<Response<EchoMessage>, Status> {
        let metadata = asked(call.metadata())?;
        let mut messages = call.into_inner();
        let mut payload = BytesMut::new();
        let mut count = 0;
        while let Some(message) = messages.next().await {
            payload.extend_from_slice(&message?.payload);
            count += 1;
        }
        Ok(answer(metadata, EchoMessage { payload: payload.freeze(), count }))
    }

    async fn server_stream(
        &self,
        call: Request<EchoMessage>,
    ) -> Result<Response<Messages>, Status> {
        let metadata = asked(call.metadata())?;
        let message = call.into_inner();
        let times = message.count.max(1) as usize;
        let copies = tokio_stream::iter(repeat_n(message, times).map(Ok));
        Ok(answer(metadata, Box::pin(copies)))
    }

    async fn bidi_stream(
        &self,
        call: Request<Streaming<EchoMessage>>,
    ) -> Result<Response<Streaming<EchoMessage>>, Status> {
        let metadata = asked(call.metadata())?;
        Ok(answer(metadata, call.into_inner()))
    }
}

/// What the caller wants back as metadata, or the failure it asked for.
fn asked(metadata: &MetadataMap) -> Result<MetadataMap, Status> {
    let mut back = MetadataMap::new();
    for entry in metadata.iter() {
        match entry {
            KeyAndValueRef::Ascii(key, value) if key.as_str().starts_with("x-echo-") => {
                back.append(key, value.clone());
            }
            KeyAndValueRef::Binary(key, value) if key.as_str().starts_with("x-echo-") => {
                back.append_bin(key, value.clone());
            }
            _ => {}
        }
    }
    let Some(status) = metadata.get("x-echo-status") else { return Ok(back) };
    let code = status.to_str().ok().and_then(|text| text.parse::<i32>().ok());
    let Some(code) = code.filter(|code| (0..=16).contains(code)) else {
        return Err(Status::invalid_argument("x-echo-status is not a code from 0 to 16"));
    };
    if code == 0 {
        return Ok(back);
    }
    let given = metadata.get("x-echo-message").and_then(|text| text.to_str().ok());
    let message = given.map_or_else(|| format!("failed with code {code} as asked"), Into::into);
    let details = metadata.get_bin("x-echo-details-bin").and_then(|value| value.to_bytes().ok());
    let code = Code::from_i32(code);
    Err(Status::with_details_and_metadata(code, message, details.unwrap_or_default(), back))
}

fn answer<T>(metadata: MetadataMap, message: T) -> Response<T> {
    Response::from_parts(metadata, message, tonic::Extensions::new())
}

impl From<Bytes> for EchoMessage {
    fn from(payload: Bytes) -> Self {
        Self { payload, count: 0 }
    }
}
