//! The peers of a comparison: a folder with `peer.toml` and configuration templates for each.
//!
//! A file ending in `.in` is written to the run's folder without that ending, its `{names}` filled
//! in; the start line is filled in the same way. So a rival sends a better configuration by
//! changing a folder. A variant says which peer it is `like` and `set`s what differs.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::programs::Programs;
use super::{CompareFault, Request};

/// What a peer is compared as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Nothing between load and endpoint.
    Direct,
    /// The bare relay every ratio refers to.
    Baseline,
    /// Moves bytes and knows no HTTP/2.
    L4,
    /// Speaks HTTP/2 on both sides.
    L7,
    /// The gateway that has targets.
    Gateway,
}

/// How the endpoint is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Behind {
    /// The peer dials it at `{backend}`.
    Backend,
    /// The endpoint is a worker that polls and dials back at `{worker}`: the leanest there can be.
    Worker,
    /// The worker program that users have polls and dials back at `{worker}`, and joins each
    /// session to the endpoint at `{backend}`.
    Program,
}

/// What a peer understands of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Speech {
    /// HTTP/2 from the first octet, or whatever passes.
    Http2,
    /// HTTP/1.1 and WebSockets.
    Http1,
}

fn http2_only() -> Vec<Speech> {
    vec![Speech::Http2]
}

/// Name of the worker program among the programs.
pub const WORKER_PROGRAM: &str = "ringway_worker";

/// One peer, as its folder says.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// The folder's name.
    #[serde(skip_deserializing)]
    pub name: String,
    /// One line about it.
    pub about: String,
    /// What it is compared as.
    pub class: Class,
    /// How it reaches the endpoint.
    pub behind: Behind,
    /// The peer never sleeps.
    #[serde(default)]
    pub spins: bool,
    /// The peer speaks TLS towards the client.
    #[serde(default)]
    pub tls: bool,
    /// What its clients may speak.
    #[serde(default = "http2_only")]
    pub speaks: Vec<Speech>,
    /// The peer answers `/metrics` at `{admin}`.
    #[serde(default)]
    pub admin: bool,
    /// The only shapes it is run in, by name; empty when it is run in all that are for it.
    #[serde(default)]
    pub rows: Vec<String>,
    /// Another peer's folder, whose templates, start line, `ready`, `admin` and `set` it takes over.
    #[serde(default)]
    pub like: Option<String>,
    /// The option that gives its start line, of a peer that only a user can start.
    #[serde(default)]
    pub given: Option<String>,
    /// Program and arguments; empty when nothing is to be started.
    #[serde(default)]
    pub start: Vec<String>,
    /// Beginning of the line on its standard output that says it is ready; without one it is ready
    /// when `{client}` accepts a connection.
    #[serde(default)]
    pub ready: Option<String>,
    /// Further names for its templates; their values may hold names.
    #[serde(default)]
    pub set: BTreeMap<String, String>,
    /// File name (without `.in`) and text of each template.
    #[serde(skip)]
    pub templates: Vec<(String, String)>,
}

/// Values of the `{names}` in templates and start lines.
pub type Names = BTreeMap<String, String>;

impl Peer {
    /// Reads a peer's folder.
    fn load(dir: &Path, name: &str) -> Result<Self, CompareFault> {
        let path = dir.join(name).join("peer.toml");
        let unusable = |why: String| CompareFault::Peer(format!("{}: {why}", path.display()));
        let text = fs::read_to_string(&path).map_err(|e| unusable(e.to_string()))?;
        let mut peer: Self = toml::from_str(&text).map_err(|e| unusable(e.to_string()))?;
        name.clone_into(&mut peer.name);
        if let Some(like) = peer.like.clone() {
            let base = Self::load(dir, &like)?;
            if base.like.is_some() {
                return Err(unusable(format!("{like} is itself like another peer")));
            }
            peer.take_over(base);
        }
        for entry in fs::read_dir(dir.join(name))? {
            let file = entry?.path();
            let Some(target) = file.file_name().and_then(|n| n.to_str()?.strip_suffix(".in"))
            else {
                continue;
            };
            peer.templates.retain(|(taken, _)| taken != target);
            peer.templates.push((target.to_owned(), fs::read_to_string(&file)?));
        }
        Ok(peer)
    }

