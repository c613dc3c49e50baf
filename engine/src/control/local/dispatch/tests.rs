use std::sync::Arc;

use serde_json::json;
use uuid::Uuid;

use super::*;
use crate::control::owner::Owner;

const NODE: Node = Node::new(1, 1).unwrap();

const SECOND: Duration = Duration::from_secs(1);

struct World {
    dispatch: Dispatch,
    now: Time,
}

fn world() -> World {
    World { dispatch: Dispatch::new(DispatchLimits { queue: 3, polls: 3 }), now: Time(7) }
}

fn work(ticket: u64, kind: WorkKind) -> Work {
    Work {
        ticket: Ticket { node: NODE, core: 0, number: ticket },
        kind,
        request_id: Uuid::from_u128(u128::from(ticket)),
        owner: Arc::new(Owner::new("dev".into(), "f".into(), "v".into())),
        token: [b'x'; 64],
    }
}

fn worker(slot: u32) -> PollId {
    PollId { node: NODE, core: 0, conn: ConnId { slot, generation: 0 }, round: 1 }
}

impl World {
    fn submit(&mut self, ticket: u64) -> Result<(), QueueFull> {
        self.dispatch.submit(work(ticket, WorkKind::New), self.now)
    }

    fn reconnect(&mut self, ticket: u64) {
        self.dispatch.submit(work(ticket, WorkKind::Reconnect), self.now).unwrap();
    }

    fn withdraw(&mut self, ticket: u64) {
        self.dispatch.withdraw(Ticket { node: NODE, core: 0, number: ticket });
    }

    fn poll_for(&mut self, at: u32, version: &str, slots: u32, ids: &[u64]) {
        let request = PollRequest {
            function_id: "f".into(),
            function_version_id: version.into(),
            slots,
            request_ids: ids.iter().map(|id| Uuid::from_u128(u128::from(*id))).collect(),
        };
        self.dispatch.poll(worker(at), request, self.now).unwrap();
    }

    fn poll(&mut self, at: u32, slots: u32, ids: &[u64]) {
        self.poll_for(at, "v", slots, ids);
    }

    /// The polls that were answered, and the work that each got; 0 is none.
    fn answers(&mut self) -> Vec<(u32, u64)> {
        let mut answers = Vec::new();
        self.dispatch.take_answers(&mut answers);
        let ticket = |answer| match answer {
            PollAnswer::Nothing => 0,
            PollAnswer::Work(work) => work.ticket.number,
        };
        answers.into_iter().map(|(poll, answer)| (poll.conn.slot, ticket(answer))).collect()
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.dispatch.turn(self.now);
    }
}

#[test]
fn work_is_handed_out_in_the_order_it_came() {
    let mut w = world();
    for ticket in [1, 2, 3] {
        w.submit(ticket).unwrap();
    }
    w.poll(1, 1, &[]);
    w.poll(2, 1, &[]);
    assert_eq!(w.answers(), [(1, 1), (2, 2)]);
}

#[test]
fn the_poll_that_waited_longest_is_served_first() {
    let mut w = world();
    w.poll(1, 1, &[]);
    w.poll(2, 1, &[]);
    w.submit(1).unwrap();
    w.submit(2).unwrap();
    assert_eq!(w.answers(), [(1, 1), (2, 2)]);
}

#[test]
fn a_poll_is_answered_with_nothing_after_thirty_seconds() {
    let mut w = world();
    w.poll(1, 1, &[]);
    w.pass(POLL_WAIT - SECOND);
    w.poll(2, 1, &[]);
    assert_eq!(w.dispatch.deadline(), Some(w.now + SECOND));
    assert_eq!(w.answers(), []);
    w.pass(SECOND);
    assert_eq!(w.answers(), [(1, 0)]);
    w.submit(1).unwrap();
    assert_eq!(w.answers(), [(2, 1)], "the first has had its answer");
    assert_eq!(w.dispatch.deadline(), None);
}

#[test]
fn a_poll_gets_one_answer() {
    let mut w = world();
    w.poll(1, 5, &[]);
    w.submit(1).unwrap();
    w.submit(2).unwrap();
    assert_eq!(w.answers(), [(1, 1)]);
    w.dispatch.delivered(worker(1));
    w.poll(1, 4, &[]);
    assert_eq!(w.answers(), [(1, 2)]);
}

