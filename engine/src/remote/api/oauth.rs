//! Tokens by OAuth2 client credentials (RFC 6749 §4.4; contract CP-7): fetched in the background,
//! before the last one ends.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use form_urlencoded::{Serializer, byte_serialize};
use reqwest::redirect::Policy;
use reqwest::{StatusCode, Url};
use ringway_stdio::Trouble;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::channel::{NO_ROOTS, Roots};
use super::meters::Meters;
use super::repeats::Repeats;
use super::secrets::{SecretValues, Token};

/// How long a call waits for the first token.
pub(crate) const TOKEN_WAIT: Duration = Duration::from_secs(10);
/// How long one fetch of a token may take, and how long its connection may take of that.
const FETCH_LIMIT: Duration = Duration::from_secs(8);
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Octets of an answer.
const MOST_ANSWER: usize = 64 * 1024;
/// The pause after a failed fetch. It doubles with each further failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// The life of a token whose life is not given, and the longest life of any token.
const UNTOLD_LIFE: Duration = Duration::from_secs(3600);
const LONGEST_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);
/// A token is not used any more this long before its end, because the way to the server takes time
/// and clocks differ.
const MARGIN: Duration = Duration::from_secs(10);

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// NVIDIA's API.
    Api,
    /// The rate limiter.
    Limiter,
    /// NATS (contract NT-8).
    Nats,
}

impl Scope {
    /// The scope's name at the issuer.
    const fn text(self) -> &'static str {
        match self {
            Self::Api => "proxy:invoke_function",
            Self::Limiter => "ratelimit:check_invocation",
            Self::Nats => "admin:nats:Worker",
        }
    }

    /// The name of the token's user in metrics and log.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Limiter => "ratelimiter",
            Self::Nats => "nats",
        }
    }
}

/// Tokens for one purpose, kept fresh.
#[derive(Clone, Debug)]
pub(crate) struct OAuth(watch::Receiver<Fetched>);

/// The last result. A token stays even if the next one cannot be fetched.
#[derive(Clone, Debug, Default)]
struct Fetched {
    token: Option<(Token, Instant)>,
    fault: Option<Arc<str>>,
}

impl Fetched {
    fn usable(&self) -> Option<Token> {
        let (token, end) = self.token.as_ref()?;
        (Instant::now() < *end).then(|| token.clone())
    }
}

impl OAuth {
    /// Begins to fetch tokens from the issuer at a URL, whose token endpoint is `/token` below it, as
    /// soon as the secrets have an id and a secret.
    ///
    /// # Errors
    /// As [`Issuer::new`].
    pub(crate) fn start(
        at: (&str, &Roots),
        scope: Scope,
        secrets: &watch::Receiver<Arc<SecretValues>>,
        meters: &Arc<Meters>,
    ) -> Result<Self, Trouble> {
        Ok(Issuer::new(at, scope, secrets, meters)?.start())
    }

    /// A token that is still good. The first one is waited for, [`TOKEN_WAIT`] at most.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) async fn token(&self) -> Result<Token, Arc<str>> {
        let mut fetched = self.0.clone();
        let some = |fetched: &Fetched| fetched.usable().is_some() || fetched.fault.is_some();
        match timeout(TOKEN_WAIT, fetched.wait_for(some)).await {
            Ok(Ok(fetched)) => fetched
                .usable()
                .ok_or_else(|| fetched.fault.clone().unwrap_or_else(|| "it has ended".into())),
            Ok(Err(_)) => Err("no tokens are fetched any more".into()),
            Err(_) => Err("no token came in time".into()),
        }
    }
}

/// How an issuer wants the client's credentials (RFC 6749 §2.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    Basic,
    Body,
}

/// An issuer of tokens that nothing is fetched from yet.
#[derive(Clone, Debug)]
pub(super) struct Issuer {
    http: reqwest::Client,
    url: Url,
    scope: Scope,
    secrets: watch::Receiver<Arc<SecretValues>>,
    meters: Arc<Meters>,
}

impl Issuer {
    /// An issuer whose token endpoint is `/token` below that URL.
    ///
    /// # Errors
    /// The text is no URL, or it is `https` and there is no certificate to check servers against.
    pub(super) fn new(
        at: (&str, &Roots),
        scope: Scope,
        secrets: &watch::Receiver<Arc<SecretValues>>,
        meters: &Arc<Meters>,
    ) -> Result<Self, Trouble> {
        let (base, roots) = at;
        let url =
            Url::parse(&format!("{}/token", base.trim_end_matches('/'))).map_err(|error| {
                let what = format!("\"{base}\" is no URL of an issuer");
                Trouble::new(what, error, "set nvcf.oauth to https://HOST/PATH")
            })?;
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            // If another thread was faster there is one now, which is all that is wanted.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        // The request holds a password, so it follows no redirect.
        let http = reqwest::Client::builder()
            .timeout(FETCH_LIMIT)
            .connect_timeout(CONNECT_LIMIT)
            .redirect(Policy::none());
        let own = roots.pem().map(reqwest::Certificate::from_pem_bundle).transpose();
        let own = own.map_err(|error| {
            let what = "nvcf.ca_file has no certificate that can be used";
            Trouble::new(what, chain(&error), "name a file with certificates as PEM")
        })?;
        let http = match (url.scheme(), own) {
            // No certificate is needed, so it need not be there either.
            ("http", _) => http.tls_certs_only([]),
            (_, Some(own)) => http.tls_certs_only(own),
            (_, None) => http,
        };
        let http = http.build().map_err(|error| {
            Trouble::new(format!("{base} cannot be called"), chain(&error), NO_ROOTS)
        })?;
        Ok(Self { http, url, scope, secrets: secrets.clone(), meters: meters.clone() })
    }

