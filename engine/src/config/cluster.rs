//! The other gateways: the secrets by which they are known, and how they and this gateway reach
//! each other (design 3.22).

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use ringway_proto::id::NODE_LIMIT;

use super::control::Around;
use super::dial::Dial;
use super::node::{Node, Value};
use super::problems::{NAME_A_FILE, Problems, unknown};
use super::read::Section;
use super::{Listen, Mode, Secret};

/// Octets of a secret: a shorter one could be guessed.
const SECRET: std::ops::RangeInclusive<usize> = 16..=4096;
/// A second secret is for the time in which the first one takes its place.
const MOST_SECRETS: usize = 2;

/// The settings about other gateways.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// The common secrets: the first one signs, both are accepted. Without a secret no connection
    /// is relayed.
    pub secrets: Vec<Secret>,
    /// Where other gateways bring connections.
    pub listen: SocketAddr,
    /// The address at which other gateways reach this process.
    pub address: Option<IpAddr>,
    /// The port at which they reach [`Self::listen`], if it differs.
    pub port: Option<u16>,
    /// Where CONNECTs go that no gateway of the cluster expects: the old proxy.
    pub fallback: Option<Dial>,
    /// Whether connections over TLS are relayed too, although relays are plain TCP.
    pub plaintext: bool,
    /// The URL, without a path, at which workers reach this very process; none if they get only the
    /// common one.
    pub direct: Option<String>,
    /// `local` mode: which node this is.
    pub node: Option<u16>,
    /// `local` mode: the other nodes, and where each listens.
    pub nodes: Vec<(u16, SocketAddr)>,
}

impl Cluster {
    /// Whether connections go to other gateways and come from them.
    #[must_use]
    pub fn relays(&self) -> bool {
        !self.secrets.is_empty()
    }
}

/// Reads `[cluster]`. `pod`: this pod's address.
pub(super) fn read(
    around: &Around<'_>,
    (mode, pod): (Mode, Option<IpAddr>),
    problems: &mut Problems,
) -> Cluster {
    let section = Section::of(around.root, "cluster", problems);
    let secrets = secrets(&section, around.folder, problems);
    let listen = section.address("listen", problems);
    let (address, port) = address(&section, problems);
    let address = address.or(pod);
    let node = node(&section, problems);
    let cluster = Cluster {
        secrets,
        listen,
        address,
        port,
        fallback: fallback(&section, around.listen, problems),
        plaintext: section.flag("plaintext", problems),
        direct: direct(&section, around, address, problems),
        node,
        nodes: nodes(&section, node, problems),
    };
    check(&section, mode, &cluster, problems);
    cluster
}

/// The secrets that the file holds, one a line.
fn secrets(section: &Section<'_>, folder: &Path, problems: &mut Problems) -> Vec<Secret> {
    let Some(path) = section.path("secret_file", folder, problems) else { return Vec::new() };
    let place = section.place_of("secret_file");
    let key = section.key("secret_file");
    let name = path.display();
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) => {
            problems.add(place, format!("{key} \"{name}\" cannot be read: {error}; {NAME_A_FILE}"));
            return Vec::new();
        }
    };
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    let lines: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
    // What is in the file is not shown.
    let fault = match lines.len() {
        0 => Some("has no secret: write one, such as `openssl rand -hex 32` makes".into()),
        1..=MOST_SECRETS => None,
        many => Some(format!(
            "has {many} lines: remove some, for two secrets are the most, the first of which signs"
        )),
    };
    let short = lines.iter().any(|line| !SECRET.contains(&line.len()));
    let fault = fault.or_else(|| {
        let (least, most) = (SECRET.start(), SECRET.end());
        short.then(|| {
            format!("has a secret that is not of {least} to {most} characters: write another")
        })
    });
    match fault {
        Some(fault) => {
            problems.add(place, format!("{key} \"{name}\" {fault}"));
            Vec::new()
        }
        None => lines.into_iter().map(Secret::from).collect(),
    }
}

