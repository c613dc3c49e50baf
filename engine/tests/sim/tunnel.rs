//! A worker's tunnel: the CONNECT, then a server that answers in every way there is.

mod http1;

use std::collections::BTreeMap;

use http1::Spoken;
use ringway_proto::time::Time;

use super::body::{self, NAME_BYTES, Way};
use super::h2::{CALM, CANCEL, H2, INTERNAL_ERROR, List, NO_ERROR, Offer, REFUSED_STREAM, Seen};
use super::journal::note;
use super::judge::field;
use super::ledger::{EndingTunnel, Exchange, Named, Work};
use super::peer::{Act, CHATTER, Pace, Peer, Stage, Trick};
use super::serve::{Ending, Serve, When, answer_head};

/// A stream whose exchange is not known yet, because only its body names it.
#[derive(Debug)]
struct Nameless {
    head: List,
    bytes: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The CONNECT is not answered yet.
    Asking,
    Open,
    /// The worker sends garbage and understands nothing.
    Mad,
    /// The worker has sent its FIN.
    Closing,
    Over,
}

pub(crate) struct Tunnel {
    number: usize,
    worker: usize,
    work: Work,
    trick: Trick,
    since: Time,
    state: State,
    answer: Vec<u8>,
    spoken: Spoken,
    h2: H2,
    nameless: BTreeMap<u32, Nameless>,
    serves: BTreeMap<u32, Serve>,
    /// The client whose requests come here now. A tunnel has one at a time.
    client: Option<usize>,
    pace: Pace,
    reading: bool,
    /// The worker stops reading after each receive, until its next tick.
    sluggish: bool,
    /// PINGs and SETTINGS that the worker may still send.
    chatter: u32,
    going: bool,
}

impl Tunnel {
    pub(crate) fn new(
        number: usize,
        worker: usize,
        (work, trick): (Work, Trick),
        stage: &mut Stage<'_>,
    ) -> Self {
        let mut offer = Offer {
            streams: stage.seed.pick(&[None, Some(1), Some(2), Some(100)]),
            ..Offer::default()
        };
        let mut extra = 0;
        if stage.seed.chance(stage.plan.tight) {
            offer.window = stage.seed.pick(&[0, 1, 700, 5_000, 20_000]);
            offer.table = stage.seed.pick(&[0, 100, 4096, 65_536]);
        } else if stage.seed.chance(50) {
            offer.window = 1 << 20;
            extra = 1 << 20;
        }
        let authorization = match trick {
            Trick::NoToken => String::new(),
            Trick::WrongToken => {
                format!("Authorization: Bearer {}\r\n", damaged(&work.token, stage))
            }
            Trick::None | Trick::WrongId => format!("Authorization: Bearer {}\r\n", work.token),
        };
        let id = if trick == Trick::WrongId {
            uuid::Uuid::from_u128(7).to_string()
        } else {
            work.id.clone()
        };
        let head = format!(
            "CONNECT /v1/proxy HTTP/1.1\r\nHost: gateway\r\n{authorization}X-Request-Id: {id}\r\n\r\n"
        );
        stage.acts.push(Act::Send(head.into_bytes()));
        stage.ledger.asked += 1;
        if trick == Trick::None {
            stage.ledger.parking.tunnel_comes(number, &work);
            stage.ledger.tunnels.insert(number, work.id.clone());
        }
        let mut h2 = H2::new(number, true, offer, extra);
        let spoken = Spoken::new(stage);
        if matches!(spoken, Spoken::Http2) && stage.plan.sloppy > 0 && stage.seed.chance(30) {
            // This worker begins HTTP/2 without waiting for the answer to its CONNECT.
            let after = if stage.seed.chance(50) { 0 } else { stage.seed.range(1, 300) };
            stage.acts.push(Act::Later(std::mem::take(&mut h2.out), after));
        }
        Self {
            number,
            worker,
            work,
            trick,
            since: stage.now,
            state: State::Asking,
            answer: Vec::new(),
            spoken,
            h2,
            nameless: BTreeMap::new(),
            serves: BTreeMap::new(),
            client: None,
            pace: Pace::new(),
            reading: true,
            sluggish: stage.seed.chance(stage.plan.sluggish),
            chatter: CHATTER,
            going: false,
        }
    }

