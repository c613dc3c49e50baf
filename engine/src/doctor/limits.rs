//! Limits of the process: descriptors, locked memory, CPUs, memory.

use super::{Check, Host, Status, cgroup, cores, without_ring};
use crate::boot::Files;
use crate::config::{Config, Io};
use crate::reactor::SetupError;

/// What the process takes besides the cores' buffers.
const OWN_MEMORY: u64 = 64 << 20;
/// `CAP_IPC_LOCK`, as a bit of `CapEff`.
const IPC_LOCK: u64 = 1 << 14;

/// A row of /proc/self/limits: soft and hard limit; `u64::MAX` is none.
fn limit(host: &Host, row: &str) -> Option<(u64, u64)> {
    let text = host.read("/proc/self/limits")?;
    let rest = text.lines().find_map(|line| line.strip_prefix(row))?;
    let mut numbers = rest.split_whitespace().map(|word| match word {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    });
    Some((numbers.next()??, numbers.next()??))
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

/// The gateway raises its soft limit to the hard one by itself (contract LN-11).
pub(super) fn open_files(host: &Host, config: &Config) -> Check {
    let name = "open_files";
    let Some((_, hard)) = limit(host, "Max open files") else {
        return Check::warn(name, "the limit cannot be read", "mount /proc");
    };
    let files = Files::share(&config.limits, cores(config), hard, None);
    let seen = files.to_string();
    match files {
        _ if files.are_too_few() => Check::bad(name, Status::Fail, seen, Files::FIX),
        _ if !files.suffice() => Check::warn(name, seen, Files::FIX),
        _ => Check::ok(name, seen),
    }
}

/// `rings`: how it went to set up a ring for every core at once.
pub(super) fn locked_memory(host: &Host, rings: &Result<(), SetupError>, io: Io) -> Check {
    let name = "locked_memory";
    let free = host
        .own("CapEff")
        .and_then(|text| u64::from_str_radix(&text, 16).ok())
        .is_some_and(|capabilities| capabilities & IPC_LOCK != 0);
    let seen = match limit(host, "Max locked memory") {
        _ if free => "not counted for this process (CAP_IPC_LOCK)".into(),
        Some((u64::MAX, _)) => "no limit".into(),
        Some((soft, _)) => format!("{} KiB", soft >> 10),
        None => "unknown".into(),
    };
    match rings {
        Err(error @ SetupError::Memory) if io != Io::Epoll => {
            Check::bad(name, without_ring(io), format!("{seen}: {}", error.cause()), error.fix())
        }
        _ => Check::ok(name, seen),
    }
}

pub(super) fn cpus(host: &Host, config: &Config) -> Check {
    let name = "cpus";
    let count = cores(config);
    let mask = host.own("Cpus_allowed_list").map(|list| listed(&list)).filter(|mask| *mask > 0);
    let quota = cgroup::cpus(host);
    let allowed = mask.map_or_else(|| "an unknown number of CPUs".into(), |n| format!("{n} CPUs"));
    let bound = quota.map_or_else(|| "no quota".into(), |quota| format!("a quota of {quota:.2}"));
    let seen = format!("{allowed} allowed, {bound}, cores.count = {count}");
    let usable = mask.map_or(f64::INFINITY, |mask| mask as f64).min(quota.unwrap_or(f64::INFINITY));
    if usable < count as f64 {
        let fix = "give it more CPU (affinity, quota), or lower cores.count";
        return Check::warn(name, format!("{seen}: cores wait for each other"), fix);
    }
    Check::ok(name, seen)
}

/// How many CPUs `0-3,8` are.
fn listed(list: &str) -> usize {
    let parts = list.split(',').filter_map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        Some((last + 1).saturating_sub(first))
    });
    parts.sum()
}

pub(super) fn memory(host: &Host, config: &Config) -> Check {
    let name = "memory";
    let (limit, whose) = match (cgroup::memory(host), machine(host)) {
        (Some(group), machine) if machine.is_none_or(|machine| group < machine) => {
            (group, "the control group allows")
        }
        (_, Some(machine)) => (machine, "the machine has"),
        _ => return Check::ok(name, "no limit found"),
    };
    let cores = cores(config) as u64;
    let least = OWN_MEMORY + cores * config.cores.receive_memory as u64;
    let most = least + cores * config.limits.core_buffer as u64;
    let seen = format!(
        "{whose} {}, buffers may take {} at once and {} at most",
        mib(limit),
        mib(least),
        mib(most)
    );
    let fix =
        "give it more memory, or lower cores.receive_memory, limits.core_buffer or cores.count";
    match limit {
        _ if limit < least => Check::bad(name, Status::Fail, seen, fix),
        _ if limit < most => Check::warn(name, seen, fix),
        _ => Check::ok(name, seen),
    }
}

