//! Messages between cores that cross what happens on the core they are for: every order in which
//! they can arrive is tried.

use std::time::Duration;

use ringway::net::{ConnId, End, Listener};

use crate::cores::{UNKEPT, attached, dispatch_home, none_of, serve};
use crate::machine::{Machine, Tunnel};
use crate::peer::{Peer, Work, poll_request, read_work};

/// More orders than any of these tests has.
const MOST_ORDERS: usize = 20_000;
/// Longer than work whose answer may be lost is waited for.
const BEYOND_DOUBT: Duration = Duration::from_secs(6);

/// Choices, so that all of them are made in turn.
#[derive(Default)]
struct Orders {
    /// Each choice made, and of how many.
    made: Vec<(usize, usize)>,
    at: usize,
}

impl Orders {
    /// Runs once for each way to choose; how many there were.
    fn all(mut run: impl FnMut(&mut Self)) -> usize {
        let mut orders = Self::default();
        for n in 1..=MOST_ORDERS {
            orders.at = 0;
            run(&mut orders);
            while orders.made.last().is_some_and(|(choice, of)| choice + 1 == *of) {
                orders.made.pop();
            }
            let Some((choice, _)) = orders.made.last_mut() else { return n };
            *choice += 1;
        }
        panic!("more than {MOST_ORDERS} orders");
    }

    fn pick(&mut self, of: usize) -> usize {
        if self.at == self.made.len() {
            self.made.push((0, of));
        }
        let (choice, known) = self.made[self.at];
        assert_eq!(known, of, "the same choices lead to the same place");
        self.at += 1;
        choice
    }

    /// Takes `steps` in their order, and lets mail arrive between them, before and behind.
    fn mix(&mut self, m: &mut Machine, steps: &mut [&mut dyn FnMut(&mut Machine)]) {
        let mut next = 0;
        loop {
            let mail = m.mail();
            let step = usize::from(next < steps.len());
            if mail.len() + step == 0 {
                return;
            }
            let choice = if mail.len() + step > 1 { self.pick(mail.len() + step) } else { 0 };
            if choice < mail.len() {
                let (from, to) = mail[choice];
                assert!(m.deliver_next(from, to));
            } else {
                steps[next](m);
                next += 1;
            }
        }
    }
}

/// A worker's connection for polls, as its worker knows it.
struct PollConn {
    core: u16,
    conn: ConnId,
    /// Polls whose answers are still to come.
    open: usize,
    input: Vec<u8>,
}

impl PollConn {
    fn new(m: &mut Machine, core: u16) -> Self {
        let conn = m.at(core).connect(Listener::Worker);
        Self { core, conn, open: 0, input: Vec::new() }
    }

    fn poll(&mut self, m: &mut Machine) {
        m.at(self.core).send(self.conn, poll_request(&[]).as_bytes());
        self.open += 1;
    }

    /// The work of all answers so far.
    fn works(&mut self, m: &mut Machine) -> Vec<Work> {
        self.input.extend(m.at(self.core).take(self.conn));
        let mut works = Vec::new();
        while let Some(end) = self.input.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&self.input[..end]).into_owned();
            let length = head.split("content-length: ").nth(1);
            let length = length.and_then(|rest| rest.split("\r\n").next()?.parse::<usize>().ok());
            let rest = self.input.split_off(end + 4 + length.unwrap_or(0));
            let answer = std::mem::replace(&mut self.input, rest);
            self.open -= 1;
            if length.is_some_and(|length| length > 0) {
                works.extend(read_work(&answer));
            }
        }
        works
    }
}

/// Core of the clients, core of the worker, and where their work meets: all three apart, and each
/// two of them together.
fn placements(m: &mut Machine) -> [(u16, u16); 4] {
    let home = dispatch_home(m);
    let other = none_of(m, &[home]);
    let third = none_of(m, &[home, other]);
    [(other, third), (other, other), (home, other), (other, home)]
}

