//! The effective configuration for people: every setting, and where its value comes from. Secrets
//! are left out.

use std::path::Path;

use serde::Serialize;

use super::environment::Environment;
use super::node::{Node, Value};
use super::problems::Origin;
use super::settings::{SETTINGS, Setting};
use super::{Config, Mode};

/// Shown in place of a secret.
const HIDDEN: &str = "(not shown)";

/// A setting, its value as it would be written, and where the value comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Effective {
    /// The setting's name, with its table.
    pub key: String,
    /// The value; empty if there is none.
    pub value: String,
    /// `FILE:LINE`, a variable's name, or `default`.
    pub origin: String,
}

/// All settings: those of single tables in the order of the manual, then tenants and functions.
pub(super) fn of(
    root: &Node,
    config: &Config,
    (file, environment): (&str, &Environment),
) -> Vec<Effective> {
    let mut all = Vec::new();
    for setting in SETTINGS.iter().filter(|setting| setting.built && setting.has_variable()) {
        let (value, origin) = match written(root, setting.key) {
            Some(node) => (shown(setting.key, node), origin(node.place, file)),
            None => unwritten(setting, config),
        };
        all.push(Effective { key: setting.key.into(), value, origin });
    }
    if config.control.mode == Mode::Nvcf && environment.has("NATS_PRIVATE_NKEY") {
        let (key, value) = ("nats.nkey".into(), HIDDEN.into());
        all.push(Effective { key, value, origin: "NATS_PRIVATE_NKEY".into() });
    }
    for table in ["tenant", "function"] {
        let Some(Node { value: Value::List(items), .. }) = root.get(table) else { continue };
        for (at, item) in items.iter().enumerate() {
            for (key, node) in item.entries() {
                let key = format!("{table}[{at}].{}", key.name);
                let (value, origin) = (shown(&key, node), origin(node.place, file));
                all.push(Effective { key, value, origin });
            }
        }
    }
    all
}

/// The written value of a setting. A listener's address may be written in a table.
fn written<'a>(root: &'a Node, key: &str) -> Option<&'a Node> {
    let node = root.at(key)?;
    match &node.value {
        Value::Table(_) => node.get("address"),
        Value::Empty => None,
        _ => Some(node),
    }
}

/// The value of a setting that nobody has written.
fn unwritten(setting: &Setting, config: &Config) -> (String, String) {
    let default = |value: String| (value, "default".into());
    match setting.key {
        "control.mode" => (config.control.mode.name().into(), config.control.why.clone()),
        "control.advertise" if config.control.advertise.is_some() => {
            default(masked(config.control.advertise.as_deref().unwrap_or_default()))
        }
        "keepalive.client_timeout" => default(format!("{:?}", config.keepalive.client_timeout)),
        _ => default(setting.default.trim_matches('"').into()),
    }
}

fn origin(place: Origin, file: &str) -> String {
    match place {
        Origin::Line(line) => format!("{file}:{line}"),
        Origin::Variable(name) => name.into(),
        Origin::Default => "default of this mode".into(),
    }
}

/// A value as text, without secrets.
fn shown(key: &str, node: &Node) -> String {
    match &node.value {
        // Any value in the place of keys may be a key.
        Value::List(items) if key.ends_with("_keys") => format!("{} keys {HIDDEN}", items.len()),
        _ if key.ends_with("_keys") => HIDDEN.into(),
        Value::List(items) => {
            items.iter().map(|item| shown(key, item)).collect::<Vec<_>>().join(", ")
        }
        Value::Text(text) => masked(text),
        Value::Whole(number) => number.to_string(),
        Value::Flag(flag) => flag.to_string(),
        Value::Table(_) | Value::Empty | Value::Other(_) => node.kind().into(),
    }
}

/// A text without the user and the password of a URL in it.
pub(super) fn masked(text: &str) -> String {
    match userinfo(text) {
        Some(secret) => text.replacen(secret, "***", 1),
        None => text.into(),
    }
}

/// The user and the password of a URL (RFC 3986 section 3.2.1).
fn userinfo(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    authority.rsplit_once('@').map(|(secret, _)| secret).filter(|secret| !secret.is_empty())
}

