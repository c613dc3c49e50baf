//! A client's HTTP/2 connection. It opens calls of all kinds, feeds them, and judges every answer.

use std::collections::BTreeMap;

use ringway_proto::time::Time;

use super::body::{self, Way};
use super::comeback::Memory;
use super::h2::{CALM, CANCEL, H2, INTERNAL_ERROR, List, NO_ERROR, Offer, REFUSED_STREAM};
use super::h2::{SETTINGS_TIMEOUT, Seen};
use super::judge::{field, own_answer, relayed_head};
use super::ledger::{Exchange, Half};
use super::parking::Farewell;
use super::peer::{Act, CHATTER, Comeback, Pace, Peer, Stage};
use super::request::Request;

/// How a request's body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// END_STREAM is on the last DATA frame, or on the head if there is no body.
    Data,
    Trailers,
    /// The body never ends.
    Never,
    /// The client resets the stream after the whole body.
    Reset,
}

#[derive(Debug)]
struct Call {
    exchange: usize,
    size: usize,
    ending: Ending,
    /// The client has sent the whole request.
    sent: bool,
    /// `Some` once the final head has come: true if a worker sent it.
    head: Option<bool>,
    answered: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// The client sends garbage and understands nothing.
    Mad,
    /// The client has sent its FIN.
    Closing,
    /// The client's network has failed. Until this time the gateway hears nothing from it.
    Vanished(Time),
    Over,
}

/// How a client gives credit to the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Credit {
    AtOnce,
    ByHalves,
    Lazily,
}

pub(crate) struct Client {
    number: usize,
    h2: H2,
    left: usize,
    calls: BTreeMap<u32, Call>,
    state: State,
    pace: Pace,
    credit: Credit,
    reading: bool,
    /// The client stops reading after each receive, until its next tick.
    sluggish: bool,
    /// PINGs and SETTINGS that the client may still send.
    chatter: u32,
    since: Time,
    /// The client was found not reading at a tick, so the gateway may have closed it as too slow.
    slow: bool,
    /// Most requests of the client have exactly the same head.
    twins: bool,
    memory: Memory,
    /// The client has sent GOAWAY.
    said: bool,
}

impl Client {
    pub(crate) fn new(number: usize, mission: Option<Comeback>, stage: &mut Stage<'_>) -> Self {
        let tight = stage.plan.tight;
        let mut offer = Offer::default();
        let mut extra = 0;
        if stage.seed.chance(tight) {
            offer.window = stage.seed.pick(&[0, 1, 700, 5_000, 20_000]);
            offer.table = stage.seed.pick(&[0, 100, 4096, 65_536]);
        } else if stage.seed.chance(50) {
            offer.window = 1 << 20;
            extra = 1 << 20;
        }
        let credit = stage.seed.pick(&[Credit::AtOnce, Credit::ByHalves, Credit::Lazily]);
        let mut client = Self {
            number,
            h2: H2::new(number, false, offer, extra),
            left: stage.seed.range(1, stage.plan.calls),
            memory: Memory::new(mission),
            said: false,
            calls: BTreeMap::new(),
            state: State::Open,
            pace: Pace::new(),
            credit,
            reading: true,
            sluggish: stage.seed.chance(stage.plan.sluggish),
            chatter: CHATTER,
            since: stage.now,
            slow: false,
            twins: stage.seed.chance(30),
        };
        if client.memory.mission.is_some() && client.twins {
            client.left += 5;
        }
        client.done(stage);
        client
    }

    /// Sends what was written, if the connection is still open.
    fn done(&mut self, stage: &mut Stage<'_>) {
        if !self.h2.out.is_empty() && self.state == State::Open {
            stage.acts.push(Act::Send(std::mem::take(&mut self.h2.out)));
        }
    }

    // ---- calls ----

