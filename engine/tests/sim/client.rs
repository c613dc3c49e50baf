//! A client's HTTP/2 connection: opens calls of all kinds, feeds them, judges every answer.

use std::collections::BTreeMap;

use super::body::{self, Way};
use super::h2::{CALM, CANCEL, H2, INTERNAL_ERROR, List, NO_ERROR, Offer, REFUSED_STREAM};
use super::h2::{SETTINGS_TIMEOUT, Seen};
use super::ledger::{Exchange, Half, Named};
use super::peer::{Act, CHATTER, Pace, Peer, Stage};
use super::plan::{F1, FUNCTIONS, KEYS, V3};

/// How a request's body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// END_STREAM with DATA, or with the head if there is none.
    Data,
    Trailers,
    /// Not at all.
    Never,
    /// A reset after all is sent.
    Reset,
}

#[derive(Debug)]
struct Call {
    exchange: usize,
    size: usize,
    ending: Ending,
    /// Our side is done.
    sent: bool,
    /// The final head came, and whether a worker's.
    head: Option<bool>,
    answered: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// It sends anything and understands nothing.
    Mad,
    /// Our FIN is out.
    Leaving,
    Over,
}

/// How credit is given.
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
    /// Reads only when it is asked what it does.
    sluggish: bool,
    /// PINGs and SETTINGS left to send.
    chatter: u32,
    /// It has not read for long: the gateway may have had enough of it.
    slow: bool,
    /// All its heads are alike.
    twins: bool,
}

impl Client {
    pub(crate) fn new(number: usize, stage: &mut Stage<'_>) -> Self {
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
            calls: BTreeMap::new(),
            state: State::Open,
            pace: Pace::new(),
            credit,
            reading: true,
            sluggish: stage.seed.chance(stage.plan.sluggish),
            chatter: CHATTER,
            slow: false,
            twins: stage.seed.chance(30),
        };
        client.done(stage);
        client
    }

    /// Puts out what there is to say, and when to be asked again.
    fn done(&mut self, stage: &mut Stage<'_>) {
        if !self.h2.out.is_empty() && self.state == State::Open {
            stage.acts.push(Act::Send(std::mem::take(&mut self.h2.out)));
        }
    }

    // ---- calls ----

    fn open(&mut self, stage: &mut Stage<'_>) {
        let (mut fields, exchange) = self.draft(stage);
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

    /// A request's fields, and what is to come of it.
    fn draft(&mut self, stage: &mut Stage<'_>) -> (List, Exchange) {
        let seed = &mut *stage.seed;
        let twins = self.twins && seed.chance(80);
        let choice = if twins { self.number } else { seed.below(100) };
        let (key, tenant) = KEYS[choice % KEYS.len()];
        let allowed: Vec<_> = FUNCTIONS.iter().filter(|f| f.2.contains(&tenant)).collect();
        let (function, version, _) = *allowed[choice / KEYS.len() % allowed.len()];
        let (mut key, mut function, mut hopeless) = (key, function, None);
        let mut version = if choice % 7 == 0 { "" } else { version };
        let mut named = Named::Nothing;
        if !twins && seed.chance(stage.plan.strangers) {
            match seed.below(4) {
                0 => (key, hopeless) = ("nobodys-key", Some(16)),
                1 => (function, hopeless) = ("99999999-1111-4111-8111-111111111111", Some(5)),
                2 => (function, version, hopeless) = (F1, V3, Some(5)),
                _ => {
                    let (a, b) = (seed.next(), seed.next());
                    let id = uuid::Uuid::from_u64_pair(a, b).to_string();
                    (named, hopeless) = (Named::Nobody(id), Some(5));
                }
            }
        } else if !twins && seed.chance(stage.plan.returns) && !stage.ledger.met.is_empty() {
            // The latest are the likeliest to be alive.
            let met = stage.ledger.met.len();
            let at = met - 1 - seed.below(met.min(4));
            let (id, owner, of) = stage.ledger.met[at].clone();
            (function, version) = (of, "");
            // Another tenant's session: refused, as not found once it has ended.
            hopeless = (owner != tenant).then_some(13);
            named = Named::Session(id);
        }
        let method_head = !twins && seed.chance(3);
        let grpc = twins || seed.chance(60);
        let mut fields: List = Vec::new();
        let mut put = |name: &str, value: &str| fields.push((name.into(), value.into()));
        put(":method", if method_head { "HEAD" } else { "POST" });
        put(":scheme", "http");
        put(":path", if grpc { "/sim.Service/Call" } else { "/plain?x=1" });
        put(":authority", "gateway");
        put("content-type", if grpc { "application/grpc" } else { "text/plain" });
        put("te", "trailers");
        put("authorization", &format!("Bearer {key}"));
        put("function-id", function);
        if !version.is_empty() || choice % 2 == 0 {
            put("function-version-id", version);
        }
        if let Named::Session(id) | Named::Nobody(id) = &named {
            put("nvcf-reqid", id);
        }
        if !twins && seed.chance(30) {
            put("x-filler", &"f".repeat(seed.size(3000)));
        }
        if !twins && hopeless.is_none() && seed.chance(stage.plan.giants) {
            // More fields than may be.
            (0..300).for_each(|_| put("x-giant", "x"));
            hopeless = Some(8);
        }
        let exchange = Exchange {
            client: self.number,
            tenant,
            function,
            version,
            named,
            grpc,
            method_head,
            hopeless,
            twin: twins,
            up: Half::default(),
            down: Half::default(),
            interim_sent: 0,
            interim_got: 0,
            tunnel: None,
            outcome: None,
            quit: false,
            excuse: stage.ledger.draining,
            most_down: self.most_down(),
        };
        (fields, exchange)
    }

    /// With small windows large answers would take too many frames.
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
        let all = n == rest;
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
                let trailers: List = vec![(b"x-up-trailer".to_vec(), call.exchange.to_string().into())];
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

    /// We reset a call.
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
                if self.credit == Credit::AtOnce {
                    self.h2.credit_well(stream, stage.seed);
                }
                if end {
                    self.answered(stream, stage);
                }
            }
            Seen::Reset { stream, code } => self.was_reset(stream, code, stage),
            Seen::Goaway { last, code } => {
                let patient = self.slow || stage.plan.stalls > 0 || stage.plan.pauses > 0;
                let fine = code == NO_ERROR || (patient && [SETTINGS_TIMEOUT, CALM].contains(&code));
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
            // Anything may be in it.
        } else if relayed {
            relayed_head(call.exchange, exchange, fields, end);
        } else {
            own_answer(call.exchange, exchange, &fields, &status);
        }
        let id = field(stage.ledger.exchanges[call.exchange].down.head.as_ref().map_or(&[][..], |h| h), "x-sim-session");
        let spoiled = stage.ledger.exchanges[call.exchange].down.spoiled;
        if let (true, Some(id)) = (relayed && !spoiled, id) {
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
            if now && (owed > 0 || room <= 0) {
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
        } else if stage.rarely(stage.plan.goaways) && self.left > 0 {
            self.h2.goaway(0);
            self.left = 0;
        }
    }

    /// Sends whatever frames, or the end of it all.
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

    /// Ends the connection; open calls are lost.
    fn leave(&mut self, how: Act, stage: &mut Stage<'_>) {
        self.done(stage);
        stage.ledger.clients_gone.insert(self.number);
        for stream in self.calls.keys().copied().collect::<Vec<_>>() {
            self.drop_call(stream, "left by its client", stage);
        }
        self.state = if matches!(how, Act::Reset) { State::Over } else { State::Leaving };
        super::journal::note("client", self.number, "leaves", [0, 0]);
        stage.acts.push(how);
    }
}