    /// Begins to fetch.
    pub(super) fn start(self) -> OAuth {
        let (sender, receiver) = watch::channel(Fetched::default());
        tokio::spawn(self.run(sender));
        OAuth(receiver)
    }

    /// Fetches tokens until nobody wants any.
    async fn run(self, sender: watch::Sender<Fetched>) {
        let (repeats, mut style, mut failures) = (Repeats::default(), None, 0);
        loop {
            let client = self.secrets.borrow().client();
            let rest = match &client {
                None => {
                    self.failed(&sender, "the secrets file has no id and secret", &repeats);
                    None
                }
                Some((id, secret)) => match self.fetch(Client { id, secret }, &mut style).await {
                    Ok((token, life)) => {
                        failures = 0;
                        let end = Instant::now() + life - MARGIN.min(life / 10);
                        sender.send_replace(Fetched { token: Some((token, end)), fault: None });
                        if repeats.over() {
                            tracing::info!(client = self.scope.name(), "OAuth2 tokens come again");
                        }
                        Some((life * 4 / 5).max(FIRST_PAUSE))
                    }
                    Err(why) => {
                        self.meters.refresh_failed(self.scope.name(), id.text());
                        self.failed(&sender, &why, &repeats);
                        let pause = FIRST_PAUSE * 2u32.saturating_pow(failures);
                        failures = (failures + 1).min(8);
                        Some(pause.min(LONGEST_PAUSE))
                    }
                },
            };
            tokio::select! {
                () = sender.closed() => return,
                () = self.another(client) => {}
                () = sleep(rest.unwrap_or_default()), if rest.is_some() => {}
            }
        }
    }

    /// Waits until the secrets have another id or secret.
    async fn another(&self, client: Option<(Token, Token)>) {
        let mut secrets = self.secrets.clone();
        if secrets.wait_for(|values| values.client() != client).await.is_err() {
            // Nobody changes them any more.
            std::future::pending().await
        }
    }

    fn failed(&self, sender: &watch::Sender<Fetched>, why: &str, repeats: &Repeats) {
        sender.send_modify(|fetched| fetched.fault = Some(why.into()));
        if repeats.due(why).is_some() {
            let (client, url) = (self.scope.name(), &self.url);
            tracing::warn!(client, %url, why, "no token of OAuth2 can be fetched");
        }
    }

    /// Fetches one token in the style that the issuer has accepted before, or else in both styles.
    async fn fetch(
        &self,
        client: Client<'_>,
        style: &mut Option<Style>,
    ) -> Result<(Token, Duration), String> {
        let known = style.take();
        let first = known.unwrap_or(Style::Basic);
        let mut last = self.ask(client, first).await;
        let mut way = first;
        if known.is_none() && last.as_ref().is_err_and(|refused| refused.for_its_form) {
            way = Style::Body;
            last = self.ask(client, way).await;
        }
        match last {
            Ok(token) => {
                *style = Some(way);
                Ok(token)
            }
            Err(refused) => {
                // If the issuer was not reached, or has refused the client itself, another style
                // may work later.
                if !refused.for_its_form {
                    *style = known;
                }
                Err(refused.why)
            }
        }
    }

    async fn ask(&self, client: Client<'_>, style: Style) -> Result<(Token, Duration), Refused> {
        let asked = self.http.post(self.url.clone());
        let asked = match style {
            Style::Basic => {
                // RFC 6749 §2.3.1: both are encoded as in a form first.
                let encoded = |text: &str| byte_serialize(text.as_bytes()).collect::<String>();
                asked.basic_auth(encoded(client.id.text()), Some(encoded(client.secret.text())))
            }
            Style::Body => asked,
        };
        let in_body = (style == Style::Body).then_some(client);
        let asked = asked
            .header("accept", "application/json")
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form(self.scope, in_body));
        let mut answer = asked.send().await.map_err(|error| Refused::by_chance(chain(&error)))?;
        let status = answer.status();
        let mut octets = Vec::new();
        while let Some(part) =
            answer.chunk().await.map_err(|error| Refused::by_chance(chain(&error)))?
        {
            if octets.len() + part.len() > MOST_ANSWER {
                let why = format!("its answer is larger than {MOST_ANSWER} octets");
                return Err(Refused::by_chance(why));
            }
            octets.extend_from_slice(&part);
        }
        if !status.is_success() {
            return Err(Refused::of(status, &octets));
        }
        parse(&octets).map_err(Refused::by_chance)
    }
}

