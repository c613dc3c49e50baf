//! A rustls client and a transport, in memory.

use std::io::{Read, Write};
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion, version};

use super::*;
use crate::conn::ConnId;
use crate::net::Net;
use crate::pool::CHUNK_BYTES;
use crate::tls::{Files, Pair};

/// Certificate and key for `localhost` as files of their own, gone with the value.
struct Issued {
    folder: std::path::PathBuf,
    root: CertificateDer<'static>,
    files: Files,
}

impl Issued {
    fn new() -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ringway-transport-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let files = Files { cert: folder.join("cert.pem"), key: folder.join("key.pem") };
        std::fs::write(&files.cert, made.cert.pem()).unwrap();
        std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
        Self { folder, root: made.cert.der().clone(), files }
    }

    fn server(&self, listener: Listener) -> Arc<ServerConfig> {
        Pair::load(&self.files).unwrap().server_config(listener).unwrap()
    }
}

impl Drop for Issued {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Both ends, and what the core heard.
struct Line {
    net: Net,
    conn: ConnId,
    transport: Transport,
    scratch: Scratch,
    client: ClientConnection,
    heard: Vec<u8>,
    introduced: Vec<Option<SocketAddr>>,
    secured: usize,
    greeted: usize,
    fins: usize,
    failed: Option<String>,
    block: u16,
    _issued: Issued,
}

const VERSIONS: [&SupportedProtocolVersion; 2] = [&version::TLS12, &version::TLS13];

impl Line {
    fn new(version: &'static SupportedProtocolVersion) -> Self {
        Self::speaking(version, &[b"h2", b"http/1.1"])
    }

