//! From the tree to typed values, and what single values cannot show: contradictions.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::node::{Node, Value};
use super::problems::{Problems, nearest};
use super::read::Section;
use super::settings::{SETTINGS, tables};
use super::syntax::Syntax;
use super::units;
use super::{
    Admin, BusyPoll, Config, Control, Cores, Drain, Fronts, HonourId, Io, Keepalive, Limits,
    Listen, Log, MAX_CORES, Mode, Park, Scope, Session, listen, parties,
};

/// Questions to the control plane that may wait, on one core: of all, and of one tenant.
const ASKS: usize = 4096;
const ASKS_PER_TENANT: usize = 1024;

/// Reads everything; what is wrong is reported and replaced by its default. `None` if the text
/// cannot be read: what follows from that would only hide it.
pub(super) fn read(text: &str, folder: &Path, problems: &mut Problems) -> Option<Config> {
    let root = match problems.syntax() {
        Syntax::Toml => Some(Node::from_toml(text, problems)).filter(|_| problems.is_empty()),
        Syntax::Yaml => Node::from_yaml(text, problems),
    }?;
    check_tables(&root, problems);
    let mut warnings = Vec::new();
    let (listen, fronts) = listen::read(&root, folder, &mut warnings, problems);
    let (tenants, functions) = parties::read(&root, folder, problems);
    Some(Config {
        cores: cores(&root, problems),
        control: control(&root, &listen, &fronts, problems),
        session: session(&root, problems),
        drain: drain(&root, problems),
        limits: limits(&root, problems),
        keepalive: keepalive(&root, problems),
        admin: Admin {
            allow_remote: Section::of(&root, "admin", problems).flag("allow_remote", problems),
        },
        log: log(&root, problems),
        listen,
        fronts,
        tenants,
        functions,
        notes: Vec::new(),
        warnings,
        written: written(&root),
    })
}

/// Every setting of the file that cannot change at run time, as it is written there. Tenants and
/// functions, and with them all keys, are left out.
fn written(root: &Node) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let parties = ["tenant", "function"];
    for (key, node) in root.entries().iter().filter(|(key, _)| !parties.contains(&&*key.name)) {
        node.flatten(&key.name, &mut all);
    }
    // A listener's address may be written in two ways.
    let short = |key: String| match key.strip_suffix(".address") {
        Some(listener) => listener.to_string(),
        None => key,
    };
    all.into_iter().map(|(key, value)| (short(key), value)).collect()
}

fn check_tables(root: &Node, problems: &mut Problems) {
    let syntax = problems.syntax();
    for (key, _) in root.entries() {
        let name = key.name.as_str();
        let head = syntax.table(name);
        if !tables().contains(&name) {
            let text = match nearest(name, tables()) {
                Some(near) => {
                    let near = syntax.table(near);
                    format!("{head} is not a table of settings; did you mean {near}?")
                }
                None => format!("{head} is not a table of settings: remove it"),
            };
            problems.add(key.line, text);
        } else if SETTINGS.iter().filter(|s| s.key.starts_with(name)).all(|s| !s.built) {
            problems.add(key.line, format!("{head} is not supported yet: remove it"));
        }
    }
}

fn cores(root: &Node, problems: &mut Problems) -> Cores {
    let section = Section::of(root, "cores", problems);
    let count = match section.get("count").map(|node| (node, &node.value)) {
        None => None,
        Some((_, Value::Text(text))) if text == "auto" => None,
        Some((_, Value::Whole(count))) if (1..=MAX_CORES as i64).contains(count) => {
            usize::try_from(*count).ok()
        }
        Some((node, _)) => {
            let want = format!("\"auto\" or a number from 1 to {MAX_CORES}");
            section.refuse("count", node, &want, problems);
            None
        }
    };
    let busy_poll = match section.text("busy_poll", problems) {
        None => Some(BusyPoll::For(Duration::ZERO)),
        Some("auto") => Some(BusyPoll::Auto),
        Some("always") => Some(BusyPoll::Always),
        Some(text) => units::duration(text).map(BusyPoll::For),
    };
    if busy_poll.is_none()
        && let Some(node) = section.get("busy_poll")
    {
        let want = "\"0us\", \"Nus\", \"auto\" or \"always\"";
        section.refuse("busy_poll", node, want, problems);
    }
    Cores {
        count,
        pin: section.flag("pin", problems),
        busy_poll: busy_poll.unwrap_or(BusyPoll::For(Duration::ZERO)),
        receive_memory: section.bytes("receive_memory", problems),
        io: match section.word("io", problems) {
            "ring" => Io::Ring,
            "epoll" => Io::Epoll,
            _ => Io::Auto,
        },
    }
}

