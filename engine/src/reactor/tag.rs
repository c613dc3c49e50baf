//! How operations and their completions are named.

use io_uring::cqueue;

use crate::net::ConnId;

/// What an operation was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Accept,
    Receive,
    Send,
    Writable,
    Connect,
    Cancel,
    Bell,
    /// A sleeping core's ring is rung; completes here only if it failed.
    Ring,
    /// Another core has rung this ring.
    Rung,
}

impl Kind {
    /// Whether somebody else caused the completion. All others only end what this core began.
    pub(super) fn is_call(self) -> bool {
        !matches!(self, Self::Send | Self::Cancel | Self::Ring)
    }
}

/// An operation's name in its completion: kind (8 bits), generation (the low 24 bits), slot (32).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag(pub(super) u64);

impl Tag {
    pub(super) fn of(kind: Kind, conn: ConnId) -> Self {
        let generation = u64::from(conn.generation & Self::GENERATION);
        Self((kind as u64) << 56 | generation << 32 | u64::from(conn.slot))
    }

    /// An operation that belongs to no connection.
    pub(super) fn numbered(kind: Kind, number: usize) -> Self {
        Self::of(kind, ConnId { slot: number as u32, generation: 0 })
    }

    pub(super) fn kind(self) -> Kind {
        match self.0 >> 56 {
            0 => Kind::Accept,
            1 => Kind::Receive,
            2 => Kind::Send,
            3 => Kind::Writable,
            4 => Kind::Connect,
            5 => Kind::Cancel,
            6 => Kind::Bell,
            7 => Kind::Ring,
            _ => Kind::Rung,
        }
    }

    pub(super) fn slot(self) -> u32 {
        self.0 as u32
    }

    /// Whether the operation was the given connection's.
    pub(super) fn is_of(self, conn: ConnId) -> bool {
        self.slot() == conn.slot
            && (self.0 >> 32) as u32 & Self::GENERATION == conn.generation & Self::GENERATION
    }

    /// Another operation of the same connection.
    pub(super) fn sibling(self, kind: Kind) -> Self {
        Self((kind as u64) << 56 | self.0 & Self::OWNER)
    }

    const GENERATION: u32 = 0xff_ffff;
    const OWNER: u64 = (1 << 56) - 1;
}

/// An ended operation, or one more result of one that goes on.
#[derive(Clone, Copy, Debug)]
pub struct Completion {
    pub(super) tag: Tag,
    pub(super) result: i32,
    pub(super) flags: u32,
}

/// How io_uring marks completions (`IORING_CQE_F_*`): whoever makes them up marks them alike.
const BUFFER: u32 = 1;
const MORE: u32 = 1 << 1;
const BUFFER_MORE: u32 = 1 << 4;
const BUFFER_SHIFT: u32 = 16;

impl Completion {
    /// The operation's last result.
    #[must_use]
    pub fn last(tag: Tag, result: i32) -> Self {
        Self { tag, result, flags: 0 }
    }

    /// A result of an operation that goes on.
    #[must_use]
    pub fn one_of(tag: Tag, result: i32) -> Self {
        Self { tag, result, flags: MORE }
    }

    /// The bytes of the result lie in this block, which has room for more unless it is `full`.
    #[must_use]
    pub fn in_block(self, block: u16, full: bool) -> Self {
        let more = if full { 0 } else { BUFFER_MORE };
        let flags = self.flags | BUFFER | more | u32::from(block) << BUFFER_SHIFT;
        Self { flags, ..self }
    }

    /// The operation goes on.
    pub(super) fn more(self) -> bool {
        cqueue::more(self.flags)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_gives_back_what_it_was_made_of() {
        let kinds = [
            Kind::Accept,
            Kind::Receive,
            Kind::Send,
            Kind::Writable,
            Kind::Connect,
            Kind::Cancel,
            Kind::Bell,
            Kind::Ring,
            Kind::Rung,
        ];
        let conn = ConnId { slot: u32::MAX, generation: 0xab_cdef };
        for kind in kinds {
            let tag = Tag::of(kind, conn);
            assert_eq!((tag.kind(), tag.slot(), tag.is_of(conn)), (kind, u32::MAX, true));
            assert_eq!(Tag::of(Kind::Bell, conn).sibling(kind), tag);
        }
    }

    #[test]
    fn completions_of_ours_read_as_the_kernels_do() {
        let tag = Tag::numbered(Kind::Receive, 1);
        assert!(Completion::one_of(tag, 1).more() && !Completion::last(tag, 1).more());
        assert_eq!(cqueue::buffer_select(Completion::one_of(tag, 1).flags), None);
        for full in [true, false] {
            let Completion { flags, .. } = Completion::last(tag, 1).in_block(0xbeef, full);
            assert_eq!(cqueue::buffer_select(flags), Some(0xbeef));
            assert_eq!(cqueue::buffer_more(flags), !full);
            assert!(!cqueue::more(flags));
        }
    }

    #[test]
    fn the_next_owner_of_a_slot_is_not_meant() {
        let conn = ConnId { slot: 3, generation: 0xff_ffff };
        let next = ConnId { slot: 3, generation: 0x100_0000 };
        let tag = Tag::of(Kind::Receive, conn);
        assert!(tag.is_of(conn) && !tag.is_of(next));
    }
}
