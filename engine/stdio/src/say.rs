//! Answers and complaints.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::hidden::{json_line, printable};

/// Prints an answer for people to stdout, its lines [`printable`].
///
/// # Errors
/// When it could not be written whole, but for a reader that has left.
pub fn print(text: &str) -> io::Result<()> {
    show(&lines(text)).map(|_| ())
}

/// Prints JSON to stdout; see [`json_line`].
///
/// # Errors
/// As [`print()`].
pub fn print_json(json: &str) -> io::Result<()> {
    put(&json_line(json.as_bytes())).map(|_| ())
}

/// Writes to stdout as it is; what others said was made [`printable`] before. False if nobody
/// reads any more.
///
/// # Errors
/// As [`print()`].
pub fn show(text: &str) -> io::Result<bool> {
    put(text.as_bytes())
}

/// Says on stderr why something does not work. If that cannot be written, the exit code has to do.
pub fn complain(text: &str) {
    let _ = push(io::stderr().as_fd(), (lines(text) + "\n").as_bytes());
}

fn lines(text: &str) -> String {
    let lines: Vec<_> = text.split('\n').map(printable).collect();
    lines.join("\n")
}

fn put(bytes: &[u8]) -> io::Result<bool> {
    match push(io::stdout().as_fd(), bytes).1 {
        Ok(()) => Ok(true),
        Err(Errno::PIPE) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Writes all of it, however long that takes; if that does not go, how much went, and why.
pub(crate) fn push(out: BorrowedFd<'_>, bytes: &[u8]) -> (usize, Result<(), Errno>) {
    let mut written = 0;
    while written < bytes.len() {
        match rustix::io::write(out, &bytes[written..]) {
            Ok(0) => return (written, Err(Errno::IO)),
            Ok(more) => written += more,
            Err(Errno::INTR) => {}
            // A pipe that somebody made non-blocking, whose end we may be only a part of.
            Err(Errno::AGAIN) => {
                let _ = poll(&mut [PollFd::from_borrowed_fd(out, PollFlags::OUT)], None);
            }
            Err(error) => return (written, Err(error)),
        }
    }
    (written, Ok(()))
}

/// [Prints](print()) one line, formatted.
#[macro_export]
macro_rules! say {
    ($($text:tt)*) => { $crate::print(&(format!($($text)*) + "\n")) };
}

/// [Complains](complain()) in one line, formatted.
#[macro_export]
macro_rules! complain {
    ($($text:tt)*) => { $crate::complain(&format!($($text)*)) };
}
