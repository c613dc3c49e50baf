//! What to do about a server that does not let this gateway in, named by the settings.

use crate::config::Nats as Settings;

/// How the gateway logs in at the servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Login {
    /// An NKey.
    Nkey,
    /// A credentials file.
    Credentials,
    /// A user and a password.
    User,
    /// A token.
    Token,
    /// A token for the auth callout.
    Callout,
    /// A certificate and nothing else.
    Certificate,
    /// Nothing, or what the URLs say.
    Urls,
}

impl Login {
    /// `nkey`: the secrets file has one.
    pub(super) fn of(settings: &Settings, nkey: bool) -> Self {
        match settings {
            _ if nkey || settings.nkey.is_some() => Self::Nkey,
            Settings { credentials: Some(_), .. } => Self::Credentials,
            Settings { user: Some(_), .. } => Self::User,
            Settings { token: Some(_), .. } => Self::Token,
            Settings { callout: true, .. } => Self::Callout,
            Settings { client_pair: Some(_), .. } => Self::Certificate,
            _ => Self::Urls,
        }
    }

    /// What to do if a server refuses the login.
    const fn refused(self) -> &'static str {
        match self {
            Self::Nkey => {
                "the servers do not know this NKey: give them its public key as a user, or name \
                 another seed as nats.nkey_file (NATS_PRIVATE_NKEY, natsPrivateNKey)"
            }
            Self::Credentials => {
                "the servers do not take the JWT of nats.credentials_file, which may have expired, \
                 be revoked, or be of an account they do not know: name a file that \
                 `nsc generate creds` has made for them"
            }
            Self::User => {
                "the servers do not know this name with this password: correct nats.user and the \
                 file nats.password_file"
            }
            Self::Token => "the servers want another token: correct the file nats.token_file",
            Self::Callout => {
                "the servers' auth callout does not take the OAuth2 token: correct id and secret in \
                 the secrets file and nvcf.oauth (SSA_FQDN), or name an NKey as nats.nkey_file"
            }
            Self::Certificate => {
                "the servers have no user for this certificate: add it there, or name \
                 nats.nkey_file, nats.credentials_file, nats.token_file, or nats.user with \
                 nats.password_file"
            }
            Self::Urls => {
                "the servers want to know who this is: name nats.nkey_file, \
                 nats.credentials_file, nats.token_file, or nats.user with nats.password_file"
            }
        }
    }
}

/// The fix for each error, found by a part of its text in small letters; the first match counts.
const ABOUT_CONNECTIONS: &[(&[&str], &str)] = &[
    (
        &["unknownissuer", "unknown issuer", "self-signed", "caused by invalid"],
        "the servers' certificate is of an authority that is not known here: name that one's \
         certificate as nats.ca_file",
    ),
    (
        &["notvalidforname", "not valid for name"],
        "the servers' certificate is for other names: write one of those into nats.urls (NATS_FQDN)",
    ),
    (
        &["certificate expired", "certexpired", "certnotvalidyet", "not valid yet"],
        "renew the servers' certificate, or set this machine's clock",
    ),
    (
        &[
            "certificaterequired",
            "certificate required",
            "badcertificate",
            "bad certificate",
            "unknownca",
            "unknown ca",
        ],
        "the servers want a certificate of an authority of theirs: name it as nats.cert_file and \
         nats.key_file",
    ),
    (
        &[
            "secure connection",
            "tls not",
            "not supported by server",
            "invalidcontenttype",
            "corrupt",
        ],
        "the servers speak no TLS there: write nats:// in place of tls:// into nats.urls \
         (NATS_FQDN), or name the port that does",
    ),
    (
        &["dns", "lookup", "resolve"],
        "write a name that this machine can resolve into nats.urls (NATS_FQDN)",
    ),
    (&["refused"], "start nats-server there, or write where it listens into nats.urls (NATS_FQDN)"),
    (
        &["timed out", "timeout"],
        "look whether a firewall is between, or write where the servers listen into nats.urls \
         (NATS_FQDN)",
    ),
    (
        &["maximum connections", "maximum account active connections"],
        "raise max_connections of the servers, or of the account",
    ),
];

/// What to do about an error that a connection ends with.
pub(super) fn fix(error: &str, login: Login) -> &'static str {
    let error = error.to_lowercase();
    let has = |parts: &[&str]| parts.iter().any(|part| error.contains(part));
    if has(&["authorization violation", "authentication", "nonce"]) {
        return login.refused();
    }
    let found = ABOUT_CONNECTIONS.iter().find(|(parts, _)| has(parts));
    found.map_or("see the log of nats-server, and nats.urls (NATS_FQDN)", |(_, fix)| fix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_setting_that_was_used() {
        let settings = |user, callout| Settings {
            urls: vec!["nats://n:4222".into()],
            nkey: None,
            credentials: None,
            user,
            token: None,
            ca: None,
            client_pair: None,
            placement: String::new(),
            callout,
        };
        let user = Some(("me".to_owned(), "pw".into()));
        for (settings, nkey, names) in [
            (settings(None, false), false, "nats.credentials_file"),
            (settings(None, true), false, "SSA_FQDN"),
            (settings(None, true), true, "nats.nkey_file"),
            (settings(user, false), false, "nats.password_file"),
        ] {
            let login = Login::of(&settings, nkey);
            let fix = fix("authorization violation: nats: Authorization Violation", login);
            assert!(fix.contains(names), "{login:?}: {fix}");
        }
    }

    #[test]
    fn each_error_of_a_connection_has_its_fix() {
        for (error, names) in [
            ("IO error: invalid peer certificate: UnknownIssuer", "nats.ca_file"),
            ("IO error: received fatal alert: CertificateRequired", "nats.cert_file"),
            ("IO error: Connection refused (os error 111)", "start nats-server"),
            ("DNS error: failed to lookup address information", "resolve"),
            ("timed out", "firewall"),
            ("something else", "nats-server"),
        ] {
            let fix = fix(error, Login::Urls);
            assert!(fix.contains(names), "{error}: {fix}");
        }
    }
}
