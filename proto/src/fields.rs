//! A header list as one flat block: no allocation per field, names known by a one-byte [`Token`].
//!
//! HPACK decoding and the HTTP/1 head parser fill it; validation, routing and encoding read it.

/// A field name this gateway has a rule for, or [`Token::Other`].
///
/// Known once per HPACK table entry, so that a rule is a match on one byte, never a comparison
/// of names per request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
#[expect(missing_docs, reason = "each variant is the field name it stands for, see `Token::of`")]
pub enum Token {
    #[default]
    Other,
    Authority,
    Method,
    Path,
    Protocol,
    Scheme,
    Status,
    /// A name that begins with a colon and is none of the above.
    UnknownPseudo,
    AcceptEncoding,
    AccessControlRequestHeaders,
    AccessControlRequestMethod,
    Authorization,
    Connection,
    ContentLength,
    ContentType,
    Cookie,
    Date,
    Expect,
    Forwarded,
    FunctionId,
    FunctionVersionId,
    GrpcEncoding,
    GrpcMessage,
    GrpcStatus,
    GrpcTimeout,
    Host,
    Http2Settings,
    KeepAlive,
    NvcfReqid,
    Origin,
    ProxyAuthenticate,
    ProxyAuthorization,
    ProxyConnection,
    SecWebsocketProtocol,
    SetCookie,
    Te,
    Trailer,
    TransferEncoding,
    Upgrade,
    UserAgent,
    XForwardedFor,
    XForwardedHost,
    XForwardedProto,
    XRequestId,
    XNvcfReconnectWindowSecs,
}

macro_rules! names {
    ($($name:literal $token:ident,)*) => {
        /// The token of a lower-case field name.
        #[must_use]
        pub fn of(name: &[u8]) -> Self {
            match name {
                $($name => Self::$token,)*
                [b':', ..] => Self::UnknownPseudo,
                _ => Self::Other,
            }
        }

        /// The name, if the token has only one.
        #[must_use]
        pub fn name(self) -> Option<&'static [u8]> {
            match self {
                $(Self::$token => Some($name),)*
                Self::Other | Self::UnknownPseudo => None,
            }
        }
    };
}

impl Token {
    names! {
        b":authority" Authority,
        b":method" Method,
        b":path" Path,
        b":protocol" Protocol,
        b":scheme" Scheme,
        b":status" Status,
        b"accept-encoding" AcceptEncoding,
        b"access-control-request-headers" AccessControlRequestHeaders,
        b"access-control-request-method" AccessControlRequestMethod,
        b"authorization" Authorization,
        b"connection" Connection,
        b"content-length" ContentLength,
        b"content-type" ContentType,
        b"cookie" Cookie,
        b"date" Date,
        b"expect" Expect,
        b"forwarded" Forwarded,
        b"function-id" FunctionId,
        b"function-version-id" FunctionVersionId,
        b"grpc-encoding" GrpcEncoding,
        b"grpc-message" GrpcMessage,
        b"grpc-status" GrpcStatus,
        b"grpc-timeout" GrpcTimeout,
        b"host" Host,
        b"http2-settings" Http2Settings,
        b"keep-alive" KeepAlive,
        b"nvcf-reqid" NvcfReqid,
        b"origin" Origin,
        b"proxy-authenticate" ProxyAuthenticate,
        b"proxy-authorization" ProxyAuthorization,
        b"proxy-connection" ProxyConnection,
        b"sec-websocket-protocol" SecWebsocketProtocol,
        b"set-cookie" SetCookie,
        b"te" Te,
        b"trailer" Trailer,
        b"transfer-encoding" TransferEncoding,
        b"upgrade" Upgrade,
        b"user-agent" UserAgent,
        b"x-forwarded-for" XForwardedFor,
        b"x-forwarded-host" XForwardedHost,
        b"x-forwarded-proto" XForwardedProto,
        b"x-nvcf-reconnect-window-secs" XNvcfReconnectWindowSecs,
        b"x-request-id" XRequestId,
    }

    /// Whether the name begins with a colon.
    #[must_use]
    pub fn is_pseudo(self) -> bool {
        (Self::Authority as u8..=Self::UnknownPseudo as u8).contains(&(self as u8))
    }
}

/// One field, borrowed from a list or made on the spot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// What the name is to us.
    pub token: Token,
    /// Lower-case name; pseudo-header names begin with a colon.
    pub name: &'a [u8],
    /// Value, without the optional white space around it.
    pub value: &'a [u8],
    /// The sender forbade every table to keep it (RFC 7541 §6.2.3): it must stay so on each hop.
    pub never_indexed: bool,
}

