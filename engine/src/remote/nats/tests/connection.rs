//! How the plane comes to a server, and leaves it.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::FutureExt;
use rustix::process::{Pid, Signal};

use super::*;
use crate::config::NkeySource;

/// A folder that is gone with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("ringway-nats-{}", fresh()));
        std::fs::create_dir(&folder).unwrap();
        Self(folder)
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// A certificate that signs itself, and its key.
    fn pair(&self, name: &str) -> (PathBuf, PathBuf) {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".into()]).unwrap();
        let certificate = self.file(&format!("{name}.pem"), &made.cert.pem());
        (certificate, self.file(&format!("{name}.key"), &made.signing_key.serialize_pem()))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _already_gone = std::fs::remove_dir_all(&self.0);
    }
}

/// Sends a signal to the process that a file names.
fn signal(file: &Path, signal: Signal) {
    let pid: i32 = std::fs::read_to_string(file).unwrap().trim().parse().unwrap();
    rustix::process::kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// Lets the process that a file names stand still.
async fn stop(file: &Path) {
    signal(file, Signal::STOP);
    // Its threads do not stop all at once.
    tokio::time::sleep(Duration::from_millis(300)).await;
}

async fn start(settings: &Remote) -> Nats {
    begin(settings, Secrets::default()).await.unwrap()
}

#[tokio::test]
async fn it_starts_without_a_server_and_serves_when_one_comes() {
    let mut server = Server::start();
    server.stop();
    let nats = start(&remote(&[server.url()])).await;
    let why = down(&nats, "refused").await;
    assert!(why.contains("127.0.0.1:"), "{why} does not say where");
    unqueued(nats.submit(ticket(1), &work(WorkKind::New, fresh())).await, "refused");
    assert_eq!(metric(&nats, "nats_disconnect_total"), 0);
    server.again();
    up(&nats).await;
    let client = async_nats::connect(server.url()).await.unwrap();
    request_stream(&client, |_| {}).await;
    let asked = work(WorkKind::New, fresh());
    assert_eq!(nats.submit(ticket(2), &asked).await, Answer::Queued);
    assert_eq!(metric(&nats, "nats_reconnect_total"), 0);
    // The work that was refused meanwhile was not kept by anybody.
    let jetstream = async_nats::jetstream::new(client);
    let stream = jetstream.get_stream(format!("rq_{REGION}_{VERSION}")).await.unwrap();
    assert_eq!(stream.cached_info().state.messages, 1);
}

#[tokio::test]
async fn an_nkey_opens_the_server() {
    let (mine, other) = (nkeys::KeyPair::new_user(), nkeys::KeyPair::new_user());
    let users = format!("authorization {{ users: [ {{ nkey: {} }} ] }}", mine.public_key());
    let server = Server::with(&users);
    let folder = Folder::new();
    let file = folder.file("seed", &format!("{}\n", mine.seed().unwrap()));
    let mut settings = remote(&[server.url()]);
    // By the secrets file, by a file of its own, and as it is.
    let secrets = Secrets { nkey: Some(mine.seed().unwrap()), token: None };
    up(&begin(&settings, secrets).await.unwrap()).await;
    settings.nats.nkey = Some(NkeySource::File(file));
    up(&start(&settings).await).await;
    settings.nats.nkey = Some(NkeySource::Seed(mine.seed().unwrap().as_str().into()));
    up(&start(&settings).await).await;

    settings.nats.nkey = Some(NkeySource::Seed(other.seed().unwrap().as_str().into()));
    let refused = start(&settings).await;
    down(&refused, "authorization violation").await;
    assert!(metric(&refused, "nats_failure_total{reason=\"authentication\"}") > 0);
    settings.nats.nkey = Some(NkeySource::Seed("SUNOTONE".into()));
    let error = begin(&settings, Secrets::default()).await.unwrap_err().to_string();
    assert!(error.contains("NATS_PRIVATE_NKEY") && !error.contains("SUNOTONE"), "{error}");
}

#[tokio::test]
async fn a_password_opens_the_server() {
    let server = Server::with("authorization { user: me, password: \"p@ss/w+rd\" }");
    let folder = Folder::new();
    let mut settings = remote(&[server.url()]);
    let password = folder.file("password", "p@ss/w+rd\n");
    settings.nats.user = Some(("me".into(), password));
    up(&start(&settings).await).await;
    let url = server.url().replace("nats://", "nats://me:p%40ss%2Fw+rd@");
    up(&start(&remote(&[url])).await).await;
    down(&start(&remote(&[server.url()])).await, "authorization violation").await;
}

#[tokio::test]
async fn the_auth_callout_is_shown_a_token_of_each_connection() {
    // base64url of {"account":"Worker","pluginName":"ssa","payload":"t-2"}
    const SECOND: &str =
        "eyJhY2NvdW50IjoiV29ya2VyIiwicGx1Z2luTmFtZSI6InNzYSIsInBheWxvYWQiOiJ0LTIifQ";
    let server = Server::with(&format!("authorization {{ token: \"{SECOND}\" }}"));
    let mut settings = remote(&[server.url()]);
    settings.nats.callout = true;
    let fetched = Arc::new(AtomicU64::new(0));
    let of_source = fetched.clone();
    let source = move || {
        let count = of_source.fetch_add(1, Ordering::Relaxed);
        let token = match count {
            0 => Err(Arc::from("the issuer is not there")),
            count => Ok(format!("t-{count}")),
        };
        std::future::ready(token).boxed()
    };
    let secrets = Secrets { nkey: None, token: Some(Arc::new(source)) };
    let nats = begin(&settings, secrets).await.unwrap();
    up(&nats).await;
    // An empty one and the first one were refused.
    assert_eq!(fetched.load(Ordering::Relaxed), 3);
    assert_eq!(metric(&nats, "nats_failure_total{reason=\"authentication\"}"), 2);
}

#[tokio::test]
async fn tls_is_checked_by_both_sides() {
    let folder = Folder::new();
    let ((certificate, key), pair) = (folder.pair("server"), folder.pair("client"));
    let tls = format!(
        "tls {{ cert_file: {certificate:?}, key_file: {key:?}, ca_file: {:?}, verify: true }}",
        pair.0
    );
    let server = Server::with(&tls);
    let mut settings = remote(&[server.url()]);
    settings.nats.client_pair = Some(pair.clone());
    settings.nats.ca = Some(certificate);
    up(&start(&settings).await).await;
    settings.nats.ca = Some(pair.0);
    let unknown = start(&settings).await;
    down(&unknown, "certificate").await;
    assert!(metric(&unknown, "nats_failure_total{reason=\"tls_verification\"}") > 0);
    settings.nats.ca = Some(folder.0.join("none.pem"));
    let error = begin(&settings, Secrets::default()).await.unwrap_err().to_string();
    assert!(error.contains("none.pem"), "{error}");
}

#[tokio::test]
async fn a_server_that_leaves_is_left() {
    let folder = Folder::new();
    let pid = folder.0.join("pid");
    let server = Server::with(&format!(
        "pid_file: {pid:?}\nlame_duck_duration: \"60s\"\nlame_duck_grace_period: \"30s\""
    ));
    let (nats, _) = plane(&server).await;
    signal(&pid, Signal::USR2);
    until("it is counted", || async { metric(&nats, "nats_lame_duck_total") == 1 }).await;
    // The server itself would wait for half a minute.
    let mut health = nats.health();
    let left = health.wait_for(|state| matches!(state, State::Down { .. }));
    timeout(Duration::from_secs(12), left).await.expect("it is left within 10 s").unwrap();
    assert_eq!(metric(&nats, "nats_lame_duck_total"), 1);
}

#[tokio::test]
async fn a_server_that_stands_still_is_not_waited_for() {
    let folder = Folder::new();
    let pid = folder.0.join("pid");
    let server = Server::with(&format!("pid_file: {pid:?}"));
    let (nats, client) = plane(&server).await;
    request_stream(&client, |_| {}).await;
    stop(&pid).await;
    let (begun, asked) = (Instant::now(), work(WorkKind::New, fresh()));
    let (submitted, looked) = tokio::join!(nats.submit(ticket(1), &asked), nats.lookup(fresh()));
    let took = begun.elapsed();
    signal(&pid, Signal::CONT);
    unqueued(submitted, "no answer came within 5 s");
    let Answer::Failed(why) = looked else { panic!("nobody has said so: {looked:?}") };
    assert!(why.contains("timed out") || why.contains("within 5 s"), "{why}");
    assert!(took >= Duration::from_millis(4900) && took < Duration::from_secs(7), "{took:?}");
    assert_eq!(nats.submit(ticket(2), &work(WorkKind::New, fresh())).await, Answer::Queued);
}

#[tokio::test]
async fn what_was_lost_on_its_way_is_published_again() {
    let folder = Folder::new();
    let pid = folder.0.join("pid");
    let mut server = Server::with(&format!("pid_file: {pid:?}"));
    let (nats, client) = plane(&server).await;
    request_stream(&client, |config| config.storage = StorageType::File).await;
    stop(&pid).await;
    let id = fresh();
    let submitted = {
        let (nats, asked) = (nats.clone(), work(WorkKind::New, id));
        tokio::spawn(async move { nats.submit(ticket(1), &asked).await })
    };
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!submitted.is_finished());
    server.stop();
    server.again();
    assert_eq!(timeout(SOON, submitted).await.expect("it ends").unwrap(), Answer::Queued);
    let client = async_nats::connect(server.url()).await.unwrap();
    let jetstream = async_nats::jetstream::new(client);
    let stream = jetstream.get_stream(format!("rq_{REGION}_{VERSION}")).await.unwrap();
    is_work(&stream.get_raw_message(1).await.unwrap().payload, id);
}

#[tokio::test]
async fn an_end_does_not_wait_for_nats() {
    const LIMIT: Duration = Duration::from_secs(1);
    let mut server = Server::start();
    let (nats, client) = plane(&server).await;
    request_stream(&client, |_| {}).await;
    let asked = work(WorkKind::New, fresh());
    assert_eq!(nats.submit(ticket(1), &asked).await, Answer::Queued);
    server.stop();
    down(&nats, "").await;
    let begun = Instant::now();
    nats.shutdown(LIMIT).await;
    assert!(begun.elapsed() < LIMIT + AT_ONCE, "{:?}", begun.elapsed());
}
