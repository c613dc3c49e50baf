//! `ringway doctor`: what this host and this configuration lack, one line a check, each with its
//! fix.
//!
//! A check is a function of what it looks at, so that a test can make it fail; only [`examine`]
//! looks at the real host.

mod callback;
mod cluster;
mod host;
mod limits;
mod network;
mod setup;

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::SystemTime;

use serde::Serialize;

use crate::boot;
use crate::config::{Config, Io, Source};
use crate::keys::Keys;
use crate::machine::{Host, cgroup};
use crate::remote::{self, Finding, Grade};

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Status {
    /// Nothing to do.
    Ok,
    /// The gateway serves, but not as well as it could, or not for the whole configuration.
    Warn,
    /// The gateway does not serve.
    Fail,
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub check: String,
    /// How it came out.
    pub status: Status,
    /// What was seen.
    pub seen: String,
    /// What to do about it.
    pub fix: Option<String>,
}

impl Check {
    fn ok(check: &str, seen: impl Into<String>) -> Self {
        Self { check: check.into(), status: Status::Ok, seen: seen.into(), fix: None }
    }

    fn bad(check: &str, status: Status, seen: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check: check.into(), status, seen: seen.into(), fix: Some(fix.into()) }
    }

    fn warn(check: &str, seen: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::bad(check, Status::Warn, seen, fix)
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = match self.status {
            Status::Ok => "OK",
            Status::Warn => "WARN",
            Status::Fail => "FAIL",
        };
        write!(f, "{status:<4} {}: {}", self.check, self.seen)?;
        match &self.fix {
            Some(fix) => write!(f, "; fix: {fix}"),
            None => Ok(()),
        }
    }
}

/// How many cores it is to run.
fn cores(config: &Config) -> usize {
    boot::core_count(config)
}

/// How bad it is when io_uring cannot be used.
fn without_ring(io: Io) -> Status {
    match io {
        Io::Auto => Status::Warn,
        Io::Ring => Status::Fail,
        Io::Epoll => Status::Ok,
    }
}

/// Looks at this host, and at the configuration if one is given; without one, at the ports of
/// `ringway dev`. `settle` lays the arguments of `serve` over it.
#[must_use]
pub fn examine(source: &Source, settle: impl Fn(&mut Config)) -> Vec<Check> {
    let host = Host::real();
    let mut checks = Vec::new();
    let given = source.is_given().then(|| source.load());
    checks.extend(setup::configuration(&source.name(), given.as_ref().map(Result::as_ref)));
    let wrong = matches!(given, Some(Err(_)));
    let mut config = given.and_then(Result::ok).unwrap_or_else(Config::dev);
    settle(&mut config);
    let io = config.cores.io;
    let (trials, cores) = boot::try_io(&config);
    checks.push(host::kernel(&host, io));
    checks.extend(host::features(&trials, io));
    let works = trials.iter().all(|trial| trial.result.is_ok() || !trial.feature.is_needed());
    checks.push(host::sysctl(&host, works, io));
    checks.push(host::seccomp(&host, works, io));
    checks.push(limits::locked_memory(&host, &cores, io));
    checks.push(limits::cpus(&host, &config));
    checks.push(limits::open_files(&host, &config));
    checks.push(limits::memory(&host, &config));
    checks.push(host::clock(&host, SystemTime::now()));
    checks.push(network::backlog(&host));
    checks.push(network::congestion(&host));
    checks.extend(network::buffers(&host));
    if !wrong {
        checks.push(network::local_ports(&host, &config));
        checks.extend(network::ports(&config, boot::port_state));
        let resolve = |name: (&str, u16)| {
            name.to_socket_addrs().map(|found| found.map(|address| address.ip()).collect())
        };
        checks.push(network::advertise(&config, resolve));
        checks.extend(network::control(&config, resolve));
        checks.extend(setup::certificates(&config));
        checks.extend(elsewhere(&config));
        checks.extend(cluster::cluster(&config, greet));
        checks.push(callback::callback(&config));
    }
    checks
}

/// Whether a gateway speaks at this address.
fn greet(address: SocketAddr) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| error.to_string())?.block_on(remote::greet(address))
}

/// The remote control plane, if there is one.
fn elsewhere(config: &Config) -> Vec<Check> {
    let Some(settings) = &config.control.remote else { return Vec::new() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            let seen = format!("it cannot be asked ({error})");
            return vec![Check::bad("control", Status::Fail, seen, "see the other checks")];
        }
    };
    let own = (config.listen.worker, Keys::of(&config.cluster.secrets));
    let found = runtime.block_on(remote::examine(settings, &config.functions, own));
    // Tasks that still wait for a server are dropped.
    runtime.shutdown_background();
    found.into_iter().map(Check::from).collect()
}

impl From<Finding> for Check {
    fn from(Finding { what, grade, seen, fix }: Finding) -> Self {
        let seen = seen.replace('\n', " ");
        match grade {
            Grade::Fine => Self::ok(&what, seen),
            Grade::Poor => Self::warn(&what, seen, fix),
            Grade::Broken => Self::bad(&what, Status::Fail, seen, fix),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Environment;

    impl Check {
        /// The status, and that the text has these words.
        #[track_caller]
        pub(super) fn is(&self, status: Status, words: &[&str]) {
            assert_eq!(self.status, status, "{self}");
            let text = self.to_string();
            assert!(words.iter().all(|word| text.contains(word)), "{words:?} in {text}");
            assert_eq!(self.fix.is_some(), status != Status::Ok, "{self}");
        }
    }

    #[test]
    fn a_line_has_status_what_was_seen_and_the_fix() {
        let check = Check::warn("x", "a lot", "less");
        assert_eq!(check.to_string(), "WARN x: a lot; fix: less");
        assert_eq!(Check::ok("x", "enough").to_string(), "OK   x: enough");
        let json = serde_json::to_value(&check).unwrap();
        let wanted = r#"{"check":"x","status":"WARN","seen":"a lot","fix":"less"}"#;
        assert_eq!(json, serde_json::from_str::<serde_json::Value>(wanted).unwrap());
    }

    #[test]
    fn this_host_is_examined() {
        let nothing = Source::new(None, Environment::default());
        let checks = examine(&nothing, |_| {});
        assert!(checks.len() > 15, "{checks:?}");
        for check in &checks {
            assert_eq!(check.fix.is_some(), check.status != Status::Ok, "{check}");
            assert!(!check.to_string().contains('\n'), "{check}");
        }
    }
}