    fn speaking(version: &'static SupportedProtocolVersion, alpn: &[&[u8]]) -> Self {
        let issued = Issued::new();
        let mut roots = RootCertStore::empty();
        roots.add(issued.root.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        let name = ServerName::try_from("localhost").unwrap();
        let server = issued.server(Listener::Client);
        let mut net = Net::new(Pool::new(1, 1 << 30));
        let block = net.pool.lend().unwrap();
        let conn = net.open();
        Self {
            net,
            conn,
            transport: Transport::new(Listener::Client, false, Some(server)).unwrap(),
            scratch: Scratch::default(),
            client: ClientConnection::new(Arc::new(config), name).unwrap(),
            heard: Vec::new(),
            introduced: Vec::new(),
            secured: 0,
            greeted: 0,
            fins: 0,
            failed: None,
            block,
            _issued: issued,
        }
    }

    /// Gives the transport these bytes from the socket, at most `split` at a time.
    fn received(&mut self, bytes: &[u8], split: usize) {
        for piece in bytes.chunks(split) {
            let segment = self.net.pool.filled(self.block, piece.len(), true);
            self.net.pool.bytes_mut(segment).copy_from_slice(piece);
            let mut facts = Vec::new();
            self.transport.receive(&mut self.net.pool, segment, &mut self.scratch, &mut facts);
            self.net.pool.release(segment);
            for fact in facts {
                match fact {
                    Fact::Introduced(source) => self.introduced.push(source),
                    Fact::Secured => self.secured += 1,
                    Fact::Greeted => self.greeted += 1,
                    Fact::Bytes(segment) => {
                        self.heard.extend_from_slice(self.net.pool.bytes(segment));
                        self.net.pool.release(segment);
                    }
                    Fact::Fin => self.fins += 1,
                    Fact::Failed(why) => self.failed = Some(why.to_string()),
                }
            }
            self.scratch.plain.rewind(&self.net.pool);
        }
    }

    /// The bytes that the client has to send.
    fn said(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.client.wants_write() {
            self.client.write_tls(&mut bytes).unwrap();
        }
        bytes
    }

    /// The bytes that a send would take now. All of them count as sent.
    fn sent(&mut self, last: bool) -> Vec<u8> {
        let (output, pool) = self.net.output_mut(self.conn).unwrap();
        self.transport.seal(output, pool, last, &mut self.scratch).unwrap();
        let queue = self.transport.queue().iter();
        let bytes: Vec<u8> = queue.flat_map(|s| self.net.pool.bytes(*s)).copied().collect();
        assert_eq!(bytes.len(), self.transport.sealed());
        let plain = self.transport.sent(&mut self.net.pool, bytes.len());
        self.net.out(self.conn, plain);
        bytes
    }

    fn client_takes(&mut self, mut bytes: &[u8]) -> Vec<u8> {
        let mut plain = Vec::new();
        while !bytes.is_empty() {
            self.client.read_tls(&mut bytes).unwrap();
            let state = self.client.process_new_packets().unwrap();
            let old = plain.len();
            plain.resize(old + state.plaintext_bytes_to_read(), 0);
            self.client.reader().read_exact(&mut plain[old..]).unwrap();
        }
        plain
    }

    fn shake_hands(&mut self, split: usize) {
        for _ in 0..4 {
            let said = self.said();
            self.received(&said, split);
            let sent = self.sent(false);
            self.client_takes(&sent);
        }
        assert!(!self.client.is_handshaking() && self.transport.is_open(), "{:?}", self.failed);
        assert_eq!((self.secured, self.transport.outcome()), (1, Some(Outcome::Ok)));
        assert_eq!(self.transport.outcome(), None, "it is told once");
    }
}

const GREETING: &[u8] = b"our side of the preface";

/// A handshake with a greeting. Returns the plaintext that came with the server's first flight, and
/// all plaintext.
fn greeted(
    version: &'static SupportedProtocolVersion,
    alpn: &[&[u8]],
    (to_all, split): (bool, usize),
) -> (Vec<u8>, Vec<u8>) {
    let mut line = Line::speaking(version, alpn);
    let transport = std::mem::replace(
        &mut line.transport,
        Transport::new(Listener::Client, true, None).unwrap(),
    );
    line.transport = transport.greeting(Some(Greeting { bytes: GREETING.into(), to_all }));
    let (mut first, mut all) = (Vec::new(), Vec::new());
    for round in 0..4 {
        let said = line.said();
        line.received(&said, split);
        let sent = line.sent(false);
        let heard = line.client_takes(&sent);
        if round == 0 {
            first.clone_from(&heard);
        }
        all.extend(heard);
    }
    assert!(!line.client.is_handshaking() && line.transport.is_open(), "{:?}", line.failed);
    let said = usize::from(!all.is_empty());
    assert_eq!((line.secured, line.greeted, line.net.queued(line.conn)), (1, said, 0));
    assert_eq!(line.transport.is_greeted(), said == 1);
    line.client.writer().write_all(b"PRI").unwrap();
    let said = line.said();
    line.received(&said, split);
    assert_eq!(line.heard, b"PRI");
    (first, all)
}

#[test]
fn a_client_of_http2_is_greeted_as_soon_as_the_session_can_carry_it() {
    let h2: &[&[u8]] = &[b"h2", b"http/1.1"];
    for split in [1, 7, 100, 1 << 20] {
        let (first, all) = greeted(&version::TLS13, h2, (false, split));
        assert_eq!((&first[..], &all[..]), (GREETING, GREETING), "with the first flight");
        let (first, all) = greeted(&version::TLS12, h2, (false, split));
        assert_eq!((&first[..], &all[..]), (&b""[..], GREETING), "with the handshake's end");
    }
}

#[test]
fn a_client_that_has_not_chosen_http2_is_greeted_only_where_nothing_else_is_spoken() {
    for version in VERSIONS {
        for to_all in [false, true] {
            assert_eq!(greeted(version, &[b"http/1.1"], (to_all, 1 << 20)).1, b"");
            let unsaid = greeted(version, &[], (to_all, 1 << 20)).1;
            assert_eq!(unsaid == GREETING, to_all, "{unsaid:?}");
        }
    }
}

fn noise(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * i / 7 + i) as u8).collect()
}

#[test]
fn bytes_pass_both_ways_however_they_are_split() {
    for version in VERSIONS {
        for split in [1, 2, 3, 5, 7, 16, 100, 1000, 1 << 20] {
            let mut line = Line::new(version);
            line.shake_hands(split);
            let bytes = noise(40_000);
            line.client.writer().write_all(&bytes).unwrap();
            let said = line.said();
            line.received(&said, split);
            assert_eq!(line.heard, bytes, "split at {split}");
            line.net.put(line.conn, &bytes);
            let sent = line.sent(false);
            assert_eq!(line.client_takes(&sent), bytes, "split at {split}");
            assert_eq!(line.net.queued(line.conn), 0);
        }
    }
}

