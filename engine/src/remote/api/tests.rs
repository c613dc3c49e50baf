//! The clients against servers of their own, over real connections. How long something takes is
//! the machine's affair: what is looked at is what came first, and limits are for tests that fail.

mod issuer;
mod rig;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Status};

use super::client::CALLS_IN_FLIGHT;
use super::*;
use crate::control::port::{Answer, Call, Denied, Grant, Kind, Owner, Rate};
use rig::{Rig, granted, token};

/// Nothing here takes so long.
const PATIENCE: Duration = Duration::from_secs(20);

fn call(function: &str) -> Call {
    Call::new(b"client key", function.as_bytes(), b"")
}

fn denied(answer: Answer) -> (u8, String) {
    match answer {
        Answer::Denied(Denied { code, text }) => (code, text),
        other => panic!("{other:?}"),
    }
}

fn rendered(meters: &Meters) -> String {
    let mut text = String::new();
    meters.render(&mut text);
    text
}

#[tokio::test]
async fn a_client_is_granted_what_the_api_says() {
    let rig = Rig::start().await;
    let api = rig.api();
    let call = Call::new(b"client key", b"f", b"v");
    let Answer::Granted(Grant { owner }) = api.client.authorise(&call).await else { panic!() };
    assert_eq!((&*owner.tenant, &*owner.function, &*owner.version), ("nca", rig::F, rig::V));
    let seen = rig.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!((&*seen[0].key, &*seen[0].function), ("client key", "f"));
    assert_eq!(seen[0].version.as_deref(), Some("v"));
    assert_eq!((&seen[0].bearer, &seen[0].attempt), (&None, &None));
}

#[tokio::test]
async fn three_codes_are_tried_three_times_and_say_so() {
    let rig = Rig::start().await;
    let api = rig.api();
    rig.answers([Err(Status::unavailable("a")), Err(Status::internal("b")), granted()]);
    assert!(matches!(api.client.authorise(&call("f")).await, Answer::Granted(_)));
    let attempts: Vec<_> = rig.seen().into_iter().map(|seen| seen.attempt).collect();
    assert_eq!(attempts, [None, Some("1".into()), Some("2".into())]);
    for (code, times) in [(Code::Aborted, 3), (Code::NotFound, 1), (Code::Unauthenticated, 1)] {
        rig.answers((0..4).map(|_| Err(Status::new(code, "in its own words"))));
        let told = denied(api.client.authorise(&call("f")).await);
        let text = format!("rpc error: code = {code:?} desc = in its own words");
        assert_eq!(told, (code as u8, text));
        assert_eq!(rig.seen().len(), times, "{code:?}");
    }
    let text = rendered(&rig.meters);
    for (code, count) in [(0, 1), (5, 1), (10, 3), (13, 1), (14, 1), (16, 1)] {
        let line = format!(
            "rpc_client_duration_milliseconds_count{{rpc_service=\"nvcf.Proxy\",\
             rpc_method=\"AuthStatefulWork\",rpc_grpc_status_code=\"{code}\"}} {count}\n"
        );
        assert!(text.contains(&line), "{line}\n{text}");
    }
}

#[tokio::test]
async fn an_api_that_is_not_there_is_unavailable() {
    let gone = rig::free_address().await;
    let (_secrets, receiver) = watch::channel(Arc::default());
    let url = rig::endpoint(gone);
    let settings = Settings { url, oauth: None, limiter: None, ca: None };
    let api = Api::start(&settings, &receiver, &Arc::default()).unwrap();
    let (code, text) = denied(api.client.authorise(&call("f")).await);
    assert_eq!(code, 14);
    assert!(text.ends_with("the API cannot be reached"), "{text}");
}

#[tokio::test]
async fn the_next_call_shows_the_new_token() {
    let rig = Rig::start().await;
    let api = rig.api();
    for wanted in [None, Some("one"), Some("two")] {
        if let Some(text) = wanted {
            rig.secrets.send_modify(|secrets| {
                Arc::make_mut(secrets).api_token = Some(token(text));
            });
        }
        assert!(matches!(api.client.authorise(&call("f")).await, Answer::Granted(_)));
        let bearer = rig.seen().remove(0).bearer;
        assert_eq!(bearer, wanted.map(|text| format!("Bearer {text}")));
    }
}

