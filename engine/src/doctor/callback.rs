//! Whether what workers are told to dial leads here: a token is minted, and a CONNECT with it is
//! sent there as a worker sends it (contract 4.1).

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use super::{Check, Status};
use crate::config::Config;

const NAME: &str = "callback";
/// How long the way there may take, and each answer.
const LIMIT: Duration = Duration::from_secs(3);
/// Octets that are looked through for the token, and of an answer.
const MOST_OCTETS: usize = 4096;
/// Addresses of a name that are tried.
const MOST_ADDRESSES: usize = 8;
const PAUSE: Duration = Duration::from_millis(10);

/// What became of the CONNECT.
#[derive(Debug)]
enum Outcome {
    /// The CONNECT came to the port on which the gateway will listen.
    Arrived,
    /// Somebody answered it, with this first line.
    Answered(String),
    /// Somebody took the connection and said nothing.
    Silent,
    Failed(io::Error),
}

/// The program that the CONNECT should reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listening {
    /// This program, in the gateway's place.
    Doctor,
    /// Another program that has the port: a running gateway, if all is well.
    Other,
}

/// Dials the address that workers get.
pub(super) fn callback(config: &Config) -> Check {
    let (listener, listening) = match TcpListener::bind(config.listen.worker) {
        Ok(listener) => (Some(listener), Listening::Doctor),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => (None, Listening::Other),
        // The port has a check of its own, which names the fix.
        Err(error) => return not_tried(&format!("the worker port is not available ({error})")),
    };
    let own = listener.as_ref().and_then(|listener| listener.local_addr().ok());
    let url = match &config.control.advertise {
        Some(url) => url.clone(),
        None => format!("http://{}", reachable(own.unwrap_or(config.listen.worker))),
    };
    let mut random = [0; 24];
    if let Err(error) = getrandom::fill(&mut random) {
        return not_tried(&format!("the kernel gives no random numbers ({error})"));
    }
    let token = data_encoding::HEXLOWER.encode(&random);
    let outcome = match &listener {
        Some(listener) => both(listener, &url, &token),
        None => dial(&url, &token).and_then(|mut line| answer(&mut line)),
    };
    judged(
        &url,
        listening,
        config.fronts.worker.tls.is_some(),
        &outcome.unwrap_or_else(Outcome::Failed),
    )
}

fn not_tried(why: &str) -> Check {
    Check::warn(NAME, format!("not tried: {why}"), "see the other checks")
}

/// An address that this machine can dial.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        ip if ip.is_unspecified() => {
            SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), address.port())
        }
        _ => address,
    }
}

