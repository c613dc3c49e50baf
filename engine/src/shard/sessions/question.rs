//! Questions to the control plane: each is asked once, under a ticket, and ends once.

use std::collections::HashMap;
use std::sync::Arc;

use ringway_proto::time::Time;

use super::super::facts::{AskTicket, Topic, Wanted, key_numbered, number_of};
use super::super::settings::ShardSettings;
use super::super::table::{Key, Table};
use crate::config::{Limits, Scope};
use crate::metrics::{AskOutcome, Limit, ShardMetrics};
use crate::net::ConnId;

/// Bytes that clients may have said in requests that wait for answers, on one core.
const HELD: usize = 64 << 20;
/// Bytes that a request that waits takes besides.
const WAITING: usize = 128;

/// A request that waits for an answer.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) exchange: Key,
    pub(super) wanted: Box<Wanted>,
    /// When the request came.
    pub(super) since: Time,
}

impl Waiting {
    fn size(&self) -> usize {
        WAITING + self.wanted.call.size()
    }
}

/// The party that is asked now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Nobody is asked yet.
    Begun,
    /// The home core of the session that the client names: this client may have opened it.
    Vouching(u16),
    /// The control plane.
    Asked,
}

/// One question.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) from: ConnId,
    /// A hash of what the first request wants.
    pub(super) hash: u64,
    /// The number of the rules that held when the question was asked.
    pub(super) rules: u32,
    /// An answer after this is late.
    pub(super) deadline: Time,
    pub(super) stage: Stage,
    /// The tenant whose credential the question is about, if it is known before the answer.
    pub(super) tenant: Option<Arc<str>>,
    /// The first request, which the question is about.
    pub(super) first: Waiting,
    /// More requests that wait for the same answer.
    more: Vec<Waiting>,
}

impl Question {
    /// A question for one request; others may join it.
    pub(super) fn new(
        (from, hash): (ConnId, u64),
        (rules, deadline): (u32, Time),
        tenant: Option<Arc<str>>,
        first: Waiting,
    ) -> Self {
        let (stage, more) = (Stage::Begun, Vec::new());
        Self { from, hash, rules, deadline, stage, tenant, first, more }
    }

    /// Whether the question's answer is this request's answer too.
    fn is_for(&self, wanted: &Wanted, hash: u64, scope: Scope) -> bool {
        let (asked, call) = (&self.first.wanted.call, &wanted.call);
        self.hash == hash
            && (scope == Scope::Connection || asked.credential() == call.credential())
            && asked.function() == call.function()
            && asked.version() == call.version()
    }

    /// All requests that wait, in order.
    pub(super) fn waiting(self) -> impl Iterator<Item = Waiting> {
        std::iter::once(self.first).chain(self.more)
    }

    /// Bytes of all requests that wait.
    fn size(&self) -> usize {
        self.first.size() + self.more.iter().map(Waiting::size).sum::<usize>()
    }
}

/// The questions of one core.
#[derive(Debug)]
pub(super) struct Questions {
    core: u16,
    life: u32,
    table: Table<Question>,
    /// The number of questions of each tenant that is known.
    by_tenant: HashMap<Arc<str>, usize, foldhash::fast::RandomState>,
    /// Bytes of all requests that wait.
    held: usize,
}

impl Questions {
    pub(super) fn new(settings: &ShardSettings) -> Self {
        let &ShardSettings { core, generation, .. } = settings;
        Self {
            core,
            life: generation,
            table: Table::new(generation),
            by_tenant: HashMap::default(),
            held: 0,
        }
    }

    /// The name of a question towards the control plane.
    pub(super) fn ticket(&self, key: Key) -> AskTicket {
        AskTicket { core: self.core, life: self.life, about: Topic::Call, number: number_of(key) }
    }

    /// Whether a question is one of this shard's, and not of an earlier shard on this core.
    pub(super) fn are_ours(&self, ticket: AskTicket) -> bool {
        (ticket.core, ticket.life) == (self.core, self.life)
    }

    /// The name of a question about an attachment's tunnel towards the control plane.
    pub(super) fn tunnel_ticket(&self, key: Key) -> AskTicket {
        AskTicket { about: Topic::Tunnel, ..self.ticket(key) }
    }