/// A worker polls anew on its connection while the work of its earlier poll is on its way.
#[test]
fn a_poll_that_crosses_an_answer_is_not_forgotten() {
    for placement in 0..4 {
        let orders = Orders::all(|orders| {
            let mut m = Machine::with(3, UNKEPT);
            let (at, of_worker) = placements(&mut m)[placement];
            let mut clients = [Peer::client(m.at(at)), Peer::client(m.at(at))];
            let [one, two] = &mut clients;
            let mut conn = PollConn::new(&mut m, of_worker);
            conn.poll(&mut m);
            m.deliver();
            orders.mix(
                &mut m,
                &mut [
                    &mut |m| {
                        one.request(m.at(at), &[], true);
                    },
                    &mut |m| conn.poll(m),
                    &mut |m| {
                        two.request(m.at(at), &[], true);
                    },
                ],
            );
            let mut works = Vec::new();
            while works.len() < 2 {
                let came = conn.works(&mut m);
                assert!(!came.is_empty() || conn.open == 0, "a poll is open, and work waits");
                works.extend(came);
                if conn.open == 0 {
                    conn.poll(&mut m);
                    m.deliver();
                }
            }
            assert_ne!(works[0].request_id, works[1].request_id);
            for work in &works {
                m.dial(of_worker, work);
            }
            for client in &clients {
                m.at(at).end(client.conn, End::Fin);
            }
            m.at(of_worker).end(conn.conn, End::Fin);
            m.assert_empty();
        });
        // Where the worker is at the home of its polls, only the clients' work travels.
        assert!(orders >= 3, "placement {placement}: {orders} orders");
    }
}

/// A worker's connection ends, or goes on with something else, while work is on its way to it:
/// another worker gets it. What it has read itself it dials back for.
#[test]
fn work_is_not_lost_with_the_connection_that_it_was_on_its_way_to() {
    let goes = [End::Fin, End::Reset].map(Some).into_iter().chain([None]);
    for (placement, end) in
        (0..4).flat_map(|placement| goes.clone().map(move |end| (placement, end)))
    {
        Orders::all(|orders| {
            let mut m = Machine::with(3, UNKEPT);
            let (at, of_worker) = placements(&mut m)[placement];
            let mut client = Peer::client(m.at(at));
            let mut conn = PollConn::new(&mut m, of_worker);
            conn.poll(&mut m);
            m.deliver();
            orders.mix(
                &mut m,
                &mut [
                    &mut |m| {
                        client.request(m.at(at), &[], true);
                    },
                    &mut |m| match end {
                        Some(end) => m.at(of_worker).end(conn.conn, end),
                        None => {
                            conn.open += 1;
                            let health = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n";
                            m.at(of_worker).send(conn.conn, health);
                        }
                    },
                ],
            );
            let read = end.is_none().then(|| conn.works(&mut m).pop()).flatten();
            let mut other = PollConn::new(&mut m, at);
            other.poll(&mut m);
            m.deliver();
            m.pass(BEYOND_DOUBT);
            let work = read.or_else(|| other.works(&mut m).pop()).expect("somebody gets the work");
            let mut tunnel = m.dial(at, &work);
            serve(&mut m, &mut tunnel, 0);
            client.sync(m.at(at));
            assert_eq!(client.field(0, ":status"), Some("200"));
            m.at(at).end(client.conn, End::Fin);
            m.assert_empty();
        });
    }
}

/// A worker that has dialled back is not asked again, whatever became of its poll's connection.
#[test]
fn work_that_was_done_is_not_handed_out_again() {
    for placement in 0..4 {
        Orders::all(|orders| {
            let mut m = Machine::with(3, UNKEPT);
            let (at, of_worker) = placements(&mut m)[placement];
            let mut client = Peer::client(m.at(at));
            let mut conn = PollConn::new(&mut m, of_worker);
            client.request(m.at(at), &[], true);
            conn.poll(&mut m);
            m.deliver();
            let work = conn.works(&mut m).pop().expect("work");
            let mut socket = None;
            orders.mix(
                &mut m,
                &mut [&mut |m| m.at(of_worker).end(conn.conn, End::Fin), &mut |m| {
                    socket = Some(m.knock(of_worker, &work))
                }],
            );
            assert!(m.answer(socket.expect("a CONNECT")).is_ok());
            let mut other = PollConn::new(&mut m, at);
            other.poll(&mut m);
            m.pass(BEYOND_DOUBT);
            assert!(other.works(&mut m).is_empty() && other.open == 1);
            m.at(at).end(other.conn, End::Fin);
            m.at(at).end(client.conn, End::Fin);
            m.assert_empty();
        });
    }
}

