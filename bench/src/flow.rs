//! Flow control of both directions (RFC 9113 §5.2, §6.9), shared by caller and endpoint.

use crate::fault::Fault;
use crate::wire::{self, MAX_31, MAX_FRAME, PREFACE, setting};

/// Window advertised for each stream. It is so large that this side never holds a proxy back.
pub const STREAM_WINDOW: u32 = 4 * 1024 * 1024;
/// Window advertised for the connection.
pub const CONNECTION_WINDOW: u32 = 1 << 30;
/// Default window before any SETTINGS or WINDOW_UPDATE.
pub const DEFAULT_WINDOW: u32 = 65_535;

/// What a client with these windows sends first: preface, SETTINGS, the connection's window.
pub fn greeting() -> Vec<u8> {
    let mut out = PREFACE.to_vec();
    let settings = [(setting::ENABLE_PUSH, 0), (setting::INITIAL_WINDOW_SIZE, STREAM_WINDOW)];
    wire::put_settings(&mut out, &settings);
    wire::put_window(&mut out, 0, CONNECTION_WINDOW - DEFAULT_WINDOW);
    out
}

/// What the peer lets us send.
#[derive(Debug)]
pub struct Allowance {
    connection: i64,
    initial: i64,
    /// The peer's MAX_CONCURRENT_STREAMS.
    pub streams: u32,
    /// The peer's HEADER_TABLE_SIZE.
    pub table: u32,
}

impl Default for Allowance {
    fn default() -> Self {
        let default = i64::from(DEFAULT_WINDOW);
        Self { connection: default, initial: default, streams: MAX_31, table: 4096 }
    }
}

impl Allowance {
    /// Window of a stream that opens now.
    pub fn initial(&self) -> i64 {
        self.initial
    }

    /// Whether the connection's window is used up.
    pub fn exhausted(&self) -> bool {
        self.connection <= 0
    }

    /// Takes the next DATA frame's size for a stream that has `left` bytes to send.
    pub fn take(&mut self, window: &mut i64, left: u64) -> usize {
        let room = self.connection.min(*window).max(0);
        let n = room.min(MAX_FRAME as i64).min(left.min(MAX_FRAME as u64) as i64);
        self.connection -= n;
        *window -= n;
        n as usize
    }

    /// The connection's window grew.
    pub fn grow(&mut self, by: u32) -> Result<(), Fault> {
        self.connection = grown(self.connection, by)?;
        Ok(())
    }

    /// Applies the peer's SETTINGS. Returns by how much the window of every open stream changes.
    pub fn settings(&mut self, payload: &[u8]) -> Result<i64, Fault> {
        let before = self.initial;
        for (id, value) in wire::settings(payload) {
            match id {
                setting::HEADER_TABLE_SIZE => self.table = value,
                setting::MAX_CONCURRENT_STREAMS => self.streams = value,
                setting::INITIAL_WINDOW_SIZE if value > MAX_31 => return Err(Fault::Window),
                setting::INITIAL_WINDOW_SIZE => self.initial = i64::from(value),
                _ => {}
            }
        }
        Ok(self.initial - before)
    }
}

/// A stream window after WINDOW_UPDATE.
pub fn grown(window: i64, by: u32) -> Result<i64, Fault> {
    let sum = window + i64::from(by);
    if by == 0 || sum > i64::from(MAX_31) { Err(Fault::Window) } else { Ok(sum) }
}

/// Received bytes that are not given back as credit yet. They are given back at half of the window.
#[derive(Debug, Default)]
pub struct Credit {
    owed: u32,
}

impl Credit {
    /// Counts `flow` received bytes and appends the WINDOW_UPDATE when one is due.
    pub fn received(&mut self, flow: u32, window: u32, stream: u32, out: &mut Vec<u8>) {
        self.owed += flow;
        if self.owed >= window / 2 {
            wire::put_window(out, stream, self.owed);
            self.owed = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_takes_no_more_than_either_window() {
        let mut allowance = Allowance::default();
        let mut window = 20_000;
        assert_eq!(allowance.take(&mut window, 1 << 40), MAX_FRAME);
        assert_eq!(allowance.take(&mut window, 1 << 40), 20_000 - MAX_FRAME);
        assert_eq!(allowance.take(&mut window, 1), 0);
        let mut wide = 1 << 20;
        let sent: usize = (0..9).map(|_| allowance.take(&mut wide, 1 << 40)).sum();
        assert_eq!(sent, 65_535 - 20_000);
        assert!(allowance.exhausted());
        allowance.grow(3).unwrap();
        assert_eq!(allowance.take(&mut wide, 1 << 40), 3);
    }

    #[test]
    fn a_smaller_initial_window_can_make_a_stream_negative() {
        let mut allowance = Allowance::default();
        let mut window = allowance.initial();
        allowance.take(&mut window, 10_000);
        let delta = allowance.settings(&[0, 4, 0, 0, 0, 100]).unwrap();
        window += delta;
        assert_eq!(window, 100 - 10_000);
        assert_eq!(allowance.take(&mut window, 5), 0);
    }

    #[test]
    fn overflow_and_zero_growth_are_faults() {
        assert_eq!(grown(i64::from(MAX_31), 1), Err(Fault::Window));
        assert_eq!(grown(0, 0), Err(Fault::Window));
    }

    #[test]
    fn credit_goes_back_at_half_of_the_window() {
        let (mut credit, mut out) = (Credit::default(), vec![]);
        credit.received(49, 100, 7, &mut out);
        assert!(out.is_empty());
        credit.received(2, 100, 7, &mut out);
        assert_eq!(out, [0, 0, 4, 8, 0, 0, 0, 0, 7, 0, 0, 0, 51]);
    }
}
