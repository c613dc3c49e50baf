//! Whose end a WebSocket is: whether its function has finished it or its client was lost, and what
//! becomes of its spare.

use std::time::Duration;

use ringway::metrics::SpareOutcome::{Failed, Unused};
use ringway::net::{ConnId, Core, End};

use crate::http1::{Rig, text};
use crate::peer::{Work, poll};
use crate::spares::{
    LAST_WORD, all_is_over, attached, connect, leave, opened, opened_by, outcomes, served_by,
    settles, spare,
};
use crate::world::World;

const STREAMING: &str = "kind = \"streaming\"";

/// How far a spare has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spare {
    Queued,
    HandedOut,
    There,
}

/// An open WebSocket whose function's side closes it behind its last bytes, as a server does at the
/// end of a Close handshake; the spare's work, or its tunnel.
fn finished(more: &str, spare: Spare) -> (Rig, Option<Work>, Option<ConnId>) {
    let mut rig = opened(World::with(more));
    let (used, id) = (rig.tunnel.expect("a tunnel"), rig.id.clone());
    let work = (spare != Spare::Queued).then(|| poll(&mut rig.world, &[&id]).expect("a spare"));
    let there = work.as_ref().filter(|_| spare == Spare::There);
    let there = there.map(|work| connect(&mut rig.world, work));
    rig.answer("bye");
    rig.world.end(used, End::Fin);
    assert_eq!(rig.at_client(), "bye");
    // The client may show for a moment that it had left before.
    rig.world.pass(LAST_WORD);
    assert!(rig.world.is_closed(rig.client));
    (rig, work, there)
}

#[test]
fn a_websocket_that_its_function_finished_frees_the_worker_at_once() {
    for park in ["auto", "unclean", "never"] {
        for spare in [Spare::Queued, Spare::HandedOut, Spare::There] {
            if park == "never" && spare != Spare::Queued {
                continue;
            }
            let more = format!("[session]\npark = \"{park}\"");
            let (mut rig, work, there) = finished(&more, spare);
            assert!(rig.tunnel_is_closed());
            assert!(there.is_none_or(|there| rig.world.is_closed(there)), "{park} {spare:?}");
            all_is_over(&mut rig.world);
            assert_eq!(outcomes(&rig.world, [Unused]), [u64::from(park != "never")]);
            if let (Some(work), None) = (work, there) {
                let late = connect(&mut rig.world, &work);
                assert!(text(&rig.world.take(late)).starts_with("HTTP/1.1 403 "));
            }
        }
    }
}

/// Nobody knows then which side was first. The function did not hear that its client had gone.
#[test]
fn a_websocket_that_both_end_in_one_turn_was_finished() {
    for client_first in [false, true] {
        let mut rig = opened(World::new());
        let used = rig.tunnel.expect("a tunnel");
        let ends = if client_first { [rig.client, used] } else { [used, rig.client] };
        for conn in ends {
            rig.world.shard.ended(&mut rig.world.net, conn, End::Fin);
        }
        all_is_over(&mut rig.world);
        assert!(rig.world.is_closed(used) && rig.world.is_closed(rig.client));
        assert_eq!(outcomes(&rig.world, [Unused]), [1]);
    }
}

/// A browser that loads its page again: its Close is answered before its own end is seen, and it
/// reads nothing more. The worker is kept for it.
#[test]
fn a_client_that_left_without_the_answer_to_its_close_was_lost() {
    for by_reset in [false, true] {
        for spare_there in [false, true] {
            let mut rig = opened(World::new());
            let (used, id) = (rig.tunnel.expect("a tunnel"), rig.id.clone());
            let there = spare_there.then(|| spare(&mut rig.world, &id));
            assert!(rig.world.net.asks_delivery(rig.client));
            rig.answer("bye");
            rig.world.end(used, End::Fin);
            assert!(!rig.world.is_closed(used) && !rig.world.is_closed(rig.client));
            rig.world.pass(Duration::from_millis(10));
            if by_reset {
                rig.world.end(rig.client, End::Reset);
            } else {
                rig.world.net.cut_delivery(rig.client);
                rig.world.end(rig.client, End::Fin);
            }
            assert!(rig.world.is_closed(rig.client));
            let there = there.unwrap_or_else(|| spare(&mut rig.world, &id));
            settles(&mut rig.world, used, there);
            served_by(&mut rig, there);
            leave(&mut rig);
        }
    }
}

