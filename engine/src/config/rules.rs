//! Turns the tree into typed values, and finds contradictions between them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::credentials;
use super::effective::{self, Effective};
use super::environment::Environment;
use super::node::{Node, Value};
use super::parties::WorkersBy;
use super::problems::{Origin, Problems, nearest};
use super::read::Section;
use super::reference::{self, Reference};
use super::settings::{SETTINGS, tables};
use super::syntax::Syntax;
use super::units;
use super::{
    Admin, BusyPoll, Config, Cores, Drain, HonourId, Io, Keepalive, Limits, Log, Mode, Park, Scope,
    Secret, SessionSettings, cluster, control, listen, parties, timers,
};
use crate::log::Keys;

/// Most questions to the control plane that wait on one core: of all tenants, and of one.
const ASKS: usize = 4096;
const ASKS_PER_TENANT: usize = 1024;

/// Most letters of a host's name (RFC 1035 section 2.3.4), and most names in `admin.hosts`.
const MAX_HOST: usize = 253;
const MAX_HOSTS: usize = 64;

/// Reads and checks everything.
pub(super) fn checked(
    text: &str,
    folder: &Path,
    environment: &Environment,
    mut problems: Problems,
) -> Result<Config, Problems> {
    match read(text, folder, environment, &mut problems) {
        Some((config, _)) if problems.is_empty() => Ok(config),
        _ => Err(problems.sorted()),
    }
}

/// Every setting with its value and where that comes from.
pub(super) fn effective(
    text: &str,
    folder: &Path,
    environment: &Environment,
    mut problems: Problems,
) -> Result<Vec<Effective>, Problems> {
    let file = problems.file().to_owned();
    match read(text, folder, environment, &mut problems) {
        Some((config, root)) if problems.is_empty() => {
            Ok(effective::of(&root, &config, (&file, environment)))
        }
        _ => Err(problems.sorted()),
    }
}

/// The secrets that a text holds or names, however wrong it is otherwise.
pub(super) fn secrets(
    text: &str,
    folder: &Path,
    environment: &Environment,
    mut problems: Problems,
) -> Vec<String> {
    let root = match problems.syntax() {
        Syntax::Toml => Some(Node::from_toml(text, &mut problems)),
        Syntax::Yaml => Node::from_yaml(text, &mut problems),
        Syntax::Environment => None,
    };
    let mut root = root.unwrap_or_else(|| Node::empty(Origin::Default));
    environment.lay_over(&mut root, &mut problems);
    reference::read(environment, &mut root, &mut problems);
    credentials::resolve(&mut root, environment, &mut problems);
    let mut secrets = effective::secrets(&root, folder);
    secrets.extend(environment.get("NATS_PRIVATE_NKEY", &mut problems).map(str::to_owned));
    secrets
}

/// Reads everything. A wrong value is reported and replaced by its default. `None` if the text
/// cannot be parsed: further problems would only hide that one.
fn read(
    text: &str,
    folder: &Path,
    environment: &Environment,
    problems: &mut Problems,
) -> Option<(Config, Node)> {
    let mut root = match problems.syntax() {
        Syntax::Toml => Some(Node::from_toml(text, problems)).filter(|_| problems.is_empty()),
        Syntax::Yaml => Node::from_yaml(text, problems),
        Syntax::Environment => Some(Node::empty(Origin::Default)),
    }?;
    environment.lay_over(&mut root, problems);
    credentials::resolve(&mut root, environment, problems);
    let choice = control::choose(&root, environment, problems)?;
    let nvcf = choice.mode == Mode::Nvcf;
    let reference =
        if nvcf { reference::read(environment, &mut root, problems) } else { Reference::default() };
    let written = written(&root);
    if nvcf {
        put_defaults(&mut root);
    }
    check_tables(&root, problems);
    control::check_use(&root, &choice, problems);
    let mut warnings = unread(&reference);
    let (listen, fronts) = listen::read(&root, folder, &mut warnings, problems);
    let (tenants, functions) = match choice.mode {
        Mode::Nvcf => Default::default(),
        Mode::Local => parties::read(&root, folder, WorkersBy::Keys, problems),
        Mode::Nats => {
            warnings.extend(parties::unused_keys(&root));
            parties::read(&root, folder, WorkersBy::Nats, problems)
        }
    };
    let around = control::Around {
        root: &root,
        folder,
        listen: &listen,
        fronts: &fronts,
        reference: &reference,
    };
    let pod = reference.pod.or_else(|| pod(&choice, environment, problems));
    let cluster = cluster::read(&around, (choice.mode, pod), problems);
    let (session, keepalive) = (session(&root, problems), keepalive(&root, problems));
    let notes = vec![held_by_vanished(&session, &keepalive)];
    warnings.extend(timers::contradictions(&session, choice.mode));
    let config = Config {
        cores: cores(&root, problems),
        control: control::read(choice, &around, cluster.direct.as_deref(), problems),
        cluster,
        version: reference.version,
        session,
        drain: drain(&root, problems),
        limits: limits(&root, problems),
        keepalive,
        admin: admin(&root, problems),
        log: log(&root, problems),
        listen,
        fronts,
        tenants,
        functions,
        notes,
        warnings,
        written,
    };
    Some((config, root))
}

