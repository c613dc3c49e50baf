//! NVIDIA's API, which says who may call, and the rate limiter beside it (contract 5): both are
//! asked over gRPC, on the control thread, with a credential that may change at any time.
//!
//! Everything here needs a running tokio runtime; one thread is enough. No call waits for another
//! one: each is a stream of its own on a connection that is opened when it is first needed.

mod answer;
mod bearer;
mod channel;
mod client;
mod health;
mod limiter;
mod meters;
mod oauth;
mod repeats;
pub(crate) mod secrets;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use ringway_stdio::Trouble;
use tokio::sync::watch;

use crate::config::Api as Settings;
use bearer::Bearer;
pub(crate) use channel::Roots;
pub(crate) use client::Client;
pub(crate) use health::ApiHealth;
#[cfg(test)]
pub(crate) use health::Red;
pub(crate) use limiter::Limiter;
pub(crate) use meters::Meters;
pub(crate) use oauth::{OAuth, Scope};
use secrets::SecretValues;

/// The running clients of NVIDIA's API and of the services beside it.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    /// Says who may call.
    pub(crate) client: Client,
    /// Says who has begun too many sessions; none if no limiter is configured.
    pub(crate) limiter: Option<Limiter>,
    /// Whether the API is well, as its last check found (contract 8.4).
    pub(crate) health: watch::Receiver<ApiHealth>,
}

impl Api {
    /// Starts the configured clients. No server need be reachable yet.
    ///
    /// # Errors
    /// The system's certificates are wanted and there are none, or a URL is none: a line that says
    /// what to set.
    pub(crate) fn start(
        settings: &Settings,
        secrets: &watch::Receiver<Arc<SecretValues>>,
        meters: &Arc<Meters>,
    ) -> Result<Self, Trouble> {
        let roots = Roots::read(settings.ca.as_deref())?;
        let issuer = settings.oauth.as_deref().map(|base| (base, &roots));
        let bearer = |scope| Bearer::start(scope, secrets, issuer, meters);
        let channel = channel::open(&settings.url, &roots)?;
        let limiter = match &settings.limiter {
            None => None,
            Some(url) => {
                let channel = channel::open(url, &roots)?;
                Some(Limiter::new(channel, bearer(Scope::Limiter)?, meters.clone()))
            }
        };
        Ok(Self {
            client: Client::new(channel.clone(), bearer(Scope::Api)?, meters.clone()),
            limiter,
            health: health::watch(channel, meters.clone()),
        })
    }
}
