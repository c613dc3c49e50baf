//! Asking one gateway for work: polls over HTTP/1.1 on a few kept connections.
//!
//! Some connections ask for new sessions. An answer brings one session, and the next poll follows
//! it at once. The round trip bounds how many sessions one connection can bring in a second, so
//! more connections are opened while answers come quickly. Each open poll is promised a free slot
//! of its own.
//!
//! One more connection offers no slot. It lists the sessions held and gets their reconnects. When
//! these sessions change, a new poll is sent on it. The new poll takes the place of the one that
//! waits, which is then answered without work. So no read is ever cancelled, and no work is lost
//! between two polls.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use monoio::buf::IoBufMut;
use monoio::io::{AsyncReadRent, AsyncWriteRentExt, OwnedReadHalf, OwnedWriteHalf, Splitable};
use monoio::net::TcpStream;
use monoio::time::{sleep, timeout};
use ringway_work::{AnswerFault, Poll, PollResponse, readable};
use uuid::Uuid;

use super::{Gateway, SENDER, Worker, manager, net};

/// Most connections that ask one gateway for new sessions.
pub(super) const MAX_WIDTH: usize = 8;
/// Work that comes sooner than this after its poll has waited in the gateway. Then one more
/// connection may ask.
const QUICK: Duration = Duration::from_millis(100);
/// Least time between a poll that brought nothing and the next one, so that a gateway which does
/// not let polls wait is not asked in a tight loop. After a poll that brought work there is no such
/// pause.
const PAUSE: Duration = Duration::from_millis(5);
/// Least time between two lists of sessions. A list costs the gateway as much as a poll for a new
/// session, and short sessions are over before anybody could come back to them.
const LIST_PAUSE: Duration = Duration::from_millis(20);
/// The pause between two lists is at least this long for each session in the first one.
const PAUSE_BY_ID: Duration = Duration::from_micros(20);
/// The gateway answers within 30 s. A connection that is silent for longer than this is lost.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(45);
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a worker that stops waits for answers that were on their way.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);
/// If an open poll is not refused within this time, or twice this time, the gateway accepts the
/// worker.
const WELL_AFTER: Duration = Duration::from_millis(500);
/// Most polls of a connection that wait for their answers: the open one, and one that it has
/// replaced.
const UNANSWERED: usize = 2;
/// Pauses after failures double from the first to the last of these. A random time between half and
/// all of the pause is waited.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(5);
/// Most bytes that are read at once.
const READ: usize = 4 * 1024;

/// Why a connection for polls ended.
#[derive(Debug)]
pub(super) enum PollFault {
    Io(io::Error),
    PollResponse(AnswerFault),
    /// Work that cannot be read.
    Work(serde_json::Error),
    /// A status that is neither 200 nor 204, and the text.
    Refused(u16, String),
    /// More answers than polls.
    Unasked,
}

impl fmt::Display for PollFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                f.write_str("the gateway closed the connection")
            }
            Self::Io(error) => write!(f, "{error}"),
            Self::PollResponse(fault) => write!(f, "{fault}"),
            Self::Work(error) => write!(f, "the work cannot be read: {error}"),
            Self::Refused(status, text) => write!(f, "the poll was answered {status}: {text}"),
            Self::Unasked => f.write_str("an answer without a poll"),
        }
    }
}

impl From<io::Error> for PollFault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// What a connection asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asks {
    /// New sessions. The connections for them are numbered.
    Sessions(usize),
    /// More tunnels for the sessions held.
    Reconnects,
}

impl Asks {
    /// Whether there is something to ask for.
    fn is_due(self, worker: &Worker, gateway: &Gateway) -> bool {
        match self {
            Self::Sessions(number) => {
                number < gateway.width.get() && worker.free() > gateway.promised()
            }
            Self::Reconnects => worker.holds_any(gateway),
        }
    }
}

