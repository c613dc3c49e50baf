//! What lies between a socket and the bytes a core sees: the PROXY protocol, TLS, or both.
//!
//! A core does not see a transport. Bytes from the socket pass [`Transport::receive`], which
//! returns the facts for the core. The core's output is plaintext, and [`Transport::seal`] turns a
//! bounded part of it into records right before a send. Memory comes from the core's pool, so an
//! idle connection has nothing but its session's keys.

mod entrance;
mod plain;
mod sealed;
mod session;

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use ringway_proto::proxy::{self, ProxyFault};
use rustls::ServerConfig;

use crate::conn::Listener;
use crate::output::Output;
use crate::pool::{Pool, Segment};
use crate::tls::{RECORD_BYTES, RECORD_OVERHEAD};
pub use entrance::{Admission, Entrance, Entrances, Gate, Greeting, Outcome, Proxied, Tally};
pub use plain::Plain;
use sealed::Sealed;
use session::TlsSession;

/// Most octets of records that are sealed and not yet sent. The rest waits as plaintext, where it
/// can be counted.
pub const SEAL_LIMIT: usize = 128 * 1024;

/// Most received bytes that are kept because a record, or a handshake message of several records,
/// is not complete. rustls takes messages of up to 64 KiB.
pub const REST_LIMIT: usize = 80 * 1024;

/// What received bytes turned out to be, in order.
#[derive(Debug)]
pub enum Fact {
    /// The PROXY header is read, with the client's address if it has one.
    Introduced(Option<SocketAddr>),
    /// The handshake is done.
    Secured,
    /// The peer was sent our side of HTTP/2's preface before anything came from it.
    Greeted,
    /// Bytes for the core; the claim goes to whoever takes the fact.
    Bytes(Segment),
    /// The peer will send nothing more (`close_notify`).
    Fin,
    /// The connection is of no use. A sealed alert should still be sent.
    Failed(Failure),
}

/// Why a connection did not get through.
#[derive(Debug)]
pub enum Failure {
    /// No PROXY header, or a wrong one.
    Proxy(ProxyFault),
    /// TLS: the peer's fault, or ours.
    Tls(rustls::Error),
    /// More than [`REST_LIMIT`] was received without a complete message.
    Rest,
    /// The session's key may seal no more records.
    Exhausted,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Proxy(fault) => fault.fmt(f),
            Self::Tls(error) => error.fmt(f),
            Self::Rest => f.write_str("a handshake message is too long"),
            Self::Exhausted => f.write_str("the key has sealed all it may"),
        }
    }
}

/// Memory that all transports of a core reuse.
#[derive(Default)]
pub struct Scratch {
    /// Plaintext for the core.
    pub plain: Plain,
    /// Pieces of the core's output, gathered for one record.
    gathered: Vec<u8>,
    /// The rest kept from before and the bytes received, in one piece.
    input: Vec<u8>,
}

/// How far a connection has come.
#[derive(Debug)]
enum Stage {
    /// A PROXY header must come first; then TLS, or the core's bytes as they are.
    Proxy(Option<Arc<ServerConfig>>),
    /// Nothing of TLS was received yet.
    Greeting(Arc<ServerConfig>),
    /// TLS, from the first byte on.
    Tls(Box<TlsSession>),
    /// The bytes pass unchanged: nothing is left to do.
    Through,
    /// Only sealed records are still sent; everything else is dropped.
    Failed,
}

/// One connection's way in and out.
pub struct Transport {
    listener: Listener,
    stage: Stage,
    /// Received bytes that are no complete record yet.
    rest: Vec<u8>,
    sealed: Sealed,
    /// Bytes that travel to another core; see [`Transport::pack`].
    packed: Vec<u8>,
    /// Whether the handshake's outcome was counted already.
    counted: bool,
    /// The greeting to be sent as soon as possible.
    greeting: Option<Greeting>,
    greeted: bool,
}

impl fmt::Debug for Transport {
    // Payload must be in no log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport")
            .field("listener", &self.listener)
            .field("stage", &self.stage)
            .field("rest", &self.rest.len())
            .field("sealed", &self.sealed.len())
            .finish_non_exhaustive()
    }
}

impl Transport {
    /// The transport of a fresh connection that has to begin with a PROXY header, to speak TLS, or
    /// both. None if neither.
    #[must_use]
    pub fn new(listener: Listener, proxy: bool, tls: Option<Arc<ServerConfig>>) -> Option<Self> {
        let stage = match (proxy, tls) {
            (false, None) => return None,
            (false, Some(config)) => Stage::Greeting(config),
            (true, tls) => Stage::Proxy(tls),
        };
        Some(Self {
            listener,
            stage,
            rest: Vec::new(),
            sealed: Sealed::default(),
            packed: Vec::new(),
            counted: false,
            greeting: None,
            greeted: false,
        })
    }

