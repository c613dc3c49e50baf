//! What `[listen]` takes besides addresses: TLS with its files, and the PROXY protocol.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its parts too")]

mod config_rig;

use std::path::Path;

use ringway::config::{Config, Environment, Source};

use config_rig::{Folder, PARTIES};

/// A certificate that lives from the one year to the other, and its key.
fn issue(folder: &Folder, name: &str, years: (i32, i32)) {
    let mut params = rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap();
    params.not_before = rcgen::date_time_ymd(years.0, 1, 1);
    params.not_after = rcgen::date_time_ymd(years.1, 1, 1);
    let key = rcgen::KeyPair::generate().unwrap();
    folder.file(&format!("{name}.pem"), &params.self_signed(&key).unwrap().pem());
    folder.file(&format!("{name}.key"), &key.serialize_pem());
}

/// No certificate of that name any more.
fn forget(folder: &Folder, name: &str) {
    for kind in ["pem", "key"] {
        let _ = std::fs::remove_file(folder.0.join(format!("{name}.{kind}")));
    }
}

/// Two listeners' values; the addresses stay what they are.
fn parse(client: &str, worker: &str, folder: &Path) -> Result<Config, String> {
    let text = format!(
        "[listen]\nclient = {{ address = \"127.0.0.1:0\" {client} }}\n\
         worker = {{ address = \"127.0.0.1:0\" {worker} }}\n{PARTIES}"
    );
    Config::parse(&text, "x.toml", folder).map_err(|problems| problems.to_string())
}

fn told(client: &str) -> String {
    parse(client, "", Path::new("")).expect_err(client)
}

#[test]
fn listeners_take_tls_and_the_proxy_protocol() {
    let folder = Folder::new();
    issue(&folder, "a", (2020, 2090));
    let tls = ", tls = { cert = \"a.pem\", key = \"a.key\" }";
    let proxy = ", proxy_protocol = true, trusted = [\"10.0.0.0/8\", \"192.0.2.1\", \"::1\"]";
    let config = parse(&format!("{tls}{proxy}"), tls, &folder.0).unwrap();
    let front = &config.fronts.client;
    assert_eq!(front.tls.as_ref().unwrap().files.cert, folder.0.join("a.pem"));
    assert!(front.proxy_protocol);
    let trusted: Vec<String> = front.trusted.iter().map(ToString::to_string).collect();
    assert_eq!(trusted, ["10.0.0.0/8", "192.0.2.1/32", "::1/128"]);
    assert!(config.fronts.worker.tls.is_some() && !config.fronts.worker.proxy_protocol);
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    let shown = format!("{config:?}");
    assert!(!shown.contains("PRIVATE") && !shown.contains("dev-key"));
    let none = parse("", "", &folder.0).unwrap();
    assert!(none.fronts.client.tls.is_none() && !none.fronts.client.proxy_protocol);
}

#[test]
fn clients_may_be_told_to_speak_http2() {
    for (protocol, told) in
        [("", false), (", protocol = \"auto\"", false), (", protocol = \"h2\"", true)]
    {
        let config = parse(protocol, "", Path::new("")).unwrap();
        assert_eq!(config.fronts.client.http2, told, "{protocol}");
    }
    let why = told(", protocol = \"h3\"");
    assert!(
        why.contains("listen.client.protocol is \"h3\", but must be one of: auto, h2"),
        "{why}"
    );
    assert!(told(", protocol = 2").contains("protocol is a number, but must be a word"));
    let why = parse("", ", protocol = \"h2\"", Path::new("")).expect_err("a worker");
    assert!(why.contains("listen.worker.protocol is not possible"), "{why}");
}

