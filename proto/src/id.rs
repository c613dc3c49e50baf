//! Ids that carry their home: request ids and worker tokens (design 3.2).
//!
//! Nothing here is a table. An id says which node, which run of its process and which core made
//! it, so that a CONNECT or a resumption goes to its owner without a map that cores share.

use siphasher::sip::SipHasher24;
use std::fmt;
use std::hash::Hasher;
use std::num::NonZeroU64;
use uuid::Uuid;

/// Nodes are numbered below this.
pub const NODE_LIMIT: u16 = 1 << 12;
/// Logical cores are numbered below this.
pub const CORE_LIMIT: u16 = 1 << 10;
/// Session slots of one core are numbered below this.
pub const SLOT_LIMIT: u32 = 1 << 24;

/// One run of one node's process: what tells its ids, tokens and attachments from all others'
/// (design 3.22).
///
/// **Shape**: a number of 12 bits and an incarnation of 16. Pairs are unique, numbers need not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Node {
    number: u16,
    incarnation: u16,
}

impl Node {
    /// The run `incarnation` of the node `number`; none if that is not below [`NODE_LIMIT`].
    #[must_use]
    pub const fn new(number: u16, incarnation: u16) -> Option<Self> {
        if number < NODE_LIMIT { Some(Self { number, incarnation }) } else { None }
    }

    /// The node.
    #[must_use]
    pub const fn number(self) -> u16 {
        self.number
    }

    /// Which run of its process.
    #[must_use]
    pub const fn incarnation(self) -> u16 {
        self.incarnation
    }
}

impl fmt::Display for Node {
    /// Written the same everywhere: number and incarnation in hexadecimal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:03x}-{:04x}", self.number, self.incarnation)
    }
}

/// Reads a request id as the contract's reference does (CL-2); not the `uuid` crate's parser.
///
/// **Shape**: 36 characters with hyphens; the same behind `urn:uuid:` in any case; the same
/// between two octets of any value, which are dropped unseen; 32 hexadecimal digits. Version and
/// variant are not looked at.
#[must_use]
pub fn parse_request_id(text: &[u8]) -> Option<Uuid> {
    let hyphened = match text.len() {
        32 => return hex_digits(text.iter().copied()),
        36 => text,
        38 => &text[1..37],
        45 if text[..9].eq_ignore_ascii_case(b"urn:uuid:") => &text[9..],
        _ => return None,
    };
    const HYPHENS: [usize; 4] = [8, 13, 18, 23];
    if HYPHENS.iter().any(|&at| hyphened[at] != b'-') {
        return None;
    }
    let digits = hyphened.iter().enumerate().filter(|(at, _)| !HYPHENS.contains(at));
    hex_digits(digits.map(|(_, &digit)| digit))
}

fn hex_digits(digits: impl Iterator<Item = u8>) -> Option<Uuid> {
    let mut value = 0_u128;
    for digit in digits {
        value = value << 4 | u128::from(char::from(digit).to_digit(16)?);
    }
    Some(Uuid::from_u128(value))
}

/// Makes the request ids of one core and knows the home of those its node made.
///
/// **Shape** of an id, from the highest bit (RFC 9562 §5.8, version 8):
/// 48 random, 4 version, 12 node, 2 variant, 16 incarnation, 10 core, 36 random: 84 random bits.
#[derive(Clone, Copy, Debug)]
pub struct RequestIds {
    /// Everything but the random bits, in place.
    fixed: u128,
}

/// Where a request id was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// Made by this run of this node, on this core.
    Core(u16),
    /// Made by an earlier run of this node: whatever that knew is gone.
    OtherIncarnation,
    /// Made by this node of the cluster.
    OtherNode(Node),
    /// Not by this scheme at all.
    Unknown,
}

impl Home {
    /// The core to ask, if the id is of this run of this node.
    #[must_use]
    pub fn core(self) -> Option<u16> {
        match self {
            Self::Core(core) => Some(core),
            Self::OtherIncarnation | Self::OtherNode(_) | Self::Unknown => None,
        }
    }
}

impl RequestIds {
    const VERSION: (u32, u128) = (76, 8);
    const NODE: u32 = 64;
    const VARIANT: (u32, u128) = (62, 2);
    const INCARNATION: u32 = 46;
    const CORE: u32 = 36;
    const RANDOM: u128 = !(((1 << 16) - 1) << 64 | ((1 << 28) - 1) << 36);

