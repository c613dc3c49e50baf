//! The control plane: its mode, and the settings that the mode needs.

use std::net::SocketAddr;
use std::path::Path;

use super::environment::Environment;
use super::nats::{self, Logins};
use super::node::Node;
use super::problems::{Origin, Problems};
use super::read::Section;
use super::reference::{API, NO_TRIAL, Reference, TRIAL, go_flag, unread};
use super::syntax::Syntax;
use super::{Api, Control, Endpoint, Fronts, Listen, Mode, Remote};

/// The variable of `control.mode`.
pub(super) const MODE: &str = "RINGWAY__CONTROL__MODE";

/// Where the secrets are in `nvcf` mode (contract 5.2).
const SECRETS: &str = "/vault/secrets/secrets.json";

/// The default region (contract 9).
const REGION: &str = "ncp";

/// What a proxy's URI ends with (contract NT-5).
const PROXY_PATH: &str = "/v1/proxy";

/// A mode, and why it is that one, for people.
#[derive(Debug)]
pub(super) struct Choice {
    pub(super) mode: Mode,
    pub(super) why: String,
}

/// Chooses the mode (design 3.21). None if nothing says what to serve, which is reported.
pub(super) fn choose(
    root: &Node,
    environment: &Environment,
    problems: &mut Problems,
) -> Option<Choice> {
    let local = |why| Some(Choice { mode: Mode::Local, why });
    let without_file = problems.syntax() == Syntax::Environment;
    if let Some(node) = root.at("control.mode") {
        let section = Section::quiet(root, "control");
        let mode = match section.word("mode", problems) {
            "local" => Mode::Local,
            "nats" => Mode::Nats,
            "nvcf" => Mode::Nvcf,
            // The problem was reported. Further ones could be found only in a file.
            _ if without_file => return None,
            _ => return local("control.mode is wrong".into()),
        };
        let why = match node.place {
            Origin::Variable(name) => format!("{name} says so"),
            _ => format!("control.mode in {} says so", problems.file()),
        };
        return Some(Choice { mode, why });
    }
    if !without_file {
        return local(format!("{} does not set control.mode", problems.file()));
    }
    if environment.has(API) {
        return Some(Choice { mode: Mode::Nvcf, why: format!("{API} is set") });
    }
    if environment.get(TRIAL, problems).and_then(go_flag) == Some(true) {
        problems.add(Origin::Variable(TRIAL), NO_TRIAL);
        return None;
    }
    let unread = unread(environment).first().map_or_else(String::new, |file| {
        format!(" ({} is another program's and not read)", file.display())
    });
    let text = format!(
        "nothing says what to serve: name a configuration file (--config FILE), or set {API} to \
         the URL of NVIDIA's API{unread}; `ringway dev` is for trying things out"
    );
    problems.add(None::<Origin>, text);
    None
}

/// Reports the tables that have no effect in this mode, because their author expects one.
pub(super) fn check_use(root: &Node, choice: &Choice, problems: &mut Problems) {
    let (mode, why) = (choice.mode, &choice.why);
    let name = mode.name();
    let not_local = ["nats", "nvcf", "control.secrets_file", "control.red_after"];
    let keys: &[&str] = match mode {
        Mode::Local => &not_local,
        Mode::Nats => &["nvcf"],
        Mode::Nvcf => &["tenant", "function"],
    };
    for key in keys {
        let Some(node) = root.at(key) else { continue };
        let text = match mode {
            Mode::Nvcf => format!(
                "{key} has no effect in {name} mode: NVIDIA's API says who may \
                                   call and what; remove it"
            ),
            _ => {
                let other = if key.contains("nvcf") { "\"nvcf\"" } else { "\"nats\"" };
                let write = problems.syntax().pair("control.mode", other);
                format!("{key} has no effect in {name} mode ({why}): remove it, or write {write}")
            }
        };
        problems.add(node.place, text);
    }
}

/// What else is needed to read `[control]`.
pub(super) struct Around<'a> {
    pub(super) root: &'a Node,
    pub(super) folder: &'a Path,
    pub(super) listen: &'a Listen,
    pub(super) fronts: &'a Fronts,
    pub(super) reference: &'a Reference,
}