#[test]
fn ipv4_networks_in_ipv6_form_are_ipv4_networks() {
    let trusted = "\"::ffff:10.0.0.0/104\", \"::ffff:192.0.2.1\", \"::ffff:192.0.2.2/128\", \
                   \"::ffff:0.0.0.0/96\", \"2001:db8::/32\"";
    let proxy = format!(", proxy_protocol = true, trusted = [{trusted}]");
    let config = parse(&proxy, "", Path::new("")).unwrap();
    let trusted: Vec<String> =
        config.fronts.client.trusted.iter().map(ToString::to_string).collect();
    let meant = ["10.0.0.0/8", "192.0.2.1/32", "192.0.2.2/32", "0.0.0.0/0", "2001:db8::/32"];
    assert_eq!(trusted, meant);
    assert_eq!(config.warnings.len(), 1, "who believes everybody is told: {:?}", config.warnings);
}

#[test]
fn every_fault_of_a_listener_is_told_with_its_key_and_the_fix() {
    let line = "x.toml:2: listen.client.";
    for (client, say) in [
        (", trustd = []", "trustd is not a setting; did you mean `trusted`?"),
        (", tls = true", "tls is true or false, but must be a table { cert"),
        (", tls = {}", "tls.cert is missing"),
        (", tls = { cert = 1, key = \"k\" }", "tls.cert is a number, but must be the path"),
        (", tls = { cert = \"\", key = \"k\" }", "tls.cert is a text, but must be the path"),
        (", tls = { crt = \"x\" }", "tls.crt is not a setting: use `cert` and `key`"),
        (", proxy_protocol = \"yes\"", "proxy_protocol is a text, but must be true or false"),
        (", proxy_protocol = true", "proxy_protocol needs listen.client.trusted: "),
        (", proxy_protocol = true, trusted = []", "proxy_protocol needs listen.client.trusted"),
        (", trusted = [\"10.0.0.0/8\"]", "trusted has no effect without proxy_protocol = true"),
        (", proxy_protocol = true, trusted = \"10.0.0.0/8\"", "trusted is a text, but must be"),
        (", proxy_protocol = true, trusted = [5]", "trusted is a number, but must be a list"),
        (", proxy_protocol = true, trusted = [\"x\"]", "trusted has \"x\", which is no network"),
        (
            ", proxy_protocol = true, trusted = [\"10.1.0.0/8\"]",
            "trusted has \"10.1.0.0/8\", whose address lies inside the network: write \
             \"10.0.0.0/8\"",
        ),
        (
            ", proxy_protocol = true, trusted = [\"::ffff:10.1.0.0/104\"]",
            "trusted has \"::ffff:10.1.0.0/104\", whose address lies inside the network: write \
             \"10.0.0.0/8\"",
        ),
        (
            ", proxy_protocol = true, trusted = [\"::ffff:10.0.0.0/8\"]",
            "trusted has \"::ffff:10.0.0.0/8\", an IPv4 network in IPv6 form: write \
             \"10.0.0.0/8\"",
        ),
    ] {
        let told = told(client);
        assert!(told.starts_with(&format!("{line}{say}")), "{client}: {told}");
    }
    let text = format!(
        "[listen]\nadmin = {{ address = \"127.0.0.1:0\", tls = {{}} }}\n[control]\n\
         advertise = \"http://10.0.0.1:1\"\n{PARTIES}"
    );
    let told = Config::parse(&text, "x.toml", Path::new("")).unwrap_err().to_string();
    assert!(told.starts_with("x.toml:2: listen.admin.tls is not possible: "), "{told}");
}