    /// A mint for `core` of `node`.
    #[must_use]
    pub fn new(node: Node, core: u16) -> Self {
        assert!(core < CORE_LIMIT, "core number out of range: the configuration checks it");
        let fixed = Self::VERSION.1 << Self::VERSION.0
            | u128::from(node.number) << Self::NODE
            | Self::VARIANT.1 << Self::VARIANT.0
            | u128::from(node.incarnation) << Self::INCARNATION
            | u128::from(core) << Self::CORE;
        Self { fixed }
    }

    /// A fresh id. 84 of the random bits are used.
    #[must_use]
    pub fn mint(&self, random: [u8; 16]) -> Uuid {
        Uuid::from_u128(self.fixed | u128::from_be_bytes(random) & Self::RANDOM)
    }

    /// Which run of which node made `id`; none if it is not of this scheme. It is a hint: anyone can
    /// write such an id.
    #[must_use]
    pub fn maker_of(id: Uuid) -> Option<Node> {
        let id = id.as_u128();
        let is = |(at, value): (u32, u128), bits: u32| id >> at & ((1 << bits) - 1) == value;
        (is(Self::VERSION, 4) && is(Self::VARIANT, 2)).then_some(Node {
            number: (id >> Self::NODE) as u16 % NODE_LIMIT,
            incarnation: (id >> Self::INCARNATION) as u16,
        })
    }

    /// Where `id` was made. It is a hint: anyone can write such an id, so the core it names is to
    /// look into its own directory and no more.
    #[must_use]
    pub fn home_of(&self, id: Uuid) -> Home {
        let id = id.as_u128();
        let differs = |at: u32, bits: u32| (id ^ self.fixed) >> at & ((1 << bits) - 1) != 0;
        if differs(Self::VERSION.0, 4) || differs(Self::VARIANT.0, 2) {
            return Home::Unknown;
        }
        if differs(Self::NODE, 12) {
            return Self::maker_of(Uuid::from_u128(id)).map_or(Home::Unknown, Home::OtherNode);
        }
        if differs(Self::INCARNATION, 16) {
            return Home::OtherIncarnation;
        }
        Home::Core((id >> Self::CORE) as u16 % CORE_LIMIT)
    }
}

/// Characters of a worker token.
pub const TOKEN_LENGTH: usize = 64;
const PREFIX_LENGTH: usize = 24;
const GROUP_LENGTH: usize = 8;
/// 62^8 > 2^47: a group of 8 characters carries 47 bits.
const GROUP_BITS: u32 = 47;
const MAC_BITS: u32 = 38;
/// What the first five bits say; another layout gets another number.
const FORMAT: u128 = 1;

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const NOT_IN_ALPHABET: u8 = 62;
const DIGIT: [u8; 256] = {
    let mut table = [NOT_IN_ALPHABET; 256];
    let mut i = 0;
    while i < ALPHABET.len() {
        table[ALPHABET[i] as usize] = i as u8;
        i += 1;
    }
    table
};

/// What a worker proves with that it was sent: 64 characters of `[A-Za-z0-9]`, for one CONNECT.
///
/// A secret: it has no `Display`, no `==`, and `Debug` does not show it.
#[derive(Clone)]
pub struct WorkerToken([u8; TOKEN_LENGTH]);

impl WorkerToken {
    /// The characters, to be sent to the worker.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; TOKEN_LENGTH] {
        &self.0
    }

    /// The characters as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("a token is minted from the alphabet, which is ASCII")
    }

    /// Whether `text` is this token, in a time that does not tell how much of it is right.
    #[must_use]
    pub fn matches(&self, text: &[u8]) -> bool {
        let Ok(text) = <&[u8; TOKEN_LENGTH]>::try_from(text) else {
            return false;
        };
        let difference = self.0.iter().zip(text).fold(0, |seen, (a, b)| seen | a ^ b);
        // Kept from the optimiser, which may otherwise leave the loop at the first difference.
        std::hint::black_box(difference) == 0
    }
}

impl fmt::Debug for WorkerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WorkerToken(..)")
    }
}

/// The owner of a token: the core, and the session's slot there with its generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenAddress {
    /// Logical core, below [`CORE_LIMIT`].
    pub core: u16,
    /// Slot, below [`SLOT_LIMIT`].
    pub slot: u32,
    /// Which use of the slot.
    pub generation: u32,
}

