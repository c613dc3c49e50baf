//! Tenants and functions: who calls, what is called, who serves it.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use uuid::Uuid;

use super::dial::Dial;
use super::node::{Node, Value};
use super::problems::{NAME_A_FILE, Origin, Problems, nearest};
use super::read::Section;
use super::{Function, Secret, Tenant};

/// Most keys read from one file.
const MAX_KEYS: usize = 10_000;

/// How workers prove who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WorkersBy {
    /// By keys of their functions.
    Keys,
    /// By NATS' own credentials. The functions' keys are read and checked, but not used.
    Nats,
}

/// A note for the operator about keys that have no effect.
pub(super) fn unused_keys(root: &Node) -> Option<String> {
    let lists = root.get("function").map(|node| &node.value);
    let Some(Value::List(functions)) = lists else { return None };
    let with = functions
        .iter()
        .filter(|function| {
            function.get("worker_keys").or(function.get("worker_keys_file")).is_some()
        })
        .count();
    (with > 0).then(|| {
        format!(
            "function.worker_keys is not used in nats mode ({with} of {} functions have it): \
             workers show NATS who they are; remove it, and give them a user of NATS",
            functions.len()
        )
    })
}

/// Reads tenants and functions, and checks them against each other.
pub(super) fn read(
    root: &Node,
    folder: &Path,
    workers: WorkersBy,
    problems: &mut Problems,
) -> (Vec<Tenant>, Vec<Function>) {
    let mut seen = KeysSeen::default();
    let tenants: Vec<Tenant> = Section::each(root, "tenant", problems)
        .iter()
        .filter_map(|section| tenant(section, folder, &mut seen, problems))
        .collect();
    check_names(root, &tenants, problems);
    let names = tenants.iter().map(|tenant| &*tenant.name).collect();
    let around = Around { folder, tenants: &tenants, names, seen: &seen };
    let functions = functions(root, &around, workers, problems);
    (tenants, functions)
}

/// What functions are checked against. There may be thousands of functions, each with a thousand
/// tenants.
struct Around<'a> {
    folder: &'a Path,
    tenants: &'a [Tenant],
    /// The tenants' names.
    names: HashSet<&'a str>,
    seen: &'a KeysSeen,
}

/// Client keys and their tenants. A key belongs to one tenant, and is not a client's and a worker's
/// at once.
type KeysSeen = HashMap<String, String>;

fn tenant(
    section: &Section<'_>,
    folder: &Path,
    seen: &mut KeysSeen,
    problems: &mut Problems,
) -> Option<Tenant> {
    let name = section.required("name", problems);
    if let Some(name) = name
        && (name.is_empty() || !name.bytes().all(|b| b.is_ascii_graphic()))
    {
        let text = "tenant.name is empty or has other characters: it must be visible ASCII without \
                    spaces";
        problems.add(section.place_of("name"), text);
    }
    let keys = keys(section, &CLIENTS, folder, problems);
    let owner = name.unwrap_or("(without a name)");
    if keys.is_empty() {
        let pair = problems.syntax().pair("tenant.client_keys", "[\"...\"]");
        let text = format!("tenant \"{owner}\" has no key: write {pair}");
        problems.add(section.place(), text);
    }
    let mut client_keys = Vec::new();
    for (place, key) in keys {
        check_key("tenant.client_keys", place, &key, problems);
        if let Some(other) = seen.insert(key.clone(), owner.into()) {
            let text = if other == owner {
                format!("tenant \"{owner}\" has a client key twice: remove one")
            } else {
                format!("tenants \"{other}\" and \"{owner}\" have the same client key: change one")
            };
            problems.add(place, text);
        }
        client_keys.push(Secret::from(key.as_str()));
    }
    Some(Tenant { name: name?.into(), client_keys })
}

/// Which settings say what keys there are.
struct Sources {
    list: &'static str,
    /// A file with one a line.
    file: &'static str,
}

const CLIENTS: Sources = Sources { list: "client_keys", file: "client_keys_file" };
const WORKERS: Sources = Sources { list: "worker_keys", file: "worker_keys_file" };

/// The keys in the configuration, and those in the file that it names.
fn keys(
    section: &Section<'_>,
    &Sources { list, file }: &Sources,
    folder: &Path,
    problems: &mut Problems,
) -> Vec<(Option<Origin>, String)> {
    let mut keys: Vec<(Option<Origin>, String)> = Vec::new();
    for (place, key) in section.texts(list, problems) {
        keys.push((Some(place), key.into()));
    }
    if let Some(path) = section.text(file, problems) {
        let place = section.place_of(file);
        match std::fs::read_to_string(folder.join(path)) {
            Ok(text) => keys.extend(keys_of_file(&text).map(|key| (place, key.to_string()))),
            Err(error) => {
                let text = format!(
                    "{} \"{path}\" cannot be read: {error}; {NAME_A_FILE}",
                    section.key(file)
                );
                problems.add(place, text);
            }
        }
    }
    keys
}

