//! Which credential a server gets: the one of the secrets file, or one of OAuth2 (contract 5.2).

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ringway_stdio::Trouble;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};

use super::channel::Roots;
use super::meters::Meters;
use super::oauth::{Issuer, OAuth, Scope};
use super::secrets::{SecretValues, Token};

/// After so long without any credential the log says so.
const SOON: Duration = Duration::from_secs(5);

/// The credential for one server.
#[derive(Clone, Debug)]
pub(super) struct Bearer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    scope: Scope,
    secrets: watch::Receiver<Arc<SecretValues>>,
    /// The issuer; none if none is configured.
    issuer: Option<Issuer>,
    /// The choice, made once by the first secrets that allow it (contract CP-8).
    chosen: OnceLock<Chosen>,
}

#[derive(Debug)]
enum Chosen {
    /// The secrets file has a token for it.
    Own,
    OAuth(OAuth),
}

impl Bearer {
    /// # Errors
    /// As [`Issuer::new`].
    pub(super) fn start(
        scope: Scope,
        secrets: &watch::Receiver<Arc<SecretValues>>,
        at: Option<(&str, &Roots)>,
        meters: &Arc<Meters>,
    ) -> Result<Self, Trouble> {
        let issuer = at.map(|at| Issuer::new(at, scope, secrets, meters)).transpose()?;
        let (secrets, chosen) = (secrets.clone(), OnceLock::new());
        let bearer = Self(Arc::new(Inner { scope, secrets, issuer, chosen }));
        tokio::spawn(bearer.clone().settle());
        Ok(bearer)
    }

    fn own(&self) -> Option<Token> {
        let secrets = self.0.secrets.borrow();
        match self.0.scope {
            Scope::Api => secrets.api_token.clone(),
            Scope::Limiter => secrets.limiter_token.clone(),
            Scope::Nats => None,
        }
    }

    /// The choice; none as long as the secrets have no credential.
    fn chosen(&self) -> Option<&Chosen> {
        let Inner { secrets, issuer, chosen, .. } = &*self.0;
        if chosen.get().is_none() {
            // A token of its own wins (contract 5.2).
            let own = self.own().is_some();
            let client = secrets.borrow().client().is_some();
            match issuer.as_ref().filter(|_| client) {
                _ if own => chosen.get_or_init(|| Chosen::Own),
                Some(issuer) => chosen.get_or_init(|| Chosen::OAuth(issuer.clone().start())),
                None => return None,
            };
        }
        chosen.get()
    }

    /// Makes the choice as soon as possible, before anybody asks.
    async fn settle(self) {
        let server = self.0.scope.name();
        let mut secrets = self.0.secrets.clone();
        let mut soon = Some(Instant::now() + SOON);
        loop {
            match self.chosen() {
                Some(Chosen::Own) => {
                    return tracing::info!(server, "the server gets the token of the secrets file");
                }
                Some(Chosen::OAuth(_)) => {
                    return tracing::info!(server, "the server gets tokens of OAuth2");
                }
                None => {}
            }
            tokio::select! {
                changed = secrets.changed(), if secrets.has_changed().is_ok() => {
                    // The loop ends by the other way once they cannot change any more.
                    let _ = changed;
                }
                () = sleep_until(soon.unwrap_or_else(Instant::now)), if soon.is_some() => {
                    soon = None;
                    tracing::warn!(
                        server,
                        "there is no credential for it: its calls carry none. Put its token into \
                         the secrets file, or `id` and `secret` for the issuer in SSA_FQDN"
                    );
                }
                else => return,
            }
        }
    }

    /// Shows the credential with a call.
    ///
    /// # Errors
    /// Why there is no credential although there should be one.
    pub(super) async fn attach<T>(&self, request: &mut Request<T>) -> Result<(), Arc<str>> {
        let token = match self.chosen() {
            None => return Ok(()),
            Some(Chosen::Own) => self.own(),
            Some(Chosen::OAuth(oauth)) => Some(oauth.token().await?),
        };
        if let Some(token) = token {
            let value = format!("Bearer {}", token.text());
            let value = value.parse::<MetadataValue<Ascii>>();
            let mut value =
                value.map_err(|_| "the token has characters that no header field can carry")?;
            value.set_sensitive(true);
            request.metadata_mut().insert("authorization", value);
        }
        Ok(())
    }
}