#[tokio::test]
async fn a_slow_call_holds_no_other_one() {
    let rig = Rig::start().await;
    let api = rig.api();
    let client = api.client.clone();
    let slow = tokio::spawn(async move { client.authorise(&call("held")).await });
    rig.until_held(1).await;
    for _ in 0..20 {
        assert!(matches!(api.client.authorise(&call("f")).await, Answer::Granted(_)));
    }
    assert!(!slow.is_finished());
    rig.release();
    assert!(matches!(slow.await.unwrap(), Answer::Granted(_)));
}

#[tokio::test]
async fn a_call_has_its_time_for_all_attempts_together() {
    let rig = Rig::start().await;
    let api = rig.api();
    let begun = Instant::now();
    let soon = begun + Duration::from_millis(300);
    let answer = timeout(PATIENCE, api.client.authorise_by(&call("held"), soon)).await.unwrap();
    let told =
        "rpc error: code = Unavailable desc = the authorisation service did not answer in time";
    assert_eq!(denied(answer), (14, told.into()));
    assert!(begun.elapsed() >= Duration::from_millis(300));
    assert_eq!(rig.seen().len(), 1, "what is late is not asked again");
    assert!(rendered(&rig.meters).contains("rpc_grpc_status_code=\"4\"} 1\n"));
    // What is dropped is not answered, and the next call has its place.
    rig.until_held(0).await;
}