#[test]
fn patience_is_not_lost_while_a_worker_with_room_for_more_asks() {
    let mut w = world();
    let key: FunctionVersion = ("f".into(), "v".into());
    let lose = |w: &mut World| w.dispatch.lose_patience(&key, 2 * SECOND, w.now);
    for ticket in [1, 2, 3] {
        w.submit(ticket).unwrap();
    }
    let begun = w.now;
    w.pass(2 * SECOND);
    // The answer takes the worker's one free slot.
    w.poll(1, 1, &[]);
    assert_eq!(w.dispatch.waits_since(&key), Some(begun));
    assert!(lose(&mut w));
    w.pass(2 * SECOND);
    w.poll(2, 9, &[]);
    assert_eq!(w.dispatch.waits_since(&key), Some(w.now));
    w.pass(2 * SECOND - Duration::from_micros(1));
    assert!(!lose(&mut w), "it said that it has room");
    w.pass(Duration::from_micros(1));
    assert!(lose(&mut w), "it has not come back");
}

#[test]
fn work_goes_only_to_polls_for_its_function_version() {
    let mut w = world();
    w.poll_for(1, "another", 1, &[]);
    w.submit(1).unwrap();
    assert_eq!(w.answers(), []);
    w.poll(2, 1, &[]);
    assert_eq!(w.answers(), [(2, 1)]);
}

#[test]
fn no_slots_means_reconnects_only() {
    let mut w = world();
    w.submit(1).unwrap();
    w.poll(1, 0, &[7]);
    assert_eq!(w.answers(), []);
    w.reconnect(7);
    assert_eq!(w.answers(), [(1, 7)]);
}

#[test]
fn a_reconnect_goes_only_to_a_poll_that_lists_its_id() {
    let mut w = world();
    w.reconnect(7);
    w.poll(1, 1, &[6, 8]);
    assert_eq!(w.answers(), []);
    w.poll(2, 0, &[7]);
    assert_eq!(w.answers(), [(2, 7)]);
    w.reconnect(8);
    assert_eq!(w.answers(), [(1, 8)]);
}

#[test]
fn a_reconnect_goes_before_new_work() {
    let mut w = world();
    w.submit(1).unwrap();
    w.reconnect(7);
    w.poll(1, 1, &[7]);
    assert_eq!(w.answers(), [(1, 7)]);
}

#[test]
fn a_newer_poll_replaces_the_older_which_is_answered_first() {
    let mut w = world();
    w.poll(1, 0, &[]);
    w.submit(1).unwrap();
    w.poll(1, 1, &[]);
    assert_eq!(w.answers(), [(1, 0), (1, 1)]);
    assert_eq!(w.dispatch.polls(), 0);
}

#[test]
fn a_poll_whose_connection_has_closed_gets_nothing() {
    let mut w = world();
    w.poll(1, 1, &[]);
    w.dispatch.gone(worker(1));
    w.submit(1).unwrap();
    w.pass(POLL_WAIT * 2);
    assert_eq!(w.answers(), []);
}

#[test]
fn an_answer_that_was_not_delivered_is_queued_again_in_front() {
    let mut w = world();
    w.poll(1, 1, &[]);
    w.submit(1).unwrap();
    w.submit(2).unwrap();
    assert_eq!(w.answers(), [(1, 1)]);
    w.dispatch.gone(worker(1));
    w.poll(2, 1, &[]);
    assert_eq!(w.answers(), [(2, 1)]);
    w.dispatch.delivered(worker(2));
    w.dispatch.gone(worker(2));
    w.poll(3, 1, &[]);
    assert_eq!(w.answers(), [(3, 2)], "delivered work stays delivered");
}

#[test]
fn an_undelivered_answer_goes_straight_to_another_waiting_poll() {
    let mut w = world();
    w.poll(1, 1, &[]);
    w.poll(2, 1, &[]);
    w.submit(1).unwrap();
    w.dispatch.gone(worker(1));
    assert_eq!(w.answers(), [(2, 1)], "the first poll is gone: no answer for it");
}

#[test]
fn withdrawn_work_is_not_handed_out() {
    let mut w = world();
    w.submit(1).unwrap();
    w.submit(2).unwrap();
    w.withdraw(1);
    w.withdraw(1);
    w.poll(1, 1, &[]);
    assert_eq!(w.answers(), [(1, 2)]);
}

#[test]
fn work_withdrawn_before_its_answer_was_taken_becomes_nothing() {
    let mut w = world();
    w.poll(1, 1, &[]);
    w.submit(1).unwrap();
    w.withdraw(1);
    assert_eq!(w.answers(), [(1, 0)]);
    w.dispatch.gone(worker(1));
    assert!(w.dispatch.is_empty());
}

