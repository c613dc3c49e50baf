//! Asking one gateway for work: HTTP/1.1 on one kept connection, one poll open all the time.
//!
//! When the sessions held change, the poll is sent anew on the same connection and takes the
//! place of the one that waits, which is answered with nothing: so a read is never given up, and
//! no work is lost between two polls.

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
use uuid::Uuid;

use super::answer::{Answer, AnswerFault, readable};
use super::work::Poll;
use super::{Gateway, Worker, net};

/// Least time between two polls that no work has come between: lists of sessions are long, and
/// a gateway that does not let polls wait is not asked in a tight loop.
const PAUSE: Duration = Duration::from_millis(5);
/// The gateway answers within 30 s; a connection that is silent for longer is lost.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(45);
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a worker that stops waits for answers that were on their way.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);
/// Polls whose answers are still to come: the open one, and one that it has replaced.
const UNANSWERED: usize = 2;
/// Pauses after failures double between these; what is waited is a random part of the upper half.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(5);
/// Read at once.
const READ: usize = 4 * 1024;

/// Why a connection for polls ended.
#[derive(Debug)]
pub(super) enum PollFault {
    Io(io::Error),
    Answer(AnswerFault),
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
            Self::Answer(fault) => write!(f, "{fault}"),
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

/// Polls `gateway` until the worker stops.
pub(super) async fn poll(worker: Rc<Worker>, gateway: Rc<Gateway>) {
    let name = &gateway.place.authority;
    let mut failures = 0;
    while !worker.stopping() {
        let Err(fault) = Line::work(&worker, &gateway, &mut failures).await else {
            // It stops, or the gateway has closed the connection in good order.
            if !worker.stopping() {
                sleep(FIRST_PAUSE).await;
            }
            continue;
        };
        if let PollFault::Refused(401 | 403, text) = &fault {
            tracing::error!(gateway = name, answer = text, "the gateway refuses this worker's key");
            worker.give_up();
            break;
        }
        failures += 1;
        if failures == 1 {
            tracing::warn!(gateway = name, error = %fault, "polling failed; trying again");
        } else {
            tracing::debug!(gateway = name, error = %fault, failures, "polling failed again");
        }
        let rings = worker.stop.rings();
        if !worker.stopping() {
            // An early end of the pause is what it is for.
            let _ = timeout(pause_after(failures, random()), worker.stop.after(rings)).await;
        }
    }
    gateway.left.set(true);
    worker.changed.ring();
}

/// The pause after so many failures in a row: from half of it to all of it.
fn pause_after(failures: u32, random: u32) -> Duration {
    let doubled = FIRST_PAUSE * 2_u32.saturating_pow(failures.saturating_sub(1).min(16));
    let half = doubled.min(LAST_PAUSE) / 2;
    half + half.mul_f64(f64::from(random) / f64::from(u32::MAX))
}

fn random() -> u32 {
    // Without randomness the workers of a fleet come back at the same moment, which is no fault.
    getrandom::u32().unwrap_or(u32::MAX)
}

/// What a poll said, as far as it decides whether the next one is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Said {
    slots: usize,
    /// The state of the list of sessions.
    list: u64,
}

type Reading =
    Pin<Box<dyn Future<Output = (io::Result<usize>, OwnedReadHalf<TcpStream>, Vec<u8>)>>>;

/// A connection for polls. Answers come in the order of the polls.
struct Line<'a> {
    worker: &'a Rc<Worker>,
    gateway: &'a Rc<Gateway>,
    writer: OwnedWriteHalf<TcpStream>,
    /// The read under way: it lives as long as the connection, since dropping it loses bytes.
    reading: Reading,
    unanswered: VecDeque<Said>,
    sent_at: Instant,
    /// The gateway closes the connection behind its last answer.
    last: bool,
}

impl<'a> Line<'a> {
    /// Polls on one connection; `Ok` once the worker stops.
    async fn work(
        worker: &'a Rc<Worker>,
        gateway: &'a Rc<Gateway>,
        failures: &mut u32,
    ) -> Result<(), PollFault> {
        let stream = net::dial(&gateway.place).await?;
        let (reader, writer) = stream.into_split();
        let mut line = Self {
            worker,
            gateway,
            writer,
            reading: Box::pin(read(reader, Vec::new())),
            unanswered: VecDeque::new(),
            sent_at: Instant::now(),
            last: false,
        };
        line.ask().await?;
        while !worker.stopping() {
            if line.wait().await? {
                if std::mem::take(failures) > 0 {
                    tracing::info!(gateway = gateway.place.authority, "polling again");
                }
                if line.last {
                    return Ok(());
                }
            }
            if line.is_due() {
                line.ask().await?;
            }
        }
        line.leave().await
    }

