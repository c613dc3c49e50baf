//! CPU time of other processes, from outside (`/proc/PID/task/*/schedstat`, nanoseconds).

use std::collections::HashMap;
use std::fs;

/// User and system time of `pid`'s threads and of its descendants' threads, in nanoseconds.
///
/// A thread that has ended takes its time with it; the proxies measured keep theirs.
pub fn tree_ns(pid: u32) -> u64 {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for (child, parent) in parents() {
        children.entry(parent).or_default().push(child);
    }
    let (mut sum, mut open) = (0, vec![pid]);
    while let Some(next) = open.pop() {
        sum += own_ns(next);
        open.extend(children.remove(&next).unwrap_or_default());
    }
    sum
}

/// As [`tree_ns`] for one process without its children.
pub fn own_ns(pid: u32) -> u64 {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return 0 };
    tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok())
        .filter_map(|line| line.split(' ').next()?.parse::<u64>().ok())
        .sum()
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
    fn own_time_grows_with_work_and_children_are_included() {
        let me = std::process::id();
        let before = own_ns(me);
        let mut x = 1u64;
        while own_ns(me) < before + 5_000_000 {
            x = std::hint::black_box(x.wrapping_mul(3));
        }
        let mut child = std::process::Command::new("sleep").arg("5").spawn().unwrap();
        assert!(parents().contains(&(child.id(), me)));
        assert!(tree_ns(me) >= own_ns(child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(own_ns(child.id()), 0);
    }
}
