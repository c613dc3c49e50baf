//! What the gateway's NATS account may not do. A right that is missing costs what needs it and
//! nothing else; it is said once in the log, and shown by a gauge (design 3.23).
//!
//! A server says so beside the answers: the request itself just ends without one. So whoever hears
//! the connection's events tells them here, and whoever waited in vain asks here why.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, broadcast};
use tokio::time::Instant;

use crate::metrics::{each, family};

/// What may be missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Right {
    /// To purge a subject of a request stream.
    Purge,
    /// To see what of a request stream was delivered, and what it holds.
    Look,
    /// To list the request streams and their subjects.
    List,
    /// To use the bucket of node records.
    Nodes,
    /// To make the request streams and their consumers.
    Make,
}

/// The subjects that each right is about, by a part that no other subject has.
const SUBJECTS: [(&str, Right); 10] = [
    (".STREAM.CREATE.rq_", Right::Make),
    (".CONSUMER.CREATE.rq_", Right::Make),
    (".STREAM.PURGE.rq_", Right::Purge),
    (".CONSUMER.INFO.rq_", Right::Look),
    (".STREAM.MSG.GET.rq_", Right::Look),
    (".STREAM.NAMES", Right::List),
    (".STREAM.INFO.rq_", Right::List),
    ("KV_ringway_nodes_", Right::Nodes),
    ("$KV.ringway_nodes_", Right::Nodes),
    // Only the making of a bucket asks about the account.
    ("$JS.API.INFO", Right::Nodes),
];

impl Right {
    const ALL: [Self; 5] = [Self::Purge, Self::Look, Self::List, Self::Nodes, Self::Make];

    const fn label(self) -> &'static str {
        match self {
            Self::Purge => "purge",
            Self::Look => "look",
            Self::List => "list",
            Self::Nodes => "nodes",
            Self::Make => "make",
        }
    }

    /// What is not done without it, and what the account has to be allowed for it.
    pub(super) const fn cost(self) -> &'static str {
        match self {
            Self::Purge => {
                "work that nobody waits for any more stays queued; \
                 allow it to publish to $JS.API.STREAM.PURGE.>"
            }
            Self::Look => {
                "work that nobody waits for any more stays queued; allow it to publish to \
                 $JS.API.CONSUMER.INFO.> and $JS.API.STREAM.MSG.GET.>"
            }
            Self::List => {
                "what a process before this one had queued stays queued; allow it to publish to \
                 $JS.API.STREAM.NAMES and $JS.API.STREAM.INFO.>"
            }
            Self::Nodes => {
                "no other gateway's work is ever withdrawn, and none knows this one; allow it to \
                 use the key-value bucket ringway_nodes_REGION ($KV.ringway_nodes_REGION.>, \
                 $JS.API.INFO, $JS.API.STREAM.*.KV_ringway_nodes_REGION, \
                 $JS.API.DIRECT.GET.KV_ringway_nodes_REGION.>)"
            }
            Self::Make => {
                "functions whose request streams are not there yet cannot be called; allow it to \
                 publish to $JS.API.STREAM.CREATE.> and $JS.API.CONSUMER.CREATE.>"
            }
        }
    }
}

/// The subject that the account may not use, if it is this that a server says.
pub(super) fn refused(error: &str) -> Option<&str> {
    // nats-server words it so: Permissions Violation for Publish to "SUBJECT".
    let mut parts = error.split('"');
    let violation = parts.next()?.to_lowercase().contains("permissions violation");
    parts.next().filter(|_| violation)
}

/// How long a refusal counts. A server that reads its configuration again gives a right without a
/// word to those who are connected, so it is asked for again from time to time.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// Subjects that were refused and that somebody who published to one may still be told of.
const VIOLATIONS: usize = 256;

/// Rights that are missing on the connection there is now.
#[derive(Debug)]
pub(super) struct Rights {
    /// When each was refused last, if it has not been used since.
    refused: Mutex<[Option<Instant>; Right::ALL.len()]>,
    said: [AtomicBool; Right::ALL.len()],
    missed: Notify,
    violations: broadcast::Sender<Arc<str>>,
}

/// The subjects that are refused from now on.
#[derive(Debug)]
pub(super) struct Violations(broadcast::Receiver<Arc<str>>);

