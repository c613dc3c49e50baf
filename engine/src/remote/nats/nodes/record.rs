//! What a gateway says of itself in the bucket: which fields, who has signed them, what is read.
//!
//! **Versions.** A field that is added later is signed with the others, whether its reader knows it or
//! not. So such a field needs no new version number, and gateways of two versions read each other. A
//! field that means something else than before gets the record the next number. A reader that does not
//! know the number says so, and takes the node for *unknown*.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ringway_proto::id::Node;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::keys::Keys;

/// The version that is written.
const VERSION: u32 = 1;
/// The oldest version that is read: gateways of two versions may stand side by side for a while.
const OLDEST: u32 = 1;
/// Longest record that is read, octets.
pub(super) const MOST_RECORD: usize = 4096;

/// How long things take. Another pace than the default is for tests.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Pace {
    /// How long a record lives that is not refreshed.
    pub(in super::super) ttl: Duration,
    /// A record is refreshed this often.
    pub(in super::super) refresh: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { ttl: Duration::from_secs(15), refresh: Duration::from_secs(5) }
    }
}

impl Pace {
    /// After this a missing record is one of a dead node.
    pub(in super::super) fn dead_after(self) -> Duration {
        2 * self.ttl
    }
}

/// Where others reach a gateway, as far as that is known.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Addresses {
    pub(super) relay: Option<SocketAddr>,
    pub(super) admin: Option<SocketAddr>,
}

/// What a gateway says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct Record {
    /// [`VERSION`].
    version: u32,
    /// Where its workers dial in: an address of this one process.
    pub(in super::super) worker: String,
    /// Where other gateways bring it connections that are its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in super::super) relay: Option<String>,
    /// Where its admin port answers other gateways.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    admin: Option<String>,
    /// Drawn at random: tells whose record it is of two who have drawn the same pair.
    run: u64,
    /// Proves that the record is of this cluster, if the cluster has a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mac: Option<String>,
    /// Fields that gateways of another version have beside these.
    #[serde(flatten)]
    more: BTreeMap<String, Value>,
}

impl Record {
    /// The record of a gateway whose workers dial in at `worker`.
    pub(super) fn of(worker: String, run: u64) -> Self {
        let more = BTreeMap::new();
        Self { version: VERSION, worker, relay: None, admin: None, run, mac: None, more }
    }

    /// The record as it is written now, for this node.
    pub(super) fn written(&self, node: Node, at: &Addresses, keys: Option<&Keys>) -> Bytes {
        let [relay, admin] = [at.relay, at.admin].map(|at| at.map(|at| at.to_string()));
        let mut record = Self { relay, admin, mac: None, ..self.clone() };
        record.mac = keys.map(|keys| keys.sign_record(&record.signed(&node.to_string())));
        serde_json::to_vec(&record).expect("texts and numbers can be written").into()
    }

    /// The text that the MAC is of; `key` names the node.
    fn signed(&self, key: &str) -> String {
        let Self { version, worker, relay, admin, run, more, .. } = self;
        let relay = relay.as_deref().unwrap_or_default();
        let admin = admin.iter().map(|admin| format!("\n{admin}")).collect::<String>();
        let more = more.iter().map(|(name, value)| format!("\n{name}={value}"));
        let more = more.collect::<String>();
        format!("{version}\n{key}\n{worker}\n{relay}\n{run}{admin}{more}")
    }

    /// Where the node takes connections that are its own.
    pub(in super::super) fn relay(&self) -> Option<SocketAddr> {
        reachable(self.relay.as_deref())
    }

    /// Where the node may be asked for its sessions. Not set without a secret that proves the
    /// record.
    pub(in super::super) fn admin(&self) -> Option<SocketAddr> {
        reachable(self.admin.as_deref().filter(|_| self.mac.is_some()))
    }

    /// The run whose record this is.
    pub(super) fn run(&self) -> u64 {
        self.run
    }

    /// The MAC that proves the record.
    #[cfg(test)]
    pub(super) fn mac(&self) -> Option<&str> {
        self.mac.as_deref()
    }
}

/// An address that can be dialled.
fn reachable(text: Option<&str>) -> Option<SocketAddr> {
    let address: SocketAddr = text?.parse().ok()?;
    Some(address).filter(|address| !address.ip().is_unspecified() && address.port() > 0)
}

/// A record of a version that is known here; where there are keys, one that they prove.
pub(in super::super) fn read(
    keys: Option<&Arc<Keys>>,
    (key, value): (&str, &[u8]),
) -> Result<Record, &'static str> {
    let mut record = parse(value).ok_or("it is too long, of another version, or something else")?;
    let Some(keys) = keys else {
        record.mac = None;
        return Ok(record);
    };
    let mac = record.mac.as_deref().ok_or("it is not signed")?;
    let proved = keys.proves_record(&record.signed(key), mac);
    if proved { Ok(record) } else { Err("it is signed with another cluster's secret") }
}

/// A record, if it is one and of a version that is known here.
fn parse(value: &[u8]) -> Option<Record> {
    if value.len() > MOST_RECORD {
        return None;
    }
    let record: Record = serde_json::from_slice(value).ok()?;
    Some(record).filter(|record| (OLDEST..=VERSION).contains(&record.version))
}

