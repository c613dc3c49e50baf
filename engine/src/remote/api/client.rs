//! Asks the API whether a credential may call a function (contract 5.1).

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::super::pb::proxy_client::ProxyClient;
use super::super::pb::{ProxyAuthRequest, ProxyAuthResponse};
use super::answer::{Read, Unusable, read};
use super::bearer::Bearer;
use super::meters::{Meters, Rpc};
use super::repeats::Repeats;
use crate::control::port::{Answer, Call, Denied, Grant};

/// Questions to the API that are out at once.
pub(crate) const CALLS_IN_FLIGHT: usize = 1024;
/// The time for a question, all its attempts together (contract CP-2).
pub(crate) const AUTHORISE_LIMIT: Duration = Duration::from_secs(25);
/// How many attempts a question has, and the pause between them (contract CP-2).
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(100);
/// Says which attempt it is, on all but the first. It is spelt so (contract CP-2).
const ATTEMPT: &str = "x-retry-attempty";
/// Octets of a client's credential and of an id it sends: more is no such thing.
const MOST_CREDENTIAL: usize = 64 * 1024;
const MOST_ID: usize = 256;
/// Octets of an answer, and of the words of a refusal that a client is told.
const MOST_ANSWER: usize = 1 << 20;
/// How the library's own words begin when an answer has more.
const TOO_LONG: &str = "Error, decoded message length too large";
const MOST_WORDS: usize = 1024;

/// Asks the API. All of its copies share one connection and one bound.
#[derive(Clone, Debug)]
pub(crate) struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    rpc: ProxyClient<Channel>,
    bearer: Bearer,
    meters: Arc<Meters>,
    failing: Repeats,
    wrong: Repeats,
}

/// Why an attempt had no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Failure {
    code: Code,
    /// The text for the client.
    words: String,
    /// A longer text for the log, if there is more to say.
    why: Option<String>,
    /// Whether another attempt may succeed.
    again: bool,
}

impl Client {
    pub(super) fn new(channel: Channel, bearer: Bearer, meters: Arc<Meters>) -> Self {
        let rpc = ProxyClient::new(channel).max_decoding_message_size(MOST_ANSWER);
        let (failing, wrong) = (Repeats::default(), Repeats::default());
        Self(Arc::new(Inner { rpc, bearer, meters, failing, wrong }))
    }

    /// Whether a credential may call a function: [`Answer::Granted`], [`Answer::Denied`] with what
    /// the API says, or [`Answer::Full`]. It ends within [`AUTHORISE_LIMIT`].
    pub(crate) async fn authorise(&self, call: &Call) -> Answer {
        self.authorise_by(call, Instant::now() + AUTHORISE_LIMIT).await
    }

    pub(super) async fn authorise_by(&self, call: &Call, deadline: Instant) -> Answer {
        let Some(_asked) = self.0.meters.ask(CALLS_IN_FLIGHT) else { return Answer::Full };
        let request = match request(call) {
            Ok(request) => request,
            Err(denied) => return Answer::Denied(denied),
        };
        let answer = self.0.ask(&request, deadline).await;
        answer.map_or_else(Answer::Denied, Answer::Granted)
    }
}

impl Inner {
    async fn ask(&self, request: &ProxyAuthRequest, deadline: Instant) -> Result<Grant, Denied> {
        let mut attempt = 0;
        let answer = loop {
            match self.attempt(request, attempt, deadline).await {
                Ok(answer) => break answer,
                Err(failure)
                    if failure.again
                        && attempt + 1 < ATTEMPTS
                        && Instant::now() + PAUSE < deadline =>
                {
                    attempt += 1;
                    sleep(PAUSE).await;
                }
                Err(failure) => return Err(self.failed(failure)),
            }
        };
        if self.failing.over() {
            tracing::info!("NVIDIA's API answers again");
        }
        match read(answer, getrandom::u64().unwrap_or_default()) {
            Ok(Read { grant, fault }) => {
                if let Some(why) = fault {
                    self.tell_wrong(&why);
                }
                Ok(grant)
            }
            Err(Unusable(why)) => {
                self.tell_wrong(&why);
                Err(denied(Code::Internal, "the API's answer cannot be used"))
            }
        }
    }

