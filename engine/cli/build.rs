//! Finds out which commit is built.
//!
//! A release build asks git, and is made anew when the commit or the sources have changed. Other
//! builds do not: they would be made anew with each commit, and nobody measures or ships them.

use std::path::Path;
use std::process::Command;

/// The workspace, from this package.
const WORKSPACE: &str = "../..";
/// What the programs are made of.
const SOURCES: [&str; 6] = ["Cargo.toml", "Cargo.lock", "proto", "engine", "tools", "bench"];
/// Digits of a commit that are told.
const DIGITS: usize = 12;

fn main() {
    println!("cargo::rerun-if-env-changed=RINGWAY_COMMIT");
    println!("cargo::rerun-if-changed=build.rs");
    let given = std::env::var("RINGWAY_COMMIT").ok().filter(|commit| !commit.is_empty());
    let release = std::env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let commit = given.or_else(|| if release { of_git() } else { None });
    println!("cargo::rustc-env=RINGWAY_BUILT={}", commit.as_deref().unwrap_or("unknown"));
}

/// The commit that is checked out, marked if the sources are not as it has them.
fn of_git() -> Option<String> {
    for source in SOURCES {
        println!("cargo::rerun-if-changed={WORKSPACE}/{source}");
    }
    for name in ["HEAD", "logs/HEAD", "packed-refs"] {
        let path = git(&["rev-parse", "--git-path", name])?;
        let path = Path::new(WORKSPACE).join(path);
        // A path that is not there would have the script run each time.
        if path.exists() {
            println!("cargo::rerun-if-changed={}", path.display());
        }
    }
    let commit = git(&["rev-parse", "HEAD"])?;
    let mut asked = vec!["status", "--porcelain", "--untracked-files=no", "--"];
    asked.extend(SOURCES);
    let changed = if git(&asked)?.is_empty() { "" } else { "-dirty" };
    Some(format!("{}{changed}", commit.get(..DIGITS)?))
}

/// What git answers; none without git, or outside of a repository.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").current_dir(WORKSPACE).args(arguments).output().ok()?;
    if !output.status.success() {
        return None;
    }
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
