//! What was asked, for whoever wants to know it, and what is played from now on: `GET /counts`,
//! `POST /reset`, `PUT /script` with a file's text as body.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::{get, post, put};

use super::Stage;

pub(super) fn router(stage: Arc<Stage>) -> Router {
    Router::new()
        .route("/counts", get(counts))
        .route("/reset", post(reset))
        .route("/script", put(replace))
        .with_state(stage)
}

async fn counts(State(stage): State<Arc<Stage>>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], stage.board.json())
}

async fn reset(State(stage): State<Arc<Stage>>) {
    stage.board.reset();
}

/// Answers 204, or 400 with the mistake; then the script is as it was.
async fn replace(State(stage): State<Arc<Stage>>, text: String) -> impl IntoResponse {
    match stage.follow.replace(&text) {
        Ok(()) => (StatusCode::NO_CONTENT, String::new()),
        Err(mistake) => (StatusCode::BAD_REQUEST, mistake),
    }
}
