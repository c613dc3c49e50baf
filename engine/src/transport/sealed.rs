//! Records that wait to be sent, and which of the core's bytes are in them.

use std::collections::VecDeque;

use crate::pool::{Pool, Segment};

/// The queue of one connection. An empty queue owns no chunk.
#[derive(Debug, Default)]
pub(super) struct Sealed {
    queue: VecDeque<Segment>,
    /// The chunk being written into (one claim of ours) and how much of it is used.
    fill: Option<(Segment, usize)>,
    len: usize,
    /// For each piece: its bytes not yet sent, and how many of the core's bytes they complete.
    pieces: VecDeque<(usize, usize)>,
}

impl Sealed {
    pub(super) fn queue(&self) -> &VecDeque<Segment> {
        &self.queue
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Room for `wanted` bytes in one piece; at most a chunk.
    pub(super) fn room(&mut self, pool: &mut Pool, wanted: usize) -> Segment {
        if let Some((chunk, used)) = self.fill {
            let left = chunk.len as usize - used;
            if left >= wanted {
                return chunk.part(used, left);
            }
            pool.release(chunk);
        }
        let chunk = pool.chunk();
        debug_assert!(wanted <= chunk.len as usize, "a record is larger than a chunk");
        self.fill = Some((chunk, 0));
        chunk
    }

    /// The first `len` bytes of the room were filled, with `plain` bytes of the core in them.
    pub(super) fn filled(&mut self, pool: &mut Pool, room: Segment, len: usize, plain: usize) {
        if let Some((_, used)) = &mut self.fill {
            *used += len;
        }
        if len == 0 {
            return self.tidy(pool);
        }
        self.append(pool, room.part(0, len));
        self.pieces.push_back((len, plain));
    }

    fn append(&mut self, pool: &mut Pool, part: Segment) {
        self.len += part.len as usize;
        match self.queue.back_mut() {
            Some(last) if last.block == part.block && last.start + last.len == part.start => {
                last.len += part.len;
            }
            _ => {
                pool.retain(part);
                self.queue.push_back(part);
            }
        }
    }

    /// The kernel took `bytes`. Returns how many of the core's bytes were completed by these.
    pub(super) fn sent(&mut self, pool: &mut Pool, bytes: usize) -> usize {
        debug_assert!(bytes <= self.len, "more was sent than sealed");
        self.len -= bytes;
        let mut left = bytes;
        while left > 0 {
            let Some(front) = self.queue.front_mut() else { break };
            let n = left.min(front.len as usize);
            *front = front.part(n, front.len as usize - n);
            left -= n;
            if front.len == 0 {
                pool.release(*front);
                self.queue.pop_front();
            }
        }
        let (mut left, mut plain) = (bytes, 0);
        while let Some((len, of_core)) = self.pieces.front_mut() {
            if *len > left {
                *len -= left;
                break;
            }
            left -= *len;
            plain += *of_core;
            self.pieces.pop_front();
        }
        self.tidy(pool);
        plain
    }

    /// An empty queue keeps no memory.
    fn tidy(&mut self, pool: &mut Pool) {
        if self.queue.is_empty() {
            if let Some((chunk, _)) = self.fill.take() {
                pool.release(chunk);
            }
            self.queue = VecDeque::new();
            self.pieces = VecDeque::new();
        }
    }

    pub(super) fn clear(&mut self, pool: &mut Pool) {
        for segment in self.queue.drain(..) {
            pool.release(segment);
        }
        self.len = 0;
        self.tidy(pool);
    }

    /// Takes the bytes out of the pool. The pieces stay known.
    pub(super) fn pack(&mut self, pool: &mut Pool) -> Vec<u8> {
        let bytes = self.queue.iter().flat_map(|s| pool.bytes(*s)).copied().collect();
        let pieces = std::mem::take(&mut self.pieces);
        self.clear(pool);
        self.pieces = pieces;
        bytes
    }

    /// Puts bytes into this pool. Returns how many of the core's bytes are in them.
    pub(super) fn unpack(&mut self, pool: &mut Pool, mut bytes: &[u8]) -> usize {
        while !bytes.is_empty() {
            let room = self.room(pool, 1);
            let (now, later) = bytes.split_at(bytes.len().min(room.len as usize));
            let part = room.part(0, now.len());
            pool.bytes_mut(part).copy_from_slice(now);
            if let Some((_, used)) = &mut self.fill {
                *used += now.len();
            }
            self.append(pool, part);
            bytes = later;
        }
        self.pieces.iter().map(|(_, plain)| plain).sum()
    }
}
