//! The `process_*` metrics, out of /proc.

use std::fmt::Write;

use crate::metrics::{family, single};

/// Writes the metrics whose files can be read, and leaves the others out.
pub(super) fn render(out: &mut String) {
    if let Some(stat) = read("/proc/self/stat").as_deref().and_then(Stat::parse) {
        stat.render(out, boot_seconds());
    }
    if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
        // One of the files is this listing's own.
        let open = files.count().saturating_sub(1) as u64;
        single(out, ("process_open_fds", "gauge"), "Open file descriptors.", open);
    }
    if let Some(max) = read("/proc/self/limits").as_deref().and_then(max_files) {
        single(out, ("process_max_fds", "gauge"), "Most file descriptors allowed.", max);
    }
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

/// When the machine was started, in Unix seconds.
fn boot_seconds() -> f64 {
    let stat = read("/proc/stat").unwrap_or_default();
    let line = stat.lines().find_map(|line| line.strip_prefix("btime "));
    line.and_then(|seconds| seconds.trim().parse().ok()).unwrap_or(0.0)
}

fn max_files(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[derive(Debug, PartialEq)]
struct Stat {
    cpu_ticks: u64,
    threads: u64,
    start_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The second field is the name in brackets and may hold anything.
        let (_, rest) = text.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        // Numbered from 1 in proc(5), and the first here is the third.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu_ticks: field(14)? + field(15)?,
            threads: field(20)?,
            start_ticks: field(22)?,
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
        })
    }

    fn render(&self, out: &mut String, boot: f64) {
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        let name = "process_cpu_seconds_total";
        family(out, name, "counter", "CPU time, user and system.");
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{name} {}", self.cpu_ticks as f64 / ticks);
        let name = "process_start_time_seconds";
        family(out, name, "gauge", "Start of the process, in Unix time.");
        let _ = writeln!(out, "{name} {}", boot + self.start_ticks as f64 / ticks);
        single(
            out,
            ("process_virtual_memory_bytes", "gauge"),
            "Virtual memory.",
            self.virtual_bytes,
        );
        single(
            out,
            ("process_resident_memory_bytes", "gauge"),
            "Resident memory.",
            self.resident_pages * rustix::param::page_size() as u64,
        );
        single(out, ("process_threads", "gauge"), "Threads.", self.threads);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_spaces_confuses_nobody() {
        let text = "7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 30 12 13 14 15 16 9 18 500 8192 2 x";
        let stat = Stat::parse(text).unwrap();
        assert_eq!(
            stat,
            Stat {
                cpu_ticks: 42,
                threads: 9,
                start_ticks: 500,
                virtual_bytes: 8192,
                resident_pages: 2
            }
        );
    }

    #[test]
    fn this_process_has_all_of_them() {
        let mut text = String::new();
        render(&mut text);
        for name in ["cpu_seconds_total", "start_time_seconds", "resident_memory_bytes", "open_fds"]
        {
            assert!(text.contains(&format!("\nprocess_{name} ")), "{name} in {text}");
        }
    }
}
