//! How operations and their completions are named.

use io_uring::cqueue;

use crate::border::ConnId;

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

/// An operation's name in its completion: kind (8 bits), generation (the low 24 bits), slot (32).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag(pub(super) u64);

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

    const GENERATION: u32 = 0xff_ffff;
}

/// An ended operation, or one more result of one that goes on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Completion {
    pub(super) tag: Tag,
    pub(super) result: i32,
    pub(super) flags: u32,
}

impl Completion {
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
