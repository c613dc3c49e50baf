//! The programs that peers are made of: found on this machine, or installed.
//!
//! `programs.toml` beside the peers' folders says how each is got. What needs no rights (a Python
//! package in a venv, a build) goes below the target folder and harms nobody; a system package is
//! installed only as root. Every step is announced before it is taken.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;

use super::{CompareFault, Request};

/// Folders that hold servers and are not in every user's PATH.
const SERVER_FOLDERS: [&str; 2] = ["/usr/sbin", "/usr/local/sbin"];
/// Characters of a program's answer to the question for its version that are kept.
const VERSION_LENGTH: usize = 100;

/// How a program is got.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    apt: Option<String>,
    pip: Option<String>,
    cargo: Option<Vec<String>>,
    /// Where it is below the folder it is installed to.
    file: Option<String>,
    /// Arguments that make it print its version.
    #[serde(default)]
    version: Vec<String>,
}

/// All of them, with what was found.
#[derive(Debug)]
pub struct Programs {
    sources: BTreeMap<String, Source>,
    peers: PathBuf,
    /// This program; what is built with it is beside it.
    bench: PathBuf,
    /// Where things are installed to.
    folder: PathBuf,
    install: bool,
    /// The path, or why there is none.
    found: BTreeMap<String, Result<PathBuf, String>>,
}

impl Programs {
    /// Reads how they are got; nothing is looked for yet.
    pub fn read(request: &Request) -> Result<Self, CompareFault> {
        let path = request.peers_dir.join("programs.toml");
        let unusable = |why: String| CompareFault::Peer(format!("{}: {why}", path.display()));
        // Without the file every program is looked for in the PATH.
        let text = if path.is_file() { fs::read_to_string(&path)? } else { String::new() };
        let sources = toml::from_str(&text).map_err(|e| unusable(e.to_string()))?;
        let bench = std::env::current_exe()?;
        let target = bench.parent().and_then(Path::parent).unwrap_or(Path::new("."));
        let mut found = BTreeMap::new();
        found.insert("bench".to_owned(), Ok(bench.clone()));
        if let Some(path) = &request.ringway {
            let is_there = path.is_file().then(|| path.clone());
            let missing = || format!("there is no {}", path.display());
            found.insert("ringway".to_owned(), is_there.ok_or_else(missing));
        }
        Ok(Self {
            sources,
            peers: request.peers_dir.clone(),
            folder: target.join("bench-peers"),
            bench,
            install: request.install,
            found,
        })
    }

    /// Where `name` is; it is installed if that is allowed and possible.
    pub fn obtain(&mut self, name: &str) -> Result<PathBuf, String> {
        if let Some(known) = self.found.get(name) {
            return known.clone();
        }
        let source = self.sources.get(name).cloned().unwrap_or_default();
        let mut result = self.find(name, &source).ok_or_else(|| format!("{name} is not here"));
        if result.is_err() && self.install {
            result = self.fetch(name, &source).and_then(|()| {
                self.find(name, &source).ok_or_else(|| format!("{name} is not where it should be"))
            });
        }
        self.found.insert(name.to_owned(), result.clone());
        result
    }

    /// Names and paths of those that are there.
    pub fn paths(&self) -> impl Iterator<Item = (&str, &Path)> {
        self.found.iter().filter_map(|(name, path)| Some((name.as_str(), path.as_deref().ok()?)))
    }

    /// The first line each has to say about its version.
    pub fn versions(&self) -> BTreeMap<String, String> {
        let version = |(name, path): (&str, &Path)| {
            let arguments = &self.sources.get(name)?.version;
            if arguments.is_empty() {
                return None;
            }
            let said = Command::new(path).args(arguments).stdin(Stdio::null()).output().ok()?;
            let text = [said.stdout, said.stderr].concat();
            let text = String::from_utf8_lossy(&text);
            let line = text.lines().find(|line| !line.trim().is_empty())?.trim();
            // Some say their own path first.
            let line = line.strip_prefix(&path.display().to_string()).unwrap_or(line).trim();
            Some((name.to_owned(), line.chars().take(VERSION_LENGTH).collect()))
        };
        self.paths().filter_map(version).collect()
    }

