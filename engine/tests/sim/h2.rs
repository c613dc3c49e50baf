//! One end of an HTTP/2 connection with the gateway, written from RFC 9113 alone: it shares no code
//! with the gateway, keeps the books of both directions, and panics at whatever the gateway may not
//! send.

use std::collections::{BTreeMap, VecDeque};

use fluke_hpack::{Decoder, Encoder};

use super::journal::note;
use super::seed::Seed;

pub(crate) const MAGIC: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

pub(crate) const NO_ERROR: u32 = 0;
pub(crate) const INTERNAL_ERROR: u32 = 2;
pub(crate) const SETTINGS_TIMEOUT: u32 = 4;
pub(crate) const REFUSED_STREAM: u32 = 7;
pub(crate) const CANCEL: u32 = 8;
pub(crate) const CALM: u32 = 11;

const MAX_WINDOW: i64 = 0x7fff_ffff;

/// Names and values in order.
pub(crate) type List = Vec<(Vec<u8>, Vec<u8>)>;

/// SETTINGS of ours; each holds from its acknowledgement on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offer {
    pub(crate) window: u32,
    pub(crate) table: u32,
    pub(crate) streams: Option<u32>,
    pub(crate) frame: u32,
}

impl Default for Offer {
    fn default() -> Self {
        Self { window: 65_535, table: 4096, streams: None, frame: 16_384 }
    }
}

/// What the gateway said.
#[derive(Debug)]
pub(crate) enum Seen {
    Head { stream: u32, fields: List, end: bool },
    Data { stream: u32, bytes: Vec<u8>, end: bool },
    Reset { stream: u32, code: u32 },
    Goaway { last: u32, code: u32 },
}

#[derive(Debug)]
pub(crate) struct Stream {
    /// What the gateway may still send, and what we may.
    receive: i64,
    send: i64,
    /// Taken and not given back yet.
    owed: i64,
    /// The gateway has ended its side, we have ended ours.
    pub(crate) got_end: bool,
    pub(crate) sent_end: bool,
    /// A final head came.
    got_head: bool,
    /// The number of the first PING behind our RST_STREAM: once that is answered, nothing of the
    /// stream may come any more.
    quit: Option<u64>,
    /// The gateway has reset it.
    pub(crate) was_reset: bool,
}

impl Stream {
    fn is_closed(&self) -> bool {
        self.quit.is_some() || self.was_reset || (self.got_end && self.sent_end)
    }
}

/// A header block in parts.
struct Block {
    stream: u32,
    end: bool,
    bytes: Vec<u8>,
}

pub(crate) struct H2 {
    /// Whose it is, for the messages.
    pub(crate) name: usize,
    server: bool,
    magic: usize,
    input: Vec<u8>,
    at: usize,
    /// Bytes for the gateway.
    pub(crate) out: Vec<u8>,
    encoder: Encoder<'static>,
    decoder: Decoder<'static>,
    block: Option<Block>,
    pub(crate) streams: BTreeMap<u32, Stream>,
    pub(crate) highest: u32,
    receive: i64,
    owed: i64,
    send: i64,
    /// In force on the gateway's side, and offered but not acknowledged.
    offer: Offer,
    offered: VecDeque<Offer>,
    /// The gateway's encoder: its table, and the smallest size we acknowledged it to since a block.
    table: u32,
    table_least: u32,
    settings_seen: bool,
    peer_window: i64,
    pub(crate) peer_frame: usize,
    pub(crate) peer_streams: usize,
    pings_sent: u64,
    pings_answered: u64,
    /// The PING behind our GOAWAY and its last stream.
    going: Option<(u64, u32)>,
    pub(crate) goaway: Option<(u32, u32)>,
    /// DATA octets and frames the gateway has sent here: what it must give credit for, and what
    /// allows us WINDOW_UPDATEs.
    pub(crate) data_frames: u64,
    pub(crate) updates: u64,
}

