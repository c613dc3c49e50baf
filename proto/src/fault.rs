//! Why a request is not served: the code, the status and the text that its client is given.
//!
//! Data only; `answer.rs` turns it into bytes.

use crate::grpc::{self, Code};
use std::fmt;
use std::time::Duration;
use uuid::Uuid;

/// What stands before the text of everything that went wrong while a session was opened
/// (contract 3.3).
const PREFIX: &str = "failed to open stateful work request: ";
/// What every text about a worker that did not come begins with (E12).
const NO_LINK: &str = "failed to establish link to worker";

/// Why a request was refused or lost: E1-E12 of the contract, then the cases of our own.
///
/// `Debug` names the kind and its code and nothing a peer sent, so that it can stand in any log.
#[derive(Clone, PartialEq, Eq)]
pub enum Fault {
    /// E1: no usable authorization.
    MissingAuthorization,
    /// E1: there is an authorization, but not as `Bearer KEY`.
    NotBearer,
    /// E2: no function-id.
    MissingFunctionId,
    /// E3: the control plane refused.
    Api {
        /// gRPC status as the control plane gave it.
        code: u8,
        /// The control plane's text.
        text: String,
    },
    /// E4: the control plane knows no version of the function.
    NoVersions,
    /// E5: too many sessions of this tenant.
    RateLimited,
    /// E6: the work could not be queued.
    PublishFailed,
    /// E7: the request id names no session; the client is told to forget it.
    SessionNotFound {
        /// What the client asked for.
        request_id: Uuid,
    },
    /// E8: the session is of another function.
    FunctionMismatch {
        /// What the client asked for.
        request_id: Uuid,
    },
    /// E9: the session is of another version.
    VersionMismatch {
        /// What the client asked for.
        request_id: Uuid,
    },
    /// E10: the session is another tenant's.
    TenantMismatch {
        /// What the client asked for.
        request_id: Uuid,
    },
    /// E11: the session could not be looked up.
    LookupFailed {
        /// Why.
        text: String,
    },
    /// E12: no worker came in time.
    NoWorker,
    /// E12: the work was queued for so long, and no worker took it.
    NoTaker {
        /// How long it was waited for.
        waited: Duration,
    },
    /// E12: a worker took the work and did not dial back.
    NoCallback {
        /// How long it was waited for.
        waited: Duration,
    },
    /// The function's work queue is full (design 4.5).
    WorkQueueFull,
    /// Too many attachments of this connection (limit L12).
    TooManySessions,
    /// Too many new sessions of this connection in too short a time (limit L12).
    TooManyDispatches {
        /// Seconds until one more is taken, at least 1.
        retry_after: u32,
    },
    /// This core holds as many waiting sessions, or as many bytes, as it may (limit L9).
    Overloaded,
    /// The request's head or trailers are over limit L2 or L3.
    HeadTooLarge,
    /// The worker's head or trailers are: the call fails, its tunnel lives.
    AnswerTooLarge,
    /// The tunnel broke before it gave a response head (design 3.11).
    TunnelLost(
        /// Why, for operators: the client does not see it.
        &'static str,
    ),
    /// Likewise: its server answered HTTP/2 with HTTP/1, so it speaks nothing else.
    ServerSpeaksHttp1,
    /// This gateway takes no new work.
    Draining,
    /// The body of a request with `Upgrade: h2c` is over its limit (contract CL-48).
    BodyTooLarge,
    /// The session's home core cannot take another message now (design 4.5).
    MailboxFull,
}