    /// The limit at which no more questions about this tenant's credentials may wait, if it is
    /// reached.
    pub(super) fn full(&self, tenant: Option<&Arc<str>>, limits: &Limits) -> Option<Limit> {
        let of_tenant = tenant.and_then(|tenant| self.by_tenant.get(tenant)).copied().unwrap_or(0);
        if self.table.len() >= limits.asks || self.held >= HELD {
            Some(Limit::Asks)
        } else if of_tenant >= limits.asks_per_tenant {
            Some(Limit::AsksPerTenant)
        } else {
            None
        }
    }

    /// A question begins.
    pub(super) fn begin(&mut self, question: Question) -> Key {
        if let Some(tenant) = &question.tenant {
            *self.by_tenant.entry(tenant.clone()).or_default() += 1;
        }
        self.held += question.size();
        self.table.insert(question)
    }

    /// A request waits for the answer to one of these questions, if that is its answer too. The
    /// request is returned if there is no such question.
    pub(super) fn join(
        &mut self,
        tickets: &[Key],
        (hash, scope): (u64, Scope),
        waiting: Waiting,
    ) -> Option<Waiting> {
        for ticket in tickets {
            if let Some(question) = self.table.get_mut(*ticket)
                && question.is_for(&waiting.wanted, hash, scope)
            {
                self.held += waiting.size();
                question.more.push(waiting);
                return None;
            }
        }
        Some(waiting)
    }

    /// Requests that have come to wait for the answers to these questions. Some may have left.
    pub(super) fn joined(&self, tickets: &[Key]) -> usize {
        let questions = tickets.iter().filter_map(|ticket| self.table.get(*ticket));
        questions.map(|question| 1 + question.more.len()).sum()
    }

    /// An answer has come. Returns its question, if that has not ended before and is one of ours.
    pub(super) fn answer(
        &mut self,
        ticket: AskTicket,
        outcome: AskOutcome,
        metrics: &mut ShardMetrics,
    ) -> Option<(Key, Question)> {
        let key = key_numbered(ticket.number);
        let own = self.ticket(key) == ticket;
        let question = own.then(|| self.end(key, outcome, metrics)).flatten();
        if question.is_none() {
            metrics.asks[AskOutcome::Late.index()] += 1;
        }
        question.map(|question| (key, question))
    }

    /// A question ends, if it has not ended before.
    pub(super) fn end(
        &mut self,
        key: Key,
        outcome: AskOutcome,
        metrics: &mut ShardMetrics,
    ) -> Option<Question> {
        let question = self.table.remove(key)?;
        if question.stage == Stage::Asked {
            metrics.asks[outcome.index()] += 1;
        }
        self.held -= question.size();
        if let Some(tenant) = &question.tenant
            && let Some(of_tenant) = self.by_tenant.get_mut(tenant)
        {
            *of_tenant -= 1;
            if *of_tenant == 0 {
                self.by_tenant.remove(tenant);
            }
        }
        Some(question)
    }

    /// The home of the session that the client names is asked first.
    pub(super) fn vouching(&mut self, key: Key, home: u16) {
        if let Some(question) = self.table.get_mut(key) {
            question.stage = Stage::Vouching(home);
        }
    }

    /// The control plane is asked. Returns the question, if it was not asked before.
    pub(super) fn put(&mut self, key: Key, metrics: &mut ShardMetrics) -> Option<&Question> {
        let question = self.table.get_mut(key)?;
        if question.stage == Stage::Asked {
            return None;
        }
        question.stage = Stage::Asked;
        metrics.asks[AskOutcome::Asked.index()] += 1;
        Some(question)
    }

    /// Whether the control plane is asked.
    pub(super) fn is_asked(&self, key: Key) -> bool {
        self.table.get(key).is_some_and(|question| question.stage == Stage::Asked)
    }

    /// The questions that wait for that core's word.
    pub(super) fn vouching_at(&self, core: u16) -> Vec<Key> {
        let waits = |(_, question): &(Key, &Question)| question.stage == Stage::Vouching(core);
        self.table.iter().filter(waits).map(|(key, _)| key).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    /// The number of questions of the tenant that has most.
    pub(super) fn fullest(&self) -> usize {
        self.by_tenant.values().copied().max().unwrap_or(0)
    }

    /// Whether there is such a question.
    pub(super) fn holds(&self, ticket: Key) -> bool {
        self.table.get(ticket).is_some()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.table.len() == 0 && self.by_tenant.is_empty() && self.held == 0
    }
}
