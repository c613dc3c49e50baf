//! The responder that nats-server asks who may connect (its `auth_callout`), for the token of
//! contract NT-8.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::{Client, Message, ServerAddr};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::StreamExt;
use nkeys::KeyPair;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Stage, nonce};
use crate::nats::{Credentials, servers};

/// Where the server asks.
const SUBJECT: &str = "$SYS.REQ.USER.AUTH";
/// The OAuth2 scope of who connects (contract CP-7).
const SCOPE: &str = "admin:nats:Worker";
/// What the token has to say beside the access token (contract NT-8).
const ACCOUNT: &str = "Worker";
const PLUGIN: &str = "ssa";
/// How long an answer is good for; the server takes it at once.
const LIFE: Duration = Duration::from_secs(60);
/// Between attempts to subscribe.
const PAUSE: Duration = Duration::from_millis(200);

/// The token's content (contract NT-8).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Claim {
    account: String,
    plugin_name: String,
    payload: String,
}

/// The server's question, as far as it matters.
#[derive(Deserialize)]
struct Question {
    nats: Asked,
}

#[derive(Deserialize)]
struct Asked {
    server_id: Server,
    user_nkey: String,
    connect_opts: Connect,
}

#[derive(Deserialize)]
struct Server {
    id: String,
}

#[derive(Deserialize)]
struct Connect {
    #[serde(default)]
    auth_token: String,
    #[serde(default)]
    name: String,
}

/// Answers the server.
pub(super) struct Responder {
    stage: Arc<Stage>,
    nats: Vec<ServerAddr>,
    issuer: KeyPair,
    account: String,
}

impl Responder {
    /// The responder that the file asks for, if it does.
    pub(super) fn new(stage: Arc<Stage>) -> Result<Option<Self>, async_nats::Error> {
        let script = stage.script();
        let Some(nats) = &script.callout.nats else { return Ok(None) };
        let nats = servers(nats)?;
        let issuer = KeyPair::from_seed(&script.callout.issuer_seed)?;
        let account = script.callout.account.clone();
        Ok(Some(Self { stage, nats, issuer, account }))
    }

    /// Answers as long as the process lives, whether the server is there or comes later.
    pub(super) async fn answer(self) {
        let all = Arc::new(self);
        loop {
            match all.connect().await {
                Ok(client) => match client.subscribe(SUBJECT).await {
                    Ok(mut questions) => {
                        while let Some(question) = questions.next().await {
                            // Side by side: an answer may be late on purpose.
                            tokio::spawn(all.clone().reply(client.clone(), question));
                        }
                    }
                    Err(error) => tracing::warn!(%error, "no questions of the NATS server"),
                },
                Err(error) => tracing::warn!(%error, "no NATS server for the callout"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn connect(&self) -> Result<Client, async_nats::Error> {
        let options = Credentials::default().options(&self.nats).await?;
        let options = options.name("ringway-stand-in").retry_on_initial_connect();
        Ok(options.connect(self.nats.clone()).await?)
    }

    async fn reply(self: Arc<Self>, client: Client, message: Message) {
        let Some(reply) = message.reply else { return };
        let Some(question) = std::str::from_utf8(&message.payload).ok().and_then(read) else {
            tracing::warn!("a question of the NATS server cannot be read");
            return;
        };
        let verdict = self.judge(&question).await;
        let answer = self.sign(&question, &verdict);
        if let Err(error) = client.publish(reply, answer.into()).await {
            tracing::warn!(%error, "the NATS server was not answered");
        }
    }

    /// Whether who asks may come in, or why not.
    async fn judge(&self, question: &Question) -> Result<(), String> {
        let token = &question.nats.connect_opts.auth_token;
        let claim = URL_SAFE_NO_PAD.decode(token).ok();
        let claim: Option<Claim> = claim.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let payload = claim.as_ref().map_or("", |claim| &claim.payload);
        let name = &*question.nats.connect_opts.name;
        let mut call = self.stage.board.call("callout", &[("bearer", payload), ("name", name)]);
        let script = self.stage.script();
        let trouble = self.stage.trouble("callout", &script.callout.trouble);
        if let Some(trouble) = &trouble {
            trouble.wait().await;
        }
        let right = claim.as_ref().is_some_and(|claim| {
            claim.account == ACCOUNT
                && claim.plugin_name == PLUGIN
                && self.stage.takes(&script.callout.from, payload, SCOPE)
        });
        let verdict = match trouble {
            Some(trouble) if trouble.status != 0 => Err(trouble.message),
            _ if right => Ok(()),
            _ => Err("the token is not taken".into()),
        };
        call.ends(if verdict.is_ok() { "in" } else { "out" });
        verdict
    }

    /// The signed answer: the user's own claims inside, or an error.
    fn sign(&self, question: &Question, verdict: &Result<(), String>) -> String {
        let user = &question.nats.user_nkey;
        let script = self.stage.script();
        let rights =
            |allow: &[String]| if allow.is_empty() { json!({}) } else { json!({"allow": allow}) };
        let content = match verdict {
            Ok(()) => {
                let inner = json!({
                    "pub": rights(&script.callout.publish), "sub": rights(&script.callout.subscribe),
                    "subs": -1, "data": -1, "payload": -1, "type": "user", "version": 2,
                });
                let user = self.token(user, &self.account, inner);
                json!({"jwt": user, "type": "authorization_response", "version": 2})
            }
            Err(why) => json!({"error": why, "type": "authorization_response", "version": 2}),
        };
        self.token(user, &question.nats.server_id.id, content)
    }

    /// A JWT about `subject`, signed.
    fn token(&self, subject: &str, audience: &str, nats: Value) -> String {
        #[derive(Serialize)]
        struct Claims<'a> {
            jti: String,
            iss: String,
            sub: &'a str,
            aud: &'a str,
            name: &'a str,
            iat: u64,
            exp: u64,
            nats: Value,
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let claims = Claims {
            jti: nonce(),
            iss: self.issuer.public_key(),
            sub: subject,
            aud: audience,
            name: "worker",
            iat: now,
            exp: now + LIFE.as_secs(),
            nats,
        };
        let head = URL_SAFE_NO_PAD.encode(r#"{"typ":"JWT","alg":"ed25519-nkey"}"#);
        let claims = serde_json::to_vec(&claims).expect("texts and numbers are JSON");
        let signed = format!("{head}.{}", URL_SAFE_NO_PAD.encode(claims));
        let signature = self.issuer.sign(signed.as_bytes()).expect("a seed can sign");
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// The claims of a JWT. Who sends on this subject is the server; its signature is not looked at.
fn read(token: &str) -> Option<Question> {
    let claims = token.split('.').nth(1)?;
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()
}
