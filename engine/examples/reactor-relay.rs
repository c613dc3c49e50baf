//! The reactor without a shard: `reactor-relay LISTEN TARGET` relays bytes, one core, no protocol.
//!
//! A peer of the benchmark: what the reactor costs by itself.

use std::error::Error;
use std::net::{SocketAddr, TcpListener};
use std::time::Instant;

use ringway::bare::Bare;
use ringway::mailbox::mailbox;
use ringway::net::Listener;
use ringway::reactor::{Options, Reactor};
use rustix::process::{Resource, getrlimit, setrlimit};

/// Nobody posts anything; a mailbox has some room all the same.
const MESSAGES: usize = 64;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [listen, target] = &arguments[..] else {
        return Err("reactor-relay LISTEN TARGET".into());
    };
    let (listen, target): (SocketAddr, SocketAddr) = (listen.parse()?, target.parse()?);
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    setrlimit(Resource::Nofile, files)?;
    let listener = TcpListener::bind(listen)?;
    println!("ready listen={}", listener.local_addr()?);
    let (_sender, mailbox) = mailbox(MESSAGES)?;
    let listeners = vec![(Listener::Client, listener)];
    let origin = Instant::now();
    Reactor::new(Options::default(), listeners, mailbox, origin, Bare::new(target))?.run();
    Ok(())
}
