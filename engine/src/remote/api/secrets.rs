//! The secrets file (contract 5.2), which others write while this gateway runs: rewritten in place,
//! renamed over, its symlink turned, gone for a while, half written.
//!
//! The file is read when something happens in its folder, and once a second in any case, because
//! some file systems report nothing. Values that cannot be used change nothing, and the log says so
//! once.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use serde_json::{Map, Value};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};

use super::meters::Meters;

/// How often the file is read in any case, so that a change counts within two seconds.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The pause between an event and reading the file, because a write is seldom one event.
const SETTLE: Duration = Duration::from_millis(50);
/// Most octets of the file, and of one token: a longer one is no credential.
const MOST_OCTETS: u64 = 1 << 20;
pub(super) const MOST_TOKEN: usize = 16 * 1024;

/// A secret. It is shown by [`Token::text`] only.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Token(Arc<str>);

impl Token {
    /// The secret itself.
    #[must_use]
    pub(crate) fn text(&self) -> &str {
        &self.0
    }

    /// A token, if the text can be the value of a header.
    ///
    /// # Errors
    /// What is wrong with the text, without showing any of it.
    pub(crate) fn new(text: &str) -> Result<Self, &'static str> {
        match text.trim_ascii() {
            "" => Err("is empty"),
            text if text.len() > MOST_TOKEN => Err("is longer than 16384 octets"),
            text if !text.bytes().all(|b| matches!(b, b' '..=b'~')) => {
                Err("has characters that are not printable ASCII")
            }
            text => Ok(Self(text.into())),
        }
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// The values of the file; none for each that it lacks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SecretValues {
    /// `nvcfApiToken`: shown to the API.
    pub(crate) api_token: Option<Token>,
    /// `ratelimiterToken`: shown to the rate limiter.
    pub(crate) limiter_token: Option<Token>,
    /// `id`: this gateway's name as a client of OAuth2.
    pub(crate) id: Option<Token>,
    /// `secret`: its password there.
    pub(crate) secret: Option<Token>,
    /// `natsPrivateNKey`: an NKey's seed.
    pub(crate) nats_nkey: Option<Token>,
    /// `tracingAccessToken`: shown to the collector of traces.
    pub(crate) tracing_token: Option<Token>,
}

impl SecretValues {
    /// Name and password as a client of OAuth2, if both are there. The placeholders that NVIDIA's
    /// chart writes count as missing.
    pub(crate) fn client(&self) -> Option<(Token, Token)> {
        let (id, secret) = (self.id.clone()?, self.secret.clone()?);
        (id.text() != "no-id" && secret.text() != "no-secret").then_some((id, secret))
    }

    /// The values of a file. A key that is wrong, or gone, keeps its old value.
    ///
    /// # Errors
    /// The file is no JSON object. (Problems with single keys are returned beside the values.)
    fn parse(file: &[u8], old: &Self) -> Result<(Self, Vec<String>), String> {
        let object: Map<String, Value> = serde_json::from_slice(file).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            format!("it is no whole JSON object (line {line}, column {column})")
        })?;
        let mut faults = Vec::new();
        let mut of = |key: &str, old: &Option<Token>| match token(object.get(key)) {
            Ok(Some(token)) => Some(token),
            Ok(None) => {
                if old.is_some() {
                    faults.push(format!("{key} is gone"));
                }
                old.clone()
            }
            Err(what) => {
                faults.push(format!("{key} {what}"));
                old.clone()
            }
        };
        let values = Self {
            api_token: of("nvcfApiToken", &old.api_token),
            limiter_token: of("ratelimiterToken", &old.limiter_token),
            id: of("id", &old.id),
            secret: of("secret", &old.secret),
            nats_nkey: of("natsPrivateNKey", &old.nats_nkey),
            tracing_token: of("tracingAccessToken", &old.tracing_token),
        };
        Ok((values, faults))
    }
}

fn token(value: Option<&Value>) -> Result<Option<Token>, &'static str> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.trim_ascii().is_empty() => Ok(None),
        Some(Value::String(text)) => Token::new(text).map(Some),
        Some(_) => Err("is no string"),
    }
}

/// Reads the file, and follows it from then on. The file need not exist yet. Without a path there
/// are no secrets, and nothing ever changes.
pub(crate) fn watch(
    path: Option<PathBuf>,
    meters: Arc<Meters>,
) -> watch::Receiver<Arc<SecretValues>> {
    let (sender, receiver) = watch::channel(Arc::default());
    if let Some(path) = path {
        let mut file = File { path, values: Arc::default(), seen: None, told: None, meters };
        let read = read(&file.path);
        if file.take(read) {
            sender.send_replace(file.values.clone());
        }
        tokio::spawn(follow(file, sender));
    }
    receiver
}

