//! `[nats]`: the servers, and the credentials with which this gateway logs in (contract 6.6).

use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::node::{Node, Value};
use super::problems::{NAME_A_FILE, Origin, Problems};
use super::read::Section;
use super::syntax::PREFIX;
use super::{Nats, NkeySource, Secret};
use crate::tls::{Files, Pair, PairError};

/// The default server, as in NVIDIA's client library.
const DEFAULT: &str = "nats://127.0.0.1:4222";

/// Most servers of one list.
const MAX_URLS: usize = 64;

/// What else is needed to read the table.
pub(super) struct Logins<'a> {
    /// Whether this is `nvcf` mode: NVIDIA's variables count, and without another login an access
    /// token is shown.
    pub(super) nvcf: bool,
    pub(super) folder: &'a Path,
    /// The seed that a variable holds.
    pub(super) nkey: Option<&'a Secret>,
}

/// Reads the table. None if something is missing that was reported.
pub(super) fn read(
    section: &Section<'_>,
    placement: String,
    logins: &Logins<'_>,
    problems: &mut Problems,
) -> Option<Nats> {
    let urls = urls(section, problems);
    let file = |name, problems: &mut Problems| section.path(name, logins.folder, problems);
    let nkey = nkey(section, logins, problems);
    let credentials = file("credentials_file", problems);
    if let Some(path) = &credentials {
        check(section, "credentials_file", path, problems, credentials_fault);
    }
    let user = user(section, file("password_file", problems), problems);
    let token = file("token_file", problems);
    if let Some(path) = &token {
        check(section, "token_file", path, problems, |text| {
            text.trim().is_empty().then(|| "is empty: write the token into it".into())
        });
    }
    let given = [nkey.is_some(), credentials.is_some(), user.is_some(), token.is_some()];
    one_login(section, given, problems);
    let ca = file("ca_file", problems);
    if let Some(path) = &ca {
        check(section, "ca_file", path, problems, authorities_fault);
    }
    let pair = (file("cert_file", problems), file("key_file", problems));
    let client_pair = client_pair(section, pair, problems);
    let named = urls.iter().all(|url| url.contains('@'));
    let logged_in = named || given.contains(&true);
    let callout = logins.nvcf && !logged_in;
    (!urls.is_empty()).then_some(Nats {
        urls,
        nkey,
        credentials,
        user,
        token,
        ca,
        client_pair,
        placement,
        callout,
    })
}

/// The servers' URLs, the scheme written out.
fn urls(section: &Section<'_>, problems: &mut Problems) -> Vec<String> {
    let written = section.texts("urls", problems);
    if written.len() > MAX_URLS {
        let text = format!("nats.urls has more than {MAX_URLS} servers");
        problems.add(section.place_of("urls"), text);
    }
    if let Some(Node { place, value: Value::List(list) }) = section.get("urls")
        && list.is_empty()
    {
        problems.add(*place, "nats.urls names no server: write nats://HOST:4222, or leave it out");
    }
    if written.is_empty() {
        return vec![DEFAULT.into()];
    }
    let mut urls = Vec::new();
    for (place, text) in written {
        let url = if text.contains("://") { text.to_owned() } else { format!("nats://{text}") };
        if !is_server(&url) {
            // The URL may hold a password.
            let shown = if url.contains('@') { String::new() } else { format!(": \"{text}\"") };
            let text = format!(
                "nats.urls has something that is no server's URL{shown}; write \
                 nats://HOST:4222, or tls://HOST:4222"
            );
            problems.add(place, text);
        } else if url.contains('@') && matches!(place, Origin::Variable(n) if n.starts_with(PREFIX))
        {
            let text = "nats.urls has a user in it: no variable of ours holds a secret; write \
                        nats.user and nats.password_file";
            problems.add(place, text);
        }
        urls.push(url);
    }
    urls
}

fn is_server(url: &str) -> bool {
    let Ok(uri) = url.parse::<http::Uri>() else { return false };
    let Some(authority) = uri.authority() else { return false };
    let after = authority.as_str().rsplit('@').next().unwrap_or_default();
    let port = after.strip_prefix(authority.host()).map(|rest| rest.strip_prefix(':'));
    let port_is_good = match port {
        Some(Some(port)) => port.parse::<u16>().is_ok_and(|port| port > 0),
        Some(None) => after == authority.host(),
        None => false,
    };
    matches!(uri.scheme_str(), Some("nats" | "tls"))
        && !authority.host().trim_matches(['[', ']']).is_empty()
        && port_is_good
        && uri.path().len() <= 1
        && uri.query().is_none()
}

/// The NKey: our own variable wins over the proxy's, and that over the file (design 3.21).
fn nkey(section: &Section<'_>, logins: &Logins<'_>, problems: &mut Problems) -> Option<NkeySource> {
    const NAME: &str = "nkey_file";
    let ours = matches!(section.get(NAME).map(|node| node.place), Some(Origin::Variable(_)));
    if let Some(seed) = logins.nkey.filter(|_| !ours) {
        let text = String::from_utf8_lossy(seed.bytes());
        if let Some(fault) = seed_fault(&text) {
            problems.add(Origin::Variable("NATS_PRIVATE_NKEY"), fault);
        }
        return Some(NkeySource::Seed(text.trim().into()));
    }
    let path = section.path(NAME, logins.folder, problems)?;
    check(section, NAME, &path, problems, seed_fault);
    Some(NkeySource::File(path))
}

