//! A client's HTTP/1.1 connection: requests one by one or several at once, bodies of both framings,
//! and upgrades. It keeps the same books as [`super::client`].

use std::collections::VecDeque;

use ringway_proto::time::Time;

use super::body::{self, Way};
use super::comeback::Memory;
use super::h1::{self, Framing, Reader, Seen, is_of_hop, put_head};
use super::h2::List;
use super::journal::note;
use super::judge::{field, own_answer, relayed_head};
use super::ledger::{Exchange, Half};
use super::parking::Farewell;
use super::peer::{Act, Comeback, Pace, Peer, Stage};
use super::request::Request;

/// Requests sent before the first is answered, at most.
const DEPTH: usize = 3;

/// Bytes of a body sent at once, at most.
const PIECE: usize = 20_000;

#[derive(Debug)]
struct Call {
    exchange: usize,
    size: usize,
    framing: Framing,
    trailers: bool,
    /// The client never sends the end of the body.
    endless: bool,
    /// The client waits for a 100 before it sends the body.
    expects: bool,
    upgrade: bool,
    sent: bool,
    /// `Some` once the final head has come: true if a worker sent it.
    head: Option<bool>,
    answered: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// A 101 came for this exchange. From then on its bytes go both ways.
    Raw(usize),
    /// The client sends garbage and understands nothing.
    Mad,
    Closing,
    Over,
}

pub(crate) struct Client1 {
    number: usize,
    reader: Reader,
    out: Vec<u8>,
    left: usize,
    depth: usize,
    calls: VecDeque<Call>,
    state: State,
    /// The client or the gateway has said `Connection: close`, so no request may follow.
    last: bool,
    /// The gateway has a reason to end the connection.
    may_end: bool,
    pace: Pace,
    reading: bool,
    sluggish: bool,
    since: Time,
    slow: bool,
    /// How many bytes the client sends after a 101.
    raw_size: usize,
    /// Bytes are still on their way after a 101, in either direction.
    raw_waits: bool,
    memory: Memory,
    fresh: bool,
}

impl Client1 {
    pub(crate) fn new(number: usize, mission: Option<Comeback>, stage: &mut Stage<'_>) -> Self {
        note("client", number, "speaks HTTP/1", [0, 0]);
        Self {
            number,
            reader: Reader::new(number, false),
            out: Vec::new(),
            left: stage.seed.range(1, stage.plan.calls),
            depth: stage.seed.range(1, DEPTH),
            calls: VecDeque::new(),
            state: State::Open,
            last: false,
            may_end: false,
            pace: Pace::new(),
            reading: true,
            sluggish: stage.seed.chance(stage.plan.sluggish),
            since: stage.now,
            slow: false,
            raw_size: 0,
            raw_waits: false,
            memory: Memory::new(mission),
            fresh: true,
        }
    }

    fn done(&mut self, stage: &mut Stage<'_>) {
        if !self.out.is_empty() && matches!(self.state, State::Open | State::Raw(_)) {
            stage.acts.push(Act::Send(std::mem::take(&mut self.out)));
        }
    }

    // ---- calls ----

    fn may_open(&self) -> bool {
        self.left > 0
            && !self.last
            && self.calls.len() < self.depth
            && self.calls.back().is_none_or(|call| call.sent && !call.upgrade)
    }

