//! One generator thread's connections: making them, giving them work, noticing their end.
//!
//! Neighbours: [`crate::load`] starts the threads, [`crate::caller`] and [`crate::streamer`] are
//! what a connection does, [`crate::resume`] has a loop of its own.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::caller::{Caller, Pace as CallPace};
use crate::drive::{self, Link};
use crate::fields::CallFields;
use crate::load::{Kind, LOOK, Plan};
use crate::pace::Pace;
use crate::resume;
use crate::streamer::{Streamer, Talk};
use crate::tally::{Phase, Tally};
use crate::web::Web;

/// Connections of one generator thread that are being set up at once.
pub(crate) const SET_UP_AT_ONCE: usize = 128;

/// Makes a thread's share of the connections and waits for their end.
pub(crate) async fn dispatch(
    plan: Plan,
    share: usize,
    tally: Rc<RefCell<Tally>>,
) -> io::Result<()> {
    let plan = Rc::new(plan);
    let fields = Rc::new(plan.fields.clone());
    let stage = tally.borrow().stage.clone();
    let live_before = Rc::new(Cell::new(0_usize));
    let mut tasks = Vec::with_capacity(share);
    let mut lines = Vec::new();
    while plan.kind == Kind::Storm && stage.phase() == Phase::WarmUp {
        monoio::time::sleep(LOOK / 2).await;
    }
    for number in 0..share {
        while plan.kind != Kind::Storm
            && number >= (live_before.get() + SET_UP_AT_ONCE).min(stage.allowed())
        {
            if stage.phase() == Phase::Over {
                return Ok(());
            }
            monoio::time::sleep(LOOK / 2).await;
            live_before.set(stage.live());
        }
        match plan.kind {
            Kind::NewConnection => {
                let coming = come_and_go(plan.clone(), number, fields.clone(), tally.clone());
                tasks.push(monoio::spawn(coming));
            }
            Kind::Resume { .. } => {
                tasks.push(monoio::spawn(resume::visit(plan.clone(), number, tally.clone())));
            }
            Kind::Parked { absence } => {
                let leaving = resume::park(plan.clone(), number, absence, tally.clone());
                tasks.push(monoio::spawn(leaving));
            }
            Kind::Storm => {
                let coming = come_and_stay(plan.clone(), number, fields.clone(), tally.clone());
                tasks.push(monoio::spawn(coming));
            }
            Kind::Unary
            | Kind::ServerStream { .. }
            | Kind::PingPong { .. }
            | Kind::Web(_)
            | Kind::Shared
            | Kind::Idle => {
                let line = Line::new(&plan, number, fields.clone(), tally.clone());
                lines.push(line.clone());
                tasks.push(monoio::spawn(line.run(plan.clone(), number, tally.clone())));
            }
        }
    }
    if let Some(rate) = plan.rate {
        let every = Duration::from_secs_f64(plan.threads as f64 / rate.max(0.001));
        monoio::spawn(set_pace(Pace::start(every, stage.clone())?, lines, tally.clone()));
    }
    if plan.needs_timers() {
        // A connection that rests sees the end only with its next answer.
        while stage.phase() != Phase::Over {
            monoio::time::sleep(LOOK).await;
        }
        return Ok(());
    }
    for task in tasks {
        task.await;
    }
    Ok(())
}

/// Begins a call, or a message on each stream, on one connection after the other.
async fn set_pace(mut pace: Pace, lines: Vec<Line>, tally: Rc<RefCell<Tally>>) {
    let mut turn = 0;
    while let Some(mut due) = pace.due().await {
        while let Some(at) = due.next() {
            let late = due.late(at);
            tally.borrow_mut().started_late(late);
            lines[turn % lines.len()].begin(at);
            turn += 1;
        }
    }
}

/// One connection and the way to give it work from outside.
#[derive(Clone)]
struct Line {
    side: Side,
    link: Rc<RefCell<Link>>,
}

#[derive(Clone)]
enum Side {
    Calls(Rc<RefCell<Caller>>),
    Streams(Rc<RefCell<Streamer>>),
    Web(Rc<RefCell<Web>>),
}

