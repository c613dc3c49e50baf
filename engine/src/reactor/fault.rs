//! Why a reactor cannot start, and what to do about it.

use std::fmt;
use std::io;

use ringway_stdio::Trouble;

/// A reactor that could not be set up. The text names the cause and the fix.
#[derive(Debug)]
pub enum SetupError {
    /// The kernel has no io_uring (`ENOSYS`), or a seccomp profile pretends so.
    Missing,
    /// io_uring is there but forbidden (`EPERM`, `EACCES`).
    Forbidden {
        /// What `kernel.io_uring_disabled` says, where it can be read.
        sysctl: Option<u8>,
    },
    /// No memory for the ring or its buffers (`ENOMEM`).
    Memory,
    /// The process has no descriptor left (`EMFILE`, `ENFILE`).
    Descriptors,
    /// The kernel lacks something that this reactor is built on.
    TooOld {
        /// What is missing.
        feature: &'static str,
        /// The first Linux version that has it.
        needs: &'static str,
    },
    /// The thread could not be pinned.
    Pin {
        /// The CPU asked for.
        cpu: usize,
        /// The kernel's answer.
        error: io::Error,
    },
    /// An option that cannot work; the text says which and why.
    Options(&'static str),
    /// Anything else.
    Other {
        /// What was tried.
        step: &'static str,
        /// The kernel's answer.
        error: io::Error,
    },
}

impl SetupError {
    /// Sorts an error of `io_uring_setup` or `io_uring_register`. `needs` is what the kernel lacks
    /// when it calls the arguments invalid.
    pub(super) fn of(
        step: &'static str,
        needs: (&'static str, &'static str),
        error: io::Error,
    ) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOSYS) => Self::Missing,
            Some(libc::EPERM | libc::EACCES) => Self::Forbidden { sysctl: disabled() },
            Some(libc::ENOMEM) => Self::Memory,
            Some(libc::EMFILE | libc::ENFILE) => Self::Descriptors,
            Some(libc::EINVAL) => Self::TooOld { feature: needs.0, needs: needs.1 },
            _ => Self::Other { step, error },
        }
    }

    /// What is wrong.
    #[must_use]
    pub fn cause(&self) -> String {
        match self {
            Self::Missing => "io_uring is missing (ENOSYS): this kernel has none, or the \
                              container's seccomp profile hides it"
                .into(),
            Self::Forbidden { sysctl: Some(2) } => {
                "io_uring is forbidden on this host (EPERM; sysctl kernel.io_uring_disabled = 2)"
                    .into()
            }
            Self::Forbidden { sysctl: Some(1) } => "io_uring is for privileged processes on this \
                                                    host (EPERM; sysctl \
                                                    kernel.io_uring_disabled = 1)"
                .into(),
            Self::Forbidden { .. } => "io_uring is forbidden (EPERM) although \
                                       kernel.io_uring_disabled does not forbid it: a seccomp \
                                       profile or security module does"
                .into(),
            Self::Memory => "no memory for the io_uring (ENOMEM)".into(),
            Self::Descriptors => "no descriptor left for a core's io_uring or epoll".into(),
            Self::TooOld { feature, .. } => format!("this kernel lacks {feature}"),
            Self::Pin { cpu, error } => {
                format!("the core's thread could not be pinned to CPU {cpu} ({error})")
            }
            Self::Options(why) => format!("reactor options: {why}"),
            Self::Other { step, error } => format!("a core's set-up failed at {step}: {error}"),
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn fix(&self) -> String {
        let fix = match self {
            Self::Missing => {
                "run on Linux 6.12 or later and allow io_uring_setup, io_uring_enter and \
                 io_uring_register in the profile"
            }
            Self::Forbidden { sysctl: Some(2) } => {
                "set it to 0, or to 1 and run with CAP_SYS_ADMIN or in kernel.io_uring_group"
            }
            Self::Forbidden { sysctl: Some(1) } => {
                "run in the group of kernel.io_uring_group, with CAP_SYS_ADMIN, or set it to 0"
            }
            Self::Forbidden { .. } => {
                "allow io_uring_setup, io_uring_enter and io_uring_register in the container's \
                 profile"
            }
            Self::Memory => {
                "raise the locked-memory limit (ulimit -l, LimitMEMLOCK=) or the container's \
                 memory limit, or use fewer cores"
            }
            Self::Descriptors => "raise the open-files limit (ulimit -n)",
            Self::TooOld { needs, .. } => return format!("run on Linux {needs} or later"),
            Self::Pin { .. } => "name a CPU of this process's cpuset, or switch pinning off",
            Self::Options(_) => "this is a fault of Ringway's: report it",
            Self::Other { .. } => {
                "see what this process may have (`ulimit -a`) and what `ringway doctor` finds"
            }
        };
        fix.into()
    }

    /// All of it, for people.
    #[must_use]
    pub fn trouble(&self) -> Trouble {
        Trouble::new("a core cannot be set up", self.cause(), self.fix())
    }
}

fn disabled() -> Option<u8> {
    std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?.trim().parse().ok()
}

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.cause(), self.fix())
    }
}

impl std::error::Error for SetupError {}