#[test]
fn files_are_read_and_belong_together() {
    let folder = Folder::new();
    issue(&folder, "a", (2020, 2090));
    issue(&folder, "b", (2020, 2090));
    folder.file("empty", "");
    folder.file("torn", "-----BEGIN CERTIFICATE-----\nMIIB");
    folder.file("der", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    for (cert, key, say) in [
        ("gone", "a.key", &["tls.cert \"", "cannot be read: No such file"][..]),
        ("a.pem", "gone", &["tls.key \"", "cannot be read: No such file"]),
        ("gone", "gone", &["tls.cert \"", "tls.key \""]),
        (".", "a.key", &["tls.cert \"", "cannot be read: "]),
        ("empty", "a.key", &["tls.cert \"", "has no block \"BEGIN CERTIFICATE\": write it as PEM"]),
        ("a.key", "a.key", &["tls.cert \"", "has no block \"BEGIN CERTIFICATE\""]),
        ("torn", "a.key", &["tls.cert \"", "is not PEM"]),
        ("der", "a.key", &["tls.cert \"", "no X.509 certificate"]),
        ("a.pem", "a.pem", &["tls.key \"", "has no block \"BEGIN PRIVATE KEY\": write it as PEM"]),
        ("a.pem", "b.key", &["tls.key \"", "does not belong to the certificate: "]),
    ] {
        let tls = format!(", tls = {{ cert = \"{cert}\", key = \"{key}\" }}");
        let told = parse(&tls, "", &folder.0).unwrap_err();
        let found = say.iter().all(|say| told.contains(say));
        assert!(found && told.starts_with("x.toml:2: listen.client."), "{cert}, {key}: {told}");
    }
}

#[test]
fn a_certificate_that_is_past_its_time_is_a_warning() {
    let folder = Folder::new();
    issue(&folder, "old", (2019, 2020));
    let tls = ", tls = { cert = \"old.pem\", key = \"old.key\" }";
    let config = parse(tls, "", &folder.0).unwrap();
    let [warning] = &config.warnings[..] else { panic!("{:?}", config.warnings) };
    assert!(warning.starts_with("listen.client.tls.cert \""), "{warning}");
    assert!(warning.ends_with("has expired: renew it"), "{warning}");
    let all = ", proxy_protocol = true, trusted = [\"0.0.0.0/0\"]";
    let config = parse(all, "", &folder.0).unwrap();
    let [warning] = &config.warnings[..] else { panic!("{:?}", config.warnings) };
    assert_eq!(warning, "listen.client.trusted = \"0.0.0.0/0\" believes everybody");
}

#[test]
fn workers_may_be_told_https_where_it_is_spoken() {
    let folder = Folder::new();
    issue(&folder, "a", (2020, 2090));
    let with = |worker: &str| {
        let text = format!(
            "[listen]\nworker = {{ address = \"127.0.0.1:0\" {worker} }}\n[control]\n\
             advertise = \"https://gateway.example:10086\"\n{PARTIES}"
        );
        Config::parse(&text, "x.toml", &folder.0).map_err(|problems| problems.to_string())
    };
    let told = with("").unwrap_err();
    assert!(told.contains("but listen.worker speaks no TLS: write \"http://...\""), "{told}");
    assert!(with(", tls = { cert = \"a.pem\", key = \"a.key\" }").is_ok());
}

#[test]
fn certificates_that_are_still_being_written_are_waited_for() {
    let folder = Folder::new();
    let tls = "tls = { cert = \"a.pem\", key = \"a.key\" }";
    let file = folder.0.join("x.toml");
    let listen = format!("[listen]\nclient = {{ address = \"127.0.0.1:0\", {tls} }}\n");
    let control = "[control]\nadvertise = \"http://10.0.0.1:1\"\n";
    std::fs::write(&file, format!("{listen}{control}{PARTIES}")).unwrap();
    let source = Source::new(Some(file.clone()), Environment::default());
    let begun = std::time::Instant::now();
    assert!(source.load_patiently().unwrap_err().may_pass());
    assert!(begun.elapsed() >= std::time::Duration::from_secs(2), "five tries, 500 ms apart");
    // A machine that holds the writer up for as long as the tries last does so once, not always.
    let comes_in_time = |_| {
        forget(&folder, "a");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(std::time::Duration::from_millis(700));
                issue(&folder, "a", (2020, 2090));
            });
            source.load_patiently().is_ok()
        })
    };
    assert!((0..5).any(comes_in_time));
    std::fs::write(&file, format!("{listen}{control}{PARTIES}[sesion]\n")).unwrap();
    assert!(!source.load_patiently().unwrap_err().may_pass(), "no waiting for a typo");
}
