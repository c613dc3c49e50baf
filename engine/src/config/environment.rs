//! A snapshot of the environment, and the settings among its variables (design 3.21).

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::sync::OnceLock;

use super::node::{Node, Value};
use super::problems::{At, Origin, Problems, nearest};
use super::settings::{Kind, SETTINGS, Setting};
use super::syntax::{PREFIX, Syntax, variable};

/// The end of the variable for a listener's address in its table.
const ADDRESS: &str = "__ADDRESS";

/// The variables of a process as they were at one moment. Empty ones count as unset.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<String, OsString>);

impl Environment {
    /// The variables of this process.
    #[must_use]
    pub fn of_process() -> Self {
        std::env::vars_os().collect()
    }

    /// Whether a variable is set.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The value of a variable, if it is set. A value that is no text is reported.
    pub(super) fn get(&self, name: &'static str, problems: &mut Problems) -> Option<&str> {
        let text = self.0.get(name)?.to_str();
        if text.is_none() {
            problems.add(Origin::Variable(name), NO_TEXT);
        }
        text
    }

    /// Writes the settings among the variables over those of a file.
    pub(super) fn lay_over(&self, root: &mut Node, problems: &mut Problems) {
        let from = PREFIX.to_owned()..;
        for (name, value) in self.0.range(from).take_while(|(name, _)| name.starts_with(PREFIX)) {
            let Some((name, setting)) = variables().get_key_value(name) else {
                let text = unknown(name, problems);
                problems.add(At::Unknown(name.clone()), text);
                continue;
            };
            match value.to_str() {
                Some(value) => put(root, setting, read(setting.kind, value, name)),
                None => problems.add(Origin::Variable(name), NO_TEXT),
            }
        }
    }
}

const NO_TEXT: &str = "the value is no UTF-8: write it as text";

impl<N: Into<OsString>, V: Into<OsString>> FromIterator<(N, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(all: I) -> Self {
        let all = all.into_iter().map(|(name, value)| (name.into(), value.into()));
        // A variable whose name is no text cannot be a setting.
        let texts = all.filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
        Self(texts.filter(|(_, value)| !value.is_empty()).collect())
    }
}

