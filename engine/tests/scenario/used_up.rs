//! A tunnel that can carry no other client's requests: how long it stays until its spare is there,
//! and beside that.

use std::time::Duration;

use ringway::message::ShardMessage;
use ringway::metrics::SpareOutcome::{Asked, Came, Failed};
use ringway::net::{ConnId, Core, End, Listener};

use crate::http1::{Rig, request, text};
use crate::parking::snapshot;
use crate::peer::poll;
use crate::spares::{
    ENDS, LAST_WORD, all_is_over, connect, is_paused, leave, opened, outcomes, served_by, settles,
    spare,
};
use crate::world::{SETTLES, World};

#[test]
fn a_lost_clients_tunnel_is_kept_until_the_spare_is_there() {
    for end in ENDS {
        let mut rig = opened(World::new());
        let used = rig.tunnel.expect("a tunnel");
        rig.ask("last");
        rig.world.end(rig.client, end);
        rig.world.pass(LAST_WORD);
        assert!(rig.world.is_closed(rig.client), "{end:?}");
        assert_eq!(rig.at_worker(), "last");
        // The used tunnel's bytes are for nobody any more. The tunnel is still read, up to a limit,
        // because its end must be seen.
        rig.answer("for nobody");
        assert!(!rig.world.is_closed(used) && !is_paused(&rig.world, used));
        rig.world.pass(Duration::from_secs(29));
        assert!(!rig.world.is_closed(used));
        let id = rig.id.clone();
        let spare = spare(&mut rig.world, &id);
        settles(&mut rig.world, used, spare);
        served_by(&mut rig, spare);
        leave(&mut rig);
    }
}

/// A worker counts a tunnel when it reads our answer to its CONNECT, and ends the session with the
/// last one that it counts.
#[test]
fn a_used_up_tunnel_outlasts_the_answer_on_its_spare() {
    for lost_first in [false, true] {
        let mut rig = opened(World::new());
        let (used, id) = (rig.tunnel.expect("a tunnel"), rig.id.clone());
        if lost_first {
            rig.world.end(rig.client, End::Reset);
        }
        let work = poll(&mut rig.world, &[&id]).expect("a spare is asked for");
        let spare = connect(&mut rig.world, &work);
        let came = rig.world.net.now;
        if !lost_first {
            rig.world.pass(Duration::from_millis(400));
            rig.world.end(rig.client, End::Reset);
        }
        // The answer is on its way: an end that overtook it would be the session's.
        assert!(!rig.world.is_closed(used), "{lost_first}");
        assert_eq!(text(&rig.world.take(spare)), "HTTP/1.1 200 OK\r\n\r\n");
        assert_eq!(snapshot(&mut rig.world).metrics.resumes.parked, 1, "the spare, and only it");
        let nearly = came + (SETTLES - Duration::from_millis(1));
        rig.world.pass(nearly - rig.world.net.now);
        assert!(!rig.world.is_closed(used), "{lost_first}");
        rig.world.pass(Duration::from_millis(1));
        assert!(rig.world.is_closed(used) && !rig.world.is_closed(spare), "{lost_first}");
        served_by(&mut rig, spare);
        leave(&mut rig);
    }
}

/// Whoever comes back in that moment has the spare, and nobody has the used-up tunnel.
#[test]
fn a_client_comes_back_while_the_used_up_tunnel_is_still_there() {
    let mut rig = opened(World::new());
    let (used, id) = (rig.tunnel.expect("a tunnel"), rig.id.clone());
    rig.world.end(rig.client, End::Reset);
    let spare = spare(&mut rig.world, &id);
    served_by(&mut rig, spare);
    let second = rig.world.connect(Listener::Client);
    let asked = request("GET /second HTTP/1.1", &format!("nvcf-reqid: {id}\r\n"), "");
    rig.world.send(second, asked.as_bytes());
    let work = poll(&mut rig.world, &[&id]).expect("a tunnel of its own");
    let own = connect(&mut rig.world, &work);
    assert!(text(&rig.world.take(own)).contains("GET /second "));
    rig.world.send(own, b"HTTP/1.1 204 No Content\r\n\r\n");
    settles(&mut rig.world, used, spare);
    assert!(!rig.world.is_closed(own));
    rig.world.end(second, End::Fin);
    leave(&mut rig);
}

/// An event that ends the session in that moment closes both tunnels at once.
#[test]
fn a_used_up_tunnel_ends_with_its_spare() {
    type Act = fn(&mut Rig, ConnId);
    let acts: [(&str, Act); 4] = [
        ("its client comes back and leaves", |rig, spare| {
            served_by(rig, spare);
            rig.world.end(rig.client, End::Fin);
        }),
        ("the worker ends it", |rig, spare| rig.world.end(spare, End::Fin)),
        ("an operator ends the session", |rig, _| {
            let id = rig.id.parse().expect("an id");
            rig.world.deliver(ShardMessage::End { id });
        }),
        ("the gateway drains", |rig, _| {
            rig.world.deliver(ShardMessage::Drain { max: Duration::from_secs(60) });
            assert!(rig.world.shard.finished());
        }),
    ];
    for (what, act) in acts {
        let mut rig = opened(World::new());
        let (used, id) = (rig.tunnel.expect("a tunnel"), rig.id.clone());
        rig.world.end(rig.client, End::Reset);
        let spare = spare(&mut rig.world, &id);
        assert!(!rig.world.is_closed(used));
        act(&mut rig, spare);
        assert!(rig.world.is_closed(used) && rig.world.is_closed(spare), "{what}");
        all_is_over(&mut rig.world);
    }
}

#[test]
fn a_spare_that_never_comes_is_not_waited_for_longer_than_any_worker() {
    let mut rig = opened(World::new());
    let used = rig.tunnel.expect("a tunnel");
    rig.world.pass(Duration::from_secs(20));
    rig.world.end(rig.client, End::Reset);
    rig.world.pass(Duration::from_millis(9_900));
    assert!(!rig.world.is_closed(used));
    rig.world.pass(Duration::from_millis(200));
    assert!(rig.world.is_closed(used));
    assert_eq!(outcomes(&rig.world, [Asked, Came, Failed]), [1, 0, 1]);
    all_is_over(&mut rig.world);
}

#[test]
fn a_lost_clients_tunnel_may_say_so_much_and_is_then_not_read() {
    let mut rig = opened(World::new());
    let used = rig.tunnel.expect("a tunnel");
    rig.world.end(rig.client, End::Reset);
    let piece = [7; 32 * 1024];
    for _ in 0..32 {
        assert!(!is_paused(&rig.world, used));
        rig.world.send(used, &piece);
    }
    rig.world.send(used, &piece);
    assert!(is_paused(&rig.world, used) && !rig.world.is_closed(used));
    let id = rig.id.clone();
    let spare = spare(&mut rig.world, &id);
    served_by(&mut rig, spare);
    leave(&mut rig);
}
