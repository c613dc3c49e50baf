//! Who may call which function, and which worker may serve it. Immutable: made from the
//! configuration, shared by all cores, replaced as a whole.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use uuid::Uuid;

use super::poll::PollRequest;
use ringway_proto::time::Time;

use super::super::port::{Denied, Grant, Kind, Owner};
use crate::config::{Dial, Function, Tenant};

/// Keys are looked up in tables whose hash is seeded per process, so that the time of a lookup
/// says nothing about how much of a guessed key was right.
type Table<K, V> = HashMap<K, V, foldhash::quality::RandomState>;

/// gRPC code NOT_FOUND.
const NOT_FOUND: u8 = 5;
/// gRPC code PERMISSION_DENIED.
const PERMISSION_DENIED: u8 = 7;
/// gRPC code UNAUTHENTICATED.
const UNAUTHENTICATED: u8 = 16;

/// Keys, tenants, functions.
#[derive(Debug, Default)]
pub struct Policy {
    /// The number of each credential's tenant.
    credentials: Table<Box<[u8]>, u32>,
    /// The tenants' names, by number.
    tenants: Vec<Arc<str>>,
    functions: Table<Uuid, Vec<KnownVersion>>,
    /// Every worker key of the configuration. Tells an unknown key from a key for another function.
    workers: Table<Box<[u8]>, ()>,
}

#[derive(Debug)]
struct KnownVersion {
    id: Uuid,
    version: Arc<str>,
    /// An owner for each tenant that may call the version, in the order of their numbers. Each is
    /// made when it is first needed, because most pairs of a large configuration never meet.
    owners: Box<[(u32, OnceLock<Arc<Owner>>)]>,
    function: Arc<str>,
    worker_keys: Vec<Box<[u8]>>,
    streaming: bool,
    dial: Option<Arc<Dial>>,
}

/// What is known of a session, wherever its attachments are.
#[derive(Clone, Debug)]
pub struct SessionFacts {
    /// The owner.
    pub owner: Arc<Owner>,
    /// When the session began.
    pub opened: Time,
}

/// Why a poll was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PollFault {
    /// HTTP status: 401 or 403. (400 is for a body that cannot be read.)
    pub status: u16,
    /// The text of the answer, for the worker's author.
    pub text: String,
}

impl Policy {
    /// The rules of a checked configuration.
    #[must_use]
    pub fn new(tenants: &[Tenant], functions: &[Function]) -> Self {
        let mut policy = Self::default();
        let mut numbers = HashMap::new();
        for tenant in tenants {
            let number = number_of(&mut policy.tenants, &mut numbers, &tenant.name);
            for key in &tenant.client_keys {
                policy.credentials.insert(key.bytes().into(), number);
            }
        }
        for function in functions {
            for key in &function.worker_keys {
                policy.workers.insert(key.bytes().into(), ());
            }
            let versions = policy.functions.entry(function.id).or_default();
            let (id, version) = (function.id.to_string(), function.version.to_string());
            let (id, version): (Arc<str>, Arc<str>) = (id.into(), version.into());
            let names = function.tenants.iter();
            let mut owners: Vec<u32> =
                names.map(|name| number_of(&mut policy.tenants, &mut numbers, name)).collect();
            owners.sort_unstable();
            owners.dedup();
            versions.push(KnownVersion {
                id: function.version,
                owners: owners.into_iter().map(|number| (number, OnceLock::new())).collect(),
                function: id,
                version,
                worker_keys: function.worker_keys.iter().map(|key| key.bytes().into()).collect(),
                streaming: function.streaming,
                dial: function.dial.clone().map(Arc::new),
            });
        }
        policy
    }

    /// Whether this credential may call this function. If no version is named (empty or absent),
    /// `random` picks one of those that the tenant may call, all equally likely (contract CP-3).
    ///
    /// # Errors
    /// Unknown credential: 16; unknown function or version: 5; not allowed: 7.
    pub fn authorise(
        &self,
        credential: &[u8],
        function: &[u8],
        version: &[u8],
        random: u64,
    ) -> Result<Grant, Denied> {
        let tenant = *self
            .credentials
            .get(credential)
            .ok_or_else(|| denied(UNAUTHENTICATED, "the credential is not known"))?;
        let known = Uuid::try_parse_ascii(function).ok().and_then(|id| self.functions.get(&id));
        let wanted = match version {
            b"" => None,
            named => Some(Uuid::try_parse_ascii(named).ok()),
        };
        let matching = |entry: &&KnownVersion| wanted.is_none_or(|id| id == Some(entry.id));
        let existing: Vec<&KnownVersion> = known.into_iter().flatten().filter(matching).collect();
        if existing.is_empty() {
            return Err(denied(NOT_FOUND, "unknown function or version"));
        }
        let may = |entry: &&KnownVersion| self.owner(entry, tenant);
        let mut allowed: Vec<_> = existing.iter().filter_map(may).collect();
        if allowed.is_empty() {
            return Err(denied(PERMISSION_DENIED, "the credential may not call this function"));
        }
        // There are a few versions at most, so the bias of a 64-bit remainder does not matter.
        let picked = (random % allowed.len() as u64) as usize;
        Ok(Grant { owner: allowed.swap_remove(picked) })
    }

