//! A control plane that takes time, and its manners. The plane answers late, in any order, never or
//! twice. It refuses what is good, or has no room. A credential that is an enemy's is always denied.

use std::collections::BTreeMap;
use std::sync::Arc;

use ringway::control::local::Policy;
use ringway::control::port::{Answer, Ask, AskTicket, Call, Denied, Question};
use ringway::message::ShardMessage;
use ringway::metrics::{AskOutcome, ShardMetrics};
use ringway::net::Net;
use ringway_proto::time::Time;

use super::core::CoreRuntime;
use super::journal::note;
use super::ledger::Exchange;
use super::plan::KEYS;
use super::seed::Seed;
use super::world::{Event, World};

/// The gRPC codes that the plane's refusals make of a request.
const DENIED: [u8; 2] = [7, 16];
const FULL: u8 = 8;
const TOO_LATE: u8 = 14;

/// What the plane's refusals say to clients, and what clients are told when the plane does not answer.
const TEXT: &str = "the simulated plane will not";
const SILENCE: &str = "the authorisation service did not answer in time";

/// How the plane answers, in percent of the questions if nothing else is said.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manners {
    /// How long most answers take, in microseconds.
    delay: usize,
    /// Answers that take about as long as the gateway waits, or longer.
    late: u32,
    never: u32,
    twice: u32,
    /// Questions that the plane denies although they are good, and those for which it has no room.
    denies: u32,
    full: u32,
    /// Whether the plane leaves out answers to questions that were withdrawn.
    heeds: bool,
    /// This credential may call nothing.
    pub(crate) enemy: Option<&'static str>,
    /// Questions that a core and a tenant may have, if fewer than by default.
    pub(crate) asks: Option<(usize, usize)>,
}

impl Manners {
    /// The manners are drawn by dice of their own, so that everything else stays as it was.
    pub(crate) fn of(number: u64) -> Option<Self> {
        let mut seed = Seed::new(number.rotate_left(16) ^ 0x706c_616e_6573);
        let some = |seed: &mut Seed, percent: u32, most: usize| {
            if seed.chance(percent) { seed.range(1, most) as u32 } else { 0 }
        };
        seed.chance(25).then(|| Self {
            delay: seed.pick(&[1, 200, 5_000, 300_000, 3_000_000]),
            late: some(&mut seed, 40, 40),
            never: some(&mut seed, 40, 40),
            twice: some(&mut seed, 40, 60),
            denies: some(&mut seed, 40, 40),
            full: some(&mut seed, 30, 40),
            heeds: seed.chance(50),
            enemy: seed.chance(40).then(|| seed.pick(&KEYS).0),
            asks: seed.chance(25).then(|| (seed.range(1, 4), seed.range(1, 2))),
        })
    }
}

/// A question as it was asked.
#[derive(Debug)]
struct Asked {
    call: Arc<Call>,
    deadline: Time,
    withdrawn: bool,
    /// An answer is known to have counted.
    settled: bool,
}

/// The plane of one run.
#[derive(Debug)]
pub(crate) struct Authority {
    manners: Manners,
    seed: Seed,
    asked: BTreeMap<AskTicket, Asked>,
    /// Answers that came to a core, and those that were lost with it.
    answers: u64,
    lost: u64,
}

impl Authority {
    pub(crate) fn new(number: u64, manners: Manners) -> Self {
        let seed = Seed::new(number ^ 0x616e_7377_6572);
        Self { manners, seed, asked: BTreeMap::new(), answers: 0, lost: 0 }
    }

    /// A core asks or withdraws something. Returns the answers, and after how many microseconds each comes.
    fn hear(&mut self, ask: Ask, calm: bool, policy: &Policy) -> Vec<(usize, Answer)> {
        let Ask { ticket, deadline, what } = ask;
        let Question::Authorise(call) = what else {
            let asked = self.asked.get_mut(&ticket).expect("what was asked is withdrawn");
            assert!(!asked.withdrawn, "{ticket:?} is withdrawn twice");
            assert!(!asked.settled, "{ticket:?} is withdrawn after its answer");
            assert_eq!(asked.deadline, deadline, "{ticket:?} has another deadline");
            asked.withdrawn = true;
            return Vec::new();
        };
        let answers = self.answers(&call, calm, policy);
        let asked = Asked { call, deadline, withdrawn: false, settled: false };
        assert!(self.asked.insert(ticket, asked).is_none(), "{ticket:?} is asked twice");
        answers
    }