#[tokio::test]
async fn more_calls_than_there_is_room_for_are_told_so() {
    let rig = Rig::start().await;
    let api = rig.api();
    let calls: Vec<_> = (0..CALLS_IN_FLIGHT)
        .map(|_| {
            let client = api.client.clone();
            tokio::spawn(async move { client.authorise(&call("held")).await })
        })
        .collect();
    let full = format!("\nringway_api_calls {CALLS_IN_FLIGHT}\n");
    let filled = async {
        while !rendered(&rig.meters).contains(&full) {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, filled).await.unwrap();
    assert_eq!(api.client.authorise(&call("f")).await, Answer::Full);
    calls.iter().for_each(tokio::task::JoinHandle::abort);
    let free = async {
        while api.client.authorise(&call("f")).await == Answer::Full {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, free).await.unwrap();
    assert!(rendered(&rig.meters).contains("\nringway_api_calls 0\n"));
}

#[tokio::test]
async fn an_answer_that_is_wrong_is_code_13() {
    let rig = Rig::start().await;
    let api = rig.api();
    let with = |change: fn(&mut super::super::pb::ProxyAuthResponse)| {
        let mut answer = granted().unwrap();
        change(&mut answer);
        Ok(answer)
    };
    let wrong = "rpc error: code = Internal desc = the API's answer cannot be used";
    for (answer, text) in [
        (with(|answer| answer.client_nca_id.clear()), wrong),
        (with(|answer| answer.client_nca_id = "x".repeat(2 << 20)), wrong),
    ] {
        rig.answers([answer]);
        assert_eq!(denied(api.client.authorise(&call("f")).await), (13, text.into()));
        assert_eq!(rig.seen().len(), 1, "it is not asked again");
    }
}

#[tokio::test]
async fn a_message_that_is_none_is_code_13() {
    // Octets that are no UTF-8, and a number where a string belongs.
    for message in [b"\x0a\x02\xff\xfe".as_slice(), b"\x08\x07", b"\x12\x05\x0a"] {
        let server = rig::raw(message).await;
        let (_secrets, receiver) = watch::channel(Arc::default());
        let settings =
            Settings { url: rig::endpoint(server), oauth: None, limiter: None, ca: None };
        let api = Api::start(&settings, &receiver, &Arc::default()).unwrap();
        let (code, text) = denied(api.client.authorise(&call("f")).await);
        assert_eq!(code, 13, "{text}");
    }
}

fn owner(rate: Rate) -> Owner {
    let kind = Kind { rate, ..Kind::default() };
    Owner { kind, ..Owner::new("nca".into(), "f".into(), "v".into()) }
}

#[tokio::test]
async fn a_limiter_that_is_asked_before_refuses_at_once() {
    let rig = Rig::start().await;
    let limiter = rig.api().limiter.unwrap();
    rig.secrets.send_modify(|secrets| {
        Arc::make_mut(secrets).limiter_token = Some(token("limit"));
    });
    assert!(limiter.allows(&owner(Rate::Before)).await);
    rig.limits(1);
    assert!(!limiter.allows(&owner(Rate::Before)).await);
    assert!(limiter.allows(&owner(Rate::Unlimited)).await);
    let asked = rig.asked();
    assert_eq!(asked.len(), 2, "who is not limited is not asked about");
    assert_eq!(asked[0], ["nca", "f", "v", "Bearer limit"]);
}

#[tokio::test]
async fn a_refusal_beside_a_session_counts_for_those_after_it() {
    let rig = Rig::start().await;
    let limiter = rig.api().limiter.unwrap();
    rig.limits(1);
    assert!(limiter.allows(&owner(Rate::Beside)).await, "nobody waits for the first answer");
    let marked = async {
        while !rendered(&rig.meters).contains("ringway_rate_limiter_remembered 1\n") {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, marked).await.unwrap();
    assert!(!limiter.allows(&owner(Rate::Beside)).await);
    let other = Owner { tenant: "other".into(), ..owner(Rate::Beside) };
    assert!(limiter.allows(&other).await, "each tenant for itself");
    rig.limits(0);
    assert!(limiter.allows(&owner(Rate::Beside)).await, "it was asked, and allows");
    rig.limits(1);
    assert!(!limiter.allows(&owner(Rate::Beside)).await, "what allows does not clear the mark");
}

#[tokio::test]
async fn a_limiter_that_fails_or_is_late_allows_and_is_counted() {
    let rig = Rig::start().await;
    let limiter = rig.api().limiter.unwrap();
    // An answer that is none, an error, and no answer at all.
    for result in [7, -1, -2] {
        rig.limits(result);
        assert!(limiter.allows(&owner(Rate::Before)).await, "{result}");
    }
    assert_eq!(rig.asked().len(), 3, "it is not asked again");
    let text = rendered(&rig.meters);
    assert!(text.contains("ringway_rate_limiter_checks_total{outcome=\"failed\"} 3\n"), "{text}");
    assert!(text.contains("ringway_rate_limiter_answers 0\n"), "{text}");
    rig.limits(0);
    assert!(limiter.allows(&owner(Rate::Before)).await);
    assert!(rendered(&rig.meters).contains("ringway_rate_limiter_answers 1\n"));
}

#[tokio::test]
async fn health_follows_the_api() {
    let rig = Rig::start().await;
    rig.serves(false).await;
    let mut health = rig.api().health;
    let first = health.borrow().red.clone().unwrap();
    assert_eq!(&*first.why, "it was not checked yet");
    let says =
        |health: &ApiHealth| health.red.as_ref().is_some_and(|red| red.why.contains("NOT_SERVING"));
    let red = timeout(PATIENCE, health.wait_for(says)).await.unwrap().unwrap().red.clone();
    assert_eq!(red.unwrap().since, first.since, "it was red all the time");
    rig.serves(true).await;
    timeout(PATIENCE, health.wait_for(|health| health.red.is_none())).await.unwrap().unwrap();
    rig.serves(false).await;
    let red = timeout(PATIENCE, health.wait_for(says)).await.unwrap().unwrap().red.clone();
    assert!(red.unwrap().since > first.since);
    assert!(rendered(&rig.meters).contains("ringway_api_serves 0\n"));
}

/// The file itself, from its writing to the next call.
#[tokio::test]
async fn a_token_that_is_written_is_shown() {
    let dir = std::env::temp_dir().join(format!("ringway-{:016x}", getrandom::u64().unwrap()));
    std::fs::create_dir(&dir).unwrap();
    let file = dir.join("secrets.json");
    let mut rig = Rig::start().await;
    rig.receiver = secrets::watch(Some(file.clone()), rig.meters.clone());
    let api = rig.api();
    for token in ["one", "two"] {
        std::fs::write(&file, format!("{{\"nvcfApiToken\": \"{token}\"}}")).unwrap();
        let bearer = Some(format!("Bearer {token}"));
        let call = async || {
            assert!(matches!(api.client.authorise(&call("f")).await, Answer::Granted(_)));
            rig.seen().remove(0).bearer
        };
        let shown = async {
            while call().await != bearer {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, shown).await.unwrap();
    }
    std::fs::remove_dir_all(dir).unwrap();
}
