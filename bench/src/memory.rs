//! Memory of other processes and of the kernel's sockets, from outside.

use std::fs;

use serde::{Deserialize, Serialize};

/// What one process and the kernel hold at an instant, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Resident set of the process.
    pub rss: u64,
    /// The same with shared pages divided among their users.
    pub pss: u64,
    /// The kernel's TCP buffers, of the whole machine.
    pub tcp: u64,
    /// The kernel's slab memory, of the whole machine.
    pub slab: u64,
}

impl Held {
    /// What `pids` hold together, and the kernel.
    pub fn sample(pids: &[u32]) -> Self {
        let mut held = Self { tcp: tcp_bytes(), slab: slab_bytes(), ..Self::default() };
        for pid in pids {
            let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
            held.rss += kib(&text, "Rss:");
            held.pss += kib(&text, "Pss:");
        }
        held
    }
}

/// Before the connections were made and with all of them open.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Memory {
    /// Connections between the two samples.
    pub connections: usize,
    /// Each watched process, before and after.
    pub held: std::collections::BTreeMap<String, (Held, Held)>,
}

impl Memory {
    /// Resident bytes a connection costs a watched process.
    pub fn per_connection(&self, name: &str) -> Option<f64> {
        let (before, after) = self.held.get(name)?;
        Some(after.pss.saturating_sub(before.pss) as f64 / self.connections.max(1) as f64)
    }
}

/// The number behind a label, of lines like `Rss:   12 kB`, in bytes.
fn kib(text: &str, label: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(label));
    line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// `/proc/net/sockstat` counts pages.
fn tcp_bytes() -> u64 {
    let text = fs::read_to_string("/proc/net/sockstat").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("TCP:")).unwrap_or_default();
    let mut words = line.split_whitespace().skip_while(|word| *word != "mem").skip(1);
    words.next().and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}

fn slab_bytes() -> u64 {
    kib(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "Slab:")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_holds_something() {
        let held = Held::sample(&[std::process::id()]);
        assert!(held.rss > 1 << 20 && held.pss > 1 << 19 && held.slab > 1 << 20, "{held:?}");
        assert_eq!(kib("Rss:    12 kB\nPss: 3 kB\n", "Pss:"), 3072);
    }
}
