//! Ports, TCP's settings, and where workers are told to dial.

use std::io;
use std::net::{IpAddr, SocketAddr};

use super::{Check, Host, Status};
use crate::boot::{BACKLOG, PortError};
use crate::config::Config;

/// Below this, one connection is slow over a long way: 2 MiB a round trip is 160 Mbit/s at 100 ms.
const LEAST_TCP_BUFFER: u64 = 2 << 20;
/// Outgoing connections to one address at a time are bounded by these.
const LEAST_LOCAL_PORTS: u64 = 10_000;

fn listeners(config: &Config) -> Vec<(&'static str, SocketAddr)> {
    let listen = &config.listen;
    let mut all =
        vec![("client", listen.client), ("worker", listen.worker), ("admin", listen.admin)];
    all.extend(config.cluster.relays().then_some(("cluster", config.cluster.listen)));
    all
}

/// `probe` tries to have a port.
pub(super) fn ports(
    config: &Config,
    probe: impl Fn(&'static str, SocketAddr) -> Result<(), PortError>,
) -> Vec<Check> {
    let check = |(what, address): (&'static str, SocketAddr)| {
        let name = format!("port_{what}");
        match probe(what, address) {
            Ok(()) => Check::ok(&name, format!("{address} is free")),
            Err(error) => {
                // A socket unit holds it for the gateway. A gateway that serves does not: another
                // one would not start beside it.
                let held = error.owner().is_some_and(|owner| owner.starts_with("systemd "));
                let status = if held { Status::Warn } else { Status::Fail };
                Check::bad(&name, status, error.cause(), error.fix())
            }
        }
    };
    listeners(config).into_iter().map(check).collect()
}

/// The kernel cuts a listener's queue to net.core.somaxconn.
pub(super) fn backlog(host: &Host) -> Check {
    let name = "somaxconn";
    let wanted = BACKLOG as u64;
    match host.number("/proc/sys/net/core/somaxconn") {
        Some(have) if have < wanted => Check::warn(
            name,
            format!(
                "net.core.somaxconn = {have}: a burst of more connections than that is dropped"
            ),
            format!("sysctl -w net.core.somaxconn={wanted}"),
        ),
        Some(have) => Check::ok(name, format!("net.core.somaxconn = {have}")),
        None => Check::ok(name, "net.core.somaxconn cannot be read"),
    }
}

pub(super) fn congestion(host: &Host) -> Check {
    let name = "tcp_congestion_control";
    let found = host.read("/proc/sys/net/ipv4/tcp_congestion_control");
    let seen = found.unwrap_or_else(|| "unknown".into());
    if seen == "reno" {
        let fix = "sysctl -w net.ipv4.tcp_congestion_control=cubic, or bbr where packets get lost";
        return Check::warn(name, "reno, which is slow to use a fast network", fix);
    }
    Check::ok(name, seen)
}

/// How far the kernel may grow a socket's buffers.
pub(super) fn buffers(host: &Host) -> Vec<Check> {
    let check = |name: &str| {
        let text = host.read(&format!("/proc/sys/net/ipv4/{name}")).unwrap_or_default();
        let most = text.split_whitespace().nth(2).and_then(|most| most.parse::<u64>().ok());
        match most {
            Some(most) if most < LEAST_TCP_BUFFER => Check::warn(
                name,
                format!("at most {most} bytes: one connection is slow over a long way"),
                format!("sysctl -w net.ipv4.{name}=\"4096 131072 6291456\""),
            ),
            Some(most) => Check::ok(name, format!("at most {most} bytes")),
            None => Check::ok(name, "unknown"),
        }
    };
    ["tcp_rmem", "tcp_wmem"].map(check).into()
}

/// The ports that the kernel gives to outgoing connections.
pub(super) fn local_ports(host: &Host, config: &Config) -> Check {
    let name = "ip_local_port_range";
    let text = host.read("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut ends = text.split_whitespace().map(str::parse::<u16>);
    let (Some(Ok(first)), Some(Ok(last))) = (ends.next(), ends.next()) else {
        return Check::ok(name, "unknown");
    };
    let seen = format!("{first} to {last}");
    let inside =
        listeners(config).into_iter().find(|(_, own)| (first..=last).contains(&own.port()));
    if let Some((what, own)) = inside {
        return Check::warn(
            name,
            format!("{seen}: an outgoing connection may have the {what} port {}", own.port()),
            format!("sysctl -w net.ipv4.ip_local_reserved_ports={}", own.port()),
        );
    }
    if u64::from(last.saturating_sub(first)) < LEAST_LOCAL_PORTS {
        let fix = "sysctl -w net.ipv4.ip_local_port_range=\"32768 60999\"";
        return Check::warn(name, format!("{seen}: few for outgoing connections"), fix);
    }
    Check::ok(name, seen)
}

/// `resolve` takes a name and a port.
pub(super) fn advertise(
    config: &Config,
    resolve: impl Fn((&str, u16)) -> io::Result<Vec<IpAddr>>,
) -> Check {
    let name = "advertise";
    let Some(url) = &config.control.advertise else {
        return Check::ok(name, format!("workers dial {}", config.listen.worker));
    };
    let uri: http::Uri = url.parse().unwrap_or_default();
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let port = uri.port_u16().unwrap_or(80);
    match resolve((host, port)) {
        Ok(found) if !found.is_empty() && found.iter().all(IpAddr::is_loopback) => Check::warn(
            name,
            format!("{url} is this machine for everybody: workers elsewhere cannot dial back"),
            "write the address that workers reach this machine by as control.advertise",
        ),
        Ok(found) if !found.is_empty() => {
            let list: Vec<String> = found.iter().map(ToString::to_string).collect();
            Check::ok(name, format!("{url} is {}", list.join(", ")))
        }
        answer => {
            let why = answer.err().map_or_else(|| "no address".into(), |e| e.to_string());
            let seen = format!("{url} does not resolve here ({why})");
            let fix = "write a name that workers can resolve, or an address, as control.advertise";
            Check::warn(name, seen, fix)
        }
    }
}

/// The servers of a control plane elsewhere: whether their names are known here.
pub(super) fn control(
    config: &Config,
    resolve: impl Fn((&str, u16)) -> io::Result<Vec<IpAddr>>,
) -> Vec<Check> {
    let Some(remote) = &config.control.remote else { return Vec::new() };
    let mut servers: Vec<(&str, String)> = Vec::new();
    if let Some(api) = &remote.authority {
        servers.push(("api", api.url.to_string()));
        servers.extend(api.oauth.iter().map(|url| ("oauth", url.clone())));
        servers.extend(api.limiter.iter().map(|url| ("limiter", url.to_string())));
    }
    servers.extend(remote.nats.urls.iter().map(|url| ("nats", url.clone())));
    let check = |(name, url): (&str, String)| {
        let uri: http::Uri = url.parse().unwrap_or_default();
        // Not the URL itself: it may hold a password.
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        match resolve((host, 0)) {
            Ok(found) if !found.is_empty() => {
                let list: Vec<String> = found.iter().map(ToString::to_string).collect();
                Check::ok(name, format!("{host} is {}", list.join(", ")))
            }
            answer => {
                let why = answer.err().map_or_else(|| "no address".into(), |e| e.to_string());
                let seen = format!("{host} does not resolve here ({why})");
                Check::warn(name, seen, "write a name that this host can resolve, or an address")
            }
        }
    };
    servers.into_iter().map(check).collect()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::boot::port_state;
    use crate::config::{Api, Endpoint, Nats, Remote};

    #[test]
    fn a_taken_port_is_told_with_its_owner() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut config = Config::dev();
        config.listen.client = taken.local_addr().unwrap();
        config.listen.worker = "127.0.0.1:0".parse().unwrap();
        config.listen.admin = "192.0.2.1:1".parse().unwrap();
        let checks = ports(&config, port_state);
        let id = std::process::id().to_string();
        // The tests' own binary begins with the gateway's name, but is not it.
        checks[0].is(Status::Fail, &["port_client", "taken by", &id, "--client"]);
        checks[1].is(Status::Ok, &["is free"]);
        checks[2].is(Status::Fail, &["port_admin", "no such address"]);
    }

    #[test]
    fn a_gateway_that_serves_already_has_its_ports() {
        let of = |owner: &str| {
            let owner = owner.to_owned();
            ports(&Config::dev(), move |what, address| {
                Err(PortError::taken(what, address, Some(owner.clone())))
            })
        };
        of("systemd (process 1)")[0].is(Status::Warn, &["systemd (process 1)"]);
        of("ringway (process 7)")[0].is(Status::Fail, &["ringway (process 7)"]);
        of("nginx (process 7)")[0].is(Status::Fail, &["nginx"]);
    }

    #[test]
    fn a_short_queue_of_connections_is_told() {
        let host = |text| Host::planted(&[("/proc/sys/net/core/somaxconn", text)]);
        backlog(&host("128\n")).is(Status::Warn, &["128", "somaxconn=4096"]);
        backlog(&host("4096")).is(Status::Ok, &["4096"]);
        backlog(&Host::planted(&[])).is(Status::Ok, &[]);
    }

    #[test]
    fn tcps_settings_are_told() {
        let path = "/proc/sys/net/ipv4/tcp_congestion_control";
        congestion(&Host::planted(&[(path, "reno\n")])).is(Status::Warn, &["cubic"]);
        congestion(&Host::planted(&[(path, "cubic\n")])).is(Status::Ok, &["cubic"]);
        let host = Host::planted(&[
            ("/proc/sys/net/ipv4/tcp_rmem", "4096\t131072\t212992\n"),
            ("/proc/sys/net/ipv4/tcp_wmem", "4096\t16384\t4194304\n"),
        ]);
        let checks = buffers(&host);
        checks[0].is(Status::Warn, &["212992", "tcp_rmem="]);
        checks[1].is(Status::Ok, &["4194304"]);
    }

    #[test]
    fn local_ports_that_are_few_or_taken_are_told() {
        let path = "/proc/sys/net/ipv4/ip_local_port_range";
        let check = |text| local_ports(&Host::planted(&[(path, text)]), &Config::dev());
        check("32768\t60999\n").is(Status::Ok, &["32768 to 60999"]);
        check("40000 41000").is(Status::Warn, &["few", "32768 60999"]);
        check("1024 65535").is(Status::Warn, &["client port", "reserved_ports=10081"]);
        local_ports(&Host::planted(&[]), &Config::dev()).is(Status::Ok, &[]);
    }

    #[test]
    fn an_advertised_name_that_leads_nowhere_is_told() {
        let mut config = Config::dev();
        let none = |_: (&str, u16)| -> io::Result<Vec<IpAddr>> { unreachable!("not asked") };
        advertise(&config, none).is(Status::Ok, &["127.0.0.1:10086"]);
        config.control.advertise = Some("http://gateway.test:10086".into());
        let found = |address: &'static str| {
            move |(name, port): (&str, u16)| {
                assert_eq!((name, port), ("gateway.test", 10086));
                Ok(vec![address.parse().unwrap()])
            }
        };
        advertise(&config, found("10.0.0.1")).is(Status::Ok, &["10.0.0.1"]);
        advertise(&config, found("127.0.0.1")).is(Status::Warn, &["elsewhere"]);
        advertise(&config, |_| Ok(Vec::new())).is(Status::Warn, &["no address"]);
        let lost = |_: (&str, u16)| Err(io::Error::other("lost"));
        advertise(&config, lost).is(Status::Warn, &["gateway.test", "lost"]);
        config.control.advertise = Some("http://[::1]:1".into());
        let six = |(name, _): (&str, u16)| Ok(vec![name.parse().unwrap()]);
        advertise(&config, six).is(Status::Warn, &["[::1]"]);
    }

    #[test]
    fn names_of_a_control_plane_that_lead_nowhere_are_told_without_a_password() {
        let mut config = Config::dev();
        let known = |(name, _): (&str, u16)| match name {
            "api.test" | "::1" => Ok(vec![IpAddr::V4(std::net::Ipv4Addr::LOCALHOST)]),
            _ => Err(io::Error::other("lost")),
        };
        assert_eq!(control(&config, known), []);
        let host = "api.test".to_owned();
        config.control.remote = Some(Remote {
            authority: Some(Api {
                url: Endpoint { tls: true, host, port: 443 },
                oauth: Some("https://issuer.test".into()),
                limiter: Some(Endpoint { tls: false, host: "::1".into(), port: 1 }),
                ca: None,
            }),
            nats: Nats {
                urls: vec!["nats://me:hidden@n.test:4222".into()],
                nkey: None,
                credentials: None,
                user: None,
                token: None,
                ca: None,
                client_pair: None,
                placement: String::new(),
                callout: true,
            },
            region: "ncp".into(),
            proxy_uri: "http://10.0.0.1:10086/v1/proxy".into(),
            direct_uri: None,
            secrets: None,
            red_after: std::time::Duration::from_secs(10),
        });
        let checks = control(&config, known);
        checks[0].is(Status::Ok, &["api: api.test is 127.0.0.1"]);
        checks[1].is(Status::Warn, &["oauth: issuer.test does not resolve here (lost)"]);
        checks[2].is(Status::Ok, &["limiter: ::1"]);
        checks[3].is(Status::Warn, &["nats: n.test does not resolve here"]);
        assert!(checks.iter().all(|check| !check.to_string().contains("hidden")), "{checks:?}");
    }
}
