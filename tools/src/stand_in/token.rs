//! The OAuth2 token endpoint: `POST /token` with client credentials (RFC 6749 §4.4).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::script::Style;
use super::{Stage, nonce};

pub(super) fn router(stage: Arc<Stage>) -> Router {
    Router::new().route("/token", post(token)).with_state(stage)
}

/// Which client the caller says it is, and how it said so.
struct Claim {
    style: &'static str,
    id: String,
    secret: String,
}

async fn token(State(stage): State<Arc<Stage>>, head: HeaderMap, body: Bytes) -> Response {
    let fields: HashMap<String, String> =
        form_urlencoded::parse(&body).map(|(name, value)| (name.into(), value.into())).collect();
    let claim = claim(&head, &fields);
    let field = |name: &str| fields.get(name).map_or("", String::as_str);
    let mut call = stage.board.call(
        "token",
        &[
            ("style", claim.style),
            ("client", &claim.id),
            ("scope", field("scope")),
            ("grant", field("grant_type")),
        ],
    );
    let script = stage.script();
    if let Some(trouble) = stage.trouble("token", &script.token.trouble) {
        trouble.wait().await;
        if let Ok(status) = StatusCode::from_u16(trouble.status) {
            call.ends(status.as_u16());
            return (status, [(CONTENT_TYPE, "application/json")], trouble.message).into_response();
        }
    }
    let wants = script.token.wants;
    let styled = match wants {
        Style::Basic => claim.style == "basic",
        Style::Body => claim.style == "body",
        Style::Any => claim.style == "basic" || claim.style == "body",
    };
    let clients = &script.token.clients;
    let known = clients.is_empty()
        || clients.iter().any(|client| client.id == claim.id && client.secret == claim.secret);
    if !styled || !known {
        call.ends(401);
        let fault = json!({"error": "invalid_client"}).to_string();
        let json =
            [(CONTENT_TYPE, "application/json"), (WWW_AUTHENTICATE, "Basic realm=\"token\"")];
        return (StatusCode::UNAUTHORIZED, json, fault).into_response();
    }
    if field("grant_type") != "client_credentials" {
        call.ends(400);
        let fault = json!({"error": "unsupported_grant_type"}).to_string();
        return (StatusCode::BAD_REQUEST, [(CONTENT_TYPE, "application/json")], fault)
            .into_response();
    }
    let token = format!("issued-{}", nonce());
    stage.issue(token.clone(), field("scope").into(), Duration::from_secs(script.token.expires_in));
    call.field("token", &token);
    call.ends(200);
    let mut answer =
        json!({"access_token": token, "token_type": "Bearer", "scope": field("scope")});
    if script.token.says_expiry {
        answer["expires_in"] = script.token.expires_in.into();
    }
    ([(CONTENT_TYPE, "application/json")], answer.to_string()).into_response()
}

/// Basic wins over the body; in it both parts are form-encoded (RFC 6749 §2.3.1).
fn claim(head: &HeaderMap, fields: &HashMap<String, String>) -> Claim {
    let basic =
        head.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Basic "));
    let pair = basic.and_then(|text| String::from_utf8(STANDARD.decode(text).ok()?).ok());
    if let Some((id, secret)) = pair.as_deref().and_then(|pair| pair.split_once(':')) {
        return Claim { style: "basic", id: decoded(id), secret: decoded(secret) };
    }
    match (fields.get("client_id"), fields.get("client_secret")) {
        (Some(id), Some(secret)) => Claim { style: "body", id: id.clone(), secret: secret.clone() },
        _ => Claim { style: "none", id: String::new(), secret: String::new() },
    }
}

/// A form-encoded value.
fn decoded(text: &str) -> String {
    form_urlencoded::parse(format!("v={text}").as_bytes())
        .next()
        .map_or_else(String::new, |(_, value)| value.into_owned())
}
