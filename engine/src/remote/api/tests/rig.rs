//! A server that is the API, the rate limiter and their health.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};
use tonic::metadata::MetadataMap;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use tonic_health::server::HealthReporter;

use super::super::super::pb::limiter::rate_limit_service_server::{
    RateLimitService, RateLimitServiceServer,
};
use super::super::super::pb::limiter::{RateLimitRequest, RateLimitResponse};
use super::super::super::pb::proxy_auth_response::FunctionVersion;
use super::super::super::pb::proxy_server::{Proxy, ProxyServer};
use super::super::super::pb::{ProxyAuthRequest, ProxyAuthResponse};
use super::super::secrets::{SecretValues, Token};
use super::super::{Api, Meters};
use crate::config::{Api as Settings, Endpoint};

pub(super) const F: &str = "11111111-1111-4111-8111-111111111111";
pub(super) const V: &str = "22222222-2222-4222-8222-222222222222";

pub(super) fn token(text: &str) -> Token {
    Token::new(text).unwrap()
}

pub(super) fn granted() -> Result<ProxyAuthResponse, Status> {
    Ok(ProxyAuthResponse {
        function_id: F.into(),
        function_versions: vec![FunctionVersion {
            function_version_id: V.into(),
            ..FunctionVersion::default()
        }],
        client_auth_subject: "me".into(),
        client_nca_id: "nca".into(),
    })
}

/// One call of the API.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) bearer: Option<String>,
    pub(super) attempt: Option<String>,
    pub(super) key: String,
    pub(super) function: String,
    pub(super) version: Option<String>,
}

#[derive(Debug, Default)]
struct Script {
    answers: VecDeque<Result<ProxyAuthResponse, Status>>,
    seen: Vec<Seen>,
    asked: Vec<[String; 4]>,
    /// What the limiter says: a result; -1 an error, -2 nothing.
    limits: i32,
    held: usize,
}

/// What the server does, shared with the test.
#[derive(Clone, Debug)]
struct Stub {
    script: Arc<Mutex<Script>>,
    gate: Arc<Semaphore>,
}

struct Held(Stub);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.script.lock().unwrap().held -= 1;
    }
}

fn text(metadata: &MetadataMap, key: &str) -> Option<String> {
    metadata.get(key).map(|value| value.to_str().unwrap().into())
}

#[tonic::async_trait]
impl Proxy for Stub {
    async fn auth_stateful_work(
        &self,
        request: Request<ProxyAuthRequest>,
    ) -> Result<Response<ProxyAuthResponse>, Status> {
        let (bearer, attempt) = (
            text(request.metadata(), "authorization"),
            text(request.metadata(), "x-retry-attempty"),
        );
        let asked = request.into_inner();
        let hold = asked.function_id == "held";
        let answer = {
            let mut script = self.script.lock().unwrap();
            script.held += usize::from(hold);
            script.seen.push(Seen {
                bearer,
                attempt,
                key: asked.client_authorization_token,
                function: asked.function_id,
                version: asked.function_version_id,
            });
            script.answers.pop_front()
        };
        if hold {
            let _held = Held(self.clone());
            let _open = self.gate.acquire().await;
        }
        answer.unwrap_or_else(granted).map(Response::new)
    }
}

#[tonic::async_trait]
impl RateLimitService for Stub {
    async fn rate_limit(
        &self,
        request: Request<RateLimitRequest>,
    ) -> Result<Response<RateLimitResponse>, Status> {
        let bearer = text(request.metadata(), "authorization").unwrap_or_default();
        let asked = request.into_inner();
        let result = {
            let mut script = self.script.lock().unwrap();
            let key = [asked.nca_id, asked.function_id, asked.function_version_id, bearer];
            script.asked.push(key);
            script.limits
        };
        match result {
            -1 => Err(Status::unavailable("not now")),
            -2 => std::future::pending().await,
            result => Ok(Response::new(RateLimitResponse { result })),
        }
    }
}

