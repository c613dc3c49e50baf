//! Whole DATA frames in a row: what most of a busy connection's input is. The caller walks them
//! without an event for each, patches them where they lie, and says afterwards what it took.
//!
//! Only the plain case is here: a frame that lies whole in the input, on an open stream, within
//! both windows, without padding and END_STREAM. For every other one there is [`Conn::next`].

use super::conn::Conn;
use super::frame::{self, FrameHead, HEAD_BYTES, Kind};
use super::state::Reading;
use super::stream::{Content, StreamKey};
use crate::Sink;
use crate::time::Time;

/// The octets of a frame head before the stream's id, for a DATA frame without flags.
const PLAIN: [u8; 2] = [0, 0];

/// A plain DATA frame at the front of some input, of which nothing was counted yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plain {
    /// The stream.
    pub key: StreamKey,
    /// The caller's number for it.
    pub tag: u32,
    /// Octets of payload, behind the head's [`HEAD_BYTES`].
    pub len: usize,
    /// Octets that the stream may bring now, these included.
    pub most: usize,
}

/// Whether a frame that may be [`Plain`] begins at `pos`: a look that costs nothing.
#[must_use]
pub fn may_be_plain(input: &[u8], pos: usize) -> bool {
    input.get(pos + 3..pos + 5) == Some(&PLAIN)
}

/// The length of the DATA frame at `pos` if it has no flags, is of stream `id`, lies whole in the
/// input and is not empty: one that can be made one with another before it.
#[must_use]
pub fn follows(input: &[u8], pos: usize, id: u32) -> Option<usize> {
    let head = FrameHead::parse(*input.get(pos..)?.first_chunk::<HEAD_BYTES>()?);
    let len = head.len as usize;
    let plain = head.kind == Kind::Data && head.flags == 0 && head.stream == id;
    (plain && len > 0 && input.len() - pos - HEAD_BYTES >= len).then_some(len)
}

impl Conn {
    /// Whether [`Self::plain`] may be asked of what comes now: nothing is half read, and nothing
    /// but the input has to be told.
    #[must_use]
    pub fn begins_frame(&mut self, now: Time) -> bool {
        self.now = self.now.max(now);
        matches!(self.reading, Reading::Head)
            && self.head_len == 0
            && self.block.is_none()
            && self.closing.is_none()
            && !self.windows_grew
            && self.peer_settings_seen
            && self.fault.is_none()
    }

    /// The DATA frame at the front of `input`, if [`Self::next`] would show it as one event and do
    /// nothing else. Nothing is changed: the caller reports the result with [`Self::passed`].
    #[must_use]
    pub fn plain(&self, input: &[u8]) -> Option<Plain> {
        let head = FrameHead::parse(*input.first_chunk::<HEAD_BYTES>()?);
        let len = head.len as usize;
        if head.kind != Kind::Data || head.flags != 0 || len == 0 {
            return None;
        }
        if head.len > self.max_frame() || input.len() - HEAD_BYTES < len {
            return None;
        }
        let key = self.table.find(head.stream).ok()?;
        let stream = self.table.get(key)?;
        let content = match stream.content {
            Content::Unknown => usize::MAX,
            Content::Left(left) => usize::try_from(left).unwrap_or(usize::MAX),
        };
        let most = stream.receive.room().min(self.receive_window.room()).min(content);
        let fits = stream.remote_open && stream.remote_head && len <= most;
        fits.then_some(Plain { key, tag: stream.tag, len, most })
    }

    /// Counts one or several plain frames of a stream, `len` octets in all, at most what
    /// [`Plain::most`] said: received, and taken by the other hop at once. Windows of what `grows` may
    /// double, as in [`Self::drained`].
    #[inline(always)]
    pub fn passed(&mut self, key: StreamKey, len: usize, grows: bool, out: &mut impl Sink) {
        let octets = len as u32;
        let whole = self.receive_window.charge(octets);
        self.receive_window.owe(len);
        self.pay_connection(out);
        let Some(stream) = self.table.get_mut(key) else { return };
        debug_assert!(whole && stream.receive.room() >= len, "more than the windows had");
        let _ = stream.receive.charge(octets);
        stream.receive.owe(len);
        if let Content::Left(left) = &mut stream.content {
            *left = left.saturating_sub(len as u64);
        }
        let max = grows.then_some(self.limits.stream_window_max);
        if let Some(credit) = stream.receive.pay_and_grow(max, self.now) {
            frame::put_window_update(out, stream.id, credit);
        }
        self.budget.data();
        self.heard = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fields::{Field, Fields};
    use crate::h2::{Event, Limits, Role};

    const NOW: Time = Time(1_000_000);

    /// Everything the connection has to say about an input.
    fn feed(conn: &mut Conn, input: &[u8]) -> (Vec<Event>, Vec<u8>) {
        let (mut pos, mut fields, mut out) = (0, Fields::new(), Vec::new());
        let mut events = Vec::new();
        loop {
            match conn.next(input, &mut pos, &mut fields, &mut out, NOW).unwrap() {
                Event::More => return (events, out),
                event => events.push(event),
            }
        }
    }

    /// A server with one open request, and its client.
    fn pair(fields: &[(&str, &str)]) -> (Conn, Conn, StreamKey) {
        let mut client = Conn::new(Role::Client, Limits::default(), NOW);
        let mut server = Conn::new(Role::Server, Limits::default(), NOW);
        let (mut up, mut down) = (Vec::new(), Vec::new());
        client.start(&mut up);
        server.start(&mut down);
        down.extend(feed(&mut server, &up).1);
        up = feed(&mut client, &down).1;
        let key = client.open().unwrap();
        let head = [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "a")];
        let head = head.iter().chain(fields);
        let head = head.map(|(n, v)| Field::new(n.as_bytes(), v.as_bytes()));
        client.head(key, head, false, &mut Vec::new(), &mut up);
        let seen = feed(&mut server, &up).0;
        let Some(Event::Head { key, .. }) = seen.last() else { panic!("{seen:?}") };
        (client, server, *key)
    }

