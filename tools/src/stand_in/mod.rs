//! What NVIDIA does not publish as a server, played from one file: the API's `AuthStatefulWork`
//! with its health service (contract 5.1), the OAuth2 token endpoint (contract 5.2), the rate
//! limiter (contract 5.3), and the responder that NATS asks who may connect (contract 6.6).
//!
//! The stand-in is made for tests: its counters show bearer tokens and keys. [`script`] is the
//! file, which is read again when it has changed; [`tally`] counts, and [`admin`] shows the counts
//! and takes another script in the file's place.

mod admin;
mod api;
mod callout;
mod limiter;
pub mod script;
pub mod streams;
mod tally;
mod token;
mod unary;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Identity, Server, ServerTlsConfig};

use script::{Follow, Script, Trouble};
use tally::Board;

/// Most tokens of the token endpoint that are remembered; beyond, all earlier ones are forgotten.
const MAX_TOKENS: usize = 10_000;

/// What all parts share.
pub(crate) struct Stage {
    follow: Follow,
    board: Arc<Board>,
    /// The tokens given out: what each is good for, and until when.
    tokens: Mutex<HashMap<String, Issued>>,
}

/// A token that the token endpoint has given out.
struct Issued {
    scope: String,
    until: Instant,
    /// The generation that the file had then.
    generation: u64,
}

impl Stage {
    /// The file as it is now.
    pub(crate) fn script(&self) -> Arc<Script> {
        self.follow.now()
    }

    /// The first of `troubles` that has times left, which costs it one. `name` tells the lists of
    /// a file apart.
    pub(crate) fn trouble(&self, name: &str, troubles: &[Trouble]) -> Option<Trouble> {
        self.follow.trouble(name, troubles)
    }

    /// Remembers a token for so long.
    fn issue(&self, token: String, scope: String, life: Duration) {
        let generation = self.script().token.generation;
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.len() >= MAX_TOKENS {
            tokens.clear();
        }
        tokens.insert(token, Issued { scope, until: Instant::now() + life, generation });
    }

    /// Whether a token of the token endpoint is good for `scope` still.
    fn is_issued(&self, token: &str, scope: &str) -> bool {
        let generation = self.script().token.generation;
        let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.get(token).is_some_and(|issued| {
            issued.generation == generation
                && issued.until > Instant::now()
                && issued.scope.split(' ').any(|one| one == scope)
        })
    }

    /// Whether a caller's credential is taken: one of `bearers`, or one that was issued for
    /// `scope`; any, or none, if the file asks for neither.
    pub(crate) fn takes(&self, gate: &script::Gate, bearer: &str, scope: &str) -> bool {
        let open = gate.bearers.is_empty() && !gate.issued;
        open || gate.bearers.iter().any(|one| one == bearer)
            || (gate.issued && self.is_issued(bearer, scope))
    }
}

/// Where the parts listen.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// The API, gRPC.
    pub api: SocketAddr,
    /// The token endpoint, HTTP.
    pub token: SocketAddr,
    /// The rate limiter, gRPC.
    pub limiter: SocketAddr,
    /// Counts, and another script, HTTP.
    pub admin: SocketAddr,
}

/// Plays until the process ends. `ready` is called with the addresses once all parts listen.
///
/// # Errors
/// A file that cannot be read or has a mistake, an address that cannot be bound, a certificate that
/// is none.
pub async fn play(
    path: std::path::PathBuf,
    ready: impl FnOnce(Addresses) -> io::Result<()>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let stage = Arc::new(Stage {
        follow: Follow::open(path)?,
        board: Arc::default(),
        tokens: Mutex::default(),
    });
    let script = stage.script();
    let bound = |at: &str| TcpListener::bind(at.to_owned());
    let (api, token) = (bound(&script.listen.api).await?, bound(&script.listen.token).await?);
    let (limiter, admin) =
        (bound(&script.listen.limiter).await?, bound(&script.listen.admin).await?);
    let addresses = Addresses {
        api: api.local_addr()?,
        token: token.local_addr()?,
        limiter: limiter.local_addr()?,
        admin: admin.local_addr()?,
    };
    if let Some(callout) = callout::Responder::new(stage.clone())? {
        tokio::spawn(callout.answer());
    }
    let mut api_server = Server::builder();
    if let Some(identity) = identity(&script)? {
        api_server = api_server.tls_config(ServerTlsConfig::new().identity(identity))?;
    }
    let api_server = api_server
        .add_service(api::service(stage.clone()))
        .add_service(api::health(stage.clone()))
        .serve_with_incoming(TcpListenerStream::new(api));
    let limiter_server = Server::builder()
        .add_service(limiter::service(stage.clone()))
        .serve_with_incoming(TcpListenerStream::new(limiter));
    ready(addresses)?;
    tokio::try_join!(
        async { api_server.await.map_err(Box::<dyn std::error::Error + Send + Sync>::from) },
        async { Ok(limiter_server.await?) },
        async { Ok(axum::serve(token, token::router(stage.clone())).await?) },
        async { Ok(axum::serve(admin, admin::router(stage.clone())).await?) },
    )?;
    Ok(())
}

/// The API's certificate and key, if it is to speak TLS.
fn identity(script: &Script) -> io::Result<Option<Identity>> {
    let (Some(certificate), Some(key)) = (&script.api.certificate, &script.api.key) else {
        return Ok(None);
    };
    let read = |path: &std::path::Path| {
        std::fs::read(path)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
    };
    Ok(Some(Identity::from_pem(read(certificate)?, read(key)?)))
}

/// A call's bearer token; empty without one.
fn bearer(value: Option<&str>) -> &str {
    value.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default()
}

/// Something that was never said before.
fn nonce() -> String {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the system has randomness");
    uuid::Uuid::from_bytes(bytes).simple().to_string()
}
