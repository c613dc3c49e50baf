//! pingora as an HTTP/2 proxy without TLS: `ringway-bench-pingora LISTEN TARGET`.
//!
//! One worker thread, connections to the target pooled, many streams on each.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::process::ExitCode;

use async_trait::async_trait;
use pingora_core::Result;
use pingora_core::apps::HttpServerOptions;
use pingora_core::protocols::http::v2::server::default_h2_options;
use pingora_core::server::Server;
use pingora_core::server::configuration::ServerConf;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_proxy::{ProxyHttp, Session, http_proxy_service};

/// Streams on one connection to the target; pingora's own default is one.
const STREAMS: usize = 256;
/// What a client may send of a stream before it is read.
const WINDOW: u32 = 1 << 20;
/// Idle connections to the target that are kept.
const POOL: usize = 16_384;

struct Proxy {
    target: SocketAddr,
}

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = ();

    fn new_ctx(&self) -> Self::CTX {}

    async fn upstream_peer(&self, _: &mut Session, _: &mut ()) -> Result<Box<HttpPeer>> {
        let mut peer = HttpPeer::new(self.target, false, String::new());
        peer.options.set_http_version(2, 2);
        peer.options.max_h2_streams = STREAMS;
        Ok(Box::new(peer))
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments == ["--version"] {
        println!("pingora {}", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    let [listen, target] = &arguments[..] else {
        eprintln!("ringway-bench-pingora LISTEN TARGET");
        return ExitCode::from(2);
    };
    let Ok(target) = target.parse() else {
        eprintln!("not an address: {target}");
        return ExitCode::from(2);
    };
    let configuration = ServerConf {
        threads: 1,
        work_stealing: false,
        upstream_keepalive_pool_size: POOL,
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, configuration);
    server.bootstrap();
    let mut service = http_proxy_service(&server.configuration, Proxy { target });
    let mut options = HttpServerOptions::default();
    options.h2c = true;
    if let Some(app) = service.app_logic_mut() {
        app.server_options = Some(options);
        let mut windows = default_h2_options();
        windows.initial_window_size(WINDOW).initial_connection_window_size(16 * WINDOW);
        windows.max_concurrent_streams(STREAMS as u32);
        app.h2_options = Some(windows);
    }
    service.add_tcp(listen);
    server.add_service(service);
    server.run_forever()
}
