//! DATA frames in a row that can pass at once: each is looked up and counted once, its head is
//! patched where it lies, and the row goes to the other hop as one range.
//!
//! Small frames of one stream that follow each other become one frame: what was written together
//! and came together needs one head, and everyone behind us reads one frame instead of many.
//! Whatever is not plain (the end of a stream, padding, a window without room, something that
//! waits) ends the row and takes the way of every frame, in `streams.rs`.

use ringway_proto::h2::frame::HEAD_BYTES;
use ringway_proto::h2::{self, StreamKey, follows, may_be_plain};

use super::super::table::Table;
use super::super::turn::Turn;
use super::exchange::{Exchange, Way};
use super::link::Link;
use super::streams::{SMALL_FRAME, Streams};
use crate::metrics::CopyWhy;
use crate::net::ConnId;
use crate::pool::Segment;

/// Frames up to this length are made one with those of their stream before them: moving so few
/// octets costs less than another frame does, here and at the receiver.
const MERGE_BYTES: usize = 256;

/// A part of the input that goes to another hop as it is.
struct Part {
    to: ConnId,
    start: usize,
    end: usize,
    payload: usize,
}

/// The two connections that a row goes between.
struct Ends<'a> {
    from: &'a mut h2::Conn,
    to: &'a mut h2::Conn,
    to_conn: ConnId,
    exchanges: &'a mut Table<Exchange>,
    way: Way,
    /// The windows of what passes may grow.
    grows: bool,
}

/// Passes the plain DATA frames at `pos` of a receive, as many as there are. What the connection's
/// own codec has to say meanwhile is collected in `answers` and goes out first.
#[inline(always)]
pub(super) fn pass(
    streams: &mut Streams,
    turn: &mut Turn<'_>,
    (conn, segment): (ConnId, Segment),
    pos: &mut usize,
    answers: &mut Vec<u8>,
) {
    while let Some(part) = part(streams, turn, (conn, segment), pos, answers) {
        if !answers.is_empty() {
            turn.net.put(conn, answers);
            answers.clear();
        }
        let bytes = segment.part(part.start, part.end - part.start);
        if bytes.len as usize <= SMALL_FRAME {
            turn.net.put_copy(part.to, bytes);
            turn.metrics.payload_copied[CopyWhy::SmallFrame.index()] += part.payload as u64;
        } else {
            turn.net.push(part.to, bytes);
            turn.metrics.payload_relayed += part.payload as u64;
        }
    }
}

/// The frames from `pos` on that make one range.
#[inline(always)]
fn part(
    streams: &mut Streams,
    turn: &mut Turn<'_>,
    (conn, segment): (ConnId, Segment),
    pos: &mut usize,
    answers: &mut Vec<u8>,
) -> Option<Part> {
    let now = turn.now;
    let input = turn.net.pool.bytes(segment);
    if !may_be_plain(input, *pos) {
        return None;
    }
    let hop = streams.hops.hop_mut(conn)?;
    let way = hop.way_in();
    let Link::H2(from) = &mut hop.link else { return None };
    if !from.begins_frame(now) {
        return None;
    }
    let first = from.plain(&input[*pos..])?;
    let to_conn = streams.exchanges.at(first.tag)?.to(way)?.conn;
    let (room, grows) = streams.hops.room(turn, to_conn);
    let [from, to] = streams.hops.two_hops(conn, to_conn)?;
    let (Link::H2(from), Link::H2(to)) = (&mut from.link, &mut to.link) else { return None };
    let exchanges = &mut streams.exchanges;
    let mut ends = Ends { from, to, to_conn, exchanges, way, grows };
    let mut part = Part { to: to_conn, start: *pos, end: *pos, payload: 0 };
    let input = turn.net.pool.bytes_mut(segment);
    while part.end - part.start < room && ends.pass(input, pos, &mut part, answers).is_some() {}
    (part.end > part.start).then_some(part)
}

impl Ends<'_> {
    /// Appends the frame at `pos`, and the small ones of its stream behind it, to the part.
    #[inline(always)]
    fn pass(
        &mut self,
        input: &mut [u8],
        pos: &mut usize,
        part: &mut Part,
        answers: &mut Vec<u8>,
    ) -> Option<()> {
        let frame = self.from.plain(&input[*pos..])?;
        // Behind frames that were made one a gap is left: what is large is not moved into it.
        if *pos != part.end && frame.len > MERGE_BYTES {
            return None;
        }
        let (to, most) = self.target(frame.tag, frame.len)?;
        let most = most.min(frame.most);
        let payload = part.end + HEAD_BYTES;
        let begin = *pos + HEAD_BYTES;
        if begin != payload {
            input.copy_within(begin..begin + frame.len, payload);
        }
        let (mut len, mut next) = (frame.len, begin + frame.len);
        if len <= MERGE_BYTES {
            while let Some(more) = follows(input, next, frame.key.id())
                && more <= MERGE_BYTES
                && len + more <= most
            {
                let begin = next + HEAD_BYTES;
                input.copy_within(begin..begin + more, payload + len);
                len += more;
                next = begin + more;
            }
        }
        input[part.end..payload].copy_from_slice(&self.to.data_head(to, len, false));
        self.from.passed(frame.key, len, self.grows, answers);
        self.exchanges.at_mut(frame.tag)?.pipe(self.way).bytes += len as u64;
        *pos = next;
        part.end = payload + len;
        part.payload += len;
        Some(())
    }

    /// The stream that a frame of an exchange goes to, and how much of it may go now, if that is
    /// the whole frame and it is the row's hop.
    #[inline(always)]
    fn target(&mut self, slot: u32, len: usize) -> Option<(StreamKey, usize)> {
        let exchange = self.exchanges.at_mut(slot)?;
        let to = exchange.to(self.way).filter(|to| to.conn == self.to_conn)?;
        // A request whose answer is our own is thrown away.
        let own = exchange.is_discarded(self.way);
        let pipe = exchange.pipe(self.way);
        if own || pipe.queued > 0 || pipe.scheduled {
            return None;
        }
        let room = self.to.data_room(to.key);
        (room >= len).then_some((to.key, room))
    }
}