fn user(
    section: &Section<'_>,
    file: Option<PathBuf>,
    problems: &mut Problems,
) -> Option<(String, PathBuf)> {
    let user = section.text("user", problems);
    if let Some(path) = &file {
        check(section, "password_file", path, problems, |text| {
            text.trim().is_empty().then(|| "is empty: write the password into it".into())
        });
    }
    match (user, file) {
        (Some(user), Some(file)) => Some((user.into(), file)),
        (Some(_), None) => {
            missing(section, Half { has: "user", lacks: "password_file" }, problems);
            None
        }
        (None, Some(_)) => {
            missing(section, Half { has: "password_file", lacks: "user" }, problems);
            None
        }
        (None, None) => None,
    }
}

/// A setting that is written and has no effect without another one.
struct Half {
    has: &'static str,
    lacks: &'static str,
}

fn missing(section: &Section<'_>, Half { has, lacks }: Half, problems: &mut Problems) {
    let text = format!("nats.{has} has no effect without nats.{lacks}: write it too");
    problems.add(section.place_of(has), text);
}

/// Reports two ways to log in, of which one would silently be ignored.
fn one_login(section: &Section<'_>, given: [bool; 4], problems: &mut Problems) {
    let all = ["an NKey", "nats.credentials_file", "nats.user", "nats.token_file"];
    let given: Vec<&str> = all.into_iter().zip(given).filter(|(_, g)| *g).map(|(n, _)| n).collect();
    if given.len() > 1 {
        let text = format!("{} are two ways to log in: leave one", given.join(" and "));
        problems.add(section.place(), text);
    }
}

fn client_pair(
    section: &Section<'_>,
    pair: (Option<PathBuf>, Option<PathBuf>),
    problems: &mut Problems,
) -> Option<(PathBuf, PathBuf)> {
    let (cert, key) = match pair {
        (Some(cert), Some(key)) => (cert, key),
        (None, None) => return None,
        (Some(_), None) => {
            missing(section, Half { has: "cert_file", lacks: "key_file" }, problems);
            return None;
        }
        (None, Some(_)) => {
            missing(section, Half { has: "key_file", lacks: "cert_file" }, problems);
            return None;
        }
    };
    let files = Files { cert, key };
    for error in Pair::load(&files).err().unwrap_or_default() {
        let (name, path, why) = match &error {
            PairError::Cert(why) => ("cert_file", &files.cert, why),
            PairError::Key(why) => ("key_file", &files.key, why),
        };
        let text = format!("nats.{name} \"{}\" {why}", path.display());
        problems.add_passing(section.place_of(name), text);
    }
    Some((files.cert, files.key))
}

/// Reads a file that a setting names, and reports why it cannot be used. The problem may pass,
/// because the file may be being written.
pub(super) fn check(
    section: &Section<'_>,
    name: &str,
    path: &Path,
    problems: &mut Problems,
    fault: impl Fn(&str) -> Option<String>,
) {
    let why = match std::fs::read_to_string(path) {
        Ok(text) => fault(&text),
        Err(error) => Some(format!("cannot be read: {error}; {NAME_A_FILE}")),
    };
    if let Some(why) = why {
        let text = format!("{} \"{}\" {why}", section.key(name), path.display());
        problems.add_passing(section.place_of(name), text);
    }
}

/// What is wrong with a seed, without showing it.
fn seed_fault(text: &str) -> Option<String> {
    let fix = "write the seed of a user's NKey, which begins with SU";
    match nkeys::KeyPair::from_seed(text.trim()) {
        Ok(pair) if pair.key_pair_type() == nkeys::KeyPairType::User => None,
        Ok(_) => Some(format!("is the NKey of something else than a user: {fix}")),
        Err(_) => Some(format!("is no NKey: {fix}")),
    }
}

fn credentials_fault(text: &str) -> Option<String> {
    let line = |start: &str| text.lines().map(str::trim).find(|line| line.starts_with(start));
    let fix = "write the file that `nsc generate creds` makes";
    match (line("eyJ"), line("SU")) {
        (None, _) => Some(format!("has no user's JWT: {fix}")),
        (_, None) => Some(format!("has no seed: {fix}")),
        (_, Some(seed)) => seed_fault(seed).map(|_| format!("has a wrong seed: {fix}")),
    }
}

pub(super) fn authorities_fault(text: &str) -> Option<String> {
    match CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>() {
        Ok(found) if !found.is_empty() => None,
        Ok(_) => Some("has no block \"BEGIN CERTIFICATE\": write it as PEM".into()),
        Err(error) => Some(format!("is not PEM: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_servers_url_is_what_the_client_can_dial() {
        for good in [
            "nats://n:4222",
            "nats://n",
            "tls://n.test:4222",
            "nats://me:pass@n:4222",
            "nats://[::1]:4222",
            "nats://10.0.0.1:4222/",
        ] {
            assert!(is_server(good), "{good}");
        }
        for bad in
            ["nats://", "http://n:1", "nats://n:0", "nats://n:x", "nats://n/a", "nats://n?a", "n n"]
        {
            assert!(!is_server(bad), "{bad}");
        }
    }

    #[test]
    fn a_seed_is_a_users() {
        let seed = nkeys::KeyPair::new_user().seed().unwrap();
        assert_eq!(seed_fault(&format!(" {seed}\n")), None);
        let account = nkeys::KeyPair::new_account().seed().unwrap();
        assert!(seed_fault(&account).unwrap().contains("something else"));
        assert!(seed_fault("SUSECRET").unwrap().contains("is no NKey"));
        let credentials = format!("--\neyJhbGci\n--\n\n--\n{seed}\n--\n");
        assert_eq!(credentials_fault(&credentials), None);
        assert!(credentials_fault(&seed).unwrap().contains("no user's JWT"));
        assert!(credentials_fault("eyJhbGci\nSUX\n").unwrap().contains("wrong seed"));
        assert!(!credentials_fault("eyJhbGci\nSUX\n").unwrap().contains("SUX"));
    }
}