/// Every secret in the tree, or in a file that it names. They are taken out of everything that is
/// shown of this process.
pub(super) fn secrets(root: &Node, folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    gather(root, "", folder, &mut found);
    found.retain(|secret| !secret.is_empty());
    // The longest first, because one may be a part of another.
    found.sort_unstable_by_key(|secret| std::cmp::Reverse(secret.len()));
    found.dedup();
    found
}

fn gather(node: &Node, name: &str, folder: &Path, found: &mut Vec<String>) {
    match &node.value {
        Value::Table(entries) => {
            entries.iter().for_each(|(key, node)| gather(node, &key.name, folder, found));
        }
        Value::List(items) => items.iter().for_each(|item| gather(item, name, folder, found)),
        Value::Text(text) if name.ends_with("_keys") => found.push(text.clone()),
        Value::Text(text) => {
            found.extend(userinfo(text).map(str::to_owned));
            if name.ends_with("_file") && name != "ca_file" && name != "cert_file" {
                // A file that cannot be read has no secret to hide.
                let text = std::fs::read_to_string(folder.join(text)).unwrap_or_default();
                let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
                found.extend(lines.map(|line| line.trim().to_owned()));
            }
        }
        Value::Whole(_) | Value::Flag(_) | Value::Empty | Value::Other(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Source;

    const FILE: &str = "[listen]\nclient = \"127.0.0.1:1\"\nworker = { address = \"127.0.0.1:2\" }\n\
        [control]\nadvertise = \"http://me:canary-url@h:1\"\n[[tenant]]\nname = \"t\"\n\
        client_keys = [\"canary-client\"]\n[[function]]\n\
        id = \"11111111-1111-4111-8111-111111111111\"\n\
        version = \"22222222-2222-4222-8222-222222222222\"\ntenants = [\"t\"]\n\
        worker_keys = [\"canary-worker\"]\nworker_keys_file = \"keys\"\n";

    #[test]
    fn each_value_has_its_origin_and_no_secret_is_shown() {
        let folder = std::env::temp_dir().join(format!("ringway-effective-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("keys"), "canary-file # a comment\n").unwrap();
        let file = folder.join("x.toml");
        std::fs::write(&file, FILE.replace("me:canary-url@", "")).unwrap();
        let environment = [("RINGWAY__SESSION__WAIT", "7s")].into_iter().collect();
        let source = Source::new(Some(file.clone()), environment);
        let all = source.effective().unwrap();
        let of = |key: &str| {
            let found = all.iter().find(|one| one.key == key).unwrap_or_else(|| panic!("{key}"));
            (found.value.as_str(), found.origin.replace(&*file.to_string_lossy(), "x.toml"))
        };
        assert_eq!(of("listen.client"), ("127.0.0.1:1", "x.toml:2".into()));
        assert_eq!(of("listen.worker"), ("127.0.0.1:2", "x.toml:3".into()));
        assert_eq!(of("session.wait"), ("7s", "RINGWAY__SESSION__WAIT".into()));
        assert_eq!(of("session.park_window"), ("30s", "default".into()));
        assert_eq!(of("control.mode").0, "local");
        assert_eq!(of("tenant[0].client_keys"), ("1 keys (not shown)", "x.toml:8".into()));
        assert_eq!(of("function[0].worker_keys_file").0, "keys");
        assert!(!format!("{all:?}").contains("canary"), "{all:?}");
        std::fs::write(&file, FILE).unwrap();
        let secrets = source.secrets();
        for canary in ["me:canary-url", "canary-client", "canary-worker", "canary-file"] {
            assert!(secrets.iter().any(|secret| secret == canary), "{canary}: {secrets:?}");
        }
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_url_shows_where_it_leads_and_no_password() {
        for (text, shown) in [
            ("nats://me:secret@nats:4222", "nats://***@nats:4222"),
            ("http://h/a@b", "http://h/a@b"),
            ("http://a@b@h/", "http://***@h/"),
            ("a@b", "a@b"),
        ] {
            assert_eq!(masked(text), shown);
        }
    }
}
