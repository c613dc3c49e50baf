//! The network interface between a reactor and the core that it serves. Events come in as calls of
//! [`Core`]; bytes to send and the few rare wishes go out through [`Net`].
//!
//! There is no object per frame: a receive shows its bytes where they lie, and output is a queue of
//! ranges. The reactor drives a `Core` through its `Net`, and so do the tests' frame scripts.

mod detached;
mod stalls;
mod tally;

use std::collections::VecDeque;
use std::net::SocketAddr;

use ringway_proto::Sink;
use ringway_proto::time::Time;

pub use crate::conn::{Close, ConnId, End, Listener};
use crate::mailbox::Bell;
pub use crate::output::Output;
use crate::output::{Delivery, append, take_room};
use crate::pool::{CHUNK_BYTES, Pool, Segment};
pub use detached::{Carried, Detached, SimulatedSocket};
pub use stalls::{STALL, STALL_SECONDS, Stalls};
pub use tally::Tally;

/// Addresses that one listener keeps out at a time.
pub const MOST_KEPT_OUT: usize = 64;

/// How long a flushed connection waits for its peer's FIN.
pub const LINGER: std::time::Duration = std::time::Duration::from_secs(2);

/// What a reactor serves: a shard, or the bare relay the benchmark compares with.
///
/// Every call may append output, close connections and leave wishes in the [`Net`].
pub trait Core {
    /// What other threads send to this core.
    type Message;

    /// A connection was accepted. It is being read from now on.
    fn accepted(&mut self, net: &mut Net, conn: ConnId, listener: Listener, peer: SocketAddr);

    /// A dial that the core wished for has ended. With `Ok` the connection is being read from now
    /// on. With `Err` (an `errno`) the id is dead already.
    fn dialled(&mut self, net: &mut Net, conn: ConnId, result: Result<(), i32>);

    /// Bytes have come. The segment is the callee's for this call only: to keep any of it, retain.
    fn received(&mut self, net: &mut Net, conn: ConnId, segment: Segment);

    /// The peer will send nothing more. After a [half](End::is_half) of an end the core closes the
    /// connection when it is done with it. If the connection breaks before that, one more end is
    /// reported, which is never a second half. After any other end the id is dead: its output is
    /// dropped, and it needs no close.
    fn ended(&mut self, net: &mut Net, conn: ConnId, end: End);

    /// The client's address, from a balancer's PROXY header. It is the connection's peer from now
    /// on. Called once at most, before the first byte.
    fn addressed(&mut self, _net: &mut Net, _conn: ConnId, _peer: SocketAddr) {}

    /// No operation is under way any more on a connection that the core wished to
    /// [detach](Net::detach). Its id is dead. The core may send the detached connection to another
    /// core, or drop it.
    fn detached(&mut self, _net: &mut Net, _conn: ConnId, _detached: Detached) {}

    /// The kernel took `bytes` of the connection's output.
    fn written(&mut self, net: &mut Net, conn: ConnId, bytes: usize);

    /// Whether the core waits for [`Self::written`] of this connection. If not, that call may come
    /// late, with the next event.
    fn awaits(&self, _conn: ConnId) -> bool {
        true
    }

    /// A message from another thread.
    fn message_received(&mut self, net: &mut Net, message: Self::Message);

    /// Called once per loop turn, after all its events and before the flush. Timers fire here.
    fn turn(&mut self, net: &mut Net);

    /// Receive memory runs short, and the output of blocked peers was copied out already. The core
    /// copies out and frees the receive blocks that it retains itself.
    fn relieve(&mut self, net: &mut Net);

    /// When [`Self::turn`] has to be called at the latest.
    fn deadline(&self) -> Option<Time>;

    /// Whether the core has done its work: the reactor then closes every socket (what is being
    /// flushed is still sent) and returns.
    fn finished(&self) -> bool;
}

/// A wish that is rare enough to be a value.
#[derive(Debug)]
pub enum Wish {
    /// Connect to an address; the id was reserved with [`Net::dial`].
    Dial(ConnId, SocketAddr),
    /// The receive or close state of this connection changed: the reactor has to look at it.
    Look(ConnId),
    /// Accept no more connections and close the listening socket.
    Unlisten(Listener),
    /// Let nobody in by this listener from these addresses, but everybody from all others.
    KeepOut(Listener, Box<[SocketAddr]>),
    /// Take up a connection of another core; the id was reserved with [`Net::adopt`].
    Adopt(ConnId, Carried),
    /// Take up a connection that another core accepted by this listener and did not read from; the
    /// id was reserved with [`Net::admit`].
    Admit(ConnId, Carried, Listener),
    /// Wake a sleeping core.
    Ring(Bell),
}

