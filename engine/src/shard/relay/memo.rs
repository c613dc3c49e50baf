//! Calls that repeat: what a head became on the other hop is kept under the number its list has on
//! this one. When the same list comes again and nothing that decided has changed, the same block
//! is sent again: no field is decoded, routed or encoded.

use ringway_proto::h2::frame::HEAD_BYTES;
use ringway_proto::h2::{HeadKind, ListId};
use ringway_proto::route::KeptStyle;

use super::super::table::Key;
use super::exchange::At;
use crate::metrics::Method;

/// Kept per hop: a connection repeats few different heads.
const KEPT: usize = 4;

/// The longest block worth keeping.
const BLOCK_BYTES: usize = 256;

/// An encoded block and the encoder's state it holds under.
#[derive(Clone, Debug, Default)]
pub(super) struct Block {
    pub(super) generation: u64,
    pub(super) bytes: Vec<u8>,
}

/// A request head of a client connection that led to a route.
#[derive(Debug)]
pub(super) struct KeptCall {
    pub(super) list: ListId,
    pub(super) route: Key,
    pub(super) method: Method,
    pub(super) style: KeptStyle,
    pub(super) block: Block,
}

/// A response head, or trailers, of a tunnel.
#[derive(Debug)]
pub(super) struct KeptAnswer {
    pub(super) list: ListId,
    pub(super) kind: HeadKind,
    pub(super) status: u16,
    pub(super) block: Block,
}

/// The list being relayed, so that what it becomes can be kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct InHand {
    pub(super) at: At,
    pub(super) kind: HeadKind,
    pub(super) list: ListId,
}

/// The block that was encoded last into `scratch`, if it is worth keeping.
pub(super) fn block_sent(scratch: &[u8], generation: u64) -> Option<Block> {
    let bytes = scratch.get(HEAD_BYTES..)?;
    (bytes.len() <= BLOCK_BYTES).then(|| Block { generation, bytes: bytes.to_vec() })
}

/// Takes the place of an entry for the same list, or of the oldest.
pub(super) fn keep<T>(entries: &mut Vec<T>, entry: T, same: impl Fn(&T) -> bool) {
    entries.retain(|kept| !same(kept));
    if entries.len() == KEPT {
        entries.remove(0);
    }
    entries.push(entry);
}
