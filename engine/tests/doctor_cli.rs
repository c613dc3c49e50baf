//! `ringway doctor` as it is called: its lines, its JSON, its exit code.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its parts too")]

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Output};

fn doctor(arguments: &[&str]) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringway"));
    let Output { status, stdout, stderr } = command.arg("doctor").args(arguments).output().unwrap();
    assert!(stderr.is_empty(), "{}", String::from_utf8_lossy(&stderr));
    (status.code().unwrap(), String::from_utf8(stdout).unwrap())
}

/// A configuration of this test's own, with these listeners.
fn file(name: &str, client: &str, more: &str) -> PathBuf {
    let text = format!(
        "[listen]\nclient = \"{client}\"\nworker = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n{more}\n"
    );
    let path = std::env::temp_dir().join(format!("ringway-{}-{name}.toml", std::process::id()));
    std::fs::write(&path, text).unwrap();
    path
}

const PARTIES: &str = r#"
[[tenant]]
name = "t"
client_keys = ["c"]
[[function]]
id = "11111111-1111-4111-8111-111111111111"
version = "22222222-2222-4222-8222-222222222222"
tenants = ["t"]
worker_keys = ["w"]
"#;

#[test]
fn a_host_that_can_serve_ends_with_0_and_json_has_the_four_fields() {
    let path = file("good", "127.0.0.1:0", PARTIES);
    let path = path.to_str().unwrap();
    let (code, text) = doctor(&["--config", path]);
    assert_eq!(code, 0, "{text}");
    let (code, json) = doctor(&["--config", path, "--json"]);
    assert_eq!(code, 0, "{json}");
    let checks: serde_json::Value = serde_json::from_str(&json).unwrap();
    let checks = checks.as_array().unwrap();
    assert_eq!(checks.len(), text.lines().count());
    for (check, line) in checks.iter().zip(text.lines()) {
        let fields = check.as_object().unwrap();
        let keys: Vec<&str> = fields.keys().map(String::as_str).collect();
        assert_eq!(keys.len(), 4, "{keys:?}");
        let text = |key: &str| check[key].as_str();
        assert!(line.starts_with(text("status").unwrap()), "{line}");
        assert!(line.contains(text("check").unwrap()), "{line}");
        assert!(!text("seen").unwrap().is_empty());
        assert_eq!(text("fix").is_some(), text("status") != Some("OK"), "{line}");
    }
    for name in ["kernel", "io_uring", "seccomp", "open_files", "cpus", "port_admin", "clock"] {
        assert!(checks.iter().any(|check| check["check"] == name), "{name}");
    }
}

#[test]
fn a_taken_port_ends_with_1() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let path = file("taken", &taken.local_addr().unwrap().to_string(), PARTIES);
    let (code, text) = doctor(&["--config", path.to_str().unwrap()]);
    assert_eq!(code, 1, "{text}");
    let line = text.lines().find(|line| line.contains("port_client")).unwrap();
    let owner = format!("(process {})", std::process::id());
    assert!(line.starts_with("FAIL") && line.contains(&owner), "{line}");
}

#[test]
fn a_wrong_configuration_ends_with_1_and_its_ports_are_not_guessed() {
    let path = file("wrong", "127.0.0.1:0", "[drain]\nmaxx = \"1s\"");
    let (code, text) = doctor(&["--config", path.to_str().unwrap()]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("drain.maxx") && text.contains("FAIL configuration"), "{text}");
    assert!(!text.contains("port_client"), "{text}");
    assert_eq!(doctor(&["--config", "/nowhere/x.toml"]).0, 1);
}