    fn answers(&mut self, call: &Call, calm: bool, policy: &Policy) -> Vec<(usize, Answer)> {
        let (seed, manners) = (&mut self.seed, &self.manners);
        let enemy = manners.enemy.is_some_and(|enemy| enemy.as_bytes() == call.credential());
        let denied = |code| Answer::Denied(Denied { code, text: TEXT.into() });
        let honest =
            match policy.authorise(call.credential(), call.function(), call.version(), seed.next())
            {
                _ if enemy => denied(DENIED[0]),
                Ok(grant) => Answer::Granted(grant),
                Err(why) => Answer::Denied(why),
            };
        if calm {
            return vec![(seed.range(0, 2_000), honest)];
        }
        if seed.chance(manners.never) {
            return Vec::new();
        }
        let first = match seed.below(100) as u32 {
            dice if dice < manners.denies => denied(seed.pick(&DENIED)),
            dice if dice < manners.denies + manners.full => Answer::Full,
            _ => honest.clone(),
        };
        let after = seed.range(0, manners.delay);
        let after = if seed.chance(manners.late) { seed.pick(&LATE) + after } else { after };
        let mut answers = vec![(after, first)];
        if seed.chance(manners.twice) {
            let again = if seed.chance(50) { honest } else { denied(seed.pick(&DENIED)) };
            answers.push((seed.range(0, 2 * after + 1_000), again));
        }
        answers
    }

    /// Whether this answer is given at all.
    fn says(&self, ticket: AskTicket) -> bool {
        !(self.manners.heeds && self.asked[&ticket].withdrawn)
    }
}

/// Times near the two waits of the gateway, in microseconds.
const LATE: [usize; 4] = [1_998_000, 2_100_000, 29_990_000, 30_000_100];

/// The code that this answer may make of a request.
fn code(answer: &Answer) -> Option<u8> {
    match answer {
        Answer::Granted(_) => None,
        Answer::Denied(denied) => Some(denied.code),
        Answer::Full => Some(FULL),
        other => unreachable!("{other:?} is no answer about a call"),
    }
}

impl World {
    /// Takes what a core has to ask.
    pub(super) fn take_asks(&mut self, core: usize) {
        let mut asks = Vec::new();
        self.cores[core].simulation.core_mut().shard.take_asks(&mut asks);
        let policy = &self.plan.rules().policy;
        for ask in asks {
            let ticket = ask.ticket;
            assert_eq!(usize::from(ticket.core), core);
            let authority = self.authority.as_mut().expect("the local plane answers at once");
            note("plane", core, "is asked", [ticket.number, u64::from(ticket.life)]);
            let silent = matches!(ask.what, Question::Withdraw) && ask.deadline <= self.now;
            for (after, answer) in authority.hear(ask, self.calm, policy) {
                self.after(after, Event::Answer(Box::new((ticket, answer))));
            }
            if silent {
                self.excuse(ticket, TOO_LATE);
            }
        }
    }

    /// The plane answers: at once between a core's turns, or by a message.
    pub(super) fn answer(&mut self, ticket: AskTicket, answer: Answer) {
        let number = usize::from(ticket.core);
        let Some(authority) = self.authority.as_mut().filter(|plane| plane.says(ticket)) else {
            return;
        };
        authority.answers += 1;
        let at_once = self.paused[number] <= self.now && authority.seed.chance(50);
        note("plane", number, "answers", [ticket.number, u64::from(ticket.life)]);
        if at_once {
            let hear = |core: &mut CoreRuntime, net: &mut Net| core.hear(net, ticket, answer);
            self.cores[number].simulation.visit(hear);
            self.judge_answers(number);
            self.wake(number);
        } else {
            self.deliver(number, ShardMessage::Answer { ticket, answer });
        }
    }

    fn take_heard(&mut self, number: usize) -> Vec<Heard> {
        std::mem::take(&mut self.cores[number].simulation.core_mut().heard)
    }

    /// Judges the answers that a core has heard. A request that comes while a refusal is on its way to
    /// the core still joins the question. So only now is it known whom the refusal may reach.
    pub(super) fn judge_answers(&mut self, number: usize) {
        for Heard { ticket, code, counts } in self.take_heard(number) {
            let counted = self.judge(ticket, code.is_none(), counts);
            if let Some(code) = code.filter(|_| counted) {
                self.excuse(ticket, code);
            }
        }
    }

