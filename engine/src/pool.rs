//! One core's payload memory: the blocks of the receive ring and the chunks output is written into.
//!
//! Both are numbered alike and counted by reference, so that a [`Segment`] of either can wait in
//! any output queue. Receive blocks are lent to the kernel and filled bit by bit; a block goes
//! back to the kernel when the kernel has said that it is full and the last segment is released.
//! Plain memory, no I/O: with io_uring, epoll and a simulated kernel it is the same.

/// Bytes of an output chunk.
pub const CHUNK_BYTES: usize = 16 * 1024;

/// Free output chunks kept for reuse; more are given back to the allocator.
const SPARE_CHUNKS: usize = 256;

/// Which block: receive blocks first, then output chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockId(u32);

/// A range of one block.
///
/// Copying a segment copies no claim: whoever keeps one beyond the call that showed it retains it
/// with [`Pool::retain`] and ends with [`Pool::release`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The block it lies in.
    pub block: BlockId,
    /// First byte.
    pub start: u32,
    /// Number of bytes.
    pub len: u32,
}

impl Segment {
    /// The part that begins `skip` bytes in and is `len` long.
    #[must_use]
    pub fn part(self, skip: usize, len: usize) -> Self {
        debug_assert!(skip + len <= self.len as usize, "part outside its segment");
        Self { block: self.block, start: self.start + skip as u32, len: len as u32 }
    }

    /// This segment with `bytes` more in front. The caller knows that they belong to the same
    /// message.
    #[must_use]
    pub fn grow_front(self, bytes: usize) -> Self {
        Self { start: self.start - bytes as u32, len: self.len + bytes as u32, ..self }
    }
}

#[derive(Debug, Default)]
struct RingBlock {
    refs: u32,
    /// Bytes the kernel has filled so far.
    filled: u32,
    /// The kernel will put nothing more into it until it is lent again.
    full: bool,
}

#[derive(Debug)]
struct Chunk {
    refs: u32,
    bytes: Option<Box<[u8]>>,
}

/// All payload memory of one core.
#[derive(Debug)]
pub struct Pool {
    ring_bytes: Box<[u8]>,
    ring: Vec<RingBlock>,
    block_bytes: usize,
    /// Receive blocks that nobody uses and the kernel does not have.
    returned: Vec<u16>,
    /// Receive blocks the kernel can still fill.
    lent: usize,
    chunks: Vec<Chunk>,
    /// Chunk slots without memory.
    vacant: Vec<u32>,
    /// Chunk memory ready for use, last in first out: the warmest first.
    spare: Vec<Box<[u8]>>,
    chunks_live: usize,
}

impl Pool {
    /// A pool of `blocks` receive blocks of `block_bytes` each; none is lent yet.
    ///
    /// # Panics
    /// If there are more receive blocks than a buffer ring can number (32 768).
    #[must_use]
    pub fn new(blocks: usize, block_bytes: usize) -> Self {
        assert!(blocks <= 1 << 15, "a buffer ring numbers at most 32768 blocks");
        Self {
            ring_bytes: vec![0; blocks * block_bytes].into_boxed_slice(),
            ring: (0..blocks).map(|_| RingBlock::default()).collect(),
            block_bytes,
            returned: (0..blocks as u16).rev().collect(),
            lent: 0,
            chunks: Vec::new(),
            vacant: Vec::new(),
            spare: Vec::new(),
            chunks_live: 0,
        }
    }

    /// The receive blocks' memory, for registration with the kernel: block `n` begins at
    /// `n * block_bytes`.
    pub fn ring_memory(&mut self) -> &mut [u8] {
        &mut self.ring_bytes
    }

    /// Bytes of one receive block.
    #[must_use]
    pub fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    /// Number of receive blocks.
    #[must_use]
    pub fn ring_blocks(&self) -> usize {
        self.ring.len()
    }

    /// Receive blocks the kernel can still fill, the partly filled one included.
    #[must_use]
    pub fn ring_lent(&self) -> usize {
        self.lent
    }

    /// Receive blocks that nobody holds: lent, or to be lent.
    #[must_use]
    pub fn ring_free(&self) -> usize {
        self.lent + self.returned.len()
    }

