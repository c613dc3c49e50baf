//! A core and peers that do everything at the wrong moment: nothing may hang, leak or be mixed up.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[macro_use]
mod reactor_rig;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use reactor_rig::{Noise, SOON, Watched, start, until};
use ringway::net::{Close, ConnId, Core, End, Listener, Net};
use ringway::pool::Segment;
use ringway::reactor::{BusyPoll, Options};
use ringway_proto::time::Time;

/// Echoes, but pauses, closes, copies and dials as it likes.
struct Moody {
    noise: Noise,
    /// Open connections, and whether they are paused.
    known: HashMap<ConnId, bool>,
    /// Connections that had their FIN and are closed a little later.
    half_closed: Vec<ConnId>,
    own: SocketAddr,
    wake_at: Time,
    stopped: bool,
}

impl Moody {
    fn new(seed: u64) -> Self {
        Self {
            noise: Noise::new(seed),
            known: HashMap::new(),
            half_closed: Vec::new(),
            own: ([127, 0, 0, 1], 9).into(),
            wake_at: Time::ZERO,
            stopped: false,
        }
    }

    fn chance(&mut self, of: u64) -> bool {
        self.noise.next().is_multiple_of(of)
    }

    fn whim(&mut self, net: &mut Net, conn: ConnId) {
        if self.chance(8) {
            self.known.insert(conn, true);
            net.pause(conn, true);
        }
        if self.chance(3) {
            net.copy_out(conn);
        }
        if self.chance(60) {
            let how = if self.chance(2) { Close::Now } else { Close::Flush };
            self.known.remove(&conn);
            net.close(conn, how);
        } else if self.chance(300) {
            let dialled = net.dial(self.own);
            net.put(dialled, b"to myself, or to nobody");
            if self.chance(3) {
                net.close(dialled, Close::Flush);
            } else {
                self.known.insert(dialled, false);
            }
        }
    }
}

impl Core for Moody {
    type Message = Option<SocketAddr>;

    fn accepted(&mut self, _: &mut Net, conn: ConnId, _: Listener, _: SocketAddr) {
        assert!(self.known.insert(conn, false).is_none(), "{conn:?} was accepted twice");
    }
    fn dialled(&mut self, net: &mut Net, conn: ConnId, result: Result<(), i32>) {
        assert!(self.known.contains_key(&conn), "{conn:?} is nobody's");
        if result.is_err() {
            self.known.remove(&conn);
        } else if self.chance(2) {
            self.known.remove(&conn);
            net.close(conn, Close::Flush);
        }
    }
    fn received(&mut self, net: &mut Net, conn: ConnId, segment: Segment) {
        assert!(self.known.contains_key(&conn), "{conn:?} is nobody's");
        let cut = self.noise.next() as usize % (segment.len as usize + 1);
        let copy = net.pool.bytes(segment.part(0, cut)).to_vec();
        net.put(conn, &copy);
        net.push(conn, segment.part(cut, segment.len as usize - cut));
        self.whim(net, conn);
    }
    fn ended(&mut self, net: &mut Net, conn: ConnId, end: End) {
        assert!(self.known.contains_key(&conn), "{conn:?} is nobody's");
        if end != End::Fin {
            self.known.remove(&conn);
        } else if self.chance(2) {
            self.known.remove(&conn);
            net.close(conn, Close::Flush);
        } else {
            self.half_closed.push(conn);
        }
    }
    fn awaits(&self, conn: ConnId) -> bool {
        conn.slot.is_multiple_of(2)
    }
    fn written(&mut self, net: &mut Net, conn: ConnId, _: usize) {
        assert!(self.known.contains_key(&conn), "{conn:?} is nobody's");
        self.whim(net, conn);
    }
    fn message_received(&mut self, _: &mut Net, own: Option<SocketAddr>) {
        match own {
            Some(own) => self.own = own,
            None => self.stopped = true,
        }
    }
    fn turn(&mut self, net: &mut Net) {
        if net.now >= self.wake_at {
            self.wake_at = net.now + Duration::from_millis(1);
            for (conn, paused) in &mut self.known {
                if std::mem::take(paused) {
                    net.pause(*conn, false);
                }
            }
            for conn in std::mem::take(&mut self.half_closed) {
                if self.known.remove(&conn).is_some() {
                    net.close(conn, Close::Flush);
                }
            }
        }
    }
    fn relieve(&mut self, _: &mut Net) {}
    fn deadline(&self) -> Option<Time> {
        Some(self.wake_at)
    }
    fn finished(&self) -> bool {
        self.stopped
    }
}

/// Sends noise and reads it back as far as the core likes; what comes must be what was sent.
fn visit(to: SocketAddr, seed: u64) -> usize {
    let Ok(mut stream) = TcpStream::connect(to) else { return 0 };
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.set_write_timeout(Some(SOON)).unwrap();
    let mut noise = Noise::new(seed);
    let len = 1 + noise.next() as usize % 150_000;
    let sent = noise.bytes(len);
    let (mut writer, bytes) = (stream.try_clone().unwrap(), sent.clone());
    let abort = noise.next().is_multiple_of(7);
    let writing = thread::spawn(move || {
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let n = (1 + noise.next() as usize % 20_000).min(rest.len());
            if writer.write_all(&rest[..n]).is_err() {
                return;
            }
            rest = &rest[n..];
        }
        let _ = writer.shutdown(Shutdown::Write);
    });
    let mut got = Vec::new();
    let mut buffer = [0; 5000];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => got.extend_from_slice(&buffer[..n]),
            Err(error) => {
                assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "{seed} hangs");
                break;
            }
        }
        if abort && got.len() > 10_000 {
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
            // The core may have been faster.
            let _ = stream.shutdown(Shutdown::Both);
            break;
        }
    }
    drop(stream);
    writing.join().unwrap();
    assert!(sent.starts_with(&got), "{seed} got {} bytes that it did not send", got.len());
    got.len()
}

fn chaos(seed: u64, options: Options) {
    let blocks = options.blocks;
    let (core, sight) = Watched::new(Moody::new(seed));
    let moody = start(options, core);
    let to = moody.address;
    assert!(moody.sender.send(Some(to)).is_ok());
    let visitors: Vec<_> = (0..8)
        .map(|visitor| {
            thread::spawn(move || {
                (0..40)
                    .map(|visit_no| visit(to, seed * 1000 + visitor * 100 + visit_no))
                    .sum::<usize>()
            })
        })
        .collect();
    let echoed: usize = visitors.into_iter().map(|visitor| visitor.join().unwrap()).sum();
    assert!(echoed > 1_000_000, "only {echoed} bytes came back");
    until("all sockets closed", || (sight.lock().unwrap().tally.sockets == 0).then_some(()));
    until("all memory back", || {
        let seen = *sight.lock().unwrap();
        ((seen.free, seen.chunks_live) == (blocks, 0)).then_some(())
    });
    moody.stop(None);
}

fn with_room_for_everything() {
    chaos(1, Options::default());
}

fn with_hardly_any_receive_memory() {
    chaos(2, Options { blocks: 3, lent: 2, block_bytes: 2048, ..Options::default() });
}

fn with_hardly_any_queue() {
    chaos(3, Options { entries: 8, send_bytes: 1000, receive_limit: 3000, ..Options::default() });
}

fn without_bounds_and_without_sleep() {
    let busy_poll = BusyPoll::Always;
    chaos(4, Options { receive_cap: 0, receive_limit: 0, busy_poll, ..Options::default() });
}

on_both_backends! {
    with_room_for_everything,
    with_hardly_any_receive_memory,
    with_hardly_any_queue,
    without_bounds_and_without_sleep,
}
