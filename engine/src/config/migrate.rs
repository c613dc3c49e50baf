//! From the environment of NVIDIA's gRPC proxy to a configuration file.

use std::fmt::Write;

use super::effective::masked;
use super::environment::Environment;
use super::node::{Node, Value};
use super::problems::{Origin, Problems};
use super::reference;
use super::settings::SETTINGS;

/// Names that stay variables, and why.
const STAY: [(&str, &str); 3] = [
    ("POD_IP", "each pod has its own: keep it as a variable"),
    ("VERSION", "/info and /health show it: keep it as a variable"),
    (
        "NATS_PRIVATE_NKEY",
        "a secret: write its value into a file that only the gateway can read, and name that by \
         nats.nkey_file",
    ),
];

/// Names that are not needed any more once the file is written.
const DONE: [&str; 4] =
    ["ENABLE_HTTP1_CONNECT", "GEO_DISABLED", "ENABLE_HTTP3_CONNECT", "RATE_LIMIT_ENABLED"];

/// Reads an environment file: `NAME=VALUE` lines, as docker, systemd and shells have them.
///
/// # Errors
/// The number of the first line that is no such line.
pub fn environment_of(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut all = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        let line = line.strip_prefix("export ").unwrap_or(line).trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let letter = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let pair = line.split_once('=').map(|(name, value)| (name.trim_end(), value.trim()));
        let Some((name, value)) =
            pair.filter(|(name, _)| !name.is_empty() && name.bytes().all(letter))
        else {
            return Err(format!("line {} is not NAME=VALUE", at + 1));
        };
        let bare = |quote| value.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote));
        let value = bare('"').or_else(|| bare('\'')).unwrap_or(value);
        all.push((name.into(), value.into()));
    }
    Ok(all)
}

/// A configuration file for such variables, as TOML with comments. Comments also say what the file
/// cannot express and what was wrong. The second value is the number of problems.
#[must_use]
pub fn migrated(variables: &[(String, String)], name: &str) -> (String, usize) {
    let environment: Environment = variables.iter().cloned().collect();
    let mut problems = Problems::of_environment();
    let mut root = Node::empty(Origin::Default);
    environment.lay_over(&mut root, &mut problems);
    reference::read(&environment, &mut root, &mut problems);
    let mut out = format!(
        "# Made by `ringway migrate` from {name}. Look through the comments, then:\n\
         # ringway check --config THIS-FILE\n"
    );
    let mut told = String::new();
    let mut carried = Vec::new();
    for setting in SETTINGS {
        let (key, node) = match root.at(setting.key) {
            Some(node) if matches!(node.value, Value::Table(_)) => {
                (format!("{}.address", setting.key), node.get("address"))
            }
            node => (setting.key.to_owned(), node),
        };
        let written = match setting.key {
            "control.mode" => Some(("\"nvcf\"".to_owned(), "")),
            _ => node.and_then(|node| Some((toml_of(node)?, variable_of(node)))),
        };
        let Some((value, from)) = written else { continue };
        let (table, rest) = key.split_once('.').unwrap_or((&key, ""));
        if table != told {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "\n[{table}]");
            told = table.to_owned();
        }
        let origin = if from.is_empty() { String::new() } else { format!("  # {from}") };
        let _ = writeln!(out, "{rest} = {value}{origin}");
        carried.push(from);
    }
    left_over(variables, &carried, &mut out);
    let problems = problems.sorted();
    if !problems.is_empty() {
        out += "\n# To be mended:\n";
        problems.to_string().lines().for_each(|line| {
            let _ = writeln!(out, "# {line}");
        });
    }
    (out, problems.len())
}

/// The variables that the file does not express.
fn left_over(variables: &[(String, String)], carried: &[&str], out: &mut String) {
    let left = variables.iter().map(|(name, _)| name.as_str());
    let left = left.filter(|name| !carried.contains(name) && !DONE.contains(name));
    let mut head = "\n# Not in this file:\n";
    for name in left {
        let why = STAY
            .iter()
            .find(|(own, _)| *own == name)
            .map_or("this gateway does not look at it", |(_, why)| why);
        let _ = writeln!(out, "{head}# {name}: {why}");
        head = "";
    }
}

fn variable_of(node: &Node) -> &'static str {
    match node.place {
        Origin::Variable(name) => name,
        Origin::Line(_) | Origin::Default => "",
    }
}

/// A value as TOML. A URL is written without its password, because people show each other such
/// files. A comment tells the operator.
fn toml_of(node: &Node) -> Option<String> {
    match &node.value {
        Value::Text(text) => Some(toml::Value::String(masked(text)).to_string()),
        Value::Whole(number) => Some(number.to_string()),
        Value::Flag(flag) => Some(flag.to_string()),
        Value::List(items) => {
            let items: Option<Vec<String>> = items.iter().map(toml_of).collect();
            Some(format!("[{}]", items?.join(", ")))
        }
        Value::Table(_) | Value::Empty | Value::Other(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Config, Mode};

    const EXAMPLE: &str = include_str!("../../../docs/nvcf.env");

    #[test]
    fn the_example_becomes_a_file_that_says_the_same() {
        let variables = environment_of(EXAMPLE).unwrap();
        let (text, problems) = migrated(&variables, "nvcf.env");
        assert_eq!(problems, 0, "{text}");
        let config = Config::parse(&text, "x.toml", Path::new("")).map_err(|p| p.to_string());
        let config = config.unwrap_or_else(|problems| panic!("{problems}\n{text}"));
        assert_eq!(config.control.mode, Mode::Nvcf);
        let advertise = config.control.advertise.as_deref();
        assert!(advertise.is_some_and(|url| url.contains("grpc.nvcf.svc.cluster.local")));
        assert_eq!(config.session.wait.as_secs(), 120);
        for line in [
            "api = \"http://api.nvcf.svc.cluster.local:9090\"  # NVCF_FQDN_GRPC",
            "placement = \"dc:ncp\"  # JETSTREAM_PLACEMENT_TAG",
            "# POD_IP: each pod has its own",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    #[test]
    fn secrets_stay_out_and_what_is_wrong_is_said() {
        let text = "export NVCF_FQDN_GRPC='http://api:1'\nNATS_PRIVATE_NKEY=SUCANARY\n\
                    NATS_FQDN=\"nats://me:canary@nats:1\"\nTRACING=yes\nENABLE_HTTP3_CONNECT=true\n\
                    ENABLE_HTTP1_CONNECT=true\nGEO_DISABLED=true\n# a comment\n\n";
        let (file, problems) = migrated(&environment_of(text).unwrap(), "x.env");
        assert_eq!(problems, 1, "{file}");
        assert!(!file.contains("CANARY") && !file.contains("canary"), "{file}");
        for line in [
            "urls = [\"nats://***@nats:1\"]",
            "# NATS_PRIVATE_NKEY: a secret",
            "# TRACING: this gateway does not look at it",
            "# ENABLE_HTTP3_CONNECT: is true",
        ] {
            assert!(file.contains(line), "{line}\n{file}");
        }
        assert_eq!(environment_of("a=1\nnonsense\n"), Err("line 2 is not NAME=VALUE".into()));
    }
}