impl Peer for Client {
    fn received(&mut self, bytes: &[u8], stage: &mut Stage<'_>) {
        if matches!(self.state, State::Over | State::Mad) {
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
            let told = self.h2.goaway.is_some() || self.slow || stage.ledger.draining;
            self.h2.expect(told, "left a client without a word");
            self.leave(Act::Fin, stage);
        }
        self.state = State::Over;
    }

    fn tick(&mut self, stage: &mut Stage<'_>) {
        if self.state == State::Mad {
            return self.rage(stage);
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
        if self.state == State::Open && self.left == 0 && self.calls.is_empty() && (stage.closing || stage.seed.chance(if stage.plan.stays { 1 } else { 10 })) {
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

pub(crate) fn field(fields: &[(Vec<u8>, Vec<u8>)], name: &str) -> Option<String> {
    let found = fields.iter().find(|(known, _)| known == name.as_bytes())?;
    Some(String::from_utf8_lossy(&found.1).into_owned())
}

/// A worker's head must arrive as it was sent, with the session's id and perhaps the cookie.
fn relayed_head(number: usize, exchange: &Exchange, mut fields: List, end: bool) {
    assert!(exchange.hopeless.is_none(), "exchange {number}: served against the rules");
    let sent = exchange.down.head.clone().expect("its worker has answered");
    let session = field(&sent, "x-sim-session").expect("workers say it");
    let id = field(&fields, "nvcf-reqid");
    assert_eq!(id.as_deref(), Some(&session[..]), "exchange {number}: another session's id");
    if let Some(at) = fields.iter().position(|(name, _)| name == b"set-cookie") {
        let (_, value) = fields.remove(at);
        let value = String::from_utf8_lossy(&value).into_owned();
        assert_eq!(value, format!("nvcf-request-id={session}"), "exchange {number}: the cookie");
    }
    fields.retain(|(name, _)| name != b"nvcf-reqid");
    assert_eq!(fields, sent, "exchange {number}: another head");
    let only = exchange.down.ended && exchange.down.sent == 0 && exchange.down.trailers.is_none();
    assert!(!end || only, "exchange {number}: the head ends what goes on");
}

/// The gateway's own answer must be one that this request can get.
fn own_answer(number: usize, exchange: &Exchange, fields: &List, status: &str) {
    let code: u8 = match field(fields, "grpc-status") {
        Some(code) => code.parse().expect("a number"),
        None => match status {
            "400" => 3,
            "401" => 16,
            "403" => 7,
            "404" => 5,
            "429" | "431" => 8,
            "500" => 13,
            "502" | "503" => 14,
            "504" => 4,
            other => panic!("exchange {number}: answered with {other}"),
        },
    };
    assert_eq!(field(fields, "grpc-status").is_some(), exchange.grpc, "exchange {number}");
    // Overload and drain are answered first.
    let any = [8, 14];
    let fine = match (exchange.hopeless, &exchange.named) {
        (Some(hopeless), Named::Session(_)) => code == hopeless || code == 5 || any.contains(&code),
        (Some(hopeless), _) => code == hopeless || any.contains(&code),
        (None, Named::Nothing) => [4, 8, 14].contains(&code),
        (None, _) => [4, 5, 8, 14].contains(&code),
    };
    assert!(fine, "exchange {number}: answered with {code}, {:?}", exchange.named);
    if status == "502" {
        assert!(exchange.excuse, "exchange {number}: 502, but no tunnel was lost");
    }
}
