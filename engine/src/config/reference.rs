//! The variables of NVIDIA's proxy, which this gateway replaces (contract 9), in `nvcf` mode. Most
//! are settings by other names. Some ask for features that this gateway lacks.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use super::Secret;
use super::environment::{Environment, list};
use super::node::{Node, Value};
use super::problems::{Origin, Problems};

/// The API's address. If no mode is set, it makes the mode `nvcf`.
pub(super) const API: &str = "NVCF_FQDN_GRPC";

/// The variable that makes the proxy test itself, and this gateway's note about it.
pub(super) const TRIAL: &str = "LOCAL_TEST";
pub(super) const NO_TRIAL: &str = "is true: unset it, or use `ringway dev` to try things out";

/// Names that are a setting's other names.
const SETTINGS: [(&str, &str); 7] = [
    (API, "nvcf.api"),
    ("NATS_FQDN", "nats.urls"),
    ("SSA_FQDN", "nvcf.oauth"),
    ("SECRETS_PATH", "control.secrets_file"),
    ("SELF_WORKER_FQDN", "control.advertise"),
    ("AWS_REGION", "nats.region"),
    ("JETSTREAM_PLACEMENT_TAG", "nats.placement"),
];

const LIMITER: &str = "nvcf.limiter";

/// The variables that are not another name of a setting.
#[derive(Debug, Default)]
pub(super) struct Reference {
    /// The seed of an NKey.
    pub(super) nkey: Option<Secret>,
    /// This pod's address, which workers dial by default.
    pub(super) pod: Option<IpAddr>,
    /// The version to report.
    pub(super) version: Option<Arc<str>>,
    /// The proxy's own configuration files, which are not read.
    pub(super) unread: Vec<PathBuf>,
}

/// Writes the variables over the values of a file, and under those of this program's own variables.
/// Reports what they ask for and cannot have.
pub(super) fn read(
    environment: &Environment,
    root: &mut Node,
    problems: &mut Problems,
) -> Reference {
    let mut from = Variables { environment, problems };
    for (name, key) in SETTINGS {
        if let Some(text) = from.get(name) {
            let place = Origin::Variable(name);
            let value =
                if key == "nats.urls" { list(text, place) } else { Value::Text(text.into()) };
            under(root, key, Node { place, value });
        }
    }
    from.limiter(root);
    from.check();
    Reference {
        nkey: from.get("NATS_PRIVATE_NKEY").map(Secret::from),
        pod: from.pod(),
        version: from.get("VERSION").map(Into::into),
        unread: unread(environment),
    }
}

/// Writes a value unless a variable has written one already.
fn under(root: &mut Node, key: &str, node: Node) {
    if !by_variable(root, key) {
        root.put(key, node);
    }
}

fn by_variable(root: &Node, key: &str) -> bool {
    root.at(key).is_some_and(|node| matches!(node.place, Origin::Variable(_)))
}

/// The proxy's configuration files, if there are any.
pub(super) fn unread(environment: &Environment) -> Vec<PathBuf> {
    const FILE: &str = ".nvkit/config.yaml";
    let mut problems = Problems::default();
    // If the home directory's path is no text, such a file could not be named.
    let home = environment.get("HOME", &mut problems).map(|home| PathBuf::from(home).join(FILE));
    let mut found: Vec<PathBuf> =
        home.into_iter().chain([FILE.into()]).filter(|file| file.is_file()).collect();
    found.dedup_by_key(|file| file.canonicalize().ok());
    found
}

struct Variables<'a, 'p> {
    environment: &'a Environment,
    problems: &'p mut Problems,
}

