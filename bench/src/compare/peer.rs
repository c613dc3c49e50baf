//! Who is compared: a folder with `peer.toml` and configuration templates for each.
//!
//! A file ending in `.in` is written to the run's folder without that ending, its `{names}` filled
//! in; the start line is filled in the same way. So a rival sends a better configuration by
//! changing a folder.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::stand::Stand;
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
    /// The gateway that owes something.
    Gateway,
}

/// How the endpoint is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Behind {
    /// The peer dials it at `{backend}`.
    Backend,
    /// It is a worker that polls and dials back at `{worker}`.
    Worker,
}

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
    /// It never sleeps.
    #[serde(default)]
    pub spins: bool,
    /// Program and arguments; empty when nothing is to be started.
    #[serde(default)]
    pub start: Vec<String>,
    /// Beginning of the line on its standard output that says it is ready; without one it is ready
    /// when `{client}` accepts a connection.
    #[serde(default)]
    pub ready: Option<String>,
    /// File name (without `.in`) and text of each template.
    #[serde(skip)]
    pub templates: Vec<(String, String)>,
}

/// Values of the `{names}` in templates and start lines.
pub type Names = BTreeMap<&'static str, String>;

impl Peer {
    /// Reads a peer's folder.
    fn load(dir: &Path, name: &str) -> Result<Self, CompareFault> {
        let path = dir.join(name).join("peer.toml");
        let unusable = |why: String| CompareFault::Peer(format!("{}: {why}", path.display()));
        let text = fs::read_to_string(&path).map_err(|e| unusable(e.to_string()))?;
        let mut peer: Self = toml::from_str(&text).map_err(|e| unusable(e.to_string()))?;
        name.clone_into(&mut peer.name);
        for entry in fs::read_dir(dir.join(name))? {
            let file = entry?.path();
            let Some(target) = file.file_name().and_then(|n| n.to_str()?.strip_suffix(".in"))
            else {
                continue;
            };
            peer.templates.push((target.to_owned(), fs::read_to_string(&file)?));
        }
        Ok(peer)
    }

    /// Writes the configurations into `dir` and returns the start line.
    pub fn render(&self, dir: &Path, names: &Names) -> io::Result<Vec<String>> {
        for (file, template) in &self.templates {
            fs::write(dir.join(file), fill(template, names))?;
        }
        Ok(self.start.iter().map(|part| fill(part, names)).collect())
    }
}

/// Puts the values in place of the names; other braces stay.
fn fill(text: &str, names: &Names) -> String {
    names
        .iter()
        .fold(text.to_owned(), |text, (name, value)| text.replace(&format!("{{{name}}}"), value))
}

type Chosen = (Vec<Peer>, Vec<(String, String)>);

/// The peers to run, and those left out with the reason. A peer asked for by name must be there.
pub fn choose(request: &Request, stand: &Stand) -> Result<Chosen, CompareFault> {
    let known = folders(&request.peers_dir)?;
    let (mut peers, mut skipped) = (vec![], vec![]);
    let names = if request.peers.is_empty() { &known } else { &request.peers };
    for name in names {
        if !known.contains(name) {
            let (name, known) = (name.clone(), known.clone());
            return Err(CompareFault::Unknown { what: "peer", name, known });
        }
        let peer = Peer::load(&request.peers_dir, name)?;
        match missing(&peer, stand) {
            None => peers.push(peer),
            Some(what) if request.peers.is_empty() => {
                skipped.push((name.clone(), format!("{what} is not installed")));
            }
            Some(what) => return Err(CompareFault::Peer(format!("{name}: no program {what}"))),
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

/// The program a peer needs and this machine lacks.
fn missing(peer: &Peer, stand: &Stand) -> Option<String> {
    let program = fill(peer.start.first()?, &stand.programs());
    let found = if program.contains('/') {
        Path::new(&program).is_file()
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|dir: PathBuf| dir.join(&program).is_file())
    };
    (!found).then_some(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("peers")
    }

    #[test]
    fn every_folder_is_a_peer_and_one_is_the_baseline() {
        let peers: Vec<Peer> =
            folders(&dir()).unwrap().iter().map(|n| Peer::load(&dir(), n).unwrap()).collect();
        let of = |class| peers.iter().filter(|p| p.class == class).count();
        assert_eq!((of(Class::Baseline), of(Class::Gateway), of(Class::Direct)), (1, 1, 1));
    }

    #[test]
    fn no_name_is_left_unfilled() {
        let mut names: Names =
            super::super::stand::NAMES.iter().map(|n| (*n, "v".into())).collect();
        let out = std::env::temp_dir().join(format!("ringway-peers-{}", std::process::id()));
        fs::create_dir_all(&out).unwrap();
        names.insert("dir", out.display().to_string());
        for name in folders(&dir()).unwrap() {
            let peer = Peer::load(&dir(), &name).unwrap();
            let mut texts = peer.render(&out, &names).unwrap();
            for (file, _) in &peer.templates {
                texts.push(fs::read_to_string(out.join(file)).unwrap());
            }
            for text in texts {
                assert!(!text.contains('{'), "{name}: {text}");
            }
        }
        fs::remove_dir_all(&out).unwrap();
    }
}