    fn open(&mut self, stage: &mut Stage<'_>) {
        let request = match &self.memory.mission {
            Some(to) if self.h2.highest == 0 || stage.seed.chance(30) => Request::back(to, stage),
            Some(to) if self.twins => Request::alike(to),
            _ => Request::new(self.number, self.twins, stage),
        };
        let mut fields = request.fields(stage);
        let exchange = request.exchange((self.number, false), self.most_down(), stage);
        let number = stage.ledger.exchanges.len();
        let twin = exchange.twin;
        if !twin {
            fields.push((b"x-sim".to_vec(), number.to_string().into_bytes()));
        }
        let size = stage.plan.size(stage.seed) + if twin { body::NAME_BYTES } else { 0 };
        let size = if exchange.method_head { 0 } else { size };
        let ending = match stage.seed.below(100) {
            0..80 => Ending::Data,
            80..90 => Ending::Trailers,
            90..95 => Ending::Never,
            _ if stage.plan.resets > 0 => Ending::Reset,
            _ => Ending::Data,
        };
        let ending = if exchange.method_head { Ending::Data } else { ending };
        if ending == Ending::Data && !twin && stage.seed.chance(20) {
            fields.push((b"content-length".to_vec(), size.to_string().into_bytes()));
        }
        let end = size == 0 && ending == Ending::Data;
        let stream = self.h2.open();
        let view: Vec<_> = fields.iter().map(|(n, v)| (&n[..], &v[..])).collect();
        self.h2.head(stream, &view, end, stage.seed);
        let up = Half { head: Some(fields), ended: end, ..Half::default() };
        stage.ledger.exchanges.push(Exchange { up, ..exchange });
        if stage.ledger.mad.contains(&self.number) {
            stage.ledger.exchanges[number].spoil();
        }
        let of = [u64::from(stream), number as u64];
        super::journal::note("client", self.number, "opens stream, exchange", of);
        let call = Call { exchange: number, size, ending, sent: end, head: None, answered: false };
        self.calls.insert(stream, call);
    }

    /// The most bytes of an answer that this client reads in good time. With a small window, a
    /// large answer would take too many frames.
    fn most_down(&self) -> usize {
        match self.h2.latest_offer().window {
            0..1000 => 2_000,
            1000..10_000 => 100_000,
            _ => usize::MAX,
        }
    }

    /// Sends some of a call's body, or its end.
    fn feed(&mut self, stream: u32, stage: &mut Stage<'_>) {
        let Some(call) = self.calls.get_mut(&stream).filter(|call| !call.sent) else { return };
        let half = &mut stage.ledger.exchanges[call.exchange].up;
        let rest = call.size - half.sent;
        let room = self.h2.room(stream);
        let most = rest.min(room);
        let n = if stage.seed.chance(40) { most } else { stage.seed.range(0, most) };
        // Now and then the end is left for a frame of its own.
        let all = n == rest && (n == 0 || !stage.seed.chance(15));
        let over = all && call.ending == Ending::Never && !stage.calm;
        if n == 0 && (!all || over) {
            return;
        }
        let end = all && call.ending == Ending::Data;
        if n > 0 || end {
            let mut bytes = Vec::with_capacity(n);
            body::put(call.exchange, Way::Up, half.sent, n, &mut bytes);
            half.sent += n;
            half.ended = end;
            let pad = stage.seed.chance(5).then_some(stage.seed.below(60) as u8);
            self.h2.data(stream, &bytes, end, pad);
        }
        call.sent = all && call.ending != Ending::Never;
        match call.ending {
            Ending::Trailers if all => {
                let trailers: List =
                    vec![(b"x-up-trailer".to_vec(), call.exchange.to_string().into())];
                let view: Vec<_> = trailers.iter().map(|(n, v)| (&n[..], &v[..])).collect();
                self.h2.head(stream, &view, true, stage.seed);
                (half.ended, half.trailers) = (true, Some(trailers));
            }
            Ending::Reset if all => self.quit(stream, stage),
            Ending::Never if all && stage.calm => self.quit(stream, stage),
            _ => {}
        }
        self.pace.hurry();
    }

    /// The client resets a call.
    fn quit(&mut self, stream: u32, stage: &mut Stage<'_>) {
        let Some(call) = self.calls.remove(&stream) else { return };
        let exchange = &mut stage.ledger.exchanges[call.exchange];
        exchange.quit = true;
        if !call.answered {
            stage.ledger.end(call.exchange, "cancelled by its client");
        }
        self.h2.reset(stream, stage.seed.pick(&[CANCEL, CANCEL, NO_ERROR, INTERNAL_ERROR]));
    }

    // ---- answers ----