    /// The same transport with a greeting for a client of HTTP/2.
    #[must_use]
    pub fn greeting(self, greeting: Option<Greeting>) -> Self {
        Self { greeting, ..self }
    }

    /// Whether the greeting was sent.
    #[must_use]
    pub fn is_greeted(&self) -> bool {
        self.greeted
    }

    /// The listener that let the connection in.
    #[must_use]
    pub fn listener(&self) -> Listener {
        self.listener
    }

    /// Whether the core's bytes can come and go.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(&self.stage, Stage::Tls(session) if session.is_established())
    }

    /// Whether the peer's bytes would be cut short if they ended here: `close_notify` has not come.
    #[must_use]
    pub fn is_cut_short(&self) -> bool {
        matches!(&self.stage, Stage::Tls(tls) if tls.is_established() && !tls.is_finished())
    }

    /// Whether the transport has nothing left to do.
    #[must_use]
    pub fn is_through(&self) -> bool {
        matches!(self.stage, Stage::Through)
    }

    /// The handshake's outcome, returned once to be counted, when the handshake has ended or ends
    /// with the connection. A connection that never sent a byte began no handshake.
    pub fn outcome(&mut self) -> Option<Outcome> {
        let outcome = match &self.stage {
            Stage::Proxy(_) | Stage::Greeting(_) | Stage::Through => return None,
            Stage::Tls(session) if session.is_established() => Outcome::Ok,
            Stage::Tls(_) => Outcome::Abandoned,
            Stage::Failed => Outcome::Failed,
        };
        (!std::mem::replace(&mut self.counted, true)).then_some(outcome)
    }

    /// Takes in the bytes that the socket received. The segment stays the caller's.
    pub fn receive(
        &mut self,
        pool: &mut Pool,
        mut segment: Segment,
        scratch: &mut Scratch,
        facts: &mut Vec<Fact>,
    ) {
        if let Stage::Proxy(_) = self.stage {
            match self.introduce(pool, segment, facts) {
                Some(rest) => segment = rest,
                None => return,
            }
        }
        if let Stage::Through = self.stage {
            if segment.len > 0 {
                pool.retain(segment);
                facts.push(Fact::Bytes(segment));
            }
            return;
        }
        if segment.len == 0 {
            return;
        }
        if let Stage::Greeting(config) = &self.stage {
            self.stage = match TlsSession::new(config.clone()) {
                Ok(session) => Stage::Tls(Box::new(session)),
                Err(error) => return self.fail(Failure::Tls(error), facts),
            };
        }
        let Stage::Tls(session) = &mut self.stage else { return };
        if session.is_finished() {
            return;
        }
        let established = session.is_established();
        let introduced = facts.len();
        let input = &mut scratch.input;
        input.clear();
        input.append(&mut self.rest);
        input.extend_from_slice(pool.bytes(segment));
        let read = session.read(input, pool, (&mut scratch.plain, &mut self.sealed), facts);
        if session.is_established() && !established {
            // Application data comes after the handshake.
            facts.insert(introduced, Fact::Secured);
        }
        match read {
            Ok(_) if session.is_finished() => {
                self.rest = Vec::new();
                facts.push(Fact::Fin);
            }
            Ok(used) if input.len() - used > REST_LIMIT => self.fail(Failure::Rest, facts),
            Ok(used) => {
                self.rest = input[used..].to_vec();
                if self.greeting.is_some() {
                    self.greet(pool, facts);
                }
            }
            Err(error) => self.fail(Failure::Tls(error), facts),
        }
    }

    /// Sends the greeting if the session can carry it by now. With TLS 1.3 it goes with our first
    /// flight, one round trip before the client has proved anything (RFC 8446 §4.4.4). That is safe
    /// because the greeting has no secret. Once the client has spoken it is too late for a
    /// greeting.
    fn greet(&mut self, pool: &mut Pool, facts: &mut Vec<Fact>) {
        let Stage::Tls(session) = &mut self.stage else { return };
        let Some(greeting) = self.greeting.take() else { return };
        let spoken = facts.iter().any(|fact| matches!(fact, Fact::Bytes(_)));
        let wanted = match session.protocol() {
            Some(protocol) => protocol == b"h2",
            // Only when the handshake is done is it known that no protocol was chosen.
            None if !session.is_established() => {
                self.greeting = Some(greeting);
                return;
            }
            None => greeting.to_all,
        };
        if spoken || !wanted {
            return;
        }
        match session.seal_early(&mut self.rest, &greeting.bytes) {
            Some(record) => {
                let room = self.sealed.room(pool, record.len());
                pool.bytes_mut(room.part(0, record.len())).copy_from_slice(&record);
                self.sealed.filled(pool, room, record.len(), 0);
                self.greeted = true;
                facts.push(Fact::Greeted);
            }
            None => self.greeting = Some(greeting),
        }
    }

    /// Reads the PROXY header. Returns the bytes behind it, once it is complete.
    fn introduce(
        &mut self,
        pool: &Pool,
        segment: Segment,
        facts: &mut Vec<Fact>,
    ) -> Option<Segment> {
        let before = self.rest.len();
        let more = (segment.len as usize).min(proxy::HEADER_MAX - before);
        self.rest.extend_from_slice(pool.bytes(segment.part(0, more)));
        match proxy::read(&self.rest) {
            Ok(proxy::Header::NeedMore) => None,
            Ok(proxy::Header::Whole { source, len }) => {
                self.rest = Vec::new();
                facts.push(Fact::Introduced(source));
                if let Stage::Proxy(tls) = &mut self.stage {
                    self.stage = tls.take().map_or(Stage::Through, Stage::Greeting);
                }
                let own = len - before;
                Some(segment.part(own, segment.len as usize - own))
            }
            Err(fault) => {
                // There was no handshake to count.
                self.counted = true;
                self.fail(Failure::Proxy(fault), facts);
                None
            }
        }
    }

    fn fail(&mut self, failure: Failure, facts: &mut Vec<Fact>) {
        self.stage = Stage::Failed;
        self.rest = Vec::new();
        facts.push(Fact::Failed(failure));
    }

    /// Seals what the core has queued in `output`, up to [`SEAL_LIMIT`]; `last`: there will be no more, so
    /// that `close_notify` follows it.
    ///
    /// # Errors
    /// The session can seal nothing more: the connection is of no use.
    pub fn seal(
        &mut self,
        output: &mut Output,
        pool: &mut Pool,
        last: bool,
        scratch: &mut Scratch,
    ) -> Result<(), Failure> {
        let Stage::Tls(session) = &mut self.stage else { return Ok(()) };
        if !session.is_established() {
            return Ok(());
        }
        while self.sealed.len() < SEAL_LIMIT {
            let Some(front) = output.queue().front().copied() else { break };
            let whole = output.queue().len() == 1 || front.len as usize >= RECORD_BYTES;
            let gathered = &mut scratch.gathered;
            let plain = if whole {
                (front.len as usize).min(RECORD_BYTES)
            } else {
                gather(output.queue(), pool, gathered)
            };
            let room = self.sealed.room(pool, plain + RECORD_OVERHEAD);
            let rest = &mut self.rest;
            let sealed = if whole {
                pool.between(front.part(0, plain), room, |from, to| session.seal(rest, from, to))
            } else {
                session.seal(rest, gathered, pool.bytes_mut(room))
            }?;
            self.sealed.filled(pool, room, sealed, plain);
            output.take_front(plain, pool);
        }
        if last && output.queue().is_empty() && !session.said_goodbye() {
            let room = self.sealed.room(pool, RECORD_OVERHEAD);
            let said = session.say_goodbye(&mut self.rest, pool.bytes_mut(room))?;
            self.sealed.filled(pool, room, said, 0);
        }
        Ok(())
    }

    /// The queue that the next send takes from.
    #[must_use]
    pub fn queue(&self) -> &VecDeque<Segment> {
        self.sealed.queue()
    }

    /// Bytes sealed and not yet sent.
    #[must_use]
    pub fn sealed(&self) -> usize {
        self.sealed.len()
    }

    /// The kernel took `bytes`. Returns how many of the core's bytes were completed by these.
    pub fn sent(&mut self, pool: &mut Pool, bytes: usize) -> usize {
        self.sealed.sent(pool, bytes)
    }

    /// Gives the transport's memory back; no more of it will be sent.
    pub fn clear(&mut self, pool: &mut Pool) {
        self.sealed.clear(pool);
    }

    /// Makes the transport fit to go to another core, which has another pool.
    pub fn pack(&mut self, pool: &mut Pool) {
        self.packed = self.sealed.pack(pool);
    }

    /// The counterpart of [`Self::pack`]. Returns how many of the core's bytes are sealed in the
    /// transport.
    pub fn unpack(&mut self, pool: &mut Pool) -> usize {
        let packed = std::mem::take(&mut self.packed);
        self.sealed.unpack(pool, &packed)
    }
}

/// Copies the front of a queue, up to one record. Returns the number of bytes.
fn gather(queue: &VecDeque<Segment>, pool: &Pool, into: &mut Vec<u8>) -> usize {
    into.clear();
    for segment in queue {
        let len = (segment.len as usize).min(RECORD_BYTES - into.len());
        into.extend_from_slice(pool.bytes(segment.part(0, len)));
        if into.len() == RECORD_BYTES {
            break;
        }
    }
    into.len()
}

#[cfg(test)]
mod tests;
