//! The client's real address, from a load balancer in front: PROXY protocol v2, the binary header
//! before a connection's first byte (haproxy.org, `proxy-protocol.txt`).
//!
//! Whether the sender may be believed (trusted networks) is the caller's to know.

use std::fmt;
use std::net::SocketAddr;

/// Bytes of what may follow the addresses: what load balancers tell of themselves, and of a
/// client's certificate.
pub const EXTRAS_MAX: usize = 4096;

/// Bytes of a header with all that follows the addresses, of which those of UNIX are the longest.
pub const HEADER_MAX: usize = FIXED + 216 + EXTRAS_MAX;

/// No HTTP request or TLS record begins like this.
pub const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Signature, version and command, family, length.
const FIXED: usize = 16;

/// The checksum of the whole header.
const TYPE_CRC32C: u8 = 0x03;

const CRC32C: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI);

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// The start of a header; nothing of it is read.
    NeedMore,
    /// A whole one.
    Whole {
        /// The client's address; `None` if the load balancer speaks for itself (a health check) or
        /// for somebody who has no IP address: then the connection's own is meant.
        source: Option<SocketAddr>,
        /// Bytes of it: the client's begin behind them.
        len: usize,
    },
}

/// Why a connection that must begin with a header is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyFault {
    /// The connection begins with something else.
    Missing,
    /// The connection begins with the text header of version 1.
    Text,
    /// Version or command is unknown.
    Version,
    /// Not a stream over IPv4, IPv6 or UNIX.
    Family,
    /// Over [`HEADER_MAX`].
    TooLarge,
    /// Too short for its addresses or for what follows them.
    Malformed,
    /// The checksum is another's.
    Checksum,
}

impl fmt::Display for ProxyFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "connection does not begin with a PROXY protocol header",
            Self::Text => "PROXY protocol version 1 is not supported, configure version 2",
            Self::Version => "PROXY protocol version or command is unknown",
            Self::Family => "PROXY protocol header is for no stream that is known",
            Self::TooLarge => "PROXY protocol header is too large: over 4328 bytes",
            Self::Malformed => "PROXY protocol header is malformed",
            Self::Checksum => "PROXY protocol header has a wrong checksum",
        })
    }
}

impl std::error::Error for ProxyFault {}

/// Reads the header that `input`, everything received so far, must begin with.
///
/// # Errors
/// The first fault in reading order, as early as it can be known.
pub fn read(input: &[u8]) -> Result<Header, ProxyFault> {
    let start = input.len().min(SIGNATURE.len());
    if input[..start] != SIGNATURE[..start] {
        let text = input.len().min(b"PROXY ".len());
        let is_text = input[..text] == b"PROXY "[..text];
        return match (is_text, text) {
            (true, 6) => Err(ProxyFault::Text),
            (true, _) => Ok(Header::NeedMore),
            (false, _) => Err(ProxyFault::Missing),
        };
    }
    let local = match input.get(12) {
        None => return Ok(Header::NeedMore),
        Some(0x20) => true,
        Some(0x21) => false,
        Some(_) => return Err(ProxyFault::Version),
    };
    let Some(&[high, low]) = input.get(14..FIXED) else { return Ok(Header::NeedMore) };
    let len = FIXED + usize::from(u16::from_be_bytes([high, low]));
    if len > HEADER_MAX {
        return Err(ProxyFault::TooLarge);
    }
    let Some(header) = input.get(..len) else { return Ok(Header::NeedMore) };
    let source = if local { None } else { read_source(header)? };
    Ok(Header::Whole { source, len })
}

fn read_source(header: &[u8]) -> Result<Option<SocketAddr>, ProxyFault> {
    const SHORT: ProxyFault = ProxyFault::Malformed;
    // Source address, target address, source port, target port.
    let (source, behind) = match header[13] {
        // An unknown protocol (UNSPEC): the header names no address.
        0x00 => return Ok(None),
        0x11 => {
            let body: &[u8; 12] = header[FIXED..].first_chunk().ok_or(SHORT)?;
            let [a, b, c, d, .., high, low, _, _] = *body;
            (Some(SocketAddr::from(([a, b, c, d], u16::from_be_bytes([high, low])))), 12)
        }
        0x21 => {
            let body: &[u8; 36] = header[FIXED..].first_chunk().ok_or(SHORT)?;
            let address: &[u8; 16] = body.first_chunk().ok_or(SHORT)?;
            (Some(SocketAddr::from((*address, u16::from_be_bytes([body[32], body[33]])))), 36)
        }
        0x31 => (None, 216),
        _ => return Err(ProxyFault::Family),
    };
    check_rest(header, FIXED + behind)?;
    Ok(source)
}

/// Steps over what follows the addresses (type, length, value); a checksum must be right.
fn check_rest(header: &[u8], mut at: usize) -> Result<(), ProxyFault> {
    while at < header.len() {
        let Some(&[kind, high, low]) = header.get(at..at + 3) else {
            return Err(ProxyFault::Malformed);
        };
        let start = at + 3;
        at = start + usize::from(u16::from_be_bytes([high, low]));
        let value = header.get(start..at).ok_or(ProxyFault::Malformed)?;
        if kind == TYPE_CRC32C {
            let told = value.try_into().map(u32::from_be_bytes);
            if told.map_err(|_| ProxyFault::Malformed)? != checksum(header, start) {
                return Err(ProxyFault::Checksum);
            }
        }
    }
    // Addresses of which a part is missing.
    if at == header.len() { Ok(()) } else { Err(ProxyFault::Malformed) }
}

/// The checksum of the header, with the checksum's own four bytes as zeros.
fn checksum(header: &[u8], own: usize) -> u32 {
    let mut digest = CRC32C.digest();
    digest.update(&header[..own]);
    digest.update(&[0; 4]);
    digest.update(&header[own + 4..]);
    digest.finalize()
}
