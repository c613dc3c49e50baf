//! Strangers at the port for other gateways. Most of them prove nothing, one way or another. Some are
//! gateways of the cluster with a good prelude, which have to be served beside the others.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use ringway::config::Secret;
use ringway::keys::Keys;
use ringway::metrics::{TakenCause, TakenOutcome};
use ringway_proto::id::Node;
use ringway_proto::prelude::{
    CHALLENGE_LENGTH, HEAD_LENGTH, MAC_LENGTH, MAGIC, MOST_REST, Matter, Opening, Prelude, VERSION,
    Verdict,
};
use ringway_proto::time::Time;

use super::journal::note;
use super::nodes::SECRET;
use super::peer::{Act, Peer, Stage};
use super::seed::Seed;
use super::wire::{HONEST, SUSPECT};

/// A gateway hears a stranger for so long, and answers a good prelude within this time
/// (design 3.22). The ways and the turns come on top.
const PATIENCE: Duration = Duration::from_millis(500);
const WAYS: Duration = Duration::from_millis(200);

/// The number of a gateway that does not exist. A prelude of this gateway can be good, and changes
/// nothing.
const GUEST: u16 = 4_000;

/// A client that has sent so many octets cannot be brought to its owner any more.
const TOO_MUCH: u32 = 200 * 1024;

static KEYS: LazyLock<Arc<Keys>> = LazyLock::new(|| keys(SECRET));
static OTHER_KEYS: LazyLock<Arc<Keys>> = LazyLock::new(|| keys("what another cluster shares"));

fn keys(secret: &str) -> Arc<Keys> {
    Keys::of(&[Secret::from(secret)]).expect("there is a secret")
}

/// What a stranger says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Says {
    /// A gateway's prelude, signed with the cluster's secret. The owner takes it.
    Good,
    /// One bit of the MAC is another one.
    WrongMac,
    /// The MAC was made with another secret.
    OtherSecret,
    /// The stranger repeats what another one has said, octet for octet.
    Replayed,
    /// The end of a good prelude is missing.
    Truncated,
    /// The stranger sends one octet a second.
    Slow,
    /// The stranger sends nothing at all.
    Silent,
    /// The prelude names a length that no prelude has.
    Long,
    /// The stranger sends more octets than any prelude has.
    Flood,
    /// The prelude is of another version.
    Version,
    /// The stranger speaks another protocol.
    Nonsense,
    /// The secret is right, and the prelude names more octets of a client than can be brought.
    Huge,
    /// The secret is right, and the prelude names another gateway as the owner.
    Elsewhere,
    /// The secret is right, and the prelude names an earlier run of this gateway.
    Earlier,
}

impl Says {
    /// All that a stranger may say, but for a good prelude.
    const ALL: [Self; 13] = [
        Self::WrongMac,
        Self::OtherSecret,
        Self::Replayed,
        Self::Truncated,
        Self::Slow,
        Self::Silent,
        Self::Long,
        Self::Flood,
        Self::Version,
        Self::Nonsense,
        Self::Huge,
        Self::Elsewhere,
        Self::Earlier,
    ];

    pub(crate) fn any(seed: &mut Seed) -> Self {
        seed.pick(&Self::ALL)
    }

    /// One of those that are refused at once and prove nothing.
    pub(crate) fn at_once(seed: &mut Seed) -> Self {
        seed.pick(&[Self::WrongMac, Self::OtherSecret, Self::Nonsense, Self::Version])
    }

    /// The gateway counts such a prelude as one of these, and answers with this verdict.
    fn ends(self) -> &'static [(TakenCause, TakenOutcome, Option<Verdict>)] {
        use TakenCause::{Client, Leave, None as Nobody};
        use TakenOutcome::{Elsewhere, Forged, Full, Garbled, Late, Taken, Version};
        match self {
            // A gateway that leaves has no room.
            Self::Good => {
                &[(Leave, Taken, Some(Verdict::Taken)), (Leave, Full, Some(Verdict::Full))]
            }
            Self::WrongMac | Self::OtherSecret | Self::Replayed => {
                &[(Nobody, Forged, Some(Verdict::Forged))]
            }
            Self::Truncated => &[(Nobody, Garbled, None)],
            Self::Slow | Self::Silent => &[(Nobody, Late, None)],
            Self::Long | Self::Nonsense => &[(Nobody, Garbled, Some(Verdict::Garbled))],
            // Which of them depends on how many octets come at once.
            Self::Flood => &[
                (Nobody, Garbled, Some(Verdict::Garbled)),
                (Nobody, Forged, Some(Verdict::Forged)),
            ],
            Self::Version => &[(Nobody, Version, Some(Verdict::Version))],
            Self::Huge => &[(Client, Garbled, Some(Verdict::Garbled))],
            Self::Elsewhere => &[(Leave, Elsewhere, Some(Verdict::Elsewhere))],
            Self::Earlier => &[(Leave, Elsewhere, Some(Verdict::Dead))],
        }
    }

    /// The machine of a stranger that says this. Those that prove something have another one than
    /// those that do not.
    pub(crate) fn host(self) -> u8 {
        if self.proves() { HONEST } else { SUSPECT }
    }

    /// Whether the sender proves to be of the cluster.
    pub(crate) fn proves(self) -> bool {
        matches!(self, Self::Good | Self::Huge | Self::Elsewhere | Self::Earlier)
    }
}

