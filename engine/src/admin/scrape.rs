//! Asks every core for a snapshot, and waits no longer than [`DEADLINE`] for the answers.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use crate::mailbox::Sender;
use crate::message::{Bookmark, Page, SessionRow, ShardMessage, Snapshot};
use crate::metrics::{Histogram, ShardMetrics, family};
use crate::net::{STALL_SECONDS, Stalls};
use crate::timeline::{IdBegin, Part};

/// The help text of the stalls' histogram.
const STALL_HELP: &str =
    "Turns of a core that took over 2 ms, without the time in which others had its CPU.";

/// How long the cores may take.
const DEADLINE: Duration = Duration::from_secs(1);

/// The way to the cores, and the answers on their way.
#[derive(Debug)]
pub struct Scraper {
    cores: Vec<Core>,
    asked: Mutex<Asked<Box<Snapshot>>>,
    pages: Mutex<Asked<Page>>,
    timelines: Mutex<Asked<Vec<Part>>>,
    beats: Mutex<Asked<usize>>,
    /// By core.
    counted: Mutex<Vec<Counted>>,
}

/// The counters that a core has shown. A shard that replaces a dead one counts from 0, and a busy
/// core may not answer in time. The sums must not fall in either case.
#[derive(Clone, Debug, Default)]
struct Counted {
    /// The counts of shards that died, up to the last time each was asked.
    before: Tally,
    /// The counts of the present shard, when it was last asked.
    last: Tally,
}

/// The counters of one core.
#[derive(Clone, Debug, Default)]
struct Tally {
    metrics: ShardMetrics,
    idle: Duration,
    stalls: Stalls,
}

impl Tally {
    fn add_to(&self, snapshot: &mut Snapshot) {
        snapshot.metrics.add(&self.metrics);
        snapshot.idle += self.idle;
        snapshot.stalls.add(&self.stalls);
    }
}

#[derive(Debug)]
struct Core {
    mailbox: Sender<ShardMessage>,
    /// Whether the core has ended for good.
    ended: AtomicBool,
}

/// Questions of one kind that are not answered yet, by their tickets.
#[derive(Debug)]
struct Asked<T> {
    last: u64,
    waiting: HashMap<u64, mpsc::Sender<T>>,
}

impl<T> Default for Asked<T> {
    fn default() -> Self {
        Self { last: 0, waiting: HashMap::new() }
    }
}

/// A question of one kind. It ends when this is dropped.
#[derive(Debug)]
struct Question<'a, T> {
    of: &'a Mutex<Asked<T>>,
    ticket: u64,
    answers: mpsc::Receiver<T>,
}

impl<'a, T> Question<'a, T> {
    /// A question with room for as many answers as may come at once.
    fn new(of: &'a Mutex<Asked<T>>, room: usize) -> Self {
        let (sender, answers) = mpsc::channel(room.max(1));
        let mut asked = lock(of);
        asked.last += 1;
        let ticket = asked.last;
        asked.waiting.insert(ticket, sender);
        Self { of, ticket, answers }
    }

    /// The next answer, if it comes before `until`.
    async fn answer(&mut self, until: Instant) -> Option<T> {
        timeout_at(until, self.answers.recv()).await.ok().flatten()
    }
}

impl<T> Drop for Question<'_, T> {
    fn drop(&mut self) {
        lock(self.of).waiting.remove(&self.ticket);
    }
}

/// Sessions of all cores, each once.
#[derive(Debug)]
pub struct Listed {
    /// Live ones first, the youngest at their head.
    pub rows: Vec<SessionRow>,
    /// Whether every core has sent all of its sessions.
    pub whole: bool,
}

/// What the cores answered in time.
#[derive(Debug)]
pub struct Scrape {
    snapshots: Vec<Snapshot>,
    /// The last known counts of the cores that did not answer.
    silent: Vec<ShardMetrics>,
}

/// How many cores turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beats {
    /// Cores that answered in time.
    pub turning: usize,
    /// Cores that have ended and will not come back.
    pub ended: usize,
    /// All cores.
    pub cores: usize,
    /// Client connections of the cores that answered.
    pub clients: usize,
}