    /// The owner of this tenant's sessions, if the tenant may call the version.
    fn owner(&self, of: &KnownVersion, tenant: u32) -> Option<Arc<Owner>> {
        let at = of.owners.binary_search_by_key(&tenant, |(number, _)| *number).ok()?;
        let name = self.tenants.get(tenant as usize)?;
        let make = || {
            Arc::new(Owner {
                kind: Kind { streaming: of.streaming, ..Kind::default() },
                ..Owner::new(name.clone(), of.function.clone(), of.version.clone())
            })
        };
        Some(of.owners[at].1.get_or_init(make).clone())
    }

    /// The tenant of a credential.
    #[must_use]
    pub fn tenant(&self, credential: &[u8]) -> Option<&Arc<str>> {
        self.tenants.get(*self.credentials.get(credential)? as usize)
    }

    /// Whether this credential may serve the function version that the poll names.
    ///
    /// # Errors
    /// 401: an unknown key. 403: a key for another function (also if there is no such function).
    pub fn worker(&self, credential: &[u8], request: &PollRequest) -> Result<(), PollFault> {
        if !self.workers.contains_key(credential) {
            return Err(PollFault { status: 401, text: "the worker key is not known".into() });
        }
        let id = Uuid::try_parse(&request.function_id).ok();
        let versions = id.and_then(|id| self.functions.get(&id)).into_iter().flatten();
        let serves = |entry: &KnownVersion| {
            entry.version == request.function_version_id
                && entry.worker_keys.iter().any(|key| **key == *credential)
        };
        let text = match versions.into_iter().find(|entry| serves(entry)) {
            Some(KnownVersion { dial: None, .. }) => return Ok(()),
            Some(_) => "the gateway dials this function's server itself: it takes no worker",
            None => "the worker key is not for this function",
        };
        Err(PollFault { status: 403, text: text.into() })
    }

    /// Whether this version is of the streaming kind; none if it is unknown.
    #[must_use]
    pub fn streams(&self, function: &str, version: &str) -> Option<bool> {
        self.version(function, version).map(|entry| entry.streaming)
    }

    /// The server that serves this version without a worker, if it has one.
    #[must_use]
    pub fn dial(&self, function: &str, version: &str) -> Option<Arc<Dial>> {
        self.version(function, version)?.dial.clone()
    }

    fn version(&self, function: &str, version: &str) -> Option<&KnownVersion> {
        let versions = self.functions.get(&Uuid::try_parse(function).ok()?)?;
        versions.iter().find(|entry| *entry.version == *version)
    }
}

/// A tenant's number: the next one, if it has none yet.
fn number_of<'a>(
    tenants: &mut Vec<Arc<str>>,
    numbers: &mut HashMap<&'a str, u32>,
    name: &'a str,
) -> u32 {
    *numbers.entry(name).or_insert_with(|| {
        tenants.push(name.into());
        tenants.len() as u32 - 1
    })
}

