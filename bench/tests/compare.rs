//! The comparison as a program: starts, measures and ends what it started.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

fn folder(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("ringway-compare-{name}-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    dir
}

fn compare(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

fn command(arguments: &[&str]) -> Command {
    // One CPU for all and the system's settings left alone: this is about the steps.
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringway-bench"));
    command
        .args(["compare", "--no-install", "--warm-up", "0.05"])
        .args([
            "--congestion",
            "keep",
            "--tcp-memory",
            "keep",
            "--proxy-cpu",
            "0",
            "--load-cpu",
            "0",
        ])
        .args(arguments);
    command
}

/// Processes whose standard output is a file in `dir`, as that of everything started is.
fn started_in(dir: &Path) -> usize {
    let dir = dir.canonicalize().unwrap();
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path().join("fd/1")).ok())
        .filter(|output| output.starts_with(&dir))
        .count()
}

#[test]
fn relay_and_direct_are_measured_in_turns_and_nothing_is_left_running() {
    let out = folder("turns");
    let result = compare(&[
        "--rounds",
        "2",
        "--seconds",
        "0.1",
        "--peers",
        "relay,direct",
        "--shapes",
        "unary-100-16x16",
        "--out",
        out.to_str().unwrap(),
    ]);
    let (text, errors) =
        (String::from_utf8(result.stdout).unwrap(), String::from_utf8(result.stderr).unwrap());
    assert!(result.status.success(), "{text}{errors}");
    assert!(text.contains("1.00 (1.00-1.00)"), "{text}");
    let figures: serde_json::Value =
        serde_json::from_slice(&fs::read(out.join("figures.json")).unwrap()).unwrap();
    let runs = figures["runs"].as_array().unwrap();
    let order: Vec<_> = runs.iter().map(|r| r["peer"].as_str().unwrap()).collect();
    assert_eq!(order, ["relay", "direct", "relay", "direct"]);
    for run in runs {
        assert!(run["fault"].is_null(), "{run}");
        assert!(run["outcome"]["calls"].as_u64().unwrap() > 0, "{run}");
        assert!(run["outcome"]["own_cpu_ns"].as_u64().unwrap() > 0, "{run}");
        assert!(run["outcome"]["cpu_ns"]["endpoint"].as_u64().unwrap() > 0, "{run}");
        let proxy = run["outcome"]["cpu_ns"]["proxy"].as_u64();
        assert_eq!(proxy.is_some_and(|ns| ns > 0), run["peer"] == "relay", "{run}");
    }
    // What was run is left behind: configurations, latencies of each round, a page.
    let folder = out.join("unary-100-16x16/relay");
    for round in 1..=2 {
        let log = fs::read_to_string(folder.join(format!("latency-{round}.hlog"))).unwrap();
        assert!(log.starts_with("#[StartTime"), "{log}");
    }
    let page = fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("latency by percentile, all rounds</h4><svg"), "no curve in the page");
    let (estimate, table) = (text.find("4 runs, about").unwrap(), text.find("x relay").unwrap());
    assert!(estimate < table, "{text}");
    assert!(text.contains("the generator against its own endpoint"), "{text}");
    assert_eq!(started_in(&out), 0);
    fs::remove_dir_all(out).unwrap();
}