    /// Output chunks in use.
    #[must_use]
    pub fn chunks_live(&self) -> usize {
        self.chunks_live
    }

    /// The next receive block to lend to the kernel, if one came back.
    pub fn lend(&mut self) -> Option<u16> {
        let block = self.returned.pop()?;
        self.ring[block as usize] = RingBlock::default();
        self.lent += 1;
        Some(block)
    }

    /// The kernel has put `len` more bytes into a lent block; `more` as long as it will go on
    /// with the same block. The segment returned holds one claim.
    pub fn filled(&mut self, block: u16, len: usize, more: bool) -> Segment {
        let ring = &mut self.ring[block as usize];
        debug_assert!(!ring.full, "the kernel filled a block it had finished");
        let start = ring.filled;
        ring.filled += len as u32;
        ring.refs += 1;
        if !more {
            ring.full = true;
            self.lent -= 1;
        }
        Segment { block: BlockId(u32::from(block)), start, len: len as u32 }
    }

    /// A fresh output chunk with one claim on it, as a segment of its whole length.
    pub fn chunk(&mut self) -> Segment {
        let bytes = self.spare.pop().unwrap_or_else(|| vec![0; CHUNK_BYTES].into_boxed_slice());
        let len = bytes.len() as u32;
        let chunk = Chunk { refs: 1, bytes: Some(bytes) };
        let slot = match self.vacant.pop() {
            Some(slot) => {
                self.chunks[slot as usize] = chunk;
                slot
            }
            None => {
                self.chunks.push(chunk);
                self.chunks.len() as u32 - 1
            }
        };
        self.chunks_live += 1;
        Segment { block: BlockId(self.ring.len() as u32 + slot), start: 0, len }
    }

    /// Whether the segment lies in receive memory (and so keeps a receive block from the kernel).
    #[inline]
    #[must_use]
    pub fn is_ring(&self, segment: Segment) -> bool {
        (segment.block.0 as usize) < self.ring.len()
    }

    /// The bytes of a segment.
    ///
    /// # Panics
    /// If the segment outlived its claim: our own broken invariant.
    #[inline]
    #[must_use]
    pub fn bytes(&self, segment: Segment) -> &[u8] {
        let (start, len) = (segment.start as usize, segment.len as usize);
        match self.chunk_slot(segment.block) {
            None => {
                let base = segment.block.0 as usize * self.block_bytes + start;
                &self.ring_bytes[base..base + len]
            }
            Some(slot) => {
                let bytes = self.chunks[slot].bytes.as_deref();
                &bytes.expect("a claimed chunk has memory")[start..start + len]
            }
        }
    }

    /// The bytes of a segment, to be patched.
    ///
    /// # Panics
    /// As [`Self::bytes`].
    #[inline]
    pub fn bytes_mut(&mut self, segment: Segment) -> &mut [u8] {
        let (start, len) = (segment.start as usize, segment.len as usize);
        match self.chunk_slot(segment.block) {
            None => {
                let base = segment.block.0 as usize * self.block_bytes + start;
                &mut self.ring_bytes[base..base + len]
            }
            Some(slot) => {
                let bytes = self.chunks[slot].bytes.as_deref_mut();
                &mut bytes.expect("a claimed chunk has memory")[start..start + len]
            }
        }
    }

    /// Copies the bytes of one segment over those of another of the same length.
    ///
    /// # Panics
    /// If the lengths differ, or `to` does not lie in an output chunk other than `from`'s: our own
    /// broken invariant.
    pub fn copy(&mut self, from: Segment, to: Segment) {
        let slot = self.chunk_slot(to.block).expect("copies go to output chunks");
        assert!(from.block != to.block, "a copy needs two blocks");
        let mut bytes = self.chunks[slot].bytes.take().expect("a claimed chunk has memory");
        let (start, len) = (to.start as usize, to.len as usize);
        bytes[start..start + len].copy_from_slice(self.bytes(from));
        self.chunks[slot].bytes = Some(bytes);
    }