/// The address of this pod, in `nats` mode: no other variable of NVIDIA's proxy is read there.
fn pod(
    choice: &control::Choice,
    environment: &Environment,
    problems: &mut Problems,
) -> Option<IpAddr> {
    let text = environment.get("POD_IP", problems).filter(|_| choice.mode == Mode::Nats)?;
    // A value that is no address was set for something else.
    text.parse().ok().filter(|ip: &IpAddr| !ip.is_unspecified())
}

/// How long a client that has vanished may keep its worker, which is a GPU.
fn held_by_vanished(session: &SessionSettings, keepalive: &Keepalive) -> String {
    let noticed = keepalive.client_timeout;
    let kept = if session.park == Park::Never { Duration::ZERO } else { session.park_window };
    format!(
        "a client whose network is gone holds its worker for {:?}: {noticed:?} until that is noticed \
         (keepalive.client_timeout), {kept:?} in which it may come back (session.park_window)",
        noticed + kept
    )
}

/// Puts in the defaults that differ in `nvcf` mode.
fn put_defaults(root: &mut Node) {
    for setting in SETTINGS {
        if let Some(default) = setting.default_in_nvcf
            && root.at(setting.key).is_none()
        {
            let value = Value::Text(default.into());
            root.put(setting.key, Node { place: Origin::Default, value });
        }
    }
}

/// Warnings about configuration files of NVIDIA's proxy, which are not read.
fn unread(reference: &Reference) -> Vec<String> {
    let told = |file: &PathBuf| {
        format!(
            "{} is a configuration file of NVIDIA's proxy, which is not read: set what it says as \
             variables of the environment",
            file.display()
        )
    };
    reference.unread.iter().map(told).collect()
}

/// Every setting that cannot change at run time, as it is written. Tenants and functions are left
/// out, and so are all keys. A URL may still hold a password.
fn written(root: &Node) -> BTreeMap<String, Secret> {
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
    all.into_iter().map(|(key, value)| (short(key), Secret::from(&*value))).collect()
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
            problems.add(key.place, text);
        } else if SETTINGS.iter().filter(|s| s.key.starts_with(name)).all(|s| !s.built) {
            problems.add(key.place, format!("{head} is not supported yet: remove it"));
        }
    }
}

fn cores(root: &Node, problems: &mut Problems) -> Cores {
    let section = Section::of(root, "cores", problems);
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
        count: section.count_or_word("count", problems).map(|count| count as usize),
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

fn session(root: &Node, problems: &mut Problems) -> SessionSettings {
    let section = Section::of(root, "session", problems);
    SessionSettings {
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
        tell_cause: section.flag("tell_cause", problems),
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
        relays: section.count("relays", p) as usize,
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
            // The problem is reported at the value that was written, because the other one may be a
            // default.
            let line = section.get(small.0).or_else(|| section.get(large.0)).map(|node| node.place);
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
    let (idle, interval) = (seconds("idle"), seconds("interval"));
    let user_timeout = section.time("user_timeout", problems);
    let client_timeout = match section.get("client_timeout") {
        Some(_) => section.time("client_timeout", problems),
        // An operator who has shortened `user_timeout`, for all connections, means clients too.
        None => section.time("client_timeout", problems).min(user_timeout),
    };
    Keepalive {
        idle,
        interval,
        probes: section.count("probes", problems) as u32,
        user_timeout,
        client_timeout,
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

fn admin(root: &Node, problems: &mut Problems) -> Admin {
    let section = Section::of(root, "admin", problems);
    let mut hosts = Vec::new();
    for (place, name) in section.texts("hosts", problems) {
        let letter = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
        if name.is_empty() || name.len() > MAX_HOST || !name.bytes().all(letter) {
            let text = format!(
                "admin.hosts has \"{name}\", but must name hosts without a port, such as \
                 \"gateway.example\""
            );
            problems.add(place, text);
        }
        if hosts.len() == MAX_HOSTS {
            problems
                .add(place, format!("admin.hosts has more than {MAX_HOSTS} names: remove some"));
            break;
        }
        hosts.push(name.into());
    }
    Admin { allow_remote: section.flag("allow_remote", problems), hosts: hosts.into() }
}

fn log(root: &Node, problems: &mut Problems) -> Log {
    let section = Section::of(root, "log", problems);
    Log {
        access: section.flag("access", problems),
        level: section.word("level", problems),
        keys: match section.word("keys", problems) {
            "zap" => Keys::Zap,
            _ => Keys::Ringway,
        },
    }
}
