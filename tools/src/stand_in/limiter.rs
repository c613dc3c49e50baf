//! The rate limiter (contract 5.3).

use std::sync::Arc;

use prost::Message;
use prost::bytes::Bytes;
use tonic::{Code, Request, Status};

use super::script::Rule;
use super::unary::{Method, Unary, troubled};
use super::{Stage, bearer};
use crate::pb::ratelimiter::rate_limit_response::Result as Verdict;
use crate::pb::ratelimiter::{RateLimitRequest, RateLimitResponse};

/// The OAuth2 scope of who asks (contract CP-7).
const SCOPE: &str = "ratelimit:check_invocation";

/// `RateLimit`.
#[derive(Clone, Copy)]
pub(super) struct Limit;

pub(super) fn service(stage: Arc<Stage>) -> Unary<Limit> {
    Unary { stage, method: Limit }
}

impl Method for Limit {
    const SERVICE: &'static str = "nvcfratelimiter.RateLimitService";
    const PATH: &'static str = "/nvcfratelimiter.RateLimitService/RateLimit";

    async fn answer(self, stage: Arc<Stage>, request: Request<Bytes>) -> Result<Bytes, Status> {
        let caller = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        let caller = bearer(caller).to_owned();
        let fields = [("method", Self::PATH), ("bearer", &*caller)];
        let mut call = stage.board.call("limiter", &fields);
        let asked = RateLimitRequest::decode(request.into_inner())
            .map_err(|error| Status::internal(error.to_string()));
        let answer = match asked {
            Ok(asked) => {
                call.field("nca", &asked.nca_id);
                call.field("function", &asked.function_id);
                call.field("version", &asked.function_version_id);
                limit(&stage, &caller, &asked).await
            }
            Err(status) => Err(status),
        };
        call.ends(answer.as_ref().err().map_or(Code::Ok, Status::code) as i32);
        answer
    }
}

async fn limit(stage: &Stage, caller: &str, asked: &RateLimitRequest) -> Result<Bytes, Status> {
    let script = stage.script();
    if let Some(answer) = troubled(stage.trouble("limiter", &script.limiter.trouble)).await {
        return answer;
    }
    if !stage.takes(&script.limiter.from, caller, SCOPE) {
        return Err(Status::unauthenticated("the proxy's credential is not taken"));
    }
    let fits = |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|one| one == is);
    let decides = |(at, rule): &(usize, &Rule)| {
        fits(&rule.nca, &asked.nca_id)
            && fits(&rule.function, &asked.function_id)
            && fits(&rule.version, &asked.function_version_id)
            && stage.follow.count(&format!("rule {at}"), rule.times)
    };
    let mut result = Verdict::Allow;
    if let Some((at, rule)) = script.limiter.rules.iter().enumerate().find(decides) {
        if let Some(answer) = troubled(stage.trouble(&format!("in rule {at}"), &rule.trouble)).await
        {
            return answer;
        }
        result = if rule.disallow { Verdict::Disallow } else { Verdict::Allow };
    }
    Ok(RateLimitResponse { result: result.into() }.encode_to_vec().into())
}
