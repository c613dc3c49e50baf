//! Memory of other processes and of the kernel's sockets, from outside.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::cpu;
use crate::load::Watch;

/// What one process holds at an instant, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Resident set of the process.
    pub rss: u64,
    /// The same with shared pages divided among their users.
    pub pss: u64,
    /// Its sockets, counted.
    #[serde(default)]
    pub sockets: u64,
    /// Octets that wait in them, to be sent, to be acknowledged or to be read.
    #[serde(default)]
    pub queued: u64,
}

impl Held {
    /// What `pids` hold together.
    pub fn sample(pids: &[u32]) -> Self {
        let mut held = Self::default();
        let mut own = HashSet::new();
        for pid in pids {
            let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
            held.rss += kib(&text, "Rss:");
            held.pss += kib(&text, "Pss:");
            own.extend(sockets(*pid));
        }
        held.sockets = own.len() as u64;
        held.queued = queued(&own);
        held
    }
}

/// What the kernel holds for all processes of the machine, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// TCP buffers.
    pub tcp: u64,
    /// Slab memory: sockets, files, polls.
    pub slab: u64,
    /// TCP sockets, counted.
    pub sockets: u64,
}

impl Kernel {
    /// Now.
    pub fn sample() -> Self {
        let text = fs::read_to_string("/proc/net/sockstat").unwrap_or_default();
        let number = |name| tcp_number(&text, name).unwrap_or(0);
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        // `mem` counts pages.
        Self { tcp: number("mem") * 4096, slab: kib(&meminfo, "Slab:"), sockets: number("inuse") }
    }
}

/// With a number of connections open.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Step {
    /// So many.
    pub connections: usize,
    /// Each watched process.
    pub held: BTreeMap<String, Held>,
    /// The kernel.
    pub kernel: Kernel,
}

/// Before the connections were made, and with more and more of them open.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Memory {
    /// The first is without connections, the last with all.
    pub steps: Vec<Step>,
    #[serde(skip)]
    watch: Vec<Watch>,
}

impl Memory {
    /// Nothing is open yet.
    pub fn before(watch: &[Watch]) -> Self {
        let mut memory = Self { steps: vec![], watch: watch.to_vec() };
        memory.step(0);
        memory
    }

    /// So many connections are open now.
    pub fn step(&mut self, connections: usize) {
        let held = |watch: &Watch| (watch.name.clone(), Held::sample(&cpu::tree(watch.pid)));
        let held = self.watch.iter().map(held).collect();
        self.steps.push(Step { connections, held, kernel: Kernel::sample() });
    }

    /// Own bytes that all the connections cost a watched process, each.
    pub fn per_connection(&self, name: &str) -> Option<f64> {
        let (first, last) = self.ends()?;
        let (before, after) = (first.held.get(name)?, last.held.get(name)?);
        Some(each(last, after.pss as f64 - before.pss as f64))
    }

    /// The kernel's bytes that all the connections cost for the sockets of a watched process,
    /// each: what waits in them, and what the machine's slab memory grew by, by the process's share
    /// of the new sockets.
    pub fn kernel_per_connection(&self, name: &str) -> Option<f64> {
        let (first, last) = self.ends()?;
        let own = last.held.get(name)?.sockets.saturating_sub(first.held.get(name)?.sockets);
        let all = last.kernel.sockets.saturating_sub(first.kernel.sockets).max(1);
        let slab = last.kernel.slab as f64 - first.kernel.slab as f64;
        let slab = slab.max(0.0) * (own as f64 / all as f64).min(1.0);
        let queued = last.held.get(name)?.queued as f64 - first.held.get(name)?.queued as f64;
        Some(each(last, slab + queued))
    }

    fn ends(&self) -> Option<(&Step, &Step)> {
        Some((self.steps.first()?, self.steps.last()?))
    }
}

/// A growth that is none counts as nothing.
fn each(last: &Step, bytes: f64) -> f64 {
    bytes.max(0.0) / last.connections.max(1) as f64
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // With a few connections the figures mean nothing.
        for step in self.steps.iter().filter(|_| self.steps.len() > 2) {
            write!(f, "\nwith {} connections:", step.connections)?;
            for (name, held) in &step.held {
                let (kib, sockets) = (held.pss / 1024, held.sockets);
                write!(f, " {name} {kib} KiB and {sockets} sockets,")?;
            }
            let Kernel { tcp, slab, sockets } = step.kernel;
            let (tcp, slab) = (tcp / 1024, slab / 1024);
            write!(f, " kernel {slab} KiB slab, {tcp} KiB TCP, {sockets} sockets")?;
        }
        Ok(())
    }
}

