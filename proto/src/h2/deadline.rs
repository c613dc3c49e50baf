//! What has to happen in time: a client's preface, anybody's header blocks and other frames that are
//! kept until they are whole (L10), and the end of our memory of resets.
//!
//! Nobody has a time for acknowledging our SETTINGS: RFC 9113 §6.5.3 allows SETTINGS_TIMEOUT, but
//! what they say binds the peer only once it has read them, and until then we grant the defaults.
//! A server has no time for its preface either: whoever opened the connection knows how long it
//! may take to begin.

use std::time::Duration;

use super::conn::Conn;
use super::frame::ErrorCode;
use super::state::NEVER;
use super::stream::{Stream, StreamKey};
use super::{ConnFault, LimitId};
use crate::time::Time;

/// How long a mass of resets is remembered.
const RESETS_KEPT: Duration = Duration::from_secs(10);

const BLOCK_LATE: &str = "header block not complete in time";
const FRAME_LATE: &str = "frame not complete in time";

impl Conn {
    /// When [`Self::expired`] has to be called at the latest.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        let waits = &self.deadlines;
        let first = waits.first_settings.min(waits.header_block).min(waits.forget_resets);
        (first != NEVER && self.fault.is_none()).then_some(first)
    }

    /// The deadline may have passed.
    ///
    /// # Errors
    /// If the peer is too slow (L10).
    pub fn expired(&mut self, now: Time) -> Result<(), ConnFault> {
        self.now = self.now.max(now);
        if now >= self.deadlines.forget_resets {
            self.deadlines.forget_resets = NEVER;
            self.table.forget_resets(self.limits.remembered_resets as usize);
        }
        let waits = &self.deadlines;
        let (code, reason) = if now >= waits.first_settings {
            (ErrorCode::SettingsTimeout, "no preface and SETTINGS in time")
        } else if now >= waits.header_block {
            let late = if self.in_block() { BLOCK_LATE } else { FRAME_LATE };
            (ErrorCode::EnhanceYourCalm, late)
        } else {
            return Ok(());
        };
        let fault = ConnFault::limit(LimitId::L10, code, reason);
        self.fault = Some(Box::new(fault));
        Err(fault)
    }

    /// Until now the peer's bytes were not read, so each deadline for the peer begins anew.
    pub fn read_again(&mut self, now: Time) {
        self.now = self.now.max(now);
        let waits = &mut self.deadlines;
        for (at, time) in [
            (&mut waits.first_settings, self.limits.first_settings),
            (&mut waits.header_block, self.limits.header_block),
        ] {
            if *at != NEVER {
                *at = (*at).max(now + time);
            }
        }
    }

    /// Takes a stream out that we reset, and remembers its id.
    pub(super) fn remove_reset(&mut self, key: StreamKey) -> Option<Stream> {
        let stream = self.table.remove(key, true)?;
        self.watch_resets();
        Some(stream)
    }

    /// Takes a stream out whose both ends have closed. If it ended with an answer of ours its id is
    /// remembered as well.
    pub(super) fn remove_ended(&mut self, key: StreamKey) {
        if self.table.remove(key, false).is_some_and(|stream| stream.ours) {
            self.watch_resets();
        }
    }

    /// After a mass reset more ids are remembered than usual, but not for long: frames of all
    /// these streams are on their way, and an honest peer must not be punished for them.
    pub(super) fn watch_resets(&mut self) {
        let usual = self.limits.remembered_resets as usize;
        let most = usual.max(self.limits.max_concurrent_streams as usize);
        if self.table.resets() > 2 * most {
            self.table.forget_resets(most);
        } else if self.table.resets() > 2 * usual && self.deadlines.forget_resets == NEVER {
            self.deadlines.forget_resets = self.now + RESETS_KEPT;
        }
    }
}
