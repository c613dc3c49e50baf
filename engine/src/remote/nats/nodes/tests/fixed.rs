//! What a gateway does about its name, one rule at a time; `seeds` tries them together.

use std::time::Duration;

use bytes::Bytes;
use ringway_proto::id::Node;
use ringway_proto::time::Time;

use super::super::super::withdraw::Trouble;
use super::super::claims::{Ask, Claims, Heard, Next, Told};
use super::super::known::Liveness;
use super::super::record::{Addresses, Pace, Record};

const RUN: u64 = 7;
const OTHER: u64 = 8;

fn me() -> Node {
    Node::new(1, 2).unwrap()
}

fn at(seconds: f64) -> Time {
    Time::ZERO + Duration::from_secs(1000) + Duration::from_secs_f64(seconds)
}

fn next(claims: &Claims) -> Next {
    claims.next(&Addresses::default())
}

/// The revision that is written over.
fn put_over(claims: &Claims) -> Option<u64> {
    match next(claims) {
        Next::Ask(Ask::Put { over, .. }) => over,
        other => panic!("nothing is written: {other:?}"),
    }
}

fn reads(claims: &Claims) -> bool {
    next(claims) == Next::Ask(Ask::Read(me()))
}

fn record(run: u64, revision: u64) -> Heard {
    let bytes = Record::of(format!("a:{run}"), run).written(me(), &Addresses::default(), None);
    Heard::Found(Some((bytes, revision)))
}

fn no_answer() -> Heard {
    Heard::Failed(Trouble::Failed("no answer".into()))
}

/// A gateway that was entered by the first connection, with revision 5.
fn entered() -> Claims {
    let mut claims = Claims::new(me(), Record::of("a:7".into(), RUN), None, Pace::default());
    assert_eq!(put_over(&claims), None);
    claims.heard(Heard::Done(4), at(0.0));
    claims.settle();
    claims.due(Some(1));
    assert!(reads(&claims));
    claims.heard(record(RUN, 4), at(0.0));
    assert_eq!(put_over(&claims), Some(4));
    claims.heard(Heard::Done(5), at(0.0));
    assert_eq!(next(&claims), Next::Rest);
    claims
}

#[test]
fn after_another_connection_the_record_is_read_before_it_is_written() {
    let mut claims = entered();
    claims.due(Some(1));
    assert_eq!(put_over(&claims), Some(5));
    claims.heard(Heard::Done(6), at(5.0));
    claims.due(Some(2));
    assert!(reads(&claims), "the bucket may be another one, whose revisions begin anew");
    // No answer: it is read again, whatever comes later.
    claims.heard(no_answer(), at(10.0));
    claims.due(Some(2));
    assert!(reads(&claims));
    claims.heard(record(RUN, 2), at(10.0));
    assert_eq!(put_over(&claims), Some(2));
}

#[test]
fn a_revision_of_an_emptied_bucket_is_forgotten() {
    let mut claims = entered();
    claims.due(Some(2));
    claims.heard(Heard::Found(None), at(5.0));
    assert!(claims.spell(at(5.0)).is_none(), "our record is gone");
    assert_eq!(put_over(&claims), None);
    claims.heard(no_answer(), at(10.0));
    claims.due(Some(2));
    assert_eq!(put_over(&claims), None, "revision 5 may be another run's by now");
    // The same if something was there, which was not ours.
    let mut claims = entered();
    claims.due(Some(2));
    claims.heard(Heard::Found(Some((Bytes::from("nonsense"), 1))), at(5.0));
    assert_eq!(put_over(&claims), Some(1));
    claims.heard(no_answer(), at(10.0));
    claims.due(Some(2));
    assert_eq!(put_over(&claims), None);
}

#[test]
fn a_record_whose_answer_was_lost_is_written_again_at_once() {
    let mut claims = entered();
    claims.due(Some(1));
    assert_eq!(put_over(&claims), Some(5));
    claims.heard(no_answer(), at(10.0));
    assert!(reads(&claims));
    // It has lived for a while when it is found.
    claims.heard(record(RUN, 6), at(12.0));
    assert_eq!(put_over(&claims), Some(6));
    claims.heard(Heard::Done(7), at(12.0));
    assert_eq!(next(&claims), Next::Rest);
    assert!(claims.spell(at(12.0)).is_some());
}

#[test]
fn what_changes_as_it_is_put_back_is_looked_at_once_more() {
    let mut claims = entered();
    claims.due(Some(1));
    claims.heard(Heard::Refused, at(5.0));
    claims.heard(record(RUN, 6), at(5.0));
    assert_eq!(put_over(&claims), Some(6));
    // Its life ended in this moment.
    claims.heard(Heard::Refused, at(5.0));
    assert!(reads(&claims));
    claims.heard(Heard::Found(None), at(5.0));
    assert_eq!(put_over(&claims), None);
    // Whoever writes on and on is not raced with.
    claims.heard(Heard::Refused, at(5.0));
    assert_eq!(next(&claims), Next::Rest);
    assert!(claims.told().is_empty(), "nobody else's record was seen");
    claims.due(Some(1));
    assert_eq!(put_over(&claims), None);
}

