//! The login at the NATS servers, besides the settings: the values of the secrets file, and tokens
//! of OAuth2.

use std::sync::Arc;

use ringway_stdio::Trouble;
use tokio::sync::watch;

use super::api::secrets::SecretValues;
use super::api::{Meters, OAuth, Roots, Scope};
use super::nats;
use crate::config::Remote as Settings;

/// The secrets for the login.
///
/// # Errors
/// The issuer cannot be called, whatever it says.
pub(super) fn of(
    settings: &Settings,
    secrets: &watch::Receiver<Arc<SecretValues>>,
    meters: &Arc<Meters>,
) -> Result<nats::Secrets, Trouble> {
    let nkey = secrets.borrow().nats_nkey.as_ref().map(|seed| seed.text().to_owned());
    let authority = settings.authority.as_ref().filter(|_| settings.nats.callout);
    let issuer = authority.and_then(|authority| Some((authority.oauth.as_deref()?, authority)));
    let token = match issuer {
        None => None,
        Some((base, authority)) => {
            let roots = Roots::read(authority.ca.as_deref())?;
            let oauth = OAuth::start((base, &roots), Scope::Nats, secrets, meters)?;
            Some(token_source(oauth))
        }
    };
    Ok(nats::Secrets { nkey, token })
}

/// The access tokens that the auth callout of NATS reads (contract NT-8).
fn token_source(oauth: OAuth) -> nats::TokenSource {
    Arc::new(move || {
        let oauth = oauth.clone();
        Box::pin(async move { oauth.token().await.map(|token| token.text().to_owned()) })
    })
}
