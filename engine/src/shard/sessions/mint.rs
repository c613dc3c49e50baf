//! Random values: request ids, and the tokens that workers show.

use std::num::NonZeroU64;

use rand_chacha::ChaCha12Rng;
use rand_core::{RngCore, SeedableRng};
use ringway_proto::id::{RequestIds, TokenAddress, TokenFault, TokenMint, WorkerToken};
use uuid::Uuid;

use super::super::settings::ShardSettings;
use super::super::table::Key;
use crate::keys::Keys;

/// The mint of one core.
pub(super) struct Mint {
    ids: RequestIds,
    tokens: TokenMint,
    rng: ChaCha12Rng,
    core: u16,
}

impl std::fmt::Debug for Mint {
    // The generator's state would tell which tokens come next, so it is not shown.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mint").field("core", &self.core).finish_non_exhaustive()
    }
}

impl Mint {
    pub(super) fn new(settings: &ShardSettings) -> Self {
        let &ShardSettings { node, core, secret, seed, .. } = settings;
        let mut mint = Self {
            ids: RequestIds::new(node, core),
            tokens: TokenMint::new(secret, node),
            rng: ChaCha12Rng::from_seed(seed),
            core,
        };
        settings.keys.iter().for_each(|keys| mint.share(keys));
        mint
    }

    /// Tokens are made with the cluster's keys from now on.
    pub(super) fn share(&mut self, keys: &Keys) {
        let (first, other) = keys.tokens();
        self.tokens.share(first, other);
    }

    fn random<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.rng.fill_bytes(&mut bytes);
        bytes
    }

    pub(super) fn draw(&mut self) -> u64 {
        self.rng.next_u64()
    }

    /// A new session's id.
    pub(super) fn id(&mut self) -> Uuid {
        let random = self.random();
        self.ids.mint(random)
    }

    /// The token for an attachment.
    pub(super) fn token(&mut self, key: Key) -> Box<WorkerToken> {
        let random = self.random();
        Box::new(self.tokens.mint(self.core, key.slot, key.generation, &random))
    }

    /// The seal of a credential, which is kept in the credential's place.
    pub(super) fn seal(&self, credential: &[u8]) -> NonZeroU64 {
        self.tokens.seal(credential)
    }

    /// The address of the attachment that a token was made for.
    pub(super) fn read(&self, text: &[u8]) -> Result<TokenAddress, TokenFault> {
        self.tokens.read(text)
    }
}
