//! What lies in JetStream: the streams, how many servers have them and where, and the bucket.

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::CreateStreamErrorKind;
use async_nats::jetstream::stream::{Config, Info, StorageType, Stream};

use super::super::super::finding::Finding;
use super::super::link::placement;
use super::super::made::{REPLICAS, differences, open};
use super::super::nodes::Pace;
use super::super::{lookup, requests};
use super::{Look, is_full};

/// Request streams that are looked at; the others are counted.
const MOST_STREAMS: usize = 64;

/// Whether a stream is there.
enum There {
    Yes(Box<Stream>),
    No,
    /// Whether there is such a stream is not known.
    Unknown,
}

/// Looks at each.
pub(super) async fn examine(look: &Look<'_>, found: &mut Vec<Finding>) {
    let Look { region, placement: tag, .. } = *look;
    let registrations = lookup::wanted(region, tag).config;
    let there = stream(look, ("nats_registrations", &registrations), found).await;
    if matches!(there, There::No) {
        found.push(placed(look).await);
    }
    let versions = look.versions.unwrap_or_default();
    for version in versions.iter().take(MOST_STREAMS) {
        let wanted = requests::wanted(region, version, tag).config;
        if let There::Yes(stream) = stream(look, ("nats_requests", &wanted), found).await {
            found.push(workers(&stream, &wanted.name).await);
        }
    }
    if versions.len() > MOST_STREAMS {
        let left = versions.len() - MOST_STREAMS;
        found.push(Finding::fine("nats_requests", format!("{left} more were not looked at")));
    }
    found.push(bucket(look).await);
}

/// One stream, which need not be there.
async fn stream(
    look: &Look<'_>,
    (name, wanted): (&str, &Config),
    found: &mut Vec<Finding>,
) -> There {
    match open(&look.link.jetstream, &wanted.name).await {
        Ok(Some(stream)) => {
            found.extend(judged(name, wanted, stream.cached_info()));
            There::Yes(Box::new(stream))
        }
        Ok(None) => {
            let seen = format!("{} is not there yet: a gateway makes it", wanted.name);
            found.push(Finding::fine(name, seen));
            There::No
        }
        Err(why) => {
            let fix = "look at nats-server's log, and at the account's rights";
            let seen = format!("{} cannot be looked at ({why})", wanted.name);
            found.push(Finding::poor(name, seen, fix));
            There::Unknown
        }
    }
}

/// How a stream that is there differs from what a gateway would make, and how it is.
fn judged(name: &str, wanted: &Config, info: &Info) -> Vec<Finding> {
    let Config { name: stream, .. } = wanted;
    let has = info.config.num_replicas;
    let mut found = Vec::new();
    let others: Vec<String> =
        differences(&Config { num_replicas: has, ..wanted.clone() }, &info.config);
    if !others.is_empty() {
        let fix = format!("when no session runs: `nats stream rm {stream}`, and it is made anew");
        found.push(Finding::poor(name, format!("{stream} has {}", others.join(", ")), fix));
    }
    if has < REPLICAS {
        let clustered = info.cluster.as_ref().is_some_and(|cluster| !cluster.replicas.is_empty());
        let seen = format!("{stream} has {has} replica(s): what is in it ends with that server");
        let fix = match clustered {
            true => format!("nats stream edit {stream} --replicas {REPLICAS}"),
            false => format!(
                "run {REPLICAS} servers as a cluster, then `nats stream edit {stream} --replicas \
                 {REPLICAS}`; one server is enough where a restart of it may lose what is queued"
            ),
        };
        found.push(Finding::poor(name, seen, fix));
    }
    let peers = info.cluster.iter().flat_map(|cluster| &cluster.replicas);
    let late: Vec<&str> =
        peers.filter(|peer| peer.offline || !peer.current).map(|peer| peer.name.as_str()).collect();
    if !late.is_empty() {
        let seen = format!("{stream}: {} is away or behind", late.join(", "));
        found.push(Finding::poor(name, seen, "look at that server and its log"));
    }
    if info.config.placement != wanted.placement {
        let shown = |config: &Config| {
            config.placement.as_ref().map_or("none".into(), |placed| placed.tags.join(" "))
        };
        let seen = format!("{stream} lies at {}, not at {}", shown(&info.config), shown(wanted));
        let fix = "set nats.placement (JETSTREAM_PLACEMENT_TAG) to the former, or move the stream";
        found.push(Finding::poor(name, seen, fix));
    }
    let most = u64::try_from(info.config.max_messages).unwrap_or_default();
    let held = info.state.messages;
    if most > 0 && is_full(held, most) {
        let fix = "start more workers, or look for who fills it";
        found.push(Finding::poor(name, format!("{stream} has {held} of {most} messages"), fix));
    }
    if found.is_empty() {
        let seen = format!("{stream}: {has} replica(s), {held} of {most} messages");
        found.push(Finding::fine(name, seen));
    }
    found
}

