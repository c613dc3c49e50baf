//! HPACK (RFC 7541): header blocks to [`Fields`](crate::fields::Fields) and back.
//!
//! A [`Decoder`] and an [`Encoder`] belong to one connection; fresh ones own no heap memory. Each
//! table entry knows its field's token and whether name and value are valid, so a field that the
//! peer repeats costs a look-up and a copy, not another scan.

use std::fmt;

mod decode;
mod encode;
pub mod huffman;
mod index;
mod integer;
mod static_table;
mod table;

pub use decode::Decoder;
pub use encode::Encoder;

/// Octets of dynamic table we ever use, in either direction, whatever a peer allows: also what a
/// peer must assume before any SETTINGS (RFC 9113 §6.5.2).
pub const TABLE_SIZE: usize = 4096;

/// What is over a limit costs its own message; what is over this multiple of one is a bomb, and
/// costs the connection: of [`HeaderLimits::max_size`] and of [`HeaderLimits::max_fields`] here.
pub const FLOOD_FACTOR: usize = 4;

/// The largest field of those that are looked for behind the end of a list that is too large, in
/// octets as of [`HeaderLimits::max_size`].
pub const LATE_FIELD: usize = 512;

/// How large a header list may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderLimits {
    /// Decoded names and values with [`FIELD_OVERHEAD`](crate::fields::FIELD_OVERHEAD) a field.
    ///
    /// **Units**: octets.
    pub max_size: usize,
    /// Fields; each crumb of a cookie is one.
    pub max_fields: usize,
}

impl Default for HeaderLimits {
    fn default() -> Self {
        Self { max_size: 256 * 1024, max_fields: 1024 }
    }
}

/// What became of a header block that was decoded to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// All fields are in the list.
    Fits,
    /// The list ends before the first field beyond a limit, but for what tells how a refusal has to
    /// look: `content-type` and `origin` are kept wherever they stand. The dynamic table is what it
    /// should be, so the connection can go on: this one message is refused.
    TooLarge,
}

/// Why a header block cannot be decoded. The connection cannot go on: its table is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HpackError {
    /// Not HPACK: COMPRESSION_ERROR.
    Malformed(Malformation),
    /// The peer wants a larger table than we allowed (RFC 7541 §6.3): COMPRESSION_ERROR.
    TableSize,
    /// [`FLOOD_FACTOR`] exceeded: ENHANCE_YOUR_CALM.
    Flood,
}

/// How a header block breaks RFC 7541.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformation {
    /// The block ends inside a field.
    Truncated,
    /// An integer of more octets than any value we could mean (§5.1).
    Integer,
    /// Index zero, or one beyond both tables (§2.3.3, §6.1).
    Index,
    /// A string that is not Huffman code (§5.2).
    Huffman,
    /// A size update after a field, or a third one (§4.2).
    SizeUpdate,
}

impl From<Malformation> for HpackError {
    fn from(kind: Malformation) -> Self {
        Self::Malformed(kind)
    }
}

impl fmt::Display for Malformation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Truncated => "header block ends inside a field",
            Self::Integer => "integer out of range",
            Self::Index => "no such table index",
            Self::Huffman => "invalid Huffman code",
            Self::SizeUpdate => "table size update in the wrong place",
        })
    }
}

impl fmt::Display for HpackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(kind) => kind.fmt(f),
            Self::TableSize => f.write_str("table size update above our limit"),
            Self::Flood => f.write_str("header list far beyond every limit"),
        }
    }
}

impl std::error::Error for HpackError {}
