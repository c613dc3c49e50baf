//! A worker's connection that asks for work, over HTTP/1.1.

use std::collections::VecDeque;

use super::journal::note;
use super::ledger::Work;
use super::peer::{Act, Pace, Peer, Stage, Trick};
use super::plan::WORKER_KEY;

pub(crate) struct Poll {
    number: usize,
    worker: usize,
    input: Vec<u8>,
    /// What each unanswered poll listed.
    asked: VecDeque<Vec<String>>,
    over: bool,
    pace: Pace,
}

impl Poll {
    pub(crate) fn new(number: usize, worker: usize, stage: &mut Stage<'_>) -> Self {
        let asked = VecDeque::new();
        let mut poll =
            Self { number, worker, input: Vec::new(), asked, over: false, pace: Pace::new() };
        poll.ask(stage);
        poll
    }

    fn ask(&mut self, stage: &mut Stage<'_>) {
        let worker = &stage.ledger.workers[self.worker];
        let listed: Vec<String> = worker.sessions.keys().cloned().collect();
        let room = stage.plan.parking.is_none_or(|parking| listed.len() < parking.slots);
        let ids: Vec<String> = listed.iter().map(|id| format!("\"{id}\"")).collect();
        let body = format!(
            "{{\"functionId\":\"{}\",\"functionVersionId\":\"{}\",\"slots\":{},\"requestIds\":[{}]}}",
            worker.function,
            worker.version,
            u8::from(room),
            ids.join(",")
        );
        let head = format!(
            "POST /v1/work HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {WORKER_KEY}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.asked.push_back(listed);
        stage.ledger.asked += 1;
        stage.acts.push(Act::Send(head.into_bytes()));
    }

    fn leave(&mut self, act: Act, stage: &mut Stage<'_>) {
        self.over = true;
        note("poll", self.number, "leaves", [0, 0]);
        stage.acts.push(act);
        if !stage.closing {
            let after = stage.seed.range(10, 200_000);
            stage.acts.push(Act::Poll { worker: self.worker, after });
        }
    }

    /// Takes one answer off the input: its status and its body.
    fn answer(&mut self) -> Option<(u16, Vec<u8>)> {
        let end = self.input.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
        let head = String::from_utf8_lossy(&self.input[..end]).to_ascii_lowercase();
        let status = head.split(' ').nth(1).and_then(|digits| digits.parse().ok());
        let status = status.expect("a status line");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
        let length: usize = length.map_or(0, |text| text.trim().parse().expect("a length"));
        if self.input.len() < end + length {
            return None;
        }
        let body = self.input[end..end + length].to_vec();
        self.input.drain(..end + length);
        Some((status, body))
    }

    fn work(&self, body: &[u8], listed: &[String], stage: &mut Stage<'_>) {
        let json: serde_json::Value = serde_json::from_slice(body).expect("JSON");
        let text = |value: &serde_json::Value| value.as_str().expect("a text").to_owned();
        let work = Work {
            kind: text(&json["kind"]),
            id: text(&json["requestId"]),
            tenant: text(&json["ncaId"]),
            function: text(&json["functionId"]),
            version: text(&json["functionVersionId"]),
            token: text(&json["connections"][0]["http1"]["proxyAuthorizationToken"]),
        };
        stage.ledger.work(self.worker, &work, listed);
        let holds = stage.ledger.workers[self.worker].sessions.contains_key(&work.id);
        if work.kind == "reconnect" && !holds {
            // The session has ended at this worker meanwhile (contract 4.6), so there is nothing to
            // reconnect.
            return;
        }
        let sloppy = stage.plan.sloppy;
        let worker = self.worker;
        if stage.fault(sloppy / 3) {
            note("poll", self.number, "loses its work", [0, 0]);
            return;
        }
        let mut dial = |trick, after| {
            stage.acts.push(Act::Dial { worker, work: work.clone(), trick, after });
        };
        let late = if sloppy > 0 && !stage.calm && stage.seed.chance(sloppy / 2) {
            stage.seed.range(0, 3_000_000)
        } else {
            stage.seed.range(0, 2_000)
        };
        if sloppy > 0 && !stage.calm && stage.seed.chance(sloppy) {
            let trick = stage.seed.pick(&[Trick::WrongToken, Trick::WrongId, Trick::NoToken]);
            dial(trick, stage.seed.range(0, 2_000));
        }
        if sloppy > 0 && !stage.calm && stage.seed.chance(sloppy) {
            dial(Trick::None, stage.seed.range(0, 2_000));
        }
        dial(Trick::None, late);
    }
}

impl Peer for Poll {
    fn received(&mut self, bytes: &[u8], stage: &mut Stage<'_>) {
        if self.over {
            return;
        }
        self.input.extend_from_slice(bytes);
        while let Some((status, body)) = self.answer() {
            let listed = self.asked.pop_front().expect("an answer to a question");
            // 503 means that another core had no room for the poll. A worker polls again later.
            let several = stage.plan.cores > 1 || stage.plan.many.is_some();
            let busy = status == 503 && several;
            assert!(busy || [200, 204].contains(&status), "a poll was answered with {status}");
            note("poll", self.number, "is answered", [status.into(), body.len() as u64]);
            if status == 200 {
                if stage.fault(stage.plan.sloppy / 4) {
                    // The worker dies right after it got the answer.
                    return self.leave(Act::Reset, stage);
                }
                self.work(&body, &listed, stage);
            }
            if self.asked.is_empty() && !stage.closing && !busy {
                self.ask(stage);
            }
        }
        self.pace.hurry();
    }

    fn ended(&mut self, _reset: bool, stage: &mut Stage<'_>) {
        if !std::mem::replace(&mut self.over, true) {
            stage.acts.push(Act::Fin);
            if !stage.closing {
                stage.acts.push(Act::Poll { worker: self.worker, after: 100_000 });
            }
        }
    }

    fn tick(&mut self, stage: &mut Stage<'_>) {
        if self.over {
            return;
        }
        if stage.closing {
            return self.leave(Act::Fin, stage);
        }
        let sloppy = stage.plan.sloppy;
        if stage.rarely(sloppy) {
            let act = if stage.seed.chance(50) { Act::Reset } else { Act::Fin };
            return self.leave(act, stage);
        }
        // If a session came or went, a new poll says so and replaces the one that waits. Now and
        // then a poll is sent for no reason: work may be on its way to the one before it.
        if self.asked.is_empty() {
            self.ask(stage);
        }
        let held = stage.ledger.workers[self.worker].sessions.keys();
        let news = self.asked.back().is_some_and(|listed| !listed.iter().eq(held));
        let anew = (news && stage.seed.chance(50)) || stage.seed.chance(10);
        if anew && self.asked.len() == 1 {
            self.ask(stage);
        }
        stage.acts.push(Act::Wait(self.pace.next(stage.seed)));
    }
}
