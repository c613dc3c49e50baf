//! Answers and complaints.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::hidden::{json_line, printable};

/// What a pipe that says it has room takes at once (PIPE_BUF).
const PART: usize = 4096;
/// How long a complaint waits for its reader.
const PATIENCE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

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

/// Says on stderr why something does not work. If that cannot be written, or its reader takes
/// nothing for a second, the exit code has to do.
pub fn complain(text: &str) {
    complain_to(io::stderr().as_fd(), &(lines(text) + "\n"));
}

fn complain_to(out: BorrowedFd<'_>, text: &str) {
    for part in text.as_bytes().chunks(PART) {
        let mut ready = [PollFd::from_borrowed_fd(out, PollFlags::OUT)];
        if matches!(poll(&mut ready, Some(&PATIENCE)), Ok(0)) || push(out, part).1.is_err() {
            return;
        }
    }
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

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn a_complaint_does_not_wait_for_a_reader_that_stands_still() {
        let (mut reader, mut writer) = io::pipe().expect("a pipe");
        complain_to(writer.as_fd(), "said\n");
        let flags = rustix::fs::fcntl_getfl(&writer).expect("flags");
        rustix::fs::fcntl_setfl(&writer, flags | rustix::fs::OFlags::NONBLOCK).expect("set");
        while writer.write(&[b'x'; PART]).is_ok() {}
        rustix::fs::fcntl_setfl(&writer, flags).expect("set");
        // The call comes back, although nobody reads.
        complain_to(writer.as_fd(), "lost\n");
        drop(writer);
        let mut read = String::new();
        reader.read_to_string(&mut read).expect("text");
        assert!(read.starts_with("said\nxx") && read.ends_with("xx"));
    }
}