    async fn attempt(
        &self,
        message: &ProxyAuthRequest,
        attempt: u32,
        deadline: Instant,
    ) -> Result<ProxyAuthResponse, Failure> {
        let mut request = Request::new(message.clone());
        if attempt > 0 {
            request.metadata_mut().insert(ATTEMPT, attempt.into());
        }
        let attached = timeout_at(deadline, self.bearer.attach(&mut request)).await;
        attached.map_err(|_| Failure::late())?.map_err(Failure::no_credential)?;
        let timed = self.meters.time(Rpc::Authorise);
        let answer = timeout_at(deadline, self.rpc.clone().auth_stateful_work(request)).await;
        match answer {
            Ok(Ok(answer)) => {
                timed.ended(Code::Ok);
                Ok(answer.into_inner())
            }
            Ok(Err(status)) => {
                let failure = Failure::of(&status);
                timed.ended(failure.code);
                Err(failure)
            }
            Err(_) => {
                timed.ended(Code::DeadlineExceeded);
                Err(Failure::late())
            }
        }
    }

    /// The client's answer after the last attempt.
    fn failed(&self, failure: Failure) -> Denied {
        match failure.code {
            // These codes are answers about a caller (contract CP-4): the API is well, and the
            // session's own line tells of it.
            Code::InvalidArgument
            | Code::NotFound
            | Code::PermissionDenied
            | Code::Unauthenticated => {}
            code => self.tell(code, failure.why.as_deref().unwrap_or(&failure.words)),
        }
        denied(failure.code, &failure.words)
    }

    fn tell(&self, code: Code, why: &str) {
        if let Some(left_out) = self.failing.due(&format!("{code:?} {why}")) {
            tracing::warn!(code = ?code, why, left_out, "NVIDIA's API fails");
        }
    }

    fn tell_wrong(&self, why: &str) {
        if let Some(left_out) = self.wrong.due(why) {
            tracing::warn!(why, left_out, "an answer of NVIDIA's API is wrong");
        }
    }
}

impl Failure {
    fn of(status: &Status) -> Self {
        let (code, message) = (status.code(), status.message());
        // A status with a source was made by the connection, and not by the API.
        let source = std::error::Error::source(status);
        if let Some(source) = source {
            let code = match code {
                // As grpc-go calls what becomes of a connection.
                Code::Unknown | Code::Cancelled => Code::Unavailable,
                code => code,
            };
            let why = causes(message, source);
            return Self::new(code, "the API cannot be reached".into(), Some(why));
        }
        let words = clean(message);
        // This is the error of our own limit. The API's status of that name is an answer like
        // others.
        if code == Code::OutOfRange && message.starts_with(TOO_LONG) {
            let why = Some(words);
            let words = "the API's answer cannot be used".into();
            return Self { code: Code::Internal, words, why, again: false };
        }
        Self::new(code, words, None)
    }

    fn new(code: Code, words: String, why: Option<String>) -> Self {
        // Contract CP-2.
        let again = matches!(code, Code::Aborted | Code::Internal | Code::Unavailable);
        Self { code, words, why, again }
    }

    /// The time for all attempts is over. A core answers its client the same then.
    fn late() -> Self {
        let words = "the authorisation service did not answer in time".into();
        Self { code: Code::Unavailable, words, why: None, again: false }
    }

    /// The gateway has no credential to show. The client cannot change that, so its answer must not
    /// say that its own credential is wrong.
    fn no_credential(why: Arc<str>) -> Self {
        let words = "the gateway has no credential for the API".into();
        Self { code: Code::Unavailable, words, why: Some(why.as_ref().into()), again: false }
    }
}

/// An error with what is behind it, each once.
fn causes(message: &str, source: &dyn std::error::Error) -> String {
    let mut text = clean(message);
    let mut next = Some(source);
    while let Some(error) = next {
        let one = clean(&error.to_string());
        if !text.contains(&one) {
            text = format!("{text}: {one}");
        }
        next = error.source();
    }
    text
}

/// A text of others, cleaned for a header and a log line.
fn clean(words: &str) -> String {
    let mut end = words.len().min(MOST_WORDS);
    while !words.is_char_boundary(end) {
        end -= 1;
    }
    words[..end].replace(char::is_control, " ")
}

