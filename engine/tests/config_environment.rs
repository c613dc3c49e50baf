//! Settings by the environment: the mode, our own names, and those of NVIDIA's proxy.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its parts too")]

mod config_rig;

use std::path::{Path, PathBuf};
use std::time::Duration;

use ringway::config::{Config, Endpoint, Environment, Mode, NkeySource, Source};
use ringway::log::Keys;

use config_rig::{Folder, PARTIES};

/// What makes the mode `nvcf`, and no more.
const LEAST: [(&str, &str); 4] = [
    ("NVCF_FQDN_GRPC", "https://grpc.api.test"),
    ("POD_IP", "10.0.0.7"),
    ("ENABLE_HTTP1_CONNECT", "true"),
    ("GEO_DISABLED", "true"),
];

fn load(file: Option<PathBuf>, variables: &[(&str, &str)]) -> Result<Config, String> {
    let environment: Environment = variables.iter().copied().collect();
    Source::new(file, environment).load().map_err(|problems| problems.to_string())
}

/// With [`LEAST`], changed and added to; an empty value takes one away.
fn nvcf(changes: &[(&str, &str)]) -> Result<Config, String> {
    let kept = LEAST.iter().filter(|(name, _)| changes.iter().all(|(other, _)| other != name));
    let variables: Vec<_> = kept.chain(changes).copied().collect();
    load(None, &variables)
}

#[track_caller]
fn is_refused(read: Result<Config, String>, name: &str, said: &str) {
    let told = read.expect_err(said);
    assert_eq!(told.lines().count(), 1, "{told}");
    assert!(told.starts_with(&format!("{name}: ")) && told.contains(said), "{said}: {told}");
}

#[test]
fn the_proxys_environment_makes_a_gateway_like_it() {
    let config = nvcf(&[]).unwrap();
    assert_eq!((config.control.mode, &*config.control.why), (Mode::Nvcf, "NVCF_FQDN_GRPC is set"));
    let listen = config.listen;
    let addresses = [listen.client, listen.worker, listen.admin].map(|a| a.to_string());
    assert_eq!(addresses, ["0.0.0.0:10081", "0.0.0.0:10086", "0.0.0.0:10083"]);
    assert_eq!((config.drain.delay.as_secs(), config.drain.max.as_secs()), (3, 20));
    assert_eq!((config.log.keys, config.version), (Keys::Zap, None));
    assert!(config.tenants.is_empty() && config.functions.is_empty());
    let remote = config.control.remote.unwrap();
    let api = remote.authority.unwrap();
    let url = Endpoint { tls: true, host: "grpc.api.test".into(), port: 443 };
    assert_eq!((api.url, api.oauth, api.limiter), (url, None, None));
    assert_eq!((remote.region.as_str(), remote.red_after.as_secs()), ("ncp", 10));
    assert_eq!(remote.proxy_uri, "http://10.0.0.7:10086/v1/proxy");
    assert_eq!(remote.secrets.unwrap(), PathBuf::from("/vault/secrets/secrets.json"));
    assert_eq!(remote.nats.urls, ["nats://127.0.0.1:4222"]);
    assert_eq!(remote.nats.placement, "aws-region:ncp");
    assert!(remote.nats.callout && remote.nats.nkey.is_none());
}