    fn saw(&mut self, seen: Seen, stage: &mut Stage<'_>) {
        match seen {
            Seen::Head { stream, fields, end } => self.head(stream, fields, end, stage),
            Seen::Data { stream, bytes, end } => {
                stage.ledger.relayed += bytes.len();
                let Some(call) = self.calls.get_mut(&stream) else { return };
                if call.head == Some(true) {
                    let half = &mut stage.ledger.exchanges[call.exchange].down;
                    half.arrived(call.exchange, Way::Down, &bytes);
                    if end {
                        half.finished(call.exchange, Way::Down, None);
                    }
                }
                if self.credit == Credit::AtOnce && self.h2.is_worth_a_frame(stream) {
                    self.h2.credit_well(stream, stage.seed);
                }
                if end {
                    self.answered(stream, stage);
                }
            }
            Seen::Reset { stream, code } => self.was_reset(stream, code, stage),
            Seen::Goaway { last, code } => {
                let patient = self.slow || stage.plan.stalls > 0 || stage.plan.pauses > 0;
                let fine =
                    code == NO_ERROR || (patient && [SETTINGS_TIMEOUT, CALM].contains(&code));
                self.h2.expect(fine, &format!("accuses an honest client: {code}"));
                self.left = 0;
                let above: Vec<u32> = self.calls.range(last + 1..).map(|(id, _)| *id).collect();
                for stream in above {
                    self.drop_call(stream, "refused by GOAWAY", stage);
                }
            }
        }
    }

    fn drop_call(&mut self, stream: u32, outcome: &'static str, stage: &mut Stage<'_>) {
        let Some(call) = self.calls.remove(&stream) else { return };
        stage.ledger.exchanges[call.exchange].quit = true;
        if !call.answered {
            stage.ledger.end(call.exchange, outcome);
        }
    }

    fn head(&mut self, stream: u32, fields: List, end: bool, stage: &mut Stage<'_>) {
        let Some(call) = self.calls.get_mut(&stream) else { return };
        let exchange = &mut stage.ledger.exchanges[call.exchange];
        if let Some(relayed) = call.head {
            let fine = (relayed || exchange.down.spoiled) && end;
            assert!(fine, "exchange {}: a second head", call.exchange);
            exchange.down.finished(call.exchange, Way::Down, Some(fields));
            return self.answered(stream, stage);
        }
        let status = field(&fields, ":status").expect("an answer has a status");
        if status.starts_with('1') {
            exchange.interim_got += 1;
            let sent = exchange.interim_got <= exchange.interim_sent || exchange.down.spoiled;
            let fine = sent && !end;
            return assert!(fine, "exchange {}: a 1xx nobody sent", call.exchange);
        }
        let relayed = field(&fields, "x-sim-worker").is_some();
        call.head = Some(relayed);
        if exchange.down.spoiled {
            // One of the exchange's peers is mad, so the answer may hold anything.
        } else if relayed {
            relayed_head(call.exchange, exchange, fields, end);
        } else {
            let code = own_answer(call.exchange, exchange, &fields, &status);
            // The request may have joined the wait of an earlier one, so the connection's start
            // counts.
            let early = stage.now.since(self.since) < stage.plan.wait();
            // Wrong CONNECTs with the session's token end a wait early. A drain ends every wait.
            let excused = stage.plan.sloppy > 0 || stage.ledger.draining;
            let fine = code != 4 || !early || excused;
            assert!(fine, "exchange {}: nobody came, but it was not waited", call.exchange);
            stage.ledger.parking.refused(call.exchange, exchange, code, stage.now);
            stage.ledger.judge_refusal(call.exchange, code);
        }
        let id = field(
            stage.ledger.exchanges[call.exchange].down.head.as_ref().map_or(&[][..], |h| h),
            "x-sim-session",
        );
        let spoiled = stage.ledger.exchanges[call.exchange].down.spoiled;
        if let (true, Some(id)) = (relayed && !spoiled, id) {
            self.memory.meet(&id, call.exchange, stage);
            let exchange = &stage.ledger.exchanges[call.exchange];
            let (tenant, function) = (exchange.tenant, exchange.function);
            if !stage.ledger.met.iter().any(|met| met.0 == id) {
                stage.ledger.met.push((id, tenant, function));
            }
        }
        if end {
            if relayed {
                let call = &self.calls[&stream];
                let half = &mut stage.ledger.exchanges[call.exchange].down;
                half.finished(call.exchange, Way::Down, None);
            }
            self.answered(stream, stage);
        }
    }

    fn answered(&mut self, stream: u32, stage: &mut Stage<'_>) {
        let Some(call) = self.calls.get_mut(&stream) else { return };
        call.answered = true;
        let how = if call.head == Some(true) { "answered" } else { "answered by the gateway" };
        stage.ledger.end(call.exchange, how);
        self.pace.hurry();
    }

