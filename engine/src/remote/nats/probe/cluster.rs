//! The other gateways of the region, as their records tell: whether they have this one's secret, and
//! whether they are reached from here.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::kv::Operation;
use futures_util::StreamExt;
use ringway_proto::prelude::CHALLENGE_LENGTH;
use serde::Deserialize;
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::super::super::finding::Finding;
use super::super::nodes::{Record, read_record};
use super::Look;
use crate::keys::Keys;

const NAME: &str = "cluster";
/// Gateways that are tried, and how many at once.
const MOST_TRIED: usize = 64;
const AT_ONCE: usize = 16;
/// How long one may take to say its challenge; a gateway that is asked in earnest has less.
const SPEAKS_WITHIN: Duration = Duration::from_secs(2);
/// How long NATS may take to tell of all of them.
const TOLD_WITHIN: Duration = Duration::from_secs(5);

/// What this gateway would be among them.
pub(crate) struct Own {
    /// What its record would name it by: one that says the same is its own.
    pub(crate) worker: String,
    /// What it knows others by.
    pub(crate) keys: Option<Arc<Keys>>,
}

/// What the records say.
#[derive(Debug, Default, PartialEq, Eq)]
struct Others {
    /// Gateways, this one not included.
    count: usize,
    /// Gateways whose records prove nothing here.
    strangers: usize,
    /// Gateways that are known, and where each takes relays.
    known: Vec<(String, Option<SocketAddr>)>,
}

/// Looks at all of them.
pub(super) async fn examine(look: &Look<'_>, found: &mut Vec<Finding>) {
    // If the bucket cannot be read, the check of the bucket itself says why.
    let Ok(Some(records)) = timeout(TOLD_WITHIN, records(look)).await else { return };
    let others = others(&records, look.own);
    found.push(secret(&others, look.own.keys.is_some()));
    let tried = others.known.into_iter().take(MOST_TRIED);
    let reached: Vec<_> = futures_util::stream::iter(tried)
        .map(|(node, relay)| async move {
            match relay {
                Some(address) => (node, Some((address, greet(address).await))),
                None => (node, None),
            }
        })
        .buffered(AT_ONCE)
        .collect()
        .await;
    found.extend(reached.into_iter().map(|(node, reached)| reach(&node, reached)));
}

/// The values that are in the bucket, by node; none if there is no bucket, or none that may be read.
async fn records(look: &Look<'_>) -> Option<Vec<(String, Vec<u8>)>> {
    #[derive(Deserialize)]
    struct Info {
        state: State,
    }
    #[derive(Deserialize)]
    struct State {
        subjects: Option<HashMap<String, u64>>,
    }
    let bucket = format!("ringway_nodes_{}", look.region);
    let prefix = format!("$KV.{bucket}.");
    let jetstream = &look.link.jetstream;
    let asked = json!({ "subjects_filter": format!("{prefix}>") });
    let info: Info = jetstream.request(format!("STREAM.INFO.KV_{bucket}"), &asked).await.ok()?;
    let subjects = info.state.subjects.unwrap_or_default();
    let mut nodes: Vec<&str> =
        subjects.keys().filter_map(|key| key.strip_prefix(&prefix)).collect();
    nodes.sort_unstable();
    let store = jetstream.get_key_value(&bucket).await.ok()?;
    let mut records = Vec::new();
    for node in nodes {
        let entry = store.entry(node).await.ok().flatten();
        if let Some(entry) = entry.filter(|entry| entry.operation == Operation::Put) {
            records.push((node.to_owned(), entry.value.to_vec()));
        }
    }
    Some(records)
}

fn others(records: &[(String, Vec<u8>)], own: &Own) -> Others {
    let mut others = Others::default();
    for (node, value) in records {
        match read_record(own.keys.as_ref(), (node, value)) {
            Ok(Record { worker, .. }) if worker == own.worker => continue,
            Ok(record) => others.known.push((node.clone(), record.relay())),
            Err(_) => others.strangers += 1,
        }
        others.count += 1;
    }
    others
}

/// Whether all have one secret in common.
fn secret(others: &Others, has_secret: bool) -> Finding {
    let Others { count, strangers, .. } = *others;
    let fix = "give all of them one file as cluster.secret_file (openssl rand -hex 32), and each an \
               address that the others reach";
    match (count, has_secret) {
        (0, false) => Finding::fine(NAME, "no other gateway is here now, and none is to be known"),
        (0, true) => Finding::fine(NAME, "no other gateway is here now"),
        (_, false) => {
            let seen = format!(
                "{count} more gateway(s) here, and no cluster.secret_file: a worker's callback that \
                 reaches the wrong one is refused for good (403)"
            );
            Finding::poor(NAME, seen, fix)
        }
        (_, true) if strangers > 0 => {
            let seen = format!(
                "{strangers} of {count} more gateway(s) here have another secret, or none: nothing \
                 is relayed to them or from them"
            );
            Finding::poor(NAME, seen, fix)
        }
        (_, true) => Finding::fine(NAME, format!("{count} more gateway(s) here with this secret")),
    }
}

