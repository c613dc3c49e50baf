//! The memory for plaintext while the core looks at it.

use super::Fact;
use crate::pool::{Pool, Segment};

/// One chunk that all connections of a core share. If the core keeps a part of it, the chunk stays
/// in use and a new one is taken. Otherwise the same warm chunk is used again.
#[derive(Debug, Default)]
pub struct Plain {
    fill: Option<(Segment, usize)>,
}

impl Plain {
    /// Appends plaintext to the facts for the core.
    pub(super) fn put(&mut self, pool: &mut Pool, mut bytes: &[u8], facts: &mut Vec<Fact>) {
        while !bytes.is_empty() {
            let (chunk, used) = self.fill.get_or_insert_with(|| (pool.chunk(), 0));
            let len = bytes.len().min(chunk.len as usize - *used);
            let part = chunk.part(*used, len);
            let (now, later) = bytes.split_at(len);
            pool.bytes_mut(part).copy_from_slice(now);
            *used += len;
            bytes = later;
            match facts.last_mut() {
                Some(Fact::Bytes(last))
                    if last.block == part.block && last.start + last.len == part.start =>
                {
                    last.len += part.len;
                }
                _ => {
                    pool.retain(part);
                    facts.push(Fact::Bytes(part));
                }
            }
            if *used == chunk.len as usize {
                pool.release(*chunk);
                self.fill = None;
            }
        }
    }

    /// The core has read everything. If it keeps no part of the chunk, the chunk is filled anew.
    pub fn rewind(&mut self, pool: &Pool) {
        if let Some((chunk, used)) = &mut self.fill
            && pool.claims(*chunk) == 1
        {
            *used = 0;
        }
    }
}
