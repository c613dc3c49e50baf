//! How this gateway shows the NATS servers who it is (contract NT-8).

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Auth, AuthError, ConnectOptions, ServerAddr};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::future::BoxFuture;
use ringway_stdio::Trouble;
use serde::Serialize;

use super::pace::Pace;
use crate::config::{Nats as Settings, NkeySource};

/// How long a token may take; after that an empty one is sent.
const TOKEN_LIMIT: Duration = Duration::from_secs(10);
/// How long one attempt to connect may take, and how long if a token belongs to it.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const CALLOUT_LIMIT: Duration = Duration::from_secs(15);

/// What is kept from logs, but known when the gateway starts.
#[derive(Clone, Default)]
pub(in crate::remote) struct Secrets {
    /// The seed of an NKey, as the secrets file has it (`natsPrivateNKey`).
    pub(in crate::remote) nkey: Option<String>,
    /// Where access tokens for the auth callout come from.
    pub(in crate::remote) token: Option<TokenSource>,
}

/// Gives the access token of the moment, or says why there is none.
pub(in crate::remote) type TokenSource =
    Arc<dyn Fn() -> BoxFuture<'static, Result<String, Arc<str>>> + Send + Sync>;

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { nkey, token } = self;
        write!(f, "Secrets {{ nkey: {}, token: {} }}", nkey.is_some(), token.is_some())
    }
}

/// The token that an auth callout reads.
#[derive(Serialize)]
struct Callout<'a> {
    account: &'a str,
    #[serde(rename = "pluginName")]
    plugin: &'a str,
    payload: &'a str,
}

/// The options with which this gateway shows who it is: by an NKey if there is one, else by a
/// credentials file, a user with a password, a token, one for the auth callout, or what the URLs
/// say.
pub(super) fn options(
    settings: &Settings,
    secrets: Secrets,
    urls: &[ServerAddr],
) -> Result<ConnectOptions, Trouble> {
    let plain = ConnectOptions::new().connection_timeout(CONNECT_LIMIT);
    let seed = match &settings.nkey {
        Some(NkeySource::Seed(seed)) => Some(String::from_utf8_lossy(seed.bytes()).into_owned()),
        Some(NkeySource::File(path)) => Some(read(path, "the NKey's seed")?),
        None => secrets.nkey,
    };
    if let Some(seed) = seed {
        let seed = seed.trim().to_owned();
        return match nkeys::KeyPair::from_seed(&seed) {
            Ok(_) => Ok(plain.nkey(seed)),
            Err(error) => Err(Trouble::new(
                "the NKey for NATS is no seed",
                error,
                "set NATS_PRIVATE_NKEY or natsPrivateNKey in the secrets file to one that begins \
                 with SU, or to nothing",
            )),
        };
    }
    if let Some(path) = &settings.credentials {
        let text = read(path, "the credentials for NATS")?;
        return plain.credentials(&text).map_err(|error| {
            let what = format!("{} is no credentials file for NATS", path.display());
            Trouble::new(what, error, "name another in nats.credentials_file")
        });
    }
    if let Some((user, path)) = &settings.user {
        let password = read(path, "the password for NATS")?;
        let password = password.trim_end_matches(['\r', '\n']);
        return Ok(plain.user_and_password(user.clone(), password.into()));
    }
    if let Some(path) = &settings.token {
        return Ok(plain.token(read(path, "the token for NATS")?.trim().to_owned()));
    }
    match secrets.token {
        Some(source) if settings.callout => Ok(callout(source)),
        _ => Ok(of_urls(plain, urls)),
    }
}

/// The login of the first URL that has one before an `@`: a name and a password, or a token.
fn of_urls(plain: ConnectOptions, urls: &[ServerAddr]) -> ConnectOptions {
    let Some(url) = urls.iter().find(|url| url.has_user_pass()) else { return plain };
    let name = decoded(url.username().unwrap_or_default());
    match url.password() {
        Some(password) => plain.user_and_password(name, decoded(password)),
        None => plain.token(name),
    }
}

/// Undoes a URL's escapes.
fn decoded(text: &str) -> String {
    // A plus in this part of a URL is a plus, and no space as in a form.
    let text = text.replace('+', "%2B").replace('&', "%26").replace('=', "%3D");
    form_urlencoded::parse(text.as_bytes()).next().map_or_else(String::new, |(name, _)| name.into())
}

fn read(path: &Path, what: &str) -> Result<String, Trouble> {
    std::fs::read_to_string(path).map_err(|error| {
        let what = format!("{} with {what} cannot be read", path.display());
        Trouble::new(what, error, "name a file that the gateway can read")
    })
}

/// A token that is made anew for each connection.
fn callout(source: TokenSource) -> ConnectOptions {
    let pace = Arc::new(Pace::default());
    ConnectOptions::with_auth_callback(move |_nonce| {
        // The callback has to be one that threads could share, which a boxed future is not.
        let token = tokio::spawn(tokio::time::timeout(TOKEN_LIMIT, source()));
        let pace = pace.clone();
        async move {
            let token = match token.await {
                Ok(Ok(Ok(token))) => token,
                Ok(Ok(Err(why))) => none(&pace, &why),
                Ok(Err(_)) => none(&pace, "it did not come within 10 s"),
                Err(_) => none(&pace, "asking for it failed"),
            };
            let mut auth = Auth::new();
            auth.token = Some(shown(&token).map_err(AuthError::new)?);
            Ok(auth)
        }
    })
    .connection_timeout(CALLOUT_LIMIT)
}

/// An empty token is sent then, as the reference does it: the callout refuses it.
fn none(pace: &Pace, why: &str) -> String {
    if let Some(left_out) = pace.line() {
        tracing::warn!(why, left_out, "there is no OAuth2 token for NATS, an empty one is shown");
    }
    String::new()
}

/// The token in the form that the auth callout reads.
fn shown(token: &str) -> Result<String, serde_json::Error> {
    let callout = Callout { account: "Worker", plugin: "ssa", payload: token };
    serde_json::to_vec(&callout).map(|json| URL_SAFE_NO_PAD.encode(json))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callout_is_shown_a_token_in_the_order_of_the_reference() {
        let json = URL_SAFE_NO_PAD.decode(shown("a.b-c_d").unwrap()).unwrap();
        assert_eq!(json, br#"{"account":"Worker","pluginName":"ssa","payload":"a.b-c_d"}"#);
        assert!(!shown("").unwrap().contains('='));
    }

    #[test]
    fn a_urls_escapes_are_undone() {
        assert_eq!(decoded("a%40b+c%2f=&d"), "a@b+c/=&d");
        assert_eq!(decoded(""), "");
    }
}
