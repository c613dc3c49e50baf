//! Tokens of OAuth2 from an issuer over HTTP.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::super::secrets::SecretValues;
use super::rig::{Rig, token};
use super::{PATIENCE, call, denied, rendered};
use crate::control::port::Answer;
use crate::remote::api::{Meters, OAuth, Roots, Scope};

/// How the issuer wants to be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wants {
    Basic,
    Body,
    Nobody,
    /// It is not well.
    Rest,
}

#[derive(Debug)]
struct Script {
    wants: Wants,
    life: u64,
    asked: Vec<(Option<String>, String)>,
    given: usize,
}

#[derive(Clone, Debug)]
struct Issuer {
    script: Arc<Mutex<Script>>,
    base: String,
}

/// `a b:` and `s/+` as RFC 6749 §2.3.1 wants them, in base64.
const BASIC: &str = "Basic YStiJTNBOnMlMkYlMkI=";

async fn answer(
    State(script): State<Arc<Mutex<Script>>>,
    headers: HeaderMap,
    body: String,
) -> (StatusCode, String) {
    let mut script = script.lock().unwrap();
    let basic = headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
    let in_body = body.contains("client_id=a+b%3A&client_secret=s%2F%2B");
    let taken = match script.wants {
        Wants::Basic => basic.as_deref() == Some(BASIC) && !body.contains("client_id"),
        Wants::Body => in_body && basic.is_none(),
        Wants::Nobody => false,
        Wants::Rest => {
            script.asked.push((basic, body));
            return (StatusCode::SERVICE_UNAVAILABLE, "later".into());
        }
    };
    script.asked.push((basic, body));
    if !taken {
        return (StatusCode::UNAUTHORIZED, r#"{"error":"invalid_client"}"#.into());
    }
    script.given += 1;
    let (number, life) = (script.given, script.life);
    let token = format!(r#"{{"access_token":"token-{number}","expires_in":{life}}}"#);
    (StatusCode::OK, token)
}

impl Issuer {
    async fn start(wants: Wants, life: u64) -> Self {
        let script = Script { wants, life, asked: Vec::new(), given: 0 };
        let script = Arc::new(Mutex::new(script));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        // Its base has a path, and no slash at its end.
        let base = format!("http://{}/issuer", listener.local_addr().unwrap());
        let routes = axum::Router::new().route("/issuer/token", post(answer));
        let routes = routes.with_state(script.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Self { script, base }
    }

    fn asked(&self) -> Vec<(Option<String>, String)> {
        std::mem::take(&mut self.script.lock().unwrap().asked)
    }

    fn wants(&self, wants: Wants) {
        self.script.lock().unwrap().wants = wants;
    }
}

fn client() -> Arc<SecretValues> {
    let (id, secret) = (Some(token("a b:")), Some(token("s/+")));
    Arc::new(SecretValues { id, secret, ..SecretValues::default() })
}

async fn shown(oauth: &OAuth) -> Result<String, Arc<str>> {
    let token = timeout(PATIENCE, oauth.token()).await.unwrap();
    token.map(|token| token.text().to_owned())
}

/// Waits until the token is another one.
async fn another(oauth: &OAuth, than: &str) -> String {
    let waited = async {
        loop {
            match shown(oauth).await {
                Ok(token) if token != than => break token,
                _ => sleep(Duration::from_millis(10)).await,
            }
        }
    };
    timeout(PATIENCE, waited).await.unwrap()
}

#[tokio::test]
async fn basic_is_tried_first_and_is_all_that_is_asked() {
    let issuer = Issuer::start(Wants::Basic, 3600).await;
    let (_secrets, receiver) = watch::channel(client());
    let oauth =
        OAuth::start((&issuer.base, &Roots::default()), Scope::Nats, &receiver, &Arc::default())
            .unwrap();
    assert_eq!(shown(&oauth).await.as_deref(), Ok("token-1"));
    let asked = issuer.asked();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].0.as_deref(), Some(BASIC));
    assert_eq!(asked[0].1, "grant_type=client_credentials&scope=admin%3Anats%3AWorker");
    assert_eq!(shown(&oauth).await.as_deref(), Ok("token-1"), "it is kept");
    assert!(issuer.asked().is_empty());
}

#[tokio::test]
async fn the_body_is_tried_next_remembered_and_forgotten_when_it_fails() {
    let issuer = Issuer::start(Wants::Body, 1).await;
    let (_secrets, receiver) = watch::channel(client());
    let meters = Arc::new(Meters::default());
    let oauth =
        OAuth::start((&issuer.base, &Roots::default()), Scope::Api, &receiver, &meters).unwrap();
    let first = shown(&oauth).await.unwrap();
    let second = another(&oauth, &first).await;
    assert_eq!((&*first, &*second), ("token-1", "token-2"));
    let ways: Vec<bool> = issuer.asked().into_iter().map(|(basic, _)| basic.is_some()).collect();
    assert_eq!(ways[..3], [true, false, false]);
    issuer.wants(Wants::Basic);
    assert_ne!(another(&oauth, &second).await, first);
    let text = rendered(&meters);
    let line = "nv_client_authn_refresh_errors_total{client_name=\"api\",client_id=\"a b:\"} 1\n";
    assert!(text.contains(line), "{text}");
}

#[tokio::test]
async fn a_token_is_used_while_the_next_one_cannot_be_fetched() {
    let issuer = Issuer::start(Wants::Basic, 3600).await;
    let (secrets, receiver) = watch::channel(client());
    let oauth =
        OAuth::start((&issuer.base, &Roots::default()), Scope::Api, &receiver, &Arc::default())
            .unwrap();
    assert_eq!(shown(&oauth).await.as_deref(), Ok("token-1"));
    issuer.asked();
    // Another client is tried at once, and fails both ways.
    secrets.send_modify(|values| Arc::make_mut(values).secret = Some(token("wrong")));
    let tried = async {
        while issuer.script.lock().unwrap().asked.len() < 2 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, tried).await.unwrap();
    assert_eq!(shown(&oauth).await.as_deref(), Ok("token-1"));
    secrets.send_replace(client());
    another(&oauth, "token-1").await;
}

#[tokio::test]
async fn without_a_token_a_client_is_told_that_the_gateway_has_none() {
    let issuer = Issuer::start(Wants::Nobody, 3600).await;
    let mut rig = Rig::start().await;
    rig.oauth = Some(issuer.base.clone());
    rig.secrets.send_replace(client());
    let api = rig.api();
    let (code, text) = denied(api.client.authorise(&call("f")).await);
    assert_eq!(code, 14);
    assert!(text.ends_with("the gateway has no credential for the API"), "{text}");
    assert!(rig.seen().is_empty());
    issuer.wants(Wants::Basic);
    let granted = async {
        while !matches!(api.client.authorise(&call("f")).await, Answer::Granted(_)) {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, granted).await.unwrap();
    assert!(rig.seen()[0].bearer.as_ref().unwrap().starts_with("Bearer token-"));
}

#[tokio::test]
async fn an_issuer_that_is_not_well_is_asked_once_a_time() {
    let issuer = Issuer::start(Wants::Rest, 3600).await;
    let (_secrets, receiver) = watch::channel(client());
    let oauth =
        OAuth::start((&issuer.base, &Roots::default()), Scope::Api, &receiver, &Arc::default())
            .unwrap();
    assert_eq!(shown(&oauth).await.as_deref(), Err(&"the issuer answered 503".into()));
    assert_eq!(issuer.asked().len(), 1, "the other way would not help it");
    issuer.wants(Wants::Body);
    assert_eq!(another(&oauth, "").await, "token-1");
}

#[tokio::test]
async fn the_first_secrets_decide_and_a_token_of_the_file_wins() {
    let issuer = Issuer::start(Wants::Basic, 3600).await;
    let mut rig = Rig::start().await;
    rig.oauth = Some(issuer.base.clone());
    let api = rig.api();
    let bearer = async || {
        assert!(matches!(api.client.authorise(&call("f")).await, Answer::Granted(_)));
        rig.seen().remove(0).bearer
    };
    assert_eq!(bearer().await, None, "nothing can be shown yet");
    let mut both = SecretValues::clone(&client());
    both.api_token = Some(token("own"));
    rig.secrets.send_replace(Arc::new(both));
    assert_eq!(bearer().await.as_deref(), Some("Bearer own"));
    assert!(issuer.asked().iter().all(|(_, form)| form.contains("ratelimit")));

    let mut later = Rig::start().await;
    later.oauth = Some(issuer.base.clone());
    let api = later.api();
    later.secrets.send_replace(client());
    assert!(matches!(api.client.authorise(&call("f")).await, Answer::Granted(_)));
    let mut both = SecretValues::clone(&client());
    both.api_token = Some(token("own"));
    later.secrets.send_replace(Arc::new(both));
    assert!(matches!(api.client.authorise(&call("f")).await, Answer::Granted(_)));
    let shown: Vec<_> = later.seen().into_iter().map(|seen| seen.bearer.unwrap()).collect();
    assert!(shown.iter().all(|bearer| bearer.starts_with("Bearer token-")), "{shown:?}");
}
