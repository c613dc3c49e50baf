//! The listeners: addresses, TLS, and the PROXY protocol.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use ipnet::{IpNet, Ipv4Net};

use super::node::{Node, Value};
use super::problems::{Problems, unknown};
use super::read::{Section, flag_wanted, path_of};
use super::settings::PROTOCOLS;
use super::{Front, FrontTls, Fronts, Listen};
use crate::tls::{Files, Pair, PairError};

/// What a listener's table may hold.
const KEYS: [&str; 5] = ["address", "tls", "proxy_protocol", "trusted", "protocol"];

/// Most networks that one listener trusts.
const MAX_TRUSTED: usize = 1024;

/// Reads `[listen]`.
pub(super) fn read(
    root: &Node,
    folder: &Path,
    warnings: &mut Vec<String>,
    problems: &mut Problems,
) -> (Listen, Fronts) {
    let section = Section::of(root, "listen", problems);
    for name in ["client", "worker", "admin"] {
        check_keys(&section, name, problems);
    }
    let listen = Listen {
        client: section.address("client", problems),
        worker: section.address("worker", problems),
        admin: section.address("admin", problems),
    };
    check_ports(&section, &listen, problems);
    let mut front = |name| {
        let mut table = Table { section: &section, name, problems: &mut *problems };
        table.front(folder, warnings)
    };
    let fronts = Fronts { client: front("client"), worker: front("worker") };
    (listen, fronts)
}

/// A listener's table has these keys; the admin port has only an address.
fn check_keys(section: &Section<'_>, name: &str, problems: &mut Problems) {
    for (key, _) in section.get(name).map(Node::entries).unwrap_or_default() {
        let full = format!("listen.{name}.{}", key.name);
        if !KEYS.contains(&key.name.as_str()) {
            problems.add(key.place, unknown(&full, &key.name, KEYS));
        } else if name == "admin" && key.name != "address" {
            let text = format!(
                "{full} is not possible: the admin port is for this machine and its scraper; remove \
                 it, or put a proxy with TLS in front"
            );
            problems.add(key.place, text);
        } else if name == "worker" && key.name == "protocol" {
            let text = format!("{full} is not possible: workers speak HTTP/1.1; remove it");
            problems.add(key.place, text);
        }
    }
}

fn check_ports(section: &Section<'_>, listen: &Listen, problems: &mut Problems) {
    let named = [("client", listen.client), ("worker", listen.worker), ("admin", listen.admin)];
    for (at, (name, address)) in named.into_iter().enumerate() {
        for (earlier, other) in &named[..at] {
            if overlap(address, *other) {
                let text = format!(
                    "listen.{name} and listen.{earlier} are both port {}: give each its own",
                    address.port()
                );
                problems.add(section.place_of(name), text);
            }
        }
    }
}

fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let same_ip = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() == b.port() && a.port() != 0 && same_ip
}

/// One listener's table.
struct Table<'a> {
    section: &'a Section<'a>,
    name: &'static str,
    problems: &'a mut Problems,
}

