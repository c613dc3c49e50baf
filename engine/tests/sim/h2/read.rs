//! Reads what the gateway sends, frame by frame, and checks that the gateway may send it.

use super::{
    ACK, Block, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, H2, HEADERS, MAGIC,
    MAX_WINDOW, PING, RST_STREAM, SETTINGS, Seen, Stream, WINDOW_UPDATE,
};
use crate::journal::note;

impl H2 {
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
                self.block =
                    Some(Block { stream: id, end: flags & END_STREAM != 0, bytes: payload });
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
                let (is, of) = (self.pings_answered, self.pings_sent);
                let told = format!("answered PING {is} of {of} with {payload:?}");
                self.expect(right, &told);
            }
            GOAWAY => {
                self.expect(payload.len() >= 8 && id == 0, "sent a bad GOAWAY");
                let (last, code) = (number(&payload), number(&payload[4..]));
                self.expect(
                    self.goaway.is_none_or(|(before, _)| last <= before),
                    "raised a GOAWAY",
                );
                self.goaway = Some((last, code));
                seen.push(Seen::Goaway { last, code });
            }
            WINDOW_UPDATE => self.incoming_credit(id, &payload),
            _ => panic!("to peer {} the gateway sent a frame of kind {kind}", self.name),
        }
    }

    fn incoming_settings(&mut self, flags: u8, id: u32, payload: &[u8]) {
        self.expect(id == 0 && payload.len().is_multiple_of(6), "sent bad SETTINGS");
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

    /// The stream of a HEADERS or DATA frame. `None` if the frame crossed our reset of the stream.
    fn message_stream(&mut self, id: u32, what: &str) -> Option<&mut Stream> {
        self.expect(self.streams.contains_key(&id), "used an idle stream");
        let answered = self.pings_answered;
        let (name, stream) = (self.name, self.streams.get_mut(&id).expect("just seen"));
        let fine = !stream.was_reset && !stream.got_end;
        assert!(fine, "to peer {name} the gateway sent {what} on stream {id} after its end");
        if let Some(fence) = stream.quit {
            let late = answered < fence;
            assert!(
                late,
                "to peer {name} the gateway sent {what} on stream {id} long after our reset"
            );
            return None;
        }
        Some(stream)
    }

    fn incoming_data(&mut self, flags: u8, id: u32, bytes: Vec<u8>, seen: &mut Vec<Seen>) {
        self.expect(flags & !END_STREAM == 0, "set an unknown flag on DATA");
        let (len, end) = (bytes.len() as i64, flags & END_STREAM != 0);
        self.receive -= len;
        self.owed += len;
        self.expect(len == 0 || self.receive >= 0, "overran the connection's window");
        if self.refused(id) {
            return;
        }
        let server = self.server;
        let Some(stream) = self.message_stream(id, "DATA") else {
            let stream = self.streams.get_mut(&id).expect("it is late, but known");
            stream.receive -= len;
            let room = stream.receive;
            return self.expect(len == 0 || room >= 0, "overran a stream's window after a reset");
        };
        stream.receive -= len;
        stream.owed += len;
        stream.got_end |= end;
        let (room, headed) = (stream.receive, stream.got_head || server);
        // RFC 9113 §6.9.1: an empty DATA frame with END_STREAM needs no room. So it may come even
        // if our SETTINGS made the window negative.
        self.expect(len == 0 || room >= 0, "overran a stream's window");
        self.expect(headed, "sent DATA before a head");
        self.expect(len > 0 || end, "sent empty DATA");
        seen.push(Seen::Data { stream: id, bytes, end });
    }

    /// Whether a stream is above the last one of our GOAWAY, so that nobody serves it.
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

    /// RFC 7541 §4.2: after we made the table smaller, the next block begins with a size update.
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

/// Reads a dynamic table size update at the beginning of a block: its size, and what follows it.
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
