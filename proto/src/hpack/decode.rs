//! Header block to [`Fields`] (RFC 7541 §3.2, §6).

use super::table::{DynamicTable, Row};
use super::{
    FLOOD_FACTOR, HeaderLimits, HpackError, LATE_FIELD, Malformation, Verdict, huffman, integer,
    static_table,
};
use crate::fields::{FIELD_OVERHEAD, Field, Fields, Token, name_is_valid, value_is_valid};

/// Size updates that may begin a block (RFC 7541 §4.2).
const MAX_SIZE_UPDATES: usize = 2;

/// The reading half of a connection's HPACK state.
pub struct Decoder {
    table: DynamicTable,
    /// What we allowed the peer: its size updates stay within it.
    max_table: u16,
}

/// How a literal field is to be treated (RFC 7541 §6.2).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Literal {
    Indexed,
    Plain,
    NeverIndexed,
}

/// A string of a literal: where it lies, or its end in the scratch memory.
enum Text<'a> {
    Lies(&'a [u8]),
    Scratch { start: usize, end: usize },
}

impl<'a> Text<'a> {
    fn of<'b>(&self, scratch: &'b [u8]) -> &'b [u8]
    where
        'a: 'b,
    {
        match *self {
            Self::Lies(text) => text,
            Self::Scratch { start, end } => &scratch[start..end],
        }
    }
}

/// The list so far, against its limits.
struct Tally<'a> {
    out: &'a mut Fields,
    limits: HeaderLimits,
    size: usize,
    count: usize,
    /// Whether `content-type` and `origin` were found among the fields behind the end of the list.
    late: [bool; 2],
}

impl Tally<'_> {
    /// Counts the field and stores it if it is within the limits.
    #[inline]
    fn add(&mut self, row: &Row<'_>, never_indexed: bool) -> Result<(), HpackError> {
        self.size += row.size();
        self.count += 1;
        if self.fits() {
            self.out.push(Field {
                token: row.token,
                name: row.name,
                value: row.value,
                never_indexed,
            });
        } else {
            self.add_late(row.token, row.name, row.value)?;
        }
        if !(row.name_valid && row.value_valid) {
            self.out.mark_malformed();
        }
        Ok(())
    }

    /// A field behind the end of the list: only what says how the sender reads a refusal is kept.
    #[cold]
    #[inline(never)]
    fn add_late(&mut self, token: Token, name: &[u8], value: &[u8]) -> Result<(), HpackError> {
        if self.size > self.limits.max_size.saturating_mul(FLOOD_FACTOR)
            || self.count > self.limits.max_fields.saturating_mul(FLOOD_FACTOR)
        {
            return Err(HpackError::Flood);
        }
        let kind = match token {
            Token::ContentType => 0,
            Token::Origin => 1,
            _ => return Ok(()),
        };
        let size = name.len() + value.len() + FIELD_OVERHEAD;
        // The list is searched once for each: thousands may follow.
        let asks = size <= LATE_FIELD && !std::mem::replace(&mut self.late[kind], true);
        if asks && self.out.first(token).is_none() {
            self.out.push(Field { token, name, value, never_indexed: false });
        }
        Ok(())
    }

    /// Once false it stays false.
    #[inline]
    fn fits(&self) -> bool {
        self.size <= self.limits.max_size && self.count <= self.limits.max_fields
    }
}

impl Decoder {
    /// A decoder whose table has, and may be given by the peer, up to `max_table` octets: what our
    /// SETTINGS_HEADER_TABLE_SIZE says, usually [`TABLE_SIZE`](super::TABLE_SIZE); 16 KiB at most.
    #[must_use]
    pub fn new(max_table: usize) -> Self {
        let table = DynamicTable::new(max_table);
        Self { max_table: table.max_size() as u16, table }
    }

    /// Decodes one whole header block into `out`, which is cleared first.
    ///
    /// Must be called for every block of the connection in order, wanted or not: each may change
    /// the table. Fields whose name or value is invalid are stored like others and mark the list
    /// malformed.
    ///
    /// # Errors
    /// The peer's fault, and the end of the connection; `out` then holds the fields before it.
    pub fn decode(
        &mut self,
        block: &[u8],
        out: &mut Fields,
        limits: &HeaderLimits,
    ) -> Result<Verdict, HpackError> {
        out.clear();
        // The caller's: a connection that rests keeps none.
        let mut scratch = out.take_scratch();
        let verdict = self.decode_with(&mut scratch, block, out, limits);
        out.give_scratch(scratch);
        verdict
    }

