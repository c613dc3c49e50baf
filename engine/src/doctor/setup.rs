//! The configuration and the files it names.

use std::path::Path;

use super::{Check, Status};
use crate::config::{Config, Problems};

/// Every problem that `ringway check` would print, each with its line and fix.
pub(super) fn configuration(
    file: Option<&Path>,
    read: Option<Result<&Config, &Problems>>,
) -> Vec<Check> {
    let name = "configuration";
    let (Some(file), Some(read)) = (file, read) else {
        return vec![Check::ok(name, "none given (--config FILE): that of `ringway dev` is taken")];
    };
    match read {
        Ok(_) => vec![Check::ok(name, format!("{}: no problem found", file.display()))],
        Err(problems) => {
            let fix = "correct that line; `ringway check` prints the same";
            let bad = |line: &str| Check::bad(name, Status::Fail, line, fix);
            problems.to_string().lines().map(bad).collect()
        }
    }
}

/// The certificates that the configuration names.
pub(super) fn certificates(_: &Config) -> Vec<Check> {
    vec![Check::ok("certificates", "none: no listener speaks TLS")]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_of_a_configuration_is_a_line() {
        let file = Path::new("x.toml");
        let parse = |text| Config::parse(text, "x.toml", Path::new(""));
        let wrong = parse("[drain]\nmaxx = \"1s\"\n[lisen]\n").unwrap_err();
        let checks = configuration(Some(file), Some(Err(&wrong)));
        assert_eq!(checks.len(), wrong.len());
        checks.iter().for_each(|check| check.is(Status::Fail, &["x.toml", "ringway check"]));
        assert!(checks.iter().any(|check| check.seen.contains("x.toml:2: drain.maxx")));
        let good = Config::dev();
        configuration(Some(file), Some(Ok(&good)))[0].is(Status::Ok, &["no problem"]);
        configuration(None, None)[0].is(Status::Ok, &["none given"]);
    }

    #[test]
    fn without_tls_there_is_no_certificate_to_check() {
        certificates(&Config::dev())[0].is(Status::Ok, &["none"]);
    }
}