    fn open(&mut self, stage: &mut Stage<'_>) {
        let fresh = std::mem::take(&mut self.fresh);
        let request = match &self.memory.mission {
            Some(to) if fresh || stage.seed.chance(50) => Request::back(to, stage),
            _ => Request::new(self.number, false, stage),
        };
        let mut fields = request.fields(stage);
        let exchange = request.exchange((self.number, true), usize::MAX, stage);
        let number = stage.ledger.exchanges.len();
        fields.retain(|(name, _)| !is_of_hop(name) && name != b":scheme");
        fields.push((b"x-sim".to_vec(), number.to_string().into_bytes()));
        let seed = &mut *stage.seed;
        let upgrade = !exchange.method_head && exchange.hopeless.is_none() && seed.chance(8);
        let bare = upgrade || exchange.method_head;
        let size = if bare { 0 } else { stage.plan.size(seed) };
        let framing = match seed.below(10) {
            _ if bare => Framing::None,
            0..5 => Framing::Length,
            _ if size == 0 && seed.chance(50) => Framing::None,
            _ => Framing::Chunked,
        };
        let expects = size > 0 && seed.chance(10);
        if expects {
            fields.push((b"expect".to_vec(), b"100-continue".to_vec()));
        }
        let mut call = Call {
            exchange: number,
            size,
            framing,
            trailers: framing == Framing::Chunked && seed.chance(30),
            endless: framing == Framing::Chunked && seed.chance(5),
            expects,
            upgrade,
            sent: framing == Framing::None || (framing == Framing::Length && size == 0),
            head: None,
            answered: false,
        };
        let mut more: Vec<String> = framing.field(size).into_iter().collect();
        if upgrade {
            more.push("Connection: Upgrade\r\nUpgrade: sim".into());
        } else if seed.chance(5) {
            self.last = true;
            more.push("Connection: close".into());
        }
        if seed.chance(10) {
            more.push("Connection: x-hop\r\nX-Hop: secret\r\nKeep-Alive: 5".into());
        }
        call.upgrade = upgrade;
        let method = field(&fields, ":method").expect("a method");
        let path = field(&fields, ":path").expect("a path");
        more.insert(seed.below(more.len() + 1), "Host: gateway".into());
        put_head(&mut self.out, &format!("{method} {path} HTTP/1.1"), &fields, &more);
        let up = Half { head: Some(fields), ended: call.sent, ..Half::default() };
        stage.ledger.exchanges.push(Exchange { up, upgrade, ..exchange });
        if stage.ledger.mad.contains(&self.number) {
            stage.ledger.exchanges[number].spoil();
        }
        note("client", self.number, "asks for exchange, bytes", [number as u64, size as u64]);
        self.calls.push_back(call);
    }

    /// Sends some of the latest request's body, or its end.
    fn feed(&mut self, stage: &mut Stage<'_>) {
        let Some(call) = self.calls.back_mut().filter(|call| !call.sent) else { return };
        if call.expects {
            // RFC 9110 §10.1.1: a client must not wait for a 100 for ever.
            call.expects = !(stage.calm || stage.seed.chance(5));
            return;
        }
        let half = &mut stage.ledger.exchanges[call.exchange].up;
        let most = (call.size - half.sent).min(PIECE);
        let n = if stage.seed.chance(40) { most } else { stage.seed.range(0, most) };
        let mut bytes = Vec::with_capacity(n);
        body::put(call.exchange, Way::Up, half.sent, n, &mut bytes);
        call.framing.put(&mut self.out, &bytes, stage.seed);
        half.sent += n;
        let all = half.sent == call.size;
        if n > 0 {
            self.pace.hurry();
        }
        if !all || (n > 0 && call.framing == Framing::Chunked && stage.seed.chance(15)) {
            return;
        }
        if call.endless {
            if stage.calm {
                self.leave(Act::Fin, stage);
            }
            return;
        }
        half.trailers = call
            .trailers
            .then(|| vec![(b"x-up-trailer".to_vec(), call.exchange.to_string().into_bytes())]);
        call.framing.end(&mut self.out, half.trailers.as_ref());
        half.ended = true;
        call.sent = true;
    }

    // ---- answers ----

    fn read(&mut self, stage: &mut Stage<'_>) {
        loop {
            let front = self.calls.front().map(|call| call.exchange);
            let bodiless = front.is_some_and(|front| stage.ledger.exchanges[front].method_head);
            let Some(seen) = self.reader.next(bodiless) else { return };
            if let State::Raw(exchange) = self.state {
                let Seen::Data(bytes) = seen else { panic!("a raw stream has bytes only") };
                stage.ledger.relayed += bytes.len();
                stage.ledger.exchanges[exchange].down.arrived(exchange, Way::Down, &bytes);
                continue;
            }
            let asked = self.calls.front().is_some_and(|call| !call.answered);
            assert!(asked, "client {}: an answer to nothing: {seen:?}", self.number);
            match seen {
                Seen::Head { first, fields, end } => self.head(&first, fields, end, stage),
                Seen::Data(bytes) => {
                    stage.ledger.relayed += bytes.len();
                    let call = &self.calls[0];
                    if call.head == Some(true) {
                        let half = &mut stage.ledger.exchanges[call.exchange].down;
                        half.arrived(call.exchange, Way::Down, &bytes);
                    }
                }
                Seen::End(trailers) => self.answered(trailers, stage),
            }
        }
    }

