//! The standard streams of every program of ours: answers on stdout, complaints and the log on
//! stderr. None of them may end a process that has something better to do.
//!
//! - A stream that cannot be written loses what was to be said, and nothing else. Whoever closed a
//!   pipe wanted no more: that is no error of ours.
//! - What a peer or a file said is shown without what would move a cursor, set a title or turn the
//!   line round ([`is_hidden`]).
//! - Signals that mean "you may not write there" become the error that the write returns
//!   ([`shield`]).
//!
//! The crate knows no program of ours, and starts no thread.

#![forbid(unsafe_code)]

mod hidden;
mod log;
mod say;
mod signals;
mod trouble;

pub use hidden::{Escaping, is_hidden, json_line, printable};
pub use log::{Form, LastLines, Log, lost_lines};
pub use say::{complain, print, print_json, show};
pub use signals::{hangup_was_ignored, hold_hangup, listen_for_hangup, shield, shield_server};
pub use trouble::Trouble;
