//! Asks the rate limiter about new sessions (contract 5.3). A limiter that does not answer limits
//! nothing, and log and metrics say so.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tonic::transport::Channel;
use tonic::{Code, Request};

use super::super::pb::limiter::rate_limit_response::Result as Verdict;
use super::super::pb::limiter::rate_limit_service_client::RateLimitServiceClient;
use super::super::pb::limiter::{RateLimitRequest, RateLimitResponse};
use super::bearer::Bearer;
use super::channel::words;
use super::meters::{Check, Meters, Rpc};
use super::repeats::Repeats;
use crate::control::port::{Owner, Rate};

/// If the answer takes longer than this, the session is allowed (contract CP-10, CP-11).
const LIMIT: Duration = Duration::from_secs(1);
/// How long a refusal counts (contract CP-10).
const REMEMBERED: Duration = Duration::from_secs(60);
/// Most refusals that are remembered, and how often overdue ones are looked for when there is no
/// room.
const MOST_REMEMBERED: usize = 65_536;
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// Questions beside sessions that have begun already, at once.
const MOST_BESIDE: usize = 1024;
/// Octets of an answer, which has one number.
const MOST_ANSWER: usize = 64 * 1024;

/// Asks the rate limiter. All of its copies share what they remember.
#[derive(Clone, Debug)]
pub(crate) struct Limiter(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    rpc: RateLimitServiceClient<Channel>,
    bearer: Bearer,
    meters: Arc<Meters>,
    memory: Mutex<Memory>,
    beside: Arc<Semaphore>,
    silent: Silent,
}

/// Whether the limiter answers, as the log last said.
#[derive(Debug, Default)]
struct Silent {
    answered: std::sync::atomic::AtomicBool,
    repeats: Repeats,
}

impl Limiter {
    pub(super) fn new(channel: Channel, bearer: Bearer, meters: Arc<Meters>) -> Self {
        let rpc = RateLimitServiceClient::new(channel).max_decoding_message_size(MOST_ANSWER);
        Self(Arc::new(Inner {
            rpc,
            bearer,
            meters,
            memory: Mutex::default(),
            beside: Arc::new(Semaphore::new(MOST_BESIDE)),
            silent: Silent::default(),
        }))
    }

    /// Whether a new session may begin. The call ends within a second.
    pub(crate) async fn allows(&self, owner: &Owner) -> bool {
        let key = Key::of(owner);
        match owner.kind.rate {
            Rate::Unlimited => true,
            Rate::Beside if !self.0.remembers(&key) => {
                self.ask_beside(key);
                true
            }
            Rate::Beside | Rate::Before => self.0.ask(key).await,
        }
    }

    /// Asks once, and does not remember the answer.
    ///
    /// # Errors
    /// Why there is no answer.
    pub(crate) async fn probe(&self, owner: &Owner) -> Result<bool, String> {
        self.0.call(&Key::of(owner)).await
    }

    /// Asks while the session begins. A refusal counts for later sessions.
    fn ask_beside(&self, key: Key) {
        let Ok(place) = self.0.beside.clone().try_acquire_owned() else {
            return self.0.meters.checked(Check::Skipped);
        };
        let limiter = self.0.clone();
        tokio::spawn(async move {
            limiter.ask(key).await;
            drop(place);
        });
    }
}

impl Inner {
    fn remembers(&self, key: &Key) -> bool {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).has(key, Instant::now())
    }

    /// Whether the limiter allows a session; true also if it does not answer. A refusal is
    /// remembered.
    async fn ask(&self, key: Key) -> bool {
        match self.call(&key).await {
            Ok(allowed) => {
                self.meters.checked(if allowed { Check::Allowed } else { Check::Denied });
                self.silent.answered();
                if !allowed {
                    let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
                    let kept = memory.keep(key, Instant::now());
                    self.meters.remembered(memory.until.len(), !kept);
                }
                allowed
            }
            Err(why) => {
                self.meters.checked(Check::Failed);
                self.silent.failed(&why);
                true
            }
        }
    }

    async fn call(&self, key: &Key) -> Result<bool, String> {
        let deadline = Instant::now() + LIMIT;
        let mut request = Request::new(RateLimitRequest {
            nca_id: key.0.as_ref().into(),
            function_id: key.1.as_ref().into(),
            function_version_id: key.2.as_ref().into(),
        });
        match timeout_at(deadline, self.bearer.attach(&mut request)).await {
            Ok(Ok(())) => {}
            Ok(Err(why)) => return Err(format!("there is no token to show it: {why}")),
            Err(_) => return Err("no token to show it came within a second".into()),
        }
        let timed = self.meters.time(Rpc::Limit);
        let (code, answer) = match timeout_at(deadline, self.rpc.clone().rate_limit(request)).await
        {
            Ok(Ok(answer)) => (Code::Ok, verdict(answer.get_ref())),
            Ok(Err(status)) => (status.code(), Err(words(&status))),
            Err(_) => (Code::DeadlineExceeded, Err("it did not answer within a second".into())),
        };
        timed.ended(code);
        answer
    }
}