    fn find(&self, name: &str, source: &Source) -> Option<PathBuf> {
        let own = self.folder.join(name);
        let Some(file) = &source.file else {
            let path = std::env::var_os("PATH").unwrap_or_default();
            let servers = SERVER_FOLDERS.map(PathBuf::from);
            let folders = std::env::split_paths(&path).chain(servers);
            return folders.map(|dir| dir.join(name)).find(|path| path.is_file());
        };
        if source.pip.is_some() {
            return site_packages(&own)?.map(|dir| dir.join(file)).find(|path| path.is_file());
        }
        let beside = self.bench.with_file_name(file);
        [beside, self.built().join(file), own.join("release").join(file)]
            .into_iter()
            .find(|path| path.is_file())
    }

    /// Where a release build of this repository puts its programs.
    fn built(&self) -> PathBuf {
        self.folder.with_file_name("release")
    }

    fn fetch(&self, name: &str, source: &Source) -> Result<(), String> {
        let own = self.folder.join(name);
        if let Some(package) = &source.apt {
            return install_system_package(package);
        }
        if let Some(package) = &source.pip {
            step("python3", ["-m", "venv"].map(str::to_owned).into_iter().chain([text(&own)]))?;
            let pip = own.join("bin/pip");
            return step(
                &text(&pip),
                ["install", "--quiet", "--disable-pip-version-check", package].map(str::to_owned),
            );
        }
        let Some(arguments) = &source.cargo else {
            return Err(format!("{name} is not installed"));
        };
        let mut line = vec!["build".to_owned(), "--release".to_owned(), "--locked".to_owned()];
        let peers = text(&self.peers);
        line.extend(arguments.iter().map(|part| part.replace("{peers}", &peers)));
        if arguments.iter().any(|part| part == "--manifest-path") {
            line.extend(["--target-dir".to_owned(), text(&own)]);
        } else {
            let target = self.folder.parent().unwrap_or(&self.folder);
            line.extend(["--target-dir".to_owned(), text(target)]);
            let manifest = self.peers.join("../../Cargo.toml");
            line.extend(["--manifest-path".to_owned(), text(&manifest)]);
        }
        step(&std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()), line)
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// The folders of a venv that packages are in.
fn site_packages(venv: &Path) -> Option<impl Iterator<Item = PathBuf>> {
    let versions = fs::read_dir(venv.join("lib")).ok()?;
    Some(versions.flatten().map(|dir| dir.path().join("site-packages")))
}

fn install_system_package(package: &str) -> Result<(), String> {
    let install = ["install", "--yes", "--quiet", "--no-install-recommends", package];
    let install = || step("apt-get", install.map(str::to_owned));
    // A machine whose lists are old or empty does not find the package.
    install().or_else(|_| {
        step("apt-get", ["update", "--quiet"].map(str::to_owned))?;
        install()
    })
}

/// Says what it runs, runs it, and gives the last line it had to say if it fails.
fn step(program: &str, arguments: impl IntoIterator<Item = String>) -> Result<(), String> {
    let arguments: Vec<String> = arguments.into_iter().collect();
    let line = format!("{program} {}", arguments.join(" "));
    ringway_stdio::complain!("installing: {line}");
    let done = Command::new(program)
        .args(&arguments)
        // Servers are not started by their installation, and nothing asks questions.
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("RUNLEVEL", "1")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{line}: {error}"))?;
    if done.status.success() {
        return Ok(());
    }
    let errors = String::from_utf8_lossy(&done.stderr);
    let last = errors.lines().rfind(|l| !l.trim().is_empty()).unwrap_or("no message");
    Err(format!("{line}: {last}"))
}