    fn done(&mut self, stage: &mut Stage<'_>) {
        if self.state != State::Open {
            return;
        }
        let out = self.spoken.take_out(&mut self.h2);
        if !out.is_empty() {
            stage.acts.push(Act::Send(out));
        }
    }

    /// Reads the answer to the CONNECT. Returns the bytes behind it, which belong to the tunnel.
    fn connected(&mut self, bytes: &[u8], stage: &mut Stage<'_>) -> Vec<u8> {
        self.answer.extend_from_slice(bytes);
        let end = self.answer.windows(4).position(|window| window == b"\r\n\r\n");
        let Some(end) = end else { return Vec::new() };
        let head = String::from_utf8_lossy(&self.answer[..end]).into_owned();
        let status = head.split(' ').nth(1).unwrap_or_default().to_owned();
        note("tunnel", self.number, "is answered", [status.parse().unwrap_or(0), 0]);
        if status == "200" {
            assert_eq!(self.trick, Trick::None, "a wrong CONNECT was accepted");
            stage.ledger.accept((&self.work.token, &self.work.id), self.worker, self.since);
            stage.ledger.parking.tunnel_opens(self.number, stage.now);
            self.state = State::Open;
            return self.answer.split_off(end + 4);
        }
        stage.ledger.rejected += 1;
        let fine: &[&str] = match self.trick {
            Trick::NoToken => &["401"],
            // The CONNECT may have been on its way between two gateways for too long: 408.
            _ if stage.plan.many.is_some_and(|many| many.cuts > 0) => &["403", "503", "408"],
            _ => &["403", "503"],
        };
        assert!(
            fine.contains(&&status[..]),
            "a CONNECT ({:?}) was answered with {status}",
            self.trick
        );
        self.state = State::Closing;
        stage.acts.push(Act::Fin);
        if status == "408" {
            self.try_again(stage);
        }
        if status == "503" {
            let quiet = stage.ledger.felt_until <= self.since && !stage.closing;
            let paused = stage.plan.pauses > 0;
            let reason = stage.plan.many.is_none_or(|many| many.leaves > 0) || !quiet || paused;
            assert!(reason, "session {}: its worker is to try again for no reason", self.work.id);
            self.try_again(stage);
        }
        Vec::new()
    }

    /// With several gateways the session's owner may not have been reached. Then the worker dials
    /// again.
    fn try_again(&self, stage: &mut Stage<'_>) {
        if stage.plan.many.is_none() || stage.closing || self.trick != Trick::None {
            return;
        }
        let (worker, work, trick) = (self.worker, self.work.clone(), self.trick);
        let after = stage.seed.range(100_000, 400_000);
        stage.acts.push(Act::Dial { worker, work, trick, after });
    }

    // ---- requests ----

    fn saw(&mut self, seen: Seen, stage: &mut Stage<'_>) {
        match seen {
            Seen::Head { stream, fields, end } => self.head(stream, fields, end, stage),
            Seen::Data { stream, bytes, end } => {
                stage.ledger.relayed += bytes.len();
                self.data(stream, bytes, end, stage);
            }
            Seen::Reset { stream, code } => {
                self.nameless.remove(&stream);
                let Some(serve) = self.serves.remove(&stream) else { return };
                let exchange = &stage.ledger.exchanges[serve.exchange];
                let known =
                    [NO_ERROR, INTERNAL_ERROR, CANCEL, CALM, REFUSED_STREAM].contains(&code);
                let wanted = !exchange.quit && exchange.outcome.is_none() && !serve.ended;
                assert!(
                    known && (!wanted || exchange.excuse),
                    "exchange {}: its worker's stream was reset with {code}",
                    serve.exchange
                );
            }
            Seen::Goaway { code, .. } => {
                let slow = stage.plan.stalls > 0 || stage.plan.pauses > 0;
                let fine = code == NO_ERROR || slow;
                self.h2.expect(fine, &format!("accuses an honest worker: {code}"));
            }
        }
    }