impl<'a> Table<'a> {
    fn get(&self, key: &str) -> Option<&'a Node> {
        self.section.get(self.name)?.get(key)
    }

    fn key(&self, key: &str) -> String {
        format!("listen.{}.{key}", self.name)
    }

    fn refuse(&mut self, key: &str, node: &Node, want: &str) {
        let text = format!("{} is {}, but must be {want}", self.key(key), node.kind());
        self.problems.add(node.place, text);
    }

    fn front(&mut self, folder: &Path, warnings: &mut Vec<String>) -> Front {
        let proxy_protocol = match self.get("proxy_protocol") {
            None => false,
            Some(Node { value: Value::Flag(flag), .. }) => *flag,
            Some(node) => {
                self.refuse("proxy_protocol", node, flag_wanted(node.place));
                false
            }
        };
        let trusted = self.trusted(warnings);
        self.check_trust(proxy_protocol, trusted.as_deref());
        Front {
            tls: self.tls(folder, warnings),
            proxy_protocol,
            trusted: trusted.unwrap_or_default(),
            http2: self.is_http2(),
        }
    }

    /// Whether the listener's protocol is HTTP/2 only.
    fn is_http2(&mut self) -> bool {
        let Some(node) = self.get("protocol") else { return false };
        match &node.value {
            Value::Text(word) if PROTOCOLS.contains(&word.as_str()) => word == "h2",
            Value::Text(word) => {
                let text = format!(
                    "{} is \"{word}\", but must be one of: {}",
                    self.key("protocol"),
                    PROTOCOLS.join(", ")
                );
                self.problems.add(node.place, text);
                false
            }
            _ => {
                self.refuse("protocol", node, "a word: auto or h2");
                false
            }
        }
    }

    /// A PROXY header that anybody could send must not be believed. And a list of trusted networks
    /// that is not used is a mistake.
    fn check_trust(&mut self, proxy_protocol: bool, trusted: Option<&[IpNet]>) {
        let place = |key: &str| self.get(key).map(|node| node.place);
        let pair = |key: &str, value: &str| self.problems.syntax().pair(&self.key(key), value);
        match trusted {
            None | Some([]) if proxy_protocol => {
                let text = format!(
                    "{} needs {}: anybody could name any address else; write the balancers' \
                     networks, such as {}",
                    self.key("proxy_protocol"),
                    self.key("trusted"),
                    pair("trusted", "[\"10.0.0.0/8\"]"),
                );
                self.problems.add(place("proxy_protocol"), text);
            }
            Some(_) if !proxy_protocol => {
                let text = format!(
                    "{} has no effect without {}: write it too, or remove this",
                    self.key("trusted"),
                    pair("proxy_protocol", "true"),
                );
                self.problems.add(place("trusted"), text);
            }
            _ => {}
        }
    }

    fn trusted(&mut self, warnings: &mut Vec<String>) -> Option<Vec<IpNet>> {
        let node = self.get("trusted")?;
        let want = "a list of networks, such as [\"10.0.0.0/8\", \"192.0.2.1\"]";
        let Value::List(list) = &node.value else {
            self.refuse("trusted", node, want);
            return Some(Vec::new());
        };
        if list.len() > MAX_TRUSTED {
            let text = format!(
                "{} has more than {MAX_TRUSTED} networks: remove some, or write larger ones",
                self.key("trusted")
            );
            self.problems.add(node.place, text);
        }
        let mut networks = Vec::new();
        for item in list {
            let Value::Text(text) = &item.value else {
                self.refuse("trusted", item, want);
                continue;
            };
            match network(text) {
                Ok(network) => {
                    if network.prefix_len() == 0 {
                        let key = self.key("trusted");
                        warnings.push(format!("{key} = \"{text}\" believes everybody"));
                    }
                    networks.push(network);
                }
                Err(why) => {
                    let text = format!("{} has \"{text}\", {why}", self.key("trusted"));
                    self.problems.add(item.place, text);
                }
            }
        }
        Some(networks)
    }

    fn tls(&mut self, folder: &Path, warnings: &mut Vec<String>) -> Option<FrontTls> {
        let node = self.get("tls")?;
        let Value::Table(entries) = &node.value else {
            self.refuse("tls", node, "a table { cert = \"...\", key = \"...\" }");
            return None;
        };
        for (key, _) in entries {
            if !["cert", "key"].contains(&key.name.as_str()) {
                let text = format!(
                    "{}.{} is not a setting: use `cert` and `key`",
                    self.key("tls"),
                    key.name
                );
                self.problems.add(key.place, text);
            }
        }
        let cert = self.path(node, "cert", folder);
        let key = self.path(node, "key", folder);
        let files = Files { cert: cert?, key: key? };
        match Pair::load(&files) {
            Ok(pair) => {
                if let Some(warning) = pair.warning() {
                    let key = self.key("tls.cert");
                    warnings.push(format!("{key} \"{}\" {warning}", files.cert.display()));
                }
                Some(FrontTls { files, pair })
            }
            Err(errors) => {
                for error in errors {
                    self.refuse_pair(node, &files, &error);
                }
                None
            }
        }
    }

    fn path(&mut self, tls: &'a Node, name: &str, folder: &Path) -> Option<PathBuf> {
        let key = format!("tls.{name}");
        match tls.get(name) {
            Some(Node { value: Value::Text(path), place }) if !path.is_empty() => {
                Some(path_of(*place, path, folder))
            }
            Some(node) => {
                self.refuse(&key, node, "the path of a PEM file, in quotes");
                None
            }
            None => {
                self.problems
                    .add(tls.place, format!("{} is missing: name its PEM file", self.key(&key)));
                None
            }
        }
    }

    fn refuse_pair(&mut self, tls: &Node, files: &Files, error: &PairError) {
        let (name, path, why) = match error {
            PairError::Cert(why) => ("cert", &files.cert, why),
            PairError::Key(why) => ("key", &files.key, why),
        };
        let place = tls.get(name).map_or(tls.place, |node| node.place);
        let key = self.key(&format!("tls.{name}"));
        // The file may be being written: see `Source::load_patiently`.
        self.problems.add_passing(place, format!("{key} \"{}\" {why}", path.display()));
    }
}

/// Bits before the IPv4 address in one in IPv6 form (RFC 4291 §2.5.5.2).
const V4_MAPPED: u8 = 96;

/// `10.0.0.0/8`, or one address.
fn network(text: &str) -> Result<IpNet, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        // Peers are compared in this form, too.
        return Ok(IpNet::from(address.to_canonical()));
    }
    let network: IpNet = text
        .parse()
        .map_err(|_| "which is no network: write one such as \"10.0.0.0/8\"".to_string())?;
    if let IpNet::V6(mapped) = network
        && let Some(address) = mapped.addr().to_ipv4_mapped()
    {
        let Some(prefix) = mapped.prefix_len().checked_sub(V4_MAPPED) else {
            // The prefix was meant for the IPv4 address.
            let meant = mapped.prefix_len().min(32);
            return Err(format!("an IPv4 network in IPv6 form: write \"{address}/{meant}\""));
        };
        return network_of(Ipv4Net::new(address, prefix).map_err(|e| e.to_string())?.into());
    }
    network_of(network)
}

/// A network is written by its first address.
fn network_of(network: IpNet) -> Result<IpNet, String> {
    if network != network.trunc() {
        return Err(format!(
            "whose address lies inside the network: write \"{}\"",
            network.trunc()
        ));
    }
    Ok(network)
}