    /// `scratch` takes the strings of one literal that do not lie in the block as they are.
    fn decode_with(
        &mut self,
        scratch: &mut Vec<u8>,
        block: &[u8],
        out: &mut Fields,
        limits: &HeaderLimits,
    ) -> Result<Verdict, HpackError> {
        let mut input = self.size_updates(block)?;
        let mut tally = Tally { out, limits: *limits, size: 0, count: 0, late: [false; 2] };
        while let Some(&first) = input.first() {
            if first & 0x80 != 0 {
                let (index, rest) = integer::read(input, 7)?;
                input = rest;
                match static_table::get(index) {
                    Some(row) => tally.add(row, false)?,
                    None => tally.add(&self.dynamic(index)?, false)?,
                }
                continue;
            }
            let kind = match first >> 4 {
                0b0100.. => Literal::Indexed,
                0b0010.. => return Err(Malformation::SizeUpdate.into()),
                0b0001 => Literal::NeverIndexed,
                _ => Literal::Plain,
            };
            input = self.literal(input, kind, (scratch, &mut tally))?;
        }
        Ok(if tally.fits() { Verdict::Fits } else { Verdict::TooLarge })
    }

    /// Changes whenever the dynamic table does.
    ///
    /// A block that was decoded and left the generation as it was means the same list as long as
    /// the generation stays.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.table.generation()
    }

    /// Size of the dynamic table as of RFC 7541 §4.1.
    #[must_use]
    pub fn table_size(&self) -> usize {
        self.table.size()
    }

    /// The entry at an index that is not in the static table.
    #[inline]
    fn dynamic(&self, index: usize) -> Result<Row<'_>, HpackError> {
        // Index zero wraps around to an age that no entry has.
        let age = index.wrapping_sub(static_table::LEN + 1);
        self.table.get(age).ok_or(HpackError::Malformed(Malformation::Index))
    }

    /// Obeys the size updates at the start of a block; returns the rest.
    fn size_updates<'a>(&mut self, mut input: &'a [u8]) -> Result<&'a [u8], HpackError> {
        let mut updates = 0;
        while input.first().is_some_and(|first| first & 0xe0 == 0x20) {
            updates += 1;
            if updates > MAX_SIZE_UPDATES {
                return Err(Malformation::SizeUpdate.into());
            }
            let (size, rest) = integer::read(input, 5)?;
            input = rest;
            if size > usize::from(self.max_table) {
                return Err(HpackError::TableSize);
            }
            if size != self.table.max_size() {
                self.table.set_max_size(size);
                self.table.evict_for(0);
            }
        }
        Ok(input)
    }

    /// Decodes the literal field at the start of `input`; returns the rest.
    #[inline(never)]
    fn literal<'a>(
        &mut self,
        input: &'a [u8],
        kind: Literal,
        (scratch, tally): (&mut Vec<u8>, &mut Tally<'_>),
    ) -> Result<&'a [u8], HpackError> {
        scratch.clear();
        let prefix = if kind == Literal::Indexed { 6 } else { 4 };
        let (index, input) = integer::read(input, prefix)?;
        let (name, known, input) = if index == 0 {
            let (name, input) = string(scratch, input)?;
            (name, None, input)
        } else {
            let (name, known) = self.named(scratch, index)?;
            (name, Some(known), input)
        };
        let (value, input) = string(scratch, input)?;
        let (name, value) = (name.of(scratch), value.of(scratch));
        let (token, name_valid) = known.unwrap_or_else(|| (Token::of(name), name_is_valid(name)));
        let row = Row { token, name, value, name_valid, value_valid: value_is_valid(value) };
        tally.add(&row, kind == Literal::NeverIndexed)?;
        if kind == Literal::Indexed {
            // RFC 7541 §4.4: eviction comes first, and may take the entry that gave the name, which
            // is why `named` copies it. What is larger than the table leaves it empty.
            self.table.evict_for(row.size());
            if !self.table.over(row.size()) {
                self.table.insert(row);
            }
        }
        Ok(input)
    }

    /// The name at `index`, its token, and whether it is valid.
    fn named(
        &self,
        scratch: &mut Vec<u8>,
        index: usize,
    ) -> Result<(Text<'static>, (Token, bool)), HpackError> {
        if let Some(row) = static_table::get(index) {
            return Ok((Text::Lies(row.name), (row.token, true)));
        }
        let age = index.wrapping_sub(static_table::LEN + 1);
        let row = self.table.get(age).ok_or(HpackError::Malformed(Malformation::Index))?;
        scratch.extend_from_slice(row.name);
        let name = Text::Scratch { start: 0, end: scratch.len() };
        Ok((name, (row.token, row.name_valid)))
    }
}

/// Reads a string (RFC 7541 §5.2); returns it and the rest.
fn string<'a>(scratch: &mut Vec<u8>, input: &'a [u8]) -> Result<(Text<'a>, &'a [u8]), HpackError> {
    let huffman = input.first().is_some_and(|first| first & 0x80 != 0);
    let (len, input) = integer::read(input, 7)?;
    let Some((text, rest)) = input.split_at_checked(len) else {
        return Err(Malformation::Truncated.into());
    };
    if !huffman {
        return Ok((Text::Lies(text), rest));
    }
    let start = scratch.len();
    huffman::decode(text, scratch).map_err(|_| Malformation::Huffman)?;
    Ok((Text::Scratch { start, end: scratch.len() }, rest))
}
