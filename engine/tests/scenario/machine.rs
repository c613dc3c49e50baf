//! Several cores: a world each, and the mail between them, which moves when a test lets it.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use ringway::control::port::Plane;
use ringway::message::{CoreMessage, SessionRow, ShardMessage};
use ringway::net::{ConnId, Core, End, Listener};
use ringway_proto::h2::Limits;

use crate::peer::{Peer, Work, poll_request, read_work};
use crate::world::{CoreSetup, World};

pub(crate) struct Machine {
    worlds: Vec<World>,
    more: String,
    unanswered: usize,
    lives: Vec<u32>,
    /// Mail on its way, by receiver and sender.
    mail: BTreeMap<(u16, u16), VecDeque<CoreMessage>>,
    /// Cores whose mailbox has no room.
    pub(crate) full: Vec<u16>,
    /// The number of messages sent so far.
    pub(crate) sent: u64,
}

/// A worker's tunnel and the core it is on.
pub(crate) struct Tunnel {
    pub(crate) core: u16,
    pub(crate) peer: Peer,
}

/// A worker's connection, wherever it is.
#[derive(Clone, Copy)]
pub(crate) struct Socket(u64);

impl Machine {
    pub(crate) fn new(cores: u16) -> Self {
        Self::with(cores, "")
    }

    pub(crate) fn with(cores: u16, more: &str) -> Self {
        Self::keeping(cores, more, 0)
    }

    /// Of clients that have no answer yet so many octets are kept.
    pub(crate) fn keeping(cores: u16, more: &str, unanswered: usize) -> Self {
        Self {
            worlds: (0..cores)
                .map(|core| {
                    let plane = Plane::Local;
                    World::on(
                        CoreSetup {
                            core,
                            cores,
                            life: 0,
                            unanswered,
                            plane,
                            dispatch: Plane::Local,
                        },
                        more,
                        |_| {},
                    )
                })
                .collect(),
            more: more.into(),
            unanswered,
            lives: vec![0; usize::from(cores)],
            mail: BTreeMap::new(),
            full: Vec::new(),
            sent: 0,
        }
    }

    pub(crate) fn cores(&self) -> u16 {
        self.worlds.len() as u16
    }

    pub(crate) fn at(&mut self, core: u16) -> &mut World {
        &mut self.worlds[usize::from(core)]
    }

    /// Takes what the shards have to say to each other, as their reactors do each turn.
    pub(crate) fn collect(&mut self) {
        for core in 0..self.cores() {
            while self.collect_from(core) {}
        }
    }

    fn collect_from(&mut self, core: u16) -> bool {
        let mut messages = Vec::new();
        let world = &mut self.worlds[usize::from(core)];
        world.settle();
        world.shard.take_core_messages(&mut messages);
        let some = !messages.is_empty();
        for (to, message) in messages {
            assert!(to != core && to < self.lives.len() as u16, "{message:?} for {to}");
            if self.full.contains(&to) {
                world.shard.undelivered(&mut world.net, to, message);
                continue;
            }
            self.sent += 1;
            self.mail.entry((to, core)).or_default().push_back(message);
        }
        some
    }

    /// Lets the next message from one core to another arrive.
    pub(crate) fn deliver_next(&mut self, from: u16, to: u16) -> bool {
        self.collect();
        let message = self.mail.get_mut(&(to, from)).and_then(VecDeque::pop_front);
        let Some(message) = message else { return false };
        self.at(to).deliver(ShardMessage::Core(message));
        true
    }

    /// From which core mail is on its way, and to which.
    pub(crate) fn mail(&mut self) -> Vec<(u16, u16)> {
        self.collect();
        let waiting = self.mail.iter().filter(|(_, queue)| !queue.is_empty());
        waiting.map(|((to, from), _)| (*from, *to)).collect()
    }

    /// The messages on their way from one core to another.
    pub(crate) fn on_its_way(&mut self, from: u16, to: u16) -> Vec<String> {
        self.collect();
        let name = |message: &CoreMessage| {
            let text = format!("{message:?}");
            let end = text.find(|c: char| !c.is_alphanumeric()).unwrap_or(text.len());
            text[..end].to_owned()
        };
        self.mail.get(&(to, from)).map(|queue| queue.iter().map(name).collect()).unwrap_or_default()
    }

    /// Lets all mail arrive, and what it causes.
    pub(crate) fn deliver(&mut self) {
        for _ in 0..1_000_000 {
            self.collect();
            let waiting = self.mail.iter().find(|(_, queue)| !queue.is_empty());
            let Some((&(to, from), _)) = waiting else { return };
            self.deliver_next(from, to);
        }
        panic!("the cores do not stop talking");
    }

    /// Time passes on all cores alike, and mail arrives at once.
    pub(crate) fn pass(&mut self, time: Duration) {
        let now = self.worlds.iter().map(|world| world.net.now).max().expect("a core");
        let until = now + time;
        loop {
            self.deliver();
            let now = self.worlds.iter().map(|world| world.net.now).max().expect("a core");
            let due = self.worlds.iter().filter_map(|world| world.shard.deadline()).min();
            let next = due.unwrap_or(until).max(now).min(until);
            for world in &mut self.worlds {
                world.pass(next.since(world.net.now));
            }
            self.deliver();
            if next == until {
                return;
            }
        }
    }