fn denied(code: u8, why: &str) -> Denied {
    Denied { code, text: why.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    const F: &str = "11111111-1111-4111-8111-111111111111";
    const V1: &str = "22222222-2222-4222-8222-222222222222";
    const V2: &str = "33333333-3333-4333-8333-333333333333";
    const OTHER: &str = "44444444-4444-4444-8444-444444444444";

    fn keys(keys: &[&str]) -> Vec<Secret> {
        keys.iter().map(|key| Secret::from(*key)).collect()
    }

    fn function(version: &str, tenants: &[&str], worker: &str, streaming: bool) -> Function {
        Function {
            id: F.parse().unwrap(),
            version: version.parse().unwrap(),
            tenants: tenants.iter().map(ToString::to_string).collect(),
            worker_keys: keys(&[worker]),
            streaming,
            dial: None,
        }
    }

    fn policy() -> Policy {
        Policy::new(
            &[
                Tenant { name: "dev".into(), client_keys: keys(&["dev-key", "dev-key-2"]) },
                Tenant { name: "other".into(), client_keys: keys(&["other-key"]) },
                Tenant { name: "poor".into(), client_keys: keys(&["poor-key"]) },
            ],
            &[
                function(V1, &["dev", "other"], "worker-1", false),
                function(V2, &["dev"], "worker-2", true),
            ],
        )
    }

    fn ask(key: &str, function: &str, version: &str, random: u64) -> Result<Grant, u8> {
        policy().authorise(key.as_bytes(), function.as_bytes(), version.as_bytes(), random).map_err(
            |denied| {
                assert!(!denied.text.contains("failed to open"), "the fault has its prefix");
                denied.code
            },
        )
    }

    #[test]
    fn a_named_version_is_granted_to_its_tenants() {
        let grant = ask("dev-key-2", F, V2, 0).unwrap();
        assert_eq!(
            (&*grant.owner.tenant, &*grant.owner.function, &*grant.owner.version),
            ("dev", F, V2)
        );
        assert!(grant.owner.kind.streaming);
    }

    #[test]
    fn without_a_version_one_of_the_allowed_is_picked() {
        let picked: Vec<_> =
            (0..2).map(|r| ask("dev-key", F, "", r).unwrap().owner.version.clone()).collect();
        assert_eq!(picked, [V1.into(), V2.into()] as [Arc<str>; 2]);
        for random in [0, 1, 7, u64::MAX] {
            assert_eq!(&*ask("other-key", F, "", random).unwrap().owner.version, V1);
        }
    }

    #[test]
    fn who_may_call_is_asked_of_two_tables_and_made_once() {
        let names: Vec<String> = (0..1000).map(|number| format!("tenant {number}")).collect();
        let tenants: Vec<Tenant> = names
            .iter()
            .map(|name| Tenant { name: name.clone(), client_keys: keys(&[name]) })
            .collect();
        let allowed: Vec<&str> = names.iter().rev().step_by(2).map(String::as_str).collect();
        let policy = Policy::new(&tenants, &[function(V1, &allowed, "worker-1", false)]);
        for (number, name) in names.iter().enumerate() {
            let ask = || policy.authorise(name.as_bytes(), F.as_bytes(), V1.as_bytes(), 0);
            match ask() {
                Ok(grant) => {
                    assert!(number % 2 == 1 && *grant.owner.tenant == **name);
                    let again = ask().unwrap();
                    assert!(Arc::ptr_eq(&grant.owner, &again.owner), "sessions share it");
                    let named = policy.tenant(name.as_bytes()).unwrap();
                    assert!(Arc::ptr_eq(&grant.owner.tenant, named), "and the name");
                }
                Err(denied) => assert_eq!((denied.code, number % 2), (7, 0)),
            }
        }
        let made = policy.functions[&F.parse::<Uuid>().unwrap()][0].owners.iter();
        assert_eq!(made.filter(|(_, owner)| owner.get().is_some()).count(), 500);
    }

    #[test]
    fn refusals_have_the_codes_of_the_design() {
        assert_eq!(ask("nobody", F, V1, 0), Err(16));
        assert_eq!(ask("", F, V1, 0), Err(16));
        assert_eq!(ask("dev-key", OTHER, "", 0), Err(5));
        assert_eq!(ask("dev-key", "not a uuid", "", 0), Err(5));
        assert_eq!(ask("dev-key", F, OTHER, 0), Err(5));
        assert_eq!(ask("dev-key", F, "x", 0), Err(5));
        assert_eq!(ask("other-key", F, V2, 0), Err(7));
        assert_eq!(ask("poor-key", F, "", 0), Err(7));
        assert_eq!(ask("nobody", OTHER, "", 0), Err(16), "no probing without a key");
        assert_eq!(ask("worker-1", F, V1, 0), Err(16), "a worker key is not a client key");
    }

    #[test]
    fn ids_in_other_forms_are_the_same_ids() {
        let grant = ask("dev-key", &F.replace('-', "").to_uppercase(), V1, 0).unwrap();
        assert_eq!(&*grant.owner.function, F);
    }

    #[test]
    fn workers_serve_only_what_their_key_is_for() {
        let poll = |version: &str| PollRequest {
            function_id: F.into(),
            function_version_id: version.into(),
            slots: 1,
            request_ids: Vec::new(),
        };
        let status = |key: &str, version| policy().worker(key.as_bytes(), &poll(version));
        assert_eq!(status("worker-1", V1), Ok(()));
        assert_eq!(status("worker-1", V2).unwrap_err().status, 403);
        assert_eq!(status("worker-1", OTHER).unwrap_err().status, 403);
        assert_eq!(status("dev-key", V1).unwrap_err().status, 401);
        assert_eq!(status("", V1).unwrap_err().status, 401);
    }
}