    fn head(&mut self, first: &str, mut fields: List, end: bool, stage: &mut Stage<'_>) {
        let call = &mut self.calls[0];
        let exchange = &mut stage.ledger.exchanges[call.exchange];
        let status = first[9..12].to_owned();
        if status.starts_with('1') && status != "101" {
            exchange.interim_got += 1;
            call.expects &= status != "100";
            let sent = exchange.interim_got <= exchange.interim_sent || exchange.down.spoiled;
            return assert!(sent, "exchange {}: a 1xx nobody sent", call.exchange);
        }
        assert!(call.head.is_none(), "exchange {}: a second head", call.exchange);
        let closes = field(&fields, "connection").is_some_and(|value| value == "close");
        self.last |= closes;
        self.may_end |= closes;
        let length = field(&fields, "content-length").map(|text| text.parse().expect("a length"));
        fields.retain(|(name, _)| !is_of_hop(name));
        fields.insert(0, (b":status".to_vec(), status.clone().into_bytes()));
        let relayed = field(&fields, "x-sim-worker").is_some();
        call.head = Some(relayed);
        if exchange.down.spoiled {
            // One of the exchange's peers is mad, so the answer may hold anything.
        } else if relayed {
            let same = exchange.length.is_none() || exchange.length == length;
            assert!(same, "exchange {}: another length", call.exchange);
            relayed_head(call.exchange, exchange, fields, false);
        } else if status == "431" {
            assert_eq!(exchange.hopeless, Some(8), "exchange {}: {status}", call.exchange);
        } else {
            let code = own_answer(call.exchange, exchange, &fields, &status);
            let early = stage.now.since(self.since) < stage.plan.wait();
            let excused = stage.plan.sloppy > 0 || stage.ledger.draining;
            let fine = code != 4 || !early || excused;
            assert!(fine, "exchange {}: nobody came, but it was not waited", call.exchange);
            stage.ledger.parking.refused(call.exchange, exchange, code, stage.now);
            stage.ledger.judge_refusal(call.exchange, code);
        }
        self.meet_session(stage);
        if status == "101" {
            return self.begin_raw(stage);
        }
        if end {
            self.answered(None, stage);
        }
    }

    /// Remembers the session that the answer names, so that the client can come back to it.
    fn meet_session(&mut self, stage: &mut Stage<'_>) {
        let call = &self.calls[0];
        let exchange = &stage.ledger.exchanges[call.exchange];
        if call.head != Some(true) || exchange.down.spoiled {
            return;
        }
        let id = exchange.down.head.as_ref().and_then(|head| field(head, "x-sim-session"));
        let met = (exchange.tenant, exchange.function);
        if let Some(id) = &id {
            self.memory.meet(id, call.exchange, stage);
        }
        if let Some(id) = id.filter(|id| !stage.ledger.met.iter().any(|met| met.0 == *id)) {
            stage.ledger.met.push((id, met.0, met.1));
        }
    }

    fn begin_raw(&mut self, stage: &mut Stage<'_>) {
        let Some(call) = self.calls.pop_front() else { return };
        let exchange = &mut stage.ledger.exchanges[call.exchange];
        let fine = exchange.upgrade || exchange.down.spoiled;
        assert!(fine, "exchange {}: a 101 that was not asked for", call.exchange);
        exchange.up.ended = false;
        stage.ledger.end(call.exchange, "answered");
        self.reader.raw();
        self.raw_size = stage.plan.size(stage.seed);
        self.state = State::Raw(call.exchange);
        self.pace.hurry();
    }

