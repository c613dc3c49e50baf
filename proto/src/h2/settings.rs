//! The peer's SETTINGS: values, legal ranges, who may send what (RFC 9113 §6.5.2).

use super::frame::{MAX_31, MAX_MAX_FRAME, MIN_MAX_FRAME, setting};
use super::window::DEFAULT_WINDOW;
use super::{ConnFault, ErrorCode, Role};

/// Streams we open before the peer has said how many it takes: what the RFC recommends a limit to
/// be at least.
const STREAMS_UNTIL_TOLD: u32 = 100;

/// The settings that the peer has sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PeerSettings {
    /// Streams it lets us open.
    pub(super) max_streams: u32,
    /// Window of a new stream towards it.
    pub(super) initial_window: u32,
    /// Largest payload it takes.
    pub(super) max_frame: u32,
    /// Largest field section it wants.
    pub(super) max_header_list: u32,
}

impl Default for PeerSettings {
    fn default() -> Self {
        Self {
            max_streams: STREAMS_UNTIL_TOLD,
            initial_window: DEFAULT_WINDOW,
            max_frame: MIN_MAX_FRAME,
            max_header_list: u32::MAX,
        }
    }
}

impl PeerSettings {
    /// What holds after this SETTINGS payload. `table` is told each HPACK table size, in order:
    /// the smallest one matters too (RFC 7541 §4.2).
    ///
    /// Only the last window counts: applying each of thousands in one frame to thousands of streams
    /// would be a peer's way to keep us busy.
    ///
    /// # Errors
    /// A value out of its range.
    pub(super) fn updated(
        mut self,
        payload: &[u8],
        role: Role,
        mut table: impl FnMut(usize),
    ) -> Result<Self, ConnFault> {
        for parameter in payload.chunks_exact(6) {
            let name = u16::from_be_bytes([parameter[0], parameter[1]]);
            let value =
                u32::from_be_bytes([parameter[2], parameter[3], parameter[4], parameter[5]]);
            match name {
                setting::HEADER_TABLE_SIZE => table(value as usize),
                setting::ENABLE_PUSH if value > 1 => {
                    return Err(ConnFault::protocol("ENABLE_PUSH is neither 0 nor 1"));
                }
                setting::ENABLE_PUSH if value == 1 && role == Role::Client => {
                    return Err(ConnFault::protocol("a server offers to take pushes"));
                }
                setting::MAX_CONCURRENT_STREAMS => self.max_streams = value,
                setting::INITIAL_WINDOW_SIZE if value > MAX_31 => {
                    return Err(ConnFault::new(
                        ErrorCode::FlowControlError,
                        "INITIAL_WINDOW_SIZE above 2^31-1",
                    ));
                }
                setting::INITIAL_WINDOW_SIZE => self.initial_window = value,
                setting::MAX_FRAME_SIZE if !(MIN_MAX_FRAME..=MAX_MAX_FRAME).contains(&value) => {
                    return Err(ConnFault::protocol("MAX_FRAME_SIZE out of range"));
                }
                setting::MAX_FRAME_SIZE => self.max_frame = value,
                setting::MAX_HEADER_LIST_SIZE => self.max_header_list = value,
                // RFC 9113 §6.5.2: an unknown one is ignored. Extended CONNECT is not offered.
                _ => {}
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(parameters: &[(u16, u32)]) -> Vec<u8> {
        let pair = |(name, value): &(u16, u32)| {
            [&name.to_be_bytes()[..], &value.to_be_bytes()[..]].concat()
        };
        parameters.iter().flat_map(pair).collect()
    }

    #[test]
    fn values_are_taken_in_order_and_unknown_ones_ignored() {
        let mut tables = Vec::new();
        let bytes = payload(&[(1, 100), (0xfafa, 7), (4, 5), (1, 4096), (4, 9), (3, 0), (6, 77)]);
        let peer = PeerSettings::default();
        let peer = peer.updated(&bytes, Role::Client, |size| tables.push(size)).unwrap();
        assert_eq!((peer.initial_window, peer.max_streams, peer.max_header_list), (9, 0, 77));
        assert_eq!(tables, [100, 4096]);
    }

    #[test]
    fn values_out_of_range_are_refused_with_the_code_the_rfc_names() {
        let code = |role, name, value| {
            let bytes = payload(&[(name, value)]);
            PeerSettings::default().updated(&bytes, role, |_| {}).map_err(|fault| fault.code).err()
        };
        let protocol = Some(ErrorCode::ProtocolError);
        assert_eq!(code(Role::Server, 2, 2), protocol);
        assert_eq!(code(Role::Server, 2, 1), None);
        assert_eq!(code(Role::Client, 2, 1), protocol);
        assert_eq!(code(Role::Client, 2, 0), None);
        assert_eq!(code(Role::Server, 4, 1 << 31), Some(ErrorCode::FlowControlError));
        assert_eq!(code(Role::Server, 4, MAX_31), None);
        assert_eq!(code(Role::Server, 5, 16_383), protocol);
        assert_eq!(code(Role::Server, 5, 16_384), None);
        assert_eq!(code(Role::Server, 5, 1 << 24), protocol);
        assert_eq!(code(Role::Server, 5, (1 << 24) - 1), None);
    }
}
