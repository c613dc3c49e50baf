//! HTTP/2 frames as the generator and the endpoint need them (RFC 9113 §4, §6).
//!
//! [`FrameReader`] turns received bytes into [`Event`]s without copying. DATA is handed out in
//! whatever pieces arrive, everything else once it is complete. [`crate::caller`] and
//! [`crate::endpoint`] know what the events mean.

use crate::fault::Fault;

/// Bytes of a frame head (RFC 9113 §4.1).
pub const HEAD: usize = 9;
/// Largest payload sent and accepted: the protocol's default, which grpc-go keeps too.
pub const MAX_FRAME: usize = 16_384;
/// Largest header block assembled from HEADERS and CONTINUATION.
pub const BLOCK_LIMIT: usize = 65_536;
/// What a client sends first (RFC 9113 §3.4).
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Largest window and largest stream id.
pub const MAX_31: u32 = 0x7fff_ffff;

/// Frame types (RFC 9113 §6).
pub mod kind {
    /// DATA.
    pub const DATA: u8 = 0;
    /// HEADERS.
    pub const HEADERS: u8 = 1;
    /// RST_STREAM.
    pub const RST_STREAM: u8 = 3;
    /// SETTINGS.
    pub const SETTINGS: u8 = 4;
    /// PUSH_PROMISE.
    pub const PUSH_PROMISE: u8 = 5;
    /// PING.
    pub const PING: u8 = 6;
    /// GOAWAY.
    pub const GOAWAY: u8 = 7;
    /// WINDOW_UPDATE.
    pub const WINDOW_UPDATE: u8 = 8;
    /// CONTINUATION.
    pub const CONTINUATION: u8 = 9;
}

/// Frame flags.
pub mod flag {
    /// Last frame of this direction of the stream.
    pub const END_STREAM: u8 = 1;
    /// Acknowledgement, on SETTINGS and PING.
    pub const ACK: u8 = 1;
    /// The header block ends here.
    pub const END_HEADERS: u8 = 4;
    /// A pad length and padding are present.
    pub const PADDED: u8 = 8;
    /// HEADERS carries a priority.
    pub const PRIORITY: u8 = 32;
}

/// Setting identifiers (RFC 9113 §6.5.2).
pub mod setting {
    /// SETTINGS_HEADER_TABLE_SIZE.
    pub const HEADER_TABLE_SIZE: u16 = 1;
    /// SETTINGS_ENABLE_PUSH.
    pub const ENABLE_PUSH: u16 = 2;
    /// SETTINGS_MAX_CONCURRENT_STREAMS.
    pub const MAX_CONCURRENT_STREAMS: u16 = 3;
    /// SETTINGS_INITIAL_WINDOW_SIZE.
    pub const INITIAL_WINDOW_SIZE: u16 = 4;
}

/// Appends a frame head.
pub fn put_head(out: &mut Vec<u8>, len: usize, kind: u8, flags: u8, stream: u32) {
    debug_assert!(len <= MAX_FRAME);
    let l = (len as u32).to_be_bytes();
    let s = stream.to_be_bytes();
    out.extend_from_slice(&[l[1], l[2], l[3], kind, flags, s[0], s[1], s[2], s[3]]);
}

/// Appends a SETTINGS frame.
pub fn put_settings(out: &mut Vec<u8>, settings: &[(u16, u32)]) {
    put_head(out, settings.len() * 6, kind::SETTINGS, 0, 0);
    for (id, value) in settings {
        out.extend_from_slice(&id.to_be_bytes());
        out.extend_from_slice(&value.to_be_bytes());
    }
}

/// Appends a WINDOW_UPDATE.
pub fn put_window(out: &mut Vec<u8>, stream: u32, grow: u32) {
    put_head(out, 4, kind::WINDOW_UPDATE, 0, stream);
    out.extend_from_slice(&grow.to_be_bytes());
}

/// The settings of a SETTINGS payload whose length is a multiple of six.
pub fn settings(payload: &[u8]) -> impl Iterator<Item = (u16, u32)> + '_ {
    payload
        .chunks_exact(6)
        .map(|s| (u16::from_be_bytes([s[0], s[1]]), u32::from_be_bytes([s[2], s[3], s[4], s[5]])))
}