#[test]
fn work_withdrawn_on_its_way_is_not_queued_again() {
    let mut w = world();
    w.poll(1, 1, &[]);
    w.submit(1).unwrap();
    assert_eq!(w.answers(), [(1, 1)]);
    w.withdraw(1);
    w.dispatch.gone(worker(1));
    w.poll(2, 1, &[]);
    assert_eq!(w.answers(), []);
}

#[test]
fn a_connection_has_one_undelivered_answer_at_most() {
    let mut w = world();
    w.submit(1).unwrap();
    w.submit(2).unwrap();
    w.poll(1, 1, &[]);
    w.poll(1, 1, &[]);
    assert_eq!(w.answers(), [(1, 1)]);
    w.submit(3).unwrap();
    assert_eq!(w.answers(), []);
    w.dispatch.delivered(worker(1));
    assert_eq!(w.answers(), [(1, 2)]);
}

#[test]
fn a_full_queue_refuses_and_a_waiting_poll_is_never_full() {
    let mut w = world();
    for ticket in [1, 2, 3] {
        w.submit(ticket).unwrap();
    }
    assert_eq!((w.submit(4), w.dispatch.fullest()), (Err(QueueFull), 3));
    w.poll(1, 1, &[]);
    w.submit(4).unwrap();
    assert_eq!(w.submit(5), Err(QueueFull));
    w.poll_for(2, "another", 1, &[]);
    let owner = Arc::new(Owner::new("dev".into(), "f".into(), "another".into()));
    let other = Work { owner, ..work(6, WorkKind::New) };
    w.dispatch.submit(other, w.now).unwrap();
    assert_eq!(w.answers(), [(1, 1), (2, 6)]);
}

#[test]
fn too_many_polls_are_refused() {
    let mut w = world();
    for at in [1, 2, 3] {
        w.poll(at, 1, &[]);
    }
    let request = PollRequest::parse(
        br#"{"functionId":"11111111111141118111111111111111",
            "functionVersionId":"11111111111141118111111111111111"}"#,
        0,
    );
    let refused = w.dispatch.poll(worker(4), request.unwrap(), w.now);
    assert_eq!((refused, w.dispatch.polls()), (Err(TooManyPolls), 3));
    w.poll(3, 1, &[]);
    assert_eq!(w.answers(), [(3, 0)], "a replacement needs no room");
}

#[test]
fn work_that_is_submitted_again_is_not_there_twice() {
    let mut w = world();
    w.submit(1).unwrap();
    w.submit(1).unwrap();
    w.poll(1, 1, &[]);
    w.submit(1).unwrap();
    w.poll(2, 1, &[]);
    assert_eq!(w.answers(), [(1, 1)]);
}

#[test]
fn of_a_core_that_began_anew_nothing_is_kept() {
    let mut w = world();
    let of_core_1 = |number, kind| Work {
        ticket: Ticket { node: NODE, core: 1, number },
        ..work(number, kind)
    };
    w.submit(1).unwrap();
    w.dispatch.submit(of_core_1(1, WorkKind::New), w.now).unwrap();
    w.dispatch.submit(of_core_1(2, WorkKind::Reconnect), w.now).unwrap();
    let elsewhere = PollId { core: 1, ..worker(1) };
    let request = PollRequest {
        function_id: "f".into(),
        function_version_id: "v".into(),
        slots: 1,
        request_ids: Vec::new(),
    };
    w.dispatch.poll(elsewhere, request, w.now).unwrap();
    w.dispatch.forget_core(1);
    w.poll(2, 1, &[2]);
    w.poll(3, 1, &[]);
    assert_eq!(w.answers(), [(2, 1)], "core 0's work, which core 1's poll had been given");
    w.dispatch.delivered(worker(2));
    w.dispatch.gone(worker(3));
    assert!(w.dispatch.is_empty() && w.dispatch.places.is_empty());
}

#[test]
fn at_rest_nothing_is_kept() {
    let mut w = world();
    for round in 0..50 {
        w.submit(round * 3).unwrap();
        w.reconnect(round * 3 + 1);
        w.poll(1, 1, &[round * 3 + 1]);
        w.poll(2, 1, &[]);
        w.submit(round * 3 + 2).unwrap();
        w.withdraw(round * 3 + 2);
        w.answers();
        w.dispatch.delivered(worker(1));
        w.dispatch.delivered(worker(2));
    }
    assert!(w.dispatch.is_empty() && w.dispatch.places.is_empty());
    assert!(w.dispatch.waiting.is_empty() && w.dispatch.expiry.is_empty());
}