    fn answered(&mut self, trailers: Option<List>, stage: &mut Stage<'_>) {
        let call = &mut self.calls[0];
        call.answered = true;
        let relayed = call.head == Some(true);
        if relayed {
            let half = &mut stage.ledger.exchanges[call.exchange].down;
            half.finished(call.exchange, Way::Down, trailers);
        }
        let how = if relayed { "answered" } else { "answered by the gateway" };
        let exchange = &stage.ledger.exchanges[call.exchange];
        // RFC 9112 §9.3: nothing can follow a request that was not read to its end.
        let unread = exchange.early || (!relayed && (call.size > 0 || !call.sent));
        self.may_end |= unread || exchange.down.spoiled;
        stage.ledger.end(call.exchange, how);
        self.forget_answered();
        self.pace.hurry();
    }

    fn forget_answered(&mut self) {
        if self.calls.front().is_some_and(|call| call.answered && call.sent) {
            self.calls.pop_front();
        }
    }

    // ---- the connection ----

    fn lose_calls(&mut self, outcome: &'static str, stage: &mut Stage<'_>) {
        for call in std::mem::take(&mut self.calls) {
            stage.ledger.exchanges[call.exchange].quit = true;
            if !call.answered {
                stage.ledger.end(call.exchange, outcome);
            }
        }
    }

    fn leave(&mut self, how: Act, stage: &mut Stage<'_>) {
        self.done(stage);
        stage.ledger.clients_gone.insert(self.number);
        let raw = if let State::Raw(exchange) = self.state { Some(exchange) } else { None };
        let farewell = Farewell {
            fin: matches!(how, Act::Fin),
            said: self.last,
            told: self.may_end || stage.ledger.draining,
            http1: true,
            open: self.calls.iter().map(|call| call.exchange).chain(raw).collect(),
        };
        stage.ledger.parking.client_leaves(self.number, farewell);
        self.lose_calls("left by its client", stage);
        if let State::Raw(exchange) = self.state {
            let exchange = &mut stage.ledger.exchanges[exchange];
            exchange.quit = true;
            exchange.up.ended = matches!(how, Act::Fin);
        }
        self.state = if matches!(how, Act::Reset) { State::Over } else { State::Closing };
        note("client", self.number, "leaves", [0, 0]);
        stage.acts.push(how);
    }

    fn trouble(&mut self, stage: &mut Stage<'_>) {
        if stage.rarely(stage.plan.stalls * 2) {
            self.reading = false;
            stage.acts.push(Act::Read(false));
        }
        if stage.rarely(stage.plan.vandals) {
            self.done(stage);
            stage.ledger.clients_gone.insert(self.number);
            self.lose_calls("left by its mad client", stage);
            note("client", self.number, "goes mad", [0, 0]);
            stage.ledger.madness(self.number);
            self.state = State::Mad;
        } else if stage.rarely(stage.plan.breaks + stage.plan.resets / 2) {
            let how = if stage.seed.chance(50) { Act::Reset } else { Act::Fin };
            self.leave(how, stage);
        } else if stage.rarely(self.memory.cuts(stage)) {
            self.memory.come_back(true, stage);
            let how = if stage.seed.chance(50) { Act::Reset } else { Act::Fin };
            self.leave(how, stage);
        }
    }

    fn rage(&mut self, stage: &mut Stage<'_>) {
        if stage.closing || stage.calm || stage.seed.chance(10) {
            self.state = State::Over;
            return stage.acts.push(if stage.seed.chance(50) { Act::Fin } else { Act::Reset });
        }
        stage.acts.push(Act::Send(h1::garbage(false, stage.seed)));
        stage.acts.push(Act::Wait(self.pace.next(stage.seed)));
    }

    /// Sends some bytes after a 101. Leaves when everything has arrived on both sides.
    fn feed_raw(&mut self, number: usize, stage: &mut Stage<'_>) {
        let exchange = &mut stage.ledger.exchanges[number];
        let half = &mut exchange.up;
        let most = (self.raw_size - half.sent).min(PIECE);
        let n = stage.seed.range(0, most);
        body::put(number, Way::Up, half.sent, n, &mut self.out);
        half.sent += n;
        let whole = half.got == half.sent && exchange.down.got == exchange.down.sent;
        self.raw_waits = !whole && !exchange.excuse;
        if n > 0 {
            self.pace.hurry();
        }
        let all = half.sent == self.raw_size && whole && exchange.down.sent > 0;
        if stage.closing || (all && stage.seed.chance(10)) {
            self.leave(Act::Fin, stage);
        }
    }
}

