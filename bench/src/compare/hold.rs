//! Client connections that say no more than their preface: what they cost a peer's memory.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use crate::cpu;
use crate::memory::Held;

/// What a client says first (RFC 9113 §3.4), with an empty SETTINGS frame.
const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// Its answer to the peer's SETTINGS.
const ACKNOWLEDGED: &[u8] = b"\0\0\0\x04\x01\0\0\0\0";
/// How long a connection waits for the peer's first octets.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Connections that are opened before the first of them is waited for: less than any listener lets
/// wait.
const AT_ONCE: usize = 64;
/// For the last of them to be settled.
const REST: Duration = Duration::from_millis(300);

/// Opens `connections` to `target` and returns the bytes each costs the processes of `pid`.
///
/// # Errors
/// One could not be opened, or had no answer.
pub(super) fn run(target: SocketAddr, connections: usize, pid: u32) -> io::Result<f64> {
    let before = Held::sample(&cpu::tree(pid));
    let mut held = Vec::with_capacity(connections);
    while held.len() < connections {
        let known = held.len();
        for _ in 0..AT_ONCE.min(connections - known) {
            let mut stream = TcpStream::connect(target)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(ANSWER_LIMIT))?;
            stream.write_all(HELLO)?;
            held.push(stream);
        }
        for stream in &mut held[known..] {
            // A frame head at least: more may come with it and says nothing of interest.
            stream.read_exact(&mut [0; 9])?;
            stream.write_all(ACKNOWLEDGED)?;
        }
    }
    thread::sleep(REST);
    let after = Held::sample(&cpu::tree(pid));
    Ok(after.pss.saturating_sub(before.pss) as f64 / connections.max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn who_does_not_greet_is_an_error_and_who_does_is_measured() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let target = listener.local_addr().unwrap();
        let serving = thread::spawn(move || {
            let (mut silent, _) = listener.accept().unwrap();
            drop(silent.read(&mut [0; 64]));
            drop(silent);
            let (mut polite, _) = listener.accept().unwrap();
            let mut hello = [0; HELLO.len()];
            polite.read_exact(&mut hello).unwrap();
            assert_eq!(hello, HELLO);
            polite.write_all(&HELLO[HELLO.len() - 9..]).unwrap();
            let mut acknowledged = [0; 9];
            polite.read_exact(&mut acknowledged).unwrap();
            assert_eq!(acknowledged, ACKNOWLEDGED);
        });
        let me = std::process::id();
        assert!(run(target, 1, me).is_err());
        assert!(run(target, 1, me).unwrap() >= 0.0);
        serving.join().unwrap();
    }
}