/// The number behind a label, of lines like `Rss:   12 kB`, in bytes.
fn kib(text: &str, label: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(label));
    line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// The number behind a word of the line of TCP.
fn tcp_number(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("TCP:"))?;
    line.split_whitespace().skip_while(|word| *word != name).nth(1)?.parse().ok()
}

/// The inodes of a process's sockets.
fn sockets(pid: u32) -> Vec<u64> {
    let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { return vec![] };
    let links = files.flatten().filter_map(|file| fs::read_link(file.path()).ok());
    let inode =
        |link: PathBuf| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok();
    links.filter_map(inode).collect()
}

/// Octets that wait in the TCP sockets with these inodes.
fn queued(own: &HashSet<u64>) -> u64 {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(fs::read_to_string);
    tables
        .iter()
        .flatten()
        .flat_map(|table| table.lines().skip(1))
        .map(|line| waits(line, own))
        .sum()
}

/// Octets that wait in one socket of the kernel's table, if it is one of these.
fn waits(line: &str, own: &HashSet<u64>) -> u64 {
    let mut words = line.split_whitespace();
    // Number, both addresses and state come before the queues; timers, user and timeout after.
    let Some((to_send, to_read)) = words.nth(4).and_then(|queues| queues.split_once(':')) else {
        return 0;
    };
    let is_own =
        words.nth(4).and_then(|inode| inode.parse().ok()).is_some_and(|n| own.contains(&n));
    let hex = |text| u64::from_str_radix(text, 16).unwrap_or(0);
    if is_own { hex(to_send) + hex(to_read) } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_and_the_kernel_hold_something() {
        let before = Held::sample(&[std::process::id()]);
        let _listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let held = Held::sample(&[std::process::id()]);
        assert!(held.rss > 1 << 20 && held.pss > 1 << 19, "{held:?}");
        // Other tests may have closed some meanwhile, so only that there are any.
        assert!(held.sockets > 0 && before.rss > 0, "{held:?}");
        assert!(Kernel::sample().slab > 1 << 20);
        assert_eq!(kib("Rss:    12 kB\nPss: 3 kB\n", "Pss:"), 3072);
        let line = "sockets: used 97\nTCP: inuse 62 orphan 0 tw 1 alloc 64 mem 7\nUDP: inuse 9";
        assert_eq!((tcp_number(line, "inuse"), tcp_number(line, "mem")), (Some(62), Some(7)));
    }

    #[test]
    fn what_waits_in_a_socket_is_seen() {
        let line =
            "  3: 0100007F:1F90 0100007F:9C40 01 000000FF:00000010 02:000005DC 00000000 0 0 4711 2";
        assert_eq!(waits(line, &[4711].into()), 255 + 16);
        assert_eq!(waits(line, &[4712].into()), 0);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let _server = listener.accept().unwrap();
        std::io::Write::write_all(&mut client, &[0; 5000]).unwrap();
        assert!(Held::sample(&[std::process::id()]).queued >= 5000);
    }

    #[test]
    fn growth_is_shared_out_by_sockets() {
        let step = |connections, pss, own, slab, sockets| Step {
            connections,
            held: [("proxy".to_owned(), Held { rss: pss, pss, sockets: own, queued: own * 10 })]
                .into(),
            kernel: Kernel { tcp: 0, slab, sockets },
        };
        let steps = vec![step(0, 1000, 3, 5000, 10), step(10, 21_000, 23, 85_000, 50)];
        let memory = Memory { steps, watch: vec![] };
        assert_eq!(memory.per_connection("proxy"), Some(2000.0));
        // 80 000 bytes for 40 new sockets, 20 of them the proxy's with 200 in them, 10 connections.
        assert_eq!(memory.kernel_per_connection("proxy"), Some(4020.0));
        assert_eq!(memory.per_connection("other"), None);
    }
}