    fn head(&mut self, stream: u32, fields: List, end: bool, stage: &mut Stage<'_>) {
        if let Some(serve) = self.serves.get(&stream) {
            assert!(end, "exchange {}: a second head", serve.exchange);
            let half = &mut stage.ledger.exchanges[serve.exchange].up;
            half.finished(serve.exchange, Way::Up, Some(fields));
            return;
        }
        assert!(!self.nameless.contains_key(&stream), "a body without its beginning");
        match field(&fields, "x-sim") {
            Some(name) => {
                let exchange = name.parse().expect("a number");
                self.meet(stream, exchange, fields, stage);
                if end {
                    stage.ledger.exchanges[exchange].up.finished(exchange, Way::Up, None);
                }
            }
            None => {
                assert!(!end, "a request without its body");
                self.nameless.insert(stream, Nameless { head: fields, bytes: Vec::new() });
            }
        }
    }

    /// A stream's exchange is known now. It must be one that may come here, with its head
    /// unchanged.
    fn meet(&mut self, stream: u32, number: usize, fields: List, stage: &mut Stage<'_>) {
        assert!(number < stage.ledger.exchanges.len(), "a request of nobody's: {number:#x}");
        let http1 = self.speaks_http1();
        let session = &stage.ledger.sessions[&self.work.id];
        let (id, comes) = (&self.work.id, stage.ledger.exchanges[number].client);
        let mut others = stage.ledger.exchanges.iter();
        let asked = others.any(|other| other.client == comes && other.names(id));
        let exchange = &mut stage.ledger.exchanges[number];
        note("tunnel", self.number, "serves exchange", [number as u64, u64::from(stream)]);
        assert!(exchange.hopeless.is_none(), "exchange {number}: no worker may see it");
        assert!(!exchange.too_late, "exchange {number}: its session's process has ended");
        assert_eq!(exchange.tunnel, None, "exchange {number} was sent twice");
        exchange.tunnel = Some(self.number);
        assert_eq!(exchange.tenant, session.tenant, "exchange {number}: another tenant's session");
        assert_eq!(exchange.function, session.function, "exchange {number}: another function");
        let version = exchange.version.is_empty() || exchange.version == session.version;
        assert!(version, "exchange {number}: another version");
        if let Named::Session(id) = &exchange.named {
            assert_eq!(*id, self.work.id, "exchange {number}: the id does not win");
        }
        // A tunnel has one client at a time. A client that follows one that is gone has named its
        // session.
        let client = self.client.replace(exchange.client).filter(|last| *last != exchange.client);
        if let Some(last) = client {
            // In runs whose clients come back, `parking` judges this by what the gateway knows,
            // since the gateway ends an HTTP/1 connection before the client hears of it. The
            // request that named the session may be another one of that client, cancelled before it
            // came here.
            let planned = stage.plan.parking.is_some();
            let gone = planned || http1 || stage.ledger.clients_gone.contains(&last);
            assert!(gone, "exchange {number}: a tunnel of two clients");
            assert!(planned || asked, "exchange {number}: another client's session, unasked");
        }
        let mut expected = exchange.up.head.clone().expect("its client has sent it");
        expected.retain(|(name, _)| name != b"nvcf-reqid");
        expected.push((b"nvcf-reqid".to_vec(), self.work.id.clone().into_bytes()));
        let same = fields == expected || exchange.up.spoiled;
        assert!(same, "exchange {number}: another head: {fields:?}, not {expected:?}");
        if client.is_some() {
            self.check_taken_up(number, stage);
        }
        if stage.plan.parking.is_some() {
            let (http1, now) = (self.speaks_http1(), stage.now);
            let ledger = &mut *stage.ledger;
            let exchanges = &mut ledger.exchanges;
            ledger.parking.tunnel_serves(self.number, number, exchanges, (http1, now));
        }
        let serve = Serve::new(number, stage);
        self.serves.insert(stream, serve);
    }

