//! The configuration file as an operator meets it: what loads, and what is said of what does not.

use std::path::Path;
use std::time::Duration;

use ringway::config::{
    BusyPoll, Config, Environment, HonourId, Problems, Scope, Source, settings_as_markdown,
};

/// The design's sample without the keys whose features are not built yet.
const SAMPLE: &str = r#"
[listen]
client = "0.0.0.0:10081"
worker = "0.0.0.0:10086"
admin  = "127.0.0.1:10083"

[cores]                                     # count = "auto" or N (CPU quota), pin = true, busy_poll = "0us"

[control]
mode = "local"
advertise = "http://127.0.0.1:10086"

[[tenant]]
name = "dev"
client_keys = ["dev-key"]

[[function]]
id = "11111111-1111-4111-8111-111111111111"
version = "22222222-2222-4222-8222-222222222222"
tenants = ["dev"]
worker_keys = ["dev-worker-key"]
kind = "default"

[session]
wait = "30s"
idle = "30s"
scope = "tenant"
honour_id = "always"

[drain]                                     # delay = "0s", max = "60s"
"#;

/// The same as YAML.
const YAML: &str = r#"
listen:
  client: 0.0.0.0:10081
  worker: "0.0.0.0:10086"
  admin: { address: 127.0.0.1:10083 }

cores:                                      # all as usual

control:
  mode: local
  advertise: http://127.0.0.1:10086

tenant:
  - name: dev
    client_keys: [dev-key]

function:
  - id: 11111111-1111-4111-8111-111111111111
    version: 22222222-2222-4222-8222-222222222222
    tenants:
      - dev
    worker_keys: ["dev-worker-key"]
    kind: 'default'

session:
  wait: 30s
  idle: 30s
  scope: tenant
  honour_id: always

drain: {}
"#;

fn parse_yaml(text: &str) -> Result<Config, String> {
    Config::parse(text, "ringway.yaml", Path::new("")).map_err(|problems| problems.to_string())
}

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text, "ringway.toml", Path::new("")).map_err(|problems| problems.to_string())
}

fn load(path: &Path) -> Result<Config, Problems> {
    Source::new(Some(path.into()), Environment::default()).load()
}

/// The problems of the sample after one replacement.
fn with(from: &str, to: &str) -> String {
    assert!(SAMPLE.contains(from), "{from} is not in the sample");
    parse(&SAMPLE.replacen(from, to, 1)).expect_err("it must be refused")
}

/// The line of the sample that contains `text`.
fn line(text: &str) -> usize {
    SAMPLE.lines().position(|line| line.contains(text)).expect("it is in the sample") + 1
}

#[test]
fn the_sample_of_the_design_loads() {
    let config = parse(SAMPLE).unwrap();
    assert_eq!(config.listen.client.to_string(), "0.0.0.0:10081");
    assert_eq!((config.cores.count, config.cores.pin), (None, true));
    assert_eq!(config.cores.busy_poll, BusyPoll::For(Duration::ZERO));
    assert_eq!(config.control.advertise.as_deref(), Some("http://127.0.0.1:10086"));
    assert_eq!(config.tenants[0].client_keys[0].bytes(), b"dev-key");
    assert!(!config.functions[0].streaming);
    assert_eq!(config.session.scope, Scope::Tenant);
    assert_eq!(config.session.honour_id, HonourId::Always);
    assert_eq!(config.drain.max, Duration::from_secs(60));
    assert_eq!((config.limits.streams, config.limits.header_bytes), (10_000, 262_144));
    assert_eq!((config.keepalive.idle.as_secs(), config.keepalive.interval.as_secs()), (15, 15));
    assert_eq!((config.keepalive.probes, config.keepalive.user_timeout.as_secs()), (9, 150));
    assert_eq!(config.keepalive.client_ping, None);
    assert_eq!(config.keepalive.tunnel_start.as_secs(), 45);
    assert!(!config.admin.allow_remote && !config.log.access);
}