/// Reads `[control]`, and in the modes that need them `[nvcf]` and `[nats]`.
/// `direct`: what workers are told to try first.
pub(super) fn read(
    choice: Choice,
    around: &Around<'_>,
    direct: Option<&str>,
    problems: &mut Problems,
) -> Control {
    let section = Section::of(around.root, "control", problems);
    let written = section.text("advertise", problems);
    if let Some(url) = written {
        // NVIDIA's workers dial plain TCP whatever the scheme says (contract WK-3), so that
        // `https` was always harmless there.
        let any_scheme = choice.mode == Mode::Nvcf || around.fronts.worker.tls.is_some();
        if let Err(why) = check_url(url, any_scheme) {
            let text = format!("control.advertise is {}, {why}", shown(url));
            problems.add(section.place_of("advertise"), text);
        }
    }
    let (mode, why) = (choice.mode, choice.why);
    let advertise = written.map(ToString::to_string);
    if mode == Mode::Local {
        if advertise.is_none() && around.listen.worker.ip().is_unspecified() {
            problems.add(section.place(), no_address(around.listen, problems.syntax()));
        }
        return Control { mode, why, advertise, remote: None };
    }
    let advertise = advertise.or_else(|| dialled(&section, mode, around, problems));
    let remote = remote(&section, mode, around, problems);
    let remote = remote.zip(advertise.as_ref()).map(|(remote, url)| Remote {
        proxy_uri: url.trim_end_matches('/').to_owned() + PROXY_PATH,
        direct_uri: direct.map(|url| url.to_owned() + PROXY_PATH),
        ..remote
    });
    Control { mode, why, advertise, remote }
}

fn no_address(listen: &Listen, syntax: Syntax) -> String {
    let url = format!("\"http://10.0.0.1:{}\"", listen.worker.port());
    format!(
        "control.advertise is missing: workers cannot dial {}; write the address they reach this \
         machine by, such as {}",
        listen.worker.ip(),
        syntax.pair("control.advertise", &url),
    )
}

/// What workers dial by default: this pod, or the one address of the worker listener.
fn dialled(
    section: &Section<'_>,
    mode: Mode,
    around: &Around<'_>,
    problems: &mut Problems,
) -> Option<String> {
    let worker = around.listen.worker;
    let own = Some(worker.ip()).filter(|ip| !ip.is_unspecified());
    let Some(ip) = around.reference.pod.or(own) else {
        if mode == Mode::Nvcf {
            let text = "is not set, and neither is POD_IP: workers have no address to dial back \
                        to; set one of them, such as SELF_WORKER_FQDN=http://10.0.0.1:10086";
            problems.add(Origin::Variable("SELF_WORKER_FQDN"), text);
        } else {
            problems.add(section.place(), no_address(around.listen, problems.syntax()));
        }
        return None;
    };
    if worker.port() == 0 {
        let text = "listen.worker has port 0, but workers need to know the port: write a number, or \
                    control.advertise";
        problems.add(Section::quiet(around.root, "listen").place_of("worker"), text);
        return None;
    }
    let scheme = if around.fronts.worker.tls.is_some() { "https" } else { "http" };
    Some(format!("{scheme}://{}", SocketAddr::new(ip, worker.port())))
}

/// Everything but the proxy's URI.
fn remote(
    section: &Section<'_>,
    mode: Mode,
    around: &Around<'_>,
    problems: &mut Problems,
) -> Option<Remote> {
    let nvcf = mode == Mode::Nvcf;
    let authority = nvcf.then(|| api(around, problems));
    let secrets = section.path("secrets_file", around.folder, problems);
    let of_nats = Section::of(around.root, "nats", problems);
    let region = match of_nats.text("region", problems) {
        None => REGION.to_owned(),
        Some(text) => {
            let good = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
            if text.is_empty() || !text.bytes().all(good) {
                let text = format!(
                    "nats.region is \"{text}\", but must be letters, digits, _ and -: it is part \
                     of subjects' names"
                );
                problems.add(of_nats.place_of("region"), text);
            }
            text.to_owned()
        }
    };
    let placement = match of_nats.text("placement", problems) {
        Some(text) => text.to_owned(),
        None if nvcf => format!("aws-region:{region}"),
        None => String::new(),
    };
    let logins = Logins { nvcf, folder: around.folder, nkey: around.reference.nkey.as_ref() };
    let nats = nats::read(&of_nats, placement, &logins, problems)?;
    Some(Remote {
        authority: match authority {
            Some(api) => Some(api?),
            None => None,
        },
        nats,
        region,
        proxy_uri: String::new(),
        direct_uri: None,
        secrets: secrets.or_else(|| nvcf.then(|| SECRETS.into())),
        red_after: section.time("red_after", problems),
    })
}