/// Why a text is no token of ours. The worker does not learn it (contract 4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenFault {
    /// Not 64 characters of the alphabet, or a layout we do not know.
    Malformed,
    /// A node of the cluster made it that is not this one, or not this run of its process.
    ForeignNode(Node),
    /// Neither we nor another node of the cluster made it, whatever it names.
    BadMac,
}

/// Makes and reads the worker tokens of one process.
///
/// **Shape**: 24 characters are three base-62 groups of 47 bits: format 5, node 12,
/// incarnation 20 (of which the upper 4 are zero), core 10, slot 24, generation 32, MAC 38. Then 40 random characters,
/// log2(62^40) = 238.2 bits. The MAC is SipHash-2-4 over the address and the random characters:
/// what another core, or another node, is bothered with was made by one that has the key.
#[derive(Clone)]
pub struct TokenMint {
    /// The key by which credentials are sealed.
    own: SipHasher24,
    /// The key by which tokens are made.
    mac: SipHasher24,
    /// The key by which other tokens may have been made.
    other: Option<SipHasher24>,
    /// Format, node and incarnation: the upper 37 bits of the first group.
    origin: u128,
}

impl TokenMint {
    /// Random bytes that a token takes.
    ///
    /// 16 for each group of 10 characters: scaling 128 bits down to 62^10 values favours none by
    /// more than 2^-68, so that no byte need be thrown away.
    pub const RANDOM_BYTES: usize = 64;

    const GENERATION_AT: u32 = 0;
    const SLOT_AT: u32 = 32;
    const CORE_AT: u32 = 56;
    const INCARNATION_AT: u32 = 66;
    const NODE_AT: u32 = 86;
    const FORMAT_AT: u32 = 98;

    /// A mint of `node`.
    #[must_use]
    pub fn new(secret: [u8; 16], node: Node) -> Self {
        let origin = FORMAT << Self::FORMAT_AT
            | u128::from(node.number) << Self::NODE_AT
            | u128::from(node.incarnation) << Self::INCARNATION_AT;
        let own = SipHasher24::new_with_key(&secret);
        Self { own, mac: own, other: None, origin }
    }

    /// From now on tokens are made with the cluster's `key`; those made with the `other` one are read
    /// too.
    pub fn share(&mut self, key: [u8; 16], other: Option<[u8; 16]>) {
        self.mac = SipHasher24::new_with_key(&key);
        self.other = other.map(|other| SipHasher24::new_with_key(&other));
    }

    /// A fresh token for the session in `slot` of `core`.
    #[must_use]
    pub fn mint(
        &self,
        core: u16,
        slot: u32,
        generation: u32,
        random: &[u8; Self::RANDOM_BYTES],
    ) -> WorkerToken {
        assert!(core < CORE_LIMIT, "core number out of range: the configuration checks it");
        assert!(slot < SLOT_LIMIT, "a core's session table never grows to {SLOT_LIMIT}");
        let address = self.origin
            | u128::from(core) << Self::CORE_AT
            | u128::from(slot) << Self::SLOT_AT
            | u128::from(generation) << Self::GENERATION_AT;
        let mut text = [0; TOKEN_LENGTH];
        write_random(random, &mut text[PREFIX_LENGTH..]);
        let mac = mac_of(self.mac, address, &text[PREFIX_LENGTH..]);
        for (group, out) in split(address, mac).into_iter().zip(text.chunks_mut(GROUP_LENGTH)) {
            write_base62(group, out);
        }
        WorkerToken(text)
    }