/// A client leaves at any moment between its request and its tunnel. Other cores are asked for the
/// tunnel. Nothing stays behind: the worker's CONNECT is refused, or its tunnel closes.
#[test]
fn a_client_may_leave_while_its_tunnel_is_asked_for() {
    for (placement, end) in
        (0..4).flat_map(|placement| [(placement, End::Fin), (placement, End::Reset)])
    {
        let (mut in_time, mut too_late) = (0, 0);
        Orders::all(|orders| {
            let mut m = Machine::with(3, UNKEPT);
            let (at, of_worker) = placements(&mut m)[placement];
            let mut client = Peer::client(m.at(at));
            let mut conn = PollConn::new(&mut m, of_worker);
            conn.poll(&mut m);
            m.deliver();
            client.request(m.at(at), &[], true);
            let mut socket = None;
            let mut dial = |m: &mut Machine| {
                if let (None, Some(work)) = (socket, conn.works(m).pop()) {
                    socket = Some(m.knock(of_worker, &work));
                }
            };
            let (mut early, leaves) = (orders.pick(2) == 0, client.conn);
            orders.mix(
                &mut m,
                &mut [&mut |m| {
                    if early {
                        m.at(at).end(leaves, end);
                    }
                }],
            );
            dial(&mut m);
            orders.mix(
                &mut m,
                &mut [&mut |m| {
                    if !std::mem::replace(&mut early, true) {
                        m.at(at).end(leaves, end);
                    }
                }],
            );
            match socket.map(|socket| m.answer(socket)) {
                Some(Ok(tunnel)) => {
                    assert!(m.at(tunnel.core).is_closed(tunnel.peer.conn), "kept for nobody");
                    in_time += 1;
                }
                Some(Err(code)) => {
                    assert_eq!(code, 403);
                    too_late += 1;
                }
                None => {}
            }
            m.at(of_worker).end(conn.conn, End::Fin);
            m.assert_empty();
        });
        assert!(in_time > 0 && too_late > 0, "{placement} {end:?}: {in_time}, {too_late}");
    }
}

/// A session of home `home` whose only tunnel is parked on `core`.
fn parked(m: &mut Machine, home: u16, core: u16) -> (Tunnel, String) {
    let (first, tunnel, id) = attached(m, home);
    if core == home {
        m.at(home).end(first.conn, End::Reset);
        m.deliver();
        return (tunnel, id);
    }
    let mut second = Peer::client(m.at(core));
    second.request(m.at(core), &[("nvcf-reqid", &id)], true);
    m.deliver();
    let work = m.poll(core, &[&id]).expect("one more tunnel");
    let mut tunnel = m.dial(core, &work);
    serve(m, &mut tunnel, 0);
    for (core, conn) in [(home, first.conn), (core, second.conn)] {
        m.at(core).end(conn, End::Reset);
        m.deliver();
    }
    (tunnel, id)
}

/// A client comes back and leaves again at any moment while its session's tunnel is asked for on
/// another core, and then a second one asks: the session lives, and its worker keeps the one
/// tunnel it has.
#[test]
fn a_client_that_leaves_again_takes_no_session_along() {
    // Where the session has its home, where its tunnel is, where the two clients come.
    let places = [
        (0, 1, 2, 0, End::Reset),
        (0, 1, 0, 2, End::Reset),
        (0, 0, 1, 1, End::Reset),
        (0, 1, 2, 1, End::Fin),
    ];
    for (home, core, at, second, end) in places {
        Orders::all(|orders| {
            let mut m = Machine::new(3);
            let (tunnel, id) = parked(&mut m, home, core);
            let socket = m.at(tunnel.core).socket(tunnel.peer.conn);
            let mut client = Peer::client(m.at(at));
            let mut other = Peer::client(m.at(second));
            let leaves = client.conn;
            client.request(m.at(at), &[("nvcf-reqid", &id)], true);
            let mut asks = |m: &mut Machine| {
                other.request(m.at(second), &[("nvcf-reqid", &id)], true);
            };
            orders.mix(&mut m, &mut [&mut |m| m.at(at).end(leaves, end)]);
            asks(&mut m);
            m.deliver();
            other.sync(m.at(second));
            assert!(other.heads().is_empty(), "refused: {:?}", other.heads());
            m.at(second).end(other.conn, End::Reset);
            m.deliver();
            let there = (0..3).find_map(|core| Some((core, m.at(core).conn_of(socket)?)));
            let (core, conn) = there.expect("the tunnel is somewhere");
            assert!(!m.at(core).is_closed(conn), "the session's tunnel was closed");
            let shown = m.sessions();
            assert_eq!((shown.len(), shown[0].state), (1, "parked"));
            let mut last = Peer::client(m.at(at));
            last.request(m.at(at), &[("nvcf-reqid", &id)], true);
            m.deliver();
            let (core, conn) = (0..3)
                .find_map(|core| Some((core, m.at(core).conn_of(socket)?)))
                .expect("the tunnel is somewhere");
            assert!(core == at && !m.at(core).is_closed(conn));
            assert_eq!(m.sessions()[0].state, "active");
            m.at(at).end(last.conn, End::Fin);
            m.assert_empty();
        });
    }
}