impl H2 {
    /// The gateway's peer: `server` on a tunnel, else a client.
    pub(crate) fn new(name: usize, server: bool, offer: Offer, extra_window: u32) -> Self {
        let mut decoder = Decoder::new();
        decoder.set_max_allowed_table_size(4096);
        let mut h2 = Self {
            name,
            server,
            magic: 0,
            input: Vec::new(),
            at: 0,
            out: Vec::new(),
            encoder: Encoder::new(),
            decoder,
            block: None,
            streams: BTreeMap::new(),
            highest: 0,
            receive: 65_535,
            owed: 0,
            send: 65_535,
            offer: Offer::default(),
            offered: VecDeque::new(),
            table: 4096,
            table_least: 4096,
            settings_seen: false,
            peer_window: 65_535,
            peer_frame: 16_384,
            peer_streams: usize::MAX,
            pings_sent: 0,
            pings_answered: 0,
            going: None,
            goaway: None,
            data_frames: 0,
            updates: 0,
        };
        if !server {
            h2.out.extend_from_slice(MAGIC);
        }
        h2.settings(offer);
        if extra_window > 0 {
            h2.receive += i64::from(extra_window);
            h2.window_update(0, extra_window);
        }
        h2
    }

    // ---- what we send ----

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let len = payload.len() as u32;
        self.out.extend_from_slice(&len.to_be_bytes()[1..]);
        self.out.extend_from_slice(&[kind, flags]);
        self.out.extend_from_slice(&stream.to_be_bytes());
        self.out.extend_from_slice(payload);
    }

    pub(crate) fn settings(&mut self, offer: Offer) {
        let mut payload = Vec::new();
        let mut put = |id: u16, value: u32| {
            payload.extend_from_slice(&id.to_be_bytes());
            payload.extend_from_slice(&value.to_be_bytes());
        };
        put(1, offer.table);
        put(4, offer.window);
        put(5, offer.frame);
        if let Some(streams) = offer.streams {
            put(3, streams);
        }
        if !self.server {
            put(2, 0);
        }
        self.frame(SETTINGS, 0, 0, &payload);
        self.offered.push_back(offer);
    }

    /// SETTINGS we offered last.
    pub(crate) fn latest_offer(&self) -> Offer {
        self.offered.back().copied().unwrap_or(self.offer)
    }

    pub(crate) fn unacknowledged(&self) -> usize {
        self.offered.len()
    }

    pub(crate) fn ping(&mut self) {
        self.pings_sent += 1;
        let payload = self.pings_sent.to_be_bytes();
        self.frame(PING, 0, 0, &payload);
    }

    fn window_update(&mut self, stream: u32, credit: u32) {
        self.updates += 1;
        self.frame(WINDOW_UPDATE, 0, stream, &credit.to_be_bytes());
    }

    pub(crate) fn open(&mut self) -> u32 {
        let id = if self.highest == 0 { 1 } else { self.highest + 2 };
        self.highest = id;
        self.add(id);
        id
    }

    fn add(&mut self, id: u32) {
        let stream = Stream {
            receive: i64::from(self.offer.window),
            send: self.peer_window,
            owed: 0,
            got_end: false,
            sent_end: false,
            got_head: false,
            quit: None,
            was_reset: false,
        };
        self.streams.insert(id, stream);
    }

    /// Streams that count against the gateway's, or our, limit.
    pub(crate) fn open_streams(&self) -> usize {
        self.streams.values().filter(|stream| !stream.is_closed()).count()
    }

    /// A field section, in one frame or several.
    pub(crate) fn head(&mut self, id: u32, fields: &[(&[u8], &[u8])], end: bool, seed: &mut Seed) {
        let mut block = Vec::new();
        if seed.chance(4) {
            // A dynamic table size update, to the size the table has or to a smaller one.
            let size = seed.pick(&[4096_usize, 256, 0]);
            self.encoder.set_max_table_size(size);
            put_integer(&mut block, 0x20, 5, size);
        }
        block.extend(self.encoder.encode(fields.iter().copied()));
        let flags = if end { END_STREAM } else { 0 };
        let parts = if seed.chance(15) { seed.range(2, 4) } else { 1 };
        let mut first = true;
        let size = block.len().div_ceil(parts).min(self.peer_frame);
        let mut rest = &block[..];
        while first || !rest.is_empty() {
            let (part, behind) = rest.split_at(size.min(rest.len()));
            let last = if behind.is_empty() { END_HEADERS } else { 0 };
            match (first, first && parts == 1 && part.len() < 4000 && seed.chance(6)) {
                (true, true) => {
                    let mut padded = vec![3];
                    padded.extend_from_slice(part);
                    padded.extend_from_slice(&[0; 3]);
                    self.frame(HEADERS, flags | last | PADDED, id, &padded);
                }
                (true, false) => self.frame(HEADERS, flags | last, id, part),
                (false, _) => self.frame(CONTINUATION, last, id, part),
            }
            (rest, first) = (behind, false);
        }
        if end && let Some(stream) = self.streams.get_mut(&id) {
            stream.sent_end = true;
        }
    }

    /// How much DATA may be sent on a stream in one frame.
    pub(crate) fn room(&self, id: u32) -> usize {
        let stream = self.streams.get(&id).map_or(0, |stream| stream.send);
        usize::try_from(stream.min(self.send)).unwrap_or(0).min(self.peer_frame)
    }

    pub(crate) fn data(&mut self, id: u32, bytes: &[u8], end: bool, pad: Option<u8>) {
        let pad = pad.filter(|pad| bytes.len() + usize::from(*pad) < self.room(id));
        let flags = if end { END_STREAM } else { 0 };
        let len = match pad {
            Some(pad) => {
                let mut padded = vec![pad];
                padded.extend_from_slice(bytes);
                padded.resize(padded.len() + usize::from(pad), 0);
                self.frame(DATA, flags | PADDED, id, &padded);
                padded.len()
            }
            None => {
                self.frame(DATA, flags, id, bytes);
                bytes.len()
            }
        };
        self.send -= len as i64;
        let stream = self.streams.get_mut(&id).expect("DATA on a stream we know");
        stream.send -= len as i64;
        stream.sent_end |= end;
    }

    pub(crate) fn reset(&mut self, id: u32, code: u32) {
        self.frame(RST_STREAM, 0, id, &code.to_be_bytes());
        let fence = self.pings_sent + 1;
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.quit = Some(fence);
        }
    }

    pub(crate) fn goaway(&mut self, last: u32) {
        let mut payload = last.to_be_bytes().to_vec();
        payload.extend_from_slice(&[0; 4]);
        self.frame(GOAWAY, 0, 0, &payload);
        self.going = Some((self.pings_sent + 1, last));
    }

    /// Gives stream credit back: all that is owed, and more if that leaves the window so small that
    /// it would be a dribble (L5).
    pub(crate) fn credit_well(&mut self, id: u32, seed: &mut Seed) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let tiny = stream.receive + stream.owed < 500;
        let more = if tiny { seed.range(500, 5000) as i64 - stream.receive.min(0) } else { 0 };
        let credit = stream.owed + more;
        if credit <= 0 || stream.got_end || stream.is_closed() {
            return;
        }
        if stream.receive + credit > MAX_WINDOW {
            return;
        }
        stream.owed = 0;
        stream.receive += credit;
        self.window_update(id, credit as u32);
    }

    pub(crate) fn owed(&self, id: u32) -> i64 {
        self.streams.get(&id).map_or(0, |stream| stream.owed)
    }

    /// What the gateway may still send on a stream.
    pub(crate) fn receive_room(&self, id: u32) -> i64 {
        self.streams.get(&id).map_or(0, |stream| stream.receive)
    }

    /// Gives the connection's credit back if at least so much is owed.
    pub(crate) fn connection_credit(&mut self, least: i64) {
        if self.owed >= least.max(1) {
            let credit = std::mem::take(&mut self.owed);
            self.receive += credit;
            self.window_update(0, credit as u32);
        }
    }

    // ---- what comes ----

    /// Reads what the gateway sent.
    pub(crate) fn read(&mut self, bytes: &[u8], seen: &mut Vec<Seen>) {
        self.input.extend_from_slice(bytes);
        while self.server && self.magic < MAGIC.len() && self.at < self.input.len() {
            self.expect(self.input[self.at] == MAGIC[self.magic], "sent no HTTP/2 magic");
            (self.at, self.magic) = (self.at + 1, self.magic + 1);
        }
        while let Some(head) = self.input.get(self.at..self.at + 9) {
            let len = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let (kind, flags) = (head[3], head[4]);
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            self.expect(len <= self.offer.frame as usize, "sent too long a frame");
            self.expect(stream >> 31 == 0, "set a reserved bit");
            let start = self.at + 9;
            let Some(payload) = self.input.get(start..start + len) else { break };
            let payload = payload.to_vec();
            self.at = start + len;
            self.expect(self.settings_seen || kind == SETTINGS, "did not begin with SETTINGS");
            note("peer", self.name, FRAMES[usize::from(kind.min(10))], [stream.into(), len as u64]);
            self.incoming(kind, flags, stream, payload, seen);
        }
        if self.at > 16 * 1024 || self.at == self.input.len() {
            self.input.drain(..self.at);
            self.at = 0;
        }
    }

    /// Fails the run unless `fine`.
    #[track_caller]
    pub(crate) fn expect(&self, fine: bool, what: &str) {
        assert!(fine, "to peer {} the gateway {what}", self.name);
    }

    fn incoming(&mut self, kind: u8, flags: u8, id: u32, payload: Vec<u8>, seen: &mut Vec<Seen>) {
        let in_block = self.block.as_ref().map(|block| block.stream);
        self.expect(
            in_block.is_none_or(|block| kind == CONTINUATION && block == id),
            "put a frame into a header block",
        );
        match kind {
            DATA => self.incoming_data(flags, id, payload, seen),
            HEADERS => {
                self.expect(flags & !(END_STREAM | END_HEADERS) == 0, "set an unknown flag");
                self.block = Some(Block { stream: id, end: flags & END_STREAM != 0, bytes: payload });
                self.end_block(flags, seen);
            }
            CONTINUATION => {
                self.expect(in_block.is_some(), "sent CONTINUATION behind nothing");
                if let Some(block) = &mut self.block {
                    block.bytes.extend_from_slice(&payload);
                }
                self.end_block(flags, seen);
            }
            RST_STREAM => {
                self.expect(payload.len() == 4, "sent a bad RST_STREAM");
                let code = number(&payload);
                self.expect(self.streams.contains_key(&id), "reset an idle stream");
                let stream = self.streams.get_mut(&id).expect("just seen");
                let again = std::mem::replace(&mut stream.was_reset, true);
                let gone = stream.quit.is_some();
                self.expect(!again, "reset a stream twice");
                if !gone {
                    seen.push(Seen::Reset { stream: id, code });
                }
            }
            SETTINGS => self.incoming_settings(flags, id, &payload),
            PING => {
                self.expect(payload.len() == 8 && id == 0, "sent a bad PING");
                if flags & ACK == 0 {
                    self.frame(PING, ACK, 0, &payload);
                    return;
                }
                self.pings_answered += 1;
                let right = payload == self.pings_answered.to_be_bytes();
                self.expect(right, "answered a PING wrongly");
            }
            GOAWAY => {
                self.expect(payload.len() >= 8 && id == 0, "sent a bad GOAWAY");
                let (last, code) = (number(&payload), number(&payload[4..]));
                self.expect(self.goaway.is_none_or(|(before, _)| last <= before), "raised a GOAWAY");
                self.goaway = Some((last, code));
                seen.push(Seen::Goaway { last, code });
            }
            WINDOW_UPDATE => self.incoming_credit(id, &payload),
            _ => panic!("to peer {} the gateway sent a frame of kind {kind}", self.name),
        }
    }

    fn incoming_settings(&mut self, flags: u8, id: u32, payload: &[u8]) {
        self.expect(id == 0 && payload.len() % 6 == 0, "sent bad SETTINGS");
        if flags & ACK != 0 {
            let offer = self.offered.pop_front();
            self.expect(offer.is_some(), "acknowledged SETTINGS that were never sent");
            let offer = offer.unwrap_or_default();
            let change = i64::from(offer.window) - i64::from(self.offer.window);
            for stream in self.streams.values_mut() {
                stream.receive += change;
            }
            self.table_least = self.table_least.min(offer.table);
            self.decoder.set_max_allowed_table_size(offer.table as usize);
            self.offer = offer;
            return;
        }
        self.settings_seen = true;
        for setting in payload.chunks(6) {
            let value = number(&setting[2..]);
            match setting[1] {
                3 => self.peer_streams = value as usize,
                4 => {
                    self.expect(i64::from(value) <= MAX_WINDOW, "offered too large a window");
                    let change = i64::from(value) - self.peer_window;
                    self.peer_window += change;
                    for stream in self.streams.values_mut() {
                        stream.send += change;
                    }
                }
                5 => {
                    let legal = (16_384..=16_777_215).contains(&value);
                    self.expect(legal, "offered a bad frame size");
                    self.peer_frame = value as usize;
                }
                2 => self.expect(value == 0, "offered push"),
                _ => {}
            }
        }
        self.frame(SETTINGS, ACK, 0, &[]);
    }

    fn incoming_credit(&mut self, id: u32, payload: &[u8]) {
        self.expect(payload.len() == 4, "sent a bad WINDOW_UPDATE");
        let credit = i64::from(number(payload));
        self.expect(credit > 0, "gave no credit");
        if id == 0 {
            self.send += credit;
            return self.expect(self.send <= MAX_WINDOW, "overflowed the connection's window");
        }
        self.expect(self.streams.contains_key(&id), "gave credit to an idle stream");
        let stream = self.streams.get_mut(&id).expect("just seen");
        stream.send += credit;
        let (window, reset) = (stream.send, stream.was_reset);
        self.expect(window <= MAX_WINDOW, "overflowed a stream's window");
        self.expect(!reset, "gave credit to a stream it has reset");
    }

    /// The stream of a frame that belongs to a message; `None` if the frame is late.
    fn message_stream(&mut self, id: u32, what: &str) -> Option<&mut Stream> {
        self.expect(self.streams.contains_key(&id), "used an idle stream");
        let answered = self.pings_answered;
        let (name, stream) = (self.name, self.streams.get_mut(&id).expect("just seen"));
        let fine = !stream.was_reset && !stream.got_end;
        assert!(fine, "to peer {name} the gateway sent {what} on stream {id} after its end");
        if let Some(fence) = stream.quit {
            let late = answered < fence;
            assert!(late, "to peer {name} the gateway sent {what} on stream {id} long after our reset");
            return None;
        }
        Some(stream)
    }

    fn incoming_data(&mut self, flags: u8, id: u32, bytes: Vec<u8>, seen: &mut Vec<Seen>) {
        self.expect(flags & !END_STREAM == 0, "set an unknown flag on DATA");
        let (len, end) = (bytes.len() as i64, flags & END_STREAM != 0);
        self.receive -= len;
        self.owed += len;
        self.data_frames += 1;
        self.expect(self.receive >= 0, "overran the connection's window");
        if self.refused(id) {
            return;
        }
        let server = self.server;
        let Some(stream) = self.message_stream(id, "DATA") else {
            let stream = self.streams.get_mut(&id).expect("it is late, but known");
            stream.receive -= len;
            let room = stream.receive;
            return self.expect(room >= 0, "overran a stream's window after a reset");
        };
        stream.receive -= len;
        stream.owed += len;
        stream.got_end |= end;
        let (room, headed) = (stream.receive, stream.got_head || server);
        self.expect(room >= 0, "overran a stream's window");
        self.expect(headed, "sent DATA before a head");
        self.expect(len > 0 || end, "sent empty DATA");
        seen.push(Seen::Data { stream: id, bytes, end });
    }

    /// A stream above our GOAWAY's last: nobody serves it.
    fn refused(&self, id: u32) -> bool {
        self.server && self.going.is_some_and(|(_, last)| id > last)
    }

    fn end_block(&mut self, flags: u8, seen: &mut Vec<Seen>) {
        if flags & END_HEADERS == 0 {
            return;
        }
        let Block { stream: id, end, bytes } = self.block.take().expect("called with one");
        self.check_table(&bytes);
        let fields = match self.decoder.decode(&bytes) {
            Ok(fields) => fields,
            Err(error) => panic!("peer {} cannot decode the gateway's block: {error:?}", self.name),
        };
        if self.server && !self.streams.contains_key(&id) {
            self.expect(id % 2 == 1 && id > self.highest, "opened a stream out of order");
            if let Some((fence, last)) = self.going {
                let late = id <= last || self.pings_answered < fence;
                self.expect(late, "opened a stream long after our GOAWAY");
            }
            self.highest = id;
            self.add(id);
            if self.refused(id) {
                return;
            }
            let open = self.open_streams();
            let most = self.offer.streams.map_or(usize::MAX, |most| most as usize);
            self.expect(open <= most, "opened more streams than allowed");
        } else if self.refused(id) {
            return;
        }
        let Some(stream) = self.message_stream(id, "HEADERS") else { return };
        stream.got_end |= end;
        stream.got_head |= fields.first().is_some_and(|(_, value)| !value.starts_with(b"1"));
        seen.push(Seen::Head { stream: id, fields, end });
    }

    /// RFC 7541 §4.2: after our table shrank, the next block begins by saying so.
    fn check_table(&mut self, block: &[u8]) {
        let mut rest = block;
        let mut first = true;
        while let Some((size, behind)) = size_update(rest) {
            if first && self.table_least < self.table {
                let least = self.table_least as usize;
                self.expect(size <= least, "shrank its table too late");
            }
            self.table = size as u32;
            (rest, first) = (behind, false);
        }
        self.expect(!first || self.table_least >= self.table, "did not shrink its table");
        self.table_least = self.offer.table.max(self.table);
    }
}