    fn was_reset(&mut self, stream: u32, code: u32, stage: &mut Stage<'_>) {
        let Some(call) = self.calls.remove(&stream) else { return };
        let exchange = &mut stage.ledger.exchanges[call.exchange];
        if call.answered {
            let fine = code == NO_ERROR || exchange.excuse;
            assert!(fine, "exchange {}: reset with {code} after its answer", call.exchange);
            return;
        }
        let relayed = [INTERNAL_ERROR, CANCEL, NO_ERROR, CALM, REFUSED_STREAM].contains(&code);
        let unseen = code == REFUSED_STREAM && exchange.tunnel.is_none();
        let fine = relayed && (exchange.excuse || unseen);
        assert!(fine, "exchange {}: reset with {code} for no reason", call.exchange);
        exchange.quit = true;
        stage.ledger.end(call.exchange, "reset by the gateway");
    }

    // ---- the connection ----

    fn give_credit(&mut self, stage: &mut Stage<'_>) {
        let streams: Vec<u32> = self.calls.keys().copied().collect();
        for stream in streams {
            let (owed, room) = (self.h2.owed(stream), self.h2.receive_room(stream));
            let now = stage.calm
                || match self.credit {
                    Credit::AtOnce => true,
                    Credit::ByHalves => owed >= room,
                    Credit::Lazily => stage.seed.chance(20),
                };
            if now && (self.h2.is_worth_a_frame(stream) || room <= 0) {
                self.h2.credit_well(stream, stage.seed);
            }
        }
        let least = if stage.calm { 1 } else { stage.seed.range(1, 40_000) as i64 };
        self.h2.connection_credit(least);
    }

    fn chatter(&mut self, stage: &mut Stage<'_>) {
        if self.chatter > 0 && stage.fault(stage.plan.chatter) {
            self.chatter -= 1;
            self.h2.ping();
        }
        if self.chatter > 0 && stage.fault(stage.plan.chatter) && self.h2.unacknowledged() == 0 {
            let offer = Offer {
                window: stage.seed.pick(&[0, 900, 20_000, 65_535, 500_000]),
                table: stage.seed.pick(&[0, 200, 4096]),
                ..self.h2.latest_offer()
            };
            self.chatter -= 1;
            self.h2.settings(offer);
        }
    }

    fn trouble(&mut self, stage: &mut Stage<'_>) {
        if stage.rarely(stage.plan.resets) && !self.calls.is_empty() {
            let at = stage.seed.below(self.calls.len());
            let stream = self.calls.keys().nth(at).copied().expect("in range");
            self.quit(stream, stage);
        }
        if stage.rarely(stage.plan.stalls * 2) {
            self.reading = false;
            stage.acts.push(Act::Read(false));
        }
        if stage.rarely(stage.plan.vandals) && !self.twins {
            return self.go_mad(stage);
        }
        if stage.rarely(stage.plan.breaks) {
            let how = if stage.seed.chance(50) { Act::Reset } else { Act::Fin };
            self.leave(how, stage);
        } else if stage.rarely(self.memory.cuts(stage)) {
            self.cut(stage);
        } else if stage.rarely(stage.plan.goaways) && self.left > 0 {
            self.h2.goaway(0);
            self.left = 0;
            self.said = true;
        }
    }

    /// The client loses its connection in one of several ways, and comes back on another one.
    fn cut(&mut self, stage: &mut Stage<'_>) {
        self.memory.come_back(false, stage);
        match stage.seed.below(100) {
            0..45 => self.leave(Act::Reset, stage),
            45..75 => self.leave(Act::Fin, stage),
            75..90 => {
                self.h2.goaway(0);
                self.said = true;
                self.leave(Act::Fin, stage);
            }
            _ => {
                let until = Time(stage.now.0 + stage.seed.range(1_000, 3_000_000) as u64);
                self.leave(Act::Read(false), stage);
                self.state = State::Vanished(until);
            }
        }
    }

    /// A mad client sends garbage, or ends its connection.
    fn rage(&mut self, stage: &mut Stage<'_>) {
        if stage.closing || stage.calm || stage.seed.chance(10) {
            self.state = State::Over;
            return stage.acts.push(if stage.seed.chance(50) { Act::Fin } else { Act::Reset });
        }
        stage.acts.push(Act::Send(super::h2::garbage(stage.seed)));
        stage.acts.push(Act::Wait(self.pace.next(stage.seed)));
    }