impl Line {
    fn new(plan: &Plan, number: usize, fields: Rc<CallFields>, tally: Rc<RefCell<Tally>>) -> Self {
        let rests = number >= plan.active();
        let talk = match plan.kind {
            Kind::ServerStream { messages: None } => Some(Talk::Listen),
            Kind::PingPong { .. } if plan.rate.is_some() => Some(Talk::Paced),
            Kind::PingPong { in_flight } => Some(Talk::PingPong { in_flight }),
            Kind::Shared => Some(Talk::Shared),
            Kind::ServerStream { messages: Some(_) }
            | Kind::Unary
            | Kind::Idle
            | Kind::NewConnection
            | Kind::Storm
            | Kind::Web(_)
            | Kind::Resume { .. }
            | Kind::Parked { .. } => None,
        };
        let side = if let Kind::Web(talk) = plan.kind {
            let web = Web::new(&fields, (plan.work, talk), plan.rate.is_some(), tally);
            Side::Web(Rc::new(RefCell::new(web)))
        } else if let Some(talk) = talk {
            let streamer = Streamer::new(fields, (plan.work, talk), plan.streams, tally);
            Side::Streams(Rc::new(RefCell::new(streamer)))
        } else {
            let mut caller = Caller::new(fields, plan.work, plan.streams, tally);
            if let Kind::ServerStream { messages: Some(messages) } = plan.kind {
                caller = caller.streamed(messages);
            }
            let pace = if plan.rate.is_some() || rests {
                CallPace::Given(VecDeque::new())
            } else {
                CallPace::Closed
            };
            Side::Calls(Rc::new(RefCell::new(caller.paced(pace))))
        };
        Self { side, link: Rc::default() }
    }

    fn begin(&self, due: Instant) {
        match &self.side {
            // The call fails when the stream ids are used up. Its answers will be missed.
            Side::Calls(caller) => drop(caller.borrow_mut().begin(due)),
            Side::Streams(streamer) => streamer.borrow_mut().begin(due),
            Side::Web(web) => web.borrow_mut().begin(due),
        }
        self.link.borrow_mut().nudge();
    }

    /// The connection from its beginning to the end of the run.
    async fn run(self, plan: Rc<Plan>, number: usize, tally: Rc<RefCell<Tally>>) {
        let link = self.link.clone();
        let (ended, open) = match self.side {
            Side::Calls(caller) => {
                let ended = plan.route.run(number, caller.clone(), link).await;
                (ended, caller.borrow().open_calls())
            }
            Side::Streams(streamer) => {
                let ended = plan.route.run(number, streamer.clone(), link).await;
                (ended, streamer.borrow().open_streams())
            }
            Side::Web(web) => {
                let ended = plan.route.run(number, web.clone(), link).await;
                (ended, web.borrow().open_calls())
            }
        };
        ended_early(ended, open, &tally);
    }
}

/// Makes connections one after the other, each for one call.
async fn come_and_go(
    plan: Rc<Plan>,
    mut number: usize,
    fields: Rc<CallFields>,
    tally: Rc<RefCell<Tally>>,
) {
    let mut lived = false;
    while tally.borrow().stage.phase() != Phase::Over {
        let caller = Caller::new(fields.clone(), plan.work, 1, tally.clone());
        // The stage counts those that make connections, not their connections.
        let caller = caller.paced(CallPace::Once(Instant::now())).unannounced(lived);
        let caller = Rc::new(RefCell::new(caller));
        let ended = plan.route.run(number, caller.clone(), Rc::default()).await;
        number += 1;
        lived |= caller.borrow().is_done();
        let hopeless = ended.is_err() && !lived;
        ended_early(ended, caller.borrow().open_calls(), &tally);
        if hopeless {
            return;
        }
    }
}

/// Makes a connection with one call, and keeps it.
async fn come_and_stay(
    plan: Rc<Plan>,
    number: usize,
    fields: Rc<CallFields>,
    tally: Rc<RefCell<Tally>>,
) {
    let caller = Caller::new(fields, plan.work, 1, tally.clone());
    let caller = caller.paced(CallPace::Once(Instant::now())).staying();
    let caller = Rc::new(RefCell::new(caller));
    let ended = plan.route.run(number, caller.clone(), Rc::default()).await;
    let open = caller.borrow().open_calls();
    ended_early(ended, open, &tally);
}

pub(crate) fn ended_early(ended: Result<(), drive::Ended>, open: u64, tally: &RefCell<Tally>) {
    let Err(why) = ended else { return };
    let mut tally = tally.borrow_mut();
    if tally.stage.phase() == Phase::Over {
        // Whatever happens after the count is nobody's failure.
        return;
    }
    ringway_stdio::complain!("load: a connection ended early: {why}");
    tally.failures.connection(&why);
    tally.failures.lost += open;
    tally.stage.connection_broke_by(&why);
}