    fn take_over(&mut self, base: Self) {
        let own = std::mem::replace(&mut self.set, base.set);
        self.set.extend(own);
        self.templates = base.templates;
        self.admin |= base.admin;
        self.ready = self.ready.take().or(base.ready);
        if self.start.is_empty() {
            self.start = base.start;
        }
    }

    /// Takes over the start line that only a user can give, or says that there is none.
    fn give(&mut self, request: &Request) -> Option<String> {
        let option = self.given.clone()?;
        let Some(line) = request.given.get(&option) else {
            return Some(format!("give its start line with --{option}"));
        };
        self.set.insert(option, line.clone());
        None
    }

    /// Whether its clients may speak so.
    pub fn speaks(&self, speech: Speech) -> bool {
        self.speaks.contains(&speech)
    }

    /// Writes the configurations into `dir` and returns the start line.
    pub fn render(&self, dir: &Path, names: &Names) -> io::Result<Vec<String>> {
        // Its own values come first, because they hold names themselves.
        let filled = |text: &str| fill(&fill(text, &self.set), names);
        for (file, template) in &self.templates {
            fs::write(dir.join(file), filled(template))?;
        }
        Ok(self.start.iter().map(|part| filled(part)).collect())
    }

    /// The program its start line begins with, by name or as it stands there.
    pub fn program(&self) -> Option<&str> {
        let program = self.start.first()?.as_str();
        let named = program.strip_prefix('{').and_then(|name| name.strip_suffix('}'));
        Some(named.unwrap_or(program))
    }
}

/// Puts the values in place of the names; other braces stay.
pub fn fill(text: &str, names: &Names) -> String {
    names
        .iter()
        .fold(text.to_owned(), |text, (name, value)| text.replace(&format!("{{{name}}}"), value))
}

/// The peers that run, and those left out with the reason.
type Chosen = (Vec<Peer>, Vec<(String, String)>);

/// The peers to run, and those left out with the reason. A peer asked for by name must be there.
pub fn choose(request: &Request, programs: &mut Programs) -> Result<Chosen, CompareFault> {
    let known = folders(&request.peers_dir)?;
    let (mut peers, mut skipped) = (vec![], vec![]);
    let names = if request.peers.is_empty() { &known } else { &request.peers };
    for name in names {
        if !known.contains(name) {
            let (name, known) = (name.clone(), known.clone());
            return Err(CompareFault::Unknown { what: "peer", name, known });
        }
        let mut peer = Peer::load(&request.peers_dir, name)?;
        if let Some(why) = peer.give(request) {
            if request.peers.is_empty() {
                skipped.push((name.clone(), why));
                continue;
            }
            return Err(CompareFault::Peer(format!("{name}: {why}")));
        }
        let worker = (peer.behind == Behind::Program).then_some(WORKER_PROGRAM);
        let needed = peer.program().into_iter().chain(worker);
        let missing = needed.map(|program| programs.obtain(program)).find(Result::is_err);
        match missing {
            None | Some(Ok(_)) => peers.push(peer),
            Some(Err(why)) if request.peers.is_empty() => skipped.push((name.clone(), why)),
            Some(Err(why)) => return Err(CompareFault::Peer(format!("{name}: {why}"))),
        }
    }
    // The baseline first, so that every round starts with what the others are divided by.
    if request.peers.is_empty() {
        peers.sort_by_key(|p| (p.class != Class::Baseline, p.name.clone()));
    }
    if peers.is_empty() { Err(CompareFault::Nothing) } else { Ok((peers, skipped)) }
}

