//! `ringway support-bundle`: one file with what somebody who helps has to know, and without what
//! nobody may see.
//!
//! Every secret that the configuration holds or names is taken out of everything, whatever it is a
//! part of; request ids are shortened, since whoever has one can come back to its session.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use axum::http::Method;
use clap::Args;
use flate2::Compression;
use flate2::write::GzEncoder;
use ringway_stdio::Trouble;
use serde_json::Value;

use super::port::Port;
use super::{Admin, blocking, pretty};
use crate::config::{Environment, Source};

/// Bytes of one part; what is longer is cut, and says so.
const PART: usize = 4 << 20;
/// Digits of a request id that are shown.
const SHORT_ID: usize = 8;
/// Shorter secrets are not removed: they would be found in any word, and protect nothing.
const SHORTEST: usize = 4;
/// Shown in place of a secret.
const HIDDEN: &str = "***";

/// Files of the kernel that tell how a machine is set up and how busy it is.
const OF_KERNEL: [&str; 10] = [
    "/proc/version",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/loadavg",
    "/proc/net/sockstat",
    "/proc/net/netstat",
    "/proc/pressure/cpu",
    "/proc/pressure/memory",
    "/proc/sys/kernel/io_uring_disabled",
    "/proc/sys/net/core/somaxconn",
];

/// `ringway support-bundle`.
#[derive(Debug, Args)]
pub struct SupportBundle {
    #[command(flatten)]
    admin: Admin,
    /// The gateway's configuration file (TOML or YAML).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the bundle goes, a gzipped tar; it must not be there yet.
    #[arg(long, value_name = "FILE", default_value = "ringway-support.tar.gz")]
    out: PathBuf,
}

/// What goes into a bundle, by the names of the files in it.
type Parts = Vec<(&'static str, String)>;

/// Writes a bundle. A gateway that does not answer is a part of what it tells.
///
/// # Errors
/// When the file cannot be written, or is there already.
pub fn support_bundle(arguments: &SupportBundle) -> Result<(), Trouble> {
    let source = Source::new(arguments.config.clone(), Environment::of_process());
    let mut parts = of_machine(&source);
    let port = Port::new(&arguments.admin.admin);
    parts.extend(blocking(of_gateway(&port))?);
    let secrets = source.secrets();
    for (_, text) in &mut parts {
        *text = cut(without(text, &secrets));
    }
    let out = &arguments.out;
    let failed = |error: io::Error| {
        let fix = match error.kind() {
            io::ErrorKind::AlreadyExists => "give it another name with --out, or remove that file",
            _ => "name a file that can be written with --out",
        };
        Trouble::new(format!("{} cannot be written", out.display()), error, fix)
    };
    write(out, &parts).map_err(failed)?;
    let names: Vec<&str> = parts.iter().map(|(name, _)| *name).collect();
    ringway_stdio::print(&format!(
        "{}: {}\nSecrets of the configuration are not in it. Names of tenants and functions, \
         addresses and the first digits of request ids are: look through it before you send it.\n",
        out.display(),
        names.join(", ")
    ))
    .map_err(ringway_cli::unprinted)
}

fn of_machine(source: &Source) -> Parts {
    let about = format!(
        "ringway {} (commit {})\nkernel {}\nconfiguration {}\n",
        crate::VERSION,
        crate::COMMIT,
        ringway_cli::kernel(),
        source.name()
    );
    let config = match source.effective() {
        Ok(all) => all
            .iter()
            .map(|one| format!("{} = {}  # {}\n", one.key, one.value, one.origin))
            .collect(),
        Err(problems) => problems.to_string(),
    };
    let checks = crate::doctor::examine(source, |_| ());
    let doctor = checks.iter().map(|check| format!("{check}\n")).collect();
    let kernel = OF_KERNEL
        .iter()
        .map(|path| {
            let text = std::fs::read_to_string(path).unwrap_or_else(|error| error.to_string());
            format!("==> {path}\n{}\n\n", text.trim_end())
        })
        .collect();
    vec![
        ("about.txt", about),
        ("config.txt", config),
        ("doctor.txt", doctor),
        ("kernel.txt", kernel),
    ]
}

async fn of_gateway(port: &Port) -> Parts {
    let mut parts = Parts::new();
    for (name, path) in
        [("info.json", "/info"), ("ready.txt", "/ready"), ("metrics.txt", "/metrics")]
    {
        parts.push((
            name,
            match port.call(Method::GET, path).await {
                Ok((status, text)) => format!("{status}\n{text}"),
                Err(failure) => failure.to_string(),
            },
        ));
    }
    let sessions = match port.json("/sessions").await {
        Ok(sessions) => pretty(&shortened(sessions)),
        Err(failure) => failure.to_string(),
    };
    parts.push(("sessions.json", sessions));
    parts
}

/// Sessions by the first digits of their ids.
fn shortened(mut sessions: Value) -> Value {
    for session in sessions.as_array_mut().into_iter().flatten() {
        if let Some(Value::String(id)) = session.get_mut("requestId") {
            id.truncate(id.floor_char_boundary(SHORT_ID));
        }
    }
    sessions
}

/// A text in which no secret is left.
fn without(text: &str, secrets: &[String]) -> String {
    let long = secrets.iter().filter(|secret| secret.len() >= SHORTEST);
    long.fold(text.to_owned(), |text, secret| text.replace(secret.as_str(), HIDDEN))
}

fn cut(mut text: String) -> String {
    if text.len() > PART {
        let all = text.len();
        text.truncate(text.floor_char_boundary(PART));
        text += &format!("\n(cut here: it has {all} bytes)\n");
    }
    text
}

fn write(out: &Path, parts: &Parts) -> io::Result<()> {
    let file = File::options().write(true).create_new(true).open(out)?;
    let mut bundle = tar::Builder::new(GzEncoder::new(file, Compression::default()));
    for (name, text) in parts {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        bundle.append_data(&mut header, format!("ringway-support/{name}"), text.as_bytes())?;
    }
    bundle.into_inner()?.finish()?.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_taken_out_wherever_they_are_and_ids_are_shortened() {
        let secrets = ["canary-key-1".to_owned(), "canary-key".to_owned(), "ab".to_owned()];
        let text = "a canary-key-1 in \"canary-key\" and absent";
        assert_eq!(without(text, &secrets), "a *** in \"***\" and absent");
        let sessions = serde_json::json!([{"requestId": "6370809d-e385-8000-8069-c00135678634"}]);
        assert_eq!(shortened(sessions)[0]["requestId"], "6370809d");
    }

    #[test]
    fn a_part_is_bounded() {
        let text = cut("é".repeat(PART));
        assert!(text.len() < PART + 100 && text.ends_with("bytes)\n"));
        assert_eq!(cut("short".into()), "short");
    }
}
