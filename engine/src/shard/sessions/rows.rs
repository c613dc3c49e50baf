//! Attachments as `/sessions` shows them, page by page.

use uuid::Uuid;

use super::super::cause::Cause;
use super::super::facts::Tally;
use super::super::table::Key;
use super::super::turn::Turn;
use super::attachment::{Attachment, Attachments, Kin};
use super::directory::Directory;
use crate::message::{Bookmark, SessionRow};
use crate::timeline::IdBegin;

/// Places looked at for one page: each is a line of memory that nobody has used for long.
const LOOKS: u32 = 256;

/// Rows. Those of attachments have their keys with them.
pub(super) type Rows = Vec<(Option<Key>, SessionRow)>;

/// A page of rows: one for each attachment that shows, with its key, then the sums that ended
/// attachments have left, then the rows of sessions that ended not long ago. The rows do not hold
/// what a route carries. Several rows of a session are not summed up here.
pub(super) fn page(
    (attachments, directory): (&Attachments, &Directory),
    turn: &Turn<'_>,
    from: Bookmark,
    wanted: Option<IdBegin>,
) -> (Rows, Option<Bookmark>) {
    let is_wanted = |id: Uuid| wanted.is_none_or(|wanted| wanted.matches(id));
    match from {
        Bookmark::Live(at) => {
            let until = at.saturating_add(LOOKS).min(attachments.slots());
            let shown = attachments.range(at..until).filter(|(_, of)| {
                // The owner of a session that is still asked about is not known yet. A spare is
                // part of what its parent shows.
                let spare = matches!(of.kin, Kin::StandsInFor(_));
                !of.is_asking() && !of.is_ending() && !spare && is_wanted(of.session)
            });
            let rows = shown.map(|(key, of)| (Some(key), live_row(turn, of)));
            let more = until < attachments.slots();
            let next = if more { Bookmark::Live(until) } else { Bookmark::Carried(0) };
            (rows.collect(), Some(next))
        }
        Bookmark::Carried(at) => {
            let until = at.saturating_add(LOOKS).min(directory.len() as u32);
            let rows = directory.carried(at..until).filter(|row| is_wanted(row.request_id));
            let more = (until as usize) < directory.len();
            let next = if more { Bookmark::Carried(until) } else { Bookmark::Closed };
            (rows.map(|row| (None, row)).collect(), Some(next))
        }
        Bookmark::Closed => {
            let rows = directory.recent().filter(|row| is_wanted(row.request_id));
            (rows.map(|row| (None, row.clone())).collect(), None)
        }
    }
}

/// The row of an attachment that has not ended. Only its route knows whether its tunnel was used,
/// and what it carries.
fn live_row(turn: &Turn<'_>, of: &Attachment) -> SessionRow {
    let state = match (of.has_tunnel(), of.client) {
        // A spare may have outlived its parent before its own tunnel is there.
        (false, _) => "waiting",
        (true, None) => "parked",
        (true, Some(_)) => "attached",
    };
    SessionRow { state, ..row(turn, of) }
}

/// The row that remains of a session after its end.
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
        function_id: of.facts.owner.function.clone(),
        function_version_id: of.facts.owner.version.clone(),
        tenant: of.facts.owner.tenant.clone(),
        core: turn.settings.core,
        client_address: Some(of.address),
        age_ms: u64::try_from(age).unwrap_or(u64::MAX),
        ..SessionRow::default()
    }
}
