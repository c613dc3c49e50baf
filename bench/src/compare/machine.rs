//! The machine a run was made on, and the one setting a run changes.

use std::fmt;
use std::fs;

use serde::Serialize;

use super::Request;

/// System-wide choice for new connections.
const CONGESTION: &str = "/proc/sys/net/ipv4/tcp_congestion_control";
/// Leaves it as it is.
const KEEP: &str = "keep";

/// Congestion control for the time of a run; dropping it restores what was there.
#[derive(Debug)]
pub struct Congestion {
    before: Option<String>,
    note: String,
}

impl Congestion {
    /// Sets `wanted` where that is allowed.
    pub fn settle(wanted: &str) -> Self {
        let found = fs::read_to_string(CONGESTION).unwrap_or_default().trim().to_owned();
        if found == wanted || wanted == KEEP {
            return Self { before: None, note: found };
        }
        match fs::write(CONGESTION, wanted) {
            Ok(()) => {
                let note = format!("{wanted} for this run (was {found}, restored afterwards)");
                Self { before: Some(found), note }
            }
            Err(error) => Self {
                before: None,
                note: format!(
                    "{found} ({wanted} could not be set: {error}): large messages cost more"
                ),
            },
        }
    }
}

impl Drop for Congestion {
    fn drop(&mut self) {
        if let Some(before) = &self.before
            && let Err(error) = fs::write(CONGESTION, before)
        {
            eprintln!("congestion control could not be set back to {before}: {error}");
        }
    }
}

/// What a reader needs to judge the figures.
#[derive(Debug, Serialize)]
pub struct Facts {
    kernel: String,
    cpu: String,
    cpus: usize,
    memory_mib: u64,
    congestion: String,
    proxy_cpu: usize,
    load_cpu: usize,
    driver: &'static str,
    program: &'static str,
}

impl Facts {
    /// Reads them.
    pub fn gather(congestion: &Congestion, request: &Request) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let value = |text: &str, name: &str| {
            let line = text.lines().find(|l| l.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let (cpuinfo, meminfo) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
        let kib = value(&meminfo, "MemTotal")
            .and_then(|v| v.split(' ').next()?.parse::<u64>().ok())
            .unwrap_or(0);
        Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpu: value(&cpuinfo, "model name").unwrap_or_else(|| "unknown".to_owned()),
            cpus: cpuinfo.lines().filter(|l| l.starts_with("processor")).count(),
            memory_mib: kib / 1024,
            congestion: congestion.note.clone(),
            proxy_cpu: request.proxy_cpu,
            load_cpu: request.load_cpu,
            driver: crate::drive::backend_name(),
            program: concat!("ringway-bench ", env!("CARGO_PKG_VERSION")),
        }
    }
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, {}", self.program, self.driver)?;
        writeln!(
            f,
            "Linux {}, {} x {}, {} MiB; proxy on CPU {}, load and endpoint on CPU {}",
            self.kernel, self.cpus, self.cpu, self.memory_mib, self.proxy_cpu, self.load_cpu
        )?;
        write!(f, "congestion control: {}", self.congestion)
    }
}