/// Frames of any kind, with anything in them; seldom no frames at all.
pub(crate) fn garbage(seed: &mut Seed) -> Vec<u8> {
    let mut out = Vec::new();
    if seed.chance(10) {
        out.extend((0..seed.range(1, 200)).map(|_| seed.next() as u8));
        return out;
    }
    for _ in 0..seed.range(1, 30) {
        let kind = seed.pick(&[0, 0, 1, 1, 1, 2, 3, 3, 4, 5, 6, 7, 8, 8, 9, 20, 255]);
        let flags = seed.pick(&[0, 1, 4, 5, 8, 0x0d, 0x20, 0x2d, 0xff]);
        let stream = seed.pick(&[0, 1, 1, 3, 3, 5, 7, 2, 101, 0x7fff_ffff, 0xffff_ffff]);
        let len = seed.pick(&[0, 1, 4, 4, 5, 6, 8, 12, 36, 300]);
        let mut payload: Vec<u8> = match seed.below(4) {
            // Static and dynamic indexes, small numbers, noise.
            0 => (0..len).map(|_| 0x80 | seed.below(70) as u8).collect(),
            1 => (0..len).map(|at| if at % 4 == 3 { seed.below(5) as u8 } else { 0 }).collect(),
            2 => vec![0; len],
            _ => (0..len).map(|_| seed.next() as u8).collect(),
        };
        if kind == SETTINGS && payload.len() >= 2 {
            payload[..2].copy_from_slice(&(seed.below(8) as u16).to_be_bytes());
        }
        let told = if seed.chance(3) { seed.range(0, 70_000) } else { len } as u32;
        out.extend_from_slice(&told.to_be_bytes()[1..]);
        out.extend_from_slice(&[kind, flags]);
        out.extend_from_slice(&u32::to_be_bytes(stream));
        out.extend_from_slice(&payload);
    }
    out
}

