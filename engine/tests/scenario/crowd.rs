//! Many clients and workers on several cores, in an order that a seed decides: mail late, mailboxes
//! full, cores that begin anew. Whatever happens, a token is taken once, a session is its owner's,
//! and nothing is left.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use ringway::net::{ConnId, End};
use ringway_proto::h2::{ErrorCode, HeadKind};

use crate::machine::{Machine, Socket, Tunnel};
use crate::peer::{Peer, Seen, Work, poll_request, read_work};

struct Crowd {
    m: Machine,
    rng: ChaCha8Rng,
    clients: Vec<(u16, Peer)>,
    pollers: Vec<(u16, ConnId)>,
    works: Vec<Work>,
    sockets: Vec<(Socket, Work)>,
    tunnels: Vec<(Tunnel, Work, usize)>,
    ids: Vec<String>,
    taken: HashSet<String>,
    answered: usize,
}

impl Crowd {
    fn new(seed: u64, cores: u16) -> Self {
        Self {
            m: Machine::with(cores, "[limits]\noutbox = 64\nwork_queue = 4\npolls = 6\n"),
            rng: ChaCha8Rng::seed_from_u64(seed),
            clients: Vec::new(),
            pollers: Vec::new(),
            works: Vec::new(),
            sockets: Vec::new(),
            tunnels: Vec::new(),
            ids: Vec::new(),
            taken: HashSet::new(),
            answered: 0,
        }
    }

    fn below(&mut self, n: usize) -> usize {
        (self.rng.next_u32() as usize) % n.max(1)
    }

    fn core(&mut self) -> u16 {
        let cores = usize::from(self.m.cores());
        self.below(cores) as u16
    }

    fn end(&mut self) -> End {
        [End::Fin, End::Reset, End::Timeout][self.below(3)]
    }

    fn step(&mut self) {
        match self.below(40) {
            0..4 => self.join(),
            4..8 => self.call(),
            8..14 => self.ask(),
            14..19 => self.dial(),
            19..23 => self.serve(),
            23 => self.leave(),
            24 => self.hang_up(),
            25..37 => self.mail(),
            37 => self.full(),
            38 => {
                let millis = [1, 5, 300, 11_000][self.below(4)];
                self.m.collect();
                for core in 0..self.m.cores() {
                    self.m.at(core).pass(Duration::from_millis(millis));
                }
            }
            _ => self.restart(),
        }
        self.look();
    }

    fn join(&mut self) {
        let core = self.core();
        let client = Peer::client(self.m.at(core));
        self.clients.push((core, client));
        let last = self.clients.len() - 1;
        self.call_by(last);
    }

    fn call(&mut self) {
        if !self.clients.is_empty() {
            let at = self.below(self.clients.len());
            self.call_by(at);
        }
    }

    fn call_by(&mut self, at: usize) {
        let key = ["Bearer dev-key", "Bearer dev-key-2", "Bearer other-key"][self.below(3)];
        let mut fields = vec![("authorization", key)];
        let named = self.below(self.ids.len() * 2 + 1);
        let id = self.ids.get(named).cloned();
        if let Some(id) = &id {
            fields.push(("nvcf-reqid", id));
        }
        if self.below(3) == 0 {
            fields.push(("function-version-id", ""));
        }
        let cancels = self.below(6) == 0;
        let (core, client) = &mut self.clients[at];
        let world = self.m.at(*core);
        if world.is_closed(client.conn) {
            return;
        }
        let call = client.request(world, &fields, true);
        if cancels {
            client.reset(world, call, ErrorCode::Cancel);
        }
    }

    /// A worker asks for work, on a fresh connection or once more on one it has.
    fn ask(&mut self) {
        let held: Vec<String> = self.ids.iter().rev().take(3).cloned().collect();
        let held: Vec<&str> = held.iter().map(String::as_str).collect();
        if self.pollers.is_empty() || self.below(2) == 0 {
            let core = self.core();
            let conn = self.m.poller(core, &held);
            self.pollers.push((core, conn));
        } else {
            let at = self.below(self.pollers.len());
            let (core, conn) = self.pollers[at];
            self.m.at(core).send(conn, poll_request(&held).as_bytes());
        }
    }

    fn dial(&mut self) {
        if !self.works.is_empty() {
            let at = self.below(self.works.len());
            let work = self.works[at].clone();
            let core = self.core();
            self.m.at(core).hold = self.below(3) == 0;
            let socket = self.m.knock(core, &work);
            self.sockets.push((socket, work));
        }
    }

    fn serve(&mut self) {
        for (tunnel, work, served) in &mut self.tunnels {
            let world = self.m.at(tunnel.core);
            if world.is_closed(tunnel.peer.conn) {
                continue;
            }
            tunnel.peer.sync(world);
            let heads = requests(&tunnel.peer);
            for fields in &heads[*served..] {
                let tenant =
                    if fields["authorization"] == "Bearer other-key" { "other" } else { "dev" };
                assert_eq!((tenant, &fields["nvcf-reqid"]), (&*work.tenant, &work.request_id));
            }
            for n in *served..heads.len() {
                let key = tunnel.peer.key(n);
                tunnel.peer.head(world, key, &[(":status", "200")], true);
            }
            *served = heads.len();
        }
    }

