//! How the files that the process may open are shared out, so that clients cannot use all of them.
//!
//! The process's own files and the admin port come first. The rest is shared out between clients
//! and workers in proportion to their limits, which are lowered if there are too few files. So
//! peers of one kind cannot use up the part of the other. A little of the workers' part is kept for
//! dials, which connections to the worker port cannot use up.

use std::fmt;

use super::Demo;
use crate::config::{Config, Limits};
use crate::demo::POLLS;

/// Files of the process besides its cores: standard streams, the admin listener and the connection
/// waiting there, signals. Also files that are open for a moment: configuration, certificates, name
/// lookups, /proc.
const PROCESS: u64 = 24;
/// Files of a core: its two listeners, each twice, its bell and its ring. At each listener one more
/// connection, which is closed at once because there is no room. Two to begin anew after a panic.
/// And the file that says how long its thread has waited for a processor.
const PER_CORE: u64 = 11;
/// Connections of the admin port at once.
const ADMIN: u64 = 256;
/// The fewest connections of the admin port.
const LEAST_ADMIN: u64 = 4;
/// The admin port gets one in so many of the files that are left.
const ADMIN_PART: u64 = 16;
/// Fewest connections of a core's clients, and of its workers.
const LEAST_PEERS: u64 = 3;
/// One in so many connections may be closing: its last bytes are still being sent.
const LEAVING_PART: u64 = 8;
/// One in so many sockets of workers and servers is kept for dials, and one more.
const DIALS_PART: u64 = 16;
/// Files of the demo whatever it serves: those of its runtime and its name lookups.
const DEMO: u64 = 8;

/// How the files are shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Files {
    /// Files that may be open; `u64::MAX` is any number.
    have: u64,
    /// Files that the whole configuration needs.
    wanted: u64,
    /// The fewest files with which the cores can serve at all.
    least: u64,
    /// Connections that a core lets clients have; `limits.client_connections` at most.
    pub(crate) clients: usize,
    /// Sockets of a core's clients, with those that are closing.
    pub(crate) client_sockets: usize,
    /// Connections that a core has with workers and servers; `limits.worker_connections` at most.
    pub(crate) workers: usize,
    /// Sockets of a core with workers and servers, with those that are closing.
    pub(crate) other_sockets: usize,
    /// How many of these may come by the worker port.
    pub(crate) worker_sockets: usize,
    /// Connections of the admin port.
    pub(crate) admin: usize,
}

/// Sockets for so many connections, since some more are closing.
const fn with_leaving(connections: u64) -> u64 {
    connections + connections / LEAVING_PART + 1
}

impl Demo {
    /// Files that the demo has open for each of its connections to the gateway: its end, and with a
    /// bridge the connection to the server.
    const fn files(&self) -> u64 {
        match self {
            Self::Echo => 1,
            Self::Target(_) => 2,
        }
    }
}

impl Files {
    /// Shares out `have` files between `cores` cores with these limits. The demo is a worker in the
    /// same process, so the files that it opens for a worker connection count as well.
    pub(crate) fn share(limits: &Limits, cores: usize, have: u64, demo: Option<&Demo>) -> Self {
        let cores = cores.max(1) as u64;
        let (clients, workers) =
            (limits.client_connections as u64, limits.worker_connections as u64);
        let (sockets, others) = (with_leaving(clients), with_leaving(workers));
        let own = PROCESS + cores * PER_CORE + demo.map_or(0, |_| DEMO);
        let cost = 1 + demo.map_or(0, Demo::files);
        let least_others = LEAST_PEERS + demo.map_or(0, |_| POLLS as u64);
        let least_each = LEAST_PEERS + cost * least_others;
        let wanted = own + ADMIN + cores * (sockets + cost * others);
        let least = own + LEAST_ADMIN + cores * least_each;
        let divided = |clients: u64, sockets: u64, others: u64, admin: u64| Self {
            have,
            wanted,
            least,
            clients: clients.clamp(1, limits.client_connections as u64) as usize,
            client_sockets: sockets as usize,
            workers: others.min(workers) as usize,
            other_sockets: others as usize,
            worker_sockets: (others - others / DIALS_PART - 1) as usize,
            admin: admin as usize,
        };
        if have >= wanted {
            return divided(clients, sockets, others, ADMIN);
        }
        let left = have.saturating_sub(own);
        let admin = left.saturating_sub(cores * least_each).min(left / ADMIN_PART);
        let admin = admin.clamp(LEAST_ADMIN, ADMIN);
        let each = (left.saturating_sub(admin) / cores).max(least_each);
        // The limits and the files here are a million at most, so nothing overflows.
        let part = each * others / (sockets + cost * others);
        let part = part.clamp(least_others, (each - LEAST_PEERS) / cost).min(others);
        let sockets = (each - cost * part).min(sockets);
        let others = ((each - sockets) / cost).min(others);
        divided(sockets - sockets / (LEAVING_PART + 1) - 1, sockets, others, admin)
    }

    /// Shares out what the hard limit of this process allows.
    pub(crate) fn of_process(config: &Config, demo: Option<&Demo>) -> Self {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
        let have = limit.unwrap_or(u64::MAX);
        Self::share(&config.limits, super::core_count(config), have, demo)
    }