impl<'a> Field<'a> {
    /// A field that may be indexed.
    #[must_use]
    pub fn new(name: &'a [u8], value: &'a [u8]) -> Self {
        Self { token: Token::of(name), name, value, never_indexed: false }
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    start: u32,
    name_len: u32,
    value_len: u32,
    token: Token,
    never_indexed: bool,
}

/// A header or trailer section: one block of bytes and one row of offsets a field.
///
/// Cleared and filled again, it does not allocate in steady state.
#[derive(Clone, Debug, Default)]
pub struct Fields {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
    size: usize,
    malformed: bool,
    /// Memory for whoever fills the list; empty between two times.
    scratch: Vec<u8>,
}

/// Most octets of scratch memory that a list keeps.
const SCRATCH_KEPT: usize = 4096;

/// Bytes that RFC 9113 §6.5.2 adds to name and value for each field of a list.
pub const FIELD_OVERHEAD: usize = 32;

impl Fields {
    /// An empty list.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets all fields; keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.entries.clear();
        self.size = 0;
        self.malformed = false;
    }

    /// Becomes the same list as `other`, in the memory it has.
    pub fn copy_from(&mut self, other: &Self) {
        self.bytes.clone_from(&other.bytes);
        self.entries.clone_from(&other.entries);
        self.size = other.size;
        self.malformed = other.malformed;
    }

    /// Lends the scratch memory, which is empty. It has to be [given back](Self::give_scratch).
    pub(crate) fn take_scratch(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.scratch)
    }

    /// The counterpart of [`Self::take_scratch`].
    pub(crate) fn give_scratch(&mut self, mut scratch: Vec<u8>) {
        if scratch.capacity() <= SCRATCH_KEPT {
            scratch.clear();
            self.scratch = scratch;
        }
    }

    /// Appends one field.
    pub fn push(&mut self, field: Field<'_>) {
        let start = self.bytes.len() as u32;
        self.bytes.extend_from_slice(field.name);
        self.bytes.extend_from_slice(field.value);
        self.size += field.name.len() + field.value.len() + FIELD_OVERHEAD;
        self.entries.push(Entry {
            start,
            name_len: field.name.len() as u32,
            value_len: field.value.len() as u32,
            token: field.token,
            never_indexed: field.never_indexed,
        });
    }

    /// Moves the field at `from` to `to`, with another name.
    ///
    /// # Panics
    /// If there are not so many fields.
    pub fn move_as(&mut self, from: usize, to: usize, name: &[u8]) {
        let moved = self.entries.remove(from);
        let start = self.bytes.len() as u32;
        let value = (moved.start + moved.name_len) as usize;
        self.bytes.extend_from_slice(name);
        self.bytes.extend_from_within(value..value + moved.value_len as usize);
        self.size = self.size + name.len() - moved.name_len as usize;
        let (name_len, token) = (name.len() as u32, Token::of(name));
        self.entries.insert(to, Entry { start, name_len, token, ..moved });
    }

    /// Keeps only the fields of which `keep` says so.
    pub fn retain(&mut self, mut keep: impl FnMut(Field<'_>) -> bool) {
        let mut kept = std::mem::take(&mut self.entries);
        let mut size = 0;
        kept.retain(|entry| {
            let field = self.field(entry);
            let keeps = keep(field);
            size += if keeps { field.name.len() + field.value.len() + FIELD_OVERHEAD } else { 0 };
            keeps
        });
        self.size = size;
        self.entries = kept;
    }

    /// The fields in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Field<'_>> + ExactSizeIterator + Clone {
        self.entries.iter().map(|entry| self.field(entry))
    }

    /// The field at `index`, if there are that many.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<Field<'_>> {
        self.entries.get(index).map(|entry| self.field(entry))
    }

    /// The value of the first field with this token.
    #[must_use]
    pub fn first(&self, token: Token) -> Option<&[u8]> {
        self.entries.iter().find(|e| e.token == token).map(|e| self.field(e).value)
    }

    /// How many fields there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no field.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Decoded size with [`FIELD_OVERHEAD`] a field: what MAX_HEADER_LIST_SIZE limits.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// Records that some field's name or value breaks RFC 9113 §8.2.1 or RFC 9110 §5.
    ///
    /// The HPACK decoder knows it per table entry, so that repeated fields are not scanned again.
    pub fn mark_malformed(&mut self) {
        self.malformed = true;
    }

    /// Whether [`Self::mark_malformed`] was called since the last clear.
    #[must_use]
    pub fn is_malformed(&self) -> bool {
        self.malformed
    }

    fn field(&self, entry: &Entry) -> Field<'_> {
        let start = entry.start as usize;
        let middle = start + entry.name_len as usize;
        let end = middle + entry.value_len as usize;
        Field {
            token: entry.token,
            name: &self.bytes[start..middle],
            value: &self.bytes[middle..end],
            never_indexed: entry.never_indexed,
        }
    }
}

