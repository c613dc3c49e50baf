//! The file that says what is played. Changes of it are followed.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;

/// Everything in the file; all of it may be left out.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Script {
    /// Where the parts listen; read at the start only.
    pub listen: Listen,
    /// The API.
    pub api: Api,
    /// Who may call functions; none: every token may, and is of one account.
    #[serde(rename = "key")]
    pub keys: Vec<Key>,
    /// What there is to call; none: every id is a function, its version the one asked for.
    #[serde(rename = "function")]
    pub functions: Vec<Function>,
    /// The token endpoint.
    pub token: Token,
    /// The rate limiter.
    pub limiter: Limiter,
    /// Who may connect to NATS.
    pub callout: Callout,
}

/// Addresses, `HOST:PORT`; port 0 is any free one.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Listen {
    /// The API.
    pub api: String,
    /// The token endpoint.
    pub token: String,
    /// The rate limiter.
    pub limiter: String,
    /// Counts, and another script.
    pub admin: String,
}

impl Default for Listen {
    fn default() -> Self {
        let free = || "127.0.0.1:0".to_owned();
        Self { api: free(), token: free(), limiter: free(), admin: free() }
    }
}

/// Something other than the usual answer.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Trouble {
    /// A gRPC status number, or an HTTP status of the token endpoint. 0 is the usual answer, late.
    pub status: u16,
    /// The status's text, or the body of the token endpoint's answer.
    pub message: String,
    /// How long the answer takes, in milliseconds; an hour is as good as none.
    pub delay_ms: u64,
    /// How often it happens; always, if it is not said.
    pub times: Option<u32>,
    /// The bytes of the answer's message in hex, in place of the usual ones: gRPC with status 0.
    pub raw: Option<String>,
}

impl Trouble {
    /// Waits as long as the answer is to take.
    pub(crate) async fn wait(&self) {
        if self.delay_ms > 0 {
            tokio::time::sleep(Duration::from_millis(self.delay_ms)).await;
        }
    }
}

/// Whose calls a part takes: any, if nothing is said here.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gate {
    /// These bearer tokens.
    pub bearers: Vec<String>,
    /// And those that the token endpoint has issued for the part's scope, while they live.
    pub issued: bool,
}

/// The API (contract 5.1).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Api {
    /// The proxies that may ask; others get 16 (contract CP-4).
    pub from: Gate,
    /// Before everything else.
    pub trouble: Vec<Trouble>,
    /// What the health service says.
    pub health: Health,
    /// Before that.
    pub health_trouble: Vec<Trouble>,
    /// PEM files, for TLS; read at the start only.
    pub certificate: Option<PathBuf>,
    /// The certificate's key.
    pub key: Option<PathBuf>,
}

/// What the health service says.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Health {
    /// All is well.
    #[default]
    Serving,
    /// The API is not well.
    NotServing,
}

/// Somebody who calls functions.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// Their token.
    pub token: String,
    /// `clientAuthSubject`.
    #[serde(default)]
    pub subject: String,
    /// `clientNcaId`.
    #[serde(default)]
    pub nca: String,
    /// The functions that they may call, else 7; none: all.
    #[serde(default)]
    pub functions: Vec<String>,
    /// With this key.
    #[serde(default)]
    pub trouble: Vec<Trouble>,
}

/// Something to call.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Function {
    /// Its id, a UUID.
    pub id: String,
    /// What may be picked from.
    #[serde(default, rename = "version")]
    pub versions: Vec<Version>,
    /// With this function.
    #[serde(default)]
    pub trouble: Vec<Trouble>,
}

/// A version of a function.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Version {
    /// Its id, a UUID.
    pub id: String,
    /// How work travels.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// Where it runs; unset if it is not said.
    pub backend: Option<Backend>,
    /// `hasRateLimit`.
    pub rate_limit: bool,
    /// `syncCheck`.
    pub sync_check: bool,
}

/// A version's type.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Kind {
    /// JetStream.
    #[default]
    Default,
    /// Requests.
    Streaming,
    /// JetStream.
    Llm,
}

/// A version's backend.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Backend {
    /// Not known.
    Unknown,
    /// GFN.
    Gfn,
}