/// Everything a [`Core`] acts on: payload memory, output queues, wishes, and the turn's instant.
#[derive(Debug)]
pub struct Net {
    /// Payload memory.
    pub pool: Pool,
    /// The instant of this loop turn.
    pub now: Time,
    outputs: Vec<Output>,
    free: Vec<u32>,
    dirty: Vec<ConnId>,
    wishes: Vec<Wish>,
    /// The shared chunk of [`Net::stash`], and how much of it is used.
    stash: Option<(Segment, u32)>,
    /// What the reactor did so far.
    pub tally: Tally,
    /// Bytes copied out of receive blocks because a slow peer held them.
    pub copied_out: u64,
}

impl Net {
    /// An interface over `pool`, with no connection.
    #[must_use]
    pub fn new(pool: Pool) -> Self {
        Self {
            pool,
            now: Time::ZERO,
            outputs: Vec::new(),
            free: Vec::new(),
            dirty: Vec::new(),
            wishes: Vec::new(),
            stash: None,
            tally: Tally::default(),
            copied_out: 0,
        }
    }

    // ---- called by the core ----

    /// Appends bytes, copied into the connection's own chunks.
    pub fn put(&mut self, conn: ConnId, mut bytes: &[u8]) {
        if let Some(part) = self.tail(conn, bytes.len()) {
            return self.pool.bytes_mut(part).copy_from_slice(bytes);
        }
        while !bytes.is_empty() {
            let Some(part) = self.room(conn, bytes.len()) else { return };
            let (now, later) = bytes.split_at(part.len as usize);
            self.pool.bytes_mut(part).copy_from_slice(now);
            bytes = later;
        }
    }

    /// Appends a copy of a range, for one that is cheaper to copy than to refer to.
    pub fn put_copy(&mut self, conn: ConnId, segment: Segment) {
        if let Some(part) = self.tail(conn, segment.len as usize) {
            return self.pool.copy(segment, part);
        }
        let mut done = 0;
        while done < segment.len as usize {
            let rest = segment.len as usize - done;
            let Some(part) = self.room(conn, rest) else { return };
            self.pool.copy(segment.part(done, part.len as usize), part);
            done += part.len as usize;
        }
    }

    /// Room for all `wanted` bytes behind the last range, where most bytes go: that range grows,
    /// and no claim is made. The room is queued and has to be filled now.
    fn tail(&mut self, conn: ConnId, wanted: usize) -> Option<Segment> {
        let output = live(&mut self.outputs, conn)?;
        let (chunk, used) = output.fill.as_mut()?;
        let last = output.queue.back_mut()?;
        let end = (last.start + last.len) as usize;
        let there = last.block == chunk.block && end == *used as usize;
        if !there || CHUNK_BYTES - end < wanted {
            return None;
        }
        let part = chunk.part(end, wanted);
        *used += part.len;
        last.len += part.len;
        output.grow(self.now, part.len);
        self.mark(conn);
        Some(part)
    }

    /// Room for up to `wanted` bytes at the end of the connection's output. It is queued and has to
    /// be filled now.
    fn room(&mut self, conn: ConnId, wanted: usize) -> Option<Segment> {
        let output = live(&mut self.outputs, conn)?;
        let part = take_room(&mut self.pool, &mut output.fill, wanted);
        output.grow(self.now, part.len);
        append(&mut self.pool, &mut output.queue, part);
        self.mark(conn);
        Some(part)
    }

    /// Copies a range to where it may wait for long: into chunks shared by all bytes that wait.
    /// Each segment appended to `into` holds a claim. A range that lies in a chunk already stays
    /// there.
    pub fn stash(&mut self, segment: Segment, into: &mut VecDeque<Segment>) {
        if !self.pool.is_ring(segment) {
            self.pool.retain(segment);
            into.push_back(segment);
            return;
        }
        let mut done = 0;
        while done < segment.len as usize {
            let part = take_room(&mut self.pool, &mut self.stash, segment.len as usize - done);
            self.pool.copy(segment.part(done, part.len as usize), part);
            append(&mut self.pool, into, part);
            done += part.len as usize;
        }
    }