    /// The first request of another client has come. No exchange of the client before it may go on.
    fn check_taken_up(&self, number: usize, stage: &Stage<'_>) {
        for serve in self.serves.values() {
            let exchange = &stage.ledger.exchanges[serve.exchange];
            let over = serve.ended && exchange.up.got_end;
            assert!(over, "exchange {}: goes on before exchange {number}", serve.exchange);
        }
        // Of the streams that are not named yet, at most so many can be the new client's own.
        let client = stage.ledger.exchanges[number].client;
        let untold = |other: &&Exchange| other.twin && other.tunnel.is_none();
        let own = stage.ledger.exchanges.iter().filter(|other| other.client == client);
        let (own, nameless) = (own.filter(untold).count(), self.nameless.len());
        assert!(nameless <= own, "exchange {number}: requests before it go on");
    }

    fn data(&mut self, stream: u32, bytes: Vec<u8>, end: bool, stage: &mut Stage<'_>) {
        let mut bytes = bytes;
        if let Some(nameless) = self.nameless.get_mut(&stream) {
            nameless.bytes.extend_from_slice(&bytes);
            let Some(name) = nameless.bytes.first_chunk::<NAME_BYTES>() else {
                return assert!(!end, "a body without its beginning");
            };
            let number = usize::try_from(u64::from_be_bytes(*name)).unwrap_or(usize::MAX);
            let Nameless { head, bytes: all } = self.nameless.remove(&stream).expect("just seen");
            self.meet(stream, number, head, stage);
            bytes = all;
        }
        let Some(serve) = self.serves.get(&stream) else { return };
        let half = &mut stage.ledger.exchanges[serve.exchange].up;
        half.arrived(serve.exchange, Way::Up, &bytes);
        if end {
            half.finished(serve.exchange, Way::Up, None);
        }
    }

    // ---- answers ----

    /// Sends some of an answer.
    fn feed(&mut self, stream: u32, stage: &mut Stage<'_>) {
        let Some(serve) = self.serves.get_mut(&stream).filter(|serve| !serve.ended) else { return };
        let number = serve.exchange;
        let exchange = &mut stage.ledger.exchanges[number];
        let ready = match serve.when {
            When::AtOnce => true,
            When::AfterBytes(bytes) => exchange.up.got >= bytes || exchange.up.got_end,
            When::AfterEnd => exchange.up.got_end,
        };
        if !(ready || stage.calm && stage.seed.chance(20)) {
            return;
        }
        if !serve.headed {
            self.pace.hurry();
        }
        stage.ledger.parking.tunnel_works(self.number, stage.now);
        if !serve.headed && serve.interim > 0 {
            serve.interim -= 1;
            exchange.interim_sent += 1;
            if self.speaks_http1() {
                return self.feed_interim();
            }
            self.h2.head(stream, &[(b":status", b"103"), (b"link", b"</x>")], false, stage.seed);
            return;
        }
        let headed = serve.headed;
        if self.speaks_http1() {
            return if headed {
                self.feed_http1(stream, stage);
            } else {
                self.feed_head(stream, stage);
            };
        }
        let Some(serve) = self.serves.get_mut(&stream) else { return };
        if !serve.headed {
            serve.headed = true;
            let fields = answer_head(serve, &self.work.id, self.worker, stage);
            let exchange = &mut stage.ledger.exchanges[number];
            let end = serve.ending == Ending::HeadOnly;
            let view: Vec<_> = fields.iter().map(|(n, v)| (&n[..], &v[..])).collect();
            self.h2.head(stream, &view, end, stage.seed);
            exchange.down.head = Some(fields);
            exchange.down.ended = end;
            serve.ended = end;
            return;
        }
        self.feed_body(stream, stage);
    }