impl Scraper {
    /// For these cores, in the order of their numbers.
    #[must_use]
    pub fn new(cores: Vec<Sender<ShardMessage>>) -> Self {
        let core = |mailbox| Core { mailbox, ended: AtomicBool::new(false) };
        Self {
            counted: Mutex::new(vec![Counted::default(); cores.len()]),
            cores: cores.into_iter().map(core).collect(),
            asked: Mutex::default(),
            pages: Mutex::default(),
            timelines: Mutex::default(),
            beats: Mutex::default(),
        }
    }

    /// How many cores there are.
    #[must_use]
    pub fn cores(&self) -> usize {
        self.cores.len()
    }

    /// A core has ended for good: it gets no more messages.
    pub fn ended(&self, core: u16) {
        if let Some(core) = self.cores.get(usize::from(core)) {
            core.ended.store(true, Ordering::Relaxed);
        }
    }

    /// Sends a message to a core, if it has room.
    pub fn tell_one(&self, core: u16, message: ShardMessage) {
        if let Some(core) = self.cores.get(usize::from(core)) {
            // A lost message is tolerable: a caller whose message must arrive sends it to all cores
            // until each has it.
            let _ = core.mailbox.send(message);
        }
    }

    /// Sends a message to every core that has not ended. Answers how many cannot take it now.
    pub fn tell(&self, message: impl Fn() -> ShardMessage) -> usize {
        let live = self.cores.iter().filter(|core| !core.ended.load(Ordering::Relaxed));
        live.filter(|core| core.mailbox.send(message()).is_err()).count()
    }

    /// Asks every core for a snapshot.
    pub async fn ask(&self) -> Scrape {
        let answers = self.ask_all(&self.asked, |ticket| ShardMessage::Snapshot { ticket }).await;
        let mut snapshots: Vec<Snapshot> = answers.into_iter().map(|answer| *answer).collect();
        snapshots.sort_unstable_by_key(|snapshot: &Snapshot| snapshot.core);
        let mut silent = Vec::new();
        for (core, counted) in lock(&self.counted).iter().enumerate() {
            if !snapshots.iter().any(|snapshot| usize::from(snapshot.core) == core) {
                let mut shown = Snapshot { core: core as u16, ..Snapshot::default() };
                counted.before.add_to(&mut shown);
                counted.last.add_to(&mut shown);
                silent.push(shown.metrics);
            }
        }
        Scrape { snapshots, silent }
    }

    /// A core's shard has died, and another has taken its place.
    pub fn restarted(&self, core: u16) {
        if let Some(counted) = lock(&self.counted).get_mut(usize::from(core)) {
            let last = std::mem::take(&mut counted.last);
            counted.before.metrics.add(&last.metrics);
            counted.before.idle += last.idle;
            counted.before.stalls.add(&last.stalls);
        }
    }

    /// Asks every core for its records of the sessions whose id begins with `wanted`.
    pub async fn ask_timelines(&self, wanted: IdBegin) -> Vec<Part> {
        let message = |ticket| ShardMessage::Timeline { ticket, wanted };
        let answers = self.ask_all(&self.timelines, message).await;
        let mut parts: Vec<Part> = answers.into_iter().flatten().collect();
        parts.sort_by_key(|part| part.core);
        parts
    }

    /// Asks every core whether it turns.
    pub async fn ask_beats(&self) -> Beats {
        let clients = self.ask_all(&self.beats, |ticket| ShardMessage::Beat { ticket }).await;
        let ended = self.cores.iter().filter(|core| core.ended.load(Ordering::Relaxed)).count();
        Beats {
            turning: clients.len(),
            ended,
            cores: self.cores(),
            clients: clients.into_iter().sum(),
        }
    }

    async fn ask_all<T>(
        &self,
        of: &Mutex<Asked<T>>,
        message: impl Fn(u64) -> ShardMessage,
    ) -> Vec<T> {
        let mut question = Question::new(of, self.cores());
        let asked = |core: &&Core| core.mailbox.send(message(question.ticket)).is_ok();
        let asked = self.cores.iter().filter(asked).count();
        let mut answered = Vec::with_capacity(asked);
        let until = Instant::now() + DEADLINE;
        while answered.len() < asked {
            let Some(answer) = question.answer(until).await else { break };
            answered.push(answer);
        }
        answered
    }

