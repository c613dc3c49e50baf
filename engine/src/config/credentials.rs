//! Files that systemd hands to the service (`LoadCredential=`, systemd.exec(5)): a path may be
//! written `credential:NAME`.

use std::path::Path;

use super::environment::Environment;
use super::node::{Node, Value};
use super::problems::Problems;
use super::settings::{Kind, Setting};

/// The prefix of such a path.
const PREFIX: &str = "credential:";
/// Where systemd puts the files.
const FOLDER: &str = "CREDENTIALS_DIRECTORY";

/// Replaces each credential's name by the path of its file.
pub(super) fn resolve(root: &mut Node, environment: &Environment, problems: &mut Problems) {
    walk(root, "", environment, problems);
}

/// `key` is the full name of the node. A table in a list has the list's name.
fn walk(node: &mut Node, key: &str, environment: &Environment, problems: &mut Problems) {
    let place = node.place;
    match &mut node.value {
        Value::Table(entries) => {
            for (name, node) in entries {
                let dot = if key.is_empty() { "" } else { "." };
                walk(node, &format!("{key}{dot}{}", name.name), environment, problems);
            }
        }
        Value::List(list) => {
            list.iter_mut().for_each(|node| walk(node, key, environment, problems));
        }
        Value::Text(text) => match text.strip_prefix(PREFIX).filter(|_| is_path(key)) {
            None => {}
            Some(name) => match found(text, name, environment.get(FOLDER, problems)) {
                Ok(path) => *text = path,
                Err(why) => problems.add(place, why),
            },
        },
        _ => {}
    }
}

fn is_path(key: &str) -> bool {
    Setting::find(key).is_some_and(|setting| matches!(setting.kind, Kind::Own("a path")))
}

/// The path of a credential's file; `text` is the value as it was written.
fn found(text: &str, name: &str, folder: Option<&str>) -> Result<String, String> {
    if name.is_empty() || name.contains('/') || name.starts_with('.') {
        return Err(format!("\"{text}\" names no credential: write {PREFIX}NAME"));
    }
    match folder {
        Some(folder) => Ok(Path::new(folder).join(name).to_string_lossy().into_owned()),
        None => Err(format!(
            "\"{text}\" is a credential of systemd, and there are none ({FOLDER} is not set): add \
             LoadCredential={name}:FILE to the unit, or write a path"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(text: &str, folder: Option<&str>) -> (Node, String) {
        let mut problems = Problems::new("x.toml");
        let mut root = Node::from_toml(text, &mut problems);
        let environment = folder.map(|folder| (FOLDER, folder)).into_iter().collect();
        resolve(&mut root, &environment, &mut problems);
        (root, problems.to_string())
    }

    #[test]
    fn a_credential_is_a_file_in_the_folder_of_the_service() {
        let text = "[nats]\nnkey_file = \"credential:nkey\"\nuser = \"credential:me\"\n\
                    [[function]]\nworker_keys_file = \"credential:keys\"\n";
        let (root, told) = resolved(text, Some("/run/credentials/ringway.service"));
        assert_eq!(told, "");
        let is =
            |node: &Node, wanted: &str| matches!(&node.value, Value::Text(text) if text == wanted);
        let nkey = root.at("nats.nkey_file").unwrap();
        assert!(is(nkey, "/run/credentials/ringway.service/nkey"), "{nkey:?}");
        assert!(is(root.at("nats.user").unwrap(), "credential:me"), "it is no path");
        let Value::List(list) = &root.get("function").unwrap().value else { panic!("a list") };
        let keys = list[0].get("worker_keys_file").unwrap();
        assert!(is(keys, "/run/credentials/ringway.service/keys"), "{keys:?}");
    }

    #[test]
    fn one_that_is_not_there_is_told_with_the_fix() {
        let text = "[nats]\nnkey_file = \"credential:nkey\"\n";
        let (_, told) = resolved(text, None);
        assert!(
            told.starts_with("x.toml:2: ") && told.contains("LoadCredential=nkey:FILE"),
            "{told}"
        );
        for name in ["", "../x", ".x", "a/b"] {
            let text = format!("[nats]\nnkey_file = \"credential:{name}\"\n");
            assert!(resolved(&text, Some("/x")).1.contains("names no credential"), "{name}");
        }
    }
}
