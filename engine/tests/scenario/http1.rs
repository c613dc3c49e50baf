//! HTTP/1 from end to end, by raw bytes: calls, their order, their failures.

use std::time::Duration;

use ringway::metrics::CloseReason;
use ringway::net::{ConnId, End, Listener};

use crate::peer::{Work, poll};
use crate::world::{FUNCTION, World};

/// A request with the three fields and `more`, and a body.
pub(crate) fn request(line: &str, more: &str, body: &str) -> String {
    format!(
        "{line}\r\nHost: gateway\r\nAuthorization: Bearer dev-key\r\nFunction-Id: {FUNCTION}\r\n\
         {more}\r\n{body}"
    )
}

pub(crate) fn get(path: &str) -> String {
    request(&format!("GET {path} HTTP/1.1"), "", "")
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(crate) struct Rig {
    pub(crate) world: World,
    pub(crate) client: ConnId,
    pub(crate) tunnel: Option<ConnId>,
    pub(crate) id: String,
}

impl Rig {
    pub(crate) fn new() -> Self {
        Self::of(World::new())
    }

    /// Whose sessions end with their clients.
    pub(crate) fn unkept() -> Self {
        Self::of(World::with("[session]\npark = \"never\""))
    }

    pub(crate) fn of(mut world: World) -> Self {
        let client = world.connect(Listener::Client);
        Self { world, client, tunnel: None, id: String::new() }
    }

    pub(crate) fn ask(&mut self, bytes: &str) {
        self.world.send(self.client, bytes.as_bytes());
    }

    /// A worker takes the work and dials back.
    pub(crate) fn attach(&mut self) -> ConnId {
        let work: Work = poll(&mut self.world, &[]).expect("work");
        let conn = self.world.connect(Listener::Worker);
        self.world.send(conn, work.connect().as_bytes());
        self.tunnel = Some(conn);
        self.id = work.request_id;
        conn
    }

    /// The bytes sent to the worker, without the answer to its CONNECT.
    pub(crate) fn at_worker(&mut self) -> String {
        let said = text(&self.world.take(self.tunnel.expect("a tunnel")));
        said.strip_prefix("HTTP/1.1 200 OK\r\n\r\n").unwrap_or(&said).to_owned()
    }

    pub(crate) fn answer(&mut self, bytes: &str) {
        self.world.send(self.tunnel.expect("a tunnel"), bytes.as_bytes());
    }

    pub(crate) fn at_client(&mut self) -> String {
        text(&self.world.take(self.client))
    }

    pub(crate) fn tunnel_is_closed(&self) -> bool {
        self.world.is_closed(self.tunnel.expect("a tunnel"))
    }

    /// A whole call, to begin with.
    pub(crate) fn warm_up(&mut self) {
        self.ask(&get("/first"));
        self.attach();
        self.at_worker();
        self.answer("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        assert!(self.at_client().ends_with("\r\n\r\nok"));
    }

    /// The client leaves; nothing may be left.
    pub(crate) fn end(mut self) {
        self.world.end(self.client, End::Fin);
        self.nothing_is_left();
    }

    pub(crate) fn nothing_is_left(&self) {
        assert!(self.world.shard.is_empty(), "{:?}", self.world.shard);
        assert_eq!(self.world.net.pool.chunks_live(), 0);
    }
}

/// CL-26 to CL-31, CL-36, CL-37.
#[test]
fn a_call_is_forwarded_and_comes_back() {
    let mut rig = Rig::unkept();
    let more = "Content-Length: 5\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nX-Own: 2\r\n\
                Forwarded: for=x\r\nX-Forwarded-For: x\r\nCookie: a=b\r\nnvcf-reqid: nonsense\r\n\
                Proxy-Authorization: x\r\nKeep-Alive: 5\r\nTE: trailers\r\n";
    rig.ask(&request("POST /p?q=%zz;a HTTP/1.1", more, "hello"));
    rig.attach();
    let said = rig.at_worker();
    let (head, body) = said.split_once("\r\n\r\n").expect("a head");
    assert_eq!(body, "hello");
    assert!(head.starts_with("POST /p?q=%zz;a HTTP/1.1\r\nhost: gateway\r\n"), "{head}");
    for kept in ["authorization: Bearer dev-key", "x-own: 2", "cookie: a=b", "te: trailers"] {
        assert!(head.contains(&format!("\r\n{kept}")), "{kept}: {head}");
    }
    assert!(head.contains(&format!("\r\nnvcf-reqid: {}", rig.id)), "{head}");
    assert!(head.contains("\r\ncontent-length: 5"), "{head}");
    for gone in ["x-hop", "forwarded", "proxy-", "keep-alive", "nonsense"] {
        assert!(!head.contains(gone), "{gone}: {head}");
    }
    rig.answer(
        "HTTP/1.1 201 Made\r\nContent-Length: 3\r\nSet-Cookie: w=1\r\nnvcf-reqid: other\r\n\
         Connection: x-secret\r\nX-Secret: 1\r\n\r\nyou",
    );
    let said = rig.at_client();
    let id = rig.id.clone();
    assert!(said.starts_with("HTTP/1.1 201 Created\r\n"), "{said}");
    assert!(said.ends_with("content-length: 3\r\n\r\nyou"), "{said}");
    assert!(!said.contains("other") && !said.contains("secret"), "{said}");
    let (own, ours) = (said.find("set-cookie: w=1"), said.find("set-cookie: nvcf-request-id="));
    assert!(own.is_some() && own < ours, "the worker's cookie first: {said}");
    assert!(said.contains(&format!("nvcf-request-id={id}\r\n")), "{said}");
    // The second call: same tunnel, same session, no cookie.
    rig.ask(&get("/again"));
    assert!(rig.at_worker().starts_with("GET /again HTTP/1.1\r\n"));
    rig.answer("HTTP/1.1 204 No Content\r\n\r\n");
    let said = rig.at_client();
    assert!(said.starts_with("HTTP/1.1 204") && said.contains(&id), "{said}");
    assert!(!said.contains("set-cookie"), "{said}");
    let mut metrics = String::new();
    rig.world.shard.metrics().render(&mut metrics);
    assert!(metrics.contains("1.1"), "{metrics}");
    rig.end();
}

#[test]
fn a_call_works_however_its_bytes_are_cut() {
    for cut in [1, 2, 3, 5, 7, 16, 100] {
        let mut rig = Rig::unkept();
        rig.world.cut = cut;
        let chunks = "3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\nX-T: 1\r\n\r\n";
        rig.ask(&request("POST /c HTTP/1.1", "Transfer-Encoding: chunked\r\n", chunks));
        rig.attach();
        let said = rig.at_worker();
        let (head, body) = said.split_once("\r\n\r\n").expect("a head");
        assert!(head.contains("\r\ntransfer-encoding: chunked"), "{head}");
        assert_eq!(unchunk(body), ("abcdefg".into(), "x-t: 1\r\n".into()), "cut at {cut}");
        rig.answer(&format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}"));
        let said = rig.at_client();
        let (head, body) = said.split_once("\r\n\r\n").expect("a head");
        assert!(head.contains("\r\ntransfer-encoding: chunked"), "{head}");
        assert_eq!(unchunk(body), ("abcdefg".into(), "x-t: 1\r\n".into()), "cut at {cut}");
        rig.ask(&get("/next"));
        assert!(rig.at_worker().starts_with("GET /next "), "the connection goes on");
        rig.end();
    }
}

/// Content and trailer lines of a whole chunked body.
fn unchunk(mut body: &str) -> (String, String) {
    let mut content = String::new();
    loop {
        let (size, rest) = body.split_once("\r\n").expect("a size line");
        let size = usize::from_str_radix(size, 16).expect("a size");
        if size == 0 {
            let trailers = rest.strip_suffix("\r\n").expect("the last line");
            return (content, trailers.into());
        }
        content.push_str(&rest[..size]);
        body = rest[size..].strip_prefix("\r\n").expect("a chunk's end");
    }
}

#[test]
fn pipelined_requests_are_served_in_order() {
    let mut rig = Rig::unkept();
    rig.ask(&format!("{}{}GET /health HTTP/1.1\r\nHost: g\r\n\r\n", get("/1"), get("/2")));
    rig.attach();
    let said = rig.at_worker();
    assert!(said.starts_with("GET /1 ") && !said.contains("/2"), "one at a time: {said}");
    rig.answer("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\na");
    assert!(rig.at_client().ends_with("\r\n\r\na"));
    let said = rig.at_worker();
    assert!(said.starts_with("GET /2 ") && !said.contains("health"), "{said}");
    rig.answer("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nb");
    let said = rig.at_client();
    let (second, health) = said.split_once("\r\n\r\nb").expect("the second answer");
    assert!(second.starts_with("HTTP/1.1 200") && health.starts_with("HTTP/1.1 200 OK\r\n"));
    rig.end();
}

#[test]
fn reading_waits_while_much_is_pipelined() {
    let mut rig = Rig::unkept();
    rig.warm_up();
    rig.ask(&get("/1"));
    let paused = |rig: &Rig| rig.world.net.output(rig.client).is_some_and(|o| o.is_paused());
    let many = "GET /health HTTP/1.1\r\nHost: g\r\n\r\n".repeat(4000);
    rig.ask(&many);
    assert!(!paused(&rig), "a client that leaves has to be seen");
    rig.ask(&many);
    rig.ask(&many);
    assert!(paused(&rig), "no more is kept than may be");
    rig.answer("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\na");
    let mut said = String::new();
    loop {
        let more = rig.at_client();
        if more.is_empty() {
            break;
        }
        said.push_str(&more);
    }
    assert_eq!(said.matches("HTTP/1.1 200 OK").count(), 12_001);
    assert!(!paused(&rig));
    rig.end();
}

/// CL-23: the end of a connection is seen behind requests that wait for their turn.
#[test]
fn a_client_that_leaves_behind_pipelined_requests_ends_its_tunnel() {
    let mut rig = Rig::unkept();
    rig.warm_up();
    rig.ask(&format!("{}{}", get("/1"), get("/2")));
    assert!(rig.at_worker().starts_with("GET /1 "));
    let paused = rig.world.net.output(rig.client).is_some_and(|output| output.is_paused());
    assert!(!paused, "whoever does not read sees no end");
    rig.world.end(rig.client, End::Fin);
    assert!(rig.tunnel_is_closed());
    rig.nothing_is_left();
}

#[test]
fn many_requests_that_we_answer_are_answered_in_one_go() {
    let mut rig = Rig::unkept();
    rig.ask(&"GET /info HTTP/1.1\r\nHost: g\r\n\r\n".repeat(300));
    assert_eq!(rig.at_client().matches("HTTP/1.1 200 OK").count(), 300);
    rig.end();
}

/// CL-24, HTTP/1.0, until-close bodies.
#[test]
fn connections_end_when_they_should() {
    // A client that says close.
    let mut rig = Rig::unkept();
    rig.ask(&request("GET / HTTP/1.1", "Connection: close\r\n", ""));
    rig.attach();
    rig.at_worker();
    rig.answer("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\na");
    let said = rig.at_client();
    assert!(said.contains("connection: close\r\n") && said.ends_with("\r\n\r\na"), "{said}");
    assert!(rig.world.is_closed(rig.client) && rig.tunnel_is_closed());
    rig.nothing_is_left();
    // HTTP/1.0: no chunks.
    let mut rig = Rig::unkept();
    rig.ask(&request("GET / HTTP/1.0", "", ""));
    rig.attach();
    assert!(rig.at_worker().starts_with("GET / HTTP/1.1\r\n"));
    rig.answer("HTTP/1.1 100 Continue\r\n\r\n");
    rig.answer("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n");
    let said = rig.at_client();
    assert!(said.starts_with("HTTP/1.1 200 OK\r\n") && said.ends_with("\r\n\r\nab"), "{said}");
    assert!(!said.contains("chunked") && rig.world.is_closed(rig.client));
    rig.nothing_is_left();
    // A response that ends with its connection: chunks for the client, which stays.
    let mut rig = Rig::unkept();
    rig.ask(&get("/"));
    let tunnel = rig.attach();
    rig.at_worker();
    rig.answer("HTTP/1.1 200 OK\r\n\r\nsome");
    rig.answer("thing");
    rig.world.end(tunnel, End::Fin);
    let said = rig.at_client();
    let (head, body) = said.split_once("\r\n\r\n").expect("a head");
    assert!(head.contains("transfer-encoding: chunked") && !head.contains("close"), "{head}");
    assert_eq!(unchunk(body).0, "something");
    assert!(!rig.world.is_closed(rig.client) && rig.tunnel_is_closed());
    let id = rig.id.clone();
    rig.ask(&get("/next"));
    rig.attach();
    assert_ne!(rig.id, id, "a session of its own");
    assert!(rig.at_worker().starts_with("GET /next"));
    rig.end();
}

/// CL-20, CL-43: the next request does not meet the tunnel that its worker closes.
#[test]
fn a_worker_that_says_close_is_used_up() {
    let mut rig = Rig::unkept();
    rig.ask(&get("/"));
    rig.attach();
    rig.at_worker();
    rig.answer("HTTP/1.1 200 OK\r\nConnection: close\r\ncontent-length: 1\r\n\r\na");
    let said = rig.at_client();
    assert!(said.ends_with("\r\n\r\na") && !said.contains("connection:"), "{said}");
    assert!(rig.tunnel_is_closed());
    let closed = rig.world.shard.metrics().worker_connections_closed;
    assert_eq!(closed[CloseReason::WorkerClosed.index()], 1);
    rig.ask(&get("/2"));
    rig.attach();
    assert!(rig.at_worker().starts_with("GET /2 "));
    rig.end();
}

#[test]
fn head_has_no_body_and_its_length_is_kept() {
    let mut rig = Rig::unkept();
    rig.ask(&request("HEAD / HTTP/1.1", "", ""));
    rig.attach();
    assert!(rig.at_worker().starts_with("HEAD / "));
    rig.answer("HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n");
    let said = rig.at_client();
    assert!(said.ends_with("content-length: 1000\r\n\r\n"), "{said}");
    rig.ask(&get("/2"));
    assert!(rig.at_worker().starts_with("GET /2 "));
    rig.answer("HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n");
    assert!(rig.at_client().starts_with("HTTP/1.1 304"));
    rig.ask("HEAD /health HTTP/1.1\r\nHost: g\r\n\r\n");
    let said = rig.at_client();
    assert!(said.starts_with("HTTP/1.1 200") && said.ends_with("\r\n\r\n"), "{said}");
    rig.end();
}

#[test]
fn informational_heads_pass_and_a_body_waits_for_them() {
    let mut rig = Rig::unkept();
    let more = "Content-Length: 2\r\nExpect: 100-continue\r\n";
    rig.ask(&request("POST / HTTP/1.1", more, ""));
    rig.attach();
    assert!(rig.at_worker().contains("\r\nexpect: 100-continue\r\n"));
    rig.answer("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n");
    let said = rig.at_client();
    assert!(said.starts_with("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"), "{said}");
    assert!(said.ends_with("HTTP/1.1 100 Continue\r\n\r\n"), "{said}");
    rig.ask("hi");
    assert_eq!(rig.at_worker(), "hi");
    rig.answer("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    assert!(rig.at_client().starts_with("HTTP/1.1 200 OK"));
    rig.end();
    // Our own answer comes instead of the 100, and ends the connection: nobody could tell whether
    // a body or a request comes next.
    let mut rig = Rig::unkept();
    rig.ask("POST / HTTP/1.1\r\nHost: g\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n");
    let said = rig.at_client();
    assert!(said.starts_with("HTTP/1.1 401 ") && said.contains("connection: close"), "{said}");
    assert!(rig.world.is_closed(rig.client));
    rig.nothing_is_left();
}

/// E1, E2, E7, CL-6, CL-9, CL-10, CL-12, CL-14 on HTTP/1.1.
#[test]
fn errors_are_told_in_both_styles() {
    let mut rig = Rig::unkept();
    rig.ask("POST / HTTP/1.1\r\nHost: g\r\nOrigin: http://o\r\nContent-Length: 3\r\n\r\nabc");
    let said = rig.at_client();
    assert!(said.starts_with("HTTP/1.1 401 Unauthorized\r\n"), "{said}");
    for line in ["vary: Origin", "access-control-allow-origin: http://o"] {
        assert!(said.contains(&format!("\r\n{line}\r\n")), "{said}");
    }
    assert!(said.ends_with("\r\n\r\nno authorization was passed in the metadata"), "{said}");
    rig.ask(
        "POST / HTTP/1.1\r\nHost: g\r\nContent-Type: application/grpc\r\n\
         Authorization: Bearer dev-key\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
    );
    let said = rig.at_client();
    assert!(said.starts_with("HTTP/1.1 200 OK\r\n"), "{said}");
    for line in ["content-type: application/grpc", "grpc-status: 3", "content-length: 0"] {
        assert!(said.contains(&format!("\r\n{line}\r\n")), "{line}: {said}");
    }
    rig.ask(
        "OPTIONS /any HTTP/1.1\r\nHost: g\r\nOrigin: http://o\r\n\
         Access-Control-Request-Method: POST\r\n\r\n",
    );
    let said = rig.at_client();
    assert!(said.contains("\r\naccess-control-allow-methods: POST\r\n"), "{said}");
    let unknown = "nvcf-reqid: 33333333-3333-8333-8333-333333333333\r\n";
    rig.ask(&request("GET / HTTP/1.1", unknown, ""));
    let said = rig.at_client();
    assert!(said.starts_with("HTTP/1.1 404 "), "{said}");
    assert!(said.contains("\r\nset-cookie: nvcf-request-id=; Max-Age=0\r\n"), "{said}");
    assert!(!rig.world.is_closed(rig.client), "its connection serves on");
    rig.end();
}

#[test]
fn no_worker_in_time_is_504_and_the_connection_serves_on() {
    let mut rig = Rig::unkept();
    rig.ask(&request("POST / HTTP/1.1", "Content-Length: 4\r\n", "body"));
    rig.world.pass(Duration::from_secs(31));
    let said = rig.at_client();
    assert!(said.starts_with("HTTP/1.1 504 "), "{said}");
    assert!(said.ends_with("failed to establish link to worker"), "{said}");
    rig.warm_up();
    rig.end();
}

/// An upload that was answered is read over if that is not much. What is more is known at once if
/// its length was told, and the answer says that the connection ends; else it is read for a while.
#[test]
fn an_unwanted_body_is_bounded() {
    for (length, closes) in [(65_536, false), (65_537, true)] {
        let mut rig = Rig::unkept();
        rig.ask(&format!("POST / HTTP/1.1\r\nHost: g\r\nContent-Length: {length}\r\n\r\n"));
        let said = rig.at_client();
        assert!(said.starts_with("HTTP/1.1 401 "), "{said}");
        assert_eq!(said.contains("\r\nconnection: close\r\n"), closes, "{said}");
        if !closes {
            rig.ask(&"x".repeat(length));
            rig.ask("GET /health HTTP/1.1\r\nHost: g\r\n\r\n");
            assert!(rig.at_client().starts_with("HTTP/1.1 200 "));
            continue;
        }
        rig.world.pass(Duration::from_secs(11));
        assert!(rig.world.is_closed(rig.client));
        rig.nothing_is_left();
    }
    let mut rig = Rig::unkept();
    rig.ask("POST / HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\n\r\n");
    assert!(rig.at_client().starts_with("HTTP/1.1 401 "));
    rig.ask(&format!("ea60\r\n{}\r\n", "x".repeat(60_000)));
    assert!(!rig.world.is_closed(rig.client));
    rig.ask(&format!("2710\r\n{}\r\n", "x".repeat(10_000)));
    assert!(rig.world.is_closed(rig.client));
    rig.nothing_is_left();
}

/// CL-34: the worker has answered before the request was whole.
#[test]
fn an_early_response_is_delivered_and_ends_the_connection() {
    let mut rig = Rig::unkept();
    rig.ask(&request("POST / HTTP/1.1", "Content-Length: 100\r\n", "begin"));
    rig.attach();
    rig.at_worker();
    rig.answer("HTTP/1.1 413 Content Too Large\r\ncontent-length: 3\r\n\r\nno!");
    let said = rig.at_client();
    assert!(said.starts_with("HTTP/1.1 413 ") && said.ends_with("\r\n\r\nno!"), "{said}");
    assert!(rig.world.is_closed(rig.client) && rig.tunnel_is_closed());
    rig.nothing_is_left();
}

/// CL-41, CL-42.
#[test]
fn a_lost_tunnel_is_502_before_the_head_and_a_cut_after_it() {
    for end in [End::Fin, End::Reset] {
        let mut rig = Rig::unkept();
        rig.ask(&get("/"));
        let tunnel = rig.attach();
        rig.world.end(tunnel, end);
        let said = rig.at_client();
        assert!(said.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{said}");
        assert!(said.ends_with("\r\n\r\n") && !said.contains("nvcf-reqid"), "{said}");
        rig.warm_up();
        let tunnel = rig.tunnel.expect("a tunnel");
        rig.ask(&get("/2"));
        rig.answer("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc");
        assert!(rig.at_client().ends_with("abc"));
        rig.world.end(tunnel, end);
        assert!(rig.world.is_closed(rig.client));
        assert_eq!(rig.at_client(), "", "nothing makes it look whole");
        rig.nothing_is_left();
    }
}

/// A worker that sends such a response gets its client a 502, and its tunnel ends. No part of it
/// becomes a second response.
#[test]
fn a_worker_that_breaks_the_rules_is_502() {
    for broken in [
        "nonsense\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\na",
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length : 1\r\n\r\na",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        "HTTP/2.0 200 OK\r\n\r\n",
    ] {
        let mut rig = Rig::unkept();
        rig.ask(&get("/"));
        rig.attach();
        rig.at_worker();
        rig.answer(broken);
        let said = rig.at_client();
        assert!(said.starts_with("HTTP/1.1 502 "), "{broken:?}: {said}");
        assert!(rig.tunnel_is_closed() && !rig.world.is_closed(rig.client), "{broken:?}");
        rig.end();
    }
}

#[test]
fn a_second_response_never_reaches_the_client() {
    let mut rig = Rig::unkept();
    rig.ask(&format!("{}{}", get("/1"), get("/2")));
    rig.attach();
    rig.at_worker();
    let one = "HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\na";
    rig.answer(&format!("{one}HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"));
    let said = rig.at_client();
    assert!(said.ends_with("\r\n\r\na") && !said.contains("evil"), "{said}");
    assert!(rig.tunnel_is_closed());
    rig.attach();
    assert!(rig.at_worker().starts_with("GET /2 "), "the second request has a worker of its own");
    rig.end();
    // Unasked, on an idle tunnel.
    let mut rig = Rig::unkept();
    rig.warm_up();
    rig.answer("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil");
    assert!(rig.tunnel_is_closed());
    assert_eq!(rig.at_client(), "");
    rig.end();
}

/// Bytes that could be read as two requests are refused. Not one of them goes to a worker.
#[test]
fn a_smuggled_request_never_reaches_a_worker() {
    let evil = "GET /evil HTTP/1.1\r\nHost: g\r\n\r\n";
    for (more, body) in [
        ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        ("Content-Length: 5\r\nContent-Length: 6\r\n", "abcdef"),
        ("Content-Length: +5\r\n", "abcde"),
        ("Content-Length: 5, 5\r\n", "abcde"),
        ("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding : chunked\r\n", "0\r\n\r\n"),
        (" Transfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        ("X: a\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        ("X: a\r\n\tfolded\r\n", ""),
        ("Host: other\r\n", ""),
    ] {
        let mut rig = Rig::unkept();
        rig.warm_up();
        rig.ask(&format!("{}{evil}", request("POST / HTTP/1.1", more, body)));
        let (client, worker) = (rig.at_client(), rig.at_worker());
        let status = client.get(9..12).unwrap_or_default();
        assert!(["400", "501"].contains(&status), "{more:?}: {client}");
        assert_eq!(client.matches("HTTP/1.1").count(), 1, "{more:?}: {client}");
        assert_eq!(worker, "", "{more:?}");
        assert!(rig.world.is_closed(rig.client));
        rig.nothing_is_left();
    }
    // A body's framing breaks while its call runs: the worker's tunnel ends with it.
    for body in ["5\r\nabcde0\r\n\r\n", "x\r\n", "5\n", "fffffffffffffffff\r\n", "-1\r\n"] {
        let mut rig = Rig::unkept();
        rig.warm_up();
        let chunked = "Transfer-Encoding: chunked\r\n";
        rig.ask(&format!("{}{evil}", request("POST / HTTP/1.1", chunked, body)));
        assert!(rig.at_client().starts_with("HTTP/1.1 400 "), "{body:?}");
        assert!(!rig.at_worker().contains("evil"), "{body:?}");
        assert!(rig.world.is_closed(rig.client) && rig.tunnel_is_closed());
        rig.nothing_is_left();
    }
}

#[test]
fn a_head_has_its_time_and_its_size() {
    let mut rig = Rig::unkept();
    rig.ask("GET / HT");
    rig.world.pass(Duration::from_secs(11));
    assert!(rig.at_client().starts_with("HTTP/1.1 408 "));
    assert!(rig.world.is_closed(rig.client));
    rig.nothing_is_left();
    // CL-45: between requests there is no such limit.
    let mut rig = Rig::unkept();
    rig.ask("GET /health HTTP/1.1\r\nHost: g\r\n\r\n");
    rig.world.pass(Duration::from_secs(3600));
    assert!(!rig.world.is_closed(rig.client));
    rig.ask(&format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(263_000)));
    let said = rig.at_client();
    assert!(said.contains("HTTP/1.1 431 "), "{said}");
    assert!(rig.world.is_closed(rig.client));
    rig.nothing_is_left();
    let mut rig = Rig::unkept();
    let names = "a,".repeat(600);
    rig.ask(&request("GET / HTTP/1.1", &format!("Connection: {names}\r\n"), ""));
    assert!(rig.at_client().starts_with("HTTP/1.1 400 "));
    rig.nothing_is_left();
}

/// CL-44, CL-20: an idle tunnel closes after its time, counted from the last response.
#[test]
fn an_idle_tunnel_closes_and_the_client_stays() {
    let mut rig = Rig::unkept();
    rig.warm_up();
    rig.world.pass(Duration::from_secs(29));
    assert!(!rig.tunnel_is_closed());
    rig.world.pass(Duration::from_secs(2));
    assert!(rig.tunnel_is_closed() && !rig.world.is_closed(rig.client));
    rig.warm_up();
    // An open exchange keeps it.
    rig.ask(&get("/long"));
    rig.world.pass(Duration::from_secs(3600));
    assert!(!rig.tunnel_is_closed());
    rig.answer("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    assert!(rig.at_client().starts_with("HTTP/1.1 200"));
    rig.end();
}

/// CL-23.
#[test]
fn a_client_that_leaves_closes_its_tunnels() {
    let mut rig = Rig::unkept();
    rig.warm_up();
    rig.ask(&get("/long"));
    rig.world.end(rig.client, End::Fin);
    assert!(rig.tunnel_is_closed());
    rig.nothing_is_left();
    // Also while it waits for a worker: the work is withdrawn.
    let mut rig = Rig::unkept();
    rig.ask(&get("/"));
    rig.world.end(rig.client, End::Reset);
    assert!(poll(&mut rig.world, &[]).is_none());
    rig.nothing_is_left();
}

#[test]
fn a_slow_receiver_stops_its_sender() {
    let mut rig = Rig::unkept();
    rig.ask(&request("POST / HTTP/1.1", "Content-Length: 100000000\r\n", ""));
    let tunnel = rig.attach();
    rig.at_worker();
    rig.world.block(tunnel, true);
    let paused = |rig: &Rig, conn| rig.world.net.output(conn).is_some_and(|o| o.is_paused());
    let mut sent = 0;
    let piece = "u".repeat(30_000);
    while !paused(&rig, rig.client) {
        rig.ask(&piece);
        sent += piece.len();
        assert!(sent < 1_000_000, "an upload is stopped by a worker that does not read");
    }
    rig.world.block(tunnel, false);
    assert!(!paused(&rig, rig.client), "and goes on with it");
    assert_eq!(rig.at_worker().len(), sent);
    // The same downwards.
    rig.world.block(rig.client, true);
    rig.answer("HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n");
    let mut sent = 0;
    while !paused(&rig, tunnel) {
        rig.answer(&piece);
        sent += piece.len();
        assert!(sent < 1_000_000, "a download is stopped by a client that does not read");
    }
    rig.world.block(rig.client, false);
    assert!(!paused(&rig, tunnel));
    let said = rig.at_client();
    assert_eq!(said.split_once("\r\n\r\n").expect("a head").1.len(), sent);
    rig.end();
}

/// A tunnel that takes no byte for its time is closed, also if it talks.
#[test]
fn a_worker_that_takes_nothing_is_given_up() {
    let mut rig = Rig::unkept();
    rig.ask(&request("POST / HTTP/1.1", "Content-Length: 100000\r\n", ""));
    let tunnel = rig.attach();
    rig.at_worker();
    rig.world.block(tunnel, true);
    rig.ask(&"u".repeat(100_000));
    rig.world.pass(Duration::from_secs(70));
    assert!(rig.tunnel_is_closed());
    assert!(rig.at_client().starts_with("HTTP/1.1 502 "));
    rig.end();
}

#[test]
fn a_drain_ends_idle_connections_and_lets_calls_finish() {
    let mut rig = Rig::unkept();
    rig.warm_up();
    let idle = rig.world.connect(Listener::Client);
    rig.world.send(idle, b"GET /health HTTP/1.1\r\nHost: g\r\n\r\n");
    rig.ask(&get("/long"));
    rig.world.deliver(ringway::message::ShardMessage::Drain { max: Duration::from_secs(60) });
    assert!(rig.world.is_closed(idle) && !rig.world.is_closed(rig.client));
    rig.answer("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\na");
    let said = rig.at_client();
    assert!(said.contains("connection: close\r\n") && said.ends_with("\r\n\r\na"), "{said}");
    assert!(rig.world.is_closed(rig.client));
    rig.nothing_is_left();
}

/// R1: an id leads to the session from a connection of either protocol, by a tunnel of its own.
#[test]
fn a_session_has_tunnels_of_both_protocols() {
    let mut rig = Rig::unkept();
    rig.warm_up();
    let id = rig.id.clone();
    let mut other = crate::peer::Peer::client(&mut rig.world);
    other.request(&mut rig.world, &[("nvcf-reqid", &id)], true);
    let work = poll(&mut rig.world, &[&id]).expect("work");
    assert_eq!((&*work.kind, &work.request_id), ("reconnect", &id));
    let mut worker = crate::peer::Peer::dial_back(&mut rig.world, &work);
    worker.sync(&mut rig.world);
    assert_eq!(worker.field(0, "nvcf-reqid"), Some(&*id), "HTTP/2 for the one");
    rig.ask(&get("/more"));
    assert!(rig.at_worker().starts_with("GET /more HTTP/1.1\r\n"), "HTTP/1.1 for the other");
    rig.world.end(other.conn, End::Fin);
    // And one more over HTTP/1.1, on a connection whose own requests it does not disturb.
    let third = rig.world.connect(Listener::Client);
    rig.world
        .send(third, request("GET / HTTP/1.1", &format!("nvcf-reqid: {id}\r\n"), "").as_bytes());
    assert_eq!(poll(&mut rig.world, &[&id]).map(|work| work.request_id), Some(id));
    rig.world.end(third, End::Fin);
    rig.end();
}