/// The token endpoint (contract CP-7).
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Token {
    /// How a client says who it is.
    pub wants: Style,
    /// Who may have tokens; none: everybody.
    #[serde(rename = "client")]
    pub clients: Vec<TokenClient>,
    /// How long tokens are good for, in seconds.
    pub expires_in: u64,
    /// Whether the answer says how long.
    pub says_expiry: bool,
    /// Tokens issued under another number are good for nothing any more.
    pub generation: u64,
    /// In place of a token.
    pub trouble: Vec<Trouble>,
}

impl Default for Token {
    fn default() -> Self {
        Self {
            wants: Style::Any,
            clients: Vec::new(),
            expires_in: 3600,
            says_expiry: true,
            generation: 0,
            trouble: Vec::new(),
        }
    }
}

/// How a client of the token endpoint says who it is (RFC 6749 §2.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Style {
    /// The issuer takes Basic authentication only.
    Basic,
    /// In the body only.
    Body,
    /// Either.
    Any,
}

/// Somebody who may have tokens.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenClient {
    /// `client_id`.
    pub id: String,
    /// `client_secret`.
    pub secret: String,
}

/// The rate limiter (contract 5.3).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limiter {
    /// The proxies that may ask; others get 16.
    pub from: Gate,
    /// Before everything else.
    pub trouble: Vec<Trouble>,
    /// The first that fits decides; none: ALLOW.
    #[serde(rename = "rule")]
    pub rules: Vec<Rule>,
}

/// An answer of the limiter; what is not said fits everything.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rule {
    /// The account.
    pub nca: Option<String>,
    /// The function.
    pub function: Option<String>,
    /// The version.
    pub version: Option<String>,
    /// DISALLOW, else ALLOW.
    pub disallow: bool,
    /// How often it decides; always, if it is not said.
    pub times: Option<u32>,
    /// With this rule.
    pub trouble: Vec<Trouble>,
}

/// Who may connect to NATS (contract NT-8); read at the start, but for the answers.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Callout {
    /// The server, with user and password of the server's `auth_users`; none: no responder.
    pub nats: Option<String>,
    /// Seed of the account key that the server's `issuer` names.
    pub issuer_seed: String,
    /// The server's account that who is let in belongs to.
    pub account: String,
    /// The access tokens that are let in; with `issued`, also those of the token endpoint.
    pub from: Gate,
    /// What who is let in may publish; none: everything.
    pub publish: Vec<String>,
    /// What who is let in may subscribe to; none: everything.
    pub subscribe: Vec<String>,
    /// Status 0 is the usual answer, late; any other refuses with the message.
    pub trouble: Vec<Trouble>,
}

/// Why a file cannot be played.
#[derive(Debug)]
pub enum ScriptFault {
    /// The file cannot be read.
    Io(PathBuf, io::Error),
    /// The file has a mistake, which is named with its line.
    Form(PathBuf, String),
}

impl fmt::Display for ScriptFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(path, error) => write!(f, "{}: {error}", path.display()),
            Self::Form(path, error) => write!(f, "{}: {error}", path.display()),
        }
    }
}

impl std::error::Error for ScriptFault {}

/// What tells one state of a file from the next.
type Mark = (u64, u64, i64, i64);

/// The file, read again when it has changed.
pub(crate) struct Follow {
    path: PathBuf,
    state: Mutex<State>,
}

struct State {
    mark: Mark,
    script: Arc<Script>,
    /// How often each trouble has happened since the file was read.
    happened: HashMap<String, u32>,
}

impl Follow {
    pub(crate) fn open(path: PathBuf) -> Result<Self, ScriptFault> {
        let mark = mark(&path).map_err(|error| ScriptFault::Io(path.clone(), error))?;
        let script = Arc::new(read(&path)?);
        let state = Mutex::new(State { mark, script, happened: HashMap::new() });
        Ok(Self { path, state })
    }

