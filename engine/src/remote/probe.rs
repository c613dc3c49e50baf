//! Examines a remote control plane for `ringway doctor`. It does what a gateway would do at its
//! start and for a call, reports the result, and leaves nothing behind.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::api::secrets::{self, SecretValues};
use super::api::{Api, Client, Limiter, Meters, OAuth, Roots, Scope};
use super::finding::Finding;
use super::{login, nats};
use crate::config::{Api as Authority, Function, Remote as Settings};
use crate::control::port::{Answer, Call, Denied, Owner};
use crate::keys::Keys;

/// How long the API's first health check may take; it gives up by itself a little earlier.
const HEALTH_LIMIT: Duration = Duration::from_secs(12);
/// A credential and a tenant that nobody has.
const NOBODY: &str = "ringway-doctor";
/// A function that nobody has.
const NO_FUNCTION: &str = "00000000-0000-4000-8000-000000000000";
const UNAUTHENTICATED: u8 = 16;
const UNAVAILABLE: u8 = 14;
const INTERNAL: u8 = 13;

/// Looks at everything that is configured. `functions` are those of the gateway's own file.
/// The gateway's worker listener is at `worker`, and it knows others by `keys`.
pub(crate) async fn examine(
    settings: &Settings,
    functions: &[Function],
    (worker, keys): (SocketAddr, Option<Arc<Keys>>),
) -> Vec<Finding> {
    let mut found = Vec::new();
    let values = secrets_file(settings, &mut found);
    let (sender, secrets) = watch::channel(Arc::new(values));
    if let Some(authority) = &settings.authority {
        api(authority, &secrets, &mut found).await;
    }
    match login::of(settings, &secrets, &Arc::default()) {
        Ok(login) => {
            let own = nats::Probed { worker: super::process(worker), keys };
            let versions = nats::queued(functions);
            nats::examine(settings, &login, (&versions, &own), &mut found).await;
        }
        Err(error) => {
            let fix = "correct what the line names";
            found.push(Finding::broken("nats", error.to_string(), fix));
        }
    }
    drop(sender);
    found
}

/// The secrets file: whether it can be read, and has what is wanted of it.
fn secrets_file(settings: &Settings, found: &mut Vec<Finding>) -> SecretValues {
    const NAME: &str = "secrets_file";
    let Some(path) = &settings.secrets else { return SecretValues::default() };
    let shown = path.display();
    let (values, faults) = match secrets::look(path) {
        Ok(read) => read,
        Err(why) => {
            let fix =
                format!("write {shown}, or name another as control.secrets_file (SECRETS_PATH)");
            found.push(Finding::broken(NAME, format!("{shown}: {why}"), fix));
            return SecretValues::default();
        }
    };
    if !faults.is_empty() {
        let fix = "correct that in the file";
        found.push(Finding::poor(NAME, format!("{shown}: {}", faults.join(", ")), fix));
    }
    if open_to_all(path) {
        let fix = format!("chmod o-r {shown}");
        found.push(Finding::poor(NAME, format!("{shown} may be read by every user here"), fix));
    }
    let authority = settings.authority.as_ref();
    let by_oauth = values.client().is_some();
    let issuer = authority.is_some_and(|authority| authority.oauth.is_some());
    if authority.is_some() && values.api_token.is_none() && !(by_oauth && issuer) {
        let fix = "write nvcfApiToken into it, or id and secret for the issuer in nvcf.oauth \
                   (SSA_FQDN)";
        found.push(Finding::broken(NAME, format!("{shown} has no credential for the API"), fix));
    } else if found.iter().all(|one| one.what != NAME) {
        found.push(Finding::fine(NAME, format!("{shown} has what is wanted")));
    }
    values
}

fn open_to_all(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|data| data.permissions().mode() & 0o004 != 0)
}