    /// Has the kernel make its table of the process' files as large as it will ever have to be.
    ///
    /// With one thread that is done at once. Later each doubling of the table waits until every CPU
    /// has passed a quiet state (`synchronize_rcu`), which takes tens of milliseconds within a
    /// core's accept. The cost is eight bytes for each file.
    pub(crate) fn lay_table(&self) {
        let last = self.have.min(self.wanted).saturating_sub(1);
        let last = i32::try_from(last).unwrap_or(i32::MAX);
        // If the kernel refuses, everything works, only slower.
        let _ = std::fs::File::open("/dev/null")
            .map(|file| rustix::io::fcntl_dupfd_cloexec(&file, last));
    }

    /// What to do if the files do not suffice.
    pub(crate) const FIX: &'static str = "raise `ulimit -Hn` (LimitNOFILE=), or lower \
                                          limits.client_connections and limits.worker_connections";

    /// Whether the files suffice for the whole configuration.
    pub(crate) fn suffice(&self) -> bool {
        self.have >= self.wanted
    }

    /// Whether the files are too few to serve at all.
    pub(crate) fn are_too_few(&self) -> bool {
        self.have < self.least
    }

    /// Lowers the limits to the number of files.
    pub(super) fn bound(&self, limits: &mut Limits) {
        limits.client_connections = self.clients;
        limits.worker_connections = self.workers;
    }
}

/// The one line about it: `doctor`, `check` and the start say the same.
impl fmt::Display for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { have, wanted, least, clients, workers, .. } = self;
        match have {
            &u64::MAX => f.write_str("any number of")?,
            have => write!(f, "{have}")?,
        }
        write!(f, " files may be open, {wanted} are configured for")?;
        if self.suffice() {
            return Ok(());
        }
        write!(f, ": a core has {clients} client and {workers} worker connections")?;
        if self.are_too_few() { write!(f, ", and {least} is the least") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(clients: usize, workers: usize) -> Limits {
        let mut limits = Config::dev().limits;
        (limits.client_connections, limits.worker_connections) = (clients, workers);
        limits
    }

    /// Checks what must hold of every sharing out.
    fn holds(limits: &Limits, cores: u64, have: u64, demo: Option<&Demo>) {
        let (clients, workers) = (limits.client_connections, limits.worker_connections);
        let files = Files::share(limits, cores as usize, have, demo);
        let what = format!("{clients} {workers} {cores} {have} {demo:?}: {files:?}");
        assert!(files.clients >= 1 && files.clients <= clients, "{what}");
        assert!(files.workers >= 1 && files.workers <= workers, "{what}");
        assert!(files.client_sockets > files.clients, "{what}");
        // Connections of the worker port leave some files for dials.
        let port = files.worker_sockets;
        assert!(port >= 1 && port < files.other_sockets, "{what}");
        if files.are_too_few() {
            return;
        }
        let cost = 1 + demo.map_or(0, Demo::files);
        let each = files.client_sockets as u64 + cost * files.other_sockets as u64 + PER_CORE;
        let own = PROCESS + demo.map_or(0, |_| DEMO);
        let used = own + files.admin as u64 + cores * each;
        assert!(used <= have, "{what}");
        if files.suffice() {
            assert!(port >= workers, "{what}");
            return assert_eq!((files.clients, files.workers), (clients, workers), "{what}");
        }
        assert!(files.workers >= workers.min(LEAST_PEERS as usize), "{what}");
        // If there are too few files for the limit, the core's own limit leaves dials their part as
        // well.
        let scarce = files.workers < workers;
        assert!(!scarce || port < files.workers, "{what}");
        // Fewer files are left over than one for each.
        assert!(!scarce || have - used < cores * cost || have < 200, "{what}");
    }

    #[test]
    fn whoever_fills_his_part_leaves_the_others_theirs() {
        let peers = [1, 2, 3, 7, 100, 5000, 65_536, 1_000_000];
        let files = (30..300).chain([1024, 4096, 20_000, 65_536, 1 << 20, u64::MAX]);
        let demos = [None, Some(Demo::Echo), Some(Demo::Target(String::new()))];
        for (clients, workers) in peers.iter().flat_map(|c| peers.map(|w| (*c, w))) {
            let limits = limits(clients, workers);
            for (have, demo) in files.clone().flat_map(|have| demos.iter().map(move |d| (have, d)))
            {
                let demo = demo.as_ref();
                [1, 2, 7, 64].into_iter().for_each(|cores| holds(&limits, cores, have, demo));
            }
        }
    }

    #[test]
    fn the_line_says_what_there_is_and_what_counts() {
        let usual = limits(65_536, 65_536);
        let told = |cores, have| Files::share(&usual, cores, have, None).to_string();
        assert_eq!(told(1, u64::MAX), "any number of files may be open, 147749 are configured for");
        let text = told(1, 64);
        assert!(text.starts_with("64 files may be open, 147749 are configured for: "), "{text}");
        assert!(!Files::share(&usual, 2, 64, None).are_too_few());
        assert!(told(2, 50).ends_with("62 is the least"), "{}", told(2, 50));
    }
}