const FRAMES: [&str; 11] = [
    "gets DATA, stream and length",
    "gets HEADERS",
    "gets PRIORITY",
    "gets RST_STREAM",
    "gets SETTINGS",
    "gets PUSH_PROMISE",
    "gets PING",
    "gets GOAWAY",
    "gets WINDOW_UPDATE",
    "gets CONTINUATION",
    "gets an unknown frame",
];

fn number(bytes: &[u8]) -> u32 {
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// RFC 7541 §5.1.
fn put_integer(out: &mut Vec<u8>, pattern: u8, bits: u8, value: usize) {
    let most = (1_usize << bits) - 1;
    if value < most {
        return out.push(pattern | value as u8);
    }
    out.push(pattern | most as u8);
    let mut rest = value - most;
    while rest >= 128 {
        out.push((rest % 128) as u8 | 128);
        rest /= 128;
    }
    out.push(rest as u8);
}

/// A dynamic table size update at the beginning of a block, and what follows it.
fn size_update(block: &[u8]) -> Option<(usize, &[u8])> {
    let first = *block.first()?;
    if first & 0xe0 != 0x20 {
        return None;
    }
    let mut value = usize::from(first & 0x1f);
    let mut rest = &block[1..];
    if value == 31 {
        let mut shift = 0;
        loop {
            let (&octet, behind) = rest.split_first()?;
            rest = behind;
            value += usize::from(octet & 0x7f) << shift;
            shift += 7;
            if octet & 0x80 == 0 {
                break;
            }
        }
    }
    Some((value, rest))
}