#[test]
fn every_split_in_two_is_the_same() {
    let length = Line::new(&version::TLS13).said().len();
    for at in 1..length {
        let mut line = Line::new(&version::TLS13);
        let hello = line.said();
        line.received(&hello[..at], at);
        assert!(
            line.transport.queue().is_empty()
                && line.transport.outcome() == Some(Outcome::Abandoned)
        );
        line.transport.counted = false;
        line.received(&hello[at..], 1 << 20);
        let sent = line.sent(false);
        line.client_takes(&sent);
        line.shake_hands(1 << 20);
    }
}

#[test]
fn what_is_sealed_is_bounded_and_counts_as_queued_until_it_is_out() {
    let mut line = Line::new(&version::TLS13);
    line.shake_hands(1 << 20);
    let bytes = noise(1 << 20);
    line.net.put(line.conn, &bytes);
    let (output, pool) = line.net.output_mut(line.conn).unwrap();
    line.transport.seal(output, pool, false, &mut line.scratch).unwrap();
    assert!(line.transport.sealed() < SEAL_LIMIT + CHUNK_BYTES);
    assert_eq!(line.net.queued(line.conn), bytes.len(), "none of it was sent");
    let first = line.net.pool.bytes(line.transport.queue()[0])[..1].to_vec();
    assert_eq!(line.transport.sent(&mut line.net.pool, 1), 0, "a byte is no record");
    let mut received = line.client_takes(&first);
    while line.net.queued(line.conn) > 0 {
        let sent = line.sent(false);
        assert!(!sent.is_empty() && sent.len() < SEAL_LIMIT + CHUNK_BYTES);
        received.extend(line.client_takes(&sent));
    }
    assert_eq!(received, bytes);
    assert_eq!(line.net.pool.chunks_live(), 0, "an idle connection has no chunk");
}

#[test]
fn small_pieces_share_records_and_large_ones_are_not_gathered() {
    let mut line = Line::new(&version::TLS13);
    line.shake_hands(1 << 20);
    let whole = line.net.pool.chunk();
    line.net.pool.bytes_mut(whole).copy_from_slice(&noise(CHUNK_BYTES));
    for _ in 0..20 {
        line.net.push(line.conn, whole.part(100, 30));
    }
    line.net.push(line.conn, whole);
    line.net.pool.release(whole);
    let sent = line.sent(false);
    let expected = [noise(CHUNK_BYTES)[100..130].repeat(20), noise(CHUNK_BYTES)].concat();
    assert_eq!(line.client_takes(&sent), expected);
    // The overhead is that of two records, not of 21.
    assert!(sent.len() < expected.len() + 3 * 64, "{}", sent.len());
}

#[test]
fn both_ends_say_goodbye() {
    for version in VERSIONS {
        let mut line = Line::new(version);
        line.shake_hands(1 << 20);
        line.net.put(line.conn, b"last words");
        let sent = line.sent(true);
        assert_eq!(line.client_takes(&sent), b"last words");
        assert!(line.client.process_new_packets().unwrap().peer_has_closed());
        assert!(line.sent(true).is_empty(), "goodbye is said once");
        line.client.writer().write_all(b"mine").unwrap();
        line.client.send_close_notify();
        let mut said = line.said();
        said.extend(b"what comes after is nothing");
        line.received(&said, 10);
        assert_eq!((&line.heard[..], line.fins), (&b"mine"[..], 1));
        assert!(line.failed.is_none());
    }
}

#[test]
fn the_peer_may_end_its_side_and_still_be_answered() {
    let mut line = Line::new(&version::TLS13);
    line.shake_hands(1 << 20);
    line.client.send_close_notify();
    let said = line.said();
    line.received(&said, 1 << 20);
    assert_eq!(line.fins, 1);
    line.net.put(line.conn, b"the answer");
    let sent = line.sent(true);
    assert_eq!(line.client_takes(&sent), b"the answer");
}

