//! One TLS session: rustls without buffers of its own, working on our memory.

use std::fmt;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncryptError, UnbufferedStatus};

use super::{Fact, Failure, Plain, Sealed};
use crate::pool::Pool;
use crate::tls::{RECORD_BYTES, RECORD_OVERHEAD};

/// Room for a piece of the handshake: a certificate chain comes in records of this size.
const PIECE_BYTES: usize = RECORD_BYTES;

/// Most records that may still be sent after the handshake has failed.
const MOST_PIECES: usize = 8;

/// A session of a server.
pub(super) struct TlsSession {
    tls: UnbufferedServerConnection,
    finished: bool,
    said_goodbye: bool,
}

impl fmt::Debug for TlsSession {
    // The session holds keys, which must be in no log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsSession")
            .field("established", &self.is_established())
            .field("finished", &self.finished)
            .finish_non_exhaustive()
    }
}

impl TlsSession {
    pub(super) fn new(config: Arc<ServerConfig>) -> Result<Self, rustls::Error> {
        let tls = UnbufferedServerConnection::new(config)?;
        Ok(Self { tls, finished: false, said_goodbye: false })
    }

    /// Whether the handshake is done.
    pub(super) fn is_established(&self) -> bool {
        !self.tls.is_handshaking()
    }

    /// Whether the peer said that it will send nothing more.
    pub(super) fn is_finished(&self) -> bool {
        self.finished
    }

    pub(super) fn said_goodbye(&self) -> bool {
        self.said_goodbye
    }

    /// Reads records from the front of `input`. Returns how many bytes were used up. The rest has
    /// to be there again the next time, with more behind it.
    pub(super) fn read(
        &mut self,
        input: &mut [u8],
        pool: &mut Pool,
        (plain, sealed): (&mut Plain, &mut Sealed),
        facts: &mut Vec<Fact>,
    ) -> Result<usize, rustls::Error> {
        let mut used = 0;
        loop {
            let UnbufferedStatus { discard, state } =
                self.tls.process_tls_records(&mut input[used..]);
            let mut blocked = false;
            let mut failed = None;
            match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        plain.put(pool, record?.payload, facts);
                    }
                }
                Ok(ConnectionState::EncodeTlsData(mut piece)) => {
                    let room = sealed.room(pool, PIECE_BYTES);
                    let len = piece.encode(pool.bytes_mut(room)).map_err(too_large)?;
                    sealed.filled(pool, room, len, 0);
                }
                Ok(ConnectionState::TransmitTlsData(transmit)) => transmit.done(),
                Ok(ConnectionState::PeerClosed) => self.finished = true,
                // The session waits for more bytes. (There is no early data, because none is
                // offered.)
                Ok(_) => blocked = true,
                Err(error) => failed = Some(error),
            }
            used += discard;
            if let Some(error) = failed {
                self.take_alert(&mut input[used..], pool, sealed);
                return Err(error);
            }
            if blocked {
                return Ok(used);
            }
        }
    }

    /// After a failure: the records for the peer, the alert last. rustls is not called again after
    /// the alert, because it would read on.
    fn take_alert(&mut self, input: &mut [u8], pool: &mut Pool, sealed: &mut Sealed) {
        for _ in 0..MOST_PIECES {
            let UnbufferedStatus { state, .. } = self.tls.process_tls_records(input);
            let Ok(ConnectionState::EncodeTlsData(mut piece)) = state else { return };
            let room = sealed.room(pool, PIECE_BYTES);
            let Ok(len) = piece.encode(pool.bytes_mut(room)) else { return };
            sealed.filled(pool, room, len, 0);
            if is_alert(pool.bytes(room.part(0, len))) {
                return;
            }
        }
    }

    /// The protocol that was chosen by ALPN, once it was.
    pub(super) fn protocol(&self) -> Option<&[u8]> {
        self.tls.alpn_protocol()
    }

    /// Seals one record, if that is possible already: the handshake may still be going on. `rest`
    /// are the bytes that [`Self::read`] left.
    pub(super) fn seal_early(&mut self, rest: &mut [u8], plain: &[u8]) -> Option<Vec<u8>> {
        let mut record = vec![0; plain.len() + RECORD_OVERHEAD];
        let len = self.seal(rest, plain, &mut record).ok()?;
        record.truncate(len);
        Some(record)
    }

    /// Seals one record. `rest` are the bytes that [`Self::read`] left.
    pub(super) fn seal(
        &mut self,
        rest: &mut [u8],
        plain: &[u8],
        out: &mut [u8],
    ) -> Result<usize, Failure> {
        self.write(rest, out, |traffic, out| traffic.encrypt(plain, out))
    }

    /// Seals `close_notify`.
    pub(super) fn say_goodbye(
        &mut self,
        rest: &mut [u8],
        out: &mut [u8],
    ) -> Result<usize, Failure> {
        self.said_goodbye = true;
        self.write(rest, out, |traffic, out| traffic.queue_close_notify(out))
    }

    fn write(
        &mut self,
        rest: &mut [u8],
        out: &mut [u8],
        write: impl FnOnce(&mut Traffic<'_>, &mut [u8]) -> Result<usize, EncryptError>,
    ) -> Result<usize, Failure> {
        // All received bytes were read, so only writing is left to do.
        let UnbufferedStatus { state, .. } = self.tls.process_tls_records(rest);
        match state {
            Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                write(&mut traffic, out).map_err(|_| Failure::Exhausted)
            }
            Ok(_) => Err(Failure::Exhausted),
            Err(error) => Err(Failure::Tls(error)),
        }
    }
}

type Traffic<'a> = rustls::unbuffered::WriteTraffic<'a, rustls::server::ServerConnectionData>;

fn too_large(error: rustls::unbuffered::EncodeError) -> rustls::Error {
    rustls::Error::General(error.to_string())
}

/// Whether a record of ours is an alert (RFC 8446 §5.1): by its type, or, encrypted, by its size.
fn is_alert(record: &[u8]) -> bool {
    const ALERT: u8 = 21;
    const DATA: u8 = 23;
    const ENCRYPTED: usize = 5 + 2 + 1 + 16;
    match record.first() {
        Some(&ALERT) => true,
        Some(&DATA) => record.len() <= ENCRYPTED,
        _ => false,
    }
}
