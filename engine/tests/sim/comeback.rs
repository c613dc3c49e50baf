//! Clients that lose their connection and come back for their sessions.

use super::peer::{Act, Comeback, Stage};
use super::plan::{KEYS, Returns};

/// Sessions that a client remembers.
const MEMORY: usize = 4;

/// A session as its client knows it.
#[derive(Clone, Debug)]
pub(crate) struct Met {
    id: String,
    tenant: &'static str,
    key: &'static str,
    function: &'static str,
}

/// What one client connection knows of coming back.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// The session for which this connection was made.
    pub(crate) mission: Option<Comeback>,
    met: Vec<Met>,
}

impl Memory {
    pub(crate) fn new(mission: Option<Comeback>) -> Self {
        Self { mission, met: Vec::new() }
    }

    /// Remembers the session that a worker's answer to this exchange has named.
    pub(crate) fn meet(&mut self, id: &str, exchange: usize, stage: &Stage<'_>) {
        if self.met.len() < MEMORY && !self.met.iter().any(|met| met.id == id) {
            let of = &stage.ledger.exchanges[exchange];
            let (tenant, key, function) = (of.tenant, of.key, of.function);
            self.met.push(Met { id: id.to_owned(), tenant, key, function });
        }
    }

    /// How likely the connection is cut off, in a thousand. Most are cut when they have a session
    /// to lose.
    pub(crate) fn cuts(&self, stage: &Stage<'_>) -> u32 {
        let cuts = stage.plan.parking.map_or(0, |parking| parking.cuts);
        if self.met.is_empty() { cuts / 20 } else { cuts }
    }

    /// The connection is lost. Others come in its place: at once, in time or too late.
    pub(crate) fn come_back(&self, http1: bool, stage: &mut Stage<'_>) {
        let Some(plan) = stage.plan.parking else { return };
        let window = stage.plan.rules().config.session.park_window.as_micros() as usize;
        for met in &self.met {
            if self.met.len() > 1 && stage.seed.chance(40) {
                continue;
            }
            let together = stage.seed.chance(50);
            let mut after = 0;
            for copy in 0..stage.seed.range(1, plan.copies) {
                if !stage.ledger.parking.may_return() {
                    return;
                }
                if copy == 0 || !together {
                    after = absence(plan, window, stage);
                }
                let to = met.comeback(http1, stage);
                stage.acts.push(Act::Return { to, after });
            }
        }
    }
}

/// How long a client stays away.
fn absence(plan: Returns, window: usize, stage: &mut Stage<'_>) -> usize {
    if stage.seed.chance(plan.late) {
        return window + stage.seed.range(0, 300_000);
    }
    if stage.seed.chance(plan.racing) {
        return stage.seed.range(window.saturating_sub(3_000), window + 3_000);
    }
    let within = stage.seed.pick(&[300, 20_000, window.min(2_000_000)]);
    stage.seed.range(0, within)
}

impl Met {
    fn comeback(&self, http1: bool, stage: &mut Stage<'_>) -> Comeback {
        let plan = stage.plan.parking.expect("the caller has it");
        let thief = stage.seed.chance(plan.thieves);
        let turns = stage.plan.http1 > 0 && stage.seed.chance(plan.turncoats);
        let owners = KEYS.iter().filter(|(_, tenant)| (*tenant == self.tenant) != thief);
        let keys: Vec<_> = owners.copied().collect();
        let (mut key, tenant) = stage.seed.pick(&keys);
        if !thief && stage.seed.chance(60) {
            key = self.key;
        }
        Comeback {
            id: self.id.clone(),
            owner: self.tenant,
            key,
            tenant,
            function: self.function,
            http1: http1 != turns,
        }
    }
}