#[test]
fn values_other_than_the_defaults_arrive() {
    let more = r#"
[limits]
streams = 7
stream_window_max = "4MiB"
handshake = "250ms"
[admin]
allow_remote = true
[log]
level = "debug"
access = true
[keepalive]
idle = "60s"
interval = "5s"
probes = 3
tunnel_ping = "3s"
tunnel_start = "6s"
user_timeout = "20s"
client_ping = "10s"
client_ping_timeout = "2s"
"#;
    let text = SAMPLE.replace("scope = \"tenant\"", "scope = \"credential\"") + more;
    assert!(parse(&format!("{text}[cores.unknown]\n")).is_err(), "a stray table is not swallowed");
    let cores = "[cores]\nbusy_poll = \"50us\"\npin = false\ncount = \"auto\"";
    let config = parse(&text.replace("[cores]", cores)).unwrap();
    assert_eq!((config.limits.streams, config.limits.stream_window_max), (7, 4 << 20));
    assert_eq!(config.limits.handshake, Duration::from_millis(250));
    assert!(config.admin.allow_remote && config.log.access && !config.cores.pin);
    assert_eq!(config.log.level, "debug");
    assert_eq!(config.keepalive.tunnel_ping, Duration::from_secs(3));
    assert_eq!(config.keepalive.tunnel_start, Duration::from_secs(6));
    assert_eq!(config.keepalive.idle, Duration::from_secs(60));
    assert_eq!(config.keepalive.user_timeout, Duration::from_secs(20));
    assert_eq!(config.keepalive.client_ping, Some(Duration::from_secs(10)));
    assert_eq!(config.keepalive.client_ping_timeout, Duration::from_secs(2));
    assert_eq!((config.keepalive.interval.as_secs(), config.keepalive.probes), (5, 3));
    assert_eq!(config.session.scope, Scope::Credential);
    assert_eq!(config.cores.busy_poll, BusyPoll::For(Duration::from_micros(50)));
    assert_eq!((config.cores.count, config.notes.len()), (None, 1));
    let noticed = config.keepalive.client_timeout;
    assert_eq!(noticed, config.keepalive.user_timeout, "what is shorter for all is so for clients");
    assert!(config.notes[0].contains("holds its worker for"), "{:?}", config.notes);
}

#[test]
fn a_core_may_spin_for_a_time_or_as_traffic_has_it_or_for_ever() {
    let with =
        |value: &str| parse(&SAMPLE.replace("[cores]", &format!("[cores]\nbusy_poll = {value}")));
    let micros = Duration::from_micros;
    for (value, wanted) in [
        ("\"0us\"", BusyPoll::For(micros(0))),
        ("\"50us\"", BusyPoll::For(micros(50))),
        ("\"auto\"", BusyPoll::Auto),
        ("\"always\"", BusyPoll::Always),
    ] {
        assert_eq!(with(value).unwrap().cores.busy_poll, wanted, "{value}");
    }
    let told = with("\"soon\"").unwrap_err();
    let say = "cores.busy_poll is \"soon\", but must be \"0us\", \"Nus\", \"auto\" or \"always\"";
    assert!(told.contains(say), "{told}");
}

#[test]
fn every_problem_is_told_at_once_with_its_line() {
    let text = SAMPLE
        .replace("wait = \"30s\"", "wait = \"30\"")
        .replace("idle =", "idel =")
        .replace("\"tenant\"", "\"everyone\"")
        .replace("tenants = [\"dev\"]", "tenants = [\"devv\"]");
    let told = parse(&text).unwrap_err();
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(lines.len(), 4, "{told}");
    let tenants = line("tenants =");
    assert!(lines[0].starts_with(&format!("ringway.toml:{tenants}: there is no tenant \"devv\"")));
    assert!(lines[0].ends_with("did you mean \"dev\"?"));
    let wait = line("wait =");
    assert!(lines[1].starts_with(&format!("ringway.toml:{wait}: session.wait is \"30\"")));
    assert!(lines[2].contains("session.idel is not a setting; did you mean `idle`?"), "{told}");
    assert!(lines[3].contains("one of \"connection\", \"tenant\", \"credential\""), "{told}");
}

#[test]
fn yaml_is_the_same_configuration() {
    let (yaml, toml) = (parse_yaml(YAML).unwrap(), parse(SAMPLE).unwrap());
    // Why the mode is what it is names the file.
    let shown = format!("{yaml:?}").replace("ringway.yaml", "ringway.toml");
    assert_eq!(shown, format!("{toml:?}"));
    // Debug does not show them.
    assert!(yaml.written == toml.written);
    assert_eq!(yaml.tenants[0].client_keys, toml.tenants[0].client_keys);
    assert_eq!(yaml.functions[0].worker_keys, toml.functions[0].worker_keys);
}

