//! The endpoint listening by itself: behind a relay or a proxy that dials, or called directly.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use monoio::net::{ListenerOpts, TcpListener, TcpStream};

use crate::drive::{drive, runtime};
use crate::site::Server;
use crate::tls::Offer;

/// Serves on `listen` until the process ends. `ready` is called with the bound address.
pub fn run(listen: SocketAddr, ready: impl FnOnce(SocketAddr)) -> io::Result<()> {
    run_with(listen, None, ready)
}

/// As [`run`], in TLS if there is something to show.
pub fn run_with(
    listen: SocketAddr,
    offer: Option<Offer>,
    ready: impl FnOnce(SocketAddr),
) -> io::Result<()> {
    runtime()?.block_on(async {
        let listener =
            TcpListener::bind_with_config(listen, &ListenerOpts::new().reuse_port(false))?;
        ready(listener.local_addr()?);
        loop {
            let (stream, _) = listener.accept().await?;
            match &offer {
                Some(offer) => drop(monoio::spawn(serve_tls(stream, offer.clone()))),
                None => drop(monoio::spawn(serve(stream, Vec::new()))),
            }
        }
    })
}

/// Answers everything on `stream`, of which `early` was read already.
pub async fn serve(stream: TcpStream, early: Vec<u8>) {
    let endpoint = Rc::new(RefCell::new(Server::default()));
    // A client that leaves is the normal end; what else goes wrong shows up in the generator.
    let _ = drive(stream, endpoint, &early).await;
}

async fn serve_tls(stream: TcpStream, offer: Offer) {
    let endpoint = Rc::new(RefCell::new(Server::default()));
    if let Ok(tls) = offer.around(endpoint) {
        let _ = drive(stream, Rc::new(RefCell::new(tls)), &[]).await;
    }
}
