//! The machine a run was made on, and the one setting a run changes.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;

use serde::Serialize;

use super::Request;
use super::programs::Programs;

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
            ringway_stdio::complain!(
                "congestion control could not be set back to {before}: {error}"
            );
        }
    }
}

/// What a reader needs to judge the figures.
#[derive(Debug, Default, Serialize)]
pub struct Facts {
    kernel: String,
    cpu: String,
    cpus: usize,
    memory_mib: u64,
    governor: String,
    /// What the kernel does against the CPU's faults, by fault, where it does anything.
    mitigations: BTreeMap<String, String>,
    congestion: String,
    /// Other settings that decide what a socket costs.
    settings: BTreeMap<String, String>,
    proxy_cpu: usize,
    load_cpu: usize,
    driver: &'static str,
    program: String,
    versions: BTreeMap<String, String>,
}

/// Settings of the kernel that are told.
const SETTINGS: [&str; 5] = [
    "net/core/somaxconn",
    "net/ipv4/tcp_rmem",
    "net/ipv4/tcp_wmem",
    "net/ipv4/ip_local_port_range",
    "kernel/io_uring_disabled",
];

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

impl Facts {
    /// Reads them.
    pub fn gather(congestion: &Congestion, request: &Request, programs: &Programs) -> Self {
        let value = |text: &str, name: &str| {
            let line = text.lines().find(|l| l.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let (cpuinfo, meminfo) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
        let kib = value(&meminfo, "MemTotal")
            .and_then(|v| v.split(' ').next()?.parse::<u64>().ok())
            .unwrap_or(0);
        let governor = read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
        let setting = |name: &str| (name.replace('/', "."), read(&format!("/proc/sys/{name}")));
        Self {
            kernel: read("/proc/sys/kernel/osrelease"),
            cpu: value(&cpuinfo, "model name").unwrap_or_else(|| "unknown".to_owned()),
            cpus: cpuinfo.lines().filter(|l| l.starts_with("processor")).count(),
            memory_mib: kib / 1024,
            governor: if governor.is_empty() { "not shown".to_owned() } else { governor },
            mitigations: mitigations(),
            congestion: congestion.note.clone(),
            settings: SETTINGS.iter().map(|name| setting(name)).collect(),
            proxy_cpu: request.proxy_cpu,
            load_cpu: request.load_cpu,
            driver: crate::drive::backend_name(),
            program: format!(
                "ringway-bench {} (commit {})",
                ringway_cli::VERSION,
                ringway_cli::COMMIT
            ),
            versions: programs.versions(),
        }
    }

    /// Name and value of each, for a table.
    pub fn lines(&self) -> Vec<(String, String)> {
        let join = |map: &BTreeMap<String, String>| {
            map.iter()
                .map(|(name, value)| format!("{name}: {value}"))
                .collect::<Vec<_>>()
                .join("; ")
        };
        let own = [
            ("generator", format!("{}, {}", self.program, self.driver)),
            ("kernel", format!("Linux {}", self.kernel)),
            ("CPU", format!("{} x {}, governor {}", self.cpus, self.cpu, self.governor)),
            (
                "placement",
                format!(
                    "proxy on CPU {}, load and endpoint on CPU {}",
                    self.proxy_cpu, self.load_cpu
                ),
            ),
            ("memory", format!("{} MiB", self.memory_mib)),
            ("congestion control", self.congestion.clone()),
            ("mitigations", join(&self.mitigations)),
            ("settings", join(&self.settings)),
        ];
        let own = own.into_iter().map(|(name, value)| (name.to_owned(), value));
        own.chain(self.versions.clone()).collect()
    }
}

fn mitigations() -> BTreeMap<String, String> {
    let Ok(files) = fs::read_dir("/sys/devices/system/cpu/vulnerabilities") else {
        return BTreeMap::new();
    };
    let told = files.flatten().filter_map(|file| {
        let state = read(&file.path().display().to_string());
        (state != "Not affected").then(|| (file.file_name().to_string_lossy().into_owned(), state))
    });
    told.collect()
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.lines();
        let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let text: Vec<_> =
            lines.iter().map(|(name, value)| format!("{name:<width$}  {value}")).collect();
        f.write_str(&text.join("\n"))
    }
}