    /// Lets `f` read one segment and write another.
    ///
    /// # Panics
    /// If `to` does not lie in an output chunk other than `from`'s: our own broken invariant.
    pub fn between<R>(
        &mut self,
        from: Segment,
        to: Segment,
        f: impl FnOnce(&[u8], &mut [u8]) -> R,
    ) -> R {
        let slot = self.chunk_slot(to.block).expect("what is written is an output chunk");
        assert!(from.block != to.block, "two segments need two blocks");
        let mut bytes = self.chunks[slot].bytes.take().expect("a claimed chunk has memory");
        let (start, len) = (to.start as usize, to.len as usize);
        let result = f(self.bytes(from), &mut bytes[start..start + len]);
        self.chunks[slot].bytes = Some(bytes);
        result
    }

    /// How many claims there are on the segment's block.
    #[must_use]
    pub fn claims(&self, segment: Segment) -> u32 {
        match self.chunk_slot(segment.block) {
            None => self.ring[segment.block.0 as usize].refs,
            Some(slot) => self.chunks[slot].refs,
        }
    }

    /// One more claim on the segment's block.
    pub fn retain(&mut self, segment: Segment) {
        match self.chunk_slot(segment.block) {
            None => self.ring[segment.block.0 as usize].refs += 1,
            Some(slot) => self.chunks[slot].refs += 1,
        }
    }

    /// One claim on the segment's block less; the last one frees the block.
    ///
    /// # Panics
    /// If there was no claim: our own broken invariant.
    pub fn release(&mut self, segment: Segment) {
        match self.chunk_slot(segment.block) {
            None => {
                let ring = &mut self.ring[segment.block.0 as usize];
                assert!(ring.refs > 0, "a receive block was released once too often");
                ring.refs -= 1;
                if ring.refs == 0 && ring.full {
                    self.returned.push(segment.block.0 as u16);
                    ring.full = false;
                }
            }
            Some(slot) => {
                let chunk = &mut self.chunks[slot];
                assert!(chunk.refs > 0, "a chunk was released once too often");
                chunk.refs -= 1;
                if chunk.refs == 0 {
                    let bytes = chunk.bytes.take();
                    self.chunks_live -= 1;
                    self.vacant.push(slot as u32);
                    if self.spare.len() < SPARE_CHUNKS {
                        self.spare.extend(bytes);
                    }
                }
            }
        }
    }

    #[inline]
    fn chunk_slot(&self, block: BlockId) -> Option<usize> {
        (block.0 as usize).checked_sub(self.ring.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receive_block_returns_when_full_and_released() {
        let mut pool = Pool::new(2, 64);
        let block = pool.lend().unwrap();
        assert_eq!(pool.ring_lent(), 1);
        let first = pool.filled(block, 40, true);
        let second = pool.filled(block, 24, false);
        assert_eq!((second.start, pool.ring_lent()), (40, 0));
        pool.retain(first);
        pool.release(first);
        pool.release(second);
        let other = pool.lend().unwrap();
        assert!(other != block && pool.lend().is_none(), "one claim is left");
        pool.release(first);
        assert_eq!(pool.lend(), Some(block));
    }

    #[test]
    fn a_block_released_before_it_is_full_stays_lent() {
        let mut pool = Pool::new(1, 64);
        let block = pool.lend().unwrap();
        let early = pool.filled(block, 10, true);
        pool.release(early);
        assert!(pool.lend().is_none() && pool.ring_lent() == 1);
        let late = pool.filled(block, 10, false);
        assert_eq!(late.start, 10);
        pool.release(late);
        assert_eq!(pool.lend(), Some(block));
    }

    #[test]
    fn chunks_are_numbered_after_receive_blocks_and_reused() {
        let mut pool = Pool::new(1, 64);
        let chunk = pool.chunk();
        assert!(!pool.is_ring(chunk) && chunk.len as usize == CHUNK_BYTES);
        pool.bytes_mut(chunk)[0] = 7;
        assert_eq!(pool.bytes(chunk.part(0, 1)), [7]);
        pool.release(chunk);
        assert_eq!(pool.chunks_live(), 0);
        assert_eq!(pool.chunk().block, chunk.block);
    }
}