fn folders(dir: &Path) -> Result<Vec<String>, CompareFault> {
    let entries = fs::read_dir(dir)
        .map_err(|e| CompareFault::Peer(format!("folder of peers {}: {e}", dir.display())))?;
    let mut names: Vec<String> = entries
        .flatten()
        .filter(|entry| entry.path().join("peer.toml").is_file())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::rows::ALL;
    use crate::compare::test_bed::NAMES;

    fn all() -> Vec<Peer> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers");
        folders(&dir).unwrap().iter().map(|name| Peer::load(&dir, name).unwrap()).collect()
    }

    #[test]
    fn one_peer_is_the_baseline_and_every_row_has_who_owes_it() {
        let peers = all();
        let of = |class| peers.iter().filter(|p| p.class == class).count();
        assert_eq!((of(Class::Baseline), of(Class::Direct)), (1, 1));
        for shape in &ALL {
            for gateway in shape.gateways {
                let peer = peers.iter().find(|p| p.name == *gateway).unwrap();
                assert!(peer.class == Class::Gateway && shape.is_for(peer), "{}", shape.name);
            }
        }
        for peer in &peers {
            assert!(peer.rows.iter().all(|row| ALL.iter().any(|s| s.name == row)), "{}", peer.name);
            assert!(ALL.iter().any(|shape| shape.is_for(peer)), "{} runs nowhere", peer.name);
        }
    }

    #[test]
    fn a_peer_that_only_a_user_can_start_is_skipped_or_takes_the_line() {
        let mut request = crate::compare::testing::request();
        let mut peer = all().into_iter().find(|peer| peer.given.is_some()).unwrap();
        let option = peer.given.clone().unwrap();
        assert!(peer.give(&request).unwrap().contains(&format!("--{option}")));
        request.given.insert(option, "run --to {backend}".to_owned());
        assert_eq!(peer.give(&request), None);
        let names = [("backend".to_owned(), "h:1".to_owned())].into();
        assert_eq!(peer.render(Path::new("."), &names).unwrap(), ["sh", "-c", "run --to h:1"]);
    }

    #[test]
    fn a_variant_takes_over_what_it_does_not_say() {
        let peers = all();
        let [base, tls] =
            ["envoy", "envoy-tls"].map(|n| peers.iter().find(|p| p.name == n).unwrap());
        assert_eq!((&base.start, &base.templates), (&tls.start, &tls.templates));
        assert_eq!(base.set["per_client"], tls.set["per_client"]);
        assert!(!base.tls && tls.tls && base.set["transport"].is_empty());
    }

    #[test]
    fn no_name_is_left_unfilled() {
        let programs = ["haproxy", "nginx", "nghttpx", "envoy", "pingora", "reactor_relay"];
        let known = NAMES.iter().chain(&programs).chain(&["bench", "ringway"]);
        let mut names: Names = known.map(|n| ((*n).to_owned(), "v".to_owned())).collect();
        let out = std::env::temp_dir().join(format!("ringway-peers-{}", std::process::id()));
        fs::create_dir_all(&out).unwrap();
        names.insert("dir".to_owned(), out.display().to_string());
        for peer in all() {
            names.extend(peer.given.clone().map(|option| (option, "a line".to_owned())));
            let mut texts = peer.render(&out, &names).unwrap();
            for (file, _) in &peer.templates {
                texts.push(fs::read_to_string(out.join(file)).unwrap());
            }
            for text in texts {
                // Configurations have braces of their own: a name has letters only between them.
                let open = text.split('{').skip(1).filter_map(|rest| rest.split_once('}'));
                let left = open.map(|(name, _)| name).find(|name| {
                    !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_')
                });
                assert_eq!(left, None, "{}: {text}", peer.name);
            }
        }
        fs::remove_dir_all(&out).unwrap();
    }
}