/// The file's values now, and what is wrong with single keys.
///
/// # Errors
/// The file cannot be used at all.
pub(crate) fn look(path: &Path) -> Result<(SecretValues, Vec<String>), String> {
    SecretValues::parse(&read(path)?, &SecretValues::default())
}

/// The file, as it was last read.
#[derive(Debug)]
struct File {
    path: PathBuf,
    values: Arc<SecretValues>,
    /// What was wrong with the file at the last look, and what the log has said of it.
    seen: Option<String>,
    told: Option<String>,
    meters: Arc<Meters>,
}

impl File {
    /// Takes up what was read. True if there are new values.
    fn take(&mut self, read: Result<Vec<u8>, String>) -> bool {
        let (values, fault) = match read.and_then(|file| SecretValues::parse(&file, &self.values)) {
            Ok((values, faults)) => (Some(values), faults.join(", ")),
            Err(fault) => (None, fault),
        };
        self.meters.secrets_read(fault.is_empty());
        self.note(Some(fault).filter(|fault| !fault.is_empty()));
        match values {
            Some(values) if values != *self.values => {
                tracing::info!(file = %self.path.display(), "secrets were read");
                self.values = Arc::new(values);
                true
            }
            _ => false,
        }
    }

    /// Logs a fault once two looks have found it, because a file that is being written is
    /// incomplete for a moment.
    fn note(&mut self, fault: Option<String>) {
        let file = self.path.display();
        match &fault {
            Some(why) if fault == self.seen && fault != self.told => {
                tracing::warn!(%file, why, "the secrets file cannot be used: what was known stays");
                self.told.clone_from(&fault);
            }
            Some(_) => {}
            None if self.told.take().is_some() => {
                tracing::info!(%file, "the secrets file can be used again");
            }
            None => {}
        }
        self.seen = fault;
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let why = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => "there is none".into(),
        ErrorKind::PermissionDenied => "it may not be read: look at its owner and mode".into(),
        _ => error.to_string(),
    };
    // Opening a pipe without a writer would block.
    let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(why)?;
    if !file.metadata().map_err(why)?.is_file() {
        return Err("it is no regular file".into());
    }
    let mut octets = Vec::new();
    file.take(MOST_OCTETS + 1).read_to_end(&mut octets).map_err(why)?;
    if octets.len() as u64 > MOST_OCTETS {
        return Err(format!("it is larger than {MOST_OCTETS} octets"));
    }
    Ok(octets)
}

/// Reads the file again and again, until nobody wants to know.
async fn follow(mut file: File, sender: watch::Sender<Arc<SecretValues>>) {
    let heard = Arc::new(Notify::new());
    let mut folder = Folder::new(&file.path, heard.clone());
    let mut look = interval_at(Instant::now() + LOOK_EVERY, LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = sender.closed() => return,
            () = heard.notified() => sleep(SETTLE).await,
            _ = look.tick() => {}
        }
        let path = file.path.clone();
        // A network file system may be slow, and other calls must not wait for it.
        let looked = tokio::task::spawn_blocking(move || {
            folder.listen();
            (read(&path), folder)
        });
        let Ok((read, same)) = looked.await else {
            tracing::error!(file = %file.path.display(), "the secrets file is not watched any more");
            return;
        };
        folder = same;
        if file.take(read) {
            sender.send_replace(file.values.clone());
        }
    }
}

/// The folder of the file: whatever happens in it is heard.
#[derive(Debug)]
struct Folder {
    path: PathBuf,
    heard: Arc<Notify>,
    /// The watcher, and the folder that it watches: another folder may have replaced it.
    listens: Option<(RecommendedWatcher, (u64, u64))>,
}

impl Folder {
    fn new(file: &Path, heard: Arc<Notify>) -> Self {
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
        Self { path: folder.unwrap_or(Path::new(".")).into(), heard, listens: None }
    }

