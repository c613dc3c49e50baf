//! Messages between cores.

use super::*;

fn find(id: Uuid, ticket: Ticket) -> ForSessions {
    let call = wanted(None).call;
    let (function, version) = (call.function().into(), call.version().into());
    let (tenant, speaks) = ("dev".into(), Speaks::Http2);
    ForSessions::Find(Box::new(Find { id, ticket, function, version, tenant, speaks }))
}

/// A session of core 0, and a client of it on core 1.
fn two_cores() -> (Bench, Bench, Key, Uuid) {
    let mut home = Bench::with(0, 2, Config::dev());
    let there = Bench::with(1, 2, Config::dev());
    let (key, id) = home.open(1);
    home.said();
    (home, there, key, id)
}

/// The last message of a bench for the other core.
fn message(bench: &mut Bench) -> CoreMessage {
    let at = bench.out.iter().rposition(|fact| matches!(fact, Fact::Send { .. }));
    match at.map(|at| bench.out.remove(at)) {
        Some(Fact::Send { message, .. }) => message,
        _ => panic!("nothing was said to a core: {:?}", bench.names),
    }
}

#[test]
fn a_parked_tunnel_goes_to_the_core_of_its_client() {
    let (mut home, mut there, key, id) = two_cores();
    home.keeps = Some(Speaks::Http2);
    home.gone(1, &[key]);
    there.place(5, 5, wanted(Some(id)));
    assert_eq!(there.said(), ["Authorise", "Open", "Serve", "Find 0"]);
    let asking = there.served();
    assert_eq!(there.sessions.gauges().asking, 1);
    home.said();
    home.on(heard(message(&mut there)));
    assert_eq!(home.said(), ["Claim 0", "Unparks", "Replaced", "Detach"]);
    let detached = Box::new(Detached::of_nobody());
    let hop = MovedHop(Box::new("its state"));
    home.on(ForSessions::TunnelDetached { key, detached, hop });
    assert_eq!(home.said(), ["Resumed 1"]);
    assert_eq!(home.sessions.len(), 0);
    there.said();
    there.on(heard(message(&mut home)));
    assert_eq!(there.said(), ["Adopt", "MemberState 0"]);
    let adopted = there.out.iter().any(|fact| {
        matches!(fact, Fact::Relay(ForRelay::Adopt { key, hop, .. })
            if *key == asking && hop.0.is::<&str>())
    });
    assert!(adopted);
    assert_eq!(there.resumes(), [ResumeWay::Memory]);
    // A request without an id goes to that attachment too.
    there.place(5, 6, wanted(None));
    assert_eq!(there.served(), asking);
}

#[test]
fn a_tunnel_that_finds_no_room_is_lost_and_its_session_left() {
    let (mut home, mut there, key, id) = two_cores();
    home.gone(1, &[key]);
    there.place(5, 5, wanted(Some(id)));
    home.on(heard(message(&mut there)));
    let detached = Box::new(Detached::of_nobody());
    home.on(ForSessions::TunnelDetached { key, detached, hop: MovedHop(Box::new(())) });
    there.said();
    let CoreMessage::Resumed(resumed) = message(&mut home) else { panic!("no tunnel came") };
    there.on(ForSessions::Resumed { resumed, room: false });
    assert_eq!(there.said(), ["Leave 0", "Close"]);
    assert_eq!(there.rig.metrics.resumes.of(ResumeWay::Memory, ResumeOutcome::Lost), 1);
    home.on(heard(message(&mut there)));
    assert!(home.sessions.is_empty() && there.sessions.gauges() == Gauges::default());
}