    /// The file as it is now. Whoever asks looks at it, so what was written before a call is played
    /// in it. A file that is away, empty or has a mistake is passed over: it is being written.
    pub(crate) fn now(&self) -> Arc<Script> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(mark) = mark(&self.path) else { return state.script.clone() };
        if mark == state.mark || mark.1 == 0 {
            return state.script.clone();
        }
        match read(&self.path) {
            Ok(script) => {
                *state = State { mark, script: Arc::new(script), happened: HashMap::new() };
                tracing::info!("the script was read again");
            }
            Err(fault) => {
                state.mark = mark;
                tracing::warn!(%fault, "the script as it was is played on");
            }
        }
        state.script.clone()
    }

    /// Plays `text` from now on, until the file changes.
    ///
    /// # Errors
    /// What is wrong with it, with its line; then nothing changes.
    pub(crate) fn replace(&self, text: &str) -> Result<(), String> {
        let script = Arc::new(toml::from_str(text).map_err(|error| error.to_string())?);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        *state = State { mark: state.mark, script, happened: HashMap::new() };
        Ok(())
    }

    /// The first of `troubles` with times left; it has happened once more.
    pub(crate) fn trouble(&self, name: &str, troubles: &[Trouble]) -> Option<Trouble> {
        let mut left = troubles.iter().enumerate();
        left.find(|(at, trouble)| self.count(&format!("{name} {at}"), trouble.times))
            .map(|(_, trouble)| trouble.clone())
    }

    /// Whether what may happen so often has times left; then it has happened once more.
    pub(crate) fn count(&self, name: &str, times: Option<u32>) -> bool {
        let Some(times) = times else { return true };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let happened = state.happened.entry(name.to_owned()).or_default();
        let left = *happened < times;
        *happened += u32::from(left);
        left
    }
}

fn mark(path: &std::path::Path) -> io::Result<Mark> {
    let data = std::fs::metadata(path)?;
    Ok((data.ino(), data.len(), data.mtime(), data.mtime_nsec()))
}

fn read(path: &std::path::Path) -> Result<Script, ScriptFault> {
    let text =
        std::fs::read_to_string(path).map_err(|error| ScriptFault::Io(path.to_owned(), error))?;
    toml::from_str(&text).map_err(|error| ScriptFault::Form(path.to_owned(), error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(name: &str, text: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("stand-in-{}-{name}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn a_trouble_happens_as_often_as_it_is_told_and_again_when_the_file_changes() {
        let text =
            "[[key]]\ntoken = 'a'\ntrouble = [{status = 14, times = 2}, {status = 7, times = 1}]\n";
        let path = written("times", text);
        let follow = Follow::open(path.clone()).unwrap();
        let seen = |follow: &Follow| {
            let script = follow.now();
            follow.trouble("key a", &script.keys[0].trouble).map(|trouble| trouble.status)
        };
        let all: Vec<_> = (0..4).map(|_| seen(&follow)).collect();
        assert_eq!(all, [Some(14), Some(14), Some(7), None]);
        std::fs::write(&path, text.replace("14", "13")).unwrap();
        assert_eq!(seen(&follow), Some(13));
        std::fs::remove_file(path).unwrap();
        assert_eq!(seen(&follow), Some(13), "it is away: played on, and counted on");
        assert_eq!(seen(&follow), Some(7));
    }

    #[test]
    fn a_mistake_in_a_changed_file_changes_nothing() {
        let path = written("mistake", "[api]\nhealth = 'SERVING'\n");
        let follow = Follow::open(path.clone()).unwrap();
        for bad in ["", "[api]\nhealth = ", "[apj]\n"] {
            std::fs::write(&path, bad).unwrap();
            assert!(matches!(follow.now().api.health, Health::Serving), "{bad:?}");
        }
        std::fs::write(&path, "[api]\nhealth = 'NOT_SERVING'\n").unwrap();
        assert!(matches!(follow.now().api.health, Health::NotServing));
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn what_takes_the_files_place_is_played_until_the_file_changes() {
        let path = written("place", "[token]\nexpires_in = 1\n");
        let follow = Follow::open(path.clone()).unwrap();
        follow.replace("[token]\nexpires_in = 2\n").unwrap();
        assert_eq!(follow.now().token.expires_in, 2);
        let mistake = follow.replace("[token]\nexpires_in = -1\n").unwrap_err();
        assert!(mistake.contains("line 2"), "{mistake}");
        assert_eq!(follow.now().token.expires_in, 2, "a mistake changes nothing");
        std::fs::write(&path, "[token]\nexpires_in = 33\n").unwrap();
        assert_eq!(follow.now().token.expires_in, 33);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_mistake_at_the_start_is_named() {
        let path = written("start", "[token]\nwants = 'basik'\n");
        let fault = Follow::open(path.clone()).map(|_| ()).unwrap_err().to_string();
        assert!(fault.contains("basik") && fault.contains("line 2"), "{fault}");
        std::fs::remove_file(path).unwrap();
    }
}
