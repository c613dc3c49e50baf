//! A connection's id, the listener that it came by, and how it ends.

/// A connection of this core: slot and generation. A fact that comes after the connection's end
/// names an old generation, so it cannot reach the slot's next owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnId {
    /// Index in every table kept per connection.
    pub slot: u32,
    /// How often the slot was used before.
    pub generation: u32,
}

/// Which listener a connection came in by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Listener {
    /// Clients: 10081 by default.
    Client,
    /// Workers: 10086 by default.
    Worker,
    /// Other gateways: a free port by default.
    Cluster,
}

/// How a peer's bytes ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// FIN: the peer sends no more; what we send may still arrive.
    Fin,
    /// FIN without the sign that the bytes are complete (TLS without `close_notify`), so some may
    /// be missing. Bytes that we send may still arrive.
    Truncated,
    /// RST, or a send to a peer that is gone.
    Reset,
    /// The kernel gave up (keep-alive, user timeout).
    Timeout,
    /// Any other error of the socket.
    Failed,
}

impl End {
    /// Whether only the peer's bytes have ended: the connection itself is still there.
    #[must_use]
    pub fn is_half(self) -> bool {
        matches!(self, Self::Fin | Self::Truncated)
    }
}

/// How we want a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Close {
    /// Send all that is queued, then FIN; read and drop what still comes until the peer's FIN or
    /// [`crate::net::LINGER`], so that no RST overtakes our last bytes. RST instead of FIN where
    /// the end would say too much ([`crate::net::Net::set_open_ended`]).
    Flush,
    /// Drop what is queued, close at once: FIN, or RST if unread data is pending, or as above.
    Now,
}