#[test]
fn a_record_is_taken_away_at_its_own_revision_only() {
    let delete = |revision| Next::Ask(Ask::Delete { node: me(), revision });
    let mut claims = entered();
    claims.leave(Some(1));
    assert_eq!(next(&claims), delete(5));
    // It was refreshed as the gateway began to leave.
    claims.heard(Heard::Refused, at(1.0));
    assert!(reads(&claims));
    claims.heard(record(RUN, 6), at(1.0));
    assert_eq!(next(&claims), delete(6));
    claims.heard(Heard::Done(6), at(1.0));
    assert_eq!(next(&claims), Next::Rest);
    // By another connection it has to be read first, which was not done or not answered.
    let mut doubts = entered();
    doubts.due(Some(2));
    for (mut claims, connection) in [(entered(), 2), (doubts, 2)] {
        claims.leave(Some(connection));
        assert!(reads(&claims));
        claims.heard(record(OTHER, 5), at(1.0));
        assert_eq!(next(&claims), Next::Rest, "it is another run's");
    }
}

/// At refreshes at these seconds a gateway finds another run's record of this revision. Whether it
/// would write over it in the end.
fn overwrites(claims: &mut Claims, revision: u64, seconds: impl Iterator<Item = f64>) -> bool {
    for second in seconds {
        claims.due(Some(1));
        claims.heard(Heard::Refused, at(second));
        claims.heard(record(OTHER, revision), at(second));
        match next(claims) {
            Next::Rest => {}
            Next::Ask(Ask::Put { over, .. }) => {
                assert_eq!(over, Some(revision));
                return true;
            }
            other => panic!("{other:?}"),
        }
    }
    false
}

#[test]
fn another_runs_record_is_written_over_when_nobody_has_refreshed_it_for_a_life() {
    let every = |from: u32, to: u32| (from..=to).step_by(5).map(f64::from);
    let mut claims = entered();
    assert!(!overwrites(&mut claims, 9, every(5, 15)), "it may live");
    assert_eq!(claims.told(), [Told::Taken]);
    assert!(claims.spell(at(15.0)).is_none());
    assert!(overwrites(&mut claims, 9, every(20, 20)));
    // One that is refreshed lives.
    let mut claims = entered();
    for turn in 1..20 {
        let now = every(5 * turn, 5 * turn);
        assert!(!overwrites(&mut claims, 9 + u64::from(turn), now), "at refresh {turn}");
    }
    // A clock that jumps makes nobody dead.
    let mut claims = entered();
    assert!(!overwrites(&mut claims, 9, [5.0, 5.1, 3600.0, 3600.1, 3600.2].into_iter()));
    // A bucket that is another one may have the same revision of the same run.
    let mut claims = entered();
    assert!(!overwrites(&mut claims, 9, every(5, 15)));
    claims.due(Some(2));
    claims.heard(record(OTHER, 9), at(20.0));
    assert_eq!(next(&claims), Next::Rest);
}

#[test]
fn what_is_no_record_is_written_over_at_once() {
    let mut claims = entered();
    claims.due(Some(1));
    claims.heard(Heard::Refused, at(5.0));
    claims.heard(Heard::Found(Some((Bytes::from("nonsense"), 9))), at(5.0));
    assert_eq!(put_over(&claims), Some(9));
    assert!(matches!(*claims.told(), [Told::Unreadable(..)]));
}

fn another() -> Node {
    Node::new(3, 4).unwrap()
}

/// Our own record is refreshed.
fn refreshes(claims: &mut Claims, second: f64) {
    claims.due(Some(1));
    claims.heard(Heard::Done(6), at(second));
}

/// Another node's record is looked for, and is not there.
fn misses(claims: &mut Claims, second: f64) -> Liveness {
    let look = claims.look(another(), at(second));
    claims.looked(look, Ok(None), at(second))
}

/// What is said of a node after looks for it in vain at these seconds, each with a refresh of our own
/// record.
fn said_after(claims: &mut Claims, seconds: &[f64]) -> Liveness {
    let mut liveness = Liveness::Unknown;
    for second in seconds {
        refreshes(claims, *second);
        liveness = misses(claims, *second);
    }
    liveness
}

const LIFE: [f64; 4] = [0.0, 5.0, 10.0, 15.0];
const REST: [f64; 3] = [20.0, 25.0, 30.0];

#[test]
fn who_is_looked_for_in_vain_is_dead_after_two_lives() {
    let mut claims = entered();
    assert_eq!(said_after(&mut claims, &LIFE), Liveness::Unknown);
    assert_eq!(said_after(&mut claims, &REST[..2]), Liveness::Unknown);
    assert_eq!(said_after(&mut claims, &REST[2..]), Liveness::Dead);
}