/// How others reach this process: an address, with a port or without.
fn address(section: &Section<'_>, problems: &mut Problems) -> (Option<IpAddr>, Option<u16>) {
    let Some(text) = section.text("address", problems) else { return (None, None) };
    let both = text.parse().map(|both: SocketAddr| (both.ip(), Some(both.port())));
    let read = both.or_else(|_| text.trim_matches(['[', ']']).parse().map(|ip: IpAddr| (ip, None)));
    match read {
        Ok((ip, port)) if !ip.is_unspecified() && port != Some(0) => (Some(ip), port),
        _ => {
            if let Some(node) = section.get("address") {
                let want = "an address by which the other gateways reach this one, such as \
                            \"10.0.0.1\" or \"10.0.0.1:10087\"";
                section.refuse("address", node, want, problems);
            }
            (None, None)
        }
    }
}

/// `http://HOST:PORT`.
fn fallback(section: &Section<'_>, listen: &Listen, problems: &mut Problems) -> Option<Dial> {
    let text = section.text("fallback", problems)?;
    let server = text.strip_prefix("http://").map(|rest| rest.strip_suffix('/').unwrap_or(rest));
    let dial = server.and_then(Dial::parse);
    if dial.is_none()
        && let Some(node) = section.get("fallback")
    {
        let want = "the old proxy's worker listener, such as \"http://old-proxy:10086\"";
        section.refuse("fallback", node, want, problems);
    }
    let own = dial.as_ref().is_some_and(|dial| dial.addresses.contains(&listen.worker));
    if own {
        let text = format!(
            "cluster.fallback is {text}, this gateway's own worker listener: name the old proxy's"
        );
        problems.add(section.place_of("fallback"), text);
    }
    dial.filter(|_| !own)
}

/// What workers dial to reach this process and no other.
fn direct(
    section: &Section<'_>,
    around: &Around<'_>,
    address: Option<IpAddr>,
    problems: &mut Problems,
) -> Option<String> {
    if !section.flag("direct", problems) {
        return None;
    }
    let worker = around.listen.worker;
    let ip = address.or(Some(worker.ip()).filter(|ip| !ip.is_unspecified()));
    let fault = match ip {
        None => "cluster.direct needs an address that workers can reach: write cluster.address",
        Some(_) if worker.port() == 0 => {
            "listen.worker has port 0, but workers need to know the port: write a number"
        }
        Some(ip) => {
            let scheme = if around.fronts.worker.tls.is_some() { "https" } else { "http" };
            return Some(format!("{scheme}://{}", SocketAddr::new(ip, worker.port())));
        }
    };
    problems.add(section.place_of("direct"), format!("cluster.direct: {fault}"));
    None
}

fn node(section: &Section<'_>, problems: &mut Problems) -> Option<u16> {
    let node = section.get("node")?;
    let number = number_of(node);
    if number.is_none() {
        section.refuse("node", node, &number_wanted(), problems);
    }
    number
}

fn number_wanted() -> String {
    format!("a number from 0 to {}, without quotes", NODE_LIMIT - 1)
}

fn number_of(node: &Node) -> Option<u16> {
    let Value::Whole(number) = node.value else { return None };
    u16::try_from(number).ok().filter(|number| *number < NODE_LIMIT)
}

fn nodes(
    section: &Section<'_>,
    own: Option<u16>,
    problems: &mut Problems,
) -> Vec<(u16, SocketAddr)> {
    let Some(list) = section.get("nodes") else { return Vec::new() };
    let Value::List(items) = &list.value else {
        let want = "a list: [{ node = 2, relay = \"10.0.0.2:10087\" }]";
        section.refuse("nodes", list, want, problems);
        return Vec::new();
    };
    let mut nodes: Vec<(u16, SocketAddr)> = Vec::new();
    for item in items {
        let Some((number, relay)) = one(item, problems) else { continue };
        if own == Some(number) {
            let text = format!("cluster.nodes has node {number}, which is this one: remove it");
            problems.add(item.place, text);
        } else if nodes.iter().any(|(other, _)| *other == number) {
            problems.add(item.place, format!("cluster.nodes has node {number} twice: remove one"));
        } else {
            nodes.push((number, relay));
        }
    }
    nodes
}

