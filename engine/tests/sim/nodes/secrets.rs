//! The cluster's secret is replaced while the gateways run: one step after the other, and each step at
//! all gateways before the next one (docs/many-gateways.md).

use std::time::Duration;

use ringway::config::Secret;
use ringway::keys::Keys;
use ringway::message::ShardMessage;

use super::super::journal::note;
use super::super::world::{Event, World};
use super::{Fate, SECRET};

/// The secret that takes the place of [`SECRET`].
const NEXT: &str = "what the simulated gateways will share";

/// One gateway takes a step later than another one by so much, in microseconds.
const SPREAD: usize = 300_000;

/// The second step comes so long after the first one, in microseconds: every core has heard by then.
const SECOND: usize = 2_000_000;

/// The last step comes when no token of the old secret is good any more.
const LAST: Duration = Duration::from_secs(45);

/// How far a gateway has replaced the secret.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Secrets {
    /// The gateway has the old secret only.
    #[default]
    Old,
    /// The old secret signs, and the new one is accepted too.
    OldThenNew,
    /// The new secret signs, and the old one is accepted too.
    NewThenOld,
    /// The gateway has the new secret only.
    New,
}

impl Secrets {
    /// What the file with the secrets says.
    pub(super) fn all(self) -> Vec<Secret> {
        let all: &[&str] = match self {
            Self::Old => &[SECRET],
            Self::OldThenNew => &[SECRET, NEXT],
            Self::NewThenOld => &[NEXT, SECRET],
            Self::New => &[NEXT],
        };
        all.iter().map(|secret| Secret::from(*secret)).collect()
    }
}

impl World {
    /// Plans when each gateway takes which step.
    pub(super) fn plan_secrets(&mut self, nodes: usize, trouble: usize) {
        let first = self.seed.range(0, trouble);
        let last = first + SECOND + LAST.as_micros() as usize;
        let steps = [
            (first, Secrets::OldThenNew),
            (first + SECOND, Secrets::NewThenOld),
            (last, Secrets::New),
        ];
        for (at, secrets) in steps {
            for node in 0..nodes {
                let after = at + self.seed.range(0, SPREAD);
                self.after(after, Event::Fate(Fate::Secrets(node, secrets)));
            }
        }
    }

    /// A gateway is told to read its secrets again. A process that begins later has them from its
    /// begin.
    pub(super) fn replace_secrets(&mut self, node: usize, secrets: Secrets) {
        if self.closing {
            return;
        }
        note("node", node, "has other secrets", [secrets as u64, 0]);
        self.gateways[node].secrets = secrets;
        self.between.rotated += usize::from(secrets == Secrets::NewThenOld);
        let keys = Keys::of(&secrets.all()).expect("there is a secret");
        for core in self.cores_of(node) {
            self.deliver(core, ShardMessage::Keys(keys.clone()));
        }
    }
}
