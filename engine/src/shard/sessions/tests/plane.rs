//! Questions to the control plane, and how each one ends.

use super::*;
use crate::control::port::Progress;

#[test]
fn requests_that_want_the_same_share_a_question_and_others_do_not() {
    for (scope, questions) in [(Scope::Credential, 2), (Scope::Connection, 1)] {
        let mut bench = Bench::with(0, 1, set(|config| config.session.scope = scope));
        bench.plane = false;
        bench.place(1, 1, wanted(None));
        bench.place(1, 2, wanted(None));
        bench.place(1, 3, by("other-key", None));
        assert_eq!(bench.said(), vec!["Authorise"; questions], "{scope:?}");
        // A question of another connection is another question.
        bench.place(2, 4, wanted(None));
        assert_eq!(bench.said(), ["Authorise"]);
        assert_eq!(bench.asks()[0], questions as u64 + 1);
    }
}

/// The tickets of the questions that were asked.
fn tickets(bench: &Bench) -> Vec<AskTicket> {
    let asked = |fact: &Fact| match fact {
        Fact::Ask(Ask { ticket, what: Question::Authorise(_), .. }) => Some(*ticket),
        _ => None,
    };
    bench.out.iter().filter_map(asked).collect()
}

#[test]
fn every_question_ends_once_and_what_comes_later_is_dropped() {
    let mut bench = Bench::new();
    bench.plane = false;
    for number in 1..=5 {
        bench.place(number, number, wanted(None));
    }
    let asked = tickets(&bench);
    let grant = bench.policy.authorise(b"dev-key", FUNCTION.as_bytes(), b"", 0).expect("may");
    let granted = || Answer::Granted(grant.clone());
    let denied = Denied { code: 7, text: "no".into() };
    bench.on(ForSessions::Answered { ticket: asked[0], answer: granted() });
    assert!(bench.has("Serve"));
    bench.on(ForSessions::Answered { ticket: asked[1], answer: Answer::Denied(denied) });
    assert_eq!(bench.refused(), Fault::Api { code: 7, text: "no".into() });
    bench.on(ForSessions::Answered { ticket: asked[2], answer: Answer::Full });
    assert_eq!(bench.refused(), Fault::Overloaded);
    bench.gone(4, &[]);
    assert!(bench.has("Withdraw"));
    let overdue = |ticket: AskTicket| key_numbered(ticket.number);
    bench.call(|sessions, turn| sessions.ask_overdue(turn, overdue(asked[4])));
    assert_eq!(bench.refused().code(), 14);
    bench.said();
    for ticket in asked {
        bench.on(ForSessions::Answered { ticket, answer: granted() });
        bench.call(|sessions, turn| sessions.ask_overdue(turn, overdue(ticket)));
    }
    assert!(bench.said().is_empty());
    // Asked, answered, refused, withdrawn, expired, late.
    assert_eq!(bench.asks(), [5, 1, 2, 1, 1, 5]);
    assert!(bench.sessions.questions.is_empty());
}

#[test]
fn an_answer_for_another_core_or_an_earlier_shard_finds_nobody() {
    let mut bench = Bench::new();
    bench.plane = false;
    bench.place(1, 1, wanted(None));
    let ticket = tickets(&bench)[0];
    for other in [
        AskTicket { core: ticket.core + 1, ..ticket },
        AskTicket { life: ticket.life + 1, ..ticket },
        AskTicket { number: ticket.number + 1, ..ticket },
    ] {
        bench.on(ForSessions::Answered { ticket: other, answer: Answer::Full });
    }
    assert_eq!((bench.said(), bench.asks()), (to_strings(&["Authorise"]), [1, 0, 0, 0, 0, 3]));
    bench.on(ForSessions::Answered { ticket, answer: Answer::Full });
    assert_eq!(bench.refused(), Fault::Overloaded);
}

#[test]
fn questions_have_room_on_the_core_and_by_tenant() {
    let config = set(|config| {
        config.limits.asks = 3;
        config.limits.asks_per_tenant = 2;
    });
    let mut bench = Bench::with(0, 1, config);
    bench.plane = false;
    bench.rig.settings.plane = Plane::Remote;
    for client in 1..=3 {
        bench.place(client, client, wanted(None));
    }
    assert_eq!(bench.refused(), Fault::Overloaded);
    let full = |bench: &Bench, limit: Limit| bench.rig.metrics.limit_hits[limit.index()];
    assert_eq!((full(&bench, Limit::AsksPerTenant), full(&bench, Limit::Asks)), (1, 0));
    // Nobody knows whose an unknown key is, so its questions count for no tenant.
    bench.place(4, 4, by("nobodys", None));
    bench.place(5, 5, by("nobodys", None));
    assert_eq!((full(&bench, Limit::AsksPerTenant), full(&bench, Limit::Asks)), (1, 1));
    assert_eq!(bench.asks(), [3, 0, 0, 0, 0, 0]);
    let mut metrics = ShardMetrics::default();
    bench.sessions.gauge(&bench.rig.settings, &mut metrics);
    let gauge =
        |limit: Limit| (metrics.limit_used[limit.index()], metrics.limit_max[limit.index()]);
    assert_eq!((gauge(Limit::Asks), gauge(Limit::AsksPerTenant)), ((3, 3), (2, 2)));
    (1..=5).for_each(|client| bench.gone(client, &[]));
    bench.place(6, 6, wanted(None));
    assert_eq!(bench.asks(), [4, 0, 0, 3, 0, 0]);
}