/// Whether workers ask for a stream's work.
async fn workers(stream: &Stream, name: &str) -> Finding {
    const NAME: &str = "nats_workers";
    let consumer = format!("{name}_workers");
    match stream.consumer_info(&consumer).await {
        Ok(info) if info.num_waiting == 0 && info.num_ack_pending == 0 => Finding::poor(
            NAME,
            format!("{consumer}: no worker asks for work"),
            "start workers: `ringway-worker --nats`, with this function, version and region",
        ),
        Ok(info) => {
            let (waiting, held) = (info.num_waiting, info.num_ack_pending);
            let seen =
                format!("{consumer}: {waiting} pulls wait for work, {held} sessions are held");
            Finding::fine(NAME, seen)
        }
        Err(error) => Finding::poor(
            NAME,
            format!("{consumer} cannot be looked at ({error})"),
            "a gateway makes it when it starts",
        ),
    }
}

/// Whether there are servers with the placement's tag: a stream is made there, and taken away.
async fn placed(look: &Look<'_>) -> Finding {
    const NAME: &str = "nats_placement";
    let Look { link, placement: tag, .. } = *look;
    // Without randomness the name may at worst be that of another doctor's stream.
    let name = format!("ringway_doctor_{:016x}", getrandom::u64().unwrap_or_default());
    let make = |num_replicas| {
        link.jetstream.create_stream(Config {
            name: name.clone(),
            subjects: vec![name.clone()],
            storage: StorageType::Memory,
            max_messages: 1,
            num_replicas,
            placement: placement(tag),
            ..Config::default()
        })
    };
    let at = if tag.is_empty() { "anywhere".into() } else { format!("at {tag}") };
    let mut replicas = REPLICAS;
    let mut made = make(replicas).await;
    if let Err(error) = &made
        && let CreateStreamErrorKind::JetStream(answer) = error.kind()
        && answer.error_code() == ErrorCode::STREAM_REPLICAS_NOT_SUPPORTED
    {
        replicas = 1;
        made = make(replicas).await;
    }
    match made {
        Ok(_) => {
            if let Err(error) = link.jetstream.delete_stream(&name).await {
                let seen = format!("the stream {name} was made and cannot be deleted ({error})");
                return Finding::poor(NAME, seen, format!("nats stream rm {name}"));
            }
            let seen = format!("a stream with {replicas} replica(s) can be made {at}");
            if replicas < REPLICAS {
                let fix =
                    format!("run {REPLICAS} servers as a cluster where sessions must outlive one");
                return Finding::poor(NAME, seen, fix);
            }
            Finding::fine(NAME, seen)
        }
        Err(error) => {
            let CreateStreamErrorKind::JetStream(answer) = error.kind() else {
                let seen = format!("no stream could be made to try it ({error})");
                let fix =
                    "allow the account $JS.API.STREAM.CREATE.ringway_doctor_* to have it tried";
                return Finding::poor(NAME, seen, fix);
            };
            let fix = "give three servers that tag (`server_tags`), or set nats.placement \
                       (JETSTREAM_PLACEMENT_TAG) to one that they have";
            let seen = format!("no stream can be made {at}: {answer}");
            Finding::broken(NAME, seen, fix)
        }
    }
}

/// The bucket in which gateways find each other.
async fn bucket(look: &Look<'_>) -> Finding {
    const NAME: &str = "nats_bucket";
    let name = format!("ringway_nodes_{}", look.region);
    match open(&look.link.jetstream, &format!("KV_{name}")).await {
        Ok(Some(found)) => {
            let info = found.cached_info();
            let (age, wanted) = (info.config.max_age, Pace::default().ttl);
            if age != wanted {
                let seen = format!("{name} keeps records for {age:?} instead of {wanted:?}");
                return Finding::poor(
                    NAME,
                    seen,
                    format!("nats kv del {name}: a gateway makes it anew"),
                );
            }
            let (gateways, replicas) = (info.state.messages, info.config.num_replicas);
            Finding::fine(NAME, format!("{name}: {gateways} record(s), {replicas} replica(s)"))
        }
        Ok(None) => Finding::fine(NAME, format!("{name} is not there yet: a gateway makes it")),
        Err(why) => Finding::poor(
            NAME,
            format!("{name} cannot be looked at ({why})"),
            "allow the account the key-value bucket, see nats_permission",
        ),
    }
}
