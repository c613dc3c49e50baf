//! How much a socket has written that its peer has not acknowledged.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Bytes that a RST would overtake.
///
/// # Errors
/// If it is no connected socket.
pub fn unacknowledged(socket: &impl AsFd) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the request writes one int, to where there is one; the descriptor is borrowed.
    let result = unsafe { libc::ioctl(fd, libc::TIOCOUTQ, &raw mut bytes) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(bytes.max(0) as usize) }
}
