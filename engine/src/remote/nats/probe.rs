//! Looks at the NATS servers for `ringway doctor`: the connection to each, what the account may, and
//! what lies in JetStream. What is published is refused by every stream.

mod account;
mod asked;
mod cluster;
mod streams;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::super::finding::Finding;
use super::connect::{self, Listener, News};
use super::fixes::{Login, fix};
use super::link::{Link, State};
use super::{Meters, Secrets, Versions};
use crate::config::{Nats as Settings, Remote};
use asked::Heard;
pub(crate) use cluster::{Own, greet};

/// How long one server may take to let the gateway in; an attempt gives up by itself earlier.
const CONNECT_LIMIT: Duration = Duration::from_secs(16);

/// From this part of a limit on it is reported.
const FULL_PERCENT: u64 = 80;

fn is_full(used: u64, most: u64) -> bool {
    used.saturating_mul(100) >= most.saturating_mul(FULL_PERCENT)
}

/// What all parts of the look need.
struct Look<'a> {
    link: &'a Link,
    heard: &'a Heard,
    region: &'a str,
    placement: &'a str,
    /// Versions whose streams this gateway makes; none where NVIDIA's control plane does.
    versions: Option<&'a [Arc<str>]>,
    own: &'a Own,
}

/// Looks at each server, and through the first one that lets the gateway in at the rest.
pub(in crate::remote) async fn examine(
    settings: &Remote,
    secrets: &Secrets,
    (versions, own): (&Versions, &Own),
    found: &mut Vec<Finding>,
) {
    let mut first = None;
    let mut down = Vec::new();
    for url in &settings.nats.urls {
        let alone = Settings { urls: vec![url.clone()], ..settings.nats.clone() };
        match server(&alone, secrets).await {
            Ok((link, heard, fine)) => {
                found.push(fine);
                match first {
                    None => first = Some((link, heard)),
                    Some(_) => close(&link).await,
                }
            }
            Err(broken) => down.push(broken),
        }
    }
    let Some((link, heard)) = first else { return found.extend(down) };
    // The others do it, as long as they do.
    found.extend(
        down.into_iter().map(|Finding { what, seen, fix, .. }| Finding::poor(&what, seen, fix)),
    );
    let look = Look {
        link: &link,
        heard: &heard,
        region: &settings.region,
        placement: &settings.nats.placement,
        versions: settings.authority.is_none().then_some(versions),
        own,
    };
    if account::examine(&look, found).await {
        account::subjects(&look, found).await;
        streams::examine(&look, found).await;
        cluster::examine(&look, found).await;
    }
    close(&link).await;
}

async fn close(link: &Link) {
    // The connection ends with the process at the latest.
    let _closed = timeout(Duration::from_secs(1), link.client.drain()).await;
}

/// Connects to one server, as a gateway would.
async fn server(settings: &Settings, secrets: &Secrets) -> Result<(Link, Heard, Finding), Finding> {
    const NAME: &str = "nats";
    let url = settings.urls.first().map_or("", String::as_str);
    // What stands before the `@` is secret.
    let shown = url.rsplit(['@', '/']).next().unwrap_or_default().to_owned();
    let login = Login::of(settings, secrets.nkey.is_some());
    let heard = Heard::default();
    let told = heard.clone();
    let listener = Listener(Box::new(move |news| {
        if let News::Error(text) = news {
            told.note(text);
        }
    }));
    let (began, meters) = (Instant::now(), Arc::new(Meters::default()));
    let link = connect::connect(settings, secrets.clone(), meters, listener).await;
    let link = link.map_err(|error| {
        Finding::broken(NAME, format!("{shown}: {error}"), "correct what the line names")
    })?;
    let mut state = link.state.clone();
    let tried = state.wait_for(|state| match state {
        State::Up { .. } => true,
        State::Down { why, .. } => &**why != connect::NOT_YET,
    });
    let why = match timeout(CONNECT_LIMIT, tried).await {
        Ok(Ok(state)) => match &*state {
            State::Up { .. } => None,
            State::Down { why, .. } => Some(why.to_string()),
        },
        _ => Some(format!("timed out: nothing came of it within {} s", CONNECT_LIMIT.as_secs())),
    };
    if let Some(why) = why {
        return Err(Finding::broken(NAME, format!("{shown}: {why}"), fix(&why, login)));
    }
    let took = began.elapsed().as_millis();
    let info = link.client.server_info();
    let tls = if info.tls_required || url.starts_with("tls") { "with TLS" } else { "without TLS" };
    let (name, version) = (&info.server_name, &info.version);
    let seen = format!("{shown} is {name}, nats-server {version}, {tls}, there in {took} ms");
    Ok((link, heard, Finding::fine(NAME, seen)))
}
