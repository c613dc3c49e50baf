//! What the process's control group allows: the least of its own and all above it.

use super::Host;

const MOUNT: &str = "/sys/fs/cgroup";

/// Bytes of memory, by version 2 or 1 of control groups.
pub(crate) fn memory(host: &Host) -> Option<u64> {
    let limit = |path: String, file: &str| host.number(&format!("{path}/{file}"));
    let new = groups(host, "").into_iter().filter_map(|path| limit(path, "memory.max"));
    let old = groups(host, "memory")
        .into_iter()
        .filter_map(|path| limit(path, "memory.limit_in_bytes"))
        // "No limit" is written as a number that no machine has.
        .filter(|bytes| *bytes < 1 << 60);
    new.chain(old).min()
}

/// CPUs, in fractions.
pub(crate) fn cpus(host: &Host) -> Option<f64> {
    let new = groups(host, "").into_iter().filter_map(|path| {
        let text = host.read(&format!("{path}/cpu.max"))?;
        let (quota, period) = text.split_once(' ')?;
        share(quota, period)
    });
    let old = groups(host, "cpu").into_iter().filter_map(|path| {
        let quota = host.read(&format!("{path}/cpu.cfs_quota_us"))?;
        share(&quota, &host.read(&format!("{path}/cpu.cfs_period_us"))?)
    });
    new.chain(old).min_by(f64::total_cmp)
}

/// No quota is `max` or -1.
fn share(quota: &str, period: &str) -> Option<f64> {
    let (quota, period): (u64, u64) = (quota.parse().ok()?, period.parse().ok()?);
    (period > 0).then(|| quota as f64 / period as f64)
}

/// The folders of the process's group and those above it; the controller is empty for version 2.
fn groups(host: &Host, controller: &str) -> Vec<String> {
    // Version 2 beside version 1 has a folder of its own.
    let mounts = match controller {
        "" => vec![MOUNT.to_owned(), format!("{MOUNT}/unified")],
        named => vec![format!("{MOUNT}/{named}")],
    };
    let mut folders = mounts.clone();
    let own = host.read("/proc/self/cgroup").unwrap_or_default();
    for line in own.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        if controllers.split(',').any(|name| name == controller) {
            for mut folder in mounts.clone() {
                for name in path.split('/').filter(|name| !matches!(*name, "" | "." | "..")) {
                    folder = format!("{folder}/{name}");
                    folders.push(folder.clone());
                }
            }
        }
    }
    folders
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_on_the_way_up_counts() {
        let host = Host::planted(&[
            ("/proc/self/cgroup", "0::/kube/pod/box\n"),
            ("/sys/fs/cgroup/kube/memory.max", "max"),
            ("/sys/fs/cgroup/kube/pod/memory.max", "1000\n"),
            ("/sys/fs/cgroup/kube/pod/box/memory.max", "2000"),
            ("/sys/fs/cgroup/kube/pod/cpu.max", "max 100000"),
            ("/sys/fs/cgroup/kube/pod/box/cpu.max", "150000 100000"),
        ]);
        assert_eq!((memory(&host), cpus(&host)), (Some(1000), Some(1.5)));
        assert_eq!(memory(&Host::planted(&[])), None);
        let dots = ("/proc/self/cgroup", "0::/../etc\nnonsense\n");
        let outside = ("/sys/fs/cgroup/../etc/cpu.max", "100 100");
        assert_eq!(cpus(&Host::planted(&[dots, outside])), None);
    }

    #[test]
    fn version_one_is_read_too() {
        let host = Host::planted(&[
            ("/proc/self/cgroup", "4:memory:/box\n1:cpu,cpuacct:/box\n0::/\n"),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712"),
            ("/sys/fs/cgroup/memory/box/memory.limit_in_bytes", "4096"),
            ("/sys/fs/cgroup/cpu/box/cpu.cfs_quota_us", "-1"),
            ("/sys/fs/cgroup/cpu/box/cpu.cfs_period_us", "100000"),
            ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "50000"),
            ("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000"),
        ]);
        assert_eq!((memory(&host), cpus(&host)), (Some(4096), Some(0.5)));
    }
}
