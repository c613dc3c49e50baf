//! Which CPUs the cores can have, and how many cores should be run on them.

use crate::config::MAX_CORES;

/// As many cores as the process may use CPUs: the quota of its control group, rounded up, or its
/// affinity mask, whichever allows fewer.
pub(super) fn auto() -> usize {
    let quota = crate::machine::cpu_quota().map_or(usize::MAX, |cpus| cpus.ceil() as usize);
    let mask = allowed().map_or(1, |cpus| cpus.len());
    quota.min(mask).clamp(1, MAX_CORES)
}

/// The CPUs for `count` cores, beginning with the one this thread runs on. Otherwise several
/// gateways on one machine would all choose its first CPU. None if there are not enough CPUs to
/// choose from.
pub(super) fn for_cores(count: usize) -> Option<Vec<usize>> {
    let cpus = allowed()?;
    // With as many cores as CPUs the control thread has no CPU of its own either way.
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

#[cfg(test)]
mod tests {
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

    #[test]
    fn there_is_always_a_core() {
        assert!((1..=MAX_CORES).contains(&auto()));
    }
}