    /// A core's shard panics and begins anew, and the others hear of it.
    pub(crate) fn restart(&mut self, core: u16) {
        self.begin_anew(core);
        self.tell_restart(core);
    }

    /// A core's shard panics and begins anew: its connections are closed, mail to it is lost.
    pub(crate) fn begin_anew(&mut self, core: u16) {
        self.collect();
        // The core's messages are in the others' mailboxes already.
        for to in 0..self.cores() {
            while self.deliver_next(core, to) {}
        }
        self.mail.retain(|(to, from), _| *to != core && *from != core);
        let at = usize::from(core);
        self.lives[at] += 1;
        let (life, unanswered) = (self.lives[at], self.unanswered);
        let plane = Plane::Local;
        let setup = CoreSetup {
            core,
            cores: self.cores(),
            life,
            unanswered,
            plane,
            dispatch: Plane::Local,
        };
        let now = self.worlds[at].net.now;
        self.worlds[at] = World::on(setup, &self.more, |_| {});
        self.worlds[at].net.now = now;
    }

    /// The others hear that a core has begun anew.
    pub(crate) fn tell_restart(&mut self, core: u16) {
        for other in (0..self.cores()).filter(|other| *other != core) {
            self.at(other).deliver(ShardMessage::Restarted { core });
        }
    }

    /// One poll on a connection of its own, which ends at once.
    pub(crate) fn poll(&mut self, core: u16, ids: &[&str]) -> Option<Work> {
        let conn = self.poller(core, ids);
        self.deliver();
        let work = read_work(&self.at(core).take(conn));
        self.at(core).end(conn, End::Fin);
        self.deliver();
        work
    }

    /// A connection with a poll that waits.
    pub(crate) fn poller(&mut self, core: u16, ids: &[&str]) -> ConnId {
        let conn = self.at(core).connect(Listener::Worker);
        self.at(core).send(conn, poll_request(ids).as_bytes());
        conn
    }

    /// A worker's CONNECT on some core, not yet arrived anywhere else.
    pub(crate) fn knock(&mut self, core: u16, work: &Work) -> Socket {
        let world = self.at(core);
        let conn = world.connect(Listener::Worker);
        let socket = Socket(world.socket(conn));
        world.send(conn, work.connect().as_bytes());
        socket
    }

    /// Where a worker's connection is now.
    pub(crate) fn find(&self, socket: Socket) -> Option<(u16, ConnId)> {
        let mut worlds = self.worlds.iter().enumerate();
        worlds.find_map(|(core, world)| Some((core as u16, world.conn_of(socket.0)?)))
    }

    /// The answer to a worker's CONNECT.
    pub(crate) fn answer(&mut self, socket: Socket) -> Result<Tunnel, u16> {
        self.deliver();
        let (core, conn) = self.find(socket).expect("the connection is somewhere");
        let answer = self.at(core).take(conn);
        let code = std::str::from_utf8(answer.get(9..12).unwrap_or_default()).unwrap_or_default();
        match code.parse() {
            Ok(200) => {
                let peer = Peer::accepted(self.at(core), conn, &answer, Limits::default());
                Ok(Tunnel { core, peer })
            }
            Ok(code) => {
                assert!(self.at(core).is_closed(conn), "{code} ends the connection");
                Err(code)
            }
            Err(_) => Err(0),
        }
    }

    /// As [`Self::answer`], with the mail left where it is; none if there is no answer yet.
    pub(crate) fn heard(&mut self, socket: Socket) -> Option<Result<Tunnel, u16>> {
        let (core, conn) = self.find(socket)?;
        let answer = self.at(core).take(conn);
        let code = std::str::from_utf8(answer.get(9..12)?).ok()?.parse().ok()?;
        if code != 200 {
            return Some(Err(code));
        }
        let peer = Peer::accepted(self.at(core), conn, &answer, Limits::default());
        Some(Ok(Tunnel { core, peer }))
    }

    /// A worker dials back to some core.
    pub(crate) fn dial(&mut self, core: u16, work: &Work) -> Tunnel {
        let socket = self.knock(core, work);
        match self.answer(socket) {
            Ok(tunnel) => tunnel,
            Err(code) => panic!("the CONNECT was answered {code}"),
        }
    }

    /// All cores' rows of `/sessions`, as the admin port joins them.
    pub(crate) fn sessions(&mut self) -> Vec<SessionRow> {
        let mut rows = Vec::new();
        for core in 0..self.cores() {
            rows.extend(self.at(core).sessions());
        }
        SessionRow::joined(rows)
    }

    /// Fails unless nothing is left anywhere.
    pub(crate) fn assert_empty(&mut self) {
        self.pass(Duration::from_secs(120));
        for world in &self.worlds {
            assert!(world.shard.is_empty(), "{:#?}", world.shard);
            assert_eq!(world.net.pool.chunks_live(), 0);
        }
    }
}
