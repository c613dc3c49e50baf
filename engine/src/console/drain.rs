//! `ringway drain`: has a running gateway leave, and shows what it waits for.

use std::time::Duration;

use axum::http::{Method, StatusCode};
use clap::Args;
use ringway_stdio::Trouble;
use tokio::time::{Instant, sleep};

use super::port::Port;
use super::{Admin, blocking};
use crate::admin::DrainReport;

/// Time between two looks.
const LOOK: Duration = Duration::from_millis(250);
/// What is left is said again after so long, although it is the same.
const SAY_AGAIN: Duration = Duration::from_secs(5);
/// How much longer a gateway may take than it has said: for a core that does not end, and to leave
/// NATS.
const SLACK: Duration = Duration::from_secs(15);
/// How long it may take until a drain that was asked for has begun.
const BEGINS_WITHIN: Duration = Duration::from_secs(5);

/// `ringway drain`.
#[derive(Debug, Args)]
pub struct Drain {
    #[command(flatten)]
    admin: Admin,
    /// Show what the drain waits for until the gateway has ended; exit code 1 if streams were cut
    /// off at the limit.
    #[arg(long)]
    wait: bool,
}

/// Runs `ringway drain`.
///
/// # Errors
/// When the admin port does not answer or refuses, and when streams did not end in time.
pub fn drain(arguments: &Drain) -> Result<(), Trouble> {
    let port = Port::new(&arguments.admin.admin);
    blocking(async {
        begin(&port).await?;
        let told = begun(&port).await?;
        if arguments.wait {
            return wait(&port, told).await;
        }
        let most = whole_seconds(told.at_most_ms.unwrap_or_default());
        let text = format!("gateway {} drains, for {most} s at most\n", told.node);
        ringway_stdio::print(&text).map_err(ringway_cli::unprinted)
    })?
}

/// Asks for it.
async fn begin(port: &Port) -> Result<(), Trouble> {
    // This tells apart a gateway that refuses and another server.
    port.json("/info").await?;
    let (status, said) = port.call(Method::POST, "/drain").await?;
    match status {
        StatusCode::ACCEPTED => Ok(()),
        StatusCode::FORBIDDEN => Err(Trouble::new(
            format!("{} does not drain", port.address()),
            format!("that is refused ({status})"),
            said.trim(),
        )),
        _ => Err(port.is_none(&format!("POST /drain is answered with {status}"))),
    }
}

/// Waits until it has begun, which it does at once.
async fn begun(port: &Port) -> Result<DrainReport, Trouble> {
    let asked = Instant::now();
    loop {
        let told = look(port).await?;
        if told.draining {
            return Ok(told);
        }
        if asked.elapsed() > BEGINS_WITHIN {
            return Err(Trouble::new(
                format!("{} does not drain", port.address()),
                format!("it was asked, and has not begun within {} s", BEGINS_WITHIN.as_secs()),
                "send its process SIGTERM, and see its log",
            ));
        }
        sleep(LOOK).await;
    }
}

async fn look(port: &Port) -> Result<DrainReport, Trouble> {
    let told = port.json("/drain").await?;
    port.read(told)
}

/// Shows what is left until nothing is.
async fn wait(port: &Port, first: DrainReport) -> Result<(), Trouble> {
    let began = Instant::now();
    let until = |told: &DrainReport| {
        Instant::now() + Duration::from_millis(told.at_most_ms.unwrap_or_default())
    };
    let (mut last, mut limit) = (first.clone(), until(&first));
    let mut said: Option<(String, Instant)> = None;
    loop {
        let what = what_is_left(&last);
        let due = said.as_ref().is_none_or(|(text, at)| *text != what || at.elapsed() >= SAY_AGAIN);
        if due {
            let most = whole_seconds(last.at_most_ms.unwrap_or_default());
            let text = format!("gateway {}: {what}; {most} s more at most\n", last.node);
            ringway_stdio::print(&text).map_err(ringway_cli::unprinted)?;
            said = Some((what, Instant::now()));
        }
        sleep(LOOK).await;
        match look(port).await {
            // Another process may have its port by now.
            Ok(told) if told.draining && told.node == first.node => {
                limit = until(&told);
                last = told;
            }
            Ok(_) => break,
            Err(_) if !port.is_open().await => break,
            // The gateway is busy.
            Err(_) => {}
        }
        if Instant::now() > limit + SLACK {
            return Err(Trouble::new(
                format!("gateway {} has not ended", last.node),
                format!("its drain was to be over {} s ago", SLACK.as_secs()),
                "end it by a second SIGTERM, or by SIGKILL",
            ));
        }
    }
    over(&last, limit, began)
}

/// What the end means.
fn over(last: &DrainReport, limit: Instant, began: Instant) -> Result<(), Trouble> {
    let DrainReport { node, streams, sessions, .. } = last;
    if *streams > 0 && Instant::now() + LOOK >= limit {
        return Err(Trouble::new(
            format!("gateway {node} has ended at its limit"),
            format!("it cut off {streams} streams of {sessions} sessions"),
            "drain.max is shorter than what they take: raise it",
        ));
    }
    let took = began.elapsed().as_secs_f64();
    ringway_stdio::print(&format!("gateway {node} has ended, after {took:.1} s\n"))
        .map_err(ringway_cli::unprinted)
}

/// What a drain waits for, and why.
fn what_is_left(told: &DrainReport) -> String {
    if told.open_ms > 0 {
        let open = whole_seconds(told.open_ms);
        return format!("takes new clients for {open} s more, until balancers have noticed");
    }
    let mut parts = Vec::new();
    if told.streams > 0 {
        let of = count(told.sessions, "session");
        parts.push(format!("{} of {of} (may come to their end)", count(told.streams, "stream")));
    }
    if told.clients > 0 {
        parts.push(format!("{} (told to leave)", count(told.clients, "client connection")));
    }
    if told.relays > 0 {
        let text = count(told.relays, "relay");
        parts.push(format!("{text} (their owners have them replaced)"));
    }
    match parts.is_empty() {
        true => "nothing is left, it ends".into(),
        false => format!("waits for {}", parts.join(", ")),
    }
}

fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// Rounded up: 0 is only said when it is over.
fn whole_seconds(ms: u64) -> u64 {
    ms.div_ceil(1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told() -> DrainReport {
        DrainReport {
            draining: true,
            node: "012-00ab".into(),
            open_ms: 0,
            at_most_ms: Some(1),
            clients: 0,
            sessions: 1,
            streams: 0,
            relays: 0,
        }
    }

    #[test]
    fn what_is_left_has_its_reason() {
        let opens = DrainReport { open_ms: 1500, streams: 7, ..told() };
        assert!(what_is_left(&opens).contains("for 2 s more"), "{opens:?}");
        let some = DrainReport { streams: 2, clients: 1, relays: 3, ..told() };
        let text = what_is_left(&some);
        for part in ["2 streams of 1 session (", "1 client connection (", "3 relays ("] {
            assert!(text.contains(part), "{text}");
        }
        assert!(what_is_left(&told()).contains("nothing is left"));
    }

    #[tokio::test]
    async fn an_end_at_the_limit_with_open_streams_is_a_failure() {
        let now = Instant::now();
        let open = DrainReport { streams: 2, ..told() };
        assert!(over(&open, now, now).is_err());
        assert!(over(&open, now + 2 * LOOK, now).is_ok(), "they ended before it");
        assert!(over(&told(), now, now).is_ok());
    }
}