/// Some clients close behind the answer to their Close, and do not wait for the server to do so:
/// which FIN comes first is chance.
#[test]
fn a_client_that_left_with_the_answer_to_its_close_was_not_lost() {
    for client_first in [false, true] {
        let mut rig = opened(World::new());
        let used = rig.tunnel.expect("a tunnel");
        rig.answer("bye");
        assert_eq!(rig.at_client(), "bye");
        let ends = if client_first { [rig.client, used] } else { [used, rig.client] };
        for conn in ends {
            rig.world.end(conn, End::Fin);
        }
        assert!(rig.world.is_closed(used));
        all_is_over(&mut rig.world);
        assert_eq!(outcomes(&rig.world, [Unused]), [1]);
    }
}

/// A browser says by its Close that its page is left, whatever its kernel, or a balancer in its
/// place, has acknowledged by then. Other programs send the same Close when they have finished.
#[test]
fn a_page_that_says_it_leaves_has_left() {
    // Status 1001 under a mask of zeros.
    const CLOSE: [u8; 8] = [0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe9];
    for (more, keeps) in [("Origin: http://a.page\r\n", true), ("", false)] {
        for client_first in [false, true] {
            let mut rig = opened_by(World::new(), more);
            let (used, id) = (rig.tunnel.expect("a tunnel"), rig.id.clone());
            let spare = spare(&mut rig.world, &id);
            rig.world.send(rig.client, b"what was said before");
            rig.world.send(rig.client, &CLOSE);
            rig.answer("bye");
            assert_eq!(rig.at_client(), "bye");
            let ends = if client_first { [rig.client, used] } else { [used, rig.client] };
            for conn in ends {
                if !rig.world.is_closed(conn) {
                    rig.world.end(conn, End::Fin);
                }
            }
            assert!(rig.world.is_closed(rig.client));
            assert_eq!(!rig.world.is_closed(spare), keeps, "{more} {client_first}");
            if keeps {
                settles(&mut rig.world, used, spare);
                served_by(&mut rig, spare);
                leave(&mut rig);
            } else {
                assert!(rig.world.is_closed(used));
                all_is_over(&mut rig.world);
            }
        }
    }
}

/// The function answers a Close whose sender is gone: it finished, and not with that client.
#[test]
fn a_client_that_left_before_the_answer_to_its_close_was_lost() {
    let mut rig = opened(World::new());
    let (used, id) = (rig.tunnel.expect("a tunnel"), rig.id.clone());
    let spare = spare(&mut rig.world, &id);
    rig.world.end(rig.client, End::Fin);
    rig.answer("bye");
    rig.world.end(used, End::Fin);
    settles(&mut rig.world, used, spare);
    served_by(&mut rig, spare);
    leave(&mut rig);
}

/// Streaming functions and `park = "always"` keep the session after any end.
#[test]
fn a_websocket_that_its_function_finished_can_leave_the_spare() {
    for more in [STREAMING, "[session]\npark = \"always\""] {
        for spare in [Spare::HandedOut, Spare::There] {
            let (mut rig, work, there) = finished(more, spare);
            let work = work.expect("work");
            let there = there.unwrap_or_else(|| connect(&mut rig.world, &work));
            assert_eq!(text(&rig.world.take(there)), "HTTP/1.1 200 OK\r\n\r\n");
            let used = rig.tunnel.expect("a tunnel");
            settles(&mut rig.world, used, there);
            served_by(&mut rig, there);
            rig.world.end(rig.client, End::Fin);
            rig.world.pass(Duration::from_secs(31));
            all_is_over(&mut rig.world);
        }
    }
}