    /// Whose token `text` is, if it was made by this mint; the owner still has to compare it. What no
    /// MAC proves names nobody.
    ///
    /// # Errors
    /// Says in what the text is not ours.
    pub fn read(&self, text: &[u8]) -> Result<TokenAddress, TokenFault> {
        if text.len() != TOKEN_LENGTH || text.iter().any(|&b| DIGIT[b as usize] == NOT_IN_ALPHABET)
        {
            return Err(TokenFault::Malformed);
        }
        let (prefix, random) = text.split_at(PREFIX_LENGTH);
        let (address, mac) = join(prefix).ok_or(TokenFault::Malformed)?;
        let differs = |at: u32| (address ^ self.origin) >> at != 0;
        if differs(Self::FORMAT_AT) {
            return Err(TokenFault::Malformed);
        }
        let made_by = |key: SipHasher24| mac == mac_of(key, address, random);
        if !made_by(self.mac) && !self.other.is_some_and(made_by) {
            return Err(TokenFault::BadMac);
        }
        if differs(Self::INCARNATION_AT) {
            let node = Node {
                number: (address >> Self::NODE_AT) as u16 % NODE_LIMIT,
                incarnation: (address >> Self::INCARNATION_AT) as u16,
            };
            return Err(TokenFault::ForeignNode(node));
        }
        Ok(TokenAddress {
            core: (address >> Self::CORE_AT) as u16 % CORE_LIMIT,
            slot: (address >> Self::SLOT_AT) as u32 % SLOT_LIMIT,
            generation: (address >> Self::GENERATION_AT) as u32,
        })
    }

    /// What stands for a credential where that itself is not kept: only who has it, and this mint,
    /// can say the same again.
    #[must_use]
    pub fn seal(&self, credential: &[u8]) -> NonZeroU64 {
        let mut mac = self.own;
        // No token's address begins so: formats are small numbers.
        mac.write(&[0xff; 16]);
        mac.write(credential);
        NonZeroU64::new(mac.finish()).unwrap_or(NonZeroU64::MAX)
    }
}

fn mac_of(key: SipHasher24, address: u128, random: &[u8]) -> u64 {
    let mut input = [0; 16 + TOKEN_LENGTH - PREFIX_LENGTH];
    input[..16].copy_from_slice(&address.to_be_bytes());
    input[16..].copy_from_slice(random);
    key.hash(&input) >> (64 - MAC_BITS)
}

impl fmt::Debug for TokenMint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenMint(..)")
    }
}

/// The 103 bits of an address and the MAC as three groups: 47, 47, and 9 with the MAC's 38.
fn split(address: u128, mac: u64) -> [u64; 3] {
    let group = |number: u128| number as u64 & ((1 << GROUP_BITS) - 1);
    let last = GROUP_BITS - MAC_BITS;
    [
        group(address >> (GROUP_BITS + last)),
        group(address >> last),
        group(address << MAC_BITS) | mac,
    ]
}

/// What [`split`] made of an address and a MAC; `None` if a group is not one that it writes.
fn join(prefix: &[u8]) -> Option<(u128, u64)> {
    let mut groups = [0; 3];
    for (group, text) in groups.iter_mut().zip(prefix.chunks(GROUP_LENGTH)) {
        *group = text.iter().fold(0_u64, |n, &b| n * 62 + u64::from(DIGIT[b as usize]));
        if *group >> GROUP_BITS != 0 {
            return None;
        }
    }
    let [first, second, last] = groups;
    let address = (u128::from(first) << GROUP_BITS | u128::from(second)) << (GROUP_BITS - MAC_BITS)
        | u128::from(last >> MAC_BITS);
    Some((address, last & ((1 << MAC_BITS) - 1)))
}

fn write_base62(number: u64, out: &mut [u8]) {
    let mut rest = number;
    for digit in out.iter_mut().rev() {
        *digit = ALPHABET[(rest % 62) as usize];
        rest /= 62;
    }
}