#[test]
fn each_of_the_proxys_names_counts() {
    let seed = nkeys::KeyPair::new_user().seed().unwrap();
    let config = nvcf(&[
        ("NVCF_FQDN_GRPC", "http://[2001:db8::5]/"),
        ("NATS_FQDN", "nats://a:4222, b.test,tls://me:pass@c"),
        ("NATS_PRIVATE_NKEY", &seed),
        ("SSA_FQDN", "https://issuer.test/base/"),
        ("SECRETS_PATH", "/tmp/secrets.json"),
        ("SELF_WORKER_FQDN", "https://workers.test:8443/"),
        ("AWS_REGION", "us-west-2"),
        ("JETSTREAM_PLACEMENT_TAG", "dc:ncp"),
        ("RATE_LIMIT_ENABLED", "T"),
        ("RATE_LIMIT_ADDR", "http://limiter.test:8080"),
        ("VERSION", "1.33.4"),
        ("CLUSTER_NAME", "somewhere"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317"),
        ("LOCAL_TEST", "0"),
    ])
    .unwrap();
    assert_eq!(config.version.as_deref(), Some("1.33.4"));
    assert_eq!(config.control.advertise.as_deref(), Some("https://workers.test:8443/"));
    let remote = config.control.remote.unwrap();
    let api = remote.authority.unwrap();
    assert_eq!(api.url, Endpoint { tls: false, host: "2001:db8::5".into(), port: 80 });
    assert_eq!(api.oauth.as_deref(), Some("https://issuer.test/base"));
    assert_eq!(api.limiter.unwrap().to_string(), "http://limiter.test:8080");
    assert_eq!(remote.proxy_uri, "https://workers.test:8443/v1/proxy");
    assert_eq!((&*remote.region, &*remote.nats.placement), ("us-west-2", "dc:ncp"));
    assert_eq!(remote.nats.urls, ["nats://a:4222", "nats://b.test", "tls://me:pass@c"]);
    assert_eq!(remote.nats.nkey, Some(NkeySource::Seed(seed.as_str().into())));
    assert!(!remote.nats.callout);
    assert_eq!(remote.secrets.unwrap(), PathBuf::from("/tmp/secrets.json"));
}

#[test]
fn workers_are_told_the_address_that_is_set_or_the_pods() {
    let uri = |changes: &[_]| nvcf(changes).unwrap().control.remote.unwrap().proxy_uri;
    let (fqdn, pod) = ("SELF_WORKER_FQDN", "POD_IP");
    assert_eq!(uri(&[(fqdn, "http://w.test")]), "http://w.test/v1/proxy");
    assert_eq!(uri(&[(fqdn, "http://w.test:1/"), (pod, "")]), "http://w.test:1/v1/proxy");
    assert_eq!(uri(&[(pod, "fd00::7")]), "http://[fd00::7]:10086/v1/proxy");
    let ours = ("RINGWAY__CONTROL__ADVERTISE", "http://ours:1");
    assert_eq!(uri(&[(fqdn, "http://w.test"), ours]), "http://ours:1/v1/proxy");
    let port = ("RINGWAY__LISTEN__WORKER", "0.0.0.0:7");
    assert_eq!(uri(&[port]), "http://10.0.0.7:7/v1/proxy");
    let own = ("RINGWAY__LISTEN__WORKER", "10.0.0.9:7");
    assert_eq!(uri(&[own, (pod, "")]), "http://10.0.0.9:7/v1/proxy");
    is_refused(nvcf(&[(pod, "")]), fqdn, "neither is POD_IP");
    is_refused(nvcf(&[(fqdn, "w.test:10086")]), fqdn, "must be a URL");
    is_refused(nvcf(&[(fqdn, "//w.test")]), fqdn, "must be a URL");
    let free = ("RINGWAY__LISTEN__WORKER", "0.0.0.0:0");
    is_refused(nvcf(&[free]), free.0, "port 0");
}

#[test]
fn what_cannot_work_is_refused_by_its_name() {
    for (name, value, said) in [
        ("NVCF_FQDN_GRPC", "grpc.api.test:443", "must be a URL"),
        ("NVCF_FQDN_GRPC", "ftp://grpc.api.test", "must be a URL"),
        ("NVCF_FQDN_GRPC", "https://api.test:0", "must be a URL"),
        ("NVCF_FQDN_GRPC", "https://api.test:70000", "must be a URL"),
        ("NVCF_FQDN_GRPC", "https://api.test/v1", "without user, path and query"),
        ("NVCF_FQDN_GRPC", "https://me:hidden@api.test", "without user, path and query"),
        ("SELF_WORKER_FQDN", "http://me:hidden@w.test", "neither a query, a fragment nor a user"),
        ("SSA_FQDN", "issuer.test", "must be a URL"),
        ("SSA_FQDN", "https://issuer.test?a=b", "must be a URL"),
        ("NATS_FQDN", "http://n.test", "no server's URL"),
        ("NATS_FQDN", "nats://me:hidden@n.test:x", "no server's URL"),
        ("RINGWAY__NATS__URLS", "nats://me:hidden@n.test", "no variable of ours holds a secret"),
        ("NATS_PRIVATE_NKEY", "SUhidden", "is no NKey"),
        ("AWS_REGION", "us.west", "letters, digits, _ and -"),
        ("RATE_LIMIT_ENABLED", "true", "set RATE_LIMIT_ADDR"),
        ("RATE_LIMIT_ENABLED", "on", "must be true or false"),
        ("RINGWAY__NATS__USER", "me", "write it too"),
        ("RINGWAY__NATS__NKEY_FILE", "/nowhere/seed", "cannot be read"),
        ("RINGWAY__NATS__CA_FILE", "/nowhere/ca.pem", "cannot be read"),
        ("RINGWAY__CONTROL__RED_AFTER", "10", "with its unit"),
        ("RINGWAY__LOG__KEYS", "zapp", "one of \"ringway\", \"zap\""),
        ("RINGWAY__CORES__PIN", "yes", "must be true or false"),
        ("RINGWAY__LIMITS__STREAMS", "0", "a number from 1"),
    ] {
        let read = nvcf(&[(name, value)]);
        assert!(!read.as_ref().is_err_and(|told| told.contains("hidden")), "{read:?}");
        is_refused(read, name, said);
    }
    let limiter = [("RATE_LIMIT_ENABLED", "1"), ("RATE_LIMIT_ADDR", "limiter:8080")];
    is_refused(nvcf(&limiter), "RATE_LIMIT_ADDR", "must be a URL");
}

#[test]
fn the_mode_is_what_is_set_or_follows_from_what_is_there() {
    let folder = Folder::new();
    let local = "[listen]\nworker = \"127.0.0.1:10086\"\n";
    let file = folder.file("a.toml", &format!("{local}{PARTIES}"));
    let config = load(Some(file.clone()), &LEAST).unwrap();
    assert_eq!(config.control.mode, Mode::Local);
    assert!(config.control.why.ends_with("a.toml does not set control.mode"));
    assert!(config.control.remote.is_none());
    let nats = ("RINGWAY__CONTROL__MODE", "nats");
    let config = load(Some(file.clone()), &[nats]).unwrap();
    assert_eq!(config.control.why, "RINGWAY__CONTROL__MODE says so");
    let remote = config.control.remote.unwrap();
    assert!(remote.authority.is_none() && !remote.nats.callout && remote.secrets.is_none());
    assert_eq!((&*remote.region, &*remote.nats.placement), ("ncp", ""));
    assert_eq!(remote.proxy_uri, "http://127.0.0.1:10086/v1/proxy");
    assert_eq!((config.log.keys, config.drain.max.as_secs()), (Keys::Ringway, 60));
    assert_eq!(config.listen.admin.to_string(), "127.0.0.1:10083");
    // The proxy's names are for the mode that takes its place.
    let region = ("AWS_REGION", "us-west-2");
    let config = load(Some(file), &[nats, region, ("POD_IP", "x")]).unwrap();
    assert_eq!(config.control.remote.unwrap().region, "ncp");
    let told = load(None, &[]).unwrap_err();
    assert_eq!(told.lines().count(), 1);
    assert!(told.contains("--config FILE") && told.contains("set NVCF_FQDN_GRPC"), "{told}");
    is_refused(load(None, &[("LOCAL_TEST", "t")]), "LOCAL_TEST", "`ringway dev`");
    is_refused(nvcf(&[("LOCAL_TEST", "true")]), "LOCAL_TEST", "`ringway dev`");
    let wrong = [("RINGWAY__CONTROL__MODE", "remote")];
    is_refused(load(None, &wrong), wrong[0].0, "one of \"local\", \"nats\", \"nvcf\"");
    let told = load(None, &[("RINGWAY__CONTROL__MODE", "local")]).unwrap_err();
    assert!(told.contains("a configuration file (--config FILE) with a [[function]]"), "{told}");
    is_refused(
        nvcf(&[("NVCF_FQDN_GRPC", ""), ("RINGWAY__CONTROL__MODE", "nvcf")]),
        "NVCF_FQDN_GRPC",
        "is not set",
    );
}

#[test]
fn a_file_can_say_all_that_a_remote_control_plane_needs() {
    let folder = Folder::new();
    let seed = nkeys::KeyPair::new_user().seed().unwrap();
    folder.file("seed", &format!("{seed}\n"));
    let nats = "[nats]\nurls = [\"tls://n.test\"]\nregion = \"here\"\nnkey_file = \"seed\"\n";
    let control = "[control]\nmode = \"nats\"\nadvertise = \"http://h:1\"\nred_after = \"3s\"\n";
    let file = folder.file("a.toml", &format!("{control}{nats}{PARTIES}"));
    let config = load(Some(file.clone()), &[]).unwrap();
    let remote = config.control.remote.unwrap();
    assert_eq!(remote.nats.nkey, Some(NkeySource::File(folder.0.join("seed"))));
    assert_eq!((&*remote.region, remote.red_after), ("here", Duration::from_secs(3)));
    let told = load(Some(file), &[("RINGWAY__CONTROL__MODE", "local")]).unwrap_err();
    assert!(told.contains("nats has no effect in local mode"), "{told}");
    assert!(told.contains("control.red_after has no effect in local mode"), "{told}");
    let api =
        "[control]\nmode = \"nvcf\"\nadvertise = \"http://h:1\"\n[nvcf]\napi = \"http://a\"\n";
    let must = [("GEO_DISABLED", "1"), ("ENABLE_HTTP1_CONNECT", "1")];
    let file = folder.file("b.toml", api);
    let config = load(Some(file.clone()), &must).unwrap();
    assert_eq!(config.control.remote.unwrap().authority.unwrap().url.host, "a");
    let (theirs, ours) = (("NVCF_FQDN_GRPC", "http://b"), ("RINGWAY__NVCF__API", "http://c"));
    let host = |more: &[_]| {
        let config = load(Some(file.clone()), &[&must, more].concat()).unwrap();
        config.control.remote.unwrap().authority.unwrap().url.host
    };
    assert_eq!((host(&[theirs]), host(&[theirs, ours])), ("b".into(), "c".into()));
    let file = folder.file("c.toml", &format!("{api}{PARTIES}"));
    let told = load(Some(file), &must).unwrap_err();
    assert!(told.contains("c.toml:7: tenant has no effect in nvcf mode"), "{told}");
    let two = format!("{control}{nats}user = \"me\"\npassword_file = \"seed\"\n{PARTIES}");
    let told = load(Some(folder.file("d.toml", &two)), &[]).unwrap_err();
    assert!(told.contains("an NKey and nats.user are two ways to log in"), "{told}");
}

/// A certificate and its key, as PEM.
fn pair() -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let cert = rcgen::CertificateParams::new(["gateway.test".to_owned()]).unwrap();
    (cert.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

#[test]
fn what_nats_is_logged_in_to_with_is_looked_at() {
    let folder = Folder::new();
    let (cert, key) = pair();
    folder.file("cert.pem", &cert);
    folder.file("key.pem", &key);
    folder.file("other.pem", &pair().1);
    folder.file("password", "secret\n");
    folder.file("empty", "\n");
    let seed = nkeys::KeyPair::new_user().seed().unwrap();
    folder.file("creds", &format!("--\neyJhbGci\n--\n--\n{seed}\n--\n"));
    let read = |nats: &str| {
        let control = "[control]\nmode = \"nats\"\nadvertise = \"http://h:1\"\n";
        let file = folder.file("a.toml", &format!("{control}[nats]\n{nats}\n{PARTIES}"));
        load(Some(file), &[]).map(|config| config.control.remote.unwrap().nats)
    };
    let at = |name| folder.0.join(name);
    let nats = read("user = \"me\"\npassword_file = \"password\"").unwrap();
    assert_eq!(nats.user, Some(("me".into(), at("password"))));
    assert_eq!(read("credentials_file = \"creds\"").unwrap().credentials, Some(at("creds")));
    let tls = "ca_file = \"cert.pem\"\ncert_file = \"cert.pem\"\nkey_file = \"key.pem\"";
    let nats = read(tls).unwrap();
    assert_eq!(nats.ca, Some(at("cert.pem")));
    assert_eq!(nats.client_pair, Some((at("cert.pem"), at("key.pem"))));
    for (nats, said) in [
        ("user = \"me\"", "nats.user has no effect without nats.password_file"),
        ("password_file = \"password\"", "nats.password_file has no effect without nats.user"),
        ("user = \"me\"\npassword_file = \"empty\"", "is empty: write the password"),
        ("credentials_file = \"password\"", "has no user's JWT"),
        ("nkey_file = \"password\"", "is no NKey"),
        ("ca_file = \"password\"", "has no block \"BEGIN CERTIFICATE\""),
        ("cert_file = \"cert.pem\"", "nats.cert_file has no effect without nats.key_file"),
        ("key_file = \"key.pem\"", "nats.key_file has no effect without nats.cert_file"),
        ("urls = [\"\"]", "no server's URL"),
        ("urls = \"nats://n\"", "a list of texts"),
        ("url = \"nats://n\"", "did you mean `urls`?"),
    ] {
        let told = read(nats).expect_err(said);
        assert_eq!(told.lines().count(), 1, "{told}");
        assert!(told.contains(said) && !told.contains("secret"), "{said}: {told}");
    }
    let told = read(&tls.replace("key.pem", "other.pem")).unwrap_err();
    assert!(told.contains("does not belong to the certificate"), "{told}");
}

#[test]
fn the_file_is_read_again_and_the_environment_stays_over_it() {
    let folder = Folder::new();
    let text = |wait, idle| {
        let session = format!("[session]\nwait = \"{wait}\"\nidle = \"{idle}\"\n");
        format!("{session}[control]\nadvertise = \"http://h:1\"\n{PARTIES}")
    };
    let file = folder.file("a.toml", &text("1s", "1s"));
    let environment: Environment = [("RINGWAY__SESSION__WAIT", "9s")].into_iter().collect();
    let source = Source::new(Some(file), environment);
    let times = || {
        let session = source.load().unwrap().session;
        (session.wait.as_secs(), session.idle.as_secs())
    };
    assert_eq!(times(), (9, 1));
    folder.file("a.toml", &text("2s", "2s"));
    assert_eq!(times(), (9, 2));
}

#[test]
fn every_setting_of_a_table_has_a_variable() {
    let folder = Folder::new();
    let file = folder.file("a.toml", PARTIES);
    let config = load(
        Some(file),
        &[
            ("RINGWAY__CONTROL__ADVERTISE", "http://h:1"),
            ("RINGWAY__LISTEN__CLIENT", "127.0.0.1:5"),
            ("RINGWAY__LISTEN__CLIENT__PROXY_PROTOCOL", "true"),
            ("RINGWAY__LISTEN__CLIENT__TRUSTED", "10.0.0.0/8,192.0.2.1"),
            ("RINGWAY__LIMITS__HEADER_BYTES", "512KiB"),
            ("RINGWAY__CORES__COUNT", "3"),
            ("RINGWAY__CORES__BUSY_POLL", "auto"),
            ("RINGWAY__KEEPALIVE__CLIENT_PING", "30s"),
            ("RINGWAY__ADMIN__ALLOW_REMOTE", "true"),
            ("RINGWAY_SERVICE_HOST", "10.0.0.1"),
        ],
    )
    .unwrap();
    assert_eq!(config.listen.client.port(), 5);
    assert_eq!(
        (config.fronts.client.proxy_protocol, config.fronts.client.trusted.len()),
        (true, 2)
    );
    assert_eq!((config.limits.header_bytes, config.cores.count), (512 << 10, Some(3)));
    assert_eq!(config.keepalive.client_ping, Some(Duration::from_secs(30)));
    assert!(config.admin.allow_remote);
}

#[test]
fn the_environment_of_the_documentation_is_good() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/nvcf.env");
    let text = std::fs::read_to_string(path).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let variables: Vec<_> = lines.filter_map(|line| line.split_once('=')).collect();
    let config = load(None, &variables).unwrap();
    assert_eq!(config.session.wait, Duration::from_secs(120));
    let remote = config.control.remote.unwrap();
    assert_eq!(remote.proxy_uri, "http://grpc.nvcf.svc.cluster.local:10086/v1/proxy");
    assert!(remote.authority.unwrap().limiter.is_some());
}

#[test]
fn no_secret_is_shown() {
    let seed = nkeys::KeyPair::new_user().seed().unwrap();
    let config =
        nvcf(&[("NATS_PRIVATE_NKEY", &seed), ("NATS_FQDN", "nats://me:hidden@n.test")]).unwrap();
    let shown = format!("{config:?}");
    assert!(!shown.contains(&seed) && !shown.contains("hidden"), "{shown}");
}