#[test]
fn both_columns_are_judged_the_half_rate_is_found_and_what_is_missing_is_named() {
    let (out, peers) = (folder("half"), folder("half-peers"));
    let bench = "start = [\"{bench}\", \"relay\", \"--listen\", \"{client}\", \"--target\", \
                 \"{backend}\"]\nready = \"ready \"\n";
    let relay = |class: &str, more: &str| {
        format!("about = \"x\"\nclass = \"{class}\"\nbehind = \"backend\"\n{more}")
    };
    // The relay stands in for every class, so that the program's own steps are what is tested.
    let folders = [
        ("relay", relay("baseline", bench)),
        ("direct", relay("direct", "")),
        ("proxy", relay("l7", bench)),
        ("ringway", relay("gateway", "like = \"relay\"\n")),
        ("lost", relay("l7", "start = [\"{no_such_program}\"]\n")),
    ];
    for (name, text) in folders {
        fs::create_dir_all(peers.join(name)).unwrap();
        fs::write(peers.join(name).join("peer.toml"), text).unwrap();
    }
    let result = compare(&[
        "--rounds",
        "1",
        "--seconds",
        "0.2",
        "--peers-dir",
        peers.to_str().unwrap(),
        "--shapes",
        "unary-100-256x1,rate-half-64x4,client-9000",
        "--out",
        out.to_str().unwrap(),
    ]);
    let (text, errors) =
        (String::from_utf8(result.stdout).unwrap(), String::from_utf8(result.stderr).unwrap());
    assert!(result.status.success(), "{text}{errors}");
    assert!(text.contains("skipped: lost: no_such_program is not here"), "{text}");
    assert!(text.contains("half of the slowest peer's capacity: "), "{text}{errors}");
    let figures: serde_json::Value =
        serde_json::from_slice(&fs::read(out.join("figures.json")).unwrap()).unwrap();
    let rows = figures["table"].as_array().unwrap();
    assert_eq!(rows.len(), 3, "{text}");
    let line = |row: &serde_json::Value, peer: &str| {
        let lines = row["lines"].as_array().unwrap();
        lines.iter().find(|line| line["peer"] == peer).unwrap().clone()
    };
    let judged = line(&rows[0], "ringway")["judgements"].clone();
    let units: Vec<_> = judged.as_array().unwrap().iter().map(|j| j["unit"].clone()).collect();
    // How many percentiles there are samples for is the machine's to say.
    assert_eq!(units[..3], ["relay", "proxy", "relay"]);
    let binding = judged.as_array().unwrap().iter().filter(|j| j["binds"] == true).count();
    assert_eq!(binding, 1, "{judged}");
    assert!(line(&rows[1], "relay")["latency"][1]["median"].is_f64(), "{text}");
    // A relay that holds nothing for a connection that says nothing.
    let held = line(&rows[2], "ringway")["figure"]["median"].as_f64();
    assert!(held.is_some_and(|bytes| bytes < 2048.0), "{text}");
    assert_eq!(started_in(&out), 0);
    fs::remove_dir_all(out).unwrap();
    fs::remove_dir_all(peers).unwrap();
}

#[test]
fn a_peer_that_fails_is_reported_and_does_not_end_the_run() {
    let (out, peers) = (folder("fails"), folder("peers"));
    for (name, start) in [("ends", r#"["false"]"#), ("other", r#"["sleep", "{dir}"]"#)] {
        fs::create_dir_all(peers.join(name)).unwrap();
        let text =
            format!("about = \"x\"\nclass = \"l7\"\nbehind = \"backend\"\nstart = {start}\n");
        fs::write(peers.join(name).join("peer.toml"), text).unwrap();
    }
    let (out_text, peers_text) = (out.to_str().unwrap(), peers.to_str().unwrap());
    let result = compare(&[
        "--rounds",
        "2",
        "--peers-dir",
        peers_text,
        "--shapes",
        "unary-100-16x16",
        "--out",
        out_text,
    ]);
    let text = String::from_utf8(result.stdout).unwrap();
    assert!(result.status.success(), "{text}");
    assert!(text.contains("2 of 2 runs not counted"), "{text}");
    assert!(text.contains("ends: proxy ended at start with exit status: 1"), "{text}");
    assert!(text.contains("other: proxy ended at start"), "{text}");
    fs::remove_dir_all(out).unwrap();
    fs::remove_dir_all(peers).unwrap();
}

#[test]
fn unknown_names_are_refused_with_the_names_there_are() {
    let result = compare(&["--shapes", "unary-7"]);
    let errors = String::from_utf8(result.stderr).unwrap();
    assert!(!result.status.success());
    assert!(errors.contains("no shape is called unary-7") && errors.contains("upload-8m-4x1"));
    let result = compare(&["--peers", "nobody"]);
    let errors = String::from_utf8(result.stderr).unwrap();
    assert!(errors.contains("no peer is called nobody") && errors.contains("relay"), "{errors}");
}

#[test]
fn a_stop_signal_ends_what_was_started_and_still_reports() {
    let out = folder("stop");
    let out_text = out.to_str().unwrap();
    let arguments = ["--peers", "relay", "--rounds", "100", "--seconds", "5", "--out", out_text];
    let child = command(&arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut looks = 0;
    while started_in(&out) < 3 {
        thread::sleep(Duration::from_millis(20));
        looks += 1;
        assert!(looks < 3000, "endpoint, relay and load did not start");
    }
    assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    let result = child.wait_with_output().unwrap();
    let text = String::from_utf8(result.stdout).unwrap();
    assert!(result.status.success() && text.contains("load was stopped"), "{text}");
    assert_eq!(started_in(&out), 0);
    fs::remove_dir_all(out).unwrap();
}
