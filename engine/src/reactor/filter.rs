//! Addresses whose connections a listener does not let in. The kernel throws their packets away
//! before there is a connection (socket(7), SO_ATTACH_FILTER).

use std::io;
use std::net::{IpAddr, SocketAddr};

use socket2::{SockFilter, SockRef};

use crate::net::MOST_KEPT_OUT;

/// Offsets in a packet count from here on from its network header.
const NETWORK: u32 = libc::SKF_NET_OFF as u32;
const LOAD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
/// Where the source's address lies (RFC 791 section 3.1, RFC 8200 section 3).
const SOURCE_4: u32 = 12;
const SOURCE_6: u32 = 8;

/// Keeps these addresses out, whatever their ports, and no others. At most
/// [`MOST_KEPT_OUT`] are kept out.
///
/// # Errors
/// The kernel has no filters.
pub(super) fn keep_out(listener: &SockRef<'_>, addresses: &[SocketAddr]) -> io::Result<()> {
    let addresses = &addresses[..addresses.len().min(MOST_KEPT_OUT)];
    if addresses.is_empty() {
        return listener.detach_filter();
    }
    listener.attach_filter(&program(addresses))
}

/// The filter program that throws away all packets of these addresses.
fn program(addresses: &[SocketAddr]) -> Vec<SockFilter> {
    let step = |code, equal, else_, value| SockFilter::new(code, equal, else_, value);
    let drop = || step(RETURN, 0, 0, 0);
    let pass = || step(RETURN, 0, 0, u32::MAX);
    let mut of_4 = vec![step(LOAD_WORD, 0, 0, NETWORK + SOURCE_4)];
    let mut of_6 = Vec::new();
    for address in addresses {
        match address.ip().to_canonical() {
            IpAddr::V4(address) => {
                of_4.push(step(IF_EQUAL, 0, 1, address.to_bits()));
                of_4.push(drop());
            }
            IpAddr::V6(address) => {
                // Each step that finds another word jumps behind the drop.
                let bits = address.to_bits();
                for at in 0..4_u8 {
                    let word = (bits >> (96 - 32 * u32::from(at))) as u32;
                    let offset = NETWORK + SOURCE_6 + 4 * u32::from(at);
                    of_6.push(step(LOAD_WORD, 0, 0, offset));
                    of_6.push(step(IF_EQUAL, 0, 7 - 2 * at, word));
                }
                of_6.push(drop());
            }
        }
    }
    of_4.push(pass());
    of_6.push(pass());
    let mut steps = vec![
        step(LOAD_BYTE, 0, 0, NETWORK),
        step(AND, 0, 0, 0xf0),
        step(IF_EQUAL, 1, 0, 0x40),
        step(JUMP, 0, 0, of_4.len() as u32),
    ];
    steps.extend(of_4);
    steps.extend(of_6);
    steps
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::Duration;

    use socket2::{Domain, Socket, Type};

    use super::*;

    fn address(text: &str) -> SocketAddr {
        SocketAddr::new(text.parse().unwrap(), 0)
    }

    /// Whether a connection from there is let in.
    fn comes(source: &str, listener: &TcpListener) -> bool {
        let to = listener.local_addr().unwrap();
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
        socket.bind(&address(source).into()).unwrap();
        socket.connect_timeout(&to.into(), Duration::from_millis(200)).is_ok()
    }

    #[test]
    fn who_is_kept_out_does_not_come_in_and_others_do() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let of = SockRef::from(&listener);
        keep_out(&of, &["127.0.0.2", "::1", "127.0.0.4"].map(address)).unwrap();
        for (source, let_in) in
            [("127.0.0.1", true), ("127.0.0.2", false), ("127.0.0.3", true), ("127.0.0.4", false)]
        {
            assert_eq!(comes(source, &listener), let_in, "{source}");
        }
        keep_out(&of, &[]).unwrap();
        assert!(comes("127.0.0.2", &listener));
    }

    #[test]
    fn the_other_address_family_is_told_apart() {
        // Without IPv6 there is nothing to keep out.
        let Ok(listener) = TcpListener::bind("[::1]:0") else { return };
        let of = SockRef::from(&listener);
        keep_out(&of, &["::2", "100::1", "127.0.0.1"].map(address)).unwrap();
        assert!(comes("::1", &listener));
        keep_out(&of, &["::2", "127.0.0.1", "::1"].map(address)).unwrap();
        assert!(!comes("::1", &listener));
    }
}