/// Dials, and listens for it.
fn both(listener: &TcpListener, url: &str, token: &str) -> io::Result<Outcome> {
    listener.set_nonblocking(true)?;
    let mut line = dial(url, token)?;
    let until = Instant::now() + LIMIT;
    line.set_nonblocking(true)?;
    let mut answered = Vec::new();
    while Instant::now() < until {
        match listener.accept() {
            Ok((mut taken, _)) => {
                if has(&mut taken, token)? {
                    return Ok(Outcome::Arrived);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        // Somebody else may have it: who answers first is told.
        let mut octets = [0; MOST_OCTETS];
        match line.read(&mut octets) {
            Ok(0) => return Ok(first_line(&answered)),
            Ok(count) => answered.extend_from_slice(&octets[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        if answered.contains(&b'\n') || answered.len() >= MOST_OCTETS {
            return Ok(first_line(&answered));
        }
        std::thread::sleep(PAUSE);
    }
    Ok(Outcome::Silent)
}

/// Whether a connection brings the token; what a balancer writes before it does not matter.
fn has(taken: &mut TcpStream, token: &str) -> io::Result<bool> {
    taken.set_nonblocking(false)?;
    taken.set_read_timeout(Some(LIMIT))?;
    let mut heard = Vec::new();
    let mut octets = [0; MOST_OCTETS];
    while heard.len() < MOST_OCTETS {
        match taken.read(&mut octets) {
            Ok(0) | Err(_) => break,
            Ok(count) => heard.extend_from_slice(&octets[..count]),
        }
        if heard.windows(token.len()).any(|part| part == token.as_bytes()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A worker's CONNECT.
fn dial(url: &str, token: &str) -> io::Result<TcpStream> {
    let uri: http::Uri = url.parse().map_err(io::Error::other)?;
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in (host, port).to_socket_addrs()?.take(MOST_ADDRESSES) {
        match TcpStream::connect_timeout(&address, LIMIT) {
            Ok(mut line) => {
                line.set_read_timeout(Some(LIMIT))?;
                line.set_write_timeout(Some(LIMIT))?;
                // In one piece: somebody else may answer, and close, before the second one.
                let head = format!(
                    "CONNECT /v1/proxy HTTP/1.1\r\nHost: {host}:{port}\r\nUser-Agent: ringway-doctor\
                     \r\nAuthorization: Bearer {token}\r\n\
                     X-Request-Id: 00000000-0000-4000-8000-000000000000\r\n\r\n"
                );
                line.write_all(head.as_bytes())?;
                return Ok(line);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// The first line of an answer.
fn answer(line: &mut TcpStream) -> io::Result<Outcome> {
    let mut octets = [0; MOST_OCTETS];
    match line.read(&mut octets) {
        Ok(count) => Ok(first_line(&octets[..count])),
        Err(error)
            if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) =>
        {
            Ok(Outcome::Silent)
        }
        Err(error) => Err(error),
    }
}

fn first_line(octets: &[u8]) -> Outcome {
    match octets.split(|byte| *byte == b'\n').next().unwrap_or_default() {
        [] => Outcome::Silent,
        line => Outcome::Answered(line.trim_ascii().escape_ascii().to_string()),
    }
}

fn judged(url: &str, listening: Listening, tls: bool, outcome: &Outcome) -> Check {
    let fix = "write the address that workers reach this machine's worker port by as \
               control.advertise (SELF_WORKER_FQDN)";
    match (outcome, listening) {
        (Outcome::Arrived, _) => {
            Check::ok(NAME, format!("a CONNECT to {url} with a token of ours comes here"))
        }
        (Outcome::Answered(line), Listening::Other) if line.starts_with("HTTP/1.1 403") => {
            Check::ok(
                NAME,
                format!(
                    "{url} leads to a gateway, which does not take a token that it did not mint"
                ),
            )
        }
        (_, Listening::Other) if tls && !matches!(outcome, Outcome::Failed(_)) => Check::ok(
            NAME,
            format!("{url} takes connections; what is behind its TLS was not tried"),
        ),
        (Outcome::Answered(line), _) => {
            let seen = format!("{url} leads to somebody else, who answers \"{line}\"");
            Check::bad(NAME, Status::Fail, seen, fix)
        }
        (Outcome::Silent, _) => {
            let seen = format!("{url} takes the connection, and the CONNECT does not come here");
            Check::bad(NAME, Status::Fail, seen, fix)
        }
        (Outcome::Failed(error), _) if error.kind() == io::ErrorKind::ConnectionRefused => {
            Check::bad(NAME, Status::Fail, format!("nobody listens at {url}"), fix)
        }
        // Some networks do not let a machine dial its own outer address.
        (Outcome::Failed(error), _) => Check::warn(
            NAME,
            format!("{url} cannot be dialled from here ({error})"),
            format!("where workers can, leave it; else {fix}"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(worker: &str, advertise: Option<String>) -> Config {
        let mut config = Config::dev();
        config.listen.worker = worker.parse().unwrap();
        config.control.advertise = advertise;
        config
    }

    /// A server that answers once with these octets.
    fn server(says: &'static [u8]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            let (mut line, _) = listener.accept().unwrap();
            let mut octets = [0; MOST_OCTETS];
            let _ = line.read(&mut octets);
            let _ = line.write_all(says);
        });
        url
    }

    #[test]
    fn what_comes_to_the_own_port_is_known_by_its_token() {
        callback(&config("127.0.0.1:0", None)).is(Status::Ok, &["a token of ours comes here"]);
        callback(&config("0.0.0.0:0", None)).is(Status::Ok, &["127.0.0.1"]);
    }

    #[test]
    fn an_address_of_somebody_else_is_told() {
        let other = server(b"HTTP/1.1 405 Method Not Allowed\r\n\r\n");
        let check = callback(&config("127.0.0.1:0", Some(other)));
        check.is(Status::Fail, &["405 Method Not Allowed", "control.advertise"]);
        let other = server(b"");
        callback(&config("127.0.0.1:0", Some(other))).is(Status::Fail, &["does not come here"]);
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let check = callback(&config("127.0.0.1:0", Some(format!("http://{gone}"))));
        check.is(Status::Fail, &["nobody listens"]);
        let lost = callback(&config("127.0.0.1:0", Some("http://gateway.invalid:1".into())));
        lost.is(Status::Warn, &["cannot be dialled"]);
    }

    #[test]
    fn a_gateway_that_runs_refuses_a_token_it_did_not_mint() {
        let url = server(b"HTTP/1.1 403 Forbidden\r\n\r\n");
        let worker = url.trim_start_matches("http://").to_owned();
        let taken = callback(&config(&worker, Some(url)));
        taken.is(Status::Ok, &["leads to a gateway"]);
    }
}