/// 40 characters from 64 random bytes: of 128 bits `r`, `floor(r * 62^10 / 2^128)` gives ten.
fn write_random(random: &[u8; TokenMint::RANDOM_BYTES], out: &mut [u8]) {
    const VALUES: u128 = 62_u128.pow(10);
    for (bytes, out) in random.chunks_exact(16).zip(out.chunks_mut(10)) {
        let (high, low) = bytes.split_at(8);
        let half = |bytes: &[u8]| bytes.iter().fold(0_u128, |n, &b| n << 8 | u128::from(b));
        let scaled = (half(high) * VALUES + ((half(low) * VALUES) >> 64)) >> 64;
        write_base62(scaled as u64, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha8Rng;
    use rand_core::{RngCore, SeedableRng};
    use std::collections::HashSet;

    fn random<const N: usize>(source: &mut ChaCha8Rng) -> [u8; N] {
        let mut bytes = [0; N];
        source.fill_bytes(&mut bytes);
        bytes
    }

    fn node(number: u16, incarnation: u16) -> Node {
        Node::new(number, incarnation).unwrap()
    }

    #[test]
    fn a_node_has_twelve_bits_and_sixteen() {
        assert_eq!(Node::new(NODE_LIMIT, 0), None);
        let last = node(NODE_LIMIT - 1, u16::MAX);
        assert_eq!((last.number(), last.incarnation()), (4095, 65_535));
        assert_eq!(size_of::<Node>(), 4);
    }

    #[test]
    fn request_ids_are_version_8_and_know_their_home() {
        let mut source = ChaCha8Rng::seed_from_u64(1);
        for (number, incarnation, core) in [(0, 0, 0), (7, 3, 5), (4095, 65_535, 1023)] {
            let of = node(number, incarnation);
            let ids = RequestIds::new(of, core);
            let id = ids.mint(random(&mut source));
            assert_eq!(id.get_version_num(), 8);
            assert_eq!(id.get_variant(), uuid::Variant::RFC4122);
            assert_eq!(ids.home_of(id), Home::Core(core));
            assert_eq!(RequestIds::new(of, 9).home_of(id).core(), Some(core));
            assert_eq!(
                RequestIds::new(node(number, incarnation ^ 1), core).home_of(id),
                Home::OtherIncarnation
            );
            assert_eq!(
                RequestIds::new(node(number ^ 1, incarnation), core).home_of(id),
                Home::OtherNode(of)
            );
            let version_4 = Uuid::from_u128(id.as_u128() ^ 12 << 76);
            assert_eq!(version_4.get_version_num(), 4);
            assert_eq!(ids.home_of(version_4), Home::Unknown);
            assert_eq!(RequestIds::maker_of(id), Some(of));
            let other_variant = Uuid::from_u128(id.as_u128() ^ 1 << 63);
            for foreign in [version_4, other_variant, Uuid::nil()] {
                assert_eq!(RequestIds::maker_of(foreign), None);
            }
            assert_eq!(ids.home_of(Uuid::nil()), Home::Unknown);
        }
    }

    #[test]
    fn request_ids_have_84_random_bits() {
        let ids = RequestIds::new(node(4095, 0), 1023);
        let differing = ids.mint([0; 16]).as_u128() ^ ids.mint([255; 16]).as_u128();
        assert_eq!(differing.count_ones(), 84);
        assert_eq!(differing, RequestIds::RANDOM);
    }

    #[test]
    fn tokens_are_64_characters_and_name_their_session() {
        let mut source = ChaCha8Rng::seed_from_u64(2);
        let mint = TokenMint::new(random(&mut source), node(4095, 0xffff));
        for (core, slot, generation) in
            [(0, 0, 0), (1023, SLOT_LIMIT - 1, u32::MAX), (5, 1, 7), (0, 0, 0x1ff)]
        {
            let token = mint.mint(core, slot, generation, &random(&mut source));
            assert!(token.as_str().bytes().all(|b| b.is_ascii_alphanumeric()));
            assert_eq!(token.as_str().len(), 64);
            assert_eq!(mint.read(token.as_bytes()), Ok(TokenAddress { core, slot, generation }));
        }
    }

    #[test]
    fn a_token_with_any_other_character_is_not_ours() {
        let mut source = ChaCha8Rng::seed_from_u64(3);
        let mint = TokenMint::new(random(&mut source), node(1, 2));
        let token = mint.mint(3, 4, 5, &random(&mut source));
        for at in 0..TOKEN_LENGTH {
            for &other in ALPHABET {
                let mut text = *token.as_bytes();
                if text[at] == other {
                    continue;
                }
                text[at] = other;
                assert!(mint.read(&text).is_err(), "character {at} as {}", other as char);
                assert!(!token.matches(&text));
            }
        }
        assert!(token.matches(token.as_bytes()));
        assert!(!token.matches(&token.as_bytes()[..63]) && !token.matches(b""));
        assert!(!token.matches(&[&token.as_bytes()[..], b"x"].concat()));
    }

    #[test]
    fn tokens_say_why_they_are_not_ours() {
        let mut source = ChaCha8Rng::seed_from_u64(4);
        let secret = random(&mut source);
        let mint = TokenMint::new(secret, node(1, 2));
        let read = |other: &TokenMint, source: &mut ChaCha8Rng| {
            mint.read(other.mint(3, 4, 5, &random(source)).as_bytes())
        };
        for other in [node(2, 2), node(1, 1), node(4095, 0xffff)] {
            let foreign = TokenMint::new(secret, other);
            assert_eq!(read(&foreign, &mut source), Err(TokenFault::ForeignNode(other)));
        }
        // What names another node proves nothing by that.
        for other in [node(1, 2), node(2, 2)] {
            let forged = TokenMint::new(random(&mut source), other);
            assert_eq!(read(&forged, &mut source), Err(TokenFault::BadMac));
        }
        let mut token = *mint.mint(3, 4, 5, &random(&mut source)).as_bytes();
        for text in [&b""[..], b"short", &[b'z'; 64], &[b'0'; 64], &[0xff; 64], &token[1..]] {
            assert_eq!(mint.read(text), Err(TokenFault::Malformed), "{text:?}");
        }
        token[63] = b'-';
        assert_eq!(mint.read(&token), Err(TokenFault::Malformed));
    }

    #[test]
    fn nodes_with_a_common_key_read_each_others_tokens_and_seal_for_themselves() {
        let mut source = ChaCha8Rng::seed_from_u64(7);
        let mut mints =
            [node(1, 2), node(3, 4)].map(|node| TokenMint::new(random(&mut source), node));
        let token = |mint: &TokenMint, source: &mut ChaCha8Rng| mint.mint(3, 4, 5, &random(source));
        let early = token(&mints[1], &mut source);
        assert_eq!(mints[0].read(early.as_bytes()), Err(TokenFault::BadMac));
        let (old, new) = (random(&mut source), random(&mut source));
        mints.iter_mut().for_each(|mint| mint.share(old, None));
        let before = token(&mints[1], &mut source);
        let foreign = Err(TokenFault::ForeignNode(node(3, 4)));
        assert_eq!(mints[0].read(before.as_bytes()), foreign);
        assert!(mints[1].read(before.as_bytes()).is_ok());
        // The first one signs, both are accepted, and what is neither's is nobody's.
        mints[0].share(new, Some(old));
        assert_eq!(mints[0].read(before.as_bytes()), foreign);
        let after = token(&mints[0], &mut source);
        assert_eq!(mints[1].read(after.as_bytes()), Err(TokenFault::BadMac));
        mints[1].share(old, Some(new));
        assert_eq!(mints[1].read(after.as_bytes()), Err(TokenFault::ForeignNode(node(1, 2))));
        assert_ne!(mints[0].seal(b"credential"), mints[1].seal(b"credential"));
    }

    #[test]
    fn random_characters_are_spread_evenly() {
        let mut out = [0; 40];
        write_random(&[0; 64], &mut out);
        assert_eq!(out, [b'0'; 40]);
        write_random(&[255; 64], &mut out);
        assert_eq!(out, [b'z'; 40]);
        let mut source = ChaCha8Rng::seed_from_u64(5);
        let mut counts = [[0_u32; 62]; 40];
        for _ in 0..20_000 {
            write_random(&random(&mut source), &mut out);
            for (count, &b) in counts.iter_mut().zip(&out) {
                count[DIGIT[b as usize] as usize] += 1;
            }
        }
        // 322 expected with a deviation of 18: six of them, both ways, in each place.
        let even = |count: &u32| (214..=430).contains(count);
        assert!(counts.iter().flatten().all(even), "{counts:?}");
    }

    #[test]
    fn a_hundred_thousand_tokens_and_ids_are_all_different() {
        let mut source = ChaCha8Rng::seed_from_u64(6);
        let mint = TokenMint::new(random(&mut source), node(0, 0));
        let ids = RequestIds::new(node(0, 0), 0);
        let mut tokens = HashSet::new();
        let mut uuids = HashSet::new();
        for _ in 0..100_000 {
            tokens.insert(*mint.mint(0, 0, 0, &random(&mut source)).as_bytes());
            uuids.insert(ids.mint(random(&mut source)));
        }
        assert_eq!((tokens.len(), uuids.len()), (100_000, 100_000));
    }

    #[test]
    fn debug_shows_no_secret() {
        let mint = TokenMint::new([7; 16], node(0, 0));
        let token = mint.mint(0, 0, 0, &[9; 64]);
        assert_eq!(format!("{token:?} {mint:?}"), "WorkerToken(..) TokenMint(..)");
    }
}