/// Whether one is reached.
fn reach(node: &str, reached: Option<(SocketAddr, Result<(), String>)>) -> Finding {
    const NAME: &str = "cluster_peer";
    match reached {
        Some((address, Ok(()))) => Finding::fine(NAME, format!("{node} is reached at {address}")),
        Some((address, Err(why))) => Finding::poor(
            NAME,
            format!(
                "{node} is not reached at {address} ({why}): its sessions cannot be found here"
            ),
            "let the gateways reach each other at the ports of cluster.listen (network policies, \
             firewalls), and correct that one's cluster.address",
        ),
        None => Finding::poor(
            NAME,
            format!("{node} says no address at which it takes connections"),
            "give it this gateway's cluster.secret_file, and a cluster.address",
        ),
    }
}

/// Whether a gateway takes relays at this address: it speaks first.
///
/// # Errors
/// Says why it does not.
pub(crate) async fn greet(address: SocketAddr) -> Result<(), String> {
    let speaks = async {
        let mut stream = TcpStream::connect(address).await?;
        let mut challenge = [0; CHALLENGE_LENGTH];
        stream.read_exact(&mut challenge).await.map(drop)
    };
    match timeout(SPEAKS_WITHIN, speaks).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err("something else answers there".into())
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", SPEAKS_WITHIN.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::super::finding::Grade;
    use super::*;
    use crate::config::Secret;

    fn own(secret: Option<&str>) -> Own {
        let secrets: Vec<Secret> = secret.into_iter().map(Secret::from).collect();
        Own { worker: "here".into(), keys: Keys::of(&secrets) }
    }

    fn record(node: &str, worker: &str, secret: Option<&str>) -> (String, Vec<u8>) {
        let relay = "192.0.2.7:10087";
        let signed = format!("1\n{node}\n{worker}\n{relay}\n5");
        let keys = own(secret).keys;
        let mac = keys.map(|keys| keys.sign_record(&signed));
        let record =
            json!({ "version": 1, "worker": worker, "relay": relay, "run": 5, "mac": mac });
        (node.into(), record.to_string().into_bytes())
    }

    #[test]
    fn who_has_another_secret_or_none_is_told() {
        let (ours, theirs) = ("a secret of this cluster", "a secret of another one");
        let records = [
            record("001-0001", "here", Some(ours)),
            record("001-0002", "there", Some(ours)),
            record("001-0003", "there", Some(theirs)),
            record("001-0004", "there", None),
        ];
        let relay = "192.0.2.7:10087".parse().ok();
        let seen = others(&records, &own(Some(ours)));
        let known = vec![("001-0002".into(), relay)];
        assert_eq!(seen, Others { count: 3, strangers: 2, known });
        let told = secret(&seen, true);
        assert_eq!(told.grade, Grade::Poor);
        assert!(told.seen.contains("2 of 3"), "{told:?}");
        let alike = others(&records[..2], &own(Some(ours)));
        assert_eq!(secret(&alike, true).grade, Grade::Fine);
        // Without a secret nobody is a stranger, and nobody is relayed.
        let without = others(&records[..2], &own(None));
        assert_eq!((without.count, without.strangers), (1, 0));
        let told = secret(&without, false);
        assert_eq!(told.grade, Grade::Poor);
        assert!(told.fix.contains("cluster.secret_file"), "{told:?}");
        for has_secret in [false, true] {
            assert_eq!(secret(&Others::default(), has_secret).grade, Grade::Fine);
        }
    }

    #[tokio::test]
    async fn a_gateway_speaks_first() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let speak = |text: &'static [u8]| {
            let listener = &listener;
            async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                tokio::io::AsyncWriteExt::write_all(&mut stream, text).await.unwrap();
            }
        };
        let (greeted, ()) = tokio::join!(greet(address), speak(&[7; CHALLENGE_LENGTH]));
        assert_eq!(greeted, Ok(()));
        let (greeted, ()) = tokio::join!(greet(address), speak(b"220 mail\r\n"));
        let why = greeted.unwrap_err();
        assert_eq!(reach("x", Some((address, Err(why.clone())))).grade, Grade::Poor);
        assert!(why.contains("something else"), "{why}");
        drop(listener);
        assert!(greet(address).await.unwrap_err().contains("refused"));
        assert_eq!(reach("x", None).grade, Grade::Poor);
        assert_eq!(reach("x", Some((address, Ok(())))).grade, Grade::Fine);
    }
}