    /// Listens to the folder that is there now.
    fn listen(&mut self) {
        let is = std::fs::metadata(&self.path).ok().map(|is| (is.dev(), is.ino()));
        if self.listens.as_ref().map(|(_, id)| *id) == is {
            return;
        }
        self.listens = None;
        let heard = self.heard.clone();
        let told = move |event: notify::Result<notify::Event>| {
            // Our own reading is heard as well.
            let written = EventKind::Access(AccessKind::Close(AccessMode::Write));
            let reading = |kind: EventKind| kind.is_access() && kind != written;
            if !event.is_ok_and(|event| reading(event.kind)) {
                heard.notify_one();
            }
        };
        let Some(is) = is else { return };
        // Without a watcher the file is still read once a second.
        if let Ok(mut watcher) = notify::recommended_watcher(told)
            && watcher.watch(&self.path, RecursiveMode::NonRecursive).is_ok()
        {
            self.listens = Some((watcher, is));
            // A change before now counts as an event.
            self.heard.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// A folder that is gone at the end.
    struct Dir(PathBuf);

    impl Dir {
        fn new() -> Self {
            let dir =
                std::env::temp_dir().join(format!("ringway-{:016x}", getrandom::u64().unwrap()));
            fs::create_dir(&dir).unwrap();
            Self(dir)
        }

        fn file(&self) -> PathBuf {
            self.0.join("secrets.json")
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn json(token: &str) -> String {
        format!("{{\"nvcfApiToken\": \"{token}\", \"other\": [1]}}")
    }

    fn api(values: &SecretValues) -> Option<&str> {
        values.api_token.as_ref().map(Token::text)
    }

    /// Waits until the token is this one. The limit is for a test that fails: how long it takes is
    /// the machine's.
    async fn becomes(secrets: &mut watch::Receiver<Arc<SecretValues>>, token: &str) {
        let wait = secrets.wait_for(|values| api(values) == Some(token));
        let came = tokio::time::timeout(Duration::from_secs(20), wait).await.is_ok();
        assert!(came, "no {token}: {:?}", api(&secrets.borrow()));
    }

    #[tokio::test]
    async fn a_new_token_is_seen_however_it_is_written() {
        let dir = Dir::new();
        let file = dir.file();
        fs::write(&file, json("first")).unwrap();
        let meters = Arc::new(Meters::default());
        let mut secrets = watch(Some(file.clone()), meters);
        assert_eq!(api(&secrets.borrow()), Some("first"), "it was read before anybody asks");
        fs::write(&file, json("in place")).unwrap();
        becomes(&mut secrets, "in place").await;
        let other = dir.0.join("other");
        fs::write(&other, json("renamed")).unwrap();
        fs::rename(&other, &file).unwrap();
        becomes(&mut secrets, "renamed").await;
        fs::remove_file(&file).unwrap();
        sleep(SETTLE * 4).await;
        assert_eq!(api(&secrets.borrow()), Some("renamed"), "what was known stays");
        fs::write(&file, json("returned")).unwrap();
        becomes(&mut secrets, "returned").await;
        let whole = json("half written");
        fs::write(&file, &whole[..whole.len() - 9]).unwrap();
        sleep(SETTLE * 4).await;
        assert_eq!(api(&secrets.borrow()), Some("returned"));
        fs::write(&file, whole).unwrap();
        becomes(&mut secrets, "half written").await;
        fs::write(&other, json("no mode")).unwrap();
        fs::set_permissions(&other, fs::Permissions::from_mode(0o0)).unwrap();
        fs::rename(&other, &file).unwrap();
        sleep(SETTLE * 4).await;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        becomes(&mut secrets, "no mode").await;
    }

    #[tokio::test]
    async fn a_symlink_may_turn_and_its_folder_may_be_another_one() {
        let dir = Dir::new();
        // As Kubernetes mounts a secret.
        let mounted = dir.0.join("mounted");
        fs::create_dir(&mounted).unwrap();
        for (folder, token) in [("..1", "one"), ("..2", "two")] {
            fs::create_dir(mounted.join(folder)).unwrap();
            fs::write(mounted.join(folder).join("secrets.json"), json(token)).unwrap();
        }
        symlink("..1", mounted.join("..data")).unwrap();
        let file = mounted.join("secrets.json");
        symlink("..data/secrets.json", &file).unwrap();
        let mut secrets = watch(Some(file.clone()), Arc::default());
        assert_eq!(api(&secrets.borrow()), Some("one"));
        symlink("..2", mounted.join("..data_tmp")).unwrap();
        fs::rename(mounted.join("..data_tmp"), mounted.join("..data")).unwrap();
        becomes(&mut secrets, "two").await;
        fs::remove_dir_all(&mounted).unwrap();
        fs::create_dir(&mounted).unwrap();
        fs::write(&file, json("another folder")).unwrap();
        becomes(&mut secrets, "another folder").await;
        fs::write(&file, json("and listened to")).unwrap();
        becomes(&mut secrets, "and listened to").await;
    }

    #[tokio::test]
    async fn it_need_not_be_there_at_the_start() {
        let dir = Dir::new();
        let file = dir.0.join("later").join("secrets.json");
        let mut secrets = watch(Some(file.clone()), Arc::default());
        assert_eq!(**secrets.borrow(), SecretValues::default());
        fs::create_dir(dir.0.join("later")).unwrap();
        fs::write(&file, json("late")).unwrap();
        becomes(&mut secrets, "late").await;
    }

    #[tokio::test]
    async fn what_is_no_file_is_no_secret_and_holds_nobody() {
        let dir = Dir::new();
        assert_eq!(read(&dir.0), Err("it is no regular file".into()));
        assert_eq!(read(&dir.file()), Err("there is none".into()));
        let made = std::process::Command::new("mkfifo").arg(dir.file()).status().unwrap();
        assert!(made.success());
        assert_eq!(read(&dir.file()), Err("it is no regular file".into()));
        fs::remove_file(dir.file()).unwrap();
        fs::write(dir.file(), vec![b' '; MOST_OCTETS as usize + 1]).unwrap();
        assert!(read(&dir.file()).unwrap_err().contains("larger"));
    }

    #[test]
    fn wrong_keys_keep_what_they_were_and_are_named_without_their_text() {
        let old = SecretValues::parse(
            br#"{"nvcfApiToken":" a\n","ratelimiterToken":"b","id":"c","secret":"d",
                "natsPrivateNKey":"e","tracingAccessToken":"f"}"#,
            &SecretValues::default(),
        );
        let (old, faults) = old.unwrap();
        assert!(faults.is_empty() && api(&old) == Some("a"), "{faults:?}");
        assert!(!format!("{old:?}").contains("\"a\""), "{old:?}");
        let long = "x".repeat(MOST_TOKEN + 1);
        let file = format!(
            "{{\"nvcfApiToken\":7,\"ratelimiterToken\":\"{long}\",\"id\":null,\"secret\":\"\",\
              \"natsPrivateNKey\":\"n\\u0000n\",\"tracingAccessToken\":\"new\"}}"
        );
        let (values, faults) = SecretValues::parse(file.as_bytes(), &old).unwrap();
        let told = faults.join(", ");
        for fault in [
            "nvcfApiToken is no string",
            "ratelimiterToken is longer",
            "id is gone",
            "secret is gone",
        ] {
            assert!(told.contains(fault), "{told}");
        }
        assert!(told.contains("natsPrivateNKey has characters") && !told.contains("xx"), "{told}");
        assert_eq!(values.tracing_token.as_ref().map(Token::text), Some("new"));
        assert_eq!(SecretValues { tracing_token: old.tracing_token.clone(), ..values }, old);
        for bad in ["", "[]", "{\"nvcfApiToken\":\"secret", "nothing", "{\"a\":\"\u{0}\"}"] {
            let why = SecretValues::parse(bad.as_bytes(), &old).unwrap_err();
            assert!(why.contains("no whole JSON object") && !why.contains("secret"), "{why}");
        }
        assert!(SecretValues::parse(b"{\"nvcfApiToken\":\"\xff\"}", &old).is_err());
    }

    #[test]
    fn the_charts_dummies_are_no_client() {
        let values = |id: &str, secret: &str| SecretValues {
            id: Token::new(id).ok(),
            secret: Token::new(secret).ok(),
            ..SecretValues::default()
        };
        assert_eq!(values("no-id", "no-secret").client(), None);
        assert_eq!(values("a", "").client(), None);
        assert!(values("a", "b").client().is_some());
    }

    #[test]
    fn a_fault_is_told_once_when_two_looks_have_found_it() {
        let mut file = File {
            path: "x".into(),
            values: Arc::default(),
            seen: None,
            told: None,
            meters: Arc::default(),
        };
        let told = |file: &File| file.told.clone();
        assert!(!file.take(Err("gone".into())));
        assert_eq!(told(&file), None);
        assert!(file.take(Ok(json("a").into())));
        assert!(!file.take(Err("gone".into())));
        assert_eq!(told(&file), None, "it was there between");
        assert!(!file.take(Err("gone".into())));
        assert_eq!(told(&file), Some("gone".into()));
        assert!(!file.take(Ok(json("a").into())), "nothing is new");
        assert_eq!(told(&file), None);
        assert_eq!(api(&file.values), Some("a"));
    }
}
