//! The configuration and the files it names.

use super::{Check, Status};
use crate::config::{Config, Problems};
use crate::net::Listener;

/// Every problem that `ringway check` would print, each with its place and fix.
pub(super) fn configuration(source: &str, read: Option<Result<&Config, &Problems>>) -> Vec<Check> {
    let name = "configuration";
    match read {
        None => {
            vec![Check::ok(name, "none given (--config FILE): that of `ringway dev` is taken")]
        }
        Some(Ok(config)) => {
            let (mode, why) = (config.control.mode.name(), &config.control.why);
            let seen = format!("{source}: no problem found; mode {mode}: {why}");
            vec![Check::ok(name, seen)]
        }
        Some(Err(problems)) => {
            let fix = "correct that; `ringway check` prints the same";
            let bad = |line: &str| Check::bad(name, Status::Fail, line, fix);
            problems.to_string().lines().map(bad).collect()
        }
    }
}

/// The certificates that the configuration names. One that cannot be used is the configuration's
/// problem, and told there.
pub(super) fn certificates(config: &Config) -> Vec<Check> {
    let name = "certificates";
    let fronts = [
        ("client", Listener::Client, &config.fronts.client),
        ("worker", Listener::Worker, &config.fronts.worker),
    ];
    let named = fronts.into_iter().filter_map(|(listener, kind, front)| {
        let tls = front.tls.as_ref()?;
        let (name, cert) = (format!("{name} ({listener})"), tls.files.cert.display());
        if let Err(error) = tls.pair.server_config(kind) {
            let seen = format!("{cert} cannot be used: {error}");
            return Some(Check::bad(&name, Status::Fail, seen, "put another pair in its place"));
        }
        Some(match tls.pair.warning() {
            None => {
                Check::ok(&name, format!("{cert}: its key fits, it is good for a week and more"))
            }
            Some(warning) => {
                Check::warn(&name, format!("{cert} {warning}"), "put a new pair in its place")
            }
        })
    });
    let found: Vec<Check> = named.collect();
    if found.is_empty() { vec![Check::ok(name, "none: no listener speaks TLS")] } else { found }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::FrontTls;
    use crate::tls::{Files, Pair};

    #[test]
    fn every_problem_of_a_configuration_is_a_line() {
        let file = "x.toml";
        let parse = |text| Config::parse(text, file, Path::new(""));
        let wrong = parse("[drain]\nmaxx = \"1s\"\n[lisen]\n").unwrap_err();
        let checks = configuration(file, Some(Err(&wrong)));
        assert_eq!(checks.len(), wrong.len());
        checks.iter().for_each(|check| check.is(Status::Fail, &["x.toml", "ringway check"]));
        assert!(checks.iter().any(|check| check.seen.contains("x.toml:2: drain.maxx")));
        let good = Config::dev();
        configuration(file, Some(Ok(&good)))[0].is(Status::Ok, &["no problem", "mode local"]);
        configuration("environment", None)[0].is(Status::Ok, &["none given"]);
    }

    #[test]
    fn certificates_that_expire_are_told() {
        let mut config = Config::dev();
        certificates(&config)[0].is(Status::Ok, &["none"]);
        let dir = std::env::temp_dir().join(format!("ringway-doctor-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let files = Files { cert: dir.join("cert.pem"), key: dir.join("key.pem") };
        let mut check = |year| {
            let mut wanted = rcgen::CertificateParams::new(["gateway.test".to_owned()]).unwrap();
            wanted.not_after = rcgen::date_time_ymd(year, 1, 1);
            let key = rcgen::KeyPair::generate().unwrap();
            std::fs::write(&files.cert, wanted.self_signed(&key).unwrap().pem()).unwrap();
            std::fs::write(&files.key, key.serialize_pem()).unwrap();
            let pair = Pair::load(&files).unwrap();
            config.fronts.worker.tls = Some(FrontTls { files: files.clone(), pair });
            certificates(&config).remove(0)
        };
        check(2300).is(Status::Ok, &["certificates (worker)", "cert.pem"]);
        check(2020).is(Status::Warn, &["has expired", "new pair"]);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