#[test]
fn a_look_counts_for_two_refreshes_at_most() {
    // By the clock that is 30.1 s. But a clock that jumps may have made most of them.
    assert_eq!(said_after(&mut entered(), &[0.0, 14.9, 29.8, 30.1]), Liveness::Unknown);
    assert_eq!(said_after(&mut entered(), &[0.0, 14.9, 29.8, 40.0]), Liveness::Dead);
}

#[test]
fn a_record_that_may_have_lived_between_two_looks_was_not_missing() {
    // From the question of one look to the answer of the next it is as long as a record lives.
    let mut claims = entered();
    for turn in 0..10 {
        let second = 10.0 * f64::from(turn);
        let look = claims.look(another(), at(second));
        refreshes(&mut claims, second + 5.0);
        let liveness = claims.looked(look, Ok(None), at(second + 5.0));
        assert_eq!(liveness, Liveness::Unknown, "at look {turn}");
    }
}

#[test]
fn what_cannot_be_read_was_there() {
    let mut claims = entered();
    said_after(&mut claims, &LIFE);
    let look = claims.look(another(), at(17.0));
    claims.looked(look, Ok(Some(Bytes::from("nonsense"))), at(17.0));
    assert_eq!(said_after(&mut claims, &REST), Liveness::Unknown);
}

#[test]
fn nobody_is_missed_for_the_time_in_which_our_own_record_was_gone() {
    let gone: [fn(&mut Claims); 4] = [
        // The bucket was emptied.
        |claims| {
            claims.due(Some(1));
            claims.heard(Heard::Refused, at(16.0));
            claims.heard(Heard::Found(None), at(16.0));
            claims.heard(Heard::Done(9), at(16.0));
        },
        // It was emptied, and a request of ours from before came late.
        |claims| {
            claims.due(Some(2));
            claims.heard(record(RUN, 1), at(16.0));
            claims.heard(Heard::Done(2), at(16.0));
            claims.due(Some(1));
            claims.heard(record(RUN, 2), at(16.0));
            claims.heard(Heard::Done(3), at(16.0));
        },
        // Somebody has written over ours.
        |claims| {
            claims.due(Some(1));
            claims.heard(Heard::Refused, at(16.0));
            claims.heard(Heard::Found(Some((Bytes::from("nonsense"), 9))), at(16.0));
            claims.heard(Heard::Done(10), at(16.0));
        },
        // Another run has our pair for a while.
        |claims| {
            claims.due(Some(1));
            claims.heard(Heard::Refused, at(16.0));
            claims.heard(record(OTHER, 9), at(16.0));
            assert!(claims.spell(at(16.0)).is_none());
            assert_eq!(misses(claims, 16.0), Liveness::Unknown);
        },
    ];
    for (number, gone) in gone.into_iter().enumerate() {
        let mut claims = entered();
        said_after(&mut claims, &LIFE);
        gone(&mut claims);
        assert_eq!(said_after(&mut claims, &REST), Liveness::Unknown, "way {number} to be gone");
    }
}

#[test]
fn without_a_record_that_is_refreshed_nobody_is_dead() {
    let mut claims = entered();
    said_after(&mut claims, &LIFE);
    // Others are looked for, and our own record is not refreshed: it is over before they are dead.
    for second in [20.0, 25.0, 30.0, 35.0] {
        assert_eq!(misses(&mut claims, second), Liveness::Unknown, "at {second}");
    }
    // The refresh that succeeds at last begins another stay.
    refreshes(&mut claims, 36.0);
    assert_eq!(misses(&mut claims, 36.0), Liveness::Unknown);
}

#[test]
fn an_answer_that_was_overtaken_tells_nothing() {
    let mut claims = entered();
    let [first, second] = [claims.look(another(), at(1.0)), claims.look(another(), at(1.1))];
    let there = Record::of("b:1".into(), 9).written(another(), &Addresses::default(), None);
    let live = claims.looked(second, Ok(Some(there)), at(1.2));
    assert!(matches!(live, Liveness::Live(_)));
    assert_eq!(claims.looked(first, Ok(None), at(1.3)), live);
    assert_eq!(claims.known(another(), at(1.4)), Some(live));
}

#[test]
fn what_a_clock_that_jumps_back_makes_young_again_is_not_believed() {
    let mut claims = entered();
    misses(&mut claims, 10.0);
    assert_eq!(claims.known(another(), at(14.9)), Some(Liveness::Unknown));
    assert_eq!(claims.known(another(), at(15.0)), None);
    assert_eq!(claims.known(another(), at(12.0)), None);
    assert_eq!(claims.known(another(), at(12.0)), None, "it stays forgotten");
    // The clock jumps while a look is on its way.
    let look = claims.look(another(), at(40.0));
    claims.looked(look, Ok(None), at(30.0));
    assert_eq!(claims.known(another(), at(34.9)), Some(Liveness::Unknown));
    assert_eq!(claims.known(another(), at(41.0)), None);
    // Whatever is asked first notices the jump.
    misses(&mut claims, 50.0);
    refreshes(&mut claims, 20.0);
    assert_eq!(claims.known(another(), at(51.0)), None);
}
