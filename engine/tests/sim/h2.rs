//! One end of an HTTP/2 connection with the gateway, written from RFC 9113 alone. It shares no code
//! with the gateway. It counts windows and streams of both directions, and panics at whatever the
//! gateway may not send.

mod read;

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

/// A peer never gives less credit than this at once. If it credited each small frame of a full
/// window, the gateway would take that for a dribble of credit (L5).
const DRIBBLE: i64 = 300;

const MAX_WINDOW: i64 = 0x7fff_ffff;

/// Names and values in order.
pub(crate) type List = Vec<(Vec<u8>, Vec<u8>)>;

/// SETTINGS of this peer. They hold from their acknowledgement on.
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

/// An event in what the gateway sent.
#[derive(Debug)]
pub(crate) enum Seen {
    Head { stream: u32, fields: List, end: bool },
    Data { stream: u32, bytes: Vec<u8>, end: bool },
    Reset { stream: u32, code: u32 },
    Goaway { last: u32, code: u32 },
}

#[derive(Debug)]
pub(crate) struct Stream {
    /// Octets that the gateway may still send.
    receive: i64,
    /// Octets that this peer may still send.
    send: i64,
    /// Octets that have come and are not credited back yet.
    owed: i64,
    /// The gateway has ended its side of the stream.
    pub(crate) got_end: bool,
    /// This peer has ended its side.
    pub(crate) sent_end: bool,
    /// The gateway has sent a final head.
    got_head: bool,
    /// The number of the first PING behind our RST_STREAM. Once that PING is answered, nothing of
    /// the stream may come any more.
    quit: Option<u64>,
    /// The gateway has reset the stream.
    pub(crate) was_reset: bool,
}

impl Stream {
    fn is_closed(&self) -> bool {
        self.quit.is_some() || self.was_reset || (self.got_end && self.sent_end)
    }
}

/// A header block of which more parts will come.
struct Block {
    stream: u32,
    end: bool,
    bytes: Vec<u8>,
}

pub(crate) struct H2 {
    /// The peer's number, for messages.
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
    /// Our SETTINGS that the gateway has acknowledged.
    offer: Offer,
    /// Our SETTINGS that are not acknowledged yet, in order.
    offered: VecDeque<Offer>,
    /// The table size that the gateway's encoder has announced.
    table: u32,
    /// The smallest table size of ours that was acknowledged since its last block.
    table_least: u32,
    settings_seen: bool,
    peer_window: i64,
    pub(crate) peer_frame: usize,
    pub(crate) peer_streams: usize,
    pings_sent: u64,
    pings_answered: u64,
    /// Of our GOAWAY: the number of the next PING behind it, and its last stream.
    going: Option<(u64, u32)>,
    /// The gateway's GOAWAY: its last stream and its code.
    pub(crate) goaway: Option<(u32, u32)>,
}

impl H2 {
    /// A peer of the gateway: a server on a tunnel, else a client.
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
        let of = [offer.window.into(), offer.table.into()];
        note("peer", self.name, "offers window and table", of);
        self.frame(SETTINGS, 0, 0, &payload);
        self.offered.push_back(offer);
    }

    /// The SETTINGS that we sent last.
    pub(crate) fn latest_offer(&self) -> Offer {
        self.offered.back().copied().unwrap_or(self.offer)
    }

    pub(crate) fn unacknowledged(&self) -> usize {
        self.offered.len()
    }

    pub(crate) fn ping(&mut self) {
        self.pings_sent += 1;
        let payload = self.pings_sent.to_be_bytes();
        note("peer", self.name, "sends PING", [self.pings_sent, 0]);
        self.frame(PING, 0, 0, &payload);
    }

    /// Whether the gateway has read our GOAWAY: it has if the PING behind it is answered.
    pub(crate) fn goaway_was_read(&self) -> bool {
        self.going.is_some_and(|(fence, _)| self.pings_answered >= fence)
    }

    fn window_update(&mut self, stream: u32, credit: u32) {
        note("peer", self.name, "gives credit, stream and bytes", [stream.into(), credit.into()]);
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

    /// How many streams count against the limit on open streams.
    pub(crate) fn open_streams(&self) -> usize {
        self.streams.values().filter(|stream| !stream.is_closed()).count()
    }

    /// Sends a field section in one frame or several.
    pub(crate) fn head(&mut self, id: u32, fields: &[(&[u8], &[u8])], end: bool, seed: &mut Seed) {
        let mut block = Vec::new();
        if seed.chance(4) {
            // The block begins with a dynamic table size update, to the same size or a smaller one.
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
        note("peer", self.name, "sends DATA, stream and length", [id.into(), len as u64]);
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

    /// Gives credit back for every octet that came on a stream. If the window stays so small that
    /// this would be a dribble (L5), it gives more.
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

    /// Octets that the gateway may still send on a stream.
    pub(crate) fn receive_room(&self, id: u32) -> i64 {
        self.streams.get(&id).map_or(0, |stream| stream.receive)
    }

    /// Whether credit for a stream would be more than a dribble.
    pub(crate) fn is_worth_a_frame(&self, id: u32) -> bool {
        self.owed(id) >= DRIBBLE
    }

    /// Gives the connection's credit back if at least so many octets have come.
    pub(crate) fn connection_credit(&mut self, least: i64) {
        let least = least.max(DRIBBLE);
        if self.owed >= least {
            let credit = std::mem::take(&mut self.owed);
            self.receive += credit;
            self.window_update(0, credit as u32);
        }
    }
}

/// Garbage: frames of any kind with any payload, and now and then bytes that are no frames.
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
            // The payload is HPACK indexes, small numbers, zeros or noise.
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

/// Appends an integer as HPACK writes it (RFC 7541 §5.1).
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
