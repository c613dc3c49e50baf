//! The parts of the control plane that do not work now (contract 8.4, design 3.27).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::api::ApiHealth;
use super::nats::State;
use crate::message::Ills;
use crate::metrics::{each, family};

/// The checks' names, as the reference has them.
const API: &str = "nvcf grpc api";
const NATS: &str = "nats";

/// One thing that does not work.
#[derive(Clone, Debug)]
struct Ill {
    name: &'static str,
    /// None if it has never worked.
    since: Option<Instant>,
    why: Arc<str>,
}

/// What does not work now.
#[derive(Clone, Debug)]
pub struct Health {
    /// None if the API is not asked at all.
    api: Option<Option<Ill>>,
    nats: Option<Ill>,
}

/// Whether each part has worked once.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    api: bool,
    nats: bool,
}

impl Health {
    fn of(api: Option<&ApiHealth>, nats: &State, known: &mut Known) -> Self {
        known.api |= api.is_some_and(|api| api.red.is_none());
        known.nats |= matches!(nats, State::Up { .. });
        let ill = |name, known: bool, since: Instant, why: &Arc<str>| Ill {
            name,
            since: known.then_some(since),
            why: why.clone(),
        };
        let red =
            |api: &ApiHealth| api.red.as_ref().map(|red| ill(API, known.api, red.since, &red.why));
        let nats = match nats {
            State::Up { .. } => None,
            State::Down { since, why } => Some(ill(NATS, known.nats, *since, why)),
        };
        Self { api: api.map(red), nats }
    }

    fn ills(&self) -> impl Iterator<Item = &Ill> {
        self.api.iter().flatten().chain(&self.nats)
    }

    /// What does not work now, for `/health`.
    #[must_use]
    pub fn told(&self) -> Ills {
        self.ills().map(|ill| (ill.name, ill.why.to_string())).collect()
    }

    /// In words, what has not worked for longer than `limit`, or never; none if there is nothing.
    pub(super) fn red_for(&self, limit: Duration) -> Option<String> {
        let long = self.ills().filter(|ill| ill.since.is_none_or(|at| at.elapsed() >= limit));
        let words: Vec<_> = long.map(|ill| format!("{}: {}", ill.name, ill.why)).collect();
        (!words.is_empty()).then(|| words.join("; "))
    }

    /// Writes a gauge for each check.
    pub(super) fn render(&self, out: &mut String) {
        let name = "ringway_control_up";
        family(out, name, "gauge", "1: this part of the control plane works.");
        let api = self.api.as_ref().map(|ill| ("api", ill));
        let parts = api.into_iter().chain([("nats", &self.nats)]);
        each(out, name, "part", parts.map(|(part, ill)| (part, u64::from(ill.is_none()))));
    }
}

/// The health of both, followed for as long as somebody looks.
pub(super) fn watch(
    api: Option<watch::Receiver<ApiHealth>>,
    mut nats: watch::Receiver<State>,
) -> watch::Receiver<Health> {
    let mut known = Known::default();
    let mut now = move |api: &Option<watch::Receiver<ApiHealth>>, nats: &watch::Receiver<State>| {
        let api = api.as_ref().map(|api| api.borrow().clone());
        Health::of(api.as_ref(), &nats.borrow(), &mut known)
    };
    let (health, seen) = watch::channel(now(&api, &nats));
    tokio::spawn(async move {
        let mut api = api;
        loop {
            let changed = async {
                match &mut api {
                    Some(api) => api.changed().await.is_ok(),
                    None => std::future::pending().await,
                }
            };
            let goes_on = tokio::select! {
                changed = nats.changed() => changed.is_ok(),
                goes_on = changed => goes_on,
                () = health.closed() => false,
            };
            if !goes_on {
                return;
            }
            health.send_replace(now(&api, &nats));
        }
    });
    seen
}

#[cfg(test)]
mod tests {
    use super::super::api::Red;
    use super::*;

    fn red(age: Duration) -> ApiHealth {
        let since = Instant::now() - age;
        ApiHealth { red: Some(Red { since, why: "no answer".into() }) }
    }

    #[test]
    fn what_is_red_for_long_or_was_never_well_is_said_with_its_reason() {
        let (up, limit) = (State::Up { epoch: 1 }, Duration::from_secs(10));
        let well = Known { api: true, nats: true };
        let short = Health::of(Some(&red(Duration::from_secs(1))), &up, &mut well.clone());
        assert_eq!(short.red_for(limit), None);
        assert_eq!(short.red_for(Duration::ZERO).as_deref(), Some("nvcf grpc api: no answer"));
        let down = State::Down { since: Instant::now() - 2 * limit, why: "refused".into() };
        let both = Health::of(Some(&red(2 * limit)), &down, &mut well.clone());
        let text = both.red_for(limit);
        assert_eq!(text.as_deref(), Some("nvcf grpc api: no answer; nats: refused"));
        let (mut known, fine) = (Known::default(), ApiHealth { red: None });
        let down = State::Down { since: Instant::now(), why: "refused".into() };
        let never = Health::of(Some(&fine), &down, &mut known);
        assert_eq!(never.red_for(limit).as_deref(), Some("nats: refused"));
        assert_eq!(Health::of(Some(&fine), &up, &mut known).red_for(Duration::ZERO), None);
        assert_eq!(Health::of(Some(&fine), &down, &mut known).red_for(limit), None);
    }

    #[test]
    fn a_gauge_for_each_part_that_there_is() {
        let (up, mut known) = (State::Up { epoch: 1 }, Known::default());
        let mut out = String::new();
        Health::of(None, &up, &mut known).render(&mut out);
        assert!(out.ends_with("ringway_control_up{part=\"nats\"} 1\n"), "{out}");
        assert!(!out.contains("api"), "{out}");
        Health::of(Some(&red(Duration::ZERO)), &up, &mut known).render(&mut out);
        assert!(out.contains("ringway_control_up{part=\"api\"} 0\n"), "{out}");
    }
}