#[test]
fn the_answer_is_the_json_of_the_design() {
    let work = Work { request_id: Uuid::nil(), ..work(1, WorkKind::Reconnect) };
    let json: serde_json::Value =
        serde_json::from_slice(&work.to_json(["http://127.0.0.1:10086/"])).unwrap();
    assert_eq!(
        json,
        json!({
            "kind": "reconnect",
            "requestId": "00000000-0000-0000-0000-000000000000",
            "ncaId": "dev",
            "functionId": "f",
            "functionVersionId": "v",
            "connections": [{"http1": {
                "proxyUri": "http://127.0.0.1:10086/v1/proxy",
                "proxyAuthorizationToken": "x".repeat(64),
            }}],
        })
    );
    assert!(!format!("{work:?}").contains("xxxx"), "no token in debug output");
}

#[test]
fn spares_have_the_room_that_clients_leave() {
    let mut w = world();
    let mut submit = |ticket, kind| w.dispatch.submit(work(ticket, kind), w.now).is_ok();
    assert!(submit(1, WorkKind::Spare) && submit(2, WorkKind::Spare));
    assert!(submit(3, WorkKind::New) && !submit(4, WorkKind::Spare));
    assert!(submit(5, WorkKind::New) && submit(6, WorkKind::Reconnect), "spares are in no way");
    assert!(!submit(7, WorkKind::New) && !submit(8, WorkKind::Reconnect));
    assert_eq!(w.dispatch.fullest(), 3);
    // Work that only this worker can do goes first.
    w.poll(1, 1, &[2, 6]);
    w.poll(2, 1, &[2]);
    w.poll(3, 1, &[9]);
    assert_eq!(w.answers(), [(1, 6), (2, 2), (3, 3)]);
}

#[test]
fn a_spare_is_recalled_until_a_worker_is_told_of_it() {
    let mut w = world();
    let ticket = |number| Ticket { node: NODE, core: 0, number };
    w.dispatch.submit(work(1, WorkKind::Spare), w.now).unwrap();
    assert!(w.dispatch.recall(ticket(1)) && w.dispatch.is_empty());
    assert!(!w.dispatch.recall(ticket(1)), "it is gone");
    w.dispatch.submit(work(2, WorkKind::Spare), w.now).unwrap();
    w.poll(1, 0, &[2]);
    assert!(!w.dispatch.recall(ticket(2)), "a worker has it");
    assert_eq!(w.answers(), [(1, 2)]);
}

#[test]
fn work_in_doubt_is_queued_again_unless_its_worker_dials_back() {
    let mut w = world();
    for ticket in [1, 2, 3] {
        w.submit(ticket).unwrap();
    }
    for at in [1, 2] {
        w.poll(at, 1, &[]);
    }
    assert_eq!(w.answers(), [(1, 1), (2, 2)]);
    w.dispatch.doubted(worker(1), w.now);
    w.dispatch.doubted(worker(2), w.now);
    // A second report, of either kind, changes nothing: the first one counts.
    w.dispatch.doubted(worker(1), w.now);
    w.dispatch.gone(worker(1));
    w.dispatch.delivered(worker(2));
    w.withdraw(2);
    w.pass(DOUBT - Duration::from_micros(1));
    assert_eq!(w.dispatch.take_queued_again(), None);
    assert_eq!(w.dispatch.deadline(), Some(w.now + Duration::from_micros(1)));
    w.pass(Duration::from_micros(1));
    assert_eq!(w.dispatch.take_queued_again(), Some(("f".into(), "v".into())));
    // The work is in its old place, and goes at once to a poll that waits.
    w.poll(3, 1, &[]);
    w.poll(4, 1, &[]);
    assert_eq!(w.answers(), [(3, 1), (4, 3)]);
    w.dispatch.doubted(worker(3), w.now);
    w.dispatch.delivered(worker(4));
    w.poll(5, 1, &[]);
    w.pass(DOUBT);
    assert_eq!(w.answers(), [(5, 1)]);
    w.dispatch.doubted(worker(5), w.now);
    w.withdraw(1);
    w.pass(DOUBT);
    assert!(w.dispatch.is_empty());
}

#[test]
fn a_poll_behind_work_in_doubt_is_fed_at_once() {
    let mut w = world();
    w.submit(1).unwrap();
    w.submit(2).unwrap();
    w.poll(1, 1, &[]);
    assert_eq!(w.answers(), [(1, 1)]);
    w.poll(1, 1, &[]);
    assert_eq!(w.answers(), [], "one answer at a time");
    w.dispatch.doubted(worker(1), w.now);
    assert_eq!(w.answers(), [(1, 2)]);
}