impl Peer for Client1 {
    fn received(&mut self, bytes: &[u8], stage: &mut Stage<'_>) {
        if !matches!(self.state, State::Open | State::Raw(_)) {
            return;
        }
        self.reader.feed(bytes);
        self.read(stage);
        self.pace.hurry();
        if self.sluggish && self.reading {
            self.reading = false;
            stage.acts.push(Act::Read(false));
        }
        self.done(stage);
    }

    fn ended(&mut self, reset: bool, stage: &mut Stage<'_>) {
        note("client", self.number, "was closed", [u64::from(reset), 0]);
        let anyway = self.slow || stage.ledger.draining || stage.ledger.is_bereft(self.number);
        match self.state {
            State::Open => {
                let front = self.calls.front().map(|call| &stage.ledger.exchanges[call.exchange]);
                let lost =
                    front.is_some_and(|exchange| exchange.excuse || exchange.hopeless == Some(8));
                // A gateway that leaves closes an HTTP/1.1 connection between two requests. A
                // request that was on its way then reached no worker, and its client repeats it.
                let unseen = front.is_none_or(|exchange| exchange.tunnel.is_none());
                let crosses = stage.ledger.going.contains(&self.number) && unseen;
                let fine = anyway || self.may_end || lost || crosses;
                assert!(fine, "client {}: was left without a word", self.number);
                self.lose_calls("lost with its connection", stage);
                self.leave(Act::Fin, stage);
            }
            State::Raw(number) => {
                let exchange = &stage.ledger.exchanges[number];
                let half = &exchange.down;
                let whole = half.got == half.sent || !half.ended || half.spoiled;
                let fine = anyway || reset || whole;
                assert!(fine, "exchange {number}: bytes before the end are lost");
                let known = half.ended || exchange.excuse || anyway;
                assert!(known, "exchange {number}: a stream of bytes ended by itself");
                self.leave(Act::Fin, stage);
            }
            State::Mad | State::Closing | State::Over => {}
        }
        self.state = State::Over;
    }

    fn tick(&mut self, stage: &mut Stage<'_>) {
        if self.state == State::Mad {
            return self.rage(stage);
        }
        if !matches!(self.state, State::Open | State::Raw(_)) {
            return;
        }
        if !self.reading && (stage.calm || self.sluggish || stage.seed.chance(30)) {
            self.reading = true;
            stage.acts.push(Act::Read(true));
        }
        self.slow |= !self.reading;
        if stage.calm {
            // Requests of this connection wait for each other, and a whole row of waits takes too
            // long.
            self.left = self.left.min(1);
        }
        if let State::Raw(exchange) = self.state {
            self.feed_raw(exchange, stage);
        } else {
            if self.may_open() && stage.seed.chance(60) {
                self.left -= 1;
                self.open(stage);
                self.pace.hurry();
            }
            if stage.seed.chance(70) {
                self.feed(stage);
            }
            self.forget_answered();
        }
        if !matches!(self.state, State::Open | State::Raw(_)) {
            return;
        }
        self.trouble(stage);
        let idle = self.state == State::Open && self.calls.is_empty();
        let finished = self.left == 0 || self.last;
        let bored = stage.closing || stage.seed.chance(if stage.plan.stays { 1 } else { 10 });
        if idle && finished && bored {
            if stage.fault(stage.plan.parking.map_or(0, |_| 50)) {
                self.memory.come_back(true, stage);
            }
            self.leave(Act::Fin, stage);
        }
        self.done(stage);
        stage.acts.push(Act::Wait(self.pace.next(stage.seed)));
    }

    fn is_unfinished(&self) -> bool {
        match self.state {
            State::Open => !self.calls.is_empty(),
            State::Raw(_) => self.raw_waits,
            _ => false,
        }
    }

    fn waits_for(&self) -> String {
        let (state, first) = (self.state, self.calls.front());
        format!("HTTP/1 client {} ({state:?}) waits for call {first:?}", self.number)
    }
}