/// API, issuer and limiter.
async fn api(
    authority: &Authority,
    secrets: &watch::Receiver<Arc<SecretValues>>,
    found: &mut Vec<Finding>,
) {
    let meters = Arc::new(Meters::default());
    let mut api = match Api::start(authority, secrets, &meters) {
        Ok(api) => api,
        Err(error) => {
            // A gateway does not start then, and its line names the fix.
            found.push(Finding::broken("api", error.to_string(), "correct what the line names"));
            return;
        }
    };
    if let Some(base) = authority.oauth.as_deref().filter(|_| secrets.borrow().client().is_some()) {
        found.push(issuer((base, authority), secrets, &meters).await);
    }
    let url = &authority.url;
    let began = Instant::now();
    let checked = api.health.wait_for(|health| health.is_known());
    let red = match timeout(HEALTH_LIMIT, checked).await {
        Ok(Ok(health)) => health.red.as_ref().map(|red| red.why.to_string()),
        _ => Some(format!("no answer within {} s", HEALTH_LIMIT.as_secs())),
    };
    match red {
        None => {
            let took = began.elapsed().as_millis();
            found.push(Finding::fine("api", format!("{url} says SERVING, in {took} ms")));
            found.push(credential(authority, &api.client).await);
        }
        Some(why) => {
            let fix = match why.starts_with("it says") {
                true => "it is reached and not well: look at the API itself",
                false => {
                    "let it run, correct nvcf.api (NVCF_FQDN_GRPC), or, where TLS fails, name its \
                     authority's certificate as nvcf.ca_file"
                }
            };
            found.push(Finding::broken("api", format!("{url}: {why}"), fix));
        }
    }
    if let (Some(limiter), Some(url)) = (&api.limiter, &authority.limiter) {
        found.push(limits(limiter, &url.to_string()).await);
    }
}

async fn issuer(
    (base, authority): (&str, &Authority),
    secrets: &watch::Receiver<Arc<SecretValues>>,
    meters: &Arc<Meters>,
) -> Finding {
    let fix = "correct nvcf.oauth (SSA_FQDN), and id and secret in the secrets file";
    let oauth = Roots::read(authority.ca.as_deref())
        .and_then(|roots| OAuth::start((base, &roots), Scope::Api, secrets, meters));
    match oauth {
        Err(error) => Finding::broken("oauth", error.to_string(), fix),
        Ok(oauth) => match oauth.token().await {
            Ok(_) => Finding::fine("oauth", format!("{base} gives tokens")),
            Err(why) => Finding::broken("oauth", format!("{base}: {why}"), fix),
        },
    }
}

/// Whether the API takes the gateway's credential. It says the same code of a client's credential
/// that it does not know (contract CP-4); so a question with a wrong one of the gateway is asked
/// too, and what it says to that must be something else.
async fn credential(authority: &Authority, client: &Client) -> Finding {
    const NAME: &str = "api_credential";
    let call = Call::new(NOBODY.as_bytes(), NO_FUNCTION.as_bytes(), b"");
    let fix = "put the token that this API has given out into the secrets file as nvcfApiToken";
    let own = match client.authorise(&call).await {
        Answer::Denied(denied) => denied,
        answer => {
            let seen = format!("the API took a client's credential that nobody has: {answer:?}");
            return Finding::poor(NAME, seen, "look whether this is the API that is meant");
        }
    };
    let Denied { code, text } = &own;
    match *code {
        UNAUTHENTICATED => {}
        UNAVAILABLE | INTERNAL => {
            let fix = "look at the API's log, and at nvcf.api (NVCF_FQDN_GRPC)";
            return Finding::broken(NAME, format!("the API answers {code}: {text}"), fix);
        }
        _ => return Finding::fine(NAME, format!("taken; a client nobody knows gets {code}")),
    }
    let wrong = SecretValues { api_token: secrets::Token::new(NOBODY).ok(), ..Default::default() };
    let (_sender, wrong) = watch::channel(Arc::new(wrong));
    let alone = Authority { oauth: None, limiter: None, ..authority.clone() };
    let other = match Api::start(&alone, &wrong, &Arc::default()) {
        Ok(api) => api.client.authorise(&call).await,
        Err(error) => return Finding::broken(NAME, error.to_string(), fix),
    };
    match other {
        Answer::Denied(denied) if denied == own => {
            let seen = format!("the API says to it what it says to a wrong one: {text}");
            Finding::broken(NAME, seen, fix)
        }
        _ => Finding::fine(NAME, format!("accepted; a client with an unknown key gets: {text}")),
    }
}

async fn limits(limiter: &Limiter, url: &str) -> Finding {
    const NAME: &str = "limiter";
    let owner = Owner::new(NOBODY.into(), NO_FUNCTION.into(), NO_FUNCTION.into());
    match limiter.probe(&owner).await {
        Ok(_) => Finding::fine(NAME, format!("{url} answers")),
        Err(why) => {
            let fix = "let it run, correct nvcf.limiter (RATE_LIMIT_ADDR), and ratelimiterToken in \
                       the secrets file; until then new sessions are not limited";
            Finding::poor(NAME, format!("{url}: {why}"), fix)
        }
    }
}