/// Who asks for a token.
#[derive(Clone, Copy)]
struct Client<'a> {
    id: &'a Token,
    secret: &'a Token,
}

/// The form of the request, with the client's credentials if they belong into it.
fn form(scope: Scope, client: Option<Client<'_>>) -> String {
    let mut form = Serializer::new(String::new());
    form.append_pair("grant_type", "client_credentials");
    form.append_pair("scope", scope.text());
    if let Some(Client { id, secret }) = client {
        form.append_pair("client_id", id.text());
        form.append_pair("client_secret", secret.text());
    }
    form.finish()
}

/// Why there is no token.
#[derive(Debug, PartialEq, Eq)]
struct Refused {
    why: String,
    /// Whether the issuer may want the other style.
    for_its_form: bool,
}

impl Refused {
    fn by_chance(why: String) -> Self {
        Self { why, for_its_form: false }
    }

    /// A refusal by an answer with this status.
    fn of(status: StatusCode, answer: &[u8]) -> Self {
        // RFC 6749 §5.2: of the answer only the error's name is shown, which is a word of a fixed
        // list.
        let error = serde_json::from_slice::<Value>(answer).ok();
        let error = error.as_ref().and_then(|answer| answer.get("error")?.as_str());
        let word = |word: &&str| {
            word.len() <= 64 && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        };
        let why = match error.filter(word) {
            Some(error) => format!("the issuer answered {} ({error})", status.as_u16()),
            None => format!("the issuer answered {}", status.as_u16()),
        };
        let for_its_form = status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS;
        Self { why, for_its_form }
    }
}

/// A token and its life, of an answer (RFC 6749 §5.1).
fn parse(answer: &[u8]) -> Result<(Token, Duration), String> {
    let answer: Value =
        serde_json::from_slice(answer).map_err(|_| "its answer is no JSON".to_owned())?;
    let token = match answer.get("access_token") {
        Some(Value::String(text)) => Token::new(text),
        Some(_) => Err("is no string"),
        None => Err("is missing"),
    };
    let token = token.map_err(|what| format!("access_token of its answer {what}"))?;
    let seconds = match answer.get("expires_in") {
        Some(Value::Number(seconds)) => seconds.as_f64(),
        Some(Value::String(text)) => text.trim().parse().ok(),
        None | Some(Value::Null) => return Ok((token, UNTOLD_LIFE)),
        Some(_) => None,
    };
    match seconds {
        Some(seconds) if seconds >= 1.0 => {
            let most = LONGEST_LIFE.as_secs_f64();
            Ok((token, Duration::from_secs_f64(seconds.min(most))))
        }
        // As in Go's client: no end is given.
        Some(0.0) => Ok((token, UNTOLD_LIFE)),
        _ => Err("expires_in of its answer is no number of seconds".into()),
    }
}

/// An error with its causes, without the URL, which is shown beside it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let one = error.to_string();
        if !text.contains(&one) {
            let colon = if text.is_empty() { "" } else { ": " };
            // Writing to a String cannot fail.
            let _ = fmt::Write::write_fmt(&mut text, format_args!("{colon}{one}"));
        }
        next = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_a_token_and_perhaps_a_life() {
        let of = |text: &str| parse(text.as_bytes()).map(|(token, life)| (token, life.as_secs()));
        let token = |life| Ok((Token::new("t").unwrap(), life));
        assert_eq!(of(r#"{"access_token":"t","expires_in":90,"token_type":"x"}"#), token(90));
        assert_eq!(of(r#"{"access_token":"t","expires_in":"90"}"#), token(90));
        assert_eq!(of(r#"{"access_token":"t"}"#), token(3600));
        assert_eq!(of(r#"{"access_token":"t","expires_in":0}"#), token(3600));
        assert_eq!(of(r#"{"access_token":"t","expires_in":1e300}"#), token(7 * 24 * 3600));
        for (text, why) in [
            ("", "no JSON"),
            ("[]", "is missing"),
            (r#"{"access_token":1}"#, "is no string"),
            (r#"{"access_token":""}"#, "is empty"),
            (r#"{"access_token":"a\nb"}"#, "printable"),
            (r#"{"access_token":"t","expires_in":-1}"#, "seconds"),
            (r#"{"access_token":"t","expires_in":"soon"}"#, "seconds"),
            (r#"{"access_token":"t","expires_in":[]}"#, "seconds"),
        ] {
            let error = of(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn of_a_refusal_only_a_word_is_told() {
        let of = |status, text: &str| Refused::of(status, text.as_bytes());
        let refused = of(StatusCode::UNAUTHORIZED, r#"{"error":"invalid_client"}"#);
        assert_eq!(refused.why, "the issuer answered 401 (invalid_client)");
        assert!(refused.for_its_form);
        let refused = of(StatusCode::BAD_GATEWAY, r#"{"error":"a secret, in words"}"#);
        assert_eq!(refused, Refused::by_chance("the issuer answered 502".into()));
        assert!(!of(StatusCode::TOO_MANY_REQUESTS, "").for_its_form);
    }
}
