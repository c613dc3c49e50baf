//! The API's answer about a caller, checked field by field (contract 5.1).

use std::sync::Arc;

use uuid::Uuid;

use super::super::pb::ProxyAuthResponse;
use super::super::pb::proxy_auth_response::FunctionVersion;
use super::super::pb::proxy_auth_response::function_version::{BackendType, Type};
use crate::control::port::{Grant, Kind, Owner, Rate};

/// Octets of a name in an answer: of the caller, and of its account.
const MOST_NAME: usize = 256;
/// Octets of an id in any of its forms.
const MOST_ID: usize = 64;

/// What an answer grants, and a fault that does not prevent the grant.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Read {
    pub(super) grant: Grant,
    /// Versions that cannot be used, next to others that can.
    pub(super) fault: Option<String>,
}

/// An answer grants nothing, because this field of it is wrong.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unusable(pub(super) String);

/// Reads an answer; `random` picks the version, all equally likely (contract CP-3). If the answer
/// has no versions, the grant's version is empty. Such a grant opens no session (contract E4), but
/// leads back to one.
///
/// The ids are those of the API, whatever the client wrote.
pub(super) fn read(answer: ProxyAuthResponse, random: u64) -> Result<Read, Unusable> {
    let function = id("functionId", &answer.function_id).map_err(Unusable)?;
    let tenant = name("clientNcaId", &answer.client_nca_id).map_err(Unusable)?;
    // The subject is for the worker alone. The account id says whose the session is.
    let subject = match answer.client_auth_subject.as_str() {
        "" => "".into(),
        subject => name("clientAuthSubject", subject).map_err(Unusable)?,
    };
    if answer.function_versions.is_empty() {
        let (version, kind) = ("".into(), Kind::default());
        let owner = Arc::new(Owner { tenant, function, version, subject, kind });
        return Ok(Read { grant: Grant { owner }, fault: None });
    }
    let (mut versions, mut faults) = (Vec::new(), Vec::new());
    for named in &answer.function_versions {
        match version(named) {
            Ok(Version { id, kind, odd }) => {
                versions.push((id, kind));
                faults.extend(odd);
            }
            Err(fault) => faults.push(fault),
        }
    }
    let count = faults.len();
    let fault = faults.into_iter().next().map(|first| match count {
        1 => first,
        _ => format!("{first}; {count} versions are wrong"),
    });
    // An answer has a few thousand versions at most, so the bias of a 64-bit remainder does not
    // matter.
    let picked = random.checked_rem(versions.len() as u64);
    let Some((version, kind)) = picked.map(|at| versions.swap_remove(at as usize)) else {
        return Err(Unusable(fault.unwrap_or_default()));
    };
    let owner = Arc::new(Owner { tenant, function, version, subject, kind });
    Ok(Read { grant: Grant { owner }, fault })
}

/// A version that can be called.
struct Version {
    id: Arc<str>,
    kind: Kind,
    /// What is odd about the version, although it can be called.
    odd: Option<String>,
}