#[test]
fn every_problem_of_a_yaml_file_is_told_at_once_with_its_line() {
    let text = YAML
        .replace("mode: local", "mode: &here local")
        .replace("cores:  ", "cores: 5  ")
        .replace("wait: 30s", "wait: 30")
        .replace("idle:", "idel:")
        .replace("scope: tenant", "scope: tenant\n  scope: connection")
        .replace("- dev\n", "- devv\n")
        .replace("[dev-key]", "[dev-key, 12345]")
        .replace("drain:", "drian:")
        .replace("admin: {", "admin: { tls: x,");
    let told = parse_yaml(&text).unwrap_err();
    let line = |part| text.lines().position(|line| line.contains(part)).unwrap() + 1;
    let wanted = [
        ("admin:", "listen.admin.tls is not possible"),
        ("cores:", "cores is a number, not a table: write \"cores:\" and"),
        ("mode:", "an anchor (&) cannot be used"),
        ("client_keys:", "tenant.client_keys is a number, but must be a list of texts"),
        ("- devv", "there is no tenant \"devv\"; did you mean \"dev\"?"),
        ("wait:", "session.wait is 30, but must be 1ms to 24h, with its unit"),
        ("idel:", "session.idel is not a setting; did you mean `idle`?"),
        ("scope: connection", "scope is on line "),
        ("drian:", "\"drian:\" is not a table of settings; did you mean \"drain:\"?"),
    ];
    assert_eq!(told.lines().count(), wanted.len(), "{told}");
    for ((part, say), told) in wanted.into_iter().zip(told.lines()) {
        assert!(told.starts_with(&format!("ringway.yaml:{}: {say}", line(part))), "{say}: {told}");
    }
}

#[test]
fn the_fixes_of_a_yaml_file_are_yaml() {
    for (from, to, say) in [
        ("  advertise: http", "  # http", "such as advertise: \"http://10.0.0.1:10086\""),
        ("    client_keys: [dev-key]", "", "has no key: write client_keys: [\"...\"]"),
        ("  - name: dev\n    ", "  name: dev\n  ", "write \"tenant:\" and a \"-\" before each"),
        (
            "      - dev\n",
            "      - me\n",
            "there is no tenant \"me\": write an item of \"tenant:\" for it",
        ),
        (
            "  mode: local\n  advertise:",
            "  - local\n  - ",
            "write \"control:\" and its settings indented",
        ),
        ("wait: 30s", "wait:", "session.wait is empty, but must be"),
        ("wait: 30s", "wait: [30s", "not YAML: "),
    ] {
        assert!(YAML.contains(from), "{from} is not in the sample");
        let told = parse_yaml(&YAML.replacen(from, to, 1)).expect_err(to);
        assert!(told.contains(say), "{to}: {told}");
    }
}

#[test]
fn what_is_not_built_is_refused_as_not_supported_yet() {
    let client = "client = \"0.0.0.0:10081\"";
    for (from, to) in [
        ("wait = \"30s\"", "wait = \"30s\"\n[limits]\nfailed_connects = 1 "),
        ("[drain] ", "[limits]\nasks = 1 "),
    ] {
        let told = with(from, to);
        assert!(told.contains("not supported yet"), "{to}: {told}");
    }
    let text = SAMPLE.replace(client, "client = { address = \"127.0.0.1:5\" }");
    assert_eq!(parse(&text).unwrap().listen.client.port(), 5);
}

#[test]
fn a_function_that_is_dialled_needs_no_worker_key() {
    let dial = "dial = \"127.0.0.1:50051\"";
    let text = SAMPLE.replace("worker_keys = [\"dev-worker-key\"]", dial);
    let mut config = parse(&text).unwrap();
    assert!(config.resolve().is_empty());
    let function = &config.functions[0];
    let dial = function.dial.as_ref().unwrap();
    assert_eq!(dial.addresses, ["127.0.0.1:50051".parse().unwrap()]);
    assert!(function.worker_keys.is_empty());
    let text = SAMPLE.replace("kind = \"default\"", "dial = \"nowhere.invalid:5\"");
    let mut config = parse(&text).unwrap();
    let told = config.resolve().concat();
    assert!(told.contains("dial = \"nowhere.invalid:5\" is not found"), "{told}");
}

