//! How the end of a socket is told from the end of its bytes: RST where something is missing.
//!
//! A body until close ends with a FIN, so a FIN must never be what is left of a tunnel or a server
//! that was lost (contract CL-42).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use monoio::net::TcpStream;
use monoio::time::sleep;
use socket2::SockRef;

/// How long what was written before a cut may take to arrive: a RST overtakes what has not.
const DELIVERY: Duration = Duration::from_secs(1);
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(2);

/// Lets the close of the socket be a RST, also that which comes with the end of this process; or a
/// FIN again.
pub(super) fn set_resets(stream: &TcpStream, resets: bool) {
    let linger = resets.then_some(Duration::ZERO);
    // The call fails on a socket that is gone already.
    let _ = with(stream, |fd| SockRef::from(&fd).set_linger(linger));
}

/// Closes the socket by RST, behind what was written to it.
pub(super) async fn cut(stream: TcpStream) {
    set_resets(&stream, true);
    for _ in 0..DELIVERY.as_millis() / LOOK.as_millis() {
        if unacknowledged(&stream).is_ok_and(|bytes| bytes == 0) {
            break;
        }
        sleep(LOOK).await;
    }
}

/// Bytes written that the peer has not acknowledged.
fn unacknowledged(stream: &TcpStream) -> io::Result<i32> {
    with(stream, |fd| {
        let mut bytes = 0;
        // SAFETY: the request writes one int, to where there is one; the descriptor is open.
        let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(bytes) }
    })
}

/// The runtime lends its descriptors as numbers only.
fn with<R>(stream: &TcpStream, act: impl FnOnce(BorrowedFd<'_>) -> R) -> R {
    // SAFETY: the stream is open as long as it is borrowed, and the call ends before that.
    act(unsafe { BorrowedFd::borrow_raw(stream.as_raw_fd()) })
}