/// Polls `gateway` until the worker stops.
pub(super) fn start(worker: &Rc<Worker>, gateway: &Rc<Gateway>) {
    monoio::spawn(tell_that_it_polls(worker.clone(), gateway.clone()));
    let sessions = (0..worker.options.slots.min(MAX_WIDTH)).map(Asks::Sessions);
    for asks in sessions.chain([Asks::Reconnects]) {
        gateway.polling.set(gateway.polling.get() + 1);
        monoio::spawn(poll(worker.clone(), gateway.clone(), asks));
    }
}

/// Logs once that the gateway lets polls wait, and so knows the key, the function and the version.
/// A gateway that does not know them answers at once.
async fn tell_that_it_polls(worker: Rc<Worker>, gateway: Rc<Gateway>) {
    let waits = || gateway.promised() > 0 && !gateway.failed.get();
    let mut waited = false;
    while !worker.stopping() {
        let _ = timeout(WELL_AFTER, worker.stop.asked()).await;
        if waited && waits() {
            tracing::info!(
                gateway = gateway.endpoint.authority,
                "polling: the gateway knows this worker's function and key"
            );
            manager::ready(&worker.status());
            return;
        }
        waited = waits();
    }
}

/// Which port of a gateway has given this answer, if it is not the port for workers.
fn other_port(status: u16, text: &str) -> Option<&'static str> {
    match status {
        400 if text.contains("no function-id was passed") => Some("client"),
        401 if text.contains("no authorization was passed") => Some("client"),
        404 | 405 if text.starts_with("GET /metrics") => Some("admin"),
        _ => None,
    }
}

/// Polls on one connection after the other, whenever there is something to ask for.
async fn poll(worker: Rc<Worker>, gateway: Rc<Gateway>, asks: Asks) {
    let name = &gateway.endpoint.authority;
    let mut failures = 0;
    while !worker.stopping() {
        if !asks.is_due(&worker, &gateway) {
            let seen = Seen::now(&worker);
            seen.change(&worker, asks).await;
            continue;
        }
        let fault = match Line::work(&worker, &gateway, asks, &mut failures).await {
            // The gateway closes the connection behind each answer.
            Ok(After::Work) => continue,
            Ok(After::Nothing) => {
                let _ = timeout(PAUSE, worker.stop.asked()).await;
                continue;
            }
            Err(fault) => fault,
        };
        if let PollFault::Refused(status, text) = &fault
            && let Some(port) = other_port(*status, text)
        {
            if !worker.stopping() {
                tracing::error!(
                    gateway = name,
                    "this is the gateway's {port} port, and workers have one of their own: give \
                     --gateway its address (worker=... in the gateway's ready line; 10086 if \
                     nothing else is configured)"
                );
                worker.give_up();
            }
            break;
        }
        if let PollFault::Refused(401 | 403, text) = &fault {
            if !worker.stopping() {
                tracing::error!(
                    gateway = name,
                    answer = text,
                    "the gateway refuses this worker's key: give it one of worker_keys of that \
                     function and version (--key-file)"
                );
                worker.give_up();
            }
            break;
        }
        failures += 1;
        if failures == 1 && !gateway.failed.replace(true) {
            tracing::warn!(
                gateway = name,
                error = %fault,
                "polling failed; trying again: --gateway must be the gateway's worker port"
            );
            manager::ready(&worker.status());
        } else {
            tracing::debug!(gateway = name, error = %fault, failures, "polling failed again");
        }
        // The pause ends early if the worker is to stop.
        let _ = timeout(pause_after(failures, random()), worker.stop.asked()).await;
    }
    gateway.polling.set(gateway.polling.get() - 1);
    worker.changed.ring();
}

/// How often the bells had rung at one moment, so that no later ring is missed.
#[derive(Clone, Copy)]
struct Seen {
    changed: u64,
    freed: u64,
}

impl Seen {
    fn now(worker: &Worker) -> Self {
        Self { changed: worker.changed.rings(), freed: worker.freed.rings() }
    }

    /// Waits for a change that can make a poll due if none is open.
    async fn change(self, worker: &Worker, asks: Asks) {
        monoio::select! {
            () = async {
                match asks {
                    Asks::Sessions(_) => worker.freed.after(self.freed).await,
                    Asks::Reconnects => worker.changed.after(self.changed).await,
                }
            } => {}
            () = worker.stop.asked() => {}
        }
    }
}