#[test]
fn contradictions_are_found() {
    let tenant = "[[tenant]]\nname = \"two\"\nclient_keys = [\"dev-key\"]\n[[function]]";
    let window = "[limits]\nstream_window = \"4MiB\" ";
    let port = "listen.worker and listen.client are both port 10081";
    for (from, to, say) in [
        ("[[function]]", tenant, "tenants \"dev\" and \"two\" have the same client key"),
        ("[[function]]", "[[tenant]]\nname = \"dev\"\n[[function]]", "two tenants are named"),
        ("client_keys = [\"dev-key\"]", "client_keys = [\"a\", \"a\"]", "has a client key twice"),
        ("client_keys = [\"dev-key\"]", "", "tenant \"dev\" has no key"),
        ("[\"dev-key\"]", "[\"dev-worker-key\"]", "also a client key of tenant \"dev\""),
        ("[\"dev-key\"]", "[\"a b\"]", "other than visible ASCII"),
        ("0.0.0.0:10086", "127.0.0.1:10081", port),
        ("http://127.0.0.1:10086", "127.0.0.1:10086", "must be a URL"),
        ("http://127.0.0.1:10086", "https://h:1", "listen.worker speaks no TLS"),
        ("http://127.0.0.1:10086", "http://0.0.0.0:1", "nobody can dial"),
        ("advertise =", "#", "control.advertise is missing"),
        ("version = \"2", "version = \"x", "must be a UUID"),
        ("worker_keys = [\"dev-worker-key\"]", "", "no worker can serve it"),
        ("kind = \"default\"", "dial = \"50051\"", "but must be HOST:PORT"),
        ("kind = \"default\"", "dial = 50051", "must be a text"),
        ("tenants = [\"dev\"]", "tenants = []", "nobody may call it"),
        ("id = \"1", "id_ = \"1", "function.id is missing"),
        ("name = \"dev\"", "name = 5", "tenant.name is 5, but must be a text"),
        ("[session]", "[sesion]", "did you mean [session]?"),
        ("[control]", "[[control]]", "write [control]"),
        ("[[function]]", "[function]", "write [[function]]"),
        ("wait = \"30s\"", "wait = 30", "with its unit"),
        ("wait = \"30s\"", "wait = \"9999h\"", "1ms to 24h"),
        ("mode = \"local\"", "mode = ", "not TOML"),
        ("[drain] ", window, "is larger than limits.stream_window_max"),
        ("[drain] ", "[limits]\nstreams = 0 ", "a number from 1"),
        ("[drain] ", "[keepalive]\nidle = \"1500ms\" ", "must be whole seconds"),
        ("[drain] ", "[keepalive]\ninterval = \"10h\" ", "1s to 9h"),
        ("[drain] ", "[keepalive]\nprobes = 128 ", "a number from 1 to 127"),
        ("[drain] ", "[keepalive]\nuser_timeout = \"500ms\" ", "1s to 24h"),
        ("[drain] ", "[keepalive]\nclient_ping = \"9999ms\" ", "at least \"10s\", or \"off\""),
        ("[drain] ", "[keepalive]\nclient_ping = \"0s\" ", "at least \"10s\", or \"off\""),
        ("[drain] ", "[keepalive]\nclient_ping = \"25h\" ", "must be \"off\", or 10s to 24h"),
        ("[drain] ", "[keepalive]\nclient_ping = 30 ", "must be a text in quotes"),
        ("[\"dev-key\"]", "\"dev-key\"", "tenant.client_keys is a text, but must be a list"),
    ] {
        let told = with(from, to);
        assert!(told.contains(say), "{to}: {told}");
        assert!(!told.contains("dev-key") && !told.contains("dev-worker-key"), "shown: {told}");
    }
    let function = SAMPLE.split("[[function]]").nth(1).unwrap().split("[session]").next().unwrap();
    let told = with("[session]", &format!("[[function]]{function}[session]"));
    assert!(told.contains("has version 22222222-2222-4222-8222-222222222222 twice"), "{told}");
}