/// The run that says that a record is its own, in whatever version and whoever has signed it; none if
/// this is no record.
pub(super) fn claimed_run(value: &[u8]) -> Option<u64> {
    #[derive(Deserialize)]
    struct Claimed {
        run: u64,
    }
    serde_json::from_slice(value).ok().map(|Claimed { run }| run)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::Secret;

    const KEY: &str = "001-0002";
    const SECRET: &str = "a secret of the cluster";

    fn keys(secret: &str) -> Arc<Keys> {
        Keys::of(&[Secret::from(secret)]).unwrap()
    }

    /// A record as gateways of another version write it: what it says, and what its MAC is of.
    fn of_version(record: Value, signed: &str) -> Vec<u8> {
        let mut record = record;
        record["mac"] = keys(SECRET).sign_record(signed).into();
        record.to_string().into_bytes()
    }

    /// What the first gateways knew of a record: they had no admin port in it, and the MAC was of
    /// what they knew.
    fn read_by_first(value: &[u8]) -> bool {
        let record: Value = serde_json::from_slice(value).unwrap();
        let text = |name: &str| record[name].as_str().unwrap_or_default();
        let (version, run) = (&record["version"], &record["run"]);
        let signed = format!("{version}\n{KEY}\n{}\n{}\n{run}", text("worker"), text("relay"));
        *version == 1 && keys(SECRET).proves_record(&signed, text("mac"))
    }

    fn written(admin: bool) -> Bytes {
        let [relay, admin] = [Some("192.0.2.1:1"), admin.then_some("192.0.2.1:2")]
            .map(|at| at.map(|at| at.parse().unwrap()));
        let node = Node::new(1, 2).unwrap();
        Record::of("a:1".into(), 7).written(node, &Addresses { relay, admin }, Some(&keys(SECRET)))
    }

    fn reads(value: &[u8]) -> Result<Record, &'static str> {
        read(Some(&keys(SECRET)), (KEY, value))
    }

    /// The table in `docs/many-gateways.md`.
    #[test]
    fn each_version_reads_what_the_page_says() {
        // The version before, here: without an admin port, and with one.
        let first = json!({ "version": 1, "worker": "a:1", "relay": "192.0.2.1:1", "run": 7 });
        let mut before = first.clone();
        let signed = format!("1\n{KEY}\na:1\n192.0.2.1:1\n7");
        let read = reads(&of_version(first, &signed)).expect("what the first have written");
        assert_eq!((read.relay(), read.admin()), ("192.0.2.1:1".parse().ok(), None));
        before["admin"] = "192.0.2.1:2".into();
        let read = reads(&of_version(before.clone(), &format!("{signed}\n192.0.2.1:2")));
        assert_eq!(read.expect("what those before us write").admin(), "192.0.2.1:2".parse().ok());
        // We, at those before us: the first can read only who tells no admin port.
        assert!(read_by_first(&written(false)));
        assert!(!read_by_first(&written(true)));
        let as_before = of_version(before.clone(), &format!("{signed}\n192.0.2.1:2"));
        let value = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
        assert_eq!(
            value(&written(true)),
            value(&as_before),
            "those before us read what they wrote"
        );
        // A version to come, here: with more fields it is read; with another number it is not.
        before["prelude"] = 2.into();
        before["zone"] = "b".into();
        let more = format!("{signed}\n192.0.2.1:2\nprelude=2\nzone=\"b\"");
        let read =
            reads(&of_version(before.clone(), &more)).expect("with fields of another version");
        assert_eq!(read.relay(), "192.0.2.1:1".parse().ok());
        let unsigned = of_version(before.clone(), &format!("{signed}\n192.0.2.1:2"));
        assert!(reads(&unsigned).is_err(), "a field that nobody has signed");
        for version in [OLDEST - 1, VERSION + 1] {
            before["version"] = version.into();
            let signed = more.replacen('1', &version.to_string(), 1);
            assert!(reads(&of_version(before.clone(), &signed)).is_err(), "version {version}");
        }
    }

    #[test]
    fn a_record_is_its_nodes_and_its_clusters() {
        let value = written(true);
        assert!(reads(&value).is_ok());
        assert!(read(Some(&keys(SECRET)), ("001-0003", &value)).is_err(), "of another node");
        assert!(read(Some(&keys("a secret of another one")), (KEY, &value)).is_err());
        assert!(read(None, (KEY, &value)).is_ok_and(|record| record.admin().is_none()));
        assert_eq!(claimed_run(&value), Some(7));
        assert_eq!(claimed_run(br#"{"version":9,"run":5,"x":[1]}"#), Some(5));
        for nonsense in [&b"\0"[..], b"", b"5", br#"{"run":"7"}"#] {
            assert_eq!(claimed_run(nonsense), None);
        }
        let huge = json!({ "version": 1, "worker": "a".repeat(MOST_RECORD), "run": 7 });
        assert!(read(None, (KEY, huge.to_string().as_bytes())).is_err());
    }
}
