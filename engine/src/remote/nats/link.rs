//! The connection to NATS, as everything that uses it sees it.

use std::sync::Arc;
use std::time::Duration;

use async_nats::connection::State as Wire;
use async_nats::jetstream::stream::Placement;
use tokio::sync::watch;
use tokio::time::Instant;

/// How long one request to JetStream's API may take; as the reference's (contract 6.5).
pub(super) const API_LIMIT: Duration = Duration::from_secs(5);
/// Pause while the client library and its events say different things.
const DOUBT: Duration = Duration::from_millis(10);

/// The connection. It is there before the servers are, and outlives every loss of them.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) client: async_nats::Client,
    /// Requests through it end within [`API_LIMIT`].
    pub(super) jetstream: async_nats::jetstream::Context,
    pub(super) state: watch::Receiver<State>,
}

/// Whether a server is there.
#[derive(Clone, Debug)]
pub(in crate::remote) enum State {
    /// None is.
    Down {
        /// Since when.
        since: Instant,
        /// What the last attempt failed with.
        why: Arc<str>,
    },
    /// One is.
    Up {
        /// Which connection it is, counted from 1.
        epoch: u64,
    },
}

/// Where what is made in JetStream is to lie: at a server with this tag, if there is one
/// (contract NT-3).
pub(super) fn placement(tag: &str) -> Option<Placement> {
    (!tag.is_empty()).then(|| Placement { cluster: None, tags: vec![tag.to_owned()] })
}

impl Link {
    /// Whether a server is there. While none is, nothing may be handed to the client library, which
    /// would send it some time later (design 3.23).
    pub(super) fn is_up(&self) -> bool {
        self.epoch().is_some()
    }

    /// The connection that there is.
    pub(super) fn epoch(&self) -> Option<u64> {
        // The library's own word is the newer one, the event of it may still be on its way.
        match (self.client.connection_state(), &*self.state.borrow()) {
            (Wire::Connected, State::Up { epoch }) => Some(*epoch),
            _ => None,
        }
    }

    /// Why no server is there.
    pub(super) fn why_down(&self) -> Arc<str> {
        match &*self.state.borrow() {
            State::Down { why, .. } => why.clone(),
            State::Up { .. } => "NATS has just been lost".into(),
        }
    }

    /// Waits until a server is there; for ever if the gateway gives NATS up.
    pub(super) async fn up(&self) {
        let mut state = self.state.clone();
        loop {
            let up = state.wait_for(|state| matches!(state, State::Up { .. })).await.is_ok();
            if !up {
                std::future::pending::<()>().await;
            }
            if self.is_up() {
                return;
            }
            tokio::time::sleep(DOUBT).await;
        }
    }

    /// Waits until a connection is there no more.
    pub(super) async fn lost(&self, connection: u64) {
        let mut state = self.state.clone();
        let other = |state: &State| !matches!(state, State::Up { epoch } if *epoch == connection);
        // A link whose state nobody tells any more is lost, too.
        let _ = state.wait_for(other).await;
    }
}