#[test]
fn garbage_is_answered_by_an_alert_and_ends() {
    for garbage in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0x16; 200], &[0; 64 * 1024]] {
        let mut line = Line::new(&version::TLS13);
        line.received(garbage, 1 << 20);
        assert!(line.failed.is_some(), "{:?}", line.failed);
        assert_eq!(line.transport.outcome(), Some(Outcome::Failed));
        let sent = line.sent(false);
        assert!(sent.is_empty() || sent[0] == 21, "an alert or nothing: {sent:?}");
        line.net.put(line.conn, b"not in plain text");
        assert!(line.sent(true).is_empty());
        line.received(b"more", 1);
        assert!(line.heard.is_empty() && line.secured == 0);
    }
}

#[test]
fn no_common_protocol_is_refused_and_none_at_all_is_not() {
    let mut line = Line::speaking(&version::TLS13, &[b"smtp"]);
    let said = line.said();
    line.received(&said, 1 << 20);
    let why = line.failed.unwrap();
    assert!(why.contains("known protocol"), "{why}");
    let mut line = Line::speaking(&version::TLS13, &[]);
    line.shake_hands(1 << 20);
    let mut line = Line::new(&version::TLS12);
    line.shake_hands(1 << 20);
    assert_eq!(line.client.alpn_protocol(), Some(&b"h2"[..]));
}

#[test]
fn a_record_that_was_touched_ends_the_connection() {
    let mut line = Line::new(&version::TLS13);
    line.shake_hands(1 << 20);
    line.client.writer().write_all(b"hello").unwrap();
    let mut said = line.said();
    *said.last_mut().unwrap() ^= 1;
    line.received(&said, 1 << 20);
    assert!(line.failed.is_some() && line.heard.is_empty());
    assert_eq!(line.transport.outcome(), None, "the handshake itself went well");
}

#[test]
fn keys_may_be_changed_on_the_way() {
    let mut line = Line::new(&version::TLS13);
    line.shake_hands(1 << 20);
    for round in 0..3 {
        line.client.refresh_traffic_keys().unwrap();
        line.client.writer().write_all(b"new keys").unwrap();
        let said = line.said();
        line.received(&said, 3);
        line.net.put(line.conn, b"for both");
        let sent = line.sent(false);
        assert_eq!(line.client_takes(&sent), b"for both", "round {round}");
    }
    assert_eq!(line.heard, b"new keysnew keysnew keys");
}

#[test]
fn a_connection_takes_its_session_along_to_another_core() {
    let mut line = Line::new(&version::TLS13);
    line.shake_hands(1 << 20);
    line.client.writer().write_all(&noise(20_000)).unwrap();
    let said = line.said();
    line.received(&said[..500], 500);
    let bytes = noise(300_000);
    line.net.put(line.conn, &bytes);
    let (output, pool) = line.net.output_mut(line.conn).unwrap();
    line.transport.seal(output, pool, false, &mut line.scratch).unwrap();
    // A part of a record was sent already.
    let mut out = line.net.pool.bytes(line.transport.queue()[0])[..100].to_vec();
    assert_eq!(line.transport.sent(&mut line.net.pool, 100), 0);

    line.transport.pack(&mut line.net.pool);
    let unsent = line.net.take_unsent(line.conn);
    line.net.free(line.conn);
    assert_eq!(line.net.pool.chunks_live(), 0, "the old core keeps nothing");
    let mut net = Net::new(Pool::new(1, 1 << 30));
    line.block = net.pool.lend().unwrap();
    line.conn = net.open();
    net.put(line.conn, &unsent);
    let sealed = line.transport.unpack(&mut net.pool);
    net.owe(line.conn, sealed);
    line.net = net;
    line.scratch = Scratch::default();

    assert_eq!(line.net.queued(line.conn), bytes.len());
    line.received(&said[500..], 1 << 20);
    assert_eq!(line.heard, noise(20_000));
    while line.net.queued(line.conn) > 0 {
        let sent = line.sent(false);
        out.extend(sent);
    }
    assert_eq!(line.client_takes(&out), bytes);
    assert_eq!(line.net.pool.chunks_live(), 1, "where plaintext is put");
}

