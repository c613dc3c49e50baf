//! Bodies that show whose they are. A body is a sequence of bytes that depends on its exchange, so
//! one byte that is lost, doubled or from another stream is seen at once.

use std::sync::LazyLock;

use super::seed::Seed;

/// The bytes of the table, a prime number. Bodies of different exchanges begin at different places.
const TABLE_BYTES: usize = 1_000_003;

/// Bytes in front of a body that name its exchange.
pub(crate) const NAME_BYTES: usize = 8;

static TABLE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut seed = Seed::new(77);
    let mut table = Vec::with_capacity(TABLE_BYTES + 8);
    while table.len() < TABLE_BYTES {
        table.extend_from_slice(&seed.next().to_le_bytes());
    }
    table.truncate(TABLE_BYTES);
    table
});

/// The direction of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Up,
    Down,
}

fn start(exchange: usize, way: Way) -> usize {
    let mut seed = Seed::new((exchange as u64) << 1 | u64::from(way == Way::Up));
    seed.below(TABLE_BYTES)
}

/// Calls `each` with the parts of the body that lie between `from` and `from + len`.
fn parts(exchange: usize, way: Way, from: usize, len: usize, mut each: impl FnMut(&[u8])) {
    let name = (exchange as u64).to_be_bytes();
    let (mut at, end) = (from, from + len);
    if at < NAME_BYTES {
        let stop = end.min(NAME_BYTES);
        each(&name[at..stop]);
        at = stop;
    }
    let start = start(exchange, way);
    while at < end {
        let place = (start + at) % TABLE_BYTES;
        let n = (end - at).min(TABLE_BYTES - place);
        each(&TABLE[place..place + n]);
        at += n;
    }
}

/// Appends a part of a body.
pub(crate) fn put(exchange: usize, way: Way, from: usize, len: usize, out: &mut Vec<u8>) {
    parts(exchange, way, from, len, |part| out.extend_from_slice(part));
}

/// Whether these are the bytes of the body at `from`.
pub(crate) fn is_part(exchange: usize, way: Way, from: usize, bytes: &[u8]) -> bool {
    let (mut at, mut same) = (0, true);
    parts(exchange, way, from, bytes.len(), |part| {
        same &= bytes[at..at + part.len()] == *part;
        at += part.len();
    });
    same
}