#[test]
fn a_tunnel_that_comes_for_a_client_that_has_gone_is_parked_where_it_came() {
    let (mut home, mut there, key, id) = two_cores();
    home.gone(1, &[key]);
    there.place(5, 5, wanted(Some(id)));
    let asking = there.served();
    home.on(heard(message(&mut there)));
    let detached = Box::new(Detached::of_nobody());
    home.on(ForSessions::TunnelDetached { key, detached, hop: MovedHop(Box::new(())) });
    there.gone(5, &[]);
    assert!(there.closed(asking).is_none(), "the answer may be the session's last tunnel");
    there.said();
    there.on(heard(message(&mut home)));
    assert_eq!(there.said(), ["Adopt", "Park", "Parks", "MemberState 0"]);
    // The attachment itself may have gone: then another one joins the session.
    let none = Resumed { ticket: Ticket { node: NODE, core: 1, number: 99 }, tunnel: None };
    there.on(ForSessions::Resumed { resumed: Box::new(none), room: true });
    assert!(there.said().is_empty());
}

#[test]
fn a_tunnel_parked_here_goes_to_another_attachment_of_this_core_or_joins_anew() {
    for waits in [true, false] {
        let (mut home, mut there, key, id) = two_cores();
        there.place(5, 5, wanted(Some(id)));
        home.on(heard(message(&mut there)));
        // No tunnel is parked: the client may have one more, and its own is parked then.
        there.on(heard(message(&mut home)));
        let second = there.served();
        there.attach(second, false);
        there.gone(5, &[second]);
        there.place(6, 6, wanted(Some(id)));
        let asking = there.served();
        if !waits {
            there.call(|sessions, turn| sessions.waited(turn, asking));
        }
        there.said();
        let parked = Ticket { node: NODE, core: 1, number: number_of(second) };
        let to = Ticket { node: NODE, core: 1, number: number_of(asking) };
        there.on(ForSessions::Claim { parked, to });
        let said: &[&str] = if waits {
            &["Unparks", "Transfer", "MemberState 0"]
        } else {
            &["Unparks", "Open", "Transfer", "Join 0", "Park", "Parks", "MemberState 0"]
        };
        assert_eq!(there.said(), said);
        assert!(home.closed(key).is_none());
    }
}

#[test]
fn a_found_session_is_joined_and_one_that_is_not_is_refused() {
    let (mut home, mut there, _, id) = two_cores();
    there.place(5, 5, wanted(Some(id)));
    let key = there.served();
    home.on(heard(message(&mut there)));
    assert_eq!(home.said(), ["Found 1"]);
    there.said();
    there.on(heard(message(&mut home)));
    there.launch();
    assert_eq!((there.said(), there.work(key).kind), (vec!["Submit".into()], WorkKind::Reconnect));
    let again = Ticket { node: NODE, core: 1, number: 3 };
    home.on(find(Uuid::from_u128(7), again));
    let CoreMessage::Found(found) = message(&mut home) else { panic!("no answer") };
    assert!(matches!(found.outcome, Err(Fault::SessionNotFound { .. })));
}

#[test]
fn an_answer_that_nobody_waits_for_leaves_the_session_unless_somebody_asks_again() {
    for again in [false, true] {
        let (mut home, mut there, _, id) = two_cores();
        there.place(5, 5, wanted(Some(id)));
        let key = there.served();
        home.on(heard(message(&mut there)));
        there.said();
        there.on(ForSessions::Abandoned { key });
        assert_eq!(there.said(), ["Unlearn"]);
        if again {
            there.place(5, 6, wanted(Some(id)));
            assert_eq!(there.served(), key);
        }
        there.said();
        there.on(heard(message(&mut home)));
        let left = there.said() == ["Close", "Leave 0"];
        assert_eq!((left, there.sessions.has_deferred()), (!again, again));
    }
}

#[test]
fn a_question_without_room_or_refused_is_told_to_who_waits() {
    let (_, mut there, _, id) = two_cores();
    there.place(5, 5, wanted(Some(id)));
    let key = there.served();
    let CoreMessage::Find(find) = message(&mut there) else { panic!("no question") };
    there.said();
    there.on(ForSessions::NotFound(find));
    assert_eq!(there.said(), ["Close"]);
    let told = there.out.iter().any(|fact| {
        matches!(fact, Fact::Relay(ForRelay::Close { key: of, fault: Some(fault), .. })
            if *of == key && **fault == Fault::MailboxFull)
    });
    assert!(told && there.sessions.gauges().asking == 0);
    assert!(matches!(there.rig.left.edges.last(), Some(Edge::Refused(_))));
}