fn one(item: &Node, problems: &mut Problems) -> Option<(u16, SocketAddr)> {
    const NAMES: [&str; 2] = ["node", "relay"];
    for (key, _) in item.entries() {
        if !NAMES.contains(&&*key.name) {
            let full = format!("cluster.nodes.{}", key.name);
            problems.add(key.place, unknown(&full, &key.name, NAMES));
        }
    }
    let number = item.get("node").and_then(number_of);
    if number.is_none() {
        let place = item.get("node").map_or(item.place, |node| node.place);
        let text = format!(
            "cluster.nodes.node is missing or no such number: it must be {}",
            number_wanted()
        );
        problems.add(place, text);
    }
    let relay = item.get("relay").and_then(|node| match &node.value {
        Value::Text(text) => text.parse().ok(),
        _ => None,
    });
    let relay = relay.filter(|relay: &SocketAddr| !relay.ip().is_unspecified() && relay.port() > 0);
    if relay.is_none() {
        let place = item.get("relay").map_or(item.place, |node| node.place);
        let text = "cluster.nodes.relay must be where that node listens (its cluster.listen), such \
                    as \"10.0.0.2:10087\"";
        problems.add(place, text);
    }
    number.zip(relay)
}

/// Reports settings that contradict each other or have no effect.
fn check(section: &Section<'_>, mode: Mode, cluster: &Cluster, problems: &mut Problems) {
    let local = mode == Mode::Local;
    if section.get("secret_file").is_none() {
        for name in ["listen", "address", "plaintext", "node", "nodes"] {
            // Workers may be told the address.
            let alone = name == "address" && cluster.direct.is_some();
            if let Some(node) = section.get(name).filter(|_| !alone) {
                let text = format!(
                    "{} has no effect without cluster.secret_file: nothing is relayed; write the \
                     file's path, or remove it",
                    section.key(name)
                );
                problems.add(node.place, text);
            }
        }
        return;
    }
    for name in ["node", "nodes"] {
        match section.get(name) {
            Some(node) if !local => {
                let text = format!(
                    "{} has no effect in {} mode: gateways find each other over NATS; remove it",
                    section.key(name),
                    mode.name()
                );
                problems.add(node.place, text);
            }
            None if local => {
                let text = format!(
                    "{} is missing: in local mode gateways know each other by their files; write it",
                    section.key(name)
                );
                problems.add(section.place(), text);
            }
            _ => {}
        }
    }
    if local && section.get("listen").is_none() {
        let text = "cluster.listen is missing: in local mode the other gateways' files name it; write it, such \
                    as \"10.0.0.1:10087\"";
        problems.add(section.place(), text);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Config, Environment, Source};

    const NATS: &str = "[listen]\nworker = \"10.0.0.1:10086\"\n[control]\nmode = \"nats\"\n\
        [[tenant]]\nname = \"t\"\nclient_keys = [\"k\"]\n[[function]]\n\
        id = \"11111111-1111-4111-8111-111111111111\"\n\
        version = \"22222222-2222-4222-8222-222222222222\"\ntenants = [\"t\"]\n";

    /// A configuration with this `[cluster]`, and this file of secrets beside it.
    fn read(name: &str, mode: &str, cluster: &str, secrets: &str) -> Result<Config, String> {
        let folder =
            std::env::temp_dir().join(format!("ringway-cluster-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("secrets"), secrets).unwrap();
        let local = mode == "local";
        let text = NATS.replace("\"nats\"", &format!("\"{mode}\""));
        let text =
            if local { text.replace("tenants", "worker_keys = [\"w\"]\ntenants") } else { text };
        let file = folder.join("x.toml");
        std::fs::write(&file, text + "[cluster]\n" + cluster).unwrap();
        let environment: Environment = [("POD_IP", "10.0.0.9")].into_iter().collect();
        let read = Source::new(Some(file), environment).load().map_err(|all| all.to_string());
        std::fs::remove_dir_all(folder).unwrap();
        read
    }

    const ONE: &str = "0123456789abcdef0123456789abcdef\n";
    const FILE: &str = "secret_file = \"secrets\"\n";

    #[test]
    fn gateways_that_find_each_other_over_nats_need_a_secret_and_no_more() {
        let both = format!("# the new one\n{ONE}\nthe old one, which is long\n");
        for (secrets, count) in [(ONE, 1), (&both, 2)] {
            let cluster = read("good", "nats", FILE, secrets).unwrap().cluster;
            assert!(cluster.relays());
            assert_eq!(
                (cluster.secrets.len(), cluster.secrets[0].bytes()),
                (count, ONE.trim().as_bytes())
            );
            assert_eq!(cluster.listen, "0.0.0.0:0".parse().unwrap());
            assert_eq!((cluster.address, cluster.port), (Some("10.0.0.9".parse().unwrap()), None));
            assert!(!cluster.plaintext && cluster.direct.is_none() && cluster.fallback.is_none());
        }
        let none = read("none", "nats", "", "").unwrap().cluster;
        assert!(!none.relays());
        let more = "address = \"10.0.0.7:99\"\nfallback = \"http://10.0.0.3:10086/\"\n\
                    direct = true\nplaintext = true\n";
        let cluster = read("more", "nats", &(FILE.to_owned() + more), ONE).unwrap().cluster;
        assert_eq!((cluster.address, cluster.port), (Some("10.0.0.7".parse().unwrap()), Some(99)));
        assert_eq!(cluster.direct.as_deref(), Some("http://10.0.0.7:10086"));
        assert_eq!(cluster.fallback.unwrap().server, "10.0.0.3:10086");
        let local = "listen = \"10.0.0.1:7\"\nnode = 1\n\
                     nodes = [{ node = 2, relay = \"10.0.0.2:7\" }]\n";
        let cluster = read("local", "local", &(FILE.to_owned() + local), ONE).unwrap().cluster;
        assert_eq!(
            (cluster.node, cluster.nodes),
            (Some(1), vec![(2, "10.0.0.2:7".parse().unwrap())])
        );
    }

    #[test]
    fn what_contradicts_itself_is_told_with_the_fix() {
        let with = |more: &str| FILE.to_owned() + more;
        let local = "listen = \"10.0.0.1:7\"\nnode = 1\n";
        for (mode, cluster, secrets, said) in [
            ("nats", with(""), "", "has no secret: write one"),
            ("nats", with(""), "short", "not of 16 to 4096 characters"),
            ("nats", with(""), "a\nb\nc", "has 3 lines"),
            ("nats", "secret_file = \"nothing\"".into(), "", "cannot be read"),
            ("nats", "plaintext = true".into(), "", "no effect without cluster.secret_file"),
            ("nats", "listen = \"0.0.0.0:7\"".into(), "", "no effect without cluster.secret_file"),
            ("nats", with("node = 1"), ONE, "cluster.node has no effect in nats mode"),
            ("nats", with("address = \"0.0.0.0\""), ONE, "by which the other gateways reach"),
            ("nats", with("address = \"node\""), ONE, "by which the other gateways reach"),
            ("nats", with("fallback = \"https://x:1\""), ONE, "the old proxy's worker listener"),
            ("nats", with("fallback = \"http://10.0.0.1:10086\""), ONE, "own worker listener"),
            ("local", with(local), ONE, "cluster.nodes is missing"),
            ("local", with("node = 4096"), ONE, "a number from 0 to 4095"),
            ("local", with("node = 1\nnodes = []"), ONE, "cluster.listen is missing"),
            (
                "local",
                with(&(local.to_owned() + "nodes = [{ node = 1, relay = \"10.0.0.2:7\" }]")),
                ONE,
                "node 1, which is this one",
            ),
            (
                "local",
                with(&(local.to_owned() + "nodes = [{ node = 2, realy = \"10.0.0.2:7\" }]")),
                ONE,
                "did you mean `relay`?",
            ),
        ] {
            let told = read("bad", mode, &cluster, secrets).expect_err(said);
            assert!(told.contains(said), "{cluster}: {told}");
            assert!(!told.contains(ONE.trim()), "{told}");
        }
    }
}
