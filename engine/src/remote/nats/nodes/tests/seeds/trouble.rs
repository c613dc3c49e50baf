//! What happens to gateways and their bucket.

use super::*;

impl World {
    /// Up to an hour either way, mostly much less.
    pub(super) fn jump(&mut self) -> i64 {
        let most = 1 << self.seed.below(13);
        let micros = (self.seed.below(most * SECOND) as i64).min(3600 * SECOND as i64);
        if self.seed.chance(50) { micros } else { -micros }
    }

    pub(super) fn some_live(&mut self) -> Option<usize> {
        let live = self.live();
        self.seed.pick(&live)
    }

    /// The name of one that lives or has lived, or nobody's.
    pub(super) fn some_node(&mut self) -> Node {
        let known = self.seed.below(self.names.len() as u64 + 1) as usize;
        let known = self.names.get(known).copied().filter(|_| self.seed.chance(90));
        known.unwrap_or_else(|| self.draw())
    }

    pub(super) fn disturb(&mut self) {
        let outage = (1 << self.seed.below(17)) * SECOND / 1000;
        match self.seed.below(12) {
            0 | 1 => {
                self.up = false;
                // What is on its way to a server that ends arrives nowhere.
                self.queue.retain(|_, event| !matches!(event, Event::Reaches(..)));
                for id in self.live() {
                    self.fails(id);
                }
                if self.seed.chance(50) {
                    self.bucket.empty();
                }
                self.after(outage, Event::Returns(None));
            }
            2 => {
                if let Some(id) = self.some_live() {
                    self.fails(id);
                    self.after(outage, Event::Returns(Some(id)));
                }
            }
            3 | 4 => {
                if let Some(id) = self.some_live() {
                    let host = self.processes[id].as_ref().unwrap().host;
                    self.gone(id);
                    let pause = self.seed.below(20 * SECOND);
                    self.after(pause, Event::Starts(host));
                }
            }
            5 => self.stop(),
            6 => {
                let host = self.seed.below(self.hosts.len() as u64) as usize;
                self.starts(host);
            }
            7 => {
                let jump = self.jump();
                if let Some(id) = self.some_live() {
                    let at = self.at;
                    let process = self.process(id).unwrap();
                    process.clock += jump;
                    process.jumps.push(at);
                }
            }
            8 => self.bucket.clock += self.jump(),
            9 => self.rotate(),
            _ => self.scribble(),
        }
    }

    pub(super) fn starts(&mut self, host: usize) {
        if self.hosts[host].is_none() && !self.calm {
            self.start(host);
        }
    }

    pub(super) fn stop(&mut self) {
        let Some(id) = self.some_live() else { return };
        let process = self.process(id).unwrap();
        process.leaves = true;
        process.own = None;
        process.rests += 1;
        process.claims.leave(Some(process.connection));
        if process.up {
            self.drive(id);
        } else {
            self.gone(id);
        }
    }

    /// One secret takes the other's place; seldom in one step, by which gateways are strangers.
    pub(super) fn rotate(&mut self) {
        let Some(old) = self.secrets.last().copied() else { return };
        let new = old + 1;
        let mut steps = vec![vec![old, new], vec![new, old], vec![new]];
        if self.seed.chance(20) {
            steps.drain(..2);
        }
        for (number, step) in steps.into_iter().enumerate() {
            for host in 0..self.hosts.len() {
                let at = (2 * number as u64) * SECOND + self.seed.below(SECOND);
                self.after(at, Event::Reloads(host, step.clone()));
            }
            self.secrets = step;
        }
    }

    pub(super) fn reloads(&mut self, host: usize, secrets: Vec<usize>) {
        let Some(id) = self.hosts[host] else { return };
        let process = self.process(id).unwrap();
        if process.secrets == secrets {
            return;
        }
        process.claims.replace(secret_keys(&secrets));
        process.secrets = secrets;
        process.replaced = true;
        if process.own.is_none() && process.kept.is_some() {
            process.replaced = false;
            self.wake(id);
        }
        self.judge_table(id);
    }

