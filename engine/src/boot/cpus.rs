//! Which CPUs there are for the cores, and how many cores they are worth.

use std::path::{Component, Path};

use crate::config::MAX_CORES;

/// As many cores as the process may use CPUs: the quota of its control group, begun ones counted
/// whole, or its affinity mask, whichever allows fewer.
pub(super) fn auto() -> usize {
    let quota = quota(Path::new("/")).map_or(usize::MAX, |cpus| cpus.ceil() as usize);
    let mask = allowed().map_or(1, |cpus| cpus.len());
    quota.min(mask).clamp(1, MAX_CORES)
}

/// The CPUs for so many cores, beginning with the one this thread runs on: several gateways on one
/// machine would otherwise all choose its first. None where there are not enough to choose from.
pub(super) fn for_cores(count: usize) -> Option<Vec<usize>> {
    let cpus = allowed()?;
    // With as many cores as CPUs there would be none of its own for the control thread either way.
    if cpus.len() < count.max(2) {
        return None;
    }
    let here = rustix::thread::sched_getcpu();
    let first = cpus.iter().position(|cpu| *cpu == here).unwrap_or(0);
    Some((first..first + count).map(|at| cpus[at % cpus.len()]).collect())
}

/// The affinity mask of this thread.
fn allowed() -> Option<Vec<usize>> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let list = text.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    Some(numbers(list.trim()))
}

/// `0-3,8` as numbers.
fn numbers(list: &str) -> Vec<usize> {
    let mut cpus = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<usize>(), last.parse::<usize>()) {
            cpus.extend(first..=last.min(first + 4096));
        }
    }
    cpus
}

/// The CPU time this process may use, in CPUs; none where there is no limit. `root` is `/`.
fn quota(root: &Path) -> Option<f64> {
    let groups = std::fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let mounts = root.join("sys/fs/cgroup");
    let mut least: Option<f64> = None;
    for line in groups.lines() {
        // `hierarchy:controllers:path`; the hierarchy without controllers is version 2.
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let found = if controllers.is_empty() {
            let hybrid = mounts.join("unified");
            let mount = if hybrid.is_dir() { &hybrid } else { &mounts };
            least_of(mount, path, version_2)
        } else if controllers.split(',').any(|name| name == "cpu") {
            least_of(&mounts.join("cpu"), path, version_1)
        } else {
            None
        };
        least = [least, found].into_iter().flatten().reduce(f64::min);
    }
    least
}

/// A group is also held to the limits of those it is in. In a container its path may be one of the
/// host's, of which only the mount is to be seen.
fn least_of(mount: &Path, path: &str, read: fn(&Path) -> Option<f64>) -> Option<f64> {
    let names = Path::new(path).components().filter(|part| matches!(part, Component::Normal(_)));
    let mut group = mount.to_path_buf();
    let mut least = read(&group);
    for name in names {
        group.push(name);
        least = [least, read(&group)].into_iter().flatten().reduce(f64::min);
    }
    least
}

/// `cpu.max`: quota and period in microseconds, or `max`.
fn version_2(group: &Path) -> Option<f64> {
    let text = std::fs::read_to_string(group.join("cpu.max")).ok()?;
    let mut fields = text.split_ascii_whitespace();
    share(fields.next()?, fields.next()?)
}

/// A quota of -1 is none.
fn version_1(group: &Path) -> Option<f64> {
    let read = |name: &str| std::fs::read_to_string(group.join(name)).ok();
    share(read("cpu.cfs_quota_us")?.trim(), read("cpu.cfs_period_us")?.trim())
}

fn share(quota: &str, period: &str) -> Option<f64> {
    let (quota, period) = (quota.parse::<u64>().ok()?, period.parse::<u64>().ok()?);
    (period > 0).then(|| quota as f64 / period as f64)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn cpu_lists_are_read() {
        assert_eq!(numbers("0-2,5"), [0, 1, 2, 5]);
        assert_eq!(numbers("7"), [7]);
        assert!(numbers("").is_empty());
        assert_eq!(numbers("x-3,1"), [1]);
        assert_eq!(for_cores(5000), None);
        if let Some(chosen) = for_cores(2) {
            assert!(chosen.len() == 2 && chosen[0] != chosen[1]);
        }
    }

    /// A root with these files.
    fn root(name: &str, files: &[(&str, &str)]) -> PathBuf {
        let root = std::env::temp_dir().join(format!("ringway-{name}-{}", std::process::id()));
        for (path, text) in files {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }

    fn quota_of(name: &str, files: &[(&str, &str)]) -> Option<f64> {
        let root = root(name, files);
        let quota = quota(&root);
        std::fs::remove_dir_all(root).unwrap();
        quota
    }

    #[test]
    fn the_narrowest_group_decides() {
        let own = ("proc/self/cgroup", "0::/slice/unit\n");
        let wide = ("sys/fs/cgroup/slice/cpu.max", "400000 100000\n");
        let none = ("sys/fs/cgroup/slice/unit/cpu.max", "max 100000\n");
        let narrow = ("sys/fs/cgroup/slice/unit/cpu.max", "150000 100000\n");
        assert_eq!(quota_of("v2", &[own, wide, narrow]), Some(1.5));
        assert_eq!(quota_of("v2-parent", &[own, wide, none]), Some(4.0));
        assert_eq!(quota_of("v2-none", &[own, none]), None);
        assert_eq!(quota_of("nothing", &[("proc/x", "")]), None);
    }

    #[test]
    fn a_container_on_version_1_sees_only_its_mount() {
        let own = ("proc/self/cgroup", "5:cpuset:/x\n4:cpu,cpuacct:/docker/0a\n0::/x\n");
        let quota = ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "50000\n");
        let period = ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
        assert_eq!(quota_of("v1", &[own, quota, period]), Some(0.5));
        let free = ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
        assert_eq!(quota_of("v1-free", &[own, free, period]), None);
        let broken = ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "0\n");
        assert_eq!(quota_of("v1-broken", &[own, quota, broken]), None);
    }

    #[test]
    fn paths_out_of_the_mount_are_not_followed() {
        let own = ("proc/self/cgroup", "0::/../../etc\nnonsense\n");
        let outside = ("sys/fs/etc/cpu.max", "100 100");
        assert_eq!(quota_of("dots", &[own, outside]), None);
    }

    #[test]
    fn there_is_always_a_core() {
        assert!((1..=MAX_CORES).contains(&auto()));
    }
}
