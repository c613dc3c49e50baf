//! The kernel: its version, io_uring and what forbids it, the clock.

use std::time::{Duration, SystemTime};

use super::{Check, Host, Status, without_ring};
use crate::config::Io;
use crate::reactor::Trial;

/// The first kernel that has all that io_uring is needed for.
const LEAST_KERNEL: (u32, u32) = (6, 12);

/// 1 January 2025: no clock of a running host was right before.
const LEAST_TIME: Duration = Duration::from_secs(1_735_689_600);

/// Clocks that are read without a system call.
const FAST_CLOCKS: &[&str] =
    &["tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter"];

/// A check of io_uring that has failed: as bad as it is to be without.
fn blocked(check: &str, io: Io, seen: String, fix: &str) -> Check {
    match without_ring(io) {
        Status::Ok => Check::ok(check, format!("{seen}; not needed with cores.io = \"epoll\"")),
        status => Check::bad(check, status, seen, fix),
    }
}

pub(super) fn kernel(host: &Host, io: Io) -> Check {
    let Some(release) = host.read("/proc/sys/kernel/osrelease") else {
        return Check::warn("kernel", "its version cannot be read", "mount /proc");
    };
    let (major, minor) = LEAST_KERNEL;
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    match (parts.next(), parts.next()) {
        (Some(Ok(have)), Some(Ok(sub))) if (have, sub) >= LEAST_KERNEL => {
            Check::ok("kernel", format!("Linux {release}"))
        }
        _ => {
            let seen = format!("Linux {release}, too old for io_uring as it is used");
            blocked("kernel", io, seen, &format!("run on Linux {major}.{minor} or later"))
        }
    }
}

/// One check a feature that was tried out.
pub(super) fn features(trials: &[Trial], io: Io) -> Vec<Check> {
    let check = |trial: &Trial| {
        let name = "io_uring";
        let feature = trial.feature.name();
        let Err(error) = &trial.result else {
            return Check::ok(name, format!("{feature}: tried out, fine"));
        };
        let seen = format!("{feature}: {}", error.cause());
        let fix = error.fix();
        if trial.feature.is_needed() {
            blocked(name, io, seen, &fix)
        } else if io == Io::Epoll {
            Check::ok(name, seen)
        } else {
            Check::warn(name, format!("{seen} (Ringway serves without)"), fix)
        }
    };
    trials.iter().map(check).collect()
}

/// `works`: io_uring was tried out and does.
pub(super) fn sysctl(host: &Host, works: bool, io: Io) -> Check {
    let name = "io_uring_disabled";
    match host.number("/proc/sys/kernel/io_uring_disabled") {
        None => Check::ok(name, "this kernel has no kernel.io_uring_disabled"),
        Some(0) => Check::ok(name, "kernel.io_uring_disabled = 0"),
        Some(value) if works => Check::ok(
            name,
            format!("kernel.io_uring_disabled = {value}, but this process is allowed to"),
        ),
        Some(value) => {
            let seen = format!("kernel.io_uring_disabled = {value}");
            let fix = match value {
                1 => "run in kernel.io_uring_group or with CAP_SYS_ADMIN, or set it to 0",
                _ => "sysctl -w kernel.io_uring_disabled=0",
            };
            blocked(name, io, seen, fix)
        }
    }
}

/// `works`: io_uring was tried out and does.
pub(super) fn seccomp(host: &Host, works: bool, io: Io) -> Check {
    let name = "seccomp";
    match host.own("Seccomp").as_deref() {
        None => Check::ok(name, "this kernel has none"),
        Some("0") => Check::ok(name, "no filter"),
        Some(_) if works => Check::ok(name, "a filter, which lets io_uring through"),
        Some(_) => {
            let fix = "allow io_uring_setup, io_uring_enter and io_uring_register in the \
                       container's seccomp profile";
            blocked(name, io, "a filter, and io_uring does not work".into(), fix)
        }
    }
}