fn api(around: &Around<'_>, problems: &mut Problems) -> Option<Api> {
    let section = Section::of(around.root, "nvcf", problems);
    let url = endpoint(&section, "api", problems);
    if section.get("api").is_none() {
        let text = "is not set: give it the URL of NVIDIA's API, such as https://grpc.example.com";
        problems.add(Origin::Variable(API), text);
    }
    let limiter = endpoint(&section, "limiter", problems);
    let oauth = section.text("oauth", problems).and_then(|text| {
        let good = Url::parse(text).is_some_and(|url| url.is_plain());
        if !good {
            let want = "a URL such as \"https://issuer.example.com\", without user and query";
            refuse_url(&section, "oauth", text, want, problems);
        }
        good.then(|| text.trim_end_matches('/').to_owned())
    });
    let ca = section.path("ca_file", around.folder, problems);
    if let Some(path) = &ca {
        nats::check(&section, "ca_file", path, problems, nats::authorities_fault);
    }
    Some(Api { url: url?, oauth, limiter, ca })
}

/// A gRPC server's URL. Where no port is written, it is that of the scheme (contract CP-5).
fn endpoint(section: &Section<'_>, name: &str, problems: &mut Problems) -> Option<Endpoint> {
    let text = section.text(name, problems)?;
    let url = Url::parse(text).filter(|url| url.is_plain() && url.path.len() <= 1);
    if url.is_none() {
        let want = "a URL such as \"https://grpc.example.com:443\", without user, path and query";
        refuse_url(section, name, text, want, problems);
    }
    let url = url?;
    let tls = url.scheme == "https";
    let port = url.port.unwrap_or(if tls { 443 } else { 80 });
    Some(Endpoint { tls, host: url.host, port })
}

/// A URL for people. A URL with a user is not shown, because it may hold a password.
fn shown(url: &str) -> String {
    if url.contains('@') { "a text with a user".into() } else { format!("\"{url}\"") }
}

fn refuse_url(section: &Section<'_>, name: &str, text: &str, want: &str, problems: &mut Problems) {
    let text = format!("{} is {}, but must be {want}", section.key(name), shown(text));
    problems.add(section.place_of(name), text);
}

/// The parts of an `http` or `https` URL.
struct Url {
    scheme: String,
    host: String,
    port: Option<u16>,
    path: String,
    user_or_query: bool,
}

impl Url {
    fn parse(text: &str) -> Option<Self> {
        let uri: http::Uri = text.parse().ok()?;
        let authority = uri.authority()?;
        let host = authority.host().trim_matches(['[', ']']);
        let after = authority.as_str().rsplit('@').next()?.strip_prefix(authority.host())?;
        // What follows the host is nothing, or a port that can be one.
        let port = match after.strip_prefix(':') {
            Some(port) => Some(port.parse().ok().filter(|port| *port > 0)?),
            None if after.is_empty() => None,
            None => return None,
        };
        let scheme = uri.scheme_str().filter(|scheme| ["http", "https"].contains(scheme))?;
        (!host.is_empty()).then(|| Self {
            scheme: scheme.into(),
            host: host.into(),
            port,
            path: uri.path().into(),
            user_or_query: uri.query().is_some() || authority.as_str().contains('@'),
        })
    }

    fn is_plain(&self) -> bool {
        !self.user_or_query
    }
}

/// NVIDIA's workers take host and port from the URL and dial plain TCP whatever the scheme says
/// (contract WK-3). `https` is for workers that heed it, and needs a listener that speaks TLS.
fn check_url(url: &str, tls: bool) -> Result<(), &'static str> {
    const SHAPE: &str = "but must be a URL such as \"http://10.0.0.1:10086\"";
    let uri: http::Uri = url.parse().map_err(|_| SHAPE)?;
    let host = uri.host().filter(|host| !host.is_empty()).ok_or(SHAPE)?;
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") if tls => {}
        Some("https") => {
            return Err("but listen.worker speaks no TLS: write \"http://...\", or give it tls");
        }
        _ => return Err(SHAPE),
    }
    if uri.port_u16() == Some(0) {
        return Err(SHAPE);
    }
    let user = uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
    // The path for workers is appended to it. A fragment is not part of the parsed URL.
    if uri.query().is_some() || url.contains('#') || user {
        return Err("but must have neither a query, a fragment nor a user");
    }
    match host {
        "0.0.0.0" | "[::]" => Err("which nobody can dial: write this machine's address"),
        _ => Ok(()),
    }
}
