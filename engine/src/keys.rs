//! The keys by which the gateways of a cluster know each other. They are derived from the common
//! secret, one for each use (design 3.22). With two secrets the first one signs and both are
//! accepted, so that a secret can be replaced without a gap.

use std::fmt;
use std::sync::Arc;

use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use ring::hmac::{self, HMAC_SHA256};
use ringway_proto::prelude::{CHALLENGE_LENGTH, MAC_LENGTH, Prelude};

use crate::config::Secret;

/// The use of each key, from which it is derived.
const PRELUDES: &[u8] = b"ringway: preludes of relays";
const RECORDS: &[u8] = b"ringway: records of nodes";
const TOKENS: &[u8] = b"ringway: tokens of workers";

/// The keys of one secret.
struct Key {
    preludes: hmac::Key,
    records: hmac::Key,
    tokens: [u8; 16],
}

impl Key {
    fn of(secret: &Secret) -> Self {
        let secret = hmac::Key::new(HMAC_SHA256, secret.bytes());
        let derived = |purpose| hmac::sign(&secret, purpose);
        let key = |purpose| hmac::Key::new(HMAC_SHA256, derived(purpose).as_ref());
        let mut tokens = [0; 16];
        tokens.copy_from_slice(&derived(TOKENS).as_ref()[..16]);
        Self { preludes: key(PRELUDES), records: key(RECORDS), tokens }
    }
}

/// The keys of a cluster.
pub struct Keys {
    first: Key,
    other: Option<Key>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(..)")
    }
}

impl Keys {
    /// The keys of these secrets, of which no more than two count; none without one.
    #[must_use]
    pub fn of(secrets: &[Secret]) -> Option<Arc<Self>> {
        let (first, rest) = secrets.split_first()?;
        Some(Arc::new(Self { first: Key::of(first), other: rest.first().map(Key::of) }))
    }

    fn all(&self) -> impl Iterator<Item = &Key> {
        std::iter::once(&self.first).chain(&self.other)
    }

    /// The MAC of a prelude that answers a challenge.
    #[must_use]
    pub fn sign_prelude(
        &self,
        challenge: &[u8; CHALLENGE_LENGTH],
        prelude: &[u8],
    ) -> [u8; MAC_LENGTH] {
        let mut context = hmac::Context::with_key(&self.first.preludes);
        context.update(challenge);
        context.update(prelude);
        let mut mac = [0; MAC_LENGTH];
        mac.copy_from_slice(context.sign().as_ref());
        mac
    }

    /// A prelude with its MAC, for an owner that has `said` its challenge and no more; else none.
    #[must_use]
    pub fn signed_prelude(&self, said: &[u8], prelude: Prelude) -> Option<Vec<u8>> {
        let challenge = said.try_into().ok()?;
        let mut bytes = prelude.to_bytes();
        let mac = self.sign_prelude(challenge, &bytes);
        bytes.extend(mac);
        Some(bytes)
    }

    /// Whether a gateway of this cluster has signed a prelude for this challenge. It takes a time that
    /// does not tell how much of the MAC is right.
    #[must_use]
    pub fn proves_prelude(
        &self,
        challenge: &[u8; CHALLENGE_LENGTH],
        prelude: &[u8],
        mac: &[u8],
    ) -> bool {
        let signed = [&challenge[..], prelude].concat();
        self.all().any(|key| hmac::verify(&key.preludes, &signed, mac).is_ok())
    }

    /// The MAC of a node's record, as text.
    #[must_use]
    pub fn sign_record(&self, record: &str) -> String {
        HEXLOWER.encode(hmac::sign(&self.first.records, record.as_bytes()).as_ref())
    }

    /// Whether a gateway of this cluster has signed a record.
    #[must_use]
    pub fn proves_record(&self, record: &str, mac: &str) -> bool {
        let Ok(mac) = HEXLOWER_PERMISSIVE.decode(mac.as_bytes()) else { return false };
        self.all().any(|key| hmac::verify(&key.records, record.as_bytes(), &mac).is_ok())
    }

    /// The keys of workers' tokens: the one they are made with, and the other one that is accepted.
    #[must_use]
    pub fn tokens(&self) -> ([u8; 16], Option<[u8; 16]>) {
        (self.first.tokens, self.other.as_ref().map(|key| key.tokens))
    }

    /// How many secrets there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.all().count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHALLENGE: [u8; CHALLENGE_LENGTH] = [9; CHALLENGE_LENGTH];

    fn keys(secrets: &[&str]) -> Arc<Keys> {
        let secrets: Vec<Secret> = secrets.iter().map(|secret| Secret::from(*secret)).collect();
        Keys::of(&secrets).unwrap()
    }

    #[test]
    fn a_prelude_is_proved_for_its_challenge_and_its_octets_alone() {
        let keys = keys(&["a secret of the cluster"]);
        let mac = keys.sign_prelude(&CHALLENGE, b"prelude");
        assert!(keys.proves_prelude(&CHALLENGE, b"prelude", &mac));
        assert!(!keys.proves_prelude(&[8; CHALLENGE_LENGTH], b"prelude", &mac), "said again");
        assert!(!keys.proves_prelude(&CHALLENGE, b"Prelude", &mac));
        for bit in 0..MAC_LENGTH * 8 {
            let mut other = mac;
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(!keys.proves_prelude(&CHALLENGE, b"prelude", &other));
        }
        for end in 0..MAC_LENGTH {
            assert!(!keys.proves_prelude(&CHALLENGE, b"prelude", &mac[..end]), "cut at {end}");
        }
        assert!(!keys.proves_prelude(&CHALLENGE, b"prelude", &[&mac[..], b"x"].concat()));
    }

    #[test]
    fn the_first_secret_signs_and_both_are_accepted() {
        let (old, new) = ("the old secret is long", "the new secret is long");
        let (before, between, after) = (keys(&[old]), keys(&[new, old]), keys(&[new]));
        let of_old = before.sign_prelude(&CHALLENGE, b"p");
        let of_new = between.sign_prelude(&CHALLENGE, b"p");
        assert!(between.proves_prelude(&CHALLENGE, b"p", &of_old));
        assert!(after.proves_prelude(&CHALLENGE, b"p", &of_new));
        assert!(!before.proves_prelude(&CHALLENGE, b"p", &of_new));
        assert!(!after.proves_prelude(&CHALLENGE, b"p", &of_old));
        assert_eq!(between.tokens(), (after.tokens().0, Some(before.tokens().0)));
        assert_eq!((before.count(), between.count()), (1, 2));
        assert!(Keys::of(&[]).is_none());
    }

    #[test]
    fn a_record_is_signed_with_another_key_than_a_prelude() {
        let keys = keys(&["a secret of the cluster"]);
        let mac = keys.sign_record("record");
        assert!(
            keys.proves_record("record", &mac) && keys.proves_record("record", &mac.to_uppercase())
        );
        for wrong in ["", "0", "zz", &mac[1..], &mac[2..], &format!("{mac}00")] {
            assert!(!keys.proves_record("record", wrong), "{wrong}");
        }
        assert!(!keys.proves_record("Record", &mac));
        let mac = keys.sign_prelude(&[b'r'; CHALLENGE_LENGTH], b"");
        assert!(!keys.proves_record(&"r".repeat(CHALLENGE_LENGTH), &HEXLOWER.encode(&mac)));
    }

    #[test]
    fn debug_shows_no_secret() {
        assert_eq!(format!("{:?}", keys(&["a secret of the cluster"])), "Keys(..)");
    }
}