/// What arrived.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A piece of a DATA frame. `flow` is what it took from the windows (padding counts);
    /// `end` is set on the last piece of a frame with END_STREAM.
    #[expect(missing_docs, reason = "the variant says it")]
    Data { stream: u32, bytes: &'a [u8], flow: u32, end: bool },
    /// A whole header block.
    #[expect(missing_docs, reason = "the variant says it")]
    Headers { stream: u32, block: &'a [u8], end: bool },
    /// A SETTINGS payload, its length checked.
    Settings(&'a [u8]),
    /// A PING that wants an answer.
    Ping([u8; 8]),
    /// A stream was reset with this code.
    #[expect(missing_docs, reason = "the variant says it")]
    Reset { stream: u32, code: u32 },
    /// The peer goes away with this code.
    Goaway(u32),
    /// A window (stream 0: the connection's) grew.
    #[expect(missing_docs, reason = "the variant says it")]
    Window { stream: u32, grow: u32 },
    /// An acknowledgement, a PRIORITY or an unknown frame: nothing to do.
    Nothing,
}

/// The part of a DATA frame that has not arrived yet.
#[derive(Debug)]
struct Run {
    stream: u32,
    left: usize,
    end: bool,
}

/// A header block whose END_HEADERS has not come yet.
#[derive(Debug, Default)]
struct Assembly {
    stream: u32,
    end: bool,
    bytes: Vec<u8>,
}

/// The receiving side's place in the byte stream.
#[derive(Debug, Default)]
pub struct FrameReader {
    run: Option<Run>,
    /// Open between HEADERS and the CONTINUATION with END_HEADERS.
    open: bool,
    assembly: Assembly,
}

impl FrameReader {
    /// Returns the next event in `bytes[*at..]`, and moves `at` past it. `None` means that the rest
    /// is not enough: the caller keeps it and offers it again with more bytes.
    ///
    /// **Errors**: the peer broke the framing; the connection is over.
    pub fn next<'a>(
        &'a mut self,
        bytes: &'a [u8],
        at: &mut usize,
    ) -> Result<Option<Event<'a>>, Fault> {
        if let Some(run) = self.run.take() {
            return Ok(self.take_run(run, bytes, at));
        }
        let rest = &bytes[*at..];
        if rest.len() < HEAD {
            return Ok(None);
        }
        let len = u32::from_be_bytes([0, rest[0], rest[1], rest[2]]) as usize;
        let (kind, flags) = (rest[3], rest[4]);
        let stream = u32::from_be_bytes([rest[5], rest[6], rest[7], rest[8]]) & MAX_31;
        if len > MAX_FRAME {
            return Err(Fault::FrameSize);
        }
        // RFC 9113 §6.10: nothing may come between HEADERS and its CONTINUATION.
        if self.open != (kind == kind::CONTINUATION) {
            return Err(Fault::Sequence);
        }
        if kind == kind::DATA && flags & flag::PADDED == 0 {
            if stream == 0 {
                return Err(Fault::Sequence);
            }
            *at += HEAD;
            let run = Run { stream, left: len, end: flags & flag::END_STREAM != 0 };
            return Ok(self.take_run(run, bytes, at));
        }
        if rest.len() < HEAD + len {
            return Ok(None);
        }
        *at += HEAD + len;
        self.whole(kind, flags, stream, &rest[HEAD..HEAD + len]).map(Some)
    }

    /// Hands out what has arrived of a DATA frame. The piece is empty only if it ends the frame.
    fn take_run<'a>(&mut self, mut run: Run, bytes: &'a [u8], at: &mut usize) -> Option<Event<'a>> {
        let n = run.left.min(bytes.len() - *at);
        if n == 0 && run.left > 0 {
            self.run = Some(run);
            return None;
        }
        let piece = &bytes[*at..*at + n];
        *at += n;
        run.left -= n;
        let last = run.left == 0;
        let event =
            Event::Data { stream: run.stream, bytes: piece, flow: n as u32, end: last && run.end };
        if !last {
            self.run = Some(run);
        }
        Some(event)
    }

    fn whole<'a>(
        &'a mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        payload: &'a [u8],
    ) -> Result<Event<'a>, Fault> {
        let len = payload.len();
        match kind {
            kind::DATA => {
                let bytes = unpadded(flags, payload)?;
                let end = flags & flag::END_STREAM != 0;
                if stream == 0 {
                    return Err(Fault::Sequence);
                }
                Ok(Event::Data { stream, bytes, flow: len as u32, end })
            }
            kind::HEADERS | kind::CONTINUATION => self.fields(kind, flags, stream, payload),
            kind::RST_STREAM if len == 4 && stream != 0 => {
                Ok(Event::Reset { stream, code: word(payload) })
            }
            kind::SETTINGS if stream == 0 && flags & flag::ACK != 0 && len == 0 => {
                Ok(Event::Nothing)
            }
            kind::SETTINGS if stream == 0 && flags & flag::ACK == 0 && len.is_multiple_of(6) => {
                Ok(Event::Settings(payload))
            }
            kind::PING if stream == 0 && len == 8 => match payload.try_into() {
                Ok(opaque) if flags & flag::ACK == 0 => Ok(Event::Ping(opaque)),
                _ => Ok(Event::Nothing),
            },
            kind::GOAWAY if stream == 0 && len >= 8 => Ok(Event::Goaway(word(&payload[4..8]))),
            kind::WINDOW_UPDATE if len == 4 => {
                Ok(Event::Window { stream, grow: word(payload) & MAX_31 })
            }
            kind::RST_STREAM | kind::SETTINGS | kind::PING | kind::GOAWAY | kind::WINDOW_UPDATE => {
                Err(Fault::FrameSize)
            }
            // Push was never allowed (RFC 9113 §8.4).
            kind::PUSH_PROMISE => Err(Fault::Sequence),
            _ => Ok(Event::Nothing),
        }
    }

    fn fields<'a>(
        &'a mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        payload: &'a [u8],
    ) -> Result<Event<'a>, Fault> {
        let complete = flags & flag::END_HEADERS != 0;
        if kind == kind::HEADERS {
            if stream == 0 {
                return Err(Fault::Sequence);
            }
            let fragment = without_priority(flags, unpadded(flags, payload)?)?;
            let end = flags & flag::END_STREAM != 0;
            if complete {
                return Ok(Event::Headers { stream, block: fragment, end });
            }
            self.open = true;
            self.assembly = Assembly { stream, end, bytes: fragment.to_vec() };
            return Ok(Event::Nothing);
        }
        if stream != self.assembly.stream {
            return Err(Fault::Sequence);
        }
        if self.assembly.bytes.len() + payload.len() > BLOCK_LIMIT {
            return Err(Fault::BlockTooLong);
        }
        self.assembly.bytes.extend_from_slice(payload);
        if !complete {
            return Ok(Event::Nothing);
        }
        self.open = false;
        Ok(Event::Headers { stream, block: &self.assembly.bytes, end: self.assembly.end })
    }
}