#[test]
fn two_questions_that_lead_to_one_session_have_one_attachment() {
    let (mut home, mut there, _, id) = two_cores();
    let called = |version: &str| calling("dev-key", version, Some(id));
    there.place(5, 5, called(VERSION));
    let first = there.served();
    home.on(heard(message(&mut there)));
    let one = message(&mut home);
    there.place(5, 6, called(""));
    let second = there.served();
    assert_ne!(first, second);
    home.on(heard(message(&mut there)));
    let other = message(&mut home);
    there.on(heard(one));
    there.said();
    there.on(heard(other));
    assert_eq!(there.said(), ["Merge", "Close", "Leave 0"]);
    assert_eq!(there.closed(second).map(|cause| cause.detail), Some(Cause::ABANDONED.detail));
}

#[test]
fn an_ended_session_goes_with_what_is_on_its_way() {
    let (mut home, mut there, key, id) = two_cores();
    there.place(5, 5, wanted(Some(id)));
    let asking = there.served();
    home.on(heard(message(&mut there)));
    there.said();
    there.call(|sessions, turn| sessions.end_session(turn, id));
    assert_eq!(there.said(), ["RefuseWaiters"]);
    there.on(heard(message(&mut home)));
    assert_eq!(there.closed(asking).map(|cause| cause.reason), Some(CloseReason::Deleted));
    home.call(|sessions, turn| sessions.end_session(turn, id));
    assert_eq!(home.closed(key).map(|cause| cause.reason), Some(CloseReason::Deleted));
}

#[test]
fn what_a_core_has_forgotten_is_said_again() {
    let config = Config::dev;
    let dispatch = Rig::new(0, 2).settings.dispatch_home(FUNCTION, VERSION);
    let mut home = Bench::with(1 - dispatch, 2, config());
    // One attachment waits, one is parked. Both are known to the other core's dispatch.
    home.place(1, 1, wanted(None));
    let waiting = home.served();
    home.launch();
    let (parked, _) = home.open(2);
    home.gone(2, &[parked]);
    home.said();
    home.call(|sessions, turn| sessions.core_restarted(turn, dispatch));
    assert_eq!(home.said(), ["Submit", "Parks"]);
    let again = home.out.iter().any(|fact| {
        matches!(fact, Fact::Workers(ForWorkers::Parks(parks))
            if parks.ticket.number == number_of(parked))
    });
    assert!(again && home.work(waiting).ticket.number == number_of(waiting));
}

#[test]
fn a_home_that_begins_anew_learns_of_attachments_and_ends_questions() {
    let (mut home, mut there, _, id) = two_cores();
    there.place(5, 5, wanted(Some(id)));
    home.on(heard(message(&mut there)));
    there.on(heard(message(&mut home)));
    let key = there.served();
    there.attach(key, false);
    there.call(|sessions, turn| sessions.settled(turn, key));
    let unknown = Uuid::from_u128(id.as_u128() ^ 1);
    there.place(6, 6, wanted(Some(unknown)));
    let asking = there.served();
    there.said();
    there.call(|sessions, turn| sessions.renew(turn, 0));
    let said = there.said();
    assert!(said.starts_with(&to_strings(&["Join 0", "Leave 0", "Close"])), "{said:?}");
    assert!(there.closed(asking).is_some() && there.closed(key).is_none());
    let joined = there.out.iter().rev().find_map(|fact| match fact {
        Fact::Send { message: CoreMessage::Join(join), .. } => Some(join.member_state),
        _ => None,
    });
    assert_eq!(joined, Some(MemberState::Open));
}