fn control(root: &Node, listen: &Listen, fronts: &Fronts, problems: &mut Problems) -> Control {
    let section = Section::of(root, "control", problems);
    let mode = section.word("mode", problems);
    if mode != "local" {
        problems.add(
            section.line_of("mode"),
            format!("control.mode = \"{mode}\" is not supported yet: write \"local\""),
        );
    }
    let advertise = section.text("advertise", problems).map(ToString::to_string);
    match &advertise {
        Some(url) => {
            if let Err(why) = check_url(url, fronts.worker.tls.is_some()) {
                let text = format!("control.advertise is \"{url}\", {why}");
                problems.add(section.line_of("advertise"), text);
            }
        }
        None if listen.worker.ip().is_unspecified() && mode == "local" => {
            let url = format!("\"http://10.0.0.1:{}\"", listen.worker.port());
            let text = format!(
                "control.advertise is missing: workers cannot dial {}; write the address they \
                 reach this machine by, such as {}",
                listen.worker.ip(),
                problems.syntax().pair("advertise", &url),
            );
            problems.add(section.line(), text);
        }
        None => {}
    }
    Control { mode: Mode::Local, advertise, remote: None }
}

/// NVIDIA's workers take host and port from the URL and dial plain TCP whatever the scheme says
/// (contract WK-3). `https` is for workers that heed it, and needs a listener that speaks TLS.
fn check_url(url: &str, tls: bool) -> Result<(), &'static str> {
    const SHAPE: &str = "but must be a URL such as \"http://10.0.0.1:10086\"";
    let uri: http::Uri = url.parse().map_err(|_| SHAPE)?;
    let host = uri.host().filter(|host| !host.is_empty()).ok_or(SHAPE)?;
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") if tls => {}
        Some("https") => {
            return Err("but listen.worker speaks no TLS: write \"http://...\", or give it tls");
        }
        _ => return Err(SHAPE),
    }
    if uri.query().is_some() || uri.authority().is_some_and(|a| a.as_str().contains('@')) {
        return Err("but must have neither a query nor a user");
    }
    match host {
        "0.0.0.0" | "[::]" => Err("which nobody can dial: write this machine's address"),
        _ => Ok(()),
    }
}

fn session(root: &Node, problems: &mut Problems) -> Session {
    let section = Section::of(root, "session", problems);
    Session {
        wait: section.time("wait", problems),
        idle: section.time("idle", problems),
        scope: match section.word("scope", problems) {
            "connection" => Scope::Connection,
            "credential" => Scope::Credential,
            _ => Scope::Tenant,
        },
        honour_id: match section.word("honour_id", problems) {
            "unpinned" => HonourId::Unpinned,
            _ => HonourId::Always,
        },
        park: match section.word("park", problems) {
            "never" => Park::Never,
            "unclean" => Park::Unclean,
            "always" => Park::Always,
            _ => Park::Auto,
        },
        park_window: section.time("park_window", problems),
        park_yield: section.time("park_yield", problems),
    }
}

fn drain(root: &Node, problems: &mut Problems) -> Drain {
    let section = Section::of(root, "drain", problems);
    Drain { delay: section.time("delay", problems), max: section.time("max", problems) }
}

