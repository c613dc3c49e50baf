//! What this machine and the process's control group say of themselves in /proc and /sys.

pub(crate) mod cgroup;

/// The files of /proc and /sys, or a test's.
pub(crate) struct Host(pub(crate) Box<Reader>);

pub(crate) type Reader = dyn Fn(&str) -> Option<String>;

impl Host {
    pub(crate) fn real() -> Self {
        Self(Box::new(|path| std::fs::read_to_string(path).ok()))
    }

    /// A file without the blanks around its text.
    pub(crate) fn read(&self, path: &str) -> Option<String> {
        (self.0)(path).map(|text| text.trim().to_owned())
    }

    pub(crate) fn number(&self, path: &str) -> Option<u64> {
        self.read(path)?.parse().ok()
    }

    /// What stands after `key:` in /proc/self/status.
    pub(crate) fn own(&self, key: &str) -> Option<String> {
        let status = self.read("/proc/self/status")?;
        let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        Some(line.trim().to_owned())
    }
}

/// The CPU time this process may use, in CPUs; none where there is no limit.
pub(crate) fn cpu_quota() -> Option<f64> {
    cgroup::cpus(&Host::real())
}

#[cfg(test)]
impl Host {
    /// A host with these files and no others.
    pub(crate) fn planted(files: &[(&str, &str)]) -> Self {
        let files: Vec<(String, String)> =
            files.iter().map(|(path, text)| (path.to_string(), text.to_string())).collect();
        Self(Box::new(move |path| {
            files.iter().find(|(name, _)| name == path).map(|(_, text)| text.clone())
        }))
    }
}
