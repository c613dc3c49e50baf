//! Sessions whose client is cut off and comes back.
//!
//! A visitor makes a connection and a call (a new session), a second call on it (pinned), resets
//! the connection, stays away, and comes back on a new connection that names the session
//! (`nvcf-reqid`). Then it leaves in order and begins anew. All three latencies end with the first
//! octet of the call's answer, so that they compare. As with grpc-go, the request waits for the
//! server's SETTINGS.
//!
//! A gateway that answers a returning client NOT_FOUND keeps no session for it: not built.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use monoio::buf::IoBufMut;
use monoio::io::{AsyncReadRent, AsyncWriteRent, AsyncWriteRentExt};
use monoio::net::TcpStream;

use crate::caller::{Answered, Caller, Pace};
use crate::drive::{Ended, READ_SIZE};
use crate::fields::CallFields;
use crate::line::ended_early;
use crate::load::{Kind, Plan};
use crate::socket::{Dressed, SOURCES};
use crate::sys;
use crate::tally::{Phase, Tally};

/// How long one call may take, a return included.
const CALL_LIMIT: Duration = Duration::from_secs(10);
/// `grpc-status` of a session that is not there.
const NOT_FOUND: u32 = 5;
/// Failed cycles before the first that succeeds after which there will be none: a first return may
/// come before the gateway has noticed the loss.
const ATTEMPTS: u32 = 3;

/// Why a peer cannot be measured.
const NAMELESS: &str = "the answers name no session (nvcf-reqid)";
const UNKNOWN: &str = "a client that comes back is answered NOT_FOUND";

/// One connection, driven by hand: it must be possible to cut it between two calls.
struct Visit {
    stream: TcpStream,
    caller: Rc<RefCell<Caller>>,
    side: Dressed<Caller>,
    buffer: Vec<u8>,
    /// When its first octet was written.
    first: Option<Instant>,
}

/// How a call on a visit went wrong.
enum Missed {
    Ended(Ended),
    /// No answer within [`CALL_LIMIT`].
    Late,
}

impl From<Ended> for Missed {
    fn from(ended: Ended) -> Self {
        Self::Ended(ended)
    }
}

impl Visit {
    async fn begin(
        plan: &Plan,
        number: usize,
        session: Option<String>,
        tally: &Rc<RefCell<Tally>>,
    ) -> Result<Self, Missed> {
        let stream = plan.route.connect(number).await.map_err(|e| Ended::Lost(Some(e)))?;
        stream.set_nodelay(true).map_err(|e| Ended::Lost(Some(e)))?;
        let fields = Rc::new(CallFields { session, ..plan.fields.clone() });
        let caller = Caller::new(fields, plan.work, 1, tally.clone());
        let caller = Rc::new(RefCell::new(caller.paced(Pace::Given([].into())).reporting()));
        let side = Dressed::new(&plan.route, caller.clone())?;
        let buffer = Vec::with_capacity(READ_SIZE);
        Ok(Self { stream, caller, side, buffer, first: None })
    }

    /// The first call begins by itself.
    async fn first_call(&mut self) -> Result<Answered, Missed> {
        let answer = monoio::time::timeout(CALL_LIMIT, self.answer()).await;
        Ok(answer.map_err(|_| Missed::Late)??)
    }

    async fn next_call(&mut self) -> Result<Answered, Missed> {
        let begun = self.caller.borrow_mut().begin(Instant::now());
        begun.map_err(Ended::Fault)?;
        self.first_call().await
    }

    /// Writes and reads until a call has ended.
    async fn answer(&mut self) -> Result<Answered, Ended> {
        let lost = |error| Ended::Lost(Some(error));
        loop {
            let bytes = self.side.take_output();
            if !bytes.is_empty() {
                self.first.get_or_insert_with(Instant::now);
                self.stream.write_all(bytes).await.0.map_err(lost)?;
                self.side.refill();
                continue;
            }
            if let Some(answer) = self.caller.borrow_mut().take_answer() {
                return Ok(answer);
            }
            let buffer = std::mem::take(&mut self.buffer);
            let (from, to) = (buffer.len(), buffer.capacity());
            let (result, slice) = self.stream.read(buffer.slice_mut(from..to)).await;
            self.buffer = slice.into_inner();
            if result.map_err(lost)? == 0 {
                return Err(Ended::Lost(None));
            }
            let used = self.side.received(&self.buffer)?;
            self.buffer.drain(..used);
        }
    }

    /// From the connection's first octet to the answer's.
    fn took(&self, answer: &Answered) -> Duration {
        let first = self.first.unwrap_or(answer.began);
        answer.first.saturating_duration_since(first)
    }

    fn session(&self) -> Option<String> {
        self.caller.borrow().session().map(str::to_owned)
    }

    /// The client's network is gone, noticed by a reset.
    fn cut(self) -> Result<(), Missed> {
        // Without it the socket would end in order.
        Ok(sys::end_by_reset(&self.stream).map_err(|e| Ended::Lost(Some(e)))?)
    }