#[test]
fn who_was_promised_a_tunnel_of_a_core_that_died_is_told() {
    let mut home = Bench::with(0, 3, Config::dev());
    let (key, id) = home.open(1);
    let parked = Ticket { node: NODE, core: 1, number: 5 };
    home.on(find(id, parked));
    home.on(ForSessions::MemberState(id, parked, MemberState::Parked(Speaks::Http2)));
    assert!(home.has("EndSurplus 1"), "a client uses the session's other tunnel");
    home.on(find(id, parked));
    home.gone(1, &[]);
    home.on(ForSessions::MemberState(id, parked, MemberState::Parked(Speaks::Http2)));
    home.said();
    let to = Ticket { node: NODE, core: 2, number: 6 };
    home.on(find(id, to));
    assert_eq!(home.said(), ["Claim 1"]);
    home.call(|sessions, turn| sessions.core_restarted(turn, 1));
    assert_eq!(home.said(), ["Resumed 2"]);
    assert!(home.closed(key).is_some());
    home.on(ForSessions::Leave(Box::new(Leave { id, ticket: to, row: None })));
    assert!(home.sessions.directory.len() == 0);
}

/// Two cores behind a control plane that takes time; the first has a session whose tunnel is
/// parked.
fn two_cores_that_ask() -> (Bench, Bench, Uuid) {
    let mut benches = [0, 1].map(|core| Bench::with(core, 2, Config::dev()));
    benches.iter_mut().for_each(|bench| bench.rig.settings.plane = Plane::Remote);
    let [mut home, mut there] = benches;
    let (key, id) = home.open(1);
    home.gone(1, &[key]);
    home.said();
    there.plane = false;
    (home, there, id)
}

#[test]
fn a_home_vouches_for_the_client_that_opened_its_session_and_for_no_other() {
    let (mut home, mut there, id) = two_cores_that_ask();
    there.place(5, 5, wanted(Some(id)));
    // Another request of the same connection waits for the same word.
    there.place(5, 6, wanted(Some(id)));
    assert_eq!(there.said(), ["Vouch 0"]);
    home.on(heard(message(&mut there)));
    assert_eq!(home.said(), ["Vouched 1"]);
    there.on(heard(message(&mut home)));
    assert_eq!(there.said(), ["Open", "Serve", "Find 0", "GoOn"]);
    assert_eq!(there.asks(), [0; AskOutcome::COUNT]);
    for who in [by("other-key", Some(id)), wanted(Some(Uuid::from_u128(5)))] {
        there.place(6, 7, who);
        if there.said() == ["Vouch 0"] {
            home.on(heard(message(&mut there)));
            there.on(heard(message(&mut home)));
            assert_eq!(there.said(), ["Authorise"]);
        }
    }
    assert_eq!(there.asks()[AskOutcome::Asked.index()], 2);
}

#[test]
fn what_a_home_cannot_say_the_control_plane_is_asked() {
    let (_, mut there, id) = two_cores_that_ask();
    there.place(5, 5, wanted(Some(id)));
    there.said();
    there.call(|sessions, turn| sessions.core_restarted(turn, 0));
    assert_eq!(there.said(), ["Authorise"]);
    // The word that comes after all is nobody's.
    let Some(Fact::Ask(Ask { ticket, .. })) = there.out.pop() else { panic!("{:?}", there.names) };
    let late = Ticket { node: NODE, core: 1, number: ticket.number };
    there.on(ForSessions::Vouched(Box::new(Vouched { ticket: late, owner: None })));
    assert!(there.said().is_empty());
    // A client that goes while its word is out takes nothing back: nobody was asked.
    there.place(6, 6, wanted(Some(id)));
    there.gone(6, &[]);
    assert_eq!(there.said(), ["Vouch 0"]);
    assert_eq!(there.asks()[AskOutcome::Asked.index()], 1);
    assert_eq!(there.asks()[AskOutcome::Withdrawn.index()], 0);
}