    /// An answer has come to a core. The answer counts if it is the first one and nobody has withdrawn
    /// the question, and never otherwise. Returns whether it counted.
    fn judge(
        &mut self,
        ticket: AskTicket,
        granted: bool,
        (before, after): (Counts, Counts),
    ) -> bool {
        let rose = |outcome: AskOutcome| after[outcome.index()] - before[outcome.index()];
        let counted = rose(if granted { AskOutcome::Answered } else { AskOutcome::Refused });
        assert_eq!(counted + rose(AskOutcome::Late), 1, "{ticket:?}: not one answer");
        let life = self.lives[usize::from(ticket.core)];
        let authority = self.authority.as_mut().expect("it answers");
        let asked = authority.asked.get_mut(&ticket).expect("what was asked is answered");
        let open = !asked.withdrawn && !asked.settled && ticket.life == life;
        assert!(open || counted == 0, "{ticket:?}: an answer counts that nobody waited for");
        asked.settled |= counted == 1;
        counted == 1
    }

    /// Notes that requests which may wait for this answer may be told of it.
    fn excuse(&mut self, ticket: AskTicket, code: u8) {
        let authority = self.authority.as_ref().expect("it was asked");
        let call = &authority.asked[&ticket].call;
        for exchange in self.ledger.exchanges.iter_mut().filter(|e| e.outcome.is_none()) {
            let core = self.wiring.lock().links[exchange.client].core;
            let here = core == Some(usize::from(ticket.core));
            if here && exchange.calls(call) {
                exchange.told |= 1 << code;
            }
        }
    }

    /// A core has panicked. The answers on their way to it are lost.
    pub(super) fn lose_answers(&mut self, core: usize) {
        let core = &self.cores[core];
        if let Some(authority) = &mut self.authority {
            authority.lost += core.answers - core.simulation.core().answers;
        }
    }

    /// When everybody has left: each question has had one end, and every answer was counted.
    pub(super) fn check_asks(&self, all: &ShardMetrics) {
        for (number, core) in self.cores.iter().enumerate() {
            let [asked, ends @ .., _late] = core.shard().metrics().asks;
            assert_eq!(asked, ends.iter().sum::<u64>(), "core {number}: not one end a question");
        }
        let [asked, answered, refused, withdrawn, expired, late] = all.asks;
        let Some(authority) = &self.authority else {
            return assert_eq!((withdrawn, expired, late), (0, 0, 0), "the local plane took time");
        };
        let counted = answered + refused + late + authority.lost;
        assert_eq!(counted, authority.answers, "an answer was not counted");
        if !self.ledger.crashed {
            let taken_back = authority.asked.values().filter(|asked| asked.withdrawn).count();
            let known = authority.asked.len() as u64;
            assert_eq!(known - taken_back as u64, answered + refused, "not one end a question");
            let unsaid = asked - known;
            assert_eq!(withdrawn + expired, unsaid + taken_back as u64, "{unsaid} were not said");
        }
    }
}

type Counts = [u64; AskOutcome::COUNT];

/// An answer that a core has heard.
#[derive(Debug)]
pub(crate) struct Heard {
    ticket: AskTicket,
    /// The code that the answer may make of a request.
    code: Option<u8>,
    /// What the core had counted before the answer and after it.
    counts: (Counts, Counts),
}

impl CoreRuntime {
    /// The plane's answer.
    pub(super) fn hear(&mut self, net: &mut Net, ticket: AskTicket, answer: Answer) {
        let (code, before) = (code(&answer), self.shard.metrics().asks);
        self.shard.answered(net, ticket, answer);
        self.heard.push(Heard { ticket, code, counts: (before, self.shard.metrics().asks) });
    }
}

impl Exchange {
    /// Whether the request asks for this call.
    fn calls(&self, call: &Call) -> bool {
        self.key.as_bytes() == call.credential()
            && self.function.as_bytes() == call.function()
            && self.version.as_bytes() == call.version()
    }

    /// Whether the plane may have caused a refusal with this code.
    pub(crate) fn was_told(&self, code: u8) -> bool {
        self.told & 1 << code != 0
    }

    /// Checks that what the gateway tells of the plane is what the plane has said, or its silence.
    pub(crate) fn judge_refusal(&self, number: usize, code: u8, message: &str) {
        let message = message.replace("%20", " ");
        if message.contains(TEXT) {
            let said = self.was_told(code) || self.hopeless == Some(code);
            assert!(said, "exchange {number}: the plane has not denied it");
        }
        if message.contains(SILENCE) {
            assert!(self.was_told(TOO_LATE), "exchange {number}: the plane had its time still");
        }
    }
}