    /// Ends in order: the worker is free again.
    async fn leave(mut self) {
        // A peer that is gone already is as good.
        let _ = self.stream.shutdown().await;
    }
}

/// What a cycle came to.
enum Cycle {
    Returned,
    /// An answer was wrong; it is counted.
    Wrong,
    /// The returning client was told that there is no such session.
    Unknown,
    /// The answers name no session.
    Nameless,
}

/// Comes and goes until the run is over.
pub(crate) async fn visit(plan: Rc<Plan>, mut number: usize, tally: Rc<RefCell<Tally>>) {
    let stage = tally.borrow().stage.clone();
    let (mut lives, mut missed) = (false, 0);
    while stage.phase() != Phase::Over {
        number += 2;
        let cycle = cycle(&plan, number, &tally).await;
        if let Ok(Cycle::Returned) = cycle {
            if !std::mem::replace(&mut lives, true) {
                stage.connection_lives();
            }
            continue;
        }
        missed += 1;
        let hopeless = !lives && missed >= ATTEMPTS;
        match cycle {
            Ok(Cycle::Nameless) => {
                return stage.give_up(NAMELESS);
            }
            Ok(Cycle::Unknown) if hopeless => return stage.give_up(UNKNOWN),
            // Before the first return nothing is known, so it is not a failure yet.
            Ok(Cycle::Unknown) => tally.borrow_mut().failures.grpc += u64::from(lives),
            Ok(Cycle::Wrong | Cycle::Returned) => {}
            Err(Missed::Late) => tally.borrow_mut().failures.lost += 1,
            Err(Missed::Ended(ended)) => {
                ended_early(Err(ended), 1, &tally);
                if !lives {
                    return;
                }
            }
        }
        if hopeless {
            return stage.connection_broke();
        }
    }
}

/// Makes a session and loses its client for good. The first one comes back once before, to see
/// whether anything is kept.
pub(crate) async fn park(
    plan: Rc<Plan>,
    number: usize,
    absence: Duration,
    tally: Rc<RefCell<Tally>>,
) {
    let stage = tally.borrow().stage.clone();
    if number == 0 {
        let plan = Plan { kind: Kind::Resume { absence }, ..(*plan).clone() };
        match cycle(&plan, usize::from(SOURCES), &tally).await {
            Ok(Cycle::Nameless) => return stage.give_up(NAMELESS),
            Ok(Cycle::Unknown) => return stage.give_up(UNKNOWN),
            Ok(Cycle::Returned | Cycle::Wrong) | Err(_) => {}
        }
    }
    let lost = async {
        let mut visit = Visit::begin(&plan, number, None, &tally).await?;
        let answer = visit.first_call().await?;
        visit.cut()?;
        Ok::<_, Missed>(answer.right)
    };
    match lost.await {
        Ok(right) => tally.borrow_mut().failures.grpc += u64::from(!right),
        Err(Missed::Late) => {
            tally.borrow_mut().failures.lost += 1;
            return stage.connection_broke();
        }
        Err(Missed::Ended(ended)) => return ended_early(Err(ended), 1, &tally),
    }
    monoio::time::sleep(absence).await;
    stage.connection_lives();
}

/// A new session, a pinned call, the loss and the return.
async fn cycle(plan: &Plan, number: usize, tally: &Rc<RefCell<Tally>>) -> Result<Cycle, Missed> {
    let Kind::Resume { absence } = plan.kind else { return Ok(Cycle::Wrong) };
    let mut visit = Visit::begin(plan, number, None, tally).await?;
    let new = visit.first_call().await?;
    let Some(session) = visit.session().filter(|_| new.right) else {
        tally.borrow_mut().failures.grpc += u64::from(!new.right);
        return Ok(if new.right { Cycle::Nameless } else { Cycle::Wrong });
    };
    let new_took = visit.took(&new);
    let pinned = visit.next_call().await?;
    visit.cut()?;
    monoio::time::sleep(absence).await;
    let mut visit = Visit::begin(plan, number + 1, Some(session.clone()), tally).await?;
    let back = visit.first_call().await?;
    let took = visit.took(&back);
    let same = visit.session().as_deref() == Some(&*session);
    visit.leave().await;
    let mut tally = tally.borrow_mut();
    match (pinned.right && back.right, same) {
        _ if back.said.grpc == Some(NOT_FOUND) => Ok(Cycle::Unknown),
        (false, _) => {
            tally.failures.grpc += 1;
            Ok(Cycle::Wrong)
        }
        (true, false) => {
            tally.failures.session += 1;
            Ok(Cycle::Wrong)
        }
        (true, true) => {
            let now = Instant::now();
            tally.completed(now.checked_sub(took).unwrap_or(now), now);
            tally.part("new", new_took);
            tally.part("new-request", new.first - new.began);
            tally.part("pinned", pinned.first - pinned.began);
            tally.part("resume-request", back.first - back.began);
            Ok(Cycle::Returned)
        }
    }
}
