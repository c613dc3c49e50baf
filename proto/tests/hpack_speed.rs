//! How long a warm gRPC request head takes: prints it, and fails only if it is out of all measure.
//!
//! `cargo test --release -p ringway-proto --test hpack_speed -- --nocapture`
use std::hint::black_box;
use std::time::{Duration, Instant};

use ringway_proto::fields::{Field, Fields};
use ringway_proto::hpack::{Decoder, Encoder, HeaderLimits, Verdict, huffman};

const ROUNDS: u32 = if cfg!(debug_assertions) { 1_000 } else { 100_000 };
/// Orders of magnitude above what it takes, for slow machines and unoptimised builds.
const OUT_OF_MEASURE: Duration = Duration::from_micros(200);

fn head() -> [Field<'static>; 12] {
    [
        (&b":method"[..], &b"POST"[..]),
        (b":scheme", b"http"),
        (b":path", b"/ringway.echo.v1.Echo/Unary"),
        (b":authority", b"gateway.example.com:10081"),
        (b"content-type", b"application/grpc"),
        (b"user-agent", b"grpc-go/1.75.0"),
        (b"te", b"trailers"),
        (b"authorization", b"Bearer nvapi-abcdefghijklmnopqrstuvwxyz0123456789"),
        (b"function-id", b"11111111-1111-4111-8111-111111111111"),
        (b"function-version-id", b"22222222-2222-4222-8222-222222222222"),
        (b"grpc-accept-encoding", b"identity, deflate, gzip"),
        (b"grpc-timeout", b"9999m"),
    ]
    .map(|(name, value)| Field::new(name, value))
}

/// The best of several runs: what the code takes when nothing else runs.
fn per_call(mut call: impl FnMut()) -> Duration {
    let run = |call: &mut dyn FnMut()| {
        let start = Instant::now();
        for _ in 0..ROUNDS {
            call();
        }
        start.elapsed() / ROUNDS
    };
    (0..10).map(|_| run(&mut call)).min().expect("ten runs")
}

/// A traceparent that is another one for each call.
struct Trace([u8; 55], u64);

impl Trace {
    fn new() -> Self {
        Self(*b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", 0)
    }

    fn next(&mut self) -> Field<'_> {
        self.1 = self.1.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        for (place, digit) in (36..52).zip((0..16).map(|n| self.1 >> (4 * n) & 15)) {
            self.0[place] = b"0123456789abcdef"[digit as usize];
        }
        Field::new(b"traceparent", &self.0)
    }
}

fn measure(what: &str, list: &[Field<'_>], mut trace: Option<Trace>) {
    let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new(4096));
    let mut block = Vec::new();
    let mut out = Fields::new();
    let mut encode = |block: &mut Vec<u8>| {
        block.clear();
        encoder.begin(block);
        for field in black_box(list) {
            encoder.field(*field, block);
        }
        if let Some(trace) = &mut trace {
            encoder.field(trace.next(), block);
        }
    };
    let limits = HeaderLimits::default();
    for _ in 0..2 {
        encode(&mut block);
        assert_eq!(decoder.decode(&block, &mut out, &limits), Ok(Verdict::Fits));
    }
    let decoding = per_call(|| {
        let verdict = decoder.decode(black_box(&block), &mut out, &limits);
        assert_eq!(verdict, Ok(Verdict::Fits));
        black_box(&out);
    });
    // Afterwards: it may change the encoder's table without the decoder's knowledge.
    let encoding = per_call(|| encode(black_box(&mut block)));
    println!(
        "{what}: {} fields, {} octets, encode {encoding:?}, decode {decoding:?}",
        out.len(),
        block.len()
    );
    assert!(out.iter().zip(list).all(|(got, sent)| got == *sent));
    assert!(encoding < OUT_OF_MEASURE && decoding < OUT_OF_MEASURE);
}

/// What clients do that write every literal in Huffman code.
fn measure_huffman() {
    let mut block = vec![0x0f, 0x2f];
    let text = Trace::new().0;
    block.push(0x80 | huffman::encoded_len(&text) as u8);
    huffman::encode(&text, &mut block);
    let mut decoder = Decoder::new(4096);
    let mut out = Fields::new();
    let limits = HeaderLimits::default();
    let named = [&b"\x40\x0btraceparent\x01"[..], b"-"].concat();
    assert_eq!(decoder.decode(&named, &mut out, &limits), Ok(Verdict::Fits));
    let decoding = per_call(|| {
        let verdict = decoder.decode(black_box(&block), &mut out, &limits);
        assert_eq!(verdict, Ok(Verdict::Fits));
    });
    assert_eq!(out.get(0).expect("one field").value, text);
    println!("one Huffman literal of 55 octets: decode {decoding:?}");
    assert!(decoding < OUT_OF_MEASURE);
}

#[test]
fn a_warm_request_head() {
    measure("request head", &head(), None);
    measure("with a new traceparent", &head(), Some(Trace::new()));
    let trailers = [Field::new(b"grpc-status", b"0"), Field::new(b"grpc-message", b"")];
    measure("trailers", &trailers, None);
    measure_huffman();
}