    /// Somebody who is no gateway of the cluster writes into the bucket.
    pub(super) fn scribble(&mut self) {
        let node = self.some_node();
        let other = self.some_node();
        let genuine = self.bucket.bytes(other).cloned();
        let there = self.bucket.bytes(node).cloned();
        let record = |version: u32| json!({ "version": version, "worker": "10.9.9.9:1", "run": 5 });
        let text = match self.seed.below(8) {
            // Where there is no secret to prove it, another version only is no record.
            0 if !self.secrets.is_empty() => record(1).to_string(),
            0 | 1 => record(2).to_string(),
            2 => record(0).to_string(),
            3 => "x".repeat(5000),
            4 => "nonsense".into(),
            5 if !self.secrets.is_empty() => {
                let keys = Keys::of(&[Secret::from("a secret of some other cluster")]);
                let record = Record::of("10.9.9.9:1".into(), 6);
                let bytes = record.written(node, &Addresses::default(), keys.as_deref());
                return self.bucket.scribble(self.at, node, bytes);
            }
            6 if !self.secrets.is_empty() && node != other => match genuine {
                Some(bytes) => return self.bucket.scribble(self.at, node, bytes),
                None => String::new(),
            },
            7 if !self.secrets.is_empty() => {
                let text = there.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
                text.unwrap_or_default().replace("10.0.0.", "10.0.9.")
            }
            _ => String::new(),
        };
        self.bucket.scribble(self.at, node, Bytes::from(text));
    }

    pub(super) fn returns(&mut self, one: Option<usize>) {
        self.up |= one.is_none();
        let ids = one.map_or_else(|| self.live(), |id| vec![id]);
        for id in ids {
            let up = self.up;
            if let Some(process) = self.process(id).filter(|process| !process.up) {
                process.up = up;
                process.connection += 1;
                if up {
                    self.wake(id);
                }
            }
        }
    }

    /// Nothing disturbs any more, and all have the secrets that they are to have.
    pub(super) fn calm(&mut self) {
        self.calm = true;
        self.returns(None);
        let secrets = self.secrets.clone();
        for host in 0..self.hosts.len() {
            self.reloads(host, secrets.clone());
        }
        self.end = self.at + self.seen_within();
        self.after(0, Event::End);
    }

    /// How long it takes until all see each other, if nothing disturbs them any more and each has its
    /// name already.
    pub(super) fn seen_within(&self) -> u64 {
        let displaced = self.live().into_iter().any(|id| {
            let process = self.processes[id].as_ref().unwrap();
            let there = process.kept.and_then(|node| self.bucket.bytes(node));
            there.is_some()
                && process.kept.and_then(|node| self.bucket.run_at(node)) != Some(process.run)
        });
        if displaced { PUT_BACK_WITHIN } else { SEEN_WITHIN }
    }

    /// Makes an event happen. Whether the run goes on after it.
    pub(super) fn happens(&mut self, event: Event) -> bool {
        match event {
            Event::Reaches(name, ask) => self.reaches(name, &ask),
            Event::Answers(name, heard, given) => self.answers(name, heard, given),
            Event::Late(name) => {
                let failed = Heard::Failed(Trouble::Failed("no answer".into()));
                self.answers(name, failed, self.at);
            }
            Event::Wakes(id, rests) => {
                if self.process(id).is_some_and(|process| process.rests == rests) {
                    self.wake(id);
                }
            }
            Event::Settles(id) => {
                if self.settle(id) {
                    self.drive(id);
                }
            }
            Event::Returns(one) => self.returns(one),
            Event::Starts(host) => self.starts(host),
            Event::Reloads(host, secrets) if !self.calm => self.reloads(host, secrets),
            Event::Question => {
                let (id, node) = (self.some_live(), self.some_node());
                if let Some(id) = id {
                    self.question(id, node);
                }
                let pause = self.seed.below(2 * SECOND);
                self.after(pause, Event::Question);
            }
            Event::Disturbance if !self.calm => self.disturb(),
            Event::Reloads(..) | Event::Disturbance => {}
            Event::Calm => self.calm(),
            Event::End if self.at < self.end => self.after(self.end - self.at, Event::End),
            Event::End => {
                self.judge_calm();
                return false;
            }
        }
        true
    }

    pub(super) fn run(&mut self) {
        self.after(0, Event::Question);
        while let Some(((at, _), event)) = self.queue.pop_first() {
            self.at = at;
            self.bucket.expire(at);
            if self.shows {
                println!("{:>10.6} {event:?}", at as f64 / 1e6);
            }
            if !self.happens(event) {
                return;
            }
            self.judge();
        }
    }
}