#[test]
fn what_the_core_keeps_of_many_records_fills_few_chunks() {
    let mut line = Line::new(&version::TLS13);
    line.shake_hands(1 << 20);
    let mut kept = Vec::new();
    for _ in 0..1000 {
        line.client.writer().write_all(&[7; 16]).unwrap();
        let said = line.said();
        let segment = line.net.pool.filled(line.block, said.len(), true);
        line.net.pool.bytes_mut(segment).copy_from_slice(&said);
        let mut facts = Vec::new();
        line.transport.receive(&mut line.net.pool, segment, &mut line.scratch, &mut facts);
        line.net.pool.release(segment);
        kept.extend(facts);
        line.scratch.plain.rewind(&line.net.pool);
    }
    assert_eq!(kept.len(), 1000);
    assert_eq!(line.net.pool.chunks_live(), 1);
}

#[test]
fn an_endless_handshake_message_is_cut() {
    let mut line = Line::new(&version::TLS13);
    // A ClientHello of 2^24 - 1 bytes, in records of 16 KiB.
    let mut first = vec![0x16, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff];
    first.resize(5 + 0x4000, 0);
    line.received(&first, 1 << 20);
    let mut rounds = 0;
    while line.failed.is_none() {
        let mut next = vec![0x16, 3, 1, 0x40, 0];
        next.resize(5 + 0x4000, 0);
        line.received(&next, 1 << 20);
        rounds += 1;
        assert!(rounds < 10, "nothing bounds it");
    }
    assert_eq!(line.transport.rest.capacity(), 0);
}

/// A header of version 2 for 192.0.2.7:4242, with something behind the addresses.
fn header() -> Vec<u8> {
    let mut header = proxy::SIGNATURE.to_vec();
    header.extend([0x21, 0x11, 0, 12 + 5, 192, 0, 2, 7, 10, 0, 0, 1, 0x10, 0x92, 0x27, 0x61]);
    header.extend([0x04, 0, 2, b'h', b'i']);
    header
}

/// The header of a balancer's health check.
fn local_header() -> Vec<u8> {
    let mut header = proxy::SIGNATURE.to_vec();
    header.extend([0x20, 0, 0, 0]);
    header
}

#[test]
fn a_proxy_header_goes_before_plain_bytes_however_it_is_split() {
    let whole = [header(), b"PRI * HTTP/2.0".to_vec()].concat();
    for split in 1..=whole.len() {
        let mut line = Line::new(&version::TLS13);
        line.transport = Transport::new(Listener::Client, true, None).unwrap();
        line.received(&whole, split);
        assert_eq!(line.introduced, [Some("192.0.2.7:4242".parse().unwrap())]);
        assert_eq!(line.heard, b"PRI * HTTP/2.0", "split at {split}");
        assert!(line.transport.is_through() && line.failed.is_none());
        assert_eq!(line.transport.outcome(), None);
    }
}

#[test]
fn a_proxy_header_goes_before_tls_and_is_not_part_of_it() {
    for (header, source) in
        [(header(), Some("192.0.2.7:4242".parse().unwrap())), (local_header(), None)]
    {
        for split in [1, 2, 15, 16, 17, header.len() - 1, header.len(), header.len() + 1, 1 << 20] {
            let mut line = Line::new(&version::TLS13);
            let config = line._issued.server(Listener::Client);
            line.transport = Transport::new(Listener::Client, true, Some(config)).unwrap();
            let hello = line.said();
            line.received(&[&header[..], &hello].concat(), split);
            let sent = line.sent(false);
            line.client_takes(&sent);
            line.shake_hands(split);
            assert_eq!(line.introduced, [source], "split at {split}");
        }
    }
}

#[test]
fn without_its_proxy_header_a_connection_fails_and_keeps_nothing() {
    let text = b"PROXY TCP4 192.0.2.7 10.0.0.1 4242 10081\r\n".to_vec();
    let noise = noise(64 * 1024);
    let endless = [&proxy::SIGNATURE[..], &[0x21, 0x11, 0xff, 0xff]].concat();
    for garbage in [text, noise, endless, b"GET / HTTP/1.1\r\n".to_vec()] {
        for split in [1, 1 << 20] {
            let mut line = Line::new(&version::TLS13);
            let config = line._issued.server(Listener::Client);
            line.transport = Transport::new(Listener::Client, true, Some(config)).unwrap();
            line.received(&garbage, split);
            assert!(line.failed.is_some() && line.heard.is_empty());
            assert_eq!(line.transport.rest.capacity(), 0);
            assert_eq!(line.transport.outcome(), None, "there was no handshake");
            assert!(line.sent(true).is_empty());
        }
    }
}