    /// Asks every core for its sessions whose id begins as wanted. A core is asked for one page at
    /// a time, and turns between two pages. So even with many sessions its mailbox has one message,
    /// and its connections do not wait.
    pub async fn ask_rows(&self, wanted: Option<IdBegin>) -> Listed {
        let mut question = Question::new(&self.pages, self.cores());
        let ticket = question.ticket;
        let ask = |core: &Core, from| {
            core.mailbox.send(ShardMessage::Rows { ticket, from, wanted }).is_ok()
        };
        let (mut rows, mut told) = (Vec::new(), 0);
        let mut waits = self.cores.iter().filter(|core| ask(core, Bookmark::BEGIN)).count();
        while waits > 0 {
            // A core whose answer does not come is left out. So may be a core that answers at the
            // deadline.
            let Some(page) = question.answer(Instant::now() + DEADLINE).await else { break };
            rows.extend(page.rows);
            let core = self.cores.get(usize::from(page.core));
            let goes_on = page.next.zip(core).is_some_and(|(from, core)| ask(core, from));
            told += usize::from(page.next.is_none());
            waits -= usize::from(!goes_on);
        }
        // A core may know of another core's session only what ended attachments have carried.
        let mut rows = SessionRow::joined(rows);
        rows.sort_by_cached_key(|row| match row.close_reason {
            None => (false, row.age_ms),
            Some(_) => (true, 0),
        });
        Listed { rows, whole: told == self.cores() }
    }

    /// A core's answer to [`Self::ask`] has come.
    pub fn answered(&self, ticket: u64, mut snapshot: Box<Snapshot>) {
        if let Some(counted) = lock(&self.counted).get_mut(usize::from(snapshot.core)) {
            let Snapshot { idle, stalls, .. } = *snapshot;
            counted.last = Tally { metrics: snapshot.metrics.counters(), idle, stalls };
            // The counts are added here, not once all cores have answered. If the core died in
            // between, the counts that it has shown would count twice.
            counted.before.add_to(&mut snapshot);
        }
        answer(&self.asked, ticket, snapshot);
    }

    /// A core's answer to [`Self::ask_rows`] has come.
    pub fn turned(&self, ticket: u64, page: Page) {
        answer(&self.pages, ticket, page);
    }

    /// A core's answer to [`Self::ask_beats`] has come.
    pub fn beaten(&self, ticket: u64, clients: usize) {
        answer(&self.beats, ticket, clients);
    }

    /// A core's answer to [`Self::ask_timelines`] has come.
    pub fn told(&self, ticket: u64, parts: Vec<Part>) {
        answer(&self.timelines, ticket, parts);
    }
}

impl Scrape {
    /// All cores' counters together.
    #[must_use]
    pub fn sum(&self) -> ShardMetrics {
        let mut sum = ShardMetrics::default();
        for snapshot in &self.snapshots {
            sum.add(&snapshot.metrics);
        }
        for counted in &self.silent {
            sum.add(counted);
        }
        sum
    }

    /// Writes the metrics that say how complete the scrape is.
    pub fn render(&self, out: &mut String) {
        family(out, "ringway_cores", "gauge", "Data cores, by whether they answered this scrape.");
        let answered = self.snapshots.len();
        // Writing to a String cannot fail.
        let _ = writeln!(out, "ringway_cores{{state=\"answered\"}} {answered}");
        let _ = writeln!(out, "ringway_cores{{state=\"silent\"}} {}", self.silent.len());
        self.render_each(out);
    }