    /// As [`Self::stash`], for bytes that lie outside the pool.
    pub fn stash_bytes(&mut self, mut bytes: &[u8], into: &mut VecDeque<Segment>) {
        while !bytes.is_empty() {
            let part = take_room(&mut self.pool, &mut self.stash, bytes.len());
            let (now, later) = bytes.split_at(part.len as usize);
            self.pool.bytes_mut(part).copy_from_slice(now);
            append(&mut self.pool, into, part);
            bytes = later;
        }
    }

    /// Whether less than half of the receive memory is free. Then bytes that may wait for long
    /// should not stay there.
    #[must_use]
    pub fn receive_memory_is_short(&self) -> bool {
        (self.pool.ring_lent() + self.pool.ring_free()) * 2 < self.pool.ring_blocks()
    }

    /// Gives the shared chunk of [`Self::stash`] back once nothing waits in it.
    pub fn end_stash(&mut self) {
        if let Some((chunk, _)) = self.stash.take() {
            self.pool.release(chunk);
        }
    }

    /// Appends a range without copying it; the queue keeps its own claim on the block.
    pub fn push(&mut self, conn: ConnId, segment: Segment) {
        let Some(output) = live(&mut self.outputs, conn) else { return };
        if segment.len == 0 {
            // An empty range could never be sent, so the queue would never be empty.
            return;
        }
        output.grow(self.now, segment.len);
        append(&mut self.pool, &mut output.queue, segment);
        self.mark(conn);
    }

    /// Bytes queued and not yet taken by the kernel.
    #[must_use]
    pub fn queued(&self, conn: ConnId) -> usize {
        self.output(conn).map_or(0, |output| output.queued)
    }

    /// Asks to find out, at the peer's FIN, whether everything sent had arrived by then.
    pub fn ask_delivery(&mut self, conn: ConnId) {
        self.set_delivery(conn, Delivery::Asked);
    }

    /// Whether [`Self::ask_delivery`] was called.
    #[must_use]
    pub fn asks_delivery(&self, conn: ConnId) -> bool {
        self.output(conn).is_some_and(|output| output.delivery == Delivery::Asked)
    }

    /// The peer's FIN came before everything sent had arrived, so the peer did not wait for it.
    pub fn cut_delivery(&mut self, conn: ConnId) {
        self.set_delivery(conn, Delivery::Cut);
    }

    /// Whether the peer had got everything when its FIN came, as far as was asked.
    #[must_use]
    pub fn was_delivered(&self, conn: ConnId) -> bool {
        self.output(conn).is_none_or(|output| output.delivery != Delivery::Cut)
    }

    fn set_delivery(&mut self, conn: ConnId, delivery: Delivery) {
        if let Some(output) = self.outputs.get_mut(conn.slot as usize)
            && output.generation == conn.generation
        {
            output.delivery = delivery;
        }
    }

    /// Since when the connection's output makes no progress; none if nothing is queued.
    #[must_use]
    pub fn blocked_since(&self, conn: ConnId) -> Option<Time> {
        self.output(conn).filter(|output| output.queued > 0).map(|output| output.waiting_since)
    }

    /// Whether the peer does not keep up: what was queued before this turn still waits, and the kernel has
    /// taken nothing since.
    #[must_use]
    pub fn lags(&self, conn: ConnId) -> bool {
        let output = self.output(conn);
        output.is_some_and(|output| output.queued > 0 && output.waiting_since < self.now)
    }