fn keys_of_file(text: &str) -> impl Iterator<Item = &str> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    lines.filter(|key| !key.is_empty()).take(MAX_KEYS)
}

/// A key travels as `Authorization: Bearer KEY`. The key itself is not shown.
fn check_key(what: &str, place: Option<Origin>, key: &str, problems: &mut Problems) {
    if key.is_empty() || !key.bytes().all(|b| b.is_ascii_graphic()) {
        problems.add(
            place,
            format!("a key in {what} is empty or has other than visible ASCII: write another"),
        );
    }
}

fn check_names(root: &Node, tenants: &[Tenant], problems: &mut Problems) {
    let mut names = HashSet::new();
    for tenant in tenants {
        if !names.insert(&tenant.name) {
            let text =
                format!("two tenants are named \"{}\": put their keys together", tenant.name);
            problems.add(root.get("tenant").map(|node| node.place), text);
        }
    }
}

fn functions(
    root: &Node,
    around: &Around<'_>,
    workers: WorkersBy,
    problems: &mut Problems,
) -> Vec<Function> {
    let sections = Section::each(root, "function", problems);
    if sections.is_empty() {
        let item = problems.syntax().item("function");
        let text =
            format!("there is no function: write {item} with id, version, tenants, worker_keys");
        problems.add(None::<Origin>, text);
    }
    let mut functions: Vec<Function> = Vec::new();
    let mut known = HashSet::new();
    for section in sections {
        let Some(function) = function(&section, around, workers, problems) else { continue };
        if !known.insert((function.id, function.version)) {
            let text = format!(
                "function {} has version {} twice: remove one",
                function.id, function.version
            );
            problems.add(section.place(), text);
        }
        functions.push(function);
    }
    functions
}

fn function(
    section: &Section<'_>,
    Around { folder, tenants, names, seen }: &Around<'_>,
    workers: WorkersBy,
    problems: &mut Problems,
) -> Option<Function> {
    let id = uuid(section, "id", problems);
    let version = uuid(section, "version", problems);
    let callers = section.texts("tenants", problems);
    if callers.is_empty() {
        problems.add(
            section.place_of("tenants"),
            "function.tenants is empty: nobody may call it; name a tenant",
        );
    }
    for (place, name) in &callers {
        if !names.contains(name) {
            let names = tenants.iter().map(|tenant| tenant.name.as_str());
            let item = problems.syntax().item("tenant");
            let text = match nearest(name, names) {
                Some(near) => format!("there is no tenant \"{name}\"; did you mean \"{near}\"?"),
                None => format!("there is no tenant \"{name}\": write {item} for it"),
            };
            problems.add(*place, text);
        }
    }
    let before = problems.len();
    let keys = keys(section, &WORKERS, folder, problems);
    let server = section.text("dial", problems);
    let dial = server.and_then(Dial::parse);
    if let (Some(text), None) = (server, &dial) {
        let want = "HOST:PORT, such as \"127.0.0.1:50051\"";
        let text = format!("function.dial is \"{text}\", but must be {want}");
        problems.add(section.place_of("dial"), text);
    }
    let nobody = keys.is_empty() && server.is_none() && workers == WorkersBy::Keys;
    if nobody && problems.len() == before {
        let text = "function.worker_keys is empty: no worker can serve it; write a key, or `dial`";
        problems.add(section.place_of("worker_keys"), text);
    }
    for (place, key) in &keys {
        check_key("function.worker_keys", *place, key, problems);
        if let Some(tenant) = seen.get(key) {
            let text = format!("a worker key is also a client key of tenant \"{tenant}\"");
            problems
                .add(*place, format!("{text}: change one, or its clients could serve as workers"));
        }
    }
    Some(Function {
        streaming: section.word("kind", problems) == "streaming",
        tenants: callers.into_iter().map(|(_, name)| name.into()).collect(),
        worker_keys: match workers {
            WorkersBy::Keys => keys.into_iter().map(|(_, key)| Secret::from(&*key)).collect(),
            WorkersBy::Nats => Vec::new(),
        },
        dial,
        id: id?,
        version: version?,
    })
}

fn uuid(section: &Section<'_>, name: &str, problems: &mut Problems) -> Option<Uuid> {
    let text = section.required(name, problems)?;
    let id = Uuid::try_parse(text).ok();
    if id.is_none() {
        let want = "a UUID, such as \"11111111-1111-4111-8111-111111111111\"";
        let key = section.key(name);
        problems.add(section.place_of(name), format!("{key} is \"{text}\", but must be {want}"));
    }
    id
}
