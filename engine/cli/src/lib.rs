//! What the command lines of all programs have in common: which build they are, completions for
//! shells, and man pages. Both are made from the arguments as the program itself reads them.

#![forbid(unsafe_code)]
#![deny(clippy::print_stdout, clippy::print_stderr)]

use std::io;
use std::path::PathBuf;

use clap::{Args, Command};
use clap_complete::Shell;
use ringway_stdio::Trouble;

/// Version of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Commit of this build, with `-dirty` if its sources were not those of the commit. `unknown`
/// outside of a repository, and in builds that are not for use (see `build.rs`).
pub const COMMIT: &str = env!("RINGWAY_BUILT");

/// `completions SHELL`.
#[derive(Clone, Copy, Debug, Args)]
pub struct Completions {
    /// The shell they are for.
    shell: Shell,
}

/// `man [DIR]`.
#[derive(Clone, Debug, Args)]
pub struct Man {
    /// Where the pages go, one file a command; without it the main page is printed.
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,
}

/// Whether this process is asked which build it is: what else it then says may take some time.
#[must_use]
pub fn is_version_asked() -> bool {
    std::env::args_os().skip(1).any(|argument| argument == "--version" || argument == "-V")
}

/// A program's arguments, with what `--version` and `-V` say: version and commit, the kernel, and
/// what moves the bytes on this machine, where the program has something to move.
#[must_use]
pub fn with_version(command: Command, io: Option<&str>) -> Command {
    let said = said(&kernel(), io);
    command.version(said.clone()).long_version(said)
}

fn said(kernel: &str, io: Option<&str>) -> String {
    let io = io.map(|io| format!("\nio {io}")).unwrap_or_default();
    format!("{VERSION} (commit {COMMIT})\nkernel {kernel}{io}")
}

/// The release of the running kernel.
#[must_use]
pub fn kernel() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease");
    release.map_or_else(|_| "unknown".into(), |release| format!("Linux {}", release.trim()))
}

/// Reads the address of a server, `HOST:PORT`.
///
/// # Errors
/// Anything else, with what to write.
pub fn host_and_port(text: &str) -> Result<String, String> {
    let fix = match text.rsplit_once(':') {
        _ if text.contains('/') => "leave out the scheme and the path, like 127.0.0.1:50051",
        None => "add the port of your server, like 127.0.0.1:50051",
        Some((host, _))
            if host.contains(':') && !(host.starts_with('[') && host.ends_with(']')) =>
        {
            "write an IPv6 address in brackets, like [::1]:50051"
        }
        Some((_, port)) if !port.parse::<u16>().is_ok_and(|port| port > 0) => {
            "the port is a number from 1 to 65535, like 127.0.0.1:50051"
        }
        Some(("", _)) => "add the host, like 127.0.0.1:50051",
        Some((host, _)) if host.contains(['@', ' ']) => "write a host's name or its address",
        Some(_) => return Ok(text.to_owned()),
    };
    Err(format!("not HOST:PORT: {fix}"))
}

/// A program's arguments with the version alone: pages are the same on all machines.
fn numbered(command: Command) -> Command {
    command.version(VERSION).long_version(VERSION)
}

/// An answer could not be printed, or written into the folder that was named.
#[must_use]
pub fn unprinted(error: io::Error) -> Trouble {
    Trouble::new(
        "the answer cannot be printed",
        error,
        "make room where it goes, or send it elsewhere",
    )
}

/// Prints completions for a shell.
///
/// # Errors
/// When they cannot be printed.
pub fn complete(command: Command, asked: Completions) -> io::Result<()> {
    let mut command = numbered(command);
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(asked.shell, &mut command, name, &mut script);
    ringway_stdio::print(&String::from_utf8_lossy(&script))
}

/// Prints the main man page, or writes all of them into a folder.
///
/// # Errors
/// When they cannot be printed, or written there.
pub fn manual(command: Command, asked: &Man) -> io::Result<()> {
    let command = numbered(command);
    let Some(folder) = &asked.folder else {
        let mut page = Vec::new();
        clap_mangen::Man::new(command).render(&mut page)?;
        return ringway_stdio::print(&String::from_utf8_lossy(&page));
    };
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", folder.display()));
    std::fs::create_dir_all(folder).map_err(named)?;
    clap_mangen::generate_to(command, folder).map_err(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_says_which_it_is_and_where_it_runs() {
        let text = said("Linux 6.12.0", Some("io_uring"));
        let first = format!("{VERSION} (commit {COMMIT})");
        assert_eq!(text, format!("{first}\nkernel Linux 6.12.0\nio io_uring"));
        assert_eq!(said("Linux 6.12.0", None), format!("{first}\nkernel Linux 6.12.0"));
        assert!(kernel().starts_with("Linux ") && !kernel().contains('\n'), "{}", kernel());
    }

    #[test]
    fn a_server_has_a_host_and_a_port() {
        for good in ["127.0.0.1:1", "localhost:50051", "[::1]:65535", "a.b-c_d:80"] {
            assert_eq!(host_and_port(good).as_deref(), Ok(good));
        }
        for (bad, fix) in [
            ("localhost", "add the port"),
            ("http://localhost:1", "leave out the scheme"),
            ("localhost:1/x", "leave out the scheme"),
            ("localhost:", "from 1 to 65535"),
            ("localhost:0", "from 1 to 65535"),
            ("localhost:65536", "from 1 to 65535"),
            ("localhost:x", "from 1 to 65535"),
            ("::1:5", "in brackets"),
            (":5", "add the host"),
            ("a@b:5", "a host's name"),
            ("", "add the port"),
        ] {
            let error = host_and_port(bad).unwrap_err();
            assert!(error.contains(fix), "{bad}: {error}");
        }
    }

    #[test]
    fn pages_are_written_for_each_command_and_none_over_a_file() {
        let folder = std::env::temp_dir().join(format!("ringway-man-{}", std::process::id()));
        let command = || Command::new("x").about("Does it.").subcommand(Command::new("y"));
        manual(command(), &Man { folder: Some(folder.clone()) }).unwrap();
        let page = std::fs::read_to_string(folder.join("x.1")).unwrap();
        assert!(page.contains(".TH x 1") && page.contains("Does it."), "{page}");
        assert!(folder.join("x-y.1").exists());
        let below = folder.join("x.1").join("z");
        let error = manual(command(), &Man { folder: Some(below.clone()) }).unwrap_err();
        assert!(error.to_string().contains(&*below.to_string_lossy()), "{error}");
        std::fs::remove_dir_all(folder).unwrap();
    }
}