    /// Connections that are open or not yet closed to the end.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.outputs.len() - self.free.len()
    }

    /// A [`Sink`] that appends to the connection's output.
    pub fn sink(&mut self, conn: ConnId) -> Writer<'_> {
        Writer { net: self, conn }
    }

    /// Stops (or resumes) reading from the connection. What was received before still arrives.
    pub fn pause(&mut self, conn: ConnId, paused: bool) {
        if let Some(output) = live(&mut self.outputs, conn)
            && output.paused != paused
        {
            output.paused = paused;
            self.wishes.push(Wish::Look(conn));
        }
    }

    /// Says that a message has begun, or is whole, that ends with the connection: a body until
    /// close, or a byte stream. Until the message is whole the connection ends by RST, however it
    /// is closed and also if this process dies. A FIN would tell the peer that nothing is missing.
    pub fn set_open_ended(&mut self, conn: ConnId, open_ended: bool) {
        if let Some(output) = live(&mut self.outputs, conn)
            && output.open_ended != open_ended
        {
            output.open_ended = open_ended;
            self.wishes.push(Wish::Look(conn));
        }
    }

    /// Ends the connection. Its id is dead at once: no further event of it will be reported.
    pub fn close(&mut self, conn: ConnId, how: Close) {
        let Some(output) = live(&mut self.outputs, conn) else { return };
        output.open = false;
        output.close = Some(how);
        self.wishes.push(Wish::Look(conn));
        self.mark(conn);
    }

    /// Reserves an id and asks for a connection to `address`; [`Core::dialled`] tells the end.
    pub fn dial(&mut self, address: SocketAddr) -> ConnId {
        let conn = self.open();
        self.wishes.push(Wish::Dial(conn, address));
        conn
    }

    /// As [`Self::dial`], to another gateway. Gateways are close to each other, so a lost one is
    /// noticed soon.
    pub fn dial_gateway(&mut self, address: SocketAddr) -> ConnId {
        let conn = self.dial(address);
        self.outputs[conn.slot as usize].to_gateway = true;
        conn
    }

    /// Detaches a connection so that another core can take it up. Reading stops, and once no
    /// operation is under way on the socket [`Core::detached`] hands it over. Until then bytes may
    /// still arrive. If the connection ends first, that is reported as usual, and nothing is handed
    /// over.
    pub fn detach(&mut self, conn: ConnId) {
        if let Some(output) = live(&mut self.outputs, conn) {
            output.detaching = true;
            self.wishes.push(Wish::Look(conn));
        }
    }

    /// Takes up a connection that another core has detached. It is being read from now on.
    pub fn adopt(&mut self, detached: Detached) -> ConnId {
        let conn = self.open();
        self.put(conn, &detached.unsent);
        self.wishes.push(Wish::Adopt(conn, detached.socket));
        conn
    }

    /// As [`Self::adopt`], for a connection from which nothing was read: the listener's PROXY
    /// header and TLS still come first.
    pub fn admit(&mut self, detached: Detached, listener: Listener) -> ConnId {
        let conn = self.open();
        self.put(conn, &detached.unsent);
        self.wishes.push(Wish::Admit(conn, detached.socket, listener));
        conn
    }

    /// Wakes a core that sleeps; see [`crate::mailbox`].
    pub fn ring(&mut self, bell: Bell) {
        self.wishes.push(Wish::Ring(bell));
    }

    /// Accepts no more connections from this listener.
    pub fn unlisten(&mut self, listener: Listener) {
        self.wishes.push(Wish::Unlisten(listener));
    }

    /// Lets nobody in by this listener from these addresses, but everybody from all others.
    pub fn keep_out(&mut self, listener: Listener, addresses: Box<[SocketAddr]>) {
        self.wishes.push(Wish::KeepOut(listener, addresses));
    }

    /// Copies what the connection's output holds of receive blocks into chunks, so that the blocks
    /// can go back to the kernel. Safe between turns only (no send is in flight then).
    ///
    /// Pieces are packed: many small frames of one slow peer share a chunk.
    pub fn copy_out(&mut self, conn: ConnId) {
        let Some(output) = self.outputs.get_mut(conn.slot as usize) else { return };
        if output.generation == conn.generation {
            let mut queue = std::mem::take(&mut output.queue);
            self.copy_out_of(&mut queue);
            self.outputs[conn.slot as usize].queue = queue;
        }
    }

    /// As [`Self::copy_out`], for a queue of the core's own.
    pub fn copy_out_of(&mut self, queue: &mut VecDeque<Segment>) {
        if !queue.iter().any(|segment| self.pool.is_ring(*segment)) {
            return;
        }
        // The queue gets chunks of its own, which are freed with it.
        let shared = self.stash.take();
        for segment in std::mem::take(queue) {
            if self.pool.is_ring(segment) {
                self.copied_out += u64::from(segment.len);
                self.stash(segment, queue);
                self.pool.release(segment);
            } else {
                queue.push_back(segment);
            }
        }
        self.end_stash();
        self.stash = shared;
    }

    /// Whether the id names an open connection.
    #[must_use]
    pub fn is_open(&self, conn: ConnId) -> bool {
        self.output(conn).is_some_and(|output| output.open)
    }

    // ---- called by the reactor ----

    /// A new connection's id.
    pub fn open(&mut self) -> ConnId {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.outputs.push(Output::default());
            self.outputs.len() as u32 - 1
        });
        let output = &mut self.outputs[slot as usize];
        output.open = true;
        output.delivery = Delivery::Unasked;
        ConnId { slot, generation: output.generation }
    }

    /// The peer is gone: the id dies, its output is dropped. The slot stays taken until
    /// [`Self::free`].
    pub fn kill(&mut self, conn: ConnId) {
        if let Some(output) = self.outputs.get_mut(conn.slot as usize)
            && output.generation == conn.generation
        {
            output.open = false;
            output.clear(&mut self.pool);
        }
    }

    /// The connection is not detached after all. True if the core had wished for that.
    pub fn keep(&mut self, conn: ConnId) -> bool {
        live(&mut self.outputs, conn).is_some_and(|output| std::mem::take(&mut output.detaching))
    }

    /// Takes the output of a connection that is detached; the id dies. The slot stays taken until
    /// [`Self::free`].
    pub fn take_unsent(&mut self, conn: ConnId) -> Vec<u8> {
        let queue = self.output(conn).map(|output| output.queue.iter());
        let bytes = queue.into_iter().flatten().flat_map(|s| self.pool.bytes(*s)).copied();
        let unsent = bytes.collect();
        self.kill(conn);
        unsent
    }

    /// The last operation on the connection has ended and its socket is closed: the slot may be
    /// used again, by another generation.
    pub fn free(&mut self, conn: ConnId) {
        self.kill(conn);
        let output = &mut self.outputs[conn.slot as usize];
        debug_assert_eq!(output.generation, conn.generation, "a slot was freed twice");
        *output = Output { generation: conn.generation.wrapping_add(1), ..Output::default() };
        self.free.push(conn.slot);
    }

    /// The connections with something to send, each once; the list is the caller's.
    pub fn take_dirty(&mut self, into: &mut Vec<ConnId>) {
        into.append(&mut self.dirty);
        for conn in into.iter() {
            self.outputs[conn.slot as usize].dirty = false;
        }
    }

    /// The wishes since the last call; the list is the caller's.
    pub fn take_wishes(&mut self, into: &mut Vec<Wish>) {
        into.append(&mut self.wishes);
    }

    /// The output queue of a connection that is open or being flushed.
    #[must_use]
    pub fn output(&self, conn: ConnId) -> Option<&Output> {
        self.outputs.get(conn.slot as usize).filter(|output| output.generation == conn.generation)
    }

    /// The kernel took `bytes` from the front of the queue.
    pub fn sent(&mut self, conn: ConnId, bytes: usize) {
        if let Some(output) = self.outputs.get_mut(conn.slot as usize)
            && output.generation == conn.generation
        {
            output.waiting_since = self.now;
            output.sent(bytes, &mut self.pool);
        }
    }

    /// The output of a connection that is open or being flushed, and the memory its ranges lie in.
    /// Bytes that are [taken](Output::take_front) from it, to be sent in another form, count as
    /// queued until [`Self::out`] says that they are on their way.
    pub fn output_mut(&mut self, conn: ConnId) -> Option<(&mut Output, &mut Pool)> {
        let output = self.outputs.get_mut(conn.slot as usize)?;
        (output.generation == conn.generation).then_some((output, &mut self.pool))
    }

    /// The kernel took some of the connection's output, and with it `bytes` that were
    /// [taken](Output::take_front) from the queue.
    pub fn out(&mut self, conn: ConnId, bytes: usize) {
        if let Some(output) = self.outputs.get_mut(conn.slot as usize)
            && output.generation == conn.generation
        {
            output.waiting_since = self.now;
            output.queued = output.queued.saturating_sub(bytes);
        }
    }

    /// Counts bytes as queued that were taken from the queue on another core.
    pub fn owe(&mut self, conn: ConnId, bytes: usize) {
        if let Some(output) = live(&mut self.outputs, conn) {
            output.grow(self.now, bytes as u32);
        }
    }

    /// Whether any connection has something new to send or any wish is open.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.dirty.is_empty() && self.wishes.is_empty()
    }

    fn mark(&mut self, conn: ConnId) {
        let output = &mut self.outputs[conn.slot as usize];
        if !output.dirty {
            output.dirty = true;
            self.dirty.push(conn);
        }
    }
}

fn live(outputs: &mut [Output], conn: ConnId) -> Option<&mut Output> {
    outputs
        .get_mut(conn.slot as usize)
        .filter(|output| output.open && output.generation == conn.generation)
}

/// Appends to one connection's output.
#[derive(Debug)]
pub struct Writer<'a> {
    net: &'a mut Net,
    conn: ConnId,
}

impl Sink for Writer<'_> {
    fn put(&mut self, bytes: &[u8]) {
        self.net.put(self.conn, bytes);
    }
}

#[cfg(test)]
mod tests;
