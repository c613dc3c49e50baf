//! The function and version that a request calls.

/// A function and its version, as the client names them.
#[derive(Clone, Copy)]
pub(super) struct Called<'a> {
    pub(super) function: &'a [u8],
    /// Empty if the client names none.
    pub(super) version: &'a [u8],
}
