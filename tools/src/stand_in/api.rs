//! NVIDIA's API as far as a proxy asks it: `AuthStatefulWork`, and whether it is well.

use std::sync::Arc;

use prost::Message;
use prost::bytes::Bytes;
use tokio_stream::Empty;
use tonic::{Code, Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use uuid::Uuid;

use super::script::{self, Function, Key};
use super::unary::{Method, Unary, troubled};
use super::{Stage, bearer};
use crate::pb::nvcf::proxy_auth_response::FunctionVersion;
use crate::pb::nvcf::proxy_auth_response::function_version::{BackendType, Type};
use crate::pb::nvcf::{ProxyAuthRequest, ProxyAuthResponse};

/// The OAuth2 scope of who asks (contract CP-7).
const SCOPE: &str = "proxy:invoke_function";
/// How often a call was tried before, as it is spelt (contract CP-2).
const RETRY: &str = "x-retry-attempty";

/// `AuthStatefulWork`.
#[derive(Clone, Copy)]
pub(super) struct Authorise;

pub(super) fn service(stage: Arc<Stage>) -> Unary<Authorise> {
    Unary { stage, method: Authorise }
}

impl Method for Authorise {
    const SERVICE: &'static str = "nvcf.Proxy";
    const PATH: &'static str = "/nvcf.Proxy/AuthStatefulWork";

    async fn answer(self, stage: Arc<Stage>, request: Request<Bytes>) -> Result<Bytes, Status> {
        let text = |name| request.metadata().get(name).and_then(|value| value.to_str().ok());
        let caller = bearer(text("authorization")).to_owned();
        let fields =
            [("method", Self::PATH), ("bearer", &*caller), ("retry", text(RETRY).unwrap_or(""))];
        let mut call = stage.board.call("api", &fields);
        let asked = ProxyAuthRequest::decode(request.into_inner())
            .map_err(|error| Status::internal(error.to_string()));
        let answer = match asked {
            Ok(asked) => {
                call.field("key", &asked.client_authorization_token);
                call.field("function", &asked.function_id);
                call.field("version", asked.function_version_id.as_deref().unwrap_or("(none)"));
                authorise(&stage, &caller, &asked).await
            }
            Err(status) => Err(status),
        };
        call.ends(answer.as_ref().err().map_or(Code::Ok, Status::code) as i32);
        answer
    }
}

/// The statuses of contract CP-4, in the order in which the API looks.
async fn authorise(stage: &Stage, caller: &str, asked: &ProxyAuthRequest) -> Result<Bytes, Status> {
    let script = stage.script();
    if let Some(answer) = troubled(stage.trouble("api", &script.api.trouble)).await {
        return answer;
    }
    if !stage.takes(&script.api.from, caller, SCOPE) {
        return Err(Status::unauthenticated("the proxy's credential is not taken"));
    }
    let token = &asked.client_authorization_token;
    let anybody = Key {
        token: token.clone(),
        subject: "test-client-subject".into(),
        nca: "test-nca-id".into(),
        functions: Vec::new(),
        trouble: Vec::new(),
    };
    let known = script.keys.iter().find(|key| key.token == *token);
    let key = known.or_else(|| script.keys.is_empty().then_some(&anybody));
    let key = key.ok_or_else(|| Status::unauthenticated("the client's credential is not taken"))?;
    if let Some(answer) = troubled(stage.trouble(&format!("key {token}"), &key.trouble)).await {
        return answer;
    }
    let ids = [Some(&asked.function_id), asked.function_version_id.as_ref()];
    if ids.into_iter().flatten().any(|id| Uuid::parse_str(id).is_err()) {
        return Err(Status::unknown("an id is not a UUID"));
    }
    let function = find(&script, asked).ok_or_else(|| Status::not_found("no such function"))?;
    let trouble = stage.trouble(&format!("function {}", function.id), &function.trouble);
    if let Some(answer) = troubled(trouble).await {
        return answer;
    }
    if !key.functions.is_empty() && !key.functions.contains(&function.id) {
        return Err(Status::permission_denied("the client may not call this function"));
    }
    grant(&function, key, asked)
}

/// The function that is asked for, by its id in any case of letters.
fn find(script: &script::Script, asked: &ProxyAuthRequest) -> Option<Function> {
    if script.functions.is_empty() {
        let id = asked.function_id.clone();
        let version = asked.function_version_id.clone().unwrap_or_else(|| id.clone());
        let versions = vec![script::Version { id: version, ..script::Version::default() }];
        return Some(Function { id, versions, trouble: Vec::new() });
    }
    let is = |function: &&Function| function.id.eq_ignore_ascii_case(&asked.function_id);
    script.functions.iter().find(is).cloned()
}

/// The versions that may be picked from: all, or the one that was named (contract CP-3).
fn grant(function: &Function, key: &Key, asked: &ProxyAuthRequest) -> Result<Bytes, Status> {
    let named = asked.function_version_id.as_deref();
    let fits =
        |version: &&script::Version| named.is_none_or(|id| version.id.eq_ignore_ascii_case(id));
    let versions: Vec<FunctionVersion> =
        function.versions.iter().filter(fits).map(granted).collect();
    if versions.is_empty() && named.is_some() {
        return Err(Status::not_found("no such version"));
    }
    let answer = ProxyAuthResponse {
        function_id: function.id.clone(),
        function_versions: versions,
        client_auth_subject: key.subject.clone(),
        client_nca_id: key.nca.clone(),
    };
    Ok(answer.encode_to_vec().into())
}

fn granted(version: &script::Version) -> FunctionVersion {
    let kind = match version.kind {
        script::Kind::Default => Type::Default,
        script::Kind::Streaming => Type::Streaming,
        script::Kind::Llm => Type::Llm,
    };
    let backend = version.backend.map(|backend| match backend {
        script::Backend::Unknown => BackendType::Unknown,
        script::Backend::Gfn => BackendType::Gfn,
    });
    FunctionVersion {
        function_version_id: version.id.clone(),
        r#type: kind.into(),
        backend_type: backend.map(Into::into),
        has_rate_limit: version.rate_limit,
        sync_check: version.sync_check,
    }
}

/// The health service of the whole server: the empty name only (contract OB-4).
pub(super) struct Well(Arc<Stage>);

pub(super) fn health(stage: Arc<Stage>) -> HealthServer<Well> {
    HealthServer::new(Well(stage))
}

#[tonic::async_trait]
impl Health for Well {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let caller = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        let method = "/grpc.health.v1.Health/Check";
        let fields = [("method", method), ("bearer", bearer(caller))];
        let mut call = self.0.board.call("health", &fields);
        let script = self.0.script();
        let trouble = self.0.trouble("health", &script.api.health_trouble);
        let answer = match troubled(trouble).await {
            Some(Err(status)) => Err(status),
            _ if !request.get_ref().service.is_empty() => Err(Status::not_found("no such service")),
            _ => Ok(match script.api.health {
                script::Health::Serving => ServingStatus::Serving,
                script::Health::NotServing => ServingStatus::NotServing,
            }),
        };
        call.ends(answer.as_ref().err().map_or(Code::Ok, Status::code) as i32);
        answer.map(|status| Response::new(HealthCheckResponse { status: status.into() }))
    }

    type WatchStream = Empty<Result<HealthCheckResponse, Status>>;

    async fn watch(
        &self,
        _: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("only Check is answered"))
    }
}
