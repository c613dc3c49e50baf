//! Gives the cores' questions to the planes that can answer them. Each question is a task of its
//! own, so that a slow answer delays no other one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::answers::Answers;
use super::api::{Client, Limiter};
use super::nats::Nats;
use crate::control::local::{Work, WorkKind};
use crate::control::port::{Answer, Ask, AskTicket, Call, Progress, Question, Rate, Topic};

/// Most open questions. Each core bounds its own; this bounds those of all cores together.
pub(super) const MOST_QUESTIONS: usize = 65_536;

/// The control planes that answer.
#[derive(Clone, Debug)]
pub(super) struct Planes {
    /// Says who may call; none where the gateway's own file does.
    pub(super) client: Option<Client>,
    /// Says whether a new session is too many; none if no limiter is configured.
    pub(super) limiter: Option<Limiter>,
    pub(super) nats: Nats,
}

/// Takes the cores' questions.
#[derive(Clone, Debug)]
pub(super) struct Driver {
    planes: Planes,
    answers: Answers,
    out: Arc<Mutex<Out>>,
}

/// The open questions.
#[derive(Debug, Default)]
struct Out {
    /// The questions that can still be stopped without any effect, by their tickets.
    tasks: HashMap<AskTicket, AbortHandle>,
    /// How many questions are open, with those that nobody waits for any more.
    running: usize,
    /// The shard of each core that asked last.
    lives: HashMap<u16, u32>,
}

/// An open question. It ends when this is dropped.
struct Running {
    driver: Driver,
    /// The ticket by which the question can be stopped.
    ticket: Option<AskTicket>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut out = self.driver.out();
        out.running -= 1;
        if let Some(ticket) = self.ticket {
            out.tasks.remove(&ticket);
        }
    }
}

impl Driver {
    pub(super) fn new(planes: Planes, answers: Answers) -> Self {
        Self { planes, answers, out: Arc::default() }
    }

    fn out(&self) -> MutexGuard<'_, Out> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the cores' questions until the cores have ended.
    pub(super) async fn run(self, mut asked: mpsc::Receiver<Vec<Ask>>) {
        while let Some(asks) = asked.recv().await {
            asks.into_iter().for_each(|ask| self.take(ask));
        }
    }

    fn take(&self, ask: Ask) {
        self.note_life(ask.ticket);
        let ticket = ask.ticket;
        match ask.what {
            Question::Authorise(call) => {
                self.begin(ticket, |driver| driver.authorise(ticket, call))
            }
            Question::Submit(work) => self.begin(ticket, |driver| driver.submit(ticket, work)),
            Question::Lookup(id) => self.begin(ticket, |driver| async move {
                let answer = driver.planes.nats.lookup(id).await;
                driver.answers.say(ticket, answer);
            }),
            Question::Locate(node) => self.begin(ticket, |driver| async move {
                let located = driver.planes.nats.locate(node).await;
                driver.answers.say(ticket, Answer::Located(located));
            }),
            Question::Progress { streaming } => self.progress(ticket, streaming),
            Question::Settled => self.planes.nats.settled(ticket),
            Question::Withdraw => self.withdraw(ticket),
        }
    }

    /// If a core's shard has begun anew, the old shard's questions are dropped.
    fn note_life(&self, ticket: AskTicket) {
        let AskTicket { core, life, .. } = ticket;
        let mut out = self.out();
        let last = out.lives.entry(core).or_insert(life);
        if std::mem::replace(last, life) != life {
            let old = |ticket: &AskTicket| ticket.core == core && ticket.life != life;
            let tasks: Vec<_> = out.tasks.extract_if(|ticket, _| old(ticket)).collect();
            drop(out);
            tasks.into_iter().for_each(|(_, task)| task.abort());
            self.planes.nats.forget_core(core, life);
        }
    }

    /// Begins to find out an answer, which can be stopped.
    fn begin<F>(&self, ticket: AskTicket, task: impl FnOnce(Self) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        if !self.run_one(Some(ticket), task) {
            self.answers.say(ticket, Answer::Full);
        }
    }

    /// Runs a task, to be stopped by that ticket. False if too many are out.
    fn run_one<F>(&self, ticket: Option<AskTicket>, task: impl FnOnce(Self) -> F) -> bool
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut out = self.out();
        if out.running >= MOST_QUESTIONS {
            return false;
        }
        out.running += 1;
        let running = Running { driver: self.clone(), ticket };
        let task = task(self.clone());
        let handle = tokio::spawn(async move {
            let _running = running;
            task.await;
        });
        if let Some(ticket) = ticket {
            out.tasks.insert(ticket, handle.abort_handle());
        }
        true
    }

    /// How far work has come. The question has the ticket of the work, which goes on if the
    /// question is stopped.
    fn progress(&self, ticket: AskTicket, streaming: bool) {
        let asked = self.run_one(None, |driver| async move {
            let progress = driver.planes.nats.progress(ticket, streaming).await;
            driver.answers.say(ticket, Answer::Stands(progress));
        });
        if !asked {
            self.answers.say(ticket, Answer::Stands(Progress::Unknown));
        }
    }

    async fn authorise(self, ticket: AskTicket, call: Arc<Call>) {
        let answer = match &self.planes.client {
            Some(client) => client.authorise(&call).await,
            // The shard asks its own policy in this mode.
            None => Answer::Full,
        };
        self.answers.say(ticket, answer);
    }

    async fn submit(self, ticket: AskTicket, work: Box<Work>) {
        // A session that exists already is not limited (contract CP-9).
        let limited = work.kind == WorkKind::New && work.owner.kind.rate != Rate::Unlimited;
        if limited
            && let Some(limiter) = &self.planes.limiter
            && !limiter.allows(&work.owner).await
        {
            return self.answers.say(ticket, Answer::Limited);
        }
        // From here on work may be in a stream: it cannot be stopped, but is taken back.
        self.out().tasks.remove(&ticket);
        let answer = self.planes.nats.submit(ticket, &work).await;
        self.answers.say(ticket, answer);
    }

    /// Nobody waits for the answer any more.
    fn withdraw(&self, ticket: AskTicket) {
        let task = self.out().tasks.remove(&ticket);
        if let Some(task) = task {
            task.abort();
        } else if ticket.about == Topic::Tunnel {
            self.planes.nats.withdraw(ticket);
        }
    }
}