impl<'a> Variables<'a, '_> {
    fn get(&mut self, name: &'static str) -> Option<&'a str> {
        self.environment.get(name, self.problems)
    }

    fn refuse(&mut self, name: &'static str, text: impl Into<String>) {
        self.problems.add(Origin::Variable(name), text);
    }

    /// A flag as Go writes it (`strconv.ParseBool`); none if it is not set.
    fn flag(&mut self, name: &'static str) -> Option<bool> {
        let text = self.get(name)?;
        let flag = go_flag(text);
        if flag.is_none() {
            self.refuse(name, format!("is \"{text}\", but must be true or false"));
        }
        flag
    }

    /// The limiter's address counts only if its switch is on. A switch that is off overrides the
    /// file.
    fn limiter(&mut self, root: &mut Node) {
        const SWITCH: &str = "RATE_LIMIT_ENABLED";
        const ADDRESS: &str = "RATE_LIMIT_ADDR";
        let (wanted, address) = (self.flag(SWITCH), self.get(ADDRESS));
        match (wanted, address) {
            (Some(true), Some(text)) => {
                let place = Origin::Variable(ADDRESS);
                under(root, LIMITER, Node { place, value: Value::Text(text.into()) });
            }
            (Some(true), None) if root.at(LIMITER).is_none() => {
                let text = "is true, but there is no limiter: set RATE_LIMIT_ADDR to its URL, or \
                            RATE_LIMIT_ENABLED=false";
                self.refuse(SWITCH, text);
            }
            (Some(false), _) if !by_variable(root, LIMITER) => root.remove(LIMITER),
            _ => {}
        }
    }

    /// Reports the features that the proxy has and this gateway lacks, so that nobody misses one
    /// unawares.
    fn check(&mut self) {
        if self.flag(TRIAL) == Some(true) {
            self.refuse(TRIAL, NO_TRIAL);
        }
        if self.flag("ENABLE_HTTP3_CONNECT") == Some(true) {
            let text = "is true, but workers cannot dial back over HTTP/3: set \
                        ENABLE_HTTP3_CONNECT=false";
            self.refuse("ENABLE_HTTP3_CONNECT", text);
        }
        for (name, why) in [
            ("ENABLE_HTTP1_CONNECT", "workers dial back over HTTP/1.1 only"),
            ("GEO_DISABLED", "there is no routing by where clients are"),
        ] {
            let before = self.problems.len();
            let flag = self.flag(name);
            // If no variable of the proxy says what to serve, none of its features is missed.
            let missed = flag.is_some() || self.environment.has(API);
            if missed && flag != Some(true) && self.problems.len() == before {
                let is = if flag.is_some() { "is false" } else { "is not set, which means false" };
                self.refuse(name, format!("{is}, but {why}: set {name}=true"));
            }
        }
    }

    fn pod(&mut self) -> Option<IpAddr> {
        const NAME: &str = "POD_IP";
        let text = self.get(NAME)?;
        let address: Option<IpAddr> = text.trim_matches(['[', ']']).parse().ok();
        match address {
            Some(address) if !address.is_unspecified() => Some(address),
            _ => {
                self.refuse(NAME, format!("is \"{text}\", but must be this pod's IP address"));
                None
            }
        }
    }
}