/// What the strangers of a run have said and heard.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    /// Good preludes that were said, which others repeat.
    overheard: Vec<Vec<u8>>,
    /// The gateways can have counted so many of a cause and an outcome.
    most: BTreeMap<(usize, usize), u64>,
    /// The gateways have to have counted so many, as their verdicts say.
    least: BTreeMap<(usize, usize), u64>,
    /// How many have come that prove nothing.
    pub(crate) tries: u64,
    /// How many of these were not heard.
    pub(crate) unheard: u64,
    /// How many were kept out before they came.
    pub(crate) kept_out: u64,
    /// How many good preludes were served.
    pub(crate) served: u64,
}

impl Heard {
    /// The least and the most that this can have been counted.
    pub(crate) fn bounds(&self, cause: TakenCause, outcome: TakenOutcome) -> (u64, u64) {
        let of = |counts: &BTreeMap<_, u64>| {
            counts.get(&(cause.index(), outcome.index())).copied().unwrap_or(0)
        };
        (of(&self.least), of(&self.most))
    }

    fn may(&mut self, says: Says) {
        for (cause, outcome, _) in says.ends() {
            *self.most.entry((cause.index(), outcome.index())).or_default() += 1;
        }
        if !says.proves() {
            self.tries += 1;
            let unheard = (TakenCause::None.index(), TakenOutcome::Unheard.index());
            *self.most.entry(unheard).or_default() += 1;
        }
    }

    fn was(&mut self, cause: TakenCause, outcome: TakenOutcome) {
        *self.least.entry((cause.index(), outcome.index())).or_default() += 1;
    }
}

pub(crate) struct Stranger {
    number: usize,
    says: Says,
    /// The gateway to which the stranger has come.
    to: Node,
    since: Time,
    challenge: Vec<u8>,
    /// The octets that the stranger has not said yet.
    left: Vec<u8>,
    said: bool,
    verdict: Option<u8>,
    over: bool,
}

impl Stranger {
    pub(crate) fn new(number: usize, (says, to): (Says, Node), stage: &mut Stage<'_>) -> Self {
        stage.ledger.strange.may(says);
        let (challenge, left) = (Vec::new(), Vec::new());
        let since = stage.now;
        Self { number, says, to, since, challenge, left, said: false, verdict: None, over: false }
    }

    /// The prelude of a gateway that leaves. No connection comes with this kind.
    fn farewell(&self, to: Node) -> Prelude {
        let from = Node::new(GUEST, 1).expect("a small number");
        Prelude { from, to, matter: Matter::Leave }
    }

    fn signed(&self, prelude: Prelude) -> Vec<u8> {
        KEYS.signed_prelude(&self.challenge, prelude).expect("the challenge is whole")
    }