/// The machine's memory in bytes.
fn machine(host: &Host) -> Option<u64> {
    let text = host.read("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(files: &str, locked: &str) -> String {
        format!(
            "Limit                     Soft Limit           Hard Limit           Units     \n\
             Max open files            1024                 {files}              files     \n\
             Max locked memory         {locked}             {locked}             bytes     \n"
        )
    }

    fn host(files: &str, locked: &str, status: &str) -> Host {
        let limits = limits(files, locked);
        Host::planted(&[("/proc/self/limits", &limits), ("/proc/self/status", status)])
    }

    #[test]
    fn few_open_files_are_told() {
        let mut config = Config::dev();
        config.cores.count = Some(1);
        let check = |files| open_files(&host(files, "0", ""), &config);
        check("1048576").is(Status::Ok, &["1048576", "147749"]);
        check("unlimited").is(Status::Ok, &["any number"]);
        check("20000").is(Status::Warn, &["20000", "ulimit -Hn", "client_connections"]);
        check("64").is(Status::Warn, &["64 files", "11 client and 12 worker"]);
        check("40").is(Status::Fail, &["40 files", "45 is the least"]);
        open_files(&Host::planted(&[]), &config).is(Status::Warn, &["/proc"]);
    }

    #[test]
    fn locked_memory_that_does_not_suffice_is_told() {
        let refused = Err(SetupError::Memory);
        let check = |result, io| locked_memory(&host("1", "65536", "CapEff:\t0\n"), result, io);
        check(&refused, Io::Ring).is(Status::Fail, &["64 KiB", "ulimit -l"]);
        check(&refused, Io::Auto).is(Status::Warn, &["ENOMEM"]);
        check(&refused, Io::Epoll).is(Status::Ok, &[]);
        check(&Ok(()), Io::Ring).is(Status::Ok, &["64 KiB"]);
        let root = host("1", "0", "CapEff:\t000001ffffffffff\n");
        locked_memory(&root, &Ok(()), Io::Ring).is(Status::Ok, &["CAP_IPC_LOCK"]);
        locked_memory(&host("1", "unlimited", ""), &Ok(()), Io::Ring).is(Status::Ok, &["no limit"]);
    }

    #[test]
    fn more_cores_than_cpus_are_told() {
        let mut config = Config::dev();
        config.cores.count = Some(2);
        let status = ("/proc/self/status", "Cpus_allowed_list:\t0-2,5\n");
        let group = ("/proc/self/cgroup", "0::/\n");
        let quota = |text| Host::planted(&[status, group, ("/sys/fs/cgroup/cpu.max", text)]);
        cpus(&quota("max 100000"), &config).is(Status::Ok, &["4 CPUs", "no quota"]);
        cpus(&quota("200000 100000"), &config).is(Status::Ok, &["2.00"]);
        cpus(&quota("150000 100000"), &config).is(Status::Warn, &["1.50", "cores.count"]);
        config.cores.count = Some(5);
        cpus(&quota("max 100000"), &config).is(Status::Warn, &["4 CPUs"]);
        cpus(&Host::planted(&[]), &config).is(Status::Ok, &["unknown"]);
    }

    #[test]
    fn little_memory_is_told() {
        let mut config = Config::dev();
        config.cores.count = Some(1);
        let group = |bytes: u64| {
            let total = ("/proc/meminfo", "MemTotal:        8000000 kB\n");
            Host::planted(&[total, ("/sys/fs/cgroup/memory.max", &bytes.to_string())])
        };
        memory(&group(1 << 30), &config).is(Status::Ok, &["control group", "1024 MiB", "328 MiB"]);
        memory(&group(200 << 20), &config).is(Status::Warn, &["200 MiB", "core_buffer"]);
        memory(&group(50 << 20), &config).is(Status::Fail, &["50 MiB", "72 MiB"]);
        memory(&group(1 << 50), &config).is(Status::Ok, &["machine"]);
        memory(&Host::planted(&[]), &config).is(Status::Ok, &["no limit"]);
    }
}