    fn go_mad(&mut self, stage: &mut Stage<'_>) {
        self.done(stage);
        stage.ledger.clients_gone.insert(self.number);
        for stream in self.calls.keys().copied().collect::<Vec<_>>() {
            self.drop_call(stream, "left by its mad client", stage);
        }
        super::journal::note("client", self.number, "goes mad", [0, 0]);
        stage.ledger.madness(self.number);
        self.state = State::Mad;
    }

    /// Ends the connection. Its open calls are lost.
    fn leave(&mut self, how: Act, stage: &mut Stage<'_>) {
        self.done(stage);
        stage.ledger.clients_gone.insert(self.number);
        let farewell = Farewell {
            fin: matches!(how, Act::Fin),
            said: self.said,
            told: self.h2.goaway.is_some() || stage.ledger.draining,
            http1: false,
            open: self.calls.values().map(|call| call.exchange).collect(),
        };
        stage.ledger.parking.client_leaves(self.number, farewell);
        for stream in self.calls.keys().copied().collect::<Vec<_>>() {
            self.drop_call(stream, "left by its client", stage);
        }
        self.state = if matches!(how, Act::Reset) { State::Over } else { State::Closing };
        super::journal::note("client", self.number, "leaves", [0, 0]);
        stage.acts.push(how);
    }
}

impl Peer for Client {
    fn received(&mut self, bytes: &[u8], stage: &mut Stage<'_>) {
        if matches!(self.state, State::Over | State::Mad | State::Vanished(_)) {
            return;
        }
        let mut seen = Vec::new();
        self.h2.read(bytes, &mut seen);
        for seen in seen {
            self.saw(seen, stage);
        }
        self.calls.retain(|_, call| !(call.answered && call.sent));
        if self.credit == Credit::AtOnce {
            self.h2.connection_credit(1);
        }
        self.pace.hurry();
        if self.sluggish && self.reading {
            self.reading = false;
            stage.acts.push(Act::Read(false));
        }
        self.done(stage);
    }

    fn ended(&mut self, _reset: bool, stage: &mut Stage<'_>) {
        if self.state == State::Open {
            let ledger = &stage.ledger;
            let anyway = self.slow || ledger.draining || ledger.is_bereft(self.number);
            let told = self.h2.goaway.is_some() || anyway;
            self.h2.expect(told, "left a client without a word");
            self.leave(Act::Fin, stage);
        }
        self.state = State::Over;
    }

    fn tick(&mut self, stage: &mut Stage<'_>) {
        if self.state == State::Mad {
            return self.rage(stage);
        }
        if let State::Vanished(until) = self.state {
            if !stage.calm && stage.now < until {
                return stage.acts.push(Act::Wait((until.0 - stage.now.0) as usize));
            }
            self.state = State::Over;
            return stage.acts.push(Act::Reset);
        }
        if self.state != State::Open {
            return;
        }
        if !self.reading && (stage.calm || self.sluggish || stage.seed.chance(30)) {
            self.reading = true;
            stage.acts.push(Act::Read(true));
        }
        self.slow |= !self.reading;
        let most = self.h2.peer_streams.min(50);
        if self.left > 0 && self.h2.open_streams() < most && stage.seed.chance(60) {
            self.left -= 1;
            self.open(stage);
            self.pace.hurry();
        }
        for stream in self.calls.keys().copied().collect::<Vec<_>>() {
            if stage.seed.chance(70) {
                self.feed(stream, stage);
            }
        }
        self.calls.retain(|_, call| !(call.answered && call.sent));
        if self.reading {
            self.give_credit(stage);
        }
        self.chatter(stage);
        self.trouble(stage);
        if self.state == State::Open
            && self.left == 0
            && self.calls.is_empty()
            && (stage.closing || stage.seed.chance(if stage.plan.stays { 1 } else { 10 }))
        {
            if stage.fault(stage.plan.parking.map_or(0, |_| 50)) {
                self.memory.come_back(false, stage);
            }
            self.leave(Act::Fin, stage);
        }
        self.done(stage);
        stage.acts.push(Act::Wait(self.pace.next(stage.seed)));
    }

    fn is_unfinished(&self) -> bool {
        self.state == State::Open && !self.calls.is_empty()
    }

    fn waits_for(&self) -> String {
        let first = self.calls.first_key_value();
        format!("client {} waits on stream and for call {first:?}", self.number)
    }
}