/// The pause after so many failures in a row, between half and all of what doubling gives.
fn pause_after(failures: u32, random: u32) -> Duration {
    let doubled = FIRST_PAUSE * 2_u32.saturating_pow(failures.saturating_sub(1).min(16));
    let half = doubled.min(LAST_PAUSE) / 2;
    half + half.mul_f64(f64::from(random) / f64::from(u32::MAX))
}

fn random() -> u32 {
    // Without randomness the workers of a fleet come back at the same moment. That is no fault.
    getrandom::u32().unwrap_or(u32::MAX)
}

/// What a poll said, as far as it matters for the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Said {
    slots: usize,
    /// The state of the list of sessions.
    list: u64,
    /// The poll offered slots, and a newer poll without slots has taken its place. So it is
    /// answered soon.
    recalled: bool,
}

impl Said {
    /// Whether an answer without work, after so long, shows that there is less to do than before.
    /// That is so if the poll waited its time. A poll without a slot could not bring a session, so
    /// its answer shows nothing.
    fn found_too_little(self, waited: Duration) -> bool {
        self.slots > 0 && waited >= QUICK
    }
}

/// How a connection for polls ended, if it did not fail.
enum After {
    /// It ended after an answer with work.
    Work,
    /// It ended otherwise.
    Nothing,
}

type Reading =
    Pin<Box<dyn Future<Output = (io::Result<usize>, OwnedReadHalf<TcpStream>, Vec<u8>)>>>;

/// A connection for polls. Answers come in the order of the polls.
struct Line<'a> {
    worker: &'a Rc<Worker>,
    gateway: &'a Rc<Gateway>,
    asks: Asks,
    writer: OwnedWriteHalf<TcpStream>,
    /// The read under way. It lives as long as the connection, because dropping it would lose
    /// bytes.
    reading: Reading,
    unanswered: VecDeque<Said>,
    sent_at: Instant,
    /// No poll is sent before this time.
    rests_until: Instant,
    /// The gateway has closed the connection, or will close it after its last answer.
    last: bool,
    /// The last answer brought work.
    worked: bool,
}

impl<'a> Line<'a> {
    /// Polls on one connection. `Ok` once the worker stops, or once the connection is closed or not
    /// needed any more.
    async fn work(
        worker: &'a Rc<Worker>,
        gateway: &'a Rc<Gateway>,
        asks: Asks,
        failures: &mut u32,
    ) -> Result<After, PollFault> {
        let stream = net::dial(&gateway.endpoint).await?;
        let (reader, writer) = stream.into_split();
        let now = Instant::now();
        let mut line = Self {
            worker,
            gateway,
            asks,
            writer,
            reading: Box::pin(read(reader, Vec::new())),
            unanswered: VecDeque::new(),
            sent_at: now,
            rests_until: now,
            last: false,
            worked: false,
        };
        line.ask_if_due().await?;
        while !worker.stopping() {
            if line.wait().await? {
                *failures = 0;
                if gateway.failed.replace(false) {
                    tracing::info!(gateway = gateway.endpoint.authority, "polling again");
                }
            }
            if line.last || line.is_spare() {
                return Ok(if line.worked { After::Work } else { After::Nothing });
            }
            line.ask_if_due().await?;
        }
        line.leave().await.map(|()| After::Nothing)
    }

    /// Whether fewer connections would do.
    fn is_spare(&self) -> bool {
        let beyond = match self.asks {
            Asks::Sessions(number) => number >= self.gateway.width.get(),
            Asks::Reconnects => false,
        };
        beyond && self.unanswered.is_empty()
    }