#[test]
fn requests_that_come_and_go_while_a_question_waits_are_bounded() {
    let config = set(|config| config.limits.streams = 3);
    let mut bench = Bench::with(0, 1, config);
    bench.plane = false;
    for exchange in 1..=6 {
        bench.place(1, exchange, wanted(None));
    }
    assert_eq!(bench.said(), ["Authorise"]);
    bench.place(1, 7, wanted(None));
    assert_eq!((bench.said(), bench.refused()), (to_strings(&["Refuse"]), Fault::Overloaded));
    assert_eq!(bench.rig.metrics.limit_hits[Limit::Streams.index()], 1);
    bench.gone(1, &[]);
    assert!(bench.sessions.is_empty());
}

#[test]
fn a_connection_has_no_more_questions_than_it_may_have_sessions() {
    let mut bench = Bench::with(0, 1, set(|config| config.limits.attachments = 2));
    bench.plane = false;
    for (exchange, key) in (1..).zip(["one", "two", "three"]) {
        bench.place(1, exchange, by(key, None));
    }
    assert_eq!(bench.said(), ["Authorise", "Authorise", "Refuse"]);
    assert_eq!(bench.refused(), Fault::TooManySessions);
}

#[test]
fn a_parked_session_gives_way_only_to_work_that_is_queued() {
    let mut bench = Bench::new();
    bench.rig.settings.dispatch = Plane::Remote;
    bench.place(1, 1, wanted(None));
    let key = bench.served();
    bench.launch();
    let soon = bench.rig.settings.config.session.park_yield;
    let impatient = |bench: &mut Bench| {
        bench.later(soon);
        let now = bench.rig.net.now;
        std::iter::from_fn(|| bench.rig.timers.take(now)).any(|due| matches!(due, Due::Patience(_)))
    };
    assert!(!impatient(&mut bench), "a worker could not get it");
    let ticket = bench.sessions.questions.tunnel_ticket(key);
    let say = |bench: &mut Bench, answer| {
        bench.said();
        bench.on(ForSessions::Answered { ticket, answer });
        bench.said()
    };
    say(&mut bench, Answer::Queued);
    for (answer, gives_way) in [
        (Answer::Stands(Progress::Taken), false),
        (Answer::Stands(Progress::Unknown), false),
        (Answer::Full, false),
        (Answer::Stands(Progress::Queued), true),
    ] {
        assert!(impatient(&mut bench));
        bench.call(|sessions, turn| sessions.impatient(turn, key));
        let asked = |fact: &Fact| match fact {
            Fact::Ask(Ask { what: Question::Progress { .. }, ticket, .. }) => Some(*ticket),
            _ => None,
        };
        assert_eq!(bench.out.iter().rev().find_map(asked), Some(ticket));
        assert_eq!(say(&mut bench, answer).iter().any(|name| name == "Impatient"), gives_way);
    }
    let waits = matches!(bench.sessions.roster.attachments.state(key), Some(State::Waiting { .. }));
    assert!(waits, "nothing of that was an end");
}

#[test]
fn a_worker_that_comes_before_the_acknowledgement_shows_that_its_work_was_queued() {
    for acknowledged in [true, false] {
        let mut bench = Bench::new();
        bench.rig.settings.dispatch = Plane::Remote;
        bench.place(1, 1, wanted(None));
        let key = bench.served();
        bench.launch();
        let Work { token, request_id: id, .. } = bench.work(key);
        if acknowledged {
            let ticket = bench.sessions.questions.tunnel_ticket(key);
            bench.on(ForSessions::Answered { ticket, answer: Answer::Queued });
        }
        bench.on(ForSessions::Token { conn: conn(9), text: token.to_vec(), id });
        assert!(bench.has("Admit"));
        let queued = |edge: &&Edge| matches!(edge, Edge::Note { event: Event::Queued { .. }, .. });
        assert_eq!(bench.rig.left.edges.iter().filter(queued).count(), 1);
        assert_eq!(bench.rig.metrics.session_init_seconds[0].count(), 1);
    }
}