/// Whether an answer allows.
fn verdict(answer: &RateLimitResponse) -> Result<bool, String> {
    match Verdict::try_from(answer.result) {
        Ok(Verdict::Allow) => Ok(true),
        Ok(Verdict::Disallow) => Ok(false),
        Err(_) => Err(format!("result {} is not known", answer.result)),
    }
}

impl Silent {
    fn answered(&self) {
        use std::sync::atomic::Ordering;
        let first = !self.answered.swap(true, Ordering::Relaxed);
        if self.repeats.over() || first {
            tracing::info!("the rate limiter answers");
        }
    }

    fn failed(&self, why: &str) {
        let ever = self.answered.load(std::sync::atomic::Ordering::Relaxed);
        if let Some(left_out) = self.repeats.due(why) {
            match ever {
                true => tracing::warn!(
                    why,
                    left_out,
                    "the rate limiter does not answer: new sessions are not limited"
                ),
                false => tracing::warn!(
                    why,
                    left_out,
                    "the rate limiter has never answered: new sessions are not limited. Look at \
                     RATE_LIMIT_ADDR and at `ratelimiterToken` in the secrets file"
                ),
            }
        }
    }
}

/// Tenant, function and version.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key(Arc<str>, Arc<str>, Arc<str>);

impl Key {
    fn of(owner: &Owner) -> Self {
        Self(owner.tenant.clone(), owner.function.clone(), owner.version.clone())
    }
}

/// The refusals, and until when each counts.
#[derive(Debug, Default)]
struct Memory {
    until: HashMap<Key, Instant>,
    /// When overdue refusals were last looked for.
    swept: Option<Instant>,
}

impl Memory {
    fn has(&self, key: &Key, now: Instant) -> bool {
        self.until.get(key).is_some_and(|until| now < *until)
    }

    /// Remembers a refusal from now on: false if there is no room for one more.
    fn keep(&mut self, key: Key, now: Instant) -> bool {
        let full = self.until.len() >= MOST_REMEMBERED && !self.until.contains_key(&key);
        if full && self.swept.is_none_or(|swept| now >= swept + SWEEP_EVERY) {
            self.swept = Some(now);
            self.until.retain(|_, until| now < *until);
        }
        if full && self.until.len() >= MOST_REMEMBERED {
            return false;
        }
        self.until.insert(key, now + REMEMBERED);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: usize) -> Key {
        Key(n.to_string().into(), "f".into(), "v".into())
    }

    #[test]
    fn a_refusal_counts_for_a_minute_from_the_last_one() {
        let mut memory = Memory::default();
        let begin = Instant::now();
        let second = Duration::from_secs(1);
        assert!(memory.keep(key(1), begin));
        assert!(memory.has(&key(1), begin + REMEMBERED - second));
        assert!(!memory.has(&key(2), begin) && !memory.has(&key(1), begin + REMEMBERED));
        assert!(memory.keep(key(1), begin + second));
        assert!(memory.has(&key(1), begin + REMEMBERED));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_room_comes_again() {
        let mut memory = Memory::default();
        let begin = Instant::now();
        for n in 0..MOST_REMEMBERED {
            assert!(memory.keep(key(n), begin));
        }
        assert!(!memory.keep(key(MOST_REMEMBERED), begin));
        assert!(memory.keep(key(0), begin), "one that is known needs no room");
        assert!(memory.keep(key(MOST_REMEMBERED), begin + REMEMBERED));
        assert_eq!(memory.until.len(), 1);
    }

    #[test]
    fn an_answer_allows_or_not_or_says_nothing() {
        let of = |result| verdict(&RateLimitResponse { result });
        assert_eq!((of(0), of(1)), (Ok(true), Ok(false)));
        assert_eq!(of(7), Err("result 7 is not known".into()));
    }
}