    /// Writes the metrics that show whether the cores share the work evenly.
    fn render_each(&self, out: &mut String) {
        type Show = fn(&Snapshot) -> String;
        let families: [(&str, &str, &str, Show); 3] = [
            ("ringway_core_client_connections", "gauge", "Client connections of a core.", |of| {
                of.metrics.active_connections.to_string()
            }),
            ("ringway_core_sockets", "gauge", "Sockets of a core.", |of| of.sockets.to_string()),
            (
                "ringway_core_idle_seconds_total",
                "counter",
                "Time a core was asleep or looked out for something to do.",
                |of| format!("{:.6}", of.idle.as_secs_f64()),
            ),
        ];
        for (name, kind, help, show) in families {
            family(out, name, kind, help);
            for of in &self.snapshots {
                let _ = writeln!(out, "{name}{{core=\"{}\"}} {}", of.core, show(of));
            }
        }
        let name = "ringway_core_stall_seconds";
        family(out, name, "histogram", STALL_HELP);
        for Snapshot { core, stalls, .. } in &self.snapshots {
            let sum = stalls.sum.as_secs_f64();
            let histogram = Histogram::counted(STALL_SECONDS, &stalls.counts, sum);
            histogram.render(out, name, &format!("core=\"{core}\""));
        }
    }
}

fn answer<T>(of: &Mutex<Asked<T>>, ticket: u64, answer: T) {
    if let Some(asker) = lock(of).waiting.get(&ticket) {
        // There is room for one answer of each core. A late answer is dropped.
        let _ = asker.try_send(answer);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code can panic half-way while it holds the lock.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(core: u16, tokens: u64, parked: u64) -> Box<Snapshot> {
        let mut snapshot = Snapshot { core, ..Snapshot::default() };
        snapshot.metrics.tokens_issued = tokens;
        snapshot.metrics.active_connections = 1;
        snapshot.metrics.resumes.parked = parked;
        snapshot.idle = Duration::from_secs(tokens);
        Box::new(snapshot)
    }

    /// Asks both cores; only those of `answers` answer.
    async fn sums(of: &Scraper, answers: &[(u16, u64)]) -> (u64, u64, u64, Duration) {
        let ticket = lock(&of.asked).last + 1;
        let answer = async {
            tokio::task::yield_now().await;
            answers
                .iter()
                .for_each(|(core, tokens)| of.answered(ticket, snapshot(*core, *tokens, 1)));
        };
        let (scrape, ()) = tokio::join!(of.ask(), answer);
        let sum = scrape.sum();
        let idle = scrape.snapshots.iter().map(|snapshot| snapshot.idle).sum();
        (sum.tokens_issued, sum.active_connections, sum.resumes.parked, idle)
    }

    #[tokio::test]
    async fn sums_of_counters_never_fall() {
        let (senders, _inboxes): (Vec<_>, Vec<_>) =
            (0..2).map(|_| crate::mailbox::mailbox(8).unwrap()).unzip();
        let scraper = Scraper::new(senders);
        let seconds = Duration::from_secs;
        assert_eq!(sums(&scraper, &[(0, 5), (1, 7)]).await, (12, 2, 2, seconds(12)));
        // A silent core's counters are at least what it showed last. Its gauges are not known.
        assert_eq!(sums(&scraper, &[(0, 6)]).await, (13, 1, 1, seconds(6)));
        // A new shard counts from 0, twice.
        scraper.restarted(1);
        assert_eq!(sums(&scraper, &[(0, 6), (1, 2)]).await, (15, 2, 2, seconds(15)));
        scraper.restarted(1);
        assert_eq!(sums(&scraper, &[(0, 6), (1, 0)]).await, (15, 2, 2, seconds(15)));
        // A core answers and dies before the other has answered.
        let dies = async {
            tokio::task::yield_now().await;
            let ticket = lock(&scraper.asked).last;
            scraper.answered(ticket, snapshot(1, 4, 1));
            scraper.restarted(1);
            scraper.answered(ticket, snapshot(0, 6, 1));
        };
        let (scrape, ()) = tokio::join!(scraper.ask(), dies);
        assert_eq!(scrape.sum().tokens_issued, 19);
        assert_eq!(sums(&scraper, &[(0, 6), (1, 0)]).await, (19, 2, 2, seconds(19)));
        assert_eq!(sums(&scraper, &[]).await, (19, 0, 0, seconds(0)));
    }
}