/// The server, and what its clients are started with.
pub(super) struct Rig {
    stub: Stub,
    health: HealthReporter,
    address: SocketAddr,
    pub(super) meters: Arc<Meters>,
    pub(super) secrets: watch::Sender<Arc<SecretValues>>,
    pub(super) receiver: watch::Receiver<Arc<SecretValues>>,
    pub(super) oauth: Option<String>,
}

impl Rig {
    pub(super) async fn start() -> Self {
        let stub = Stub { script: Arc::default(), gate: Arc::new(Semaphore::new(0)) };
        let (health, health_server) = tonic_health::server::health_reporter();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server::builder()
            .add_service(ProxyServer::new(stub.clone()))
            .add_service(RateLimitServiceServer::new(stub.clone()))
            .add_service(health_server)
            .serve_with_incoming(TcpIncoming::from(listener));
        tokio::spawn(server);
        let (secrets, receiver) = watch::channel(Arc::default());
        let meters = Arc::default();
        Self { stub, health, address, meters, secrets, receiver, oauth: None }
    }

    /// Clients of this server.
    pub(super) fn api(&self) -> Api {
        let url = endpoint(self.address);
        let (limiter, oauth) = (Some(url.clone()), self.oauth.clone());
        Api::start(&Settings { url, oauth, limiter, ca: None }, &self.receiver, &self.meters)
            .unwrap()
    }

    /// What the API answers next; after that it grants.
    pub(super) fn answers(
        &self,
        answers: impl IntoIterator<Item = Result<ProxyAuthResponse, Status>>,
    ) {
        let mut script = self.stub.script.lock().unwrap();
        script.answers = answers.into_iter().collect();
        script.seen.clear();
    }

    /// The API's calls since the last look.
    pub(super) fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.stub.script.lock().unwrap().seen)
    }

    /// Waits until so many calls for the function `held` are there.
    pub(super) async fn until_held(&self, count: usize) {
        let held = async {
            while self.stub.script.lock().unwrap().held != count {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(super::PATIENCE, held).await.unwrap();
    }

    /// Lets them go.
    pub(super) fn release(&self) {
        self.stub.gate.add_permits(1 << 16);
    }

    pub(super) fn limits(&self, result: i32) {
        self.stub.script.lock().unwrap().limits = result;
    }

    /// The limiter's calls since the last look.
    pub(super) fn asked(&self) -> Vec<[String; 4]> {
        std::mem::take(&mut self.stub.script.lock().unwrap().asked)
    }

    pub(super) async fn serves(&self, well: bool) {
        let status = match well {
            true => tonic_health::ServingStatus::Serving,
            false => tonic_health::ServingStatus::NotServing,
        };
        self.health.set_service_status("", status).await;
    }
}

pub(super) fn endpoint(address: SocketAddr) -> Endpoint {
    Endpoint { tls: false, host: address.ip().to_string(), port: address.port() }
}

/// One at which nobody listens.
pub(super) async fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// A server that answers every call with this message.
pub(super) async fn raw(message: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(serve_raw(socket, message));
        }
    });
    address
}

async fn serve_raw(socket: tokio::net::TcpStream, message: &'static [u8]) {
    let Ok(mut connection) = h2::server::handshake(socket).await else { return };
    while let Some(Ok((_request, mut respond))) = connection.accept().await {
        let head = http::Response::builder().header("content-type", "application/grpc");
        let mut stream = respond.send_response(head.body(()).unwrap(), false).unwrap();
        let mut framed = vec![0];
        framed.extend((message.len() as u32).to_be_bytes());
        framed.extend(message);
        stream.send_data(Bytes::from(framed), false).unwrap();
        let status = http::HeaderMap::from_iter([(
            http::HeaderName::from_static("grpc-status"),
            http::HeaderValue::from_static("0"),
        )]);
        stream.send_trailers(status).unwrap();
    }
}