fn version(named: &FunctionVersion) -> Result<Version, String> {
    let id = id("functionVersionId", &named.function_version_id)?;
    let Ok(of) = Type::try_from(named.r#type) else {
        return Err(format!("type {} of version {id} is not known", named.r#type));
    };
    let backend = named.backend_type.unwrap_or_default();
    // Workers of an unknown type are asked like those of all types but one (contract CP-13).
    let odd = BackendType::try_from(backend)
        .is_err()
        .then(|| format!("backendType {backend} of version {id} is not known"));
    let rate = match (named.has_rate_limit, named.sync_check) {
        (false, _) => Rate::Unlimited,
        (true, false) => Rate::Beside,
        (true, true) => Rate::Before,
    };
    let streaming = of == Type::Streaming;
    // For the other types the API does not say where they run.
    let gfn = streaming && backend == i32::from(BackendType::Gfn);
    Ok(Version { id, kind: Kind { streaming, gfn, rate }, odd })
}

/// An id in its canonical form, in which it stands in subjects and tables.
fn id(field: &str, text: &str) -> Result<Arc<str>, String> {
    match text {
        "" => Err(format!("{field} is missing")),
        text if text.len() > MOST_ID => Err(format!("{field} has {} octets", text.len())),
        text => match Uuid::try_parse(text) {
            Ok(id) => Ok(id.to_string().into()),
            Err(_) => Err(format!("{field} \"{}\" is no UUID", text.escape_debug())),
        },
    }
}

fn name(field: &str, text: &str) -> Result<Arc<str>, String> {
    match text {
        "" => Err(format!("{field} is missing")),
        text if text.len() > MOST_NAME => Err(format!("{field} has {} octets", text.len())),
        text if text.chars().any(char::is_control) => {
            Err(format!("{field} has control characters"))
        }
        text => Ok(text.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const F: &str = "11111111-1111-4111-8111-111111111111";
    const V1: &str = "aaaaaaaa-2222-4222-8222-222222222222";
    const V2: &str = "33333333-3333-4333-8333-333333333333";

    fn of(id: &str) -> FunctionVersion {
        FunctionVersion { function_version_id: id.into(), ..FunctionVersion::default() }
    }

    fn answer(versions: Vec<FunctionVersion>) -> ProxyAuthResponse {
        ProxyAuthResponse {
            function_id: F.into(),
            function_versions: versions,
            client_auth_subject: "me".into(),
            client_nca_id: "nca".into(),
        }
    }

    fn wrong(answer: ProxyAuthResponse) -> String {
        match read(answer, 0) {
            Err(Unusable(why)) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn all_versions_are_picked_and_ids_are_canonical() {
        let upper = of(&V1.replace('-', "").to_uppercase());
        let picked = |random| {
            let read = read(answer(vec![upper.clone(), of(V2)]), random).unwrap();
            assert_eq!(read.fault, None);
            read.grant.owner.version.clone()
        };
        assert_eq!([picked(0), picked(1), picked(2)], [V1.into(), V2.into(), V1.into()]);
        let owner = read(answer(vec![of(V1)]), u64::MAX).unwrap().grant.owner;
        assert_eq!((&*owner.tenant, &*owner.function, &*owner.subject), ("nca", F, "me"));
        assert_eq!(owner.kind, Kind::default());
    }

    #[test]
    fn the_kind_of_a_version_says_how_it_is_asked() {
        let kind = |of_type: Type, backend, has_rate_limit, sync_check| {
            let version = FunctionVersion {
                r#type: of_type.into(),
                backend_type: backend,
                has_rate_limit,
                sync_check,
                ..of(V1)
            };
            let kind = read(answer(vec![version]), 7).unwrap().grant.owner.kind;
            (kind.streaming, kind.gfn, kind.rate)
        };
        let gfn = Some(BackendType::Gfn.into());
        assert_eq!(kind(Type::Streaming, gfn, true, true), (true, true, Rate::Before));
        assert_eq!(kind(Type::Streaming, None, true, false), (true, false, Rate::Beside));
        assert_eq!(kind(Type::Llm, gfn, false, true), (false, false, Rate::Unlimited));
    }

    #[test]
    fn no_version_is_an_answer_of_its_own() {
        assert_eq!(&*read(answer(Vec::new()), 5).unwrap().grant.owner.version, "");
    }

    #[test]
    fn every_field_that_is_wrong_is_named() {
        let with = |change: fn(&mut ProxyAuthResponse)| {
            let mut answer = answer(vec![of(V1)]);
            change(&mut answer);
            wrong(answer)
        };
        assert_eq!(with(|a| a.function_id.clear()), "functionId is missing");
        assert_eq!(with(|a| a.function_id = "f\n".into()), "functionId \"f\\n\" is no UUID");
        assert_eq!(with(|a| a.function_id = "x".repeat(65)), "functionId has 65 octets");
        assert_eq!(with(|a| a.client_nca_id.clear()), "clientNcaId is missing");
        assert_eq!(with(|a| a.client_nca_id = "x".repeat(257)), "clientNcaId has 257 octets");
        let told = with(|a| a.client_auth_subject = "a\0".into());
        assert_eq!(told, "clientAuthSubject has control characters");
        let none = ProxyAuthResponse { client_auth_subject: String::new(), ..answer(vec![of(V1)]) };
        assert_eq!(&*read(none, 0).unwrap().grant.owner.subject, "");
        let told = with(|a| a.function_versions[0].function_version_id = "*.>".into());
        assert_eq!(told, "functionVersionId \"*.>\" is no UUID");
        let told = with(|a| a.function_versions[0].r#type = 9);
        assert_eq!(told, format!("type 9 of version {V1} is not known"));
    }

    #[test]
    fn a_backend_that_is_not_known_is_no_other_than_the_usual() {
        let odd =
            FunctionVersion { r#type: Type::Streaming.into(), backend_type: Some(2), ..of(V1) };
        let read = read(answer(vec![odd]), 0).unwrap();
        assert_eq!(read.grant.owner.kind, Kind { streaming: true, ..Kind::default() });
        let fault = format!("backendType 2 of version {V1} is not known");
        assert_eq!(read.fault, Some(fault));
    }

    #[test]
    fn a_wrong_version_does_not_hold_the_others() {
        let read = read(answer(vec![of("x"), of(V2), of("")]), 1).unwrap();
        assert_eq!(&*read.grant.owner.version, V2);
        let fault = "functionVersionId \"x\" is no UUID; 2 versions are wrong";
        assert_eq!(read.fault.as_deref(), Some(fault));
        assert!(wrong(answer(vec![of("x"), of("y")])).contains("2 versions are wrong"));
    }
}
