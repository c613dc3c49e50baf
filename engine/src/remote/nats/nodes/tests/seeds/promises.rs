//! What must hold, whatever happens.

use super::*;

impl World {
    /// What is said to live is signed with a secret that the one who says so has.
    pub(super) fn judge_live(&mut self, id: usize, node: Node, liveness: &Liveness) {
        let process = self.processes[id].as_ref().unwrap();
        if process.kept == Some(node) || process.claims.me() == node {
            assert!(*liveness != Liveness::Dead, "{node} takes itself for dead");
            return;
        }
        self.tally.live += u64::from(matches!(liveness, Liveness::Live(_)));
        self.judge_table(id);
    }

    pub(super) fn judge_table(&self, id: usize) {
        let process = self.processes[id].as_ref().unwrap();
        if process.secrets.is_empty() {
            return;
        }
        for (node, record) in process.claims.table() {
            let secret = record.mac().and_then(|mac| self.signed.get(mac));
            let known = secret.is_some_and(|secret| process.secrets.contains(secret));
            assert!(known, "{node} is believed with {secret:?}: {record:?}");
        }
    }

    /// Who is said to be dead was looked for in vain for two times to live, but for what a clock that
    /// jumps takes off: two refreshes at each jump. A record that came and was taken away again
    /// between two looks cannot be known; one that has lived its life there must be.
    pub(super) fn judge_dead(&mut self, id: usize, node: Node) {
        let process = self.processes[id].as_ref().unwrap();
        let Some((since, last)) = process.vain.get(&node).copied() else {
            panic!("{node} is said to be dead, and its record is there")
        };
        let jumps = process.jumps.iter().filter(|at| **at >= since).count() as u64;
        let was_gone = last - since + jumps * 2 * REFRESH;
        assert!(was_gone >= 2 * TTL, "{node} is dead after {} us", last - since);
        self.tally.dead += 1;
    }

    /// What holds at every instant.
    pub(super) fn judge(&self) {
        let live = self.live();
        for (at, id) in live.iter().enumerate() {
            let Some(one) = self.processes[*id].as_ref().filter(|one| !one.leaves) else {
                continue;
            };
            let Some(node) = one.kept else { continue };
            assert!(one.claims.me() == node, "{node} has lost its name");
            for other in &live[at + 1..] {
                let Some(other) = &self.processes[*other] else { continue };
                let shared = other.kept == Some(node) && !other.leaves;
                assert!(!shared || self.excused.contains(&node), "two are {node}");
            }
        }
    }

    /// All live gateways see each other.
    pub(super) fn judge_calm(&mut self) {
        let live = self.live();
        for id in &live {
            for other in &live {
                let (one, two) = (&self.processes[*id], &self.processes[*other]);
                let (Some(one), Some(two)) = (one, two) else { continue };
                let (Some(mine), Some(node)) = (one.kept, two.kept) else {
                    panic!("a gateway has no name after all")
                };
                if node == mine || self.excused.contains(&node) || self.excused.contains(&mine) {
                    continue;
                }
                let (run, now, bytes) = (two.run, self.now(*id), self.bucket.bytes(node).cloned());
                let claims = &mut self.process(*id).unwrap().claims;
                let seen = claims.known(node, now).unwrap_or_else(|| {
                    let look = claims.look(node, now);
                    claims.looked(look, Ok(bytes.clone()), now)
                });
                let sees = matches!(&seen, Liveness::Live(record) if record.run() == run);
                assert!(sees, "{mine} takes {node} for {seen:?}: {bytes:?}");
                self.tally.checked += 1;
            }
        }
        for node in self.excused.clone() {
            let has = |process: &&Process| process.kept == Some(node) && !process.leaves;
            let holders: Vec<&Process> = self.processes.iter().flatten().filter(has).collect();
            if holders.len() > 1 {
                self.tally.shared += 1;
                let told = holders.iter().filter(|process| process.taken).count();
                assert!(told + 1 >= holders.len(), "nobody says that {node} is two");
            }
        }
    }
}