    fn feed_body(&mut self, stream: u32, stage: &mut Stage<'_>) {
        let Some(serve) = self.serves.get_mut(&stream) else { return };
        let number = serve.exchange;
        let exchange = &mut stage.ledger.exchanges[number];
        let half = &mut exchange.down;
        let rest = serve.size - half.sent;
        let most = rest.min(self.h2.room(stream));
        let n = if stage.seed.chance(40) { most } else { stage.seed.range(0, most) };
        // Now and then the end is left for a frame of its own.
        let all = n == rest && (n == 0 || !stage.seed.chance(15));
        let end = all && serve.ending == Ending::Data;
        if n > 0 || end {
            self.pace.hurry();
            let mut bytes = Vec::with_capacity(n);
            body::put(number, Way::Down, half.sent, n, &mut bytes);
            half.sent += n;
            half.ended = end;
            let pad = stage.seed.chance(5).then_some(stage.seed.below(60) as u8);
            self.h2.data(stream, &bytes, end, pad);
        }
        if !all {
            return;
        }
        serve.ended = true;
        match serve.ending {
            Ending::Trailers => {
                let mut trailers: List = vec![(b"grpc-status".to_vec(), b"0".to_vec())];
                if !exchange.twin {
                    trailers.push((b"x-down-trailer".to_vec(), number.to_string().into_bytes()));
                }
                let view: Vec<_> = trailers.iter().map(|(n, v)| (&n[..], &v[..])).collect();
                self.h2.head(stream, &view, true, stage.seed);
                (half.ended, half.trailers) = (true, Some(trailers));
            }
            Ending::Reset(code) => {
                exchange.excuse = true;
                self.h2.reset(stream, code);
                self.serves.remove(&stream);
            }
            Ending::Data | Ending::HeadOnly => {}
        }
    }

    // ---- the connection ----

    fn give_credit(&mut self, stage: &mut Stage<'_>) {
        let streams: Vec<u32> = self.serves.keys().chain(self.nameless.keys()).copied().collect();
        for stream in streams {
            let (worth, room) = (self.h2.is_worth_a_frame(stream), self.h2.receive_room(stream));
            if (stage.calm || stage.seed.chance(40)) && (worth || room <= 0) {
                self.h2.credit_well(stream, stage.seed);
            }
        }
        let least = if stage.calm { 1 } else { stage.seed.range(1, 40_000) as i64 };
        self.h2.connection_credit(least);
    }

    fn trouble(&mut self, stage: &mut Stage<'_>) {
        let http2 = matches!(self.spoken, Spoken::Http2);
        if http2 && self.chatter > 0 && stage.fault(stage.plan.chatter) {
            self.chatter -= 1;
            self.h2.ping();
        }
        if http2
            && self.chatter > 0
            && stage.fault(stage.plan.chatter)
            && self.h2.unacknowledged() == 0
        {
            let offer = Offer {
                window: stage.seed.pick(&[0, 900, 20_000, 65_535, 500_000]),
                table: stage.seed.pick(&[0, 200, 4096]),
                streams: stage.seed.pick(&[None, Some(1), Some(3)]),
                ..self.h2.latest_offer()
            };
            self.chatter -= 1;
            self.h2.settings(offer);
        }
        if stage.rarely(stage.plan.stalls * 2) {
            self.reading = false;
            stage.acts.push(Act::Read(false));
        }
        let lonely = self.client.is_some_and(|of| stage.ledger.clients_gone.contains(&of));
        let fate = stage.plan.parking.filter(|_| lonely).map_or(0, |parking| parking.fates);
        if http2 && stage.rarely(stage.plan.goaways + fate / 2) && !self.going {
            self.excuse_all(stage);
            self.going = true;
            let last = self.h2.highest.saturating_sub(stage.seed.pick(&[0, 0, 2]));
            note("tunnel", self.number, "says GOAWAY", [last.into(), 0]);
            self.h2.goaway(last);
            self.h2.ping();
            self.serves.retain(|stream, _| *stream <= last);
            self.nameless.retain(|stream, _| *stream <= last);
        }
        if let Some(client) = self.client
            // Where clients come back, the next one would meet the mad worker.
            && stage.plan.parking.is_none()
            && stage.rarely(stage.plan.vandals)
        {
            stage.ledger.tunnel_madness(&self.work.id, client);
            self.done(stage);
            note("tunnel", self.number, "goes mad", [0, 0]);
            stage.ledger.tunnel_ended(&self.work.id, self.worker, stage.now);
            self.serves.clear();
            self.nameless.clear();
            self.state = State::Mad;
            return;
        }
        if stage.rarely(stage.plan.breaks + fate) {
            self.excuse_all(stage);
            let how = if stage.seed.chance(50) { Act::Reset } else { Act::Fin };
            self.leave(how, stage);
        }
    }