impl Fault {
    /// The gRPC status code.
    #[must_use]
    pub fn code(&self) -> u8 {
        let code = match self {
            // A refusal with code 0 would read as a success.
            Self::Api { code: 0, .. } => Code::Internal,
            Self::Api { code, .. } => return *code,
            Self::MissingAuthorization | Self::NotBearer => Code::Unauthenticated,
            Self::MissingFunctionId => Code::InvalidArgument,
            // CL-4: what carries no gRPC status is 13, mismatches included.
            Self::NoVersions
            | Self::PublishFailed
            | Self::FunctionMismatch { .. }
            | Self::VersionMismatch { .. }
            | Self::TenantMismatch { .. }
            | Self::LookupFailed { .. } => Code::Internal,
            Self::RateLimited
            | Self::WorkQueueFull
            | Self::TooManySessions
            | Self::TooManyDispatches { .. }
            | Self::Overloaded
            | Self::HeadTooLarge
            | Self::AnswerTooLarge
            | Self::BodyTooLarge => Code::ResourceExhausted,
            Self::SessionNotFound { .. } => Code::NotFound,
            Self::NoWorker | Self::NoTaker { .. } | Self::NoCallback { .. } => {
                Code::DeadlineExceeded
            }
            Self::TunnelLost(_) | Self::ServerSpeaksHttp1 | Self::Draining | Self::MailboxFull => {
                Code::Unavailable
            }
        };
        code as u8
    }

    /// The HTTP status of the answer in plain style.
    #[must_use]
    pub fn http_status(&self) -> u16 {
        match self {
            Self::HeadTooLarge => 431,
            Self::BodyTooLarge => 413,
            _ if self.is_lost_tunnel() => 502,
            Self::AnswerTooLarge => 502,
            _ => grpc::http_status(self.code()),
        }
    }

    /// The HTTP status of the answer in gRPC style: 200, but for what is a fault of the
    /// connection and not of the call (CL-9, CL-41).
    #[must_use]
    pub fn grpc_style_status(&self) -> u16 {
        match self {
            _ if self.is_lost_tunnel() => self.http_status(),
            _ => 200,
        }
    }

    /// Whether it is the tunnel's failure and not our answer (CL-15, CL-41).
    #[must_use]
    pub fn is_lost_tunnel(&self) -> bool {
        matches!(self, Self::TunnelLost(_) | Self::ServerSpeaksHttp1)
    }

    /// Why a tunnel was lost, for operators: the client's text does not say it (CL-41).
    #[must_use]
    pub fn cause(&self) -> Option<&'static str> {
        match self {
            Self::TunnelLost(why) => Some(why),
            Self::ServerSpeaksHttp1 => Some("the server behind the worker speaks HTTP/1 only"),
            _ => None,
        }
    }

    /// Whether the client is told to forget its request id: E7 only, not every code 5.
    #[must_use]
    pub fn clears_cookie(&self) -> bool {
        matches!(self, Self::SessionNotFound { .. })
    }

    /// Seconds after which the client may try again, for what is refused for its rate alone: the
    /// answer's `retry-after` (RFC 9110 §10.2.3), in gRPC's metadata too.
    #[must_use]
    pub fn retry_after(&self) -> Option<u32> {
        match self {
            Self::TooManyDispatches { retry_after } => Some(*retry_after),
            // The control plane does not say how long.
            Self::RateLimited => Some(1),
            // Another gateway can take it now (design 3.25).
            Self::Draining => Some(0),
            _ => None,
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::MissingAuthorization => "MissingAuthorization",
            Self::NotBearer => "NotBearer",
            Self::MissingFunctionId => "MissingFunctionId",
            Self::Api { .. } => "Api",
            Self::NoVersions => "NoVersions",
            Self::RateLimited => "RateLimited",
            Self::PublishFailed => "PublishFailed",
            Self::SessionNotFound { .. } => "SessionNotFound",
            Self::FunctionMismatch { .. } => "FunctionMismatch",
            Self::VersionMismatch { .. } => "VersionMismatch",
            Self::TenantMismatch { .. } => "TenantMismatch",
            Self::LookupFailed { .. } => "LookupFailed",
            Self::NoWorker => "NoWorker",
            Self::NoTaker { .. } => "NoTaker",
            Self::NoCallback { .. } => "NoCallback",
            Self::WorkQueueFull => "WorkQueueFull",
            Self::TooManySessions => "TooManySessions",
            Self::TooManyDispatches { .. } => "TooManyDispatches",
            Self::Overloaded => "Overloaded",
            Self::HeadTooLarge => "HeadTooLarge",
            Self::AnswerTooLarge => "AnswerTooLarge",
            Self::TunnelLost(_) => "TunnelLost",
            Self::ServerSpeaksHttp1 => "ServerSpeaksHttp1",
            Self::Draining => "Draining",
            Self::BodyTooLarge => "BodyTooLarge",
            Self::MailboxFull => "MailboxFull",
        }
    }
}