    fn data(len: u32, flags: u8, stream: u32) -> Vec<u8> {
        let mut frame = FrameHead { len, kind: Kind::Data, flags, stream }.bytes().to_vec();
        frame.resize(HEAD_BYTES + len as usize, 0);
        frame
    }

    #[test]
    fn a_run_counts_as_its_frames_would() {
        let ((_, mut one, key), (_, mut other, _)) = (pair(&[]), pair(&[]));
        let mut credit = (Vec::new(), Vec::new());
        for _ in 0..3000 {
            let frame = data(100, 0, 1);
            assert!(one.begins_frame(NOW));
            let plain = one.plain(&frame).unwrap();
            assert_eq!((plain.key, plain.len), (key, 100));
            one.passed(plain.key, plain.len, true, &mut credit.0);
            let (events, answers) = feed(&mut other, &frame);
            assert!(matches!(events[..], [Event::Data { len: 100, .. }]), "{events:?}");
            credit.1.extend(answers);
            other.drained(key, 100, false, &mut credit.1);
        }
        assert!(!credit.0.is_empty() && credit.0 == credit.1, "the same credit at the same time");
    }

    #[test]
    fn what_is_not_plain_takes_the_long_way() {
        let (_, mut server, key) = pair(&[]);
        for (frame, why) in [
            (data(0, 0, 1), "empty"),
            (data(5, 1, 1), "the last one"),
            (data(5, 8, 1), "padded"),
            (data(5, 0, 3), "another stream"),
            (data(5, 0, 0), "no stream"),
            (data(16_385, 0, 1), "too large"),
        ] {
            assert_eq!(server.plain(&frame), None, "{why}");
        }
        let whole = data(5, 0, 1);
        for cut in 0..whole.len() {
            assert_eq!(server.plain(&whole[..cut]), None, "cut at {cut}");
        }
        assert_eq!(server.plain(&whole).unwrap().most, 65_536);
        let large = data(16_384, 0, 1);
        for _ in 0..4 {
            assert!(server.plain(&large).is_some());
            feed(&mut server, &large);
        }
        assert_eq!(server.plain(&whole), None, "no window is left");
        server.reset(key, super::super::ErrorCode::Cancel, &mut Vec::new());
        assert_eq!(server.plain(&whole), None, "no stream is left");
    }

    #[test]
    fn a_frame_longer_than_the_content_is_not_plain() {
        let (_, mut server, key) = pair(&[("content-length", "7")]);
        assert_eq!(server.plain(&data(8, 0, 1)), None);
        assert_eq!(server.plain(&data(5, 0, 1)).unwrap().most, 7);
        server.passed(key, 5, true, &mut Vec::new());
        assert_eq!(server.plain(&data(3, 0, 1)), None);
        assert_eq!(server.plain(&data(2, 0, 1)).unwrap().most, 2);
    }

    #[test]
    fn nothing_half_read_is_followed_by_a_plain_frame() {
        let (_, mut server, _) = pair(&[]);
        assert!(server.begins_frame(NOW));
        feed(&mut server, &data(5, 0, 1)[..4]);
        assert!(!server.begins_frame(NOW), "in a head");
        feed(&mut server, &data(5, 0, 1)[4..12]);
        assert!(!server.begins_frame(NOW), "in a payload");
        feed(&mut server, &data(5, 0, 1)[12..]);
        assert!(server.begins_frame(NOW));
    }

    #[test]
    fn what_follows_is_of_the_same_stream_and_whole() {
        let mut input = data(5, 0, 1);
        input.extend(data(6, 0, 1));
        assert_eq!(follows(&input, 14, 1), Some(6));
        assert_eq!(follows(&input, 14, 3), None);
        assert_eq!(follows(&input[..28], 14, 1), None, "a part is missing");
        assert_eq!(follows(&input, 29, 1), None, "the end");
        assert_eq!(follows(&data(6, 1, 1), 0, 1), None, "the last one");
        assert_eq!(follows(&data(0, 0, 1), 0, 1), None, "empty");
        assert!(may_be_plain(&input, 14) && !may_be_plain(&input, 26));
    }
}
