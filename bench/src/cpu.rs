//! CPU time of other processes, from outside (`/proc/PID/task/*/schedstat`, nanoseconds).

use std::collections::HashMap;
use std::fs;

/// `pid` and all its descendants.
pub fn tree(pid: u32) -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for (child, parent) in parents() {
        children.entry(parent).or_default().push(child);
    }
    let mut tree = vec![pid];
    let mut at = 0;
    while let Some(next) = tree.get(at) {
        tree.extend(children.remove(next).unwrap_or_default());
        at += 1;
    }
    tree
}

/// User and system time of `pid`'s threads, in nanoseconds.
///
/// A thread that has ended takes its time with it; the proxies measured keep theirs.
pub fn spent_ns(pid: u32) -> u64 {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return 0 };
    tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok())
        .filter_map(|line| line.split(' ').next()?.parse::<u64>().ok())
        .sum()
}

/// As [`spent_ns`], of this process's threads whose name begins with `name`.
pub fn threads_ns(name: &str) -> u64 {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else { return 0 };
    tasks
        .flatten()
        .filter(|task| {
            fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.starts_with(name))
        })
        .filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok())
        .filter_map(|line| line.split(' ').next()?.parse::<u64>().ok())
        .sum()
}

/// Time that anything at all ran on any CPU, in seconds (resolution 10 ms a CPU).
pub fn machine_busy_s() -> f64 {
    /// `/proc/stat` counts in hundredths of a second on every Linux of the last decades.
    const TICKS_A_SECOND: f64 = 100.0;
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks: Vec<u64> = stat
        .lines()
        .next()
        .map(|line| line.split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect())
        .unwrap_or_default();
    // user, nice, system, (idle, iowait,) irq, softirq; steal and guests are not ours.
    let busy: u64 =
        ticks.iter().enumerate().filter(|(i, _)| [0, 1, 2, 5, 6].contains(i)).map(|(_, t)| t).sum();
    busy as f64 / TICKS_A_SECOND
}

/// (process, parent) of everything that runs.
fn parents() -> Vec<(u32, u32)> {
    let Ok(all) = fs::read_dir("/proc") else { return vec![] };
    all.flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter_map(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            // The name is in parentheses and may hold anything; the fields follow the last one.
            let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
            Some((pid, parent))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_grows_with_work_and_children_are_found() {
        let me = std::process::id();
        let (before, busy) = (spent_ns(me), machine_busy_s());
        let mut x = 1u64;
        while spent_ns(me) < before + 50_000_000 {
            x = std::hint::black_box(x.wrapping_mul(3));
        }
        assert!(machine_busy_s() >= busy + 0.03);
        let mut child = std::process::Command::new("sleep").arg("5").spawn().unwrap();
        assert!(parents().contains(&(child.id(), me)));
        assert_eq!(tree(me)[0], me);
        assert!(tree(me).contains(&child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(spent_ns(child.id()), 0);
    }
}
