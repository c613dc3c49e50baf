//! The output of one connection: a queue of ranges of payload memory, and the core's wishes for its
//! socket.

use std::collections::VecDeque;

use ringway_proto::time::Time;

use crate::conn::Close;
use crate::pool::{CHUNK_BYTES, Pool, Segment};

/// Queue entries whose memory a connection keeps when it has sent everything: an idle one is small.
const KEPT_SEGMENTS: usize = 128;

/// A connection's output, and the core's wishes for its socket.
#[derive(Debug, Default)]
pub struct Output {
    pub(crate) queue: VecDeque<Segment>,
    /// The chunk being written into (one claim of ours) and how much of it is used.
    pub(crate) fill: Option<(Segment, u32)>,
    pub(crate) queued: usize,
    pub(crate) generation: u32,
    pub(crate) open: bool,
    pub(crate) dirty: bool,
    pub(crate) paused: bool,
    pub(crate) detaching: bool,
    pub(crate) open_ended: bool,
    /// The peer was sent our side of HTTP/2's preface before it sent anything.
    pub(crate) greeted: bool,
    /// The connection was dialled, and the peer is another gateway.
    pub(crate) to_gateway: bool,
    pub(crate) close: Option<Close>,
    /// When the queue began to wait, or the kernel last took some of it.
    pub(crate) waiting_since: Time,
    pub(crate) delivery: Delivery,
}

/// Whether everything sent to a peer had arrived when the peer sent its FIN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// Nobody wants to know.
    #[default]
    Unasked,
    /// To be found out when the peer's FIN comes.
    Asked,
    /// Some of it had not arrived by then.
    Cut,
}

impl Output {
    /// The queue, front first: what the next send takes from.
    #[must_use]
    pub fn queue(&self) -> &VecDeque<Segment> {
        &self.queue
    }

    /// Bytes in the queue.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.queued
    }

    /// Whether reading is to stop.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// Whether the core wants to detach the connection.
    #[must_use]
    pub fn is_detaching(&self) -> bool {
        self.detaching
    }

    /// Whether the connection's end would pass for the end of a message that is not whole.
    #[must_use]
    pub fn is_open_ended(&self) -> bool {
        self.open_ended
    }

    /// Whether the peer was told our side of HTTP/2's preface already.
    #[must_use]
    pub fn is_greeted(&self) -> bool {
        self.greeted
    }

    /// Whether the peer that is dialled is another gateway.
    #[must_use]
    pub fn is_to_gateway(&self) -> bool {
        self.to_gateway
    }

    /// How the connection is to be ended, once asked.
    #[must_use]
    pub fn closing(&self) -> Option<Close> {
        self.close
    }

    pub(crate) fn grow(&mut self, now: Time, bytes: u32) {
        if self.queued == 0 {
            self.waiting_since = now;
        }
        self.queued += bytes as usize;
    }

    pub(crate) fn sent(&mut self, bytes: usize, pool: &mut Pool) {
        self.queued -= bytes;
        self.take_front(bytes, pool);
    }

    /// Takes bytes from the front of the queue. They still count as queued.
    pub fn take_front(&mut self, mut bytes: usize, pool: &mut Pool) {
        while bytes > 0 {
            let Some(front) = self.queue.front_mut() else { break };
            let n = bytes.min(front.len as usize);
            *front = front.part(n, front.len as usize - n);
            bytes -= n;
            if front.len == 0 {
                pool.release(*front);
                self.queue.pop_front();
            }
        }
        if self.queue.is_empty() {
            if let Some((chunk, _)) = self.fill.take() {
                pool.release(chunk);
            }
            if self.queue.capacity() > KEPT_SEGMENTS {
                self.queue = VecDeque::new();
            }
        }
    }

    pub(crate) fn clear(&mut self, pool: &mut Pool) {
        for segment in self.queue.drain(..) {
            pool.release(segment);
        }
        if let Some((chunk, _)) = self.fill.take() {
            pool.release(chunk);
        }
        self.queued = 0;
        self.queue = VecDeque::new();
    }
}

/// Puts a range at a queue's end, with a claim of the queue's; one that continues the last range
/// in memory becomes part of it.
pub(crate) fn append(pool: &mut Pool, queue: &mut VecDeque<Segment>, next: Segment) {
    match queue.back_mut() {
        Some(last) if last.block == next.block && last.start + last.len == next.start => {
            last.len += next.len;
        }
        _ => {
            pool.retain(next);
            if queue.capacity() == 0 {
                // What a connection has to say at its beginning is in one piece; most rest then.
                queue.reserve_exact(2);
            }
            queue.push_back(next);
        }
    }
}

/// The next `wanted` bytes, or fewer, of a chunk that is being filled; a fresh one if it is full.
pub(crate) fn take_room(
    pool: &mut Pool,
    fill: &mut Option<(Segment, u32)>,
    wanted: usize,
) -> Segment {
    let (chunk, used) = match *fill {
        Some((chunk, used)) if (used as usize) < CHUNK_BYTES => (chunk, used as usize),
        spent => {
            if let Some((chunk, _)) = spent {
                pool.release(chunk);
            }
            (pool.chunk(), 0)
        }
    };
    let part = chunk.part(used, wanted.min(CHUNK_BYTES - used));
    *fill = Some((chunk, used as u32 + part.len));
    part
}