impl fmt::Display for Fault {
    /// The text of the answer (contract 3.3): contains what clients and operators search for (CL-5).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mismatch = |f: &mut fmt::Formatter<'_>, what: &str, id: &Uuid| {
            write!(f, "{PREFIX}existing session {what} mismatch for request id {id}")
        };
        match self {
            Self::MissingAuthorization => {
                f.write_str("no authorization was passed in the metadata")
            }
            // What operators search for stands here as well.
            Self::NotBearer => f.write_str(
                "no authorization was passed in the metadata: \
                 the field is there, but does not read `Bearer KEY`",
            ),
            Self::MissingFunctionId => f.write_str("no function-id was passed in the metadata"),
            Self::Api { text, .. } | Self::LookupFailed { text } => write!(f, "{PREFIX}{text}"),
            Self::NoVersions => {
                write!(f, "{PREFIX}missing function versions from nvcf api response")
            }
            Self::RateLimited => write!(f, "{PREFIX}exceeded rate limit"),
            Self::PublishFailed => {
                write!(f, "{PREFIX}failed to publish function invocation request to nats")
            }
            Self::SessionNotFound { request_id } => {
                write!(f, "{PREFIX}no existing session found for request id {request_id}")
            }
            Self::FunctionMismatch { request_id } => mismatch(f, "function ID", request_id),
            Self::VersionMismatch { request_id } => mismatch(f, "function version ID", request_id),
            Self::TenantMismatch { request_id } => mismatch(f, "invoker NCA ID", request_id),
            Self::NoWorker => f.write_str(NO_LINK),
            Self::NoTaker { waited } => {
                write!(f, "{NO_LINK}: queued {}, no worker took it", seconds(*waited))
            }
            Self::NoCallback { waited } => write!(
                f,
                "{NO_LINK}: a worker took it, but no callback came within {}",
                seconds(*waited)
            ),
            Self::WorkQueueFull => f.write_str("work queue of this function is full"),
            Self::TooManySessions | Self::TooManyDispatches { .. } => {
                f.write_str("too many sessions on this connection")
            }
            Self::Overloaded => f.write_str("gateway holds as much as it may, try again later"),
            Self::HeadTooLarge => f.write_str("request headers are too large"),
            Self::AnswerTooLarge => f.write_str("response headers are too large"),
            Self::TunnelLost(_) => f.write_str("lost the link to the worker"),
            Self::ServerSpeaksHttp1 => f.write_str(
                "lost the link to the worker: the server behind it speaks HTTP/1 only, \
                 and this call is HTTP/2",
            ),
            Self::Draining => f.write_str("gateway is draining, try again on a new connection"),
            Self::BodyTooLarge => f.write_str("request body is too large for an upgrade to h2c"),
            Self::MailboxFull => f.write_str("gateway is overloaded, try again"),
        }
    }
}

/// A wait for people: `30 s`, `1.5 s`.
fn seconds(time: Duration) -> String {
    let text = format!("{:.1}", time.as_secs_f64());
    format!("{} s", text.strip_suffix(".0").unwrap_or(&text))
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.kind(), self.code())
    }
}

impl std::error::Error for Fault {}
