//! Attachments as `/sessions` shows them.

use super::super::cause::Cause;
use super::super::facts::Tally;
use super::super::turn::Turn;
use super::attachment::Attachment;
use crate::post::SessionRow;

/// One that lives. Whether its tunnel was used, and what it carries, only its route knows.
pub(super) fn live_row(turn: &Turn<'_>, of: &Attachment) -> SessionRow {
    let state = match (of.has_tunnel(), of.client) {
        // A spare may have outlived what it was asked for, and not be there yet.
        (false, _) => "waiting",
        (true, None) => "parked",
        (true, Some(_)) => "attached",
    };
    SessionRow { state, ..row(turn, of) }
}

/// What remains of a session after its end.
pub(super) fn closed_row(
    turn: &Turn<'_>,
    of: &Attachment,
    (cause, tally): (Cause, Tally),
) -> SessionRow {
    SessionRow {
        state: "closed",
        close_reason: Some(cause.reason.label()),
        ended_at: Some(turn.settings.unix_micros(turn.now)),
        streams: tally.streams,
        bytes_in: tally.bytes_up,
        bytes_out: tally.bytes_down,
        ..row(turn, of)
    }
}

fn row(turn: &Turn<'_>, of: &Attachment) -> SessionRow {
    let age = turn.now.since(of.facts.opened).as_millis();
    SessionRow {
        request_id: of.session,
        function_id: of.facts.owner.function.to_string(),
        function_version_id: of.facts.owner.version.to_string(),
        tenant: of.facts.owner.tenant.to_string(),
        core: turn.settings.core,
        client_address: of.address.to_string(),
        age_ms: u64::try_from(age).unwrap_or(u64::MAX),
        ..SessionRow::default()
    }
}
