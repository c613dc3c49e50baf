//! The other gateways: whether they reach this one, and what goes between them in the clear.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::Check;
use crate::config::Config;

const ADDRESS: &str = "cluster_address";
/// How long the way to this gateway's own address may take.
const LIMIT: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(10);

/// What the others are told of this gateway, and what is relayed without TLS. `greet` dials an address
/// where a gateway should speak.
pub(super) fn cluster(
    config: &Config,
    greet: impl Fn(SocketAddr) -> Result<(), String>,
) -> Vec<Check> {
    if !config.cluster.relays() {
        return Vec::new();
    }
    let mut checks = vec![address(config, &greet), plaintext(config)];
    checks.extend(config.cluster.nodes.iter().map(|(number, relay)| {
        let name = "cluster_peer";
        match greet(*relay) {
            Ok(()) => Check::ok(name, format!("node {number} is reached at {relay}")),
            Err(why) => Check::warn(
                name,
                format!("node {number} is not reached at {relay} ({why})"),
                "start it, let the gateways reach each other there, or correct cluster.nodes",
            ),
        }
    }));
    checks
}

/// Whether the address that others are told leads here.
fn address(config: &Config, greet: &impl Fn(SocketAddr) -> Result<(), String>) -> Check {
    let cluster = &config.cluster;
    let own = Some(cluster.listen.ip()).filter(|ip| !ip.is_unspecified());
    let Some(ip) = cluster.address.or(own) else {
        let seen = "the others are told the address that NATS sees";
        return Check::ok(ADDRESS, seen);
    };
    if ip.is_loopback() && config.control.remote.is_some() {
        return Check::warn(
            ADDRESS,
            format!("the others are told {ip}, which is themselves to each that is elsewhere"),
            "write the address by which they reach this machine as cluster.address, or give the pod \
             POD_IP (status.podIP)",
        );
    }
    let listener = match TcpListener::bind(cluster.listen) {
        Ok(listener) => Some(listener),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => None,
        Err(error) => {
            let fix =
                "write an address of this machine as cluster.listen, with a port that is free";
            return Check::warn(ADDRESS, format!("{} ({error})", cluster.listen), fix);
        }
    };
    let listens = listener.as_ref().and_then(|listener| listener.local_addr().ok());
    let port = listens.unwrap_or(cluster.listen).port();
    let told = SocketAddr::new(ip, cluster.port.unwrap_or(port));
    let reached = match &listener {
        Some(listener) => arrives(listener, told),
        // A gateway that runs, if all is well.
        None => greet(told),
    };
    match reached {
        Ok(()) if cluster.listen.port() == 0 => {
            let seen =
                format!("the others reach {ip}, at a port that is another one at each start");
            Check::ok(ADDRESS, seen)
        }
        Ok(()) => Check::ok(ADDRESS, format!("the others are told {told}, which leads here")),
        Err(why) => Check::warn(
            ADDRESS,
            format!("the others are told {told}, which does not lead here ({why})"),
            "correct cluster.address (or POD_IP), and let the gateways reach that port (network \
             policies, firewalls)",
        ),
    }
}

/// Whether a connection to that address comes to the listener.
fn arrives(listener: &TcpListener, told: SocketAddr) -> Result<(), String> {
    let text = |error: io::Error| error.to_string();
    listener.set_nonblocking(true).map_err(text)?;
    let line = TcpStream::connect_timeout(&told, LIMIT).map_err(text)?;
    let own = line.local_addr().map_err(text)?;
    let began = Instant::now();
    while began.elapsed() < LIMIT {
        match listener.accept() {
            Ok((_, peer)) if peer.port() == own.port() => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(PAUSE),
            Err(error) => return Err(text(error)),
        }
    }
    Err("somebody else answers there".into())
}

/// What came by TLS and leaves without.
fn plaintext(config: &Config) -> Check {
    let name = "cluster_plaintext";
    let fronts = [("client", &config.fronts.client), ("worker", &config.fronts.worker)];
    let tls: Vec<&str> =
        fronts.into_iter().filter(|(_, front)| front.tls.is_some()).map(|(what, _)| what).collect();
    let what = tls.join(" and ");
    match (tls.is_empty(), config.cluster.plaintext) {
        (true, _) => Check::ok(name, "no listener speaks TLS: relays show no more than came in"),
        (false, false) => {
            let seen = format!(
                "what comes by TLS ({what}) is not relayed: clients are served where they came, and \
                 workers' callbacks at the wrong gateway get 503"
            );
            Check::ok(name, seen)
        }
        (false, true) => Check::warn(
            name,
            format!("what comes by TLS ({what}) goes to other gateways as plain TCP"),
            "let nobody else see that network, or take cluster.plaintext away",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;
    use crate::config::{FrontTls, Secret};
    use crate::tls::{Files, Pair};

    fn config() -> Config {
        let mut config = Config::dev();
        config.cluster.secrets = vec![Secret::from("a secret of the cluster")];
        config.cluster.listen = "127.0.0.1:0".parse().unwrap();
        config
    }

    fn silent(_: SocketAddr) -> Result<(), String> {
        Err("nobody".into())
    }

    #[test]
    fn without_a_cluster_nothing_is_looked_at() {
        assert_eq!(cluster(&Config::dev(), silent), []);
    }

    #[test]
    fn an_address_that_does_not_lead_here_is_told() {
        let mut config = config();
        cluster(&config, silent)[0].is(Status::Ok, &["127.0.0.1", "each start"]);
        // The port is another one's.
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        config.cluster.port = other.local_addr().ok().map(|address| address.port());
        cluster(&config, silent)[0].is(Status::Warn, &["does not lead here", "cluster.address"]);
        // The port is taken, so a gateway should be there.
        config.cluster.listen = other.local_addr().unwrap();
        cluster(&config, silent)[0].is(Status::Warn, &["nobody"]);
        cluster(&config, |_| Ok(()))[0].is(Status::Ok, &["leads here"]);
        config.cluster.listen = "0.0.0.0:0".parse().unwrap();
        cluster(&config, silent)[0].is(Status::Ok, &["NATS"]);
        config.cluster.listen = "192.0.2.1:0".parse().unwrap();
        cluster(&config, silent)[0].is(Status::Warn, &["192.0.2.1", "cluster.listen"]);
    }

    #[test]
    fn a_node_that_is_not_reached_is_told() {
        let mut config = config();
        config.cluster.nodes = vec![(7, "192.0.2.7:10087".parse().unwrap())];
        cluster(&config, silent)[2].is(Status::Warn, &["node 7", "192.0.2.7:10087", "nobody"]);
        cluster(&config, |_| Ok(()))[2].is(Status::Ok, &["node 7"]);
    }

    #[test]
    fn what_leaves_without_tls_is_told() {
        let mut config = config();
        cluster(&config, silent)[1].is(Status::Ok, &["no listener"]);
        let dir = std::env::temp_dir().join(format!("ringway-cluster-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let files = Files { cert: dir.join("cert.pem"), key: dir.join("key.pem") };
        let wanted = rcgen::CertificateParams::new(["gateway.test".to_owned()]).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        std::fs::write(&files.cert, wanted.self_signed(&key).unwrap().pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        let pair = Pair::load(&files).unwrap();
        config.fronts.worker.tls = Some(FrontTls { files, pair });
        cluster(&config, silent)[1].is(Status::Ok, &["(worker) is not relayed"]);
        config.cluster.plaintext = true;
        cluster(&config, silent)[1].is(Status::Warn, &["plain TCP", "cluster.plaintext"]);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
