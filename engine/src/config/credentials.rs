//! Files that systemd hands to the service (`LoadCredential=`, systemd.exec(5)): a path may be
//! written `credential:NAME`.

use std::path::Path;

use super::environment::Environment;
use super::node::{Node, Value};
use super::problems::Problems;

/// What begins such a path.
const PREFIX: &str = "credential:";
/// Where systemd puts the files.
const FOLDER: &str = "CREDENTIALS_DIRECTORY";

/// Writes in place of each credential's name where its file is.
pub(super) fn resolve(root: &mut Node, environment: &Environment, problems: &mut Problems) {
    let Value::Table(entries) = &mut root.value else {
        if let Value::List(list) = &mut root.value {
            list.iter_mut().for_each(|item| resolve(item, environment, problems));
        }
        return;
    };
    for (key, node) in entries {
        let Value::Text(text) = &mut node.value else {
            resolve(node, environment, problems);
            continue;
        };
        let is_path = key.name.ends_with("_file") || matches!(&*key.name, "cert" | "key");
        let Some(name) = text.strip_prefix(PREFIX).filter(|_| is_path) else { continue };
        let name = name.to_owned();
        if name.is_empty() || name.contains('/') || name.starts_with('.') {
            let told = format!("\"{text}\" names no credential: write {PREFIX}NAME");
            problems.add(node.place, told);
            continue;
        }
        match environment.get(FOLDER, problems) {
            Some(folder) => *text = Path::new(folder).join(name).to_string_lossy().into_owned(),
            None => {
                let told = format!(
                    "\"{text}\" is a credential of systemd, and there are none ({FOLDER} is not \
                     set): add LoadCredential={name}:FILE to the unit, or write a path"
                );
                problems.add(node.place, told);
            }
        }
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