fn word(bytes: &[u8]) -> u32 {
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// RFC 9113 §6.1: the pad length must leave room for itself.
fn unpadded(flags: u8, payload: &[u8]) -> Result<&[u8], Fault> {
    if flags & flag::PADDED == 0 {
        return Ok(payload);
    }
    let (&pad, rest) = payload.split_first().ok_or(Fault::FrameSize)?;
    let keep = rest.len().checked_sub(usize::from(pad)).ok_or(Fault::Sequence)?;
    Ok(&rest[..keep])
}

fn without_priority(flags: u8, fragment: &[u8]) -> Result<&[u8], Fault> {
    if flags & flag::PRIORITY == 0 {
        Ok(fragment)
    } else {
        fragment.get(5..).ok_or(Fault::FrameSize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The events of these bytes as text. DATA is written as one sum, everything else as it came.
    fn transcript(bytes: &[u8], step: usize) -> Vec<String> {
        let (mut reader, mut seen, mut start, mut data) = (FrameReader::default(), vec![], 0, 0);
        for end in (step..bytes.len() + step).step_by(step) {
            let view = &bytes[start..end.min(bytes.len())];
            let mut at = 0;
            while let Some(event) = reader.next(view, &mut at).unwrap() {
                if let Event::Data { flow, .. } = event {
                    data += flow;
                }
                match event {
                    Event::Data { end: true, .. } => seen.push(format!("data {data}")),
                    Event::Data { .. } | Event::Nothing => {}
                    other => seen.push(format!("{other:?}")),
                }
            }
            start += at;
        }
        assert_eq!(start, bytes.len(), "everything is consumed");
        seen
    }

    fn mixed() -> Vec<u8> {
        let mut b = vec![];
        put_settings(&mut b, &[(setting::INITIAL_WINDOW_SIZE, 70_000)]);
        put_head(&mut b, 8, kind::HEADERS, flag::PADDED | flag::PRIORITY, 1);
        b.extend_from_slice(&[1, 0, 0, 0, 0, 9, 0x83, 0]);
        put_head(&mut b, 1, kind::CONTINUATION, flag::END_HEADERS, 1);
        b.push(0x86);
        put_head(&mut b, 300, kind::DATA, 0, 1);
        b.extend_from_slice(&[7; 300]);
        put_head(&mut b, 10, kind::DATA, flag::PADDED | flag::END_STREAM, 1);
        b.extend_from_slice(&[4, 1, 1, 1, 1, 1, 0, 0, 0, 0]);
        put_head(&mut b, 0, kind::DATA, flag::END_STREAM, 3);
        put_window(&mut b, 0, 5);
        put_head(&mut b, 8, kind::PING, 0, 0);
        b.extend_from_slice(&[9; 8]);
        put_head(&mut b, 3, 0x42, 0, 0);
        b.extend_from_slice(&[0; 3]);
        b
    }

    #[test]
    fn every_split_gives_the_same_events() {
        let bytes = mixed();
        let whole = transcript(&bytes, bytes.len());
        assert!(whole.iter().any(|e| e == "Headers { stream: 1, block: [131, 134], end: false }"));
        assert!(whole.iter().any(|e| e == "data 310"));
        for step in 1..bytes.len() {
            assert_eq!(transcript(&bytes, step), whole, "split every {step} bytes");
        }
    }

    #[test]
    fn broken_framing_is_a_fault() {
        let fault = |bytes: &[u8]| FrameReader::default().next(bytes, &mut 0).unwrap_err();
        assert_eq!(fault(&[0, 0x40, 1, 0, 0, 0, 0, 0, 1]), Fault::FrameSize);
        assert_eq!(fault(&[0, 0, 0, kind::CONTINUATION, 4, 0, 0, 0, 1]), Fault::Sequence);
        assert_eq!(fault(&[0, 0, 1, kind::DATA, flag::PADDED, 0, 0, 0, 1, 9]), Fault::Sequence);
        assert_eq!(fault(&[0, 0, 1, kind::SETTINGS, 0, 0, 0, 0, 0, 9]), Fault::FrameSize);
    }
}