fn limits(root: &Node, problems: &mut Problems) -> Limits {
    let section = Section::of(root, "limits", problems);
    let p = problems;
    let limits = Limits {
        client_connections: section.count("client_connections", p) as usize,
        worker_connections: section.count("worker_connections", p) as usize,
        handshake: section.time("handshake", p),
        header_bytes: section.bytes("header_bytes", p),
        header_fields: section.count("header_fields", p) as usize,
        header_block: section.bytes("header_block", p),
        continuations: section.count("continuations", p) as u32,
        streams: section.count("streams", p) as u32,
        glitch_burst: section.count("glitch_burst", p) as u32,
        glitch_refill: section.count("glitch_refill", p) as u32,
        queued_answers: section.count("queued_answers", p) as usize,
        empty_data: section.count("empty_data", p) as u32,
        stream_window: section.bytes("stream_window", p) as u32,
        stream_window_max: section.bytes("stream_window_max", p) as u32,
        connection_buffer: section.bytes("connection_buffer", p),
        core_buffer: section.bytes("core_buffer", p),
        http1_buffer: section.bytes("http1_buffer", p),
        h2c_body: section.bytes("h2c_body", p),
        stalled_stream: section.time("stalled_stream", p),
        attachments: section.count("attachments", p) as usize,
        dispatch_burst: section.count("dispatch_burst", p) as u32,
        dispatch_rate: section.count("dispatch_rate", p) as u32,
        token_tries: section.count("token_tries", p) as u32,
        pending_sessions: section.count("pending_sessions", p) as usize,
        pending_per_tenant: section.count("pending_per_tenant", p) as usize,
        asks: ASKS,
        asks_per_tenant: ASKS_PER_TENANT,
        work_queue: section.count("work_queue", p) as usize,
        polls: section.count("polls", p) as usize,
        poll_ids: section.count("poll_ids", p) as usize,
        poll_bytes: section.bytes("poll_bytes", p),
        mailbox: section.count("mailbox", p) as usize,
        outbox: section.count("outbox", p) as usize,
        parked_tunnels: section.count("parked_tunnels", p) as usize,
        parked_per_tenant: section.count("parked_per_tenant", p) as usize,
        trace_records: section.count("trace_records", p) as usize,
    };
    check_limits(&section, &limits, p);
    limits
}

fn check_limits(section: &Section<'_>, limits: &Limits, problems: &mut Problems) {
    let mut at_most = |small: (&str, usize), large: (&str, usize)| {
        if small.1 > large.1 {
            // The line of the one that was written: the other may be a default.
            let line = section.get(small.0).or_else(|| section.get(large.0)).map(|node| node.line);
            let text = format!(
                "limits.{} ({}) is larger than limits.{} ({}): lower the first or raise the second",
                small.0, small.1, large.0, large.1
            );
            problems.add(line, text);
        }
    };
    let window_max = ("stream_window_max", limits.stream_window_max as usize);
    let buffer = ("connection_buffer", limits.connection_buffer);
    at_most(("stream_window", limits.stream_window as usize), window_max);
    at_most(window_max, buffer);
    at_most(buffer, ("core_buffer", limits.core_buffer));
    let pending = ("pending_sessions", limits.pending_sessions);
    at_most(("pending_per_tenant", limits.pending_per_tenant), pending);
    let parked = ("parked_tunnels", limits.parked_tunnels);
    at_most(("parked_per_tenant", limits.parked_per_tenant), parked);
}

fn keepalive(root: &Node, problems: &mut Problems) -> Keepalive {
    let section = Section::of(root, "keepalive", problems);
    // The kernel counts in seconds (tcp(7)): less would be cut off silently.
    let mut seconds = |name: &str| {
        let time = section.time(name, problems);
        if time.subsec_nanos() != 0
            && let Some(node) = section.get(name)
        {
            section.refuse(name, node, "whole seconds, such as \"15s\"", problems);
        }
        time
    };
    Keepalive {
        idle: seconds("idle"),
        interval: seconds("interval"),
        probes: section.count("probes", problems) as u32,
        user_timeout: section.time("user_timeout", problems),
        client_ping: client_ping(&section, problems),
        client_ping_timeout: section.time("client_ping_timeout", problems),
        tunnel_ping: section.time("tunnel_ping", problems),
        tunnel_ping_timeout: section.time("tunnel_ping_timeout", problems),
        tunnel_start: section.time("tunnel_start", problems),
        tunnel_write: section.time("tunnel_write", problems),
    }
}

/// Clients are pinged only on request, and rarely: a PING wakes a telephone's radio.
fn client_ping(section: &Section<'_>, problems: &mut Problems) -> Option<Duration> {
    const LEAST: Duration = Duration::from_secs(10);
    let node = section.get("client_ping")?;
    let text = section.text("client_ping", problems)?;
    if text == "off" {
        return None;
    }
    let time = units::duration(text);
    let possible = LEAST..=Duration::from_secs(86_400);
    if time.is_none_or(|time| !possible.contains(&time)) {
        let want = match time {
            Some(time) if time < LEAST => {
                "at least \"10s\", or \"off\": clients are not pinged more often"
            }
            _ => "\"off\", or 10s to 24h, with its unit, such as \"30s\"",
        };
        section.refuse("client_ping", node, want, problems);
    }
    time
}

fn log(root: &Node, problems: &mut Problems) -> Log {
    let section = Section::of(root, "log", problems);
    Log { access: section.flag("access", problems), level: section.word("level", problems) }
}