    /// Waits for answers, for a change, or for the time of the next poll. True if an answer came.
    async fn wait(&mut self) -> Result<bool, PollFault> {
        let seen = Seen::now(self.worker);
        if self.worker.stopping() {
            return Ok(false);
        }
        let until = if self.wants_to_ask().is_some() {
            self.rests_until.saturating_duration_since(Instant::now())
        } else {
            ANSWER_TIMEOUT.saturating_sub(self.sent_at.elapsed())
        };
        let (worker, asks, waits) = (self.worker, self.asks, !self.unanswered.is_empty());
        // An open poll for a session stays right whatever changes. Only with several gateways
        // another one's session can take its slot.
        let settled = waits && asks != Asks::Reconnects && worker.gateways.len() == 1;
        monoio::select! {
            read = &mut self.reading => self.received(read),
            () = async {
                match asks {
                    _ if settled => worker.stop.asked().await,
                    Asks::Sessions(_) if waits => {
                        worker.changed.after(seen.changed).await;
                    }
                    _ => seen.change(worker, asks).await,
                }
            } => Ok(false),
            () = worker.stop.asked() => Ok(false),
            () = sleep(until), if waits || self.rests() => self.is_silent().map(|()| false),
        }
    }

    /// Takes what was read, and reads on. True if an answer came.
    fn received(
        &mut self,
        (count, reader, mut bytes): (io::Result<usize>, OwnedReadHalf<TcpStream>, Vec<u8>),
    ) -> Result<bool, PollFault> {
        if count? == 0 {
            if self.unanswered.is_empty() {
                // The gateway has closed a connection on which no poll was open.
                self.last = true;
                return Ok(false);
            }
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let mut answered = false;
        while let Some(answer) = PollResponse::take(&mut bytes).map_err(PollFault::PollResponse)? {
            let said = self.unanswered.pop_front().ok_or(PollFault::Unasked)?;
            self.gateway.answered(said.slots > 0, said.recalled);
            self.last |= answer.last;
            self.worked = answer.status == 200;
            answered = true;
            match answer.status {
                204 => self.brought_nothing(said),
                200 => {
                    let work = serde_json::from_slice(&answer.body).map_err(PollFault::Work)?;
                    self.brought_work();
                    self.worker.clone().take(self.gateway, work);
                }
                status => return Err(PollFault::Refused(status, readable(&answer.body))),
            }
        }
        self.reading = Box::pin(read(reader, bytes));
        Ok(answered)
    }

    fn brought_work(&mut self) {
        self.rests_until = Instant::now();
        let quick = self.asks != Asks::Reconnects && self.sent_at.elapsed() < QUICK;
        if quick && self.gateway.widen(self.worker.options.slots) {
            self.worker.freed.ring();
        }
    }

    fn brought_nothing(&self, said: Said) {
        if said.found_too_little(self.sent_at.elapsed()) && self.unanswered.is_empty() {
            self.gateway.narrow();
        }
    }

    /// The slots that a poll sent now should offer. `None` if no new poll is needed, because the
    /// open one still says how things are. Only whether the number is zero matters: an answer
    /// brings one session, whatever the number is.
    fn wants_to_ask(&self) -> Option<usize> {
        if self.unanswered.len() >= UNANSWERED {
            return None;
        }
        let open = self.unanswered.back();
        if self.asks == Asks::Reconnects {
            let list = self.gateway.list.get();
            let due = match open {
                Some(said) => said.list != list,
                None => self.worker.holds_any(self.gateway),
            };
            return due.then_some(0);
        }
        let (free, promised) = (self.worker.free(), self.gateway.promised());
        match open {
            Some(said) if said.slots > 0 => (free < promised).then_some(0),
            _ if self.asks.is_due(self.worker, self.gateway) => Some(free - promised),
            _ => None,
        }
    }

    /// Sends a poll if it is time for one.
    async fn ask_if_due(&mut self) -> Result<(), PollFault> {
        let Some(slots) = self.wants_to_ask().filter(|_| !self.rests()) else { return Ok(()) };
        if self.worker.stopping() {
            return Ok(());
        }
        let ids = match self.asks {
            Asks::Sessions(_) => Vec::new(),
            Asks::Reconnects => self.worker.held(self.gateway),
        };
        self.say(slots, &ids).await
    }

    fn rests(&self) -> bool {
        Instant::now() < self.rests_until
    }

    /// Fails if the open poll has waited longer than the gateway may let it.
    fn is_silent(&self) -> Result<(), PollFault> {
        if !self.unanswered.is_empty() && self.sent_at.elapsed() >= ANSWER_TIMEOUT {
            return Err(io::Error::from(io::ErrorKind::TimedOut).into());
        }
        Ok(())
    }

    async fn say(&mut self, slots: usize, ids: &[Uuid]) -> Result<(), PollFault> {
        if let Some(open) = self.unanswered.back_mut().filter(|said| slots == 0 && said.slots > 0) {
            open.recalled = true;
            self.gateway.recall();
        }
        let list = self.gateway.list.get();
        self.unanswered.push_back(Said { slots, list, recalled: false });
        self.gateway.promise(slots > 0);
        self.sent_at = Instant::now();
        let pause = match self.asks {
            Asks::Sessions(_) => PAUSE,
            Asks::Reconnects => LIST_PAUSE.max(PAUSE_BY_ID * ids.len() as u32),
        };
        self.rests_until = self.sent_at + pause;
        let request = request(self.worker, self.gateway, slots, ids);
        let written = timeout(WRITE_TIMEOUT, self.writer.write_all(request.into_bytes())).await;
        written.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?.0?;
        Ok(())
    }

    /// Takes the open poll back. Work that was already on its way is done.
    async fn leave(mut self) -> Result<(), PollFault> {
        if self.unanswered.iter().all(|said| said.slots == 0) {
            return Ok(());
        }
        self.say(0, &[]).await?;
        let answers = async {
            while self.unanswered.len() > 1 {
                let read = (&mut self.reading).await;
                self.received(read)?;
            }
            Ok(())
        };
        timeout(LEAVE_TIMEOUT, answers).await.unwrap_or(Ok(()))
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        for said in self.unanswered.drain(..) {
            self.gateway.answered(said.slots > 0, said.recalled);
        }
        // The slot that it promised is free for another connection's poll.
        self.worker.freed.ring();
    }
}

/// Reads more bytes behind those that `bytes` has.
async fn read(
    mut reader: OwnedReadHalf<TcpStream>,
    mut bytes: Vec<u8>,
) -> (io::Result<usize>, OwnedReadHalf<TcpStream>, Vec<u8>) {
    bytes.reserve(READ);
    let (from, to) = (bytes.len(), bytes.capacity());
    let (read, slice) = reader.read(bytes.slice_mut(from..to)).await;
    (read, reader, slice.into_inner())
}

fn request(worker: &Worker, gateway: &Gateway, slots: usize, ids: &[Uuid]) -> String {
    let poll = Poll {
        function_id: worker.options.function,
        function_version_id: worker.options.version,
        slots,
        request_ids: ids,
    };
    SENDER.poll(&gateway.endpoint, &worker.options.key, &poll)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_five_seconds_and_differ() {
        let most: Vec<u128> =
            (1..=9).map(|failures| pause_after(failures, u32::MAX).as_millis()).collect();
        assert_eq!(most, [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(pause_after(1, 0).as_millis(), 25);
        assert_eq!(pause_after(u32::MAX, 0).as_millis(), 2500);
        assert!(pause_after(3, 1 << 31) > pause_after(3, 1 << 30));
    }

    #[test]
    fn a_gateways_other_ports_are_known_by_what_they_say() {
        let client = "no function-id was passed in the metadata";
        assert_eq!(other_port(400, client), Some("client"));
        assert_eq!(other_port(404, "GET /metrics /health"), Some("admin"));
        assert_eq!(other_port(403, "the key is not for this function"), None);
        assert_eq!(other_port(400, "invalid type"), None);
    }

    #[test]
    fn only_a_poll_with_a_slot_tells_that_there_is_less_to_do() {
        let said = |slots| Said { slots, list: 0, recalled: false };
        assert!(said(1).found_too_little(QUICK));
        assert!(!said(1).found_too_little(QUICK / 2));
        // The reconnects' poll waits its whole time whenever no tunnel is missing.
        assert!(!said(0).found_too_little(ANSWER_TIMEOUT));
    }
}
