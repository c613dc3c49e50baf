//! Where the lines of a log end: stderr, whatever it is, and whatever happens to it.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use crate::hidden::json_line;
use crate::say::push;

/// How long a program that ends waits for the reader of its last lines.
const LAST_LINES: Duration = Duration::from_secs(1);
/// How often it asks whether they were written.
const ASKED_EVERY: Duration = Duration::from_millis(10);

/// Lines of this process that could not be written.
static LOST: AtomicU64 = AtomicU64::new(0);

/// How many lines of this process's log were lost because stderr could not be written: its reader
/// has left, its disk is full, its file has reached a limit.
#[must_use]
pub fn lost_lines() -> u64 {
    LOST.load(Ordering::Relaxed)
}

/// What the lines are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// JSON: what is hidden in them is escaped here.
    Json,
    /// Text for people, of which every value was made [`printable`](crate::printable) before, for
    /// here it cannot be told from the colours.
    Text,
}

/// Writes whole lines to stderr and never fails: a line that cannot be written is
/// [counted](lost_lines). A full pipe is waited for, so this belongs on a thread of its own.
#[derive(Debug)]
pub struct Log<F> {
    out: F,
    form: Form,
    /// A line was cut in its middle: the next one begins on a line of its own.
    cut: bool,
    /// An empty line has come: what was given before it was written.
    written: Sender<()>,
}

impl Log<io::Stderr> {
    /// The process's log, and the wait for its last lines.
    #[must_use]
    pub fn new(form: Form) -> (Self, LastLines) {
        Self::to(io::stderr(), form)
    }
}

/// The wait at a program's end for lines that are in a queue before the [`Log`].
#[derive(Debug)]
pub struct LastLines(Receiver<()>);

impl LastLines {
    /// Waits until the log has written what `queue` holds, a second at most: who reads stderr may
    /// stand still for ever. False if lines are left. `queue` leads to the log, keeps the order,
    /// never waits, and may lose what it has no room for.
    pub fn wait(&self, queue: &mut impl Write) -> bool {
        let until = Instant::now() + LAST_LINES;
        loop {
            // A full queue loses the question, so it is asked again.
            let _ = queue.write(b"");
            match self.0.recv_timeout(ASKED_EVERY) {
                Ok(()) => return true,
                Err(RecvTimeoutError::Timeout) if Instant::now() < until => {}
                Err(_) => return false,
            }
        }
    }
}

impl<F: AsFd> Log<F> {
    fn to(out: F, form: Form) -> (Self, LastLines) {
        let (written, told) = channel();
        (Self { out, form, cut: false, written }, LastLines(told))
    }

    fn put(&mut self, lines: &[u8]) {
        self.cut = self.cut && push(self.out.as_fd(), b"\n").0 == 0;
        let written = if self.cut { 0 } else { push(self.out.as_fd(), lines).0 };
        let (done, lost) = lines.split_at(written);
        if !lost.is_empty() {
            self.cut |= done.last().is_some_and(|&octet| octet != b'\n');
            let feeds = lost.iter().filter(|&&octet| octet == b'\n').count();
            LOST.fetch_add(feeds as u64, Ordering::Relaxed);
        }
    }
}

impl<F: AsFd> Write for Log<F> {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        match self.form {
            Form::Json => self.put(&json_line(lines)),
            Form::Text => self.put(lines),
        }
        Ok(lines.len())
    }

    fn write_all(&mut self, lines: &[u8]) -> io::Result<()> {
        if lines.is_empty() {
            // Nobody waits as long as the program goes on.
            let _ = self.written.send(());
            return Ok(());
        }
        self.write(lines).map(|_| ())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::Read;

    use super::*;

    #[test]
    fn a_pipe_that_is_full_is_waited_for_and_no_line_is_cut() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let flags = rustix::fs::fcntl_getfl(&writer).expect("flags");
        rustix::fs::fcntl_setfl(&writer, flags | rustix::fs::OFlags::NONBLOCK).expect("set");
        let (mut log, _) = Log::to(writer, Form::Json);
        let line = format!("{{\"a\":\"{}\"}}\n", "x".repeat(99));
        let all = line.repeat(5000);
        let expected = all.len();
        let thread = std::thread::spawn(move || log.write_all(all.as_bytes()));
        let mut read = Vec::new();
        reader.read_to_end(&mut read).expect("all of it");
        thread.join().expect("no panic").expect("no error");
        assert_eq!(read.len(), expected);
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_is_no_error() {
        let full = OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
        let (reader, gone) = io::pipe().expect("a pipe");
        drop(reader);
        let before = lost_lines();
        Log::to(full, Form::Text).0.write_all(b"a\nb\n").expect("no error");
        Log::to(gone, Form::Json).0.write_all(b"{}\n").expect("no error");
        assert_eq!(lost_lines() - before, 3);
    }

    #[test]
    fn the_end_waits_for_the_last_lines_but_not_for_ever() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let (mut log, last) = Log::to(writer, Form::Text);
        log.write_all(b"last\n").expect("no error");
        let thread = std::thread::spawn(move || log.write_all(b""));
        // The question may get lost, and nobody is left to answer it again.
        assert!(last.wait(&mut io::sink()));
        thread.join().expect("no panic").expect("no error");
        let mut read = String::new();
        reader.read_to_string(&mut read).expect("text");
        assert_eq!(read, "last\n");

        let (log, last) = Log::to(io::stderr(), Form::Text);
        assert!(!last.wait(&mut io::sink()), "a queue that stands still");
        drop(log);
    }

    #[test]
    fn a_line_behind_one_that_was_cut_begins_anew() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let (mut log, _) = Log::to(writer, Form::Text);
        log.cut = true;
        log.write_all(b"whole\n").expect("no error");
        drop(log);
        let mut read = String::new();
        reader.read_to_string(&mut read).expect("text");
        assert_eq!(read, "\nwhole\n");
    }
}