#[test]
fn keys_can_stand_in_a_file_of_their_own() {
    let folder = std::env::temp_dir().join(format!("ringway-keys-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("keys"), "# two keys\none\n\n two # the second\n").unwrap();
    let text = SAMPLE.replace("client_keys = [\"dev-key\"]", "client_keys_file = \"keys\"");
    let config = Config::parse(&text, "x", &folder).unwrap();
    let keys: Vec<&[u8]> = config.tenants[0].client_keys.iter().map(|key| key.bytes()).collect();
    assert_eq!(keys, [b"one", b"two"]);
    let missing = text.replace("\"keys\"", "\"none\"");
    let told = Config::parse(&missing, "x", &folder).unwrap_err().to_string();
    assert!(told.contains("client_keys_file \"none\" cannot be read"), "{told}");
    let path = folder.join("ringway.json");
    std::fs::write(&path, "{}").unwrap();
    let told = load(&path).unwrap_err().to_string();
    assert!(told.contains("must end in .toml, .yaml or .yml"), "{told}");
    for name in ["ringway.yaml", "ringway.yml"] {
        let path = folder.join(name);
        let keys = "client_keys_file: keys";
        std::fs::write(&path, YAML.replace("client_keys: [dev-key]", keys)).unwrap();
        assert_eq!(load(&path).unwrap().tenants[0].client_keys.len(), 2);
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn secrets_are_not_shown() {
    let shown = format!("{:?}", parse(SAMPLE).unwrap());
    assert!(!shown.contains("dev-key") && !shown.contains("dev-worker-key"));
}

#[test]
fn dev_has_the_keys_and_ids_of_the_design() {
    let config = Config::dev();
    let names: Vec<&str> = config.tenants.iter().map(|tenant| tenant.name.as_str()).collect();
    assert_eq!(names, ["dev", "other"]);
    assert_eq!(config.functions[0].tenants, names);
    assert_eq!(config.functions[0].id.to_string(), "11111111-1111-4111-8111-111111111111");
    assert_eq!(config.listen.worker.to_string(), "127.0.0.1:10086");
}

#[test]
fn timers_that_contradict_each_other_are_warned_of() {
    assert!(parse(SAMPLE).unwrap().warnings.is_empty());
    let with = |session: &str| {
        let text = format!("{}\n[session]\n{session}\n", without(SAMPLE, "session"));
        parse(&text).unwrap().warnings
    };
    let [warning] = &with("wait = \"2s\"\npark_yield = \"2s\"")[..] else { panic!("one warning") };
    assert!(
        warning.starts_with("session.park_yield (2s) is not below session.wait (2s)"),
        "{warning}"
    );
    assert!(with("wait = \"2s\"\npark_yield = \"1999ms\"").is_empty());
    assert!(with("wait = \"2s\"\npark_yield = \"2s\"\npark = \"never\"").is_empty());
}

/// A configuration without one of its tables.
fn without(text: &str, table: &str) -> String {
    let head = format!("[{table}]\n");
    let Some((before, rest)) = text.split_once(&head) else { return text.into() };
    let after = rest.find("\n[").map_or("", |at| &rest[at..]);
    format!("{before}{after}")
}

/// `RINGWAY_BLESS=1 cargo test -p ringway --test config_file` writes the tables anew.
#[test]
fn the_settings_in_the_reference_are_those_of_the_code() {
    const BEGIN: &str = "<!-- settings: made from engine/src/config/settings.rs -->\n";
    const END: &str = "<!-- settings end -->";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/settings.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(BEGIN).expect("the guide has a place for the settings");
    let (tables, after) = rest.split_once(END).expect("the place has an end");
    let wanted = format!("\n{}", settings_as_markdown());
    if std::env::var_os("RINGWAY_BLESS").is_some() {
        std::fs::write(&path, format!("{before}{BEGIN}{wanted}{END}{after}")).unwrap();
    } else {
        assert_eq!(
            tables, wanted,
            "docs/reference/settings.md is not up to date: see this test's comment"
        );
    }
}

#[test]
fn the_first_hour_begins_with_a_configuration_that_loads() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/first-hour.md");
    let text = std::fs::read_to_string(path).unwrap();
    let blocks: Vec<&str> = text
        .split("```toml\n")
        .skip(1)
        .map(|rest| rest.split_once("```").expect("the block has an end").0)
        .collect();
    assert!(!blocks.is_empty(), "the guide has no configuration");
    for block in blocks {
        let config = parse(block).unwrap_or_else(|problems| panic!("{problems}\nin:\n{block}"));
        assert_eq!((config.tenants.len(), config.functions.len()), (1, 1));
        assert_eq!(config.tenants[0].client_keys[0].bytes(), b"dev-key");
        assert_eq!(config.functions[0].worker_keys[0].bytes(), b"dev-worker-key");
    }
}