/// The worker counts a tunnel as the session's until both sides have closed it: so it has a moment
/// in which to take the spare up, although it was the first to close.
#[test]
fn a_spare_that_nobody_took_up_has_a_last_chance() {
    for finished_first in [false, true] {
        for taken in [false, true] {
            let (mut rig, used) = if finished_first {
                let rig = finished(STREAMING, Spare::Queued).0;
                let used = rig.tunnel.expect("a tunnel");
                (rig, used)
            } else {
                // A reload: the function answers the browser's Close, and nobody is there.
                let mut rig = opened(World::new());
                let used = rig.tunnel.expect("a tunnel");
                rig.world.end(rig.client, End::Fin);
                rig.answer("bye");
                rig.world.end(used, End::Fin);
                (rig, used)
            };
            rig.world.pass(Duration::from_millis(900));
            assert!(!rig.world.is_closed(used));
            if taken {
                let id = rig.id.clone();
                let spare = spare(&mut rig.world, &id);
                settles(&mut rig.world, used, spare);
                served_by(&mut rig, spare);
                rig.world.end(rig.client, End::Fin);
                rig.world.pass(Duration::from_secs(31));
            } else {
                rig.world.pass(Duration::from_millis(200));
                assert!(rig.world.is_closed(used));
                assert!(poll(&mut rig.world, &[&rig.id]).is_none());
                assert_eq!(outcomes(&rig.world, [Failed]), [1]);
            }
            all_is_over(&mut rig.world);
        }
    }
}

/// A worker that is lost has lost its sessions with it: nobody waits for what it was asked.
#[test]
fn a_spare_that_nobody_took_up_goes_with_its_worker() {
    for end in [End::Reset, End::Timeout, End::Failed] {
        for lost in [false, true] {
            let mut rig = opened(World::new());
            let used = rig.tunnel.expect("a tunnel");
            if lost {
                rig.world.end(rig.client, End::Reset);
            }
            rig.world.end(used, end);
            all_is_over(&mut rig.world);
            assert_eq!(outcomes(&rig.world, [Failed]), [1], "{end:?} {lost}");
        }
    }
}

/// Its end is nobody's wish: the worker keeps the session if it gave a spare.
#[test]
fn a_websocket_whose_worker_is_lost_leaves_the_spare() {
    for end in [End::Reset, End::Timeout, End::Failed] {
        for early in [false, true] {
            let mut rig = opened(World::new());
            let (used, id) = (rig.tunnel.expect("a tunnel"), rig.id.clone());
            let work = poll(&mut rig.world, &[&id]).expect("a spare is asked for");
            let before = early.then(|| connect(&mut rig.world, &work));
            rig.answer("bye");
            rig.world.end(used, end);
            assert_eq!(rig.at_client(), "bye");
            assert!(rig.world.is_closed(rig.client) && rig.world.is_closed(used));
            let spare = before.unwrap_or_else(|| connect(&mut rig.world, &work));
            assert_eq!(text(&rig.world.take(spare)), "HTTP/1.1 200 OK\r\n\r\n");
            served_by(&mut rig, spare);
            leave(&mut rig);
        }
    }
}

/// Other tunnels of a client whose WebSocket ends are kept as after any unclean end.
#[test]
fn a_websockets_end_is_unclean_for_the_clients_other_tunnels() {
    let mut world = World::new();
    let (client, worker, id) = attached(&mut world);
    world.end(client.conn, End::Reset);
    let mut rig = opened(world);
    assert_ne!(rig.id, id);
    let own = rig.id.clone();
    let spare = spare(&mut rig.world, &own);
    rig.world.end(rig.client, End::Fin);
    assert!(!rig.world.is_closed(worker.conn) && !rig.world.is_closed(spare));
    rig.world.pass(Duration::from_secs(31));
    all_is_over(&mut rig.world);
}