impl fmt::Debug for Environment {
    /// Leaves the values out, because one may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// The variables that hold settings.
fn variables() -> &'static BTreeMap<String, &'static Setting> {
    static ALL: OnceLock<BTreeMap<String, &'static Setting>> = OnceLock::new();
    ALL.get_or_init(|| {
        let held = SETTINGS.iter().filter(|setting| setting.has_variable());
        held.map(|setting| (variable(setting.key), setting)).collect()
    })
}

/// Reads a value as its setting's kind. An invalid value stays a text, and whoever reads the
/// setting refuses it.
fn read(kind: Kind, text: &str, name: &'static str) -> Node {
    let place = Origin::Variable(name);
    let whole = || text.parse().ok().map(Value::Whole);
    let value = match kind {
        Kind::Flag => text.parse().ok().map(Value::Flag),
        Kind::Count(..) => whole(),
        Kind::CountOr(word, ..) if text != word => whole(),
        Kind::List(_) => Some(list(text, place)),
        _ => None,
    };
    Node { place, value: value.unwrap_or_else(|| Value::Text(text.into())) }
}

/// A list in one variable: its items are separated by commas.
pub(super) fn list(text: &str, place: Origin) -> Value {
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    Value::List(items.map(|item| Node { place, value: Value::Text(item.into()) }).collect())
}

/// Writes a value in the place of its setting. A listener's address may be written alone (`client =
/// "..."`) or in the listener's table.
fn put(root: &mut Node, setting: &Setting, node: Node) {
    let key = setting.key;
    if let Kind::Address = setting.kind
        && let Some(Node { value: Value::Table(_), .. }) = root.at(key)
    {
        return root.put(&format!("{key}.address"), node);
    }
    let mut parts = key.splitn(3, '.');
    if let (Some("listen"), Some(listener), Some(_)) = (parts.next(), parts.next(), parts.next()) {
        let listener = format!("listen.{listener}");
        if let Some(Node { value: Value::Text(text), place }) = root.at(&listener) {
            let (place, address) = (*place, Value::Text(text.clone()));
            root.put(&listener, Node::empty(place));
            root.put(&format!("{listener}.address"), Node { place, value: address });
        }
    }
    root.put(key, node);
}

/// The problem with a variable that has the prefix of settings and names none.
fn unknown(name: &str, problems: &Problems) -> String {
    let rest = &name[PREFIX.len()..];
    let list = ["TENANT", "FUNCTION", "CLUSTER__NODES"].into_iter().find(|list| {
        let more = rest.strip_prefix(list);
        more.is_some_and(|more| more.is_empty() || more.starts_with("__"))
    });
    if let Some(list) = list {
        let table = list.to_lowercase().replace("__", ".");
        return match problems.syntax() {
            Syntax::Environment => format!(
                "lists of tables have no variables: write [[{table}]] into a file, start with \
                 --config FILE, and unset this"
            ),
            syntax => format!(
                "lists of tables have no variables: write {} into {}, and unset this",
                syntax.item(&table),
                problems.file()
            ),
        };
    }
    let all = variables();
    let alone = name.strip_suffix(ADDRESS).filter(|name| all.contains_key(*name));
    // The prefix is left out, because it would make all names alike.
    let near = || nearest(rest, all.keys().map(|name| &name[PREFIX.len()..]));
    match alone.map(ToString::to_string).or_else(|| near().map(|near| PREFIX.to_owned() + near)) {
        Some(near) => format!("is not a setting; did you mean {near}?"),
        None => "is not a setting: unset it".into(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    fn laid(over: &str, variables: &[(&str, &str)]) -> (Node, String) {
        let mut problems = Problems::new("x.toml");
        let mut root = Node::from_toml(over, &mut problems);
        let environment: Environment = variables.iter().copied().collect();
        environment.lay_over(&mut root, &mut problems);
        (root, problems.sorted().to_string())
    }

    #[track_caller]
    fn kind_at(root: &Node, key: &str) -> (&'static str, Origin) {
        let node = root.at(key).expect(key);
        (node.kind(), node.place)
    }

    #[test]
    fn a_value_is_read_as_its_kind_has_it() {
        for (name, value, key, kind) in [
            ("RINGWAY__CORES__PIN", "false", "cores.pin", "true or false"),
            ("RINGWAY__CORES__PIN", "no", "cores.pin", "a text"),
            ("RINGWAY__CORES__COUNT", "4", "cores.count", "a number"),
            ("RINGWAY__CORES__COUNT", "auto", "cores.count", "a text"),
            ("RINGWAY__LIMITS__STREAMS", "7", "limits.streams", "a number"),
            ("RINGWAY__SESSION__WAIT", "120s", "session.wait", "a text"),
            ("RINGWAY__NATS__URLS", "nats://a, nats://b,", "nats.urls", "a list"),
            ("RINGWAY__CLUSTER__NODE", "1", "cluster.node", "a number"),
        ] {
            let (root, told) = laid("", &[(name, value)]);
            assert_eq!(told, "");
            let leaked = variables().get_key_value(name).unwrap().0;
            assert_eq!(kind_at(&root, key), (kind, Origin::Variable(leaked)), "{name}={value}");
        }
        let (root, _) = laid("", &[("RINGWAY__NATS__URLS", "nats://a, nats://b,")]);
        let Value::List(list) = &root.at("nats.urls").unwrap().value else { panic!("a list") };
        assert_eq!(list.len(), 2);
    }

    #[test]
    fn a_variable_wins_over_the_file_wherever_the_file_has_it() {
        let alone = "[listen]\nclient = \"127.0.0.1:1\"\n[session]\nwait = \"1s\"\n";
        let tls = "RINGWAY__LISTEN__CLIENT__TLS__CERT";
        let address = ("RINGWAY__LISTEN__CLIENT", "127.0.0.1:2");
        let (root, _) = laid(alone, &[address, ("RINGWAY__SESSION__WAIT", "2s")]);
        assert!(matches!(root.at("listen.client").unwrap().place, Origin::Variable(_)));
        assert!(matches!(root.at("session.wait").unwrap().place, Origin::Variable(_)));
        let (root, _) = laid(alone, &[(tls, "a.pem")]);
        assert_eq!(kind_at(&root, "listen.client.address"), ("a text", Origin::Line(2)));
        assert!(matches!(root.at("listen.client.tls.cert").unwrap().place, Origin::Variable(_)));
        let table = "[listen.client]\naddress = \"127.0.0.1:1\"\nproxy_protocol = true\n";
        let (root, _) = laid(table, &[address, (tls, "a.pem")]);
        assert!(matches!(root.at("listen.client.address").unwrap().place, Origin::Variable(_)));
        let flag = ("true or false", Origin::Line(3));
        assert_eq!(kind_at(&root, "listen.client.proxy_protocol"), flag);
        let (root, _) = laid("", &[address, (tls, "a.pem")]);
        assert!(root.at("listen.client.address").is_some());
    }

    #[test]
    fn an_unknown_name_is_told_with_the_nearest() {
        for (name, said) in [
            ("RINGWAY__LISTN__CLIENT", "did you mean RINGWAY__LISTEN__CLIENT?"),
            ("RINGWAY__LISTEN__CLIENT__ADDRESS", "did you mean RINGWAY__LISTEN__CLIENT?"),
            (
                "RINGWAY__LISTEN__CLIENT__TLS__CERTS",
                "did you mean RINGWAY__LISTEN__CLIENT__TLS__CERT?",
            ),
            ("RINGWAY__SOMETHING_ELSE_ALTOGETHER", "is not a setting: unset it"),
            ("RINGWAY__", "is not a setting: unset it"),
            ("RINGWAY__TENANT__NAME", "write a [[tenant]] into x.toml"),
            ("RINGWAY__FUNCTION", "write a [[function]] into x.toml"),
            ("RINGWAY__CLUSTER__NODES", "write a [[cluster.nodes]] into x.toml"),
        ] {
            let (_, told) = laid("", &[(name, "x")]);
            assert!(told.starts_with(&format!("{name}: ")) && told.contains(said), "{told}");
            assert_eq!(told.lines().count(), 1, "{told}");
        }
        let problems = Problems::of_environment();
        assert!(unknown("RINGWAY__TENANT__NAME", &problems).contains("--config FILE"));
    }

    #[test]
    fn what_is_empty_or_somebody_elses_is_no_setting() {
        let (root, told) = laid(
            "",
            &[
                ("RINGWAY__SESSION__WAIT", ""),
                ("RINGWAY__NONSENSE", ""),
                ("RINGWAY_PORT", "tcp://10.0.0.1:80"),
                ("RINGWAY_SESSION_WAIT", "1s"),
                ("ringway__session__wait", "1s"),
                ("TRACING", "none"),
            ],
        );
        assert_eq!((root.entries().len(), told.as_str()), (0, ""));
    }

    #[test]
    fn a_value_that_is_no_text_is_told_and_none_is_shown() {
        let value = OsString::from_vec(vec![0xff, b'h', b'i']);
        let environment: Environment = [("RINGWAY__SESSION__WAIT", value)].into_iter().collect();
        let mut problems = Problems::of_environment();
        environment.lay_over(&mut Node::empty(Origin::Default), &mut problems);
        assert!(problems.to_string().starts_with("RINGWAY__SESSION__WAIT: the value is no UTF-8"));
        let environment: Environment = [("NATS_PRIVATE_NKEY", "SUSECRET")].into_iter().collect();
        assert_eq!(format!("{environment:?}"), "{\"NATS_PRIVATE_NKEY\"}");
    }
}