/// A refusal in the words of the reference (contract E3), which are those of grpc-go.
fn denied(code: Code, words: &str) -> Denied {
    let name = match code {
        Code::Cancelled => "Canceled".into(),
        code => format!("{code:?}"),
    };
    Denied { code: code as u8, text: format!("rpc error: code = {name} desc = {words}") }
}

/// The request to the API. If it cannot be made: the answer that the API would give.
fn request(call: &Call) -> Result<ProxyAuthRequest, Denied> {
    let text = |octets: &[u8], most: usize, code: Code, what: &str| {
        let why = match std::str::from_utf8(octets) {
            Ok(text) if text.len() <= most => return Ok(text.to_owned()),
            Ok(_) => "is too long",
            Err(_) => "is not UTF-8",
        };
        Err(denied(code, &format!("the {what} {why}")))
    };
    let id = |octets: &[u8], what| text(octets, MOST_ID, Code::InvalidArgument, what);
    let key = text(call.credential(), MOST_CREDENTIAL, Code::Unauthenticated, "credential")?;
    let version = id(call.version(), "function version id")?;
    Ok(ProxyAuthRequest {
        client_authorization_token: key,
        function_id: id(call.function(), "function id")?,
        function_version_id: Some(version).filter(|version| !version.is_empty()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(credential: &[u8], function: &[u8], version: &[u8]) -> Call {
        Call::new(credential, function, version)
    }

    #[test]
    fn no_version_is_unset_and_ids_go_as_they_are() {
        let asked = request(&call(b"key", b"any id", b"")).unwrap();
        assert_eq!((&*asked.function_id, asked.function_version_id), ("any id", None));
        let asked = request(&call(b"key", b"", b"v")).unwrap();
        assert_eq!(asked.function_version_id.as_deref(), Some("v"));
    }

    #[test]
    fn what_no_message_can_hold_is_refused_here() {
        let refused = |call| request(&call).map_err(|denied| (denied.code, denied.text));
        let long = vec![b'x'; MOST_CREDENTIAL + 1];
        for (call, code, what) in [
            (call(b"\xff", b"f", b""), 16, "credential is not UTF-8"),
            (call(&long, b"f", b""), 16, "credential is too long"),
            (call(b"k", b"\xff", b""), 3, "function id is not UTF-8"),
            (call(b"k", &long[..=MOST_ID], b""), 3, "function id is too long"),
            (call(b"k", b"f", b"\xff"), 3, "function version id is not UTF-8"),
        ] {
            let (told, text) = refused(call).unwrap_err();
            assert!(told == code && text.ends_with(what), "{told} {text}");
        }
    }

    #[test]
    fn a_refusal_reads_as_grpc_go_writes_it() {
        let failure = Failure::of(&Status::not_found("no\r\nfunction"));
        assert!(!failure.again);
        let denied = denied(failure.code, &failure.words);
        let text = "rpc error: code = NotFound desc = no  function";
        assert_eq!((denied.code, &*denied.text), (5, text));
        let text = super::denied(Code::Cancelled, &clean(&"é".repeat(2000))).text;
        assert!(text.starts_with("rpc error: code = Canceled desc = éé"), "{text}");
        assert_eq!(text.matches('é').count(), MOST_WORDS / 2);
    }

    #[test]
    fn an_answer_beyond_our_limit_is_no_answer_of_the_api() {
        let of = |words| {
            let failure = Failure::of(&Status::out_of_range(words));
            (failure.code, failure.again)
        };
        assert_eq!(of("decoded message length too large"), (Code::OutOfRange, false));
        let ours = "Error, decoded message length too large: found 2 bytes, the limit is: 1 bytes";
        assert_eq!(of(ours), (Code::Internal, false));
    }

    #[test]
    fn three_codes_are_asked_again() {
        let again: Vec<i32> = (1..=16)
            .filter(|code| Failure::of(&Status::new(Code::from_i32(*code), "x")).again)
            .collect();
        assert_eq!(again, [10, 13, 14]);
    }

    #[test]
    fn what_became_of_the_connection_is_for_the_log() {
        let status = Status::from_error(Box::new(std::io::Error::other("10.0.0.1 refused")));
        let failure = Failure::of(&status);
        assert_eq!((failure.code, failure.again), (Code::Unavailable, true));
        assert!(!failure.words.contains("10.0.0.1"), "{failure:?}");
        assert!(failure.why.unwrap().contains("10.0.0.1"));
    }
}
