//! What a session leaves in the log of a running gateway, and what it must not leave there.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its parts too")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ringway::demo::pb::EchoMessage;
use ringway::demo::pb::echo_client::EchoClient;
use serde_json::Value;
use tonic::Request;
use tonic::transport::Endpoint;

const F: &str = "11111111-1111-4111-8111-111111111111";

async fn call(client: &str, key: &'static str) -> Result<(), tonic::Status> {
    let channel = Endpoint::new(format!("http://{client}")).unwrap().connect().await.unwrap();
    let mut request = Request::new(EchoMessage::default());
    request.metadata_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
    request.metadata_mut().insert("function-id", F.parse().unwrap());
    EchoClient::new(channel).unary(request).await.map(|_| ())
}

fn refused_connect(worker: &str) {
    let mut stream = TcpStream::connect(worker).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let head = format!(
        "CONNECT /v1/proxy HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nX-Request-Id: {F}\r\n\r\n",
        "guessed-token".repeat(5)
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 403");
}

fn wait_for_no_sessions(admin: &str) {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        let mut stream = TcpStream::connect(admin).unwrap();
        stream
            .write_all(b"GET /sessions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (all, closed) = ("\"state\":\"", "\"state\":\"closed\"");
        if answer.matches(all).count() == answer.matches(closed).count() {
            return;
        }
        assert!(Instant::now() < until, "{answer}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[tokio::test]
async fn the_edges_of_a_session_are_logged_and_no_secret_is() {
    let free = "127.0.0.1:0";
    let mut child = Command::new(env!("CARGO_BIN_EXE_ringway"))
        .args(["dev", "--cores", "1", "--client", free, "--worker", free, "--admin", free])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    let address = |key: &str| {
        ready.split_whitespace().find_map(|word| word.strip_prefix(key)).unwrap().to_owned()
    };
    call(&address("client="), "dev-key").await.unwrap();
    call(&address("client="), "wrong-key").await.unwrap_err();
    refused_connect(&address("worker="));
    // The connections' ends have to be noticed before the drain ends everything.
    wait_for_no_sessions(&address("admin="));
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    let mut log = String::new();
    child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));

    for secret in ["dev-key", "wrong-key", "dev-worker-key", "guessed-token"] {
        assert!(!log.contains(secret), "{secret} in {log}");
    }
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let line = |message: &str| {
        let found = lines.iter().find(|line| line["message"] == message);
        found.unwrap_or_else(|| panic!("no line says {message:?}: {log}"))
    };
    let begun = line("registering new worker connection");
    let ended = line("worker connection cache eviction triggered");
    assert_eq!(begun["request_id"], ended["request_id"]);
    assert_eq!((&begun["function_id"], &begun["shard"]), (&F.into(), &ended["shard"]));
    assert_eq!(ended["eviction_reason"], "client_closed");
    for key in ["held_for", "opened_at", "closed_at", "close_code", "close_detail"] {
        assert!(!ended[key].is_null(), "{key} in {ended}");
    }
    assert_eq!((&ended["closed_by_peer"], &ended["local_timeout"]), (&false.into(), &"".into()));
    line("triggering worker connection shutdown from client close");
    line("closing worker connection");
    let refused = line("failed to open stateful work request");
    assert_eq!((&refused["level"], &refused["grpc_status"]), (&"WARN".into(), &16.into()));
    let text = "failed to open stateful work request: the credential is not known";
    assert_eq!((&refused["error"], &refused["function_id"]), (&text.into(), &F.into()));
    assert!(refused["client"].as_str().unwrap().starts_with("127.0.0.1:"), "{refused}");
    assert_eq!((&refused["function_version_id"], &refused["tenant"]), (&"".into(), &"".into()));
    let rejected = line("rejecting worker CONNECT");
    assert_eq!(rejected["connect_result"], "rejected_token_unknown");
}
