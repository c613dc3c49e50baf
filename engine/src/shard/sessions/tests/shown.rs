//! Tables of any size are shown, and hear of other rules, piece by piece.

use super::*;
use crate::message::SessionRow;

/// Page by page, as the admin port asks.
fn pages(bench: &mut Bench, wanted: Option<IdBegin>) -> Vec<Vec<(Option<Key>, SessionRow)>> {
    let (mut pages, mut next) = (Vec::new(), Some(Bookmark::BEGIN));
    while let Some(from) = next {
        let turn = bench.rig.turn();
        let (rows, after) = bench.sessions.page(&turn, from, wanted);
        pages.push(rows);
        next = after;
    }
    pages
}

pub(super) fn all_rows(bench: &mut Bench) -> Vec<(Option<Key>, SessionRow)> {
    pages(bench, None).into_iter().flatten().collect()
}

#[test]
fn a_page_of_rows_is_no_longer_than_it_may_be() {
    const SESSIONS: u32 = 1000;
    let mut bench = Bench::new();
    let mut ids: Vec<Uuid> = (1..=SESSIONS).map(|client| bench.open(client).1).collect();
    let pages_of = pages(&mut bench, None);
    assert!(pages_of.len() >= 4 && pages_of.iter().all(|page| page.len() <= 256));
    let mut shown: Vec<Uuid> = pages_of.iter().flatten().map(|(_, row)| row.request_id).collect();
    shown.sort_unstable();
    ids.sort_unstable();
    assert_eq!(shown, ids);
    let wanted = IdBegin::parse(&ids[77].to_string());
    let found: Vec<_> = pages(&mut bench, wanted).into_iter().flatten().collect();
    assert!(matches!(&found[..], [(Some(_), row)] if row.request_id == ids[77]));
}

/// All hear of other rules, some in each turn.
#[test]
fn other_rules_reach_many_attachments_in_several_turns() {
    const SESSIONS: u32 = 1000;
    let mut bench = Bench::new();
    for client in 1..=SESSIONS {
        bench.open(client);
    }
    bench.rig.facts();
    let policy = Arc::new(Policy::new(
        &bench.rig.settings.config.tenants,
        &bench.rig.settings.config.functions,
    ));
    bench.sessions.replace_policy(&mut bench.rig.turn(), policy);
    let mut told = Vec::new();
    let mut hear = |bench: &mut Bench| {
        let keys: Vec<Key> = bench
            .rig
            .facts()
            .into_iter()
            .filter_map(|fact| match fact {
                Fact::Relay(ForRelay::Unlearn { key }) => Some(key),
                _ => None,
            })
            .collect();
        assert!(keys.len() <= 512, "{} in one turn", keys.len());
        told.extend(keys);
    };
    hear(&mut bench);
    assert!(bench.sessions.renews());
    while bench.sessions.renews() {
        bench.sessions.renew_terms(&mut bench.rig.turn());
        hear(&mut bench);
    }
    told.sort_unstable();
    told.dedup();
    assert_eq!(told.len(), SESSIONS as usize);
}