pub(super) fn clock(host: &Host, now: SystemTime) -> Check {
    let name = "clock";
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    if since < LEAST_TIME {
        let seen = format!("it is {} seconds after 1970: the clock was never set", since.as_secs());
        let fix = "run an NTP client; certificates are judged by the clock";
        return Check::bad(name, Status::Fail, seen, fix);
    }
    let path = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    match host.read(path) {
        Some(source) if !FAST_CLOCKS.contains(&source.as_str()) => Check::warn(
            name,
            format!("clock source {source}: every look at the clock is a system call"),
            format!("use a faster one of those in {}", path.replace("current", "available")),
        ),
        source => {
            Check::ok(name, format!("set; source {}", source.as_deref().unwrap_or("unknown")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reactor::{Feature, SetupError};

    const RELEASE: &str = "/proc/sys/kernel/osrelease";

    #[test]
    fn an_old_kernel_is_as_bad_as_io_uring_is_wanted() {
        let old = Host::planted(&[(RELEASE, "5.15.0-91-generic\n")]);
        kernel(&old, Io::Auto).is(Status::Warn, &["5.15", "6.12"]);
        kernel(&old, Io::Ring).is(Status::Fail, &["5.15"]);
        kernel(&old, Io::Epoll).is(Status::Ok, &["not needed"]);
        for good in ["6.12.0", "6.18.44-fc", "7.0-rc1"] {
            kernel(&Host::planted(&[(RELEASE, good)]), Io::Ring).is(Status::Ok, &[good]);
        }
        kernel(&Host::planted(&[(RELEASE, "6.9.1")]), Io::Ring).is(Status::Fail, &["6.9.1"]);
        kernel(&Host::planted(&[(RELEASE, "?")]), Io::Ring).is(Status::Fail, &[]);
        kernel(&Host::planted(&[]), Io::Ring).is(Status::Warn, &["/proc"]);
    }

    #[test]
    fn features_that_fail_are_named_with_the_fix() {
        let trial = |feature, result| Trial { feature, result };
        let old = || SetupError::TooOld { feature: "x", needs: "6.17" };
        let forbidden = || SetupError::Forbidden { sysctl: None };
        let trials = [
            trial(Feature::Rings, Err(forbidden())),
            trial(Feature::Bounds, Err(old())),
            trial(Feature::Accepts, Ok(())),
        ];
        let auto = features(&trials, Io::Auto);
        auto[0].is(Status::Warn, &["DEFER_TASKRUN", "EPERM", "io_uring_enter"]);
        auto[1].is(Status::Warn, &["length caps", "6.17"]);
        auto[2].is(Status::Ok, &["multishot accepts: tried out"]);
        let ring = features(&trials, Io::Ring);
        ring[0].is(Status::Fail, &[]);
        ring[1].is(Status::Warn, &["serves without"]);
        features(&trials, Io::Epoll).iter().for_each(|check| check.is(Status::Ok, &[]));
        let odd = SetupError::Other { step: "x", error: std::io::ErrorKind::TimedOut.into() };
        features(&[trial(Feature::Accepts, Err(odd))], Io::Ring)[0].is(Status::Fail, &[]);
    }

    #[test]
    fn the_sysctl_is_told_when_it_is_in_the_way() {
        let path = "/proc/sys/kernel/io_uring_disabled";
        let host = |value| Host::planted(&[(path, value)]);
        sysctl(&host("2\n"), false, Io::Ring).is(Status::Fail, &["= 2", "sysctl -w"]);
        sysctl(&host("1"), false, Io::Auto).is(Status::Warn, &["= 1", "io_uring_group"]);
        sysctl(&host("1"), true, Io::Ring).is(Status::Ok, &["allowed"]);
        sysctl(&host("2"), false, Io::Epoll).is(Status::Ok, &[]);
        sysctl(&host("0"), false, Io::Ring).is(Status::Ok, &[]);
        sysctl(&Host::planted(&[]), true, Io::Ring).is(Status::Ok, &[]);
    }

    #[test]
    fn a_filter_is_told_when_it_is_in_the_way() {
        let host = |mode: &str| {
            Host::planted(&[("/proc/self/status", &format!("Name:\tx\nSeccomp:\t{mode}\n"))])
        };
        seccomp(&host("2"), false, Io::Ring).is(Status::Fail, &["io_uring_setup", "profile"]);
        seccomp(&host("2"), false, Io::Auto).is(Status::Warn, &[]);
        seccomp(&host("2"), true, Io::Ring).is(Status::Ok, &["lets io_uring through"]);
        seccomp(&host("0"), false, Io::Ring).is(Status::Ok, &["no filter"]);
    }

    #[test]
    fn a_clock_that_is_wrong_or_slow_is_told() {
        let path = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
        let good = SystemTime::UNIX_EPOCH + LEAST_TIME + Duration::from_secs(1);
        let host = |source| Host::planted(&[(path, source)]);
        clock(&host("tsc\n"), good).is(Status::Ok, &["tsc"]);
        clock(&host("hpet"), good).is(Status::Warn, &["hpet", "available_clocksource"]);
        clock(&host("tsc"), SystemTime::UNIX_EPOCH).is(Status::Fail, &["NTP"]);
        clock(&Host::planted(&[]), good).is(Status::Ok, &[]);
    }
}