    fn leave(&mut self) {
        if !self.clients.is_empty() {
            let at = self.below(self.clients.len());
            let (core, client) = self.clients.swap_remove(at);
            let end = self.end();
            self.m.at(core).end(client.conn, end);
        }
    }

    /// Something of a worker ends.
    fn hang_up(&mut self) {
        let end = self.end();
        if !self.pollers.is_empty() && self.below(2) == 0 {
            let at = self.below(self.pollers.len());
            let (core, conn) = self.pollers.swap_remove(at);
            self.m.at(core).end(conn, end);
        } else if !self.tunnels.is_empty() {
            let at = self.below(self.tunnels.len());
            let (tunnel, ..) = self.tunnels.swap_remove(at);
            self.m.at(tunnel.core).end(tunnel.peer.conn, end);
        }
    }

    fn mail(&mut self) {
        for _ in 0..self.below(24) {
            let (from, to) = (self.core(), self.core());
            self.m.deliver_next(from, to);
        }
        let core = self.core();
        if self.m.at(core).hold && self.below(2) == 0 {
            self.m.at(core).hold = false;
            self.m.at(core).hand_over();
        }
    }

    fn full(&mut self) {
        let core = self.core();
        if self.m.full.contains(&core) {
            self.m.full.clear();
        } else if self.below(3) == 0 {
            self.m.full.push(core);
        }
    }

    fn restart(&mut self) {
        if self.below(6) != 0 {
            return;
        }
        let core = self.core();
        self.m.restart(core);
        self.clients.retain(|(at, _)| *at != core);
        self.pollers.retain(|(at, _)| *at != core);
        self.tunnels.retain(|(tunnel, ..)| tunnel.core != core);
    }

    /// Reads what all peers were sent.
    fn look(&mut self) {
        for (core, conn) in &self.pollers {
            let answers = self.m.at(*core).take(*conn);
            let text = String::from_utf8_lossy(&answers);
            for part in text.split("HTTP/1.1 ").filter(|part| part.starts_with("200")) {
                self.works.extend(read_work(format!("HTTP/1.1 {part}").as_bytes()));
            }
        }
        for (socket, work) in std::mem::take(&mut self.sockets) {
            match self.m.heard(socket) {
                None => self.sockets.push((socket, work)),
                Some(Ok(tunnel)) => {
                    assert!(self.taken.insert(work.token.clone()), "a token was taken twice");
                    self.tunnels.push((tunnel, work, 0));
                }
                Some(Err(code)) => assert!([403, 503].contains(&code), "{code}"),
            }
        }
        for (core, client) in &mut self.clients {
            client.sync(self.m.at(*core));
            for seen in std::mem::take(&mut client.seen) {
                let Seen::Head { fields, .. } = seen else { continue };
                let fields: HashMap<String, String> = fields.into_iter().collect();
                if let Some(id) = fields.get("nvcf-reqid") {
                    self.answered += 1;
                    self.ids.retain(|known| known != id);
                    self.ids.push(id.clone());
                }
            }
        }
    }

    /// All leave.
    fn over(mut self) -> (usize, usize) {
        self.m.full.clear();
        for core in 0..self.m.cores() {
            self.m.at(core).hold = false;
            self.m.at(core).hand_over();
        }
        self.m.deliver();
        self.serve();
        self.look();
        for (core, client) in &self.clients {
            self.m.at(*core).end(client.conn, End::Fin);
        }
        for (core, conn) in &self.pollers {
            self.m.at(*core).end(*conn, End::Fin);
        }
        self.m.assert_empty();
        (self.answered, self.taken.len())
    }
}

/// The request heads a worker has seen.
fn requests(worker: &Peer) -> Vec<HashMap<String, String>> {
    let request = |seen: &Seen| match seen {
        Seen::Head { kind: HeadKind::Request, fields, .. } => {
            Some(fields.iter().cloned().collect())
        }
        _ => None,
    };
    worker.seen.iter().filter_map(request).collect()
}

#[test]
fn a_crowd_on_several_cores_is_served_and_leaves_nothing() {
    let (mut answered, mut taken) = (0, 0);
    let seeds = std::env::var("CROWD_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    for seed in 0..seeds {
        let mut crowd = Crowd::new(seed, 2 + (seed % 3) as u16);
        // Should it panic, this is said with it.
        println!("seed {seed}");
        for _ in 0..250 {
            crowd.step();
        }
        let (more, tokens) = crowd.over();
        answered += more;
        taken += tokens;
    }
    assert!(answered > 5 * seeds as usize && taken > 3 * seeds as usize, "{answered} {taken}");
}