    /// Waits for answers, for a change, or for the time of the next poll; whether an answer came.
    async fn wait(&mut self) -> Result<bool, PollFault> {
        let (changed, stop) = (self.worker.changed.rings(), self.worker.stop.rings());
        if self.worker.stopping() {
            return Ok(false);
        }
        let due = self.wants_to_ask() && self.unanswered.len() < UNANSWERED;
        let until = if due { PAUSE } else { ANSWER_TIMEOUT }.saturating_sub(self.sent_at.elapsed());
        monoio::select! {
            read = &mut self.reading => {
                self.received(read)?;
                Ok(true)
            }
            () = self.worker.changed.after(changed) => Ok(false),
            () = self.worker.stop.after(stop) => Ok(false),
            () = sleep(until) => {
                if self.sent_at.elapsed() >= ANSWER_TIMEOUT {
                    return Err(io::Error::from(io::ErrorKind::TimedOut).into());
                }
                Ok(false)
            }
        }
    }

    /// Takes what was read and reads on.
    fn received(
        &mut self,
        (count, reader, mut bytes): (io::Result<usize>, OwnedReadHalf<TcpStream>, Vec<u8>),
    ) -> Result<(), PollFault> {
        if count? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        while let Some(answer) = Answer::take(&mut bytes).map_err(PollFault::Answer)? {
            self.unanswered.pop_front().ok_or(PollFault::Unasked)?;
            self.last |= answer.last;
            match answer.status {
                204 => {}
                200 => {
                    let work = serde_json::from_slice(&answer.body).map_err(PollFault::Work)?;
                    self.worker.clone().take(self.gateway, work);
                }
                status => return Err(PollFault::Refused(status, readable(&answer.body))),
            }
        }
        self.reading = Box::pin(read(reader, bytes));
        Ok(())
    }

    /// Whether the open poll no longer says how things are. Its number of slots only has to be
    /// right about "none": an answer brings one session, whatever the number.
    fn wants_to_ask(&self) -> bool {
        let now = Said { slots: self.worker.free(), list: self.gateway.list.get() };
        self.unanswered
            .back()
            .is_none_or(|said| said.list != now.list || (said.slots == 0) != (now.slots == 0))
    }

    fn is_due(&self) -> bool {
        let rested = self.sent_at.elapsed() >= PAUSE && !self.worker.stopping();
        rested && self.unanswered.len() < UNANSWERED && self.wants_to_ask()
    }

    /// Sends a poll.
    async fn ask(&mut self) -> Result<(), PollFault> {
        // An older poll may be answered with a session before it is replaced.
        let promised = self.unanswered.iter().filter(|said| said.slots > 0).count();
        let slots = self.worker.free().saturating_sub(promised);
        let list = self.gateway.list.get();
        let ids = self.worker.held(self.gateway);
        self.say(Said { slots, list }, &ids).await
    }

    async fn say(&mut self, said: Said, ids: &[Uuid]) -> Result<(), PollFault> {
        let request = request(self.worker, self.gateway, said.slots, ids);
        self.unanswered.push_back(said);
        self.sent_at = Instant::now();
        let written = timeout(WRITE_TIMEOUT, self.writer.write_all(request.into_bytes())).await;
        written.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?.0?;
        Ok(())
    }

    /// Takes the open poll back. Work that was already on its way is done.
    async fn leave(mut self) -> Result<(), PollFault> {
        if self.unanswered.iter().all(|said| said.slots == 0) {
            return Ok(());
        }
        self.say(Said { slots: 0, list: 0 }, &[]).await?;
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

/// Reads behind what `bytes` holds.
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
    let body = serde_json::to_string(&poll).expect("ids and numbers are JSON");
    format!(
        "POST {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: ringway-worker/{}\r\n\
         Authorization: Bearer {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         \r\n{body}",
        gateway.work_path,
        gateway.place.authority,
        env!("CARGO_PKG_VERSION"),
        worker.options.key.reveal().unwrap_or_default(),
        body.len(),
    )
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
}