    /// Every exchange that uses this tunnel, or waits for it, now has a reason to fail.
    fn excuse_all(&self, stage: &mut Stage<'_>) {
        self.excuse_raw(stage);
        let tenant = self.work.tenant.clone();
        let client = self.client.filter(|client| {
            stage.plan.parking.is_none() || !stage.ledger.clients_gone.contains(client)
        });
        let (tunnel, session) = (self.number, self.work.id.clone());
        stage.ledger.is_leaving(EndingTunnel { tunnel, client, session, tenant });
    }

    fn leave(&mut self, how: Act, stage: &mut Stage<'_>) {
        self.done(stage);
        note("tunnel", self.number, "leaves", [u64::from(matches!(how, Act::Reset)), 0]);
        if self.state == State::Open {
            stage.ledger.tunnel_ended(&self.work.id, self.worker, stage.now);
            stage.ledger.parking.tunnel_left(self.number, &mut stage.ledger.exchanges);
            if matches!(how, Act::Fin) {
                self.end_with_fin(stage);
            }
        }
        self.serves.clear();
        self.nameless.clear();
        self.state = if matches!(how, Act::Reset) { State::Over } else { State::Closing };
        stage.acts.push(how);
    }
}

/// A token with one character changed.
fn damaged(token: &str, stage: &mut Stage<'_>) -> String {
    let mut token = token.as_bytes().to_vec();
    let at = stage.seed.below(token.len());
    token[at] = if token[at] == b'A' { b'B' } else { b'A' };
    String::from_utf8_lossy(&token).into_owned()
}

impl Peer for Tunnel {
    fn received(&mut self, bytes: &[u8], stage: &mut Stage<'_>) {
        let bytes = match self.state {
            State::Asking => self.connected(bytes, stage),
            State::Open => bytes.to_vec(),
            State::Mad | State::Closing | State::Over => return,
        };
        self.read(bytes, stage);
        if self.h2.goaway_was_read() {
            stage.ledger.leaving.retain(|leaving| leaving.tunnel != self.number);
        }
        self.pace.hurry();
        if self.sluggish && self.reading {
            self.reading = false;
            stage.acts.push(Act::Read(false));
        }
        self.done(stage);
    }

    fn ended(&mut self, reset: bool, stage: &mut Stage<'_>) {
        note("tunnel", self.number, "was closed", [u64::from(reset), 0]);
        if self.state == State::Open {
            for serve in self.serves.values() {
                let exchange = &stage.ledger.exchanges[serve.exchange];
                let wanted = !exchange.quit && exchange.outcome.is_none() && !serve.ended;
                let lost = wanted && !exchange.excuse;
                assert!(!lost, "exchange {}: its tunnel was closed under it", serve.exchange);
            }
            if !reset {
                self.check_raw(stage);
            }
            self.leave(Act::Fin, stage);
        } else if self.state == State::Asking {
            stage.acts.push(Act::Fin);
            self.try_again(stage);
        }
        self.state = State::Over;
    }

    fn tick(&mut self, stage: &mut Stage<'_>) {
        if !self.reading && (stage.calm || self.sluggish || stage.seed.chance(30)) {
            self.reading = true;
            stage.acts.push(Act::Read(true));
        }
        if self.state == State::Open {
            for stream in self.serves.keys().copied().collect::<Vec<_>>() {
                if stage.seed.chance(70) {
                    self.feed(stream, stage);
                }
            }
            self.feed_raw(stage);
            if self.state != State::Open {
                return;
            }
            if self.reading {
                self.give_credit(stage);
            }
            self.trouble(stage);
            self.done(stage);
        }
        if self.state == State::Mad {
            if stage.calm || stage.seed.chance(10) {
                self.state = State::Closing;
                return stage.acts.push(Act::Reset);
            }
            let nonsense = self.nonsense(stage);
            stage.acts.push(Act::Send(nonsense));
        }
        if matches!(self.state, State::Open | State::Asking | State::Mad) {
            stage.acts.push(Act::Wait(self.pace.next(stage.seed)));
        }
    }
}