/// Reads a flag as Go does.
pub(super) fn go_flag(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(file: &str, variables: &[(&str, &str)]) -> (Node, Reference, String) {
        let mut problems = Problems::of_environment();
        let mut root = Node::from_toml(file, &mut problems);
        let usual = [("GEO_DISABLED", "true"), ("ENABLE_HTTP1_CONNECT", "1")];
        let environment: Environment = usual.iter().chain(variables).copied().collect();
        environment.lay_over(&mut root, &mut problems);
        let reference = read(&environment, &mut root, &mut problems);
        (root, reference, problems.sorted().to_string())
    }

    fn text(root: &Node, key: &str) -> Option<String> {
        match &root.at(key)?.value {
            Value::Text(text) => Some(text.clone()),
            other => Some(format!("{other:?}")),
        }
    }

    #[test]
    fn the_names_stand_between_our_own_and_the_file() {
        let file = "[nvcf]\napi = \"http://file\"\noauth = \"http://file\"\n";
        let ours = ("RINGWAY__NVCF__OAUTH", "http://ours");
        let theirs = [("NVCF_FQDN_GRPC", "http://theirs"), ("SSA_FQDN", "http://theirs"), ours];
        let (root, _, told) = of(file, &theirs);
        assert_eq!(told, "");
        assert_eq!(text(&root, "nvcf.api").unwrap(), "http://theirs");
        assert_eq!(text(&root, "nvcf.oauth").unwrap(), "http://ours");
        assert_eq!(text(&of(file, &[]).0, "nvcf.api").unwrap(), "http://file");
        let (root, ..) = of("", &[("NATS_FQDN", "nats://a:1,nats://b:2")]);
        let Value::List(list) = &root.at("nats.urls").unwrap().value else { panic!("a list") };
        assert_eq!(list.len(), 2);
    }

    #[test]
    fn the_limiter_needs_its_switch() {
        let address = ("RATE_LIMIT_ADDR", "http://limiter:1");
        let limiter = |file, variables: &[_]| text(&of(file, variables).0, "nvcf.limiter");
        let file = "[nvcf]\nlimiter = \"http://file\"\n";
        assert_eq!(limiter("", &[address]), None);
        assert_eq!(limiter("", &[address, ("RATE_LIMIT_ENABLED", "f")]), None);
        assert_eq!(limiter("", &[address, ("RATE_LIMIT_ENABLED", "t")]).unwrap(), address.1);
        assert_eq!(limiter(file, &[]).unwrap(), "http://file");
        assert_eq!(limiter(file, &[("RATE_LIMIT_ENABLED", "true")]).unwrap(), "http://file");
        assert_eq!(limiter(file, &[("RATE_LIMIT_ENABLED", "0")]), None);
        let ours = ("RINGWAY__NVCF__LIMITER", "http://ours");
        assert_eq!(limiter(file, &[ours, ("RATE_LIMIT_ENABLED", "0")]).unwrap(), "http://ours");
        let (.., told) = of("", &[("RATE_LIMIT_ENABLED", "true")]);
        assert!(told.contains("set RATE_LIMIT_ADDR"), "{told}");
    }

    #[test]
    fn what_it_asks_for_and_cannot_have_is_told_in_one_line_each() {
        for (name, value, said) in [
            ("GEO_DISABLED", "", "is not set, which means false"),
            ("GEO_DISABLED", "False", "set GEO_DISABLED=true"),
            ("GEO_DISABLED", "yes", "must be true or false"),
            ("ENABLE_HTTP1_CONNECT", "", "set ENABLE_HTTP1_CONNECT=true"),
            ("ENABLE_HTTP1_CONNECT", "0", "set ENABLE_HTTP1_CONNECT=true"),
            ("ENABLE_HTTP3_CONNECT", "T", "set ENABLE_HTTP3_CONNECT=false"),
            ("ENABLE_HTTP3_CONNECT", "2", "must be true or false"),
            ("LOCAL_TEST", "TRUE", "`ringway dev`"),
            ("POD_IP", "10.0.0.256", "must be this pod's IP address"),
            ("POD_IP", "::", "must be this pod's IP address"),
        ] {
            let mut problems = Problems::of_environment();
            let all =
                [("GEO_DISABLED", "true"), ("ENABLE_HTTP1_CONNECT", "1"), (API, "http://api")];
            let all = all.into_iter().filter(|(other, _)| *other != name).chain([(name, value)]);
            let environment: Environment = all.collect();
            read(&environment, &mut Node::empty(Origin::Default), &mut problems);
            let told = problems.to_string();
            assert!(told.starts_with(&format!("{name}: ")) && told.contains(said), "{told}");
            assert_eq!(told.lines().count(), 1, "{told}");
        }
        for name in ["ENABLE_HTTP3_CONNECT", "LOCAL_TEST"] {
            for value in ["", "false", "0"] {
                assert_eq!(of("", &[(name, value)]).2, "");
            }
        }
    }

    #[test]
    fn the_rest_arrives() {
        let (_, all, told) =
            of("", &[("NATS_PRIVATE_NKEY", "SU"), ("POD_IP", "[2001:db8::1]"), ("VERSION", "1.2")]);
        assert_eq!((told.as_str(), all.version.as_deref()), ("", Some("1.2")));
        assert_eq!((all.nkey.unwrap().bytes(), all.pod.unwrap().is_ipv6()), (&b"SU"[..], true));
    }

    #[test]
    fn the_proxys_own_file_is_found_at_home() {
        let home = std::env::temp_dir().join(format!("ringway-home-{}", std::process::id()));
        std::fs::create_dir_all(home.join(".nvkit")).unwrap();
        let at = |home: &PathBuf| unread(&[("HOME", home.clone())].into_iter().collect());
        assert!(at(&home).is_empty());
        let file = home.join(".nvkit/config.yaml");
        std::fs::write(&file, "x: y\n").unwrap();
        assert_eq!(at(&home), [file]);
        std::fs::remove_dir_all(home).unwrap();
    }
}
