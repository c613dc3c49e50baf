//! The machine a run was made on, and the settings a run fixes.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;

use serde::Serialize;

use super::Request;
use super::programs::Programs;

/// System-wide choices for new connections, below `/proc/sys`.
const CONGESTION: &str = "net/ipv4/tcp_congestion_control";
const RECEIVE: &str = "net/ipv4/tcp_rmem";
const SEND: &str = "net/ipv4/tcp_wmem";
/// Leaves them as they are.
pub const KEEP: &str = "keep";
/// What the kernel has for a socket's memory by itself on a machine with enough of it (least, first
/// and most octets). Many systems raise the most, which decides how far bulk leaves the caches.
const MEMORY: [(&str, &str); 2] = [(RECEIVE, "4096 131072 6291456"), (SEND, "4096 16384 4194304")];

/// Settings that a run fixes; dropping them restores what was there.
#[derive(Debug)]
pub struct Fixed {
    before: Vec<(&'static str, String)>,
    /// Each by name, and what was made of it.
    notes: Vec<(String, String)>,
}

impl Fixed {
    /// Sets what is wanted where that is allowed.
    pub fn settle(request: &Request) -> Self {
        let mut fixed = Self { before: vec![], notes: vec![] };
        fixed.set(CONGESTION, "congestion control", &request.congestion);
        for (path, value) in MEMORY {
            let wanted = if request.tcp_memory == KEEP { KEEP } else { value };
            fixed.set(path, path.rsplit('/').next().unwrap_or(path), wanted);
        }
        fixed
    }

    fn set(&mut self, path: &'static str, name: &str, wanted: &str) {
        let found = setting(path);
        let note = if found == wanted || wanted == KEEP {
            found
        } else {
            match fs::write(format!("/proc/sys/{path}"), wanted) {
                Ok(()) => {
                    let note = format!("{wanted} for this run (was {found}, restored afterwards)");
                    self.before.push((path, found));
                    note
                }
                Err(error) => format!(
                    "{found} ({wanted} could not be set: {error}): large messages cost otherwise"
                ),
            }
        };
        self.notes.push((name.to_owned(), note));
    }
}

impl Drop for Fixed {
    fn drop(&mut self) {
        for (path, before) in &self.before {
            if let Err(error) = fs::write(format!("/proc/sys/{path}"), before) {
                ringway_stdio::complain!("{path} could not be set back to {before}: {error}");
            }
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
    /// What the run has fixed, by name.
    fixed: Vec<(String, String)>,
    /// Other settings that decide what a socket costs.
    settings: BTreeMap<String, String>,
    proxy_cpu: usize,
    load_cpu: usize,
    driver: &'static str,
    program: String,
    versions: BTreeMap<String, String>,
}

/// Settings of the kernel that are shown.
const SETTINGS: [&str; 3] =
    ["net/core/somaxconn", "net/ipv4/ip_local_port_range", "kernel/io_uring_disabled"];

/// A setting of the kernel, its words parted by one blank.
fn setting(name: &str) -> String {
    let text = read(&format!("/proc/sys/{name}"));
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

impl Facts {
    /// Reads them.
    pub fn gather(fixed: &Fixed, request: &Request, programs: &Programs) -> Self {
        let value = |text: &str, name: &str| {
            let line = text.lines().find(|l| l.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let (cpuinfo, meminfo) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
        let kib = value(&meminfo, "MemTotal")
            .and_then(|v| v.split(' ').next()?.parse::<u64>().ok())
            .unwrap_or(0);
        let governor = read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
        let told = |name: &str| (name.replace('/', "."), setting(name));
        Self {
            kernel: read("/proc/sys/kernel/osrelease"),
            cpu: value(&cpuinfo, "model name").unwrap_or_else(|| "unknown".to_owned()),
            cpus: cpuinfo.lines().filter(|l| l.starts_with("processor")).count(),
            memory_mib: kib / 1024,
            governor: if governor.is_empty() { "not shown".to_owned() } else { governor },
            mitigations: mitigations(),
            fixed: fixed.notes.clone(),
            settings: SETTINGS.iter().map(|name| told(name)).collect(),
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
            ("mitigations", join(&self.mitigations)),
            ("settings", join(&self.settings)),
        ];
        let own = own.into_iter().map(|(name, value)| (name.to_owned(), value));
        own.chain(self.fixed.clone()).chain(self.versions.clone()).collect()
    }

    /// What was compared, each with its version.
    pub fn versions(&self) -> &BTreeMap<String, String> {
        &self.versions
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