    /// What the stranger says to the challenge.
    fn words(&self, stage: &mut Stage<'_>) -> Vec<u8> {
        let farewell = self.farewell(self.to);
        let mut good = self.signed(farewell);
        let head = |rest: u16, kind| {
            let mut head = MAGIC.to_vec();
            head.extend([VERSION, kind]);
            head.extend(rest.to_be_bytes());
            head
        };
        match self.says {
            Says::Good => stage.ledger.strange.overheard.push(good.clone()),
            Says::WrongMac => {
                let at = good.len() - 1 - stage.seed.below(MAC_LENGTH);
                good[at] ^= 1 << stage.seed.below(8);
            }
            Says::OtherSecret => {
                let other = OTHER_KEYS.signed_prelude(&self.challenge, farewell);
                good = other.expect("the challenge is whole");
            }
            Says::Replayed => {
                let heard = &stage.ledger.strange.overheard;
                let of_nobody = || {
                    let old = [7; CHALLENGE_LENGTH];
                    KEYS.signed_prelude(&old, farewell).expect("a whole challenge")
                };
                good = heard.last().cloned().unwrap_or_else(of_nobody);
            }
            Says::Truncated => good.truncate(stage.seed.range(1, good.len() - 1)),
            Says::Slow => {}
            Says::Silent => good.clear(),
            Says::Long => good = head(stage.seed.range(MOST_REST + 1, 0xffff) as u16, 4),
            Says::Flood => {
                good = head(MOST_REST as u16, 1);
                good.resize(good.len() + HEAD_LENGTH + MOST_REST + 60_000, 0x5a);
            }
            Says::Version => good[MAGIC.len()] = VERSION + 1,
            Says::Nonsense => good = b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n".to_vec(),
            Says::Huge => {
                let peer = super::wire::nobody();
                let opening = Opening { peer, age: 1, received: TOO_MUCH };
                good = self.signed(Prelude { matter: Matter::Client(opening, None), ..farewell });
            }
            Says::Elsewhere => {
                let to = Node::new(GUEST + 1, 1).expect("a small number");
                good = self.signed(self.farewell(to));
            }
            Says::Earlier => {
                let run = self.to.incarnation() - 1;
                let to = Node::new(self.to.number(), run).expect("the same number");
                good = self.signed(self.farewell(to));
            }
        }
        good
    }

    /// Judges the end that the stranger has heard, which must be one of those that it can get.
    fn judge(&self, reset: bool, stage: &mut Stage<'_>) {
        let ledger = &stage.ledger;
        let anyway = ledger.is_bereft(self.number) || ledger.going.contains(&self.number);
        let verdict = self.verdict.and_then(Verdict::of);
        let end = self.says.ends().iter().find(|(_, _, said)| *said == verdict);
        let unheard = self.challenge.is_empty() && !self.says.proves();
        let strange = &mut stage.ledger.strange;
        match end {
            // An end without a verdict may have another cause.
            Some((cause, outcome, Some(_))) => {
                strange.was(*cause, *outcome);
                strange.served += u64::from(*outcome == TakenOutcome::Taken);
            }
            _ if unheard => strange.unheard += 1,
            Some(_) => {}
            // A RST may have overtaken the verdict, and a core that pauses may have heard too little in
            // time.
            None if verdict.is_none() && (reset || stage.plan.pauses > 0) => {}
            None => {
                let number = self.number;
                assert!(anyway, "stranger {number}: {:?} was told {verdict:?}", self.says);
            }
        }
        // A core that pauses refuses later.
        let late = stage.now > self.since + PATIENCE + WAYS;
        let fine = !late || anyway || stage.plan.pauses > 0;
        assert!(fine, "stranger {}: {:?} was heard for too long", self.number, self.says);
    }
}

impl Peer for Stranger {
    fn received(&mut self, bytes: &[u8], stage: &mut Stage<'_>) {
        let of_challenge = bytes.len().min(CHALLENGE_LENGTH - self.challenge.len());
        self.challenge.extend_from_slice(&bytes[..of_challenge]);
        for octet in &bytes[of_challenge..] {
            let first = self.verdict.replace(*octet).is_none();
            assert!(first && self.said, "stranger {}: more than a verdict came", self.number);
        }
        if self.challenge.len() < CHALLENGE_LENGTH || self.said {
            return;
        }
        self.said = true;
        let words = self.words(stage);
        note("stranger", self.number, "speaks, octets", [words.len() as u64, 0]);
        if self.says == Says::Slow {
            self.left = words;
            return self.tick(stage);
        }
        if !words.is_empty() {
            stage.acts.push(Act::Send(words));
        }
        if self.says == Says::Truncated {
            stage.acts.push(Act::Fin);
        }
    }

    fn ended(&mut self, reset: bool, stage: &mut Stage<'_>) {
        if self.over {
            return;
        }
        let verdict = u64::from(self.verdict.unwrap_or(0));
        note("stranger", self.number, "hears the end, and the verdict", [reset.into(), verdict]);
        self.over = true;
        self.judge(reset, stage);
        stage.acts.push(Act::Fin);
    }

    fn tick(&mut self, stage: &mut Stage<'_>) {
        if self.over {
            return;
        }
        if !self.left.is_empty() {
            stage.acts.push(Act::Send(vec![self.left.remove(0)]));
            stage.acts.push(Act::Wait(1_000_000));
        }
    }

    fn is_unfinished(&self) -> bool {
        !self.over
    }

    fn waits_for(&self) -> String {
        format!("stranger {} is still heard: {:?}", self.number, self.says)
    }
}