impl Violations {
    /// Waits until this subject is refused. What comes in too great a number is lost: then whoever
    /// published waits for as long as its answer may take.
    pub(super) async fn about(&mut self, subject: &str) {
        loop {
            match self.0.recv().await {
                Ok(refused) if *refused == *subject => return,
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    }
}

impl Default for Rights {
    fn default() -> Self {
        Self {
            refused: Mutex::default(),
            said: Default::default(),
            missed: Notify::default(),
            violations: broadcast::Sender::new(VIOLATIONS),
        }
    }
}

impl Rights {
    /// A server has been reached: it may allow something else than the one before.
    pub(super) fn connected(&self) {
        *self.refused() = Default::default();
    }

    /// The account has done what needs this right.
    pub(super) fn used(&self, right: Right) {
        self.refused()[right as usize] = None;
    }

    fn refused(&self) -> MutexGuard<'_, [Option<Instant>; Right::ALL.len()]> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server has said this against the connection.
    pub(super) fn heard(&self, error: &str) {
        let Some(subject) = refused(error) else { return };
        // Nobody need listen.
        let _ = self.violations.send(subject.into());
        let about = SUBJECTS.iter().find(|(part, _)| subject.contains(part));
        let Some((_, right)) = about else { return };
        self.refused()[*right as usize] = Some(Instant::now());
        self.missed.notify_waiters();
        if !self.said[*right as usize].swap(true, Ordering::Relaxed) {
            tracing::warn!(subject, "the NATS account lacks a right: {}", right.cost());
        }
    }

    /// Listens for refusals from now on.
    pub(super) fn violations(&self) -> Violations {
        Violations(self.violations.subscribe())
    }

    /// Whether that is missing, as far as is known: it was refused a moment ago.
    pub(super) fn lacks(&self, right: Right) -> bool {
        self.refused()[right as usize].is_some_and(|refused| refused.elapsed() < ASK_AGAIN)
    }

    /// Waits until that is missing.
    pub(super) async fn missed(&self, right: Right) {
        loop {
            let missed = self.missed.notified();
            if self.lacks(right) {
                return;
            }
            missed.await;
        }
    }

    /// The gauge.
    pub(super) fn render(&self, out: &mut String) {
        let name = "ringway_nats_right_missing";
        family(out, name, "gauge", "1: the NATS account has been refused something it needs.");
        let refused = *self.refused();
        let missing = Right::ALL.into_iter();
        let missing =
            missing.map(|right| (right.label(), u64::from(refused[right as usize].is_some())));
        each(out, name, "right", missing);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_violation_tells_which_right_is_missing_until_the_next_connection() {
        let rights = Rights::default();
        let said = |subject: &str| {
            rights.heard(&format!("nats: Permissions Violation for Publish to \"{subject}\""));
        };
        said("$JS.API.STREAM.PURGE.stateful_session_lookup_r");
        rights.heard("nats: Permissions Violation for Publish to");
        rights.heard("nats: maximum payload violation \"$JS.API.STREAM.PURGE.rq_r_v\"");
        assert!(Right::ALL.into_iter().all(|right| !rights.lacks(right)));
        said("$JS.API.STREAM.PURGE.rq_r_v");
        said("$KV.ringway_nodes_r.01f-0002");
        assert!(rights.lacks(Right::Purge) && rights.lacks(Right::Nodes));
        assert!(!rights.lacks(Right::Look) && !rights.lacks(Right::List));
        let mut out = String::new();
        rights.render(&mut out);
        assert!(out.contains("{right=\"purge\"} 1\n"), "{out}");
        assert!(out.contains("{right=\"look\"} 0\n"), "{out}");
        rights.connected();
        assert!(!rights.lacks(Right::Purge));
    }

    #[tokio::test(start_paused = true)]
    async fn a_right_that_was_refused_is_asked_for_again_and_shown_until_it_is_there() {
        let rights = Rights::default();
        let shown = |rights: &Rights| {
            let mut out = String::new();
            rights.render(&mut out);
            out.contains("{right=\"purge\"} 1\n")
        };
        rights.heard("nats: Permissions Violation for Publish to \"$JS.API.STREAM.PURGE.rq_r_v\"");
        tokio::time::advance(ASK_AGAIN - Duration::from_millis(1)).await;
        assert!(rights.lacks(Right::Purge) && shown(&rights));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(!rights.lacks(Right::Purge) && shown(&rights));
        assert!(rights.missed(Right::Purge).now_or_never().is_none());
        rights.used(Right::Purge);
        assert!(!shown(&rights));
    }

    #[test]
    fn who_published_hears_of_its_own_subject() {
        let rights = Rights::default();
        let [mut one, mut other] = [rights.violations(), rights.violations()];
        rights.heard("nats: Permissions Violation for Publish to \"rq.r.v.1\"");
        assert!(one.about("rq.r.v.1").now_or_never().is_some());
        assert!(other.about("rq.r.v.2").now_or_never().is_none());
        assert!(rights.violations().about("rq.r.v.1").now_or_never().is_none(), "it is over");
    }
}