/// Whether `name` may stand in an HTTP/2 field section: a token without capitals, or a
/// pseudo-header name (RFC 9113 §8.2.1, RFC 9110 §5.6.2).
#[must_use]
pub fn name_is_valid(name: &[u8]) -> bool {
    let rest = name.strip_prefix(b":").unwrap_or(name);
    !rest.is_empty() && rest.iter().all(|&b| NAME_OCTET[b as usize])
}

/// Whether `value` has no NUL, CR, LF or other control octet, and no white space at its ends
/// (RFC 9113 §8.2.1, RFC 9110 §5.5).
#[must_use]
pub fn value_is_valid(value: &[u8]) -> bool {
    let edge = |b: Option<&u8>| matches!(b, Some(b' ' | b'\t'));
    !edge(value.first()) && !edge(value.last()) && value.iter().all(|&b| VALUE_OCTET[b as usize])
}

const NAME_OCTET: [bool; 256] = {
    let mut table = [false; 256];
    let allowed = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz";
    let mut i = 0;
    while i < allowed.len() {
        table[allowed[i] as usize] = true;
        i += 1;
    }
    table
};

const VALUE_OCTET: [bool; 256] = {
    let mut table = [true; 256];
    let mut i = 0;
    while i < 32 {
        table[i] = i == 9;
        i += 1;
    }
    table[127] = false;
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_back_as_they_went_in() {
        let mut list = Fields::new();
        list.push(Field::new(b":method", b"POST"));
        list.push(Field { never_indexed: true, ..Field::new(b"authorization", b"Bearer x") });
        list.push(Field::new(b"x-empty", b""));
        assert_eq!(list.len(), 3);
        assert_eq!(list.size(), 7 + 4 + 13 + 8 + 7 + 3 * FIELD_OVERHEAD);
        assert_eq!(list.first(Token::Authorization), Some(&b"Bearer x"[..]));
        assert!(list.get(1).unwrap().never_indexed);
        assert_eq!(list.get(2).unwrap().value, b"");
        list.clear();
        assert!(list.is_empty() && list.size() == 0);
    }

    #[test]
    fn a_field_moves_under_another_name_and_others_are_left_out() {
        let mut list = Fields::new();
        for (name, value) in [(":method", "GET"), ("a", "1"), ("host", "h"), ("b", "2")] {
            list.push(Field::new(name.as_bytes(), value.as_bytes()));
        }
        list.move_as(2, 1, b":authority");
        list.retain(|field| field.name != b"a");
        let mut same = Fields::new();
        for (name, value) in [(":method", "GET"), (":authority", "h"), ("b", "2")] {
            same.push(Field::new(name.as_bytes(), value.as_bytes()));
        }
        assert!(list.iter().eq(same.iter()));
        assert_eq!(list.size(), same.size());
    }

    #[test]
    fn names_and_values_are_held_to_the_rfc() {
        assert!(name_is_valid(b"x-a_1") && name_is_valid(b":path"));
        for bad in [&b""[..], b":", b"X-A", b"a b", b"a:b", b"::a", b"a\0"] {
            assert!(!name_is_valid(bad), "{bad:?}");
        }
        assert!(value_is_valid(b"") && value_is_valid(b"a b\tc\xff"));
        for bad in [&b" a"[..], b"a\t", b"a\nb", b"a\rb", b"\0", b"a\x7f"] {
            assert!(!value_is_valid(bad), "{bad:?}");
        }
    }

    #[test]
    fn pseudo_tokens_are_told_from_the_others() {
        for name in [&b":status"[..], b":authority", b":nonsense"] {
            assert!(Token::of(name).is_pseudo());
        }
        assert!(!Token::of(b"host").is_pseudo() && !Token::Other.is_pseudo());
    }
}
